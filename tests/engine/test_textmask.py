"""Printed text is found in every size and colour, photographs are left alone, holes are filled."""

import io
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from diptych.engine.textmask import (
    TextMask,
    _box_sum,
    _components,
    _pieces,
    _slide,
    text_mask,
    without_text,
)

SAMPLES = resources.files("diptych") / "assets" / "samples"


def sample(name: str) -> Image.Image:
    return Image.open(io.BytesIO((SAMPLES / name).read_bytes())).convert("RGB")


def printed(picture: Image.Image, text: str, size: int, fill, at=(20, 20)):
    """The picture with the text, and where its pixels are."""
    layer = Image.new("L", picture.size, 0)
    ImageDraw.Draw(layer).text(at, text, font=ImageFont.load_default(size), fill=255)
    out = picture.copy()
    out.paste(fill, mask=layer)
    return out, np.asarray(layer) > 127


@pytest.mark.parametrize("fill", ["white", "black", (200, 30, 40)])
@pytest.mark.parametrize("size", [20, 40, 90])
def test_words_on_a_plain_ground(fill, size):
    ground = Image.new("RGB", (640, 400), (110, 150, 120))
    picture, truth = printed(ground, "library hotel", size, fill)
    mask = text_mask(picture)
    found = mask.pixels()
    assert found[truth].mean() > 0.95
    assert found.mean() < 0.6
    assert mask.share == found.mean()
    assert mask.strokes[truth].mean() > 0.95
    left = np.asarray(without_text(picture, mask), float)
    assert np.abs(left - np.asarray(ground, float))[truth].mean() < 12


def test_words_on_photographs():
    recalls = []
    for name in ("dog.jpg", "mountains.jpg", "boats.jpg", "cat.jpg", "coffee.jpg", "sunset.jpg"):
        picture = sample(name)
        size = picture.height // 8
        words, truth = printed(picture, "pizza", size, "white")
        recalls.append(text_mask(words).pixels()[truth].mean())
    assert np.mean(recalls) > 0.6


def test_most_photographs_are_left_as_they_are():
    shares = [
        text_mask(sample(file.name)).share
        for file in SAMPLES.iterdir()
        if file.name.endswith(".jpg")
    ]
    assert np.median(shares) == 0
    assert np.mean(shares) < 0.06


def test_a_picture_without_text_comes_back_the_same():
    picture = Image.new("RGB", (100, 80), (1, 2, 3))
    assert len(text_mask(picture).boxes) == 0
    assert np.array_equal(np.asarray(without_text(picture)), np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode(mode):
    picture, _ = printed(Image.new("RGB", (300, 120), "white"), "open taxi", 40, "black")
    picture = picture.convert(mode)
    assert len(text_mask(picture).boxes) > 0
    assert without_text(picture).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5000, 3), (7, 7), (2000, 1500)])
def test_every_size(size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    mask = text_mask(Image.fromarray(pixels))
    assert mask.strokes.shape == size[::-1]
    assert not (mask.strokes & ~mask.pixels()).any()
    assert without_text(Image.fromarray(pixels), mask).size == size
    boxes = mask.boxes
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= np.array(size)).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_text_everywhere_becomes_one_colour():
    picture = Image.new("RGB", (40, 30), (10, 20, 30))
    mask = TextMask(boxes=np.array([[0, 0, 40, 30]]), strokes=np.ones((30, 40), bool))
    assert np.asarray(without_text(picture, mask)).reshape(-1, 3).tolist() == [[10, 20, 30]] * 1200


def flood(mask):
    """Pieces by walking, for comparison."""
    label, num = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if label[start]:
            continue
        num += 1
        walk = [start]
        while walk:
            y, x = walk.pop()
            if mask[y, x] and not label[y, x]:
                label[y, x] = num
                walk += [
                    (j, i)
                    for j in range(max(y - 1, 0), min(y + 2, mask.shape[0]))
                    for i in range(max(x - 1, 0), min(x + 2, mask.shape[1]))
                ]
    return label, num


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99))
def test_pieces_are_those_of_a_walk(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    label, num = _pieces(mask)
    other, others = flood(mask)
    assert num == others
    assert len(set(zip(label[mask], other[mask], strict=True))) == num
    assert not label[~mask].any()


def test_windows_and_components():
    values = np.random.default_rng(0).random((9, 11))
    square = np.pad(values, 2, mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(square, (5, 5))
    assert np.array_equal(_slide(values, 5, np.minimum), views.min((2, 3)))
    views = np.lib.stride_tricks.sliding_window_view(np.pad(values, 2), (5, 5))
    assert np.allclose(_box_sum(values, 2), views.sum((2, 3)))
    group = _components(6, np.array([0, 4, 2]), np.array([4, 2, 5]))
    assert (group[[0, 4, 2, 5]] == group[0]).all() and len(set(group.tolist())) == 3
