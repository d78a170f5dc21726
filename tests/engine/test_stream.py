"""`stream`: any length in bounded memory, in order, every failure named, threads that end."""

import itertools
import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest
import torch

from diptych.config import PreprocessConfig
from diptych.engine.stream import decode, num_processes, num_threads, one_ahead, sources
from diptych.errors import ConfigError, ImageError
from diptych.preprocess import Preprocess


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


def levels(image, name):
    """A picklable `prepare`: the image's number in one pixel, or what that number asks for."""
    if image == "bad":
        raise ImageError(f"{name}: is bad")
    if image == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.full((3, 1, 1), int(image), dtype=torch.uint8)


@pytest.mark.slow
def test_processes_keep_the_order_and_name_errors():
    items = [(i, "bad" if i == 21 else str(i)) for i in range(40)]
    done = list(decode(items, levels, threads=1, window=20, processes=2))
    assert [one.key for one in done] == list(range(40))
    assert {one.key: type(one.error) for one in done if one.error} == {21: ImageError}
    for one in done:
        if one.error is None:
            assert one.pixels.dtype == torch.uint8 and one.pixels[0, 0, 0] == one.key


@pytest.mark.slow
def test_processes_prepare_the_same_pixels(photos):
    prepare = Preprocess(PreprocessConfig(size=(32, 32))).uint8
    items = list(sources(photos))
    here = list(decode(items, prepare, threads=1, window=8))
    there = list(decode(items, prepare, threads=1, window=8, processes=1))
    for one, other in zip(here, there, strict=True):
        assert one.key == other.key and str(one.error) == str(other.error)
        assert one.pixels is other.pixels is None or torch.equal(one.pixels, other.pixels)


@pytest.mark.slow
def test_a_killed_process_is_an_error_that_says_so():
    items = [(i, "killed" if i == 3 else str(i)) for i in range(40)]
    with pytest.raises(ConfigError, match=r"was killed .* export DIPTYCH_PROCESSES=0"):
        list(decode(items, levels, threads=1, window=16, processes=1))


@pytest.mark.slow
def test_processes_end_when_the_reader_stops():
    done = decode(((i, "1") for i in itertools.count()), levels, threads=1, window=16, processes=1)
    assert next(done).key == 0
    assert multiprocessing.active_children()
    done.close()
    assert not multiprocessing.active_children()


def test_the_number_of_processes(monkeypatch):
    monkeypatch.delenv("DIPTYCH_PROCESSES", raising=False)
    assert num_processes() == 0
    monkeypatch.setenv("DIPTYCH_PROCESSES", "3")
    assert num_processes() == 3
    monkeypatch.setenv("DIPTYCH_PROCESSES", "-1")
    with pytest.raises(ConfigError, match="DIPTYCH_PROCESSES"):
        num_processes()


def test_one_ahead_makes_the_next_first():
    made = []
    items = one_ahead(made.append(i) or i for i in range(3))
    assert next(items) == 0 and made == [0, 1]
    assert list(items) == [1, 2]
    assert list(one_ahead([])) == [] and list(one_ahead([7])) == [7]
