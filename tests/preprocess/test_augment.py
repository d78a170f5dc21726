"""Augmentation: torchvision's draws and bits, and nothing random but the seed."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.compat.open_clip.transform import AugmentationCfg, TrainTransform
from diptych.config import AugmentConfig, PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Preprocess
from diptych.preprocess.augment import Augment, crop_box, jitter
from diptych.preprocess.pipeline import denormalise
from diptych.preprocess.shrink import shrink

CONFIG = PreprocessConfig(size=(20, 24))


def photo(size=(60, 44), *, format="PNG", mode="RGB", **save) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **save)
    return file.getvalue()


def test_the_seed_is_all_that_is_random():
    config = AugmentConfig(scale=(0.2, 1.0), flip=0.5, jitter=0.4, grey=0.2)
    augment = Augment(CONFIG, config)
    first = [augment(photo(), seed) for seed in range(20)]
    torch.manual_seed(99)
    again = pickle.loads(pickle.dumps(augment))
    assert all(torch.equal(again(photo(), seed), first[seed]) for seed in reversed(range(20)))
    assert len({pixels.sum().item() for pixels in first}) == 20
    assert first[0].shape == (3, 20, 24) and first[0].dtype == torch.float32
    grey = [
        bool((p := denormalise(pixels, CONFIG)).sub(p[0]).abs().max() < 1e-5) for pixels in first
    ]
    assert 1 <= sum(grey) <= 9


def test_the_crop_is_the_peers():
    """`compat`'s transform is compared with open_clip's own, from the global generator."""
    peer = TrainTransform(CONFIG, AugmentationCfg(scale=(0.3, 0.9)))
    augment = Augment(CONFIG, AugmentConfig(scale=(0.3, 0.9)))
    for seed in range(10):
        torch.manual_seed(seed)
        expected = peer(Image.open(io.BytesIO(photo())))
        assert torch.equal(augment(photo(), seed), expected)


def test_crops_are_uniform_and_within():
    draw = torch.Generator().manual_seed(1)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, w, h = crop_box(400, 300, scale=(0.2, 0.6), ratio=(3 / 4, 4 / 3), generator=draw)
        assert left >= 0 and top >= 0 and left + w <= 400 and top + h <= 300
        areas.append(w * h / 120_000)
        ratios.append(np.log(w / h))
    assert min(areas) > 0.195 and max(areas) < 0.605
    assert abs(np.mean(areas) - 0.4) < 0.01
    assert abs(np.mean(ratios)) < 0.01 and max(ratios) < 0.3
    assert crop_box(900, 3, scale=(0.9, 1), ratio=(3 / 4, 4 / 3), generator=draw) == (448, 0, 4, 3)


def test_no_augmentation_is_the_models_own_pixels():
    for name in ("shortest", "squash", "longest"):
        config = PreprocessConfig(size=(20, 20), resize=name, interpolation="bilinear")
        augment = Augment(config, AugmentConfig(scale=None))
        assert torch.equal(augment(photo(), 3), Preprocess(config)(photo()))


def test_flip():
    plain = Augment(CONFIG, AugmentConfig(scale=None))(photo(), 0)
    flip = Augment(CONFIG, AugmentConfig(scale=None, flip=1.0))
    assert torch.equal(flip(photo(), 0), plain.flip(-1))
    half = Augment(CONFIG, AugmentConfig(scale=None, flip=0.5))
    turned = sum(torch.equal(half(photo(), seed), plain.flip(-1)) for seed in range(200))
    assert 70 < turned < 130


def test_jitter_is_its_formula():
    image = Image.open(io.BytesIO(photo()))
    array = np.asarray(image, np.float64)
    luma = np.asarray(image.convert("L"), np.float64)
    seen = set()
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(4, generator=draw).tolist()
        brightness, contrast, colour = (
            torch.empty(1).uniform_(0.6, 1.4, generator=draw).item() for _ in range(3)
        )
        found = jitter(image, 0.4, generator=torch.Generator().manual_seed(seed))
        expected, grey = array, luma
        for i in order:
            match i:
                case 0:
                    expected = expected * brightness
                case 1:
                    mean = np.floor(np.asarray(_L(expected)).mean() + 0.5)
                    expected = (expected - mean) * contrast + mean
                case 2:
                    grey = np.asarray(_L(expected), np.float64)[:, :, None]
                    expected = (expected - grey) * colour + grey
            expected = np.trunc(expected.clip(0, 255))
        assert np.abs(np.asarray(found) - expected).max() <= 1
        seen.add(tuple(order))
    assert len(seen) > 10


def _L(array):
    return Image.fromarray(array.astype(np.uint8)).convert("L")


def test_orientation_counts_in_mode_right_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(format="JPEG", quality=100, exif=exif)
    upright = Image.open(io.BytesIO(turned)).transpose(Image.Transpose.ROTATE_270)
    file = io.BytesIO()
    upright.save(file, "PNG")
    config = AugmentConfig(scale=(0.3, 0.9))
    right, original = (Augment(CONFIG, config, mode) for mode in ("right", "original"))
    assert torch.equal(right(turned, 1), right(file.getvalue(), 1))
    assert torch.equal(original(turned, 1), original(photo(format="JPEG", quality=100), 1))
    assert not torch.equal(original(turned, 1), right(turned, 1))


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA", "1", "I;16"])
def test_other_modes(mode):
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20).save(file, "PNG")
        data = file.getvalue()
    else:
        data = photo(mode=mode)
    for how in ("right", "original"):
        augment = Augment(CONFIG, AugmentConfig(scale=(0.5, 0.9), jitter=0.2), how)
        assert augment(data, 2).shape == (3, 20, 24)


def test_errors_name_the_file():
    for config in (AugmentConfig(), AugmentConfig(scale=None)):
        augment = Augment(CONFIG, config)
        for data in (b"", b"<html>", photo()[:200]):
            with pytest.raises(ImageError, match=r"^a/b\.png: "):
                augment(data, 1, "a/b.png")


def test_shrink():
    data = photo((90, 30))
    assert shrink(data, "x", side=90) is data
    small = Image.open(io.BytesIO(shrink(data, "x", side=45)))
    assert (small.size, small.format) == ((45, 15), "JPEG")
    clear = Image.open(io.BytesIO(shrink(photo((90, 30), mode="RGBA"), "x", side=45)))
    assert (clear.mode, clear.format) == ("RGBA", "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(shrink(photo((90, 30), format="JPEG", exif=exif), "x", side=45)))
    assert turned.size == (15, 45) and not turned.getexif()
    assert shrink(data, "x", side=45) == shrink(data, "x", side=45)
    with pytest.raises(ImageError, match=r"^x: "):
        shrink(b"no", "x", side=45)
