"""Two passes with a crop between them are one call of Pillow and a crop, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.config import PreprocessConfig
from diptych.preprocess import passes
from diptych.preprocess.passes import resize_crop_exactly
from diptych.preprocess.pixels import FILTERS, crop_box, target_size

NOISE = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(NOISE[:height, :width])).convert(mode)


def plain(image: Image.Image, size, how, box) -> Image.Image:
    return image.resize(size, how).crop(box)


def same(image: Image.Image, size, how, box) -> bool:
    ours = resize_crop_exactly(image, size, how, box)
    return ours.tobytes() == plain(image, size, how, box).tobytes() and ours.mode == image.mode


def test_the_rule_of_the_installed_pillow_is_known():
    """Otherwise all is one call: right, but slower. Add the new rule to `passes`."""
    assert passes._rule() is not None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_shape_and_any_box(data):
    side = st.integers(1, 160)
    width, height = data.draw(side), data.draw(side)
    new = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
    left, top = data.draw(st.integers(0, new[0] - 1)), data.draw(st.integers(0, new[1] - 1))
    box = (
        left,
        top,
        data.draw(st.integers(left + 1, new[0])),
        data.draw(st.integers(top + 1, new[1])),
    )
    how = data.draw(st.sampled_from(list(FILTERS.values())))
    mode = data.draw(st.sampled_from(["RGB", "L", "RGBA", "P", "CMYK", "LA"]))
    assert same(noise(width, height, mode), new, how, box)


SHAPES = [(500, 375), (375, 500), (640, 480), (200, 700), (700, 200), (699, 233), (233, 699)]
SHAPES += [(100, 224), (224, 100), (224, 224), (224, 500), (300, 301), (301, 677), (31, 33)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "config",
    [
        PreprocessConfig(size=(224, 224)),
        PreprocessConfig(size=(64, 64)),
        PreprocessConfig(size=(48, 61)),
        PreprocessConfig(size=(64, 64), short=75),
        PreprocessConfig(size=(64, 64), short=75, resize="squash"),
    ],
    ids=lambda config: f"{config.resize}-{config.size[0]}x{config.size[1]}-{config.short}",
)
def test_the_crops_of_models(config, interpolation):
    for width, height in SHAPES:
        size = target_size(config, width, height)
        box = crop_box(config, *size)
        assert same(noise(width, height), size, FILTERS[interpolation], box), (width, height)


@pytest.mark.parametrize("rule", [passes.rows_first, passes._never])
def test_both_orders_are_taken_apart_rightly(rule):
    """Whatever comes first: each pass by itself, in that order, then the crop."""
    how = Image.Resampling.BICUBIC
    for before, after in [((90, 60), (50, 40)), ((60, 90), (40, 50)), ((30, 200), (20, 130))]:
        image, box = noise(*before), (3, 5, after[0] - 4, after[1] - 9)
        between = (before[0], after[1]) if rule(before, after) else (after[0], before[1])
        want = image.resize(between, how).resize(after, how).crop(box)
        ours = passes._apart(image, after, how, box, int(rule(before, after)))
        assert ours.tobytes() == want.tobytes()


def test_the_order_matters_so_the_probe_can_tell():
    assert not all(passes._fits(noise(100, 100), passes._never, *sizes) for sizes in passes._TRIED)


def test_an_unknown_pillow_is_called_once(monkeypatch):
    monkeypatch.setattr(passes, "_rule", lambda: None)
    assert same(noise(300, 200), (96, 64), Image.Resampling.BICUBIC, (16, 0, 80, 64))


def test_an_image_that_fits_is_not_copied():
    image = noise(64, 64)
    assert resize_crop_exactly(image, (64, 64), Image.Resampling.BICUBIC, (0, 0, 64, 64)) is image
