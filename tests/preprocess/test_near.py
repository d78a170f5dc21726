"""`pixels="near"` and `"fast"`: how far from Pillow, on what, and that nothing else changes."""

import io
import pickle
from importlib.resources import files

import numpy as np
import pytest
import torch
from awkward_files import awkward, encode, exif, picture
from PIL import Image

from diptych.config import PreprocessConfig
from diptych.errors import ConfigError, ImageError
from diptych.preprocess import Limits, Preprocess, collate, jpeg, open_image
from diptych.preprocess.metadata import metadata
from diptych.preprocess.pipeline import normalise_batch

CONFIG = PreprocessConfig(size=(224, 224))
SMALL = PreprocessConfig(size=(32, 32))
SAMPLES = sorted(
    (p.read_bytes() for p in (files("diptych") / "assets" / "samples").iterdir()
     if p.name.endswith(".jpg")), key=len,
)[::3]  # fmt: skip
CONFIGS = [
    CONFIG,
    PreprocessConfig(size=(224, 224), interpolation="bilinear"),
    PreprocessConfig(size=(224, 224), short=256, crop="floor"),
    PreprocessConfig(size=(96, 160)),
    PreprocessConfig(size=(96, 160), resize="squash"),
    PreprocessConfig(size=(97, 161), resize="longest", pad=114),
]


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    """With the extra `jpeg` and without it."""
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "_decoder", lambda: None)
    else:
        pytest.importorskip("simplejpeg")


def off(image, config=CONFIG, pixels="near", mode="right") -> tuple[float, int]:
    """Mean and largest difference to the exact pixels, in levels."""
    difference = differences(image, config, pixels, mode)
    return float(difference.float().mean()), int(difference.max())


def differences(image, config, pixels="near", mode="right") -> torch.Tensor:
    exact = Preprocess(config, mode).uint8(image).int()
    ours = Preprocess(config, mode, pixels=pixels).uint8(image)
    assert ours.dtype == torch.uint8 and ours.is_contiguous() and ours.shape == exact.shape
    return (ours.int() - exact).abs()


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.resize}{c.size}{c.interpolation}{c.short}"
)
def test_near_is_one_level_off_on_photographs(config):
    found = torch.cat([differences(photo, config).flatten() for photo in SAMPLES])
    assert 0 < float(found.float().mean()) <= 0.01  # 0 would be another path than we test
    assert int(found.max()) <= 2 and float((found == 2).float().mean()) < 1e-5
    if config is CONFIG:
        assert int(found.max()) == 1


@pytest.mark.parametrize("mode", ["right", "original"])
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("pixels", ["near", "fast"])
def test_turned_photographs(turn, mode, pixels, decoder):
    photo = Image.open(io.BytesIO(SAMPLES[-1])).resize((302, 500))
    data = encode(photo, "JPEG", quality=95, exif=exif(turn))
    for config in (PreprocessConfig(size=(60, 100)), PreprocessConfig(size=(63, 63))):
        mean, top = off(data, config, pixels, mode)
        assert (mean, top) <= ((0.01, 1) if pixels == "near" else (0.4, 6))


def test_tall_photographs_in_pillows_order():
    photo = Image.open(io.BytesIO(SAMPLES[-1])).resize((250, 900))
    assert off(photo) <= (0.01, 1)
    assert off(photo.transpose(Image.Transpose.ROTATE_90)) <= (0.01, 1)


def test_grey_photographs():
    photo = Image.open(io.BytesIO(SAMPLES[-1])).convert("L")
    assert off(photo) <= (0.01, 1)
    assert off(encode(photo, "JPEG")) <= (0.01, 1)


def large(width: int, height: int) -> bytes:
    """A photograph with the grain of a camera."""
    photo = Image.open(io.BytesIO(SAMPLES[-1])).convert("RGB").resize((width, height))
    grain = np.random.default_rng(0).normal(0, 2.5, (height, width, 3)).round()
    array = (np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)
    return encode(Image.fromarray(array), "JPEG", quality=90)


@pytest.mark.parametrize("size", [(2003, 1505), (1501, 2003), (3000, 2801)])
def test_fast_is_a_few_levels_off(size, decoder):
    data = large(*size)
    mean, top = off(data, pixels="fast")
    assert 0.05 < mean <= 0.4  # above: the decoder did scale
    assert top <= 6


def test_fast_decodes_three_times_what_is_needed():
    assert jpeg.shrunk(4000, 3000, (298, 224)) == 4
    assert jpeg.shrunk(1343, 1344, (224, 224)) == 1
    assert jpeg.shrunk(1344, 1344, (224, 224)) == 2
    assert jpeg.shrunk(100_000, 100_000, (10, 10)) == 8
    small = encode(Image.fromarray(picture(400, 300)), "JPEG")
    exact_size = Preprocess(CONFIG, pixels="near").uint8(small)
    assert torch.equal(Preprocess(CONFIG, pixels="fast").uint8(small), exact_size)


@pytest.mark.parametrize("pixels", ["near", "fast"])
@pytest.mark.parametrize("mode", ["right", "original"])
def test_files_of_every_kind(pixels, mode, decoder):
    """What is not plain 8-bit RGB or grey is exact; noise at 1/2 stays within 2 levels."""
    for name, data in awkward().items():
        image = open_image(data)
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info
        _, top = off(data, SMALL, "near", mode)
        assert plain or not top, name
        assert top <= 2, name
        Preprocess(SMALL, mode, pixels=pixels).uint8(data)


def test_png_and_arrays_have_the_same_pixels_as_their_picture():
    array = picture(300, 200)
    near = Preprocess(CONFIG, pixels="near").uint8
    assert torch.equal(near(array), near(encode(Image.fromarray(array), "PNG")))
    assert torch.equal(near(array), Preprocess(CONFIG, pixels="fast").uint8(array))


@pytest.mark.parametrize("pixels", ["exact", "near", "fast"])
def test_a_call_is_uint8_normalised(pixels):
    prepare = Preprocess(CONFIG, pixels=pixels)
    some = [prepare.uint8(photo) for photo in SAMPLES[:3]]
    batch = normalise_batch(collate(some), CONFIG)
    assert batch.dtype == torch.float32
    for row, photo, levels in zip(batch, SAMPLES[:3], some, strict=True):
        assert torch.equal(row, prepare(photo))
        picture_ = prepare.resize(photo)
        assert picture_.size == (224, 224)
        assert torch.equal(torch.from_numpy(np.array(picture_)).permute(2, 0, 1), levels)


@pytest.mark.parametrize("pixels", ["exact", "near", "fast"])
def test_look_sees_the_file(pixels, decoder):
    data = large(1800, 1400)
    seen = []
    Preprocess(CONFIG, pixels=pixels)(data, look=lambda image: seen.append(metadata(image)))
    assert (seen[0].width, seen[0].height, seen[0].format) == (1800, 1400, "JPEG")
    values = []
    Preprocess(CONFIG, pixels=pixels)(data, look=lambda image: values.append(image.tobytes()))
    assert values == [Image.open(io.BytesIO(data)).tobytes()]


@pytest.mark.parametrize("pixels", ["near", "fast"])
def test_damaged_files_are_named(pixels, decoder, tmp_path):
    data = large(1400, 1350)
    file = tmp_path / "cut.jpg"
    file.write_bytes(data[: len(data) // 2])
    seen = []
    with pytest.raises(ImageError, match=r"cut\.jpg: the JPEG data is damaged or cut short"):
        Preprocess(CONFIG, pixels=pixels)(file, look=seen.append)
    assert not seen


@pytest.mark.parametrize("pixels", ["near", "fast"])
def test_limits_hold(pixels, decoder):
    data = large(1400, 1350)
    with pytest.raises(ImageError, match="more than 100,000"):
        Preprocess(CONFIG, pixels=pixels, limits=Limits(pixels=100_000))(data)
    with pytest.raises(ImageError, match="limits=Limits"):
        Preprocess(CONFIG, pixels=pixels, limits=Limits(memory=6_000_000))(data)


def test_without_room_for_a_copy_the_pixels_are_exact():
    array = picture(500, 400)
    tight = Preprocess(CONFIG, pixels="near", limits=Limits(memory=1_900_000))
    assert torch.equal(tight.uint8(array), Preprocess(CONFIG).uint8(array))


def test_names():
    for pixels in ("Near", "", None, "draft"):
        with pytest.raises(ConfigError, match="pixels must be 'exact', 'near' or 'fast'"):
            Preprocess(CONFIG, pixels=pixels)
    near = pickle.loads(pickle.dumps(Preprocess(CONFIG, pixels="near")))
    assert near.pixels == "near" and "pixels='near'" in repr(near)
    assert "pixels" not in repr(Preprocess(CONFIG))
