"""Vectors that are kept: none is encoded twice, none is stale, none is another model's."""

import os

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.errors import ConfigError
from diptych.judge.kept import Kept, kept_path, stream

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128),
)


@pytest.fixture(scope="module")
def enc():
    return diptych.build(TINY, seed=1, precision="fp32")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        save(folder / f"{i}.png", i)
    return [str(path) for path in sorted(folder.iterdir())]


def save(path, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(path)


def run(enc, images, path):
    """(keys, vectors, errors, how many were encoded)."""
    with Kept(path, encoder=enc) as kept:
        batches = list(stream(enc, images, kept))
    keys = [key for batch in batches for key in batch.keys]
    errors = {key: error for batch in batches for key, error in batch.errors.items()}
    return keys, np.concatenate([batch.vectors for batch in batches]), errors, kept.num_encoded


def test_a_second_run_encodes_nothing_and_gives_the_same(enc, photos, tmp_path, monkeypatch):
    path = tmp_path / "v" / "kept.db"
    keys, vectors, _, num = run(enc, photos, path)
    assert (keys, num) == (photos, 5)
    assert vectors == pytest.approx(enc.encode_image(photos), abs=1e-6)
    monkeypatch.setattr(enc, "run_image", None)  # would be called to encode
    again = run(enc, reversed(photos), path)
    assert again[0] == photos[::-1]
    assert np.array_equal(again[1], vectors[::-1])
    assert again[3] == 0


def test_what_changed_or_is_new_is_encoded(enc, photos, tmp_path):
    path = tmp_path / "kept.db"
    run(enc, photos, path)
    save(photos[1], 77)
    os.utime(photos[2], ns=(1, 1))
    extra = str(tmp_path / "new.png")
    save(extra, 78)
    keys, vectors, _, num = run(enc, [*photos, extra], path)
    assert (len(keys), num) == (6, 3)
    assert vectors == pytest.approx(enc.encode_image([*photos, extra]), abs=1e-6)


def test_errors_are_named_and_not_kept(enc, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff no picture")
    images = [photos[0], str(bad), str(tmp_path / "gone.png"), "x" * 300 + ".png", photos[1]]
    for _ in range(2):
        keys, vectors, errors, num = run(enc, images, tmp_path / "kept.db")
        assert keys == photos[:2]
        assert len(vectors) == 2
        assert list(errors) == images[1:4]
    assert num == 0


def test_pictures_in_memory_have_their_place_as_key(enc, photos, tmp_path):
    picture = Image.open(photos[3])
    for _ in range(2):
        keys, vectors, _, num = run(enc, [photos[0], picture, photos[0]], tmp_path / "kept.db")
        assert keys == [photos[0], 1, photos[0]]
        assert vectors[1] == pytest.approx(enc.encode_image(photos[3])[0], abs=1e-6)
    assert num == 1  # the picture that is no file


def test_without_a_file_everything_is_encoded(enc, photos):
    (batch,) = stream(enc, photos, None)
    assert batch.vectors == pytest.approx(enc.encode_image(photos), abs=1e-6)


def test_another_model_is_refused(enc, photos, tmp_path):
    path = tmp_path / "kept.db"
    run(enc, photos, path)
    other = diptych.build(TINY, seed=2, precision="fp32")
    with pytest.raises(ConfigError, match="another model"):
        Kept(path, encoder=other)
    assert kept_path(enc) != kept_path(other)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_none_of_ours(enc, tmp_path, content):
    path = tmp_path / "kept.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"kept\.db: cannot be used"):
        Kept(path, encoder=enc)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be(enc, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used"):
        Kept(tmp_path / "file" / "kept.db", encoder=enc)
    with pytest.raises(ConfigError, match="cannot be used"):
        Kept(tmp_path, encoder=enc)


def test_a_batch_that_was_kept_survives_the_next_one_s_failure(enc, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.judge.kept._AT_ONCE", 2)

    def images():
        yield from photos[:2]
        yield photos[2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(enc, images(), tmp_path / "kept.db")
    assert run(enc, photos, tmp_path / "kept.db")[3] == 3
