"""`stream`: any length in bounded memory, in order, every failure named, threads that end."""

import itertools
import threading

import numpy as np
import pytest

from diptych.engine.stream import decode, num_threads, sources
from diptych.errors import ConfigError, ImageError


def test_a_folder_is_walked_in_order_and_failures_are_named(enc, photos):
    batches = list(enc.stream(photos))
    keys = [key for batch in batches for key in batch.keys]
    errors = {key: error for batch in batches for key, error in batch.errors.items()}
    assert keys == [str(p) for p in sorted(photos.glob("*.png"))] + [
        str(p) for p in sorted(photos.glob("sub/*.png"))
    ]
    assert list(errors) == [str(photos / "broken.jpg")]
    rows = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_allclose(rows, enc.encode_image(keys), atol=2e-6)


def test_an_endless_input_is_read_only_as_far_as_needed(enc):
    taken = itertools.count()
    seen = 0

    def endless():
        nonlocal seen
        for seen in taken:
            yield np.full((8, 8, 3), seen % 256, np.uint8)

    stream = enc.stream(endless())
    first = next(stream)
    assert first.keys == list(range(enc.batch_size))
    assert seen <= 4 * enc.batch_size
    stream.close()


def test_only_errors_come_in_batches_too(enc):
    batches = list(enc.stream([b"nothing"] * 100))
    assert sum(len(batch.errors) for batch in batches) == 100
    assert max(len(batch.errors) for batch in batches) <= enc.batch_size
    assert all(batch.vectors.shape == (0, 24) for batch in batches)


def test_threads_end_when_the_reader_stops(enc, photos):
    before = threading.active_count()
    for _ in enc.stream(photos):
        break
    assert threading.active_count() <= before + 1


def test_window_bounds_what_is_ahead():
    started = []

    def prepare(image, name):
        started.append(image)
        return image

    items = ((i, i) for i in range(1000))
    done = decode(items, prepare, threads=4, window=10)
    for i in range(20):
        assert next(done).key == i
        assert len(started) <= i + 12
    done.close()


def test_an_error_that_is_not_the_images_is_not_hidden():
    def prepare(image, name):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(decode([(0, 0)], prepare, threads=1, window=1))


def test_sources_tell_one_image_from_many(photos):
    path = photos / "00.png"
    assert list(sources(path)) == [(str(path), path)]
    assert list(sources(b"bytes")) == [(0, b"bytes")]
    array = np.zeros((2, 4, 4, 3), np.uint8)
    assert [key for key, _ in sources(array)] == [0, 1]
    assert [key for key, _ in sources(array[0])] == [0]
    with pytest.raises(ImageError, match="NoneType"):
        list(sources(None))


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, value):
    monkeypatch.setenv("DIPTYCH_THREADS", value)
    with pytest.raises(ConfigError, match="DIPTYCH_THREADS"):
        num_threads()
