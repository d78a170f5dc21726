"""What each kind of file means (mode="right"), and what its publisher made of it."""

import io
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from awkward_files import awkward, encode, picture, raw_png
from PIL import Image, ImageOps

from diptych.config import PreprocessConfig
from diptych.errors import ConfigError, ImageError
from diptych.preprocess import Limits, Preprocess, denormalise, open_image
from diptych.preprocess import pixels as room

CONFIG = PreprocessConfig(size=(32, 32))
FILES = awkward()
PUBLISHERS = {"open_clip": CONFIG, "hf": PreprocessConfig(size=(32, 32), rgb="before")}


def reference(image: Image.Image, config: PreprocessConfig = CONFIG) -> torch.Tensor:
    """openai/CLIP's transform, written out: resize, centre crop, RGB, /255, normalise."""
    side = config.size[0]
    width, height = image.size
    long = int(side * max(width, height) / min(width, height))
    size = (side, long) if width <= height else (long, side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    image = image.crop((left, top, left + side, top + side)).convert("RGB")
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return x.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def plain(name: str) -> Image.Image:
    """The decoded first picture, by Pillow alone."""
    image = Image.open(io.BytesIO(FILES[name]))
    image.load()
    return image


def over(image: Image.Image, fill=(255, 255, 255)) -> Image.Image:
    """`image` over a ground, in the formula of compositing rather than by Pillow."""
    rgba = np.array(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return Image.fromarray(
        np.round(rgba[..., :3] * alpha + (1 - alpha) * np.array(fill)).astype("u1")
    )


def same(pixels: torch.Tensor, image: Image.Image, levels: float = 0) -> None:
    off = (pixels - reference(image)).abs() * torch.tensor(CONFIG.std).view(3, 1, 1) * 255
    assert float(off.max()) <= levels + 1e-4 * bool(levels)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif(side):
    """A lossless file turned by hand with numpy, then tagged, must come back upright."""
    upright = picture()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[side]  # fmt: skip
    block = Image.Exif()
    block[0x0112] = side
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=block.tobytes())
    assert torch.equal(Preprocess(CONFIG)(data), reference(Image.fromarray(upright)))
    as_stored = reference(Image.fromarray(np.ascontiguousarray(stored)))
    assert torch.equal(Preprocess(CONFIG, "original")(data), as_stored)


@pytest.mark.parametrize("name", [n for n in FILES if "exif" in n])
def test_exif_of_every_format(name):
    with warnings.catch_warnings(action="ignore"):  # about the damaged block
        upright = ImageOps.exif_transpose(plain(name))
    assert torch.equal(Preprocess(CONFIG)(FILES[name]), reference(upright))


def test_bands_are_the_whole(monkeypatch):
    """A large picture is turned and composited in bands; the seams do not show."""
    image = Image.fromarray(picture(61, 47, channels=4))
    for turn in range(1, 9):
        image.getexif()[0x0112] = turn
        monkeypatch.setattr(room, "BAND", 1 << 21)
        once = Preprocess(CONFIG)(image)
        monkeypatch.setattr(room, "BAND", 150)
        assert torch.equal(Preprocess(CONFIG)(image), once)


@pytest.mark.parametrize("side", range(2, 9))
def test_large_pictures_are_turned_last(side):
    """Where a second copy would not fit: the same crop, a few levels off."""
    image = Image.fromarray(picture(301, 170))
    image.getexif()[0x0112] = side
    tight = Limits(memory=180_000)
    first, last = Preprocess(CONFIG), Preprocess(CONFIG, limits=tight)
    off = np.array(first.resize(image)).astype(int) - np.array(last.resize(image))
    assert np.abs(off).max() <= 8 and np.abs(off).mean() < 1


@pytest.mark.parametrize("mode", ["right", "original"])
def test_plain_files_have_the_original_bits(mode):
    """200 random sizes of 8-bit RGB and grey."""
    random = np.random.default_rng(0)
    preprocess = Preprocess(CONFIG, mode)
    for seed in range(200):
        width, height = map(int, random.integers(1, 200, 2))
        if max(width, height) > 150 * min(width, height):
            continue
        image = Image.fromarray(picture(width, height, seed=seed))
        image = image if seed % 4 else image.convert("L")
        assert torch.equal(preprocess(image), reference(image))


PLAIN = ["plain.jpg", "progressive.jpg", "grey.jpg", "icc.jpg", "two.mpo", "plain.png",
         "interlaced.png", "animated.png", "animated.webp", "plain.avif", "plain.bmp",
         "lzw.tif", "one.png"]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_kinds(name):
    """The profile is ignored, the first picture is taken, interlacing changes nothing."""
    for mode in ("right", "original"):
        assert torch.equal(Preprocess(CONFIG, mode)(FILES[name]), reference(plain(name)))


def test_interlaced_is_the_plain_picture():
    assert np.array_equal(np.array(open_image(FILES["interlaced.png"])), picture())


def test_first_frame():
    for name, levels in (("animated.gif", 40), ("animated.png", 0)):
        first = np.array(open_image(FILES[name]).convert("RGB")).astype(int)
        assert np.abs(first - picture(seed=1)).mean() <= levels


@pytest.mark.parametrize("name", ["cmyk.jpg", "ycck.jpg", "cmyk.tif", "palette.png", "bit.png",
                                  "animated.gif", "lab.tif"])  # fmt: skip
def test_converted_before_the_resize(name):
    assert torch.equal(Preprocess(CONFIG)(FILES[name]), reference(plain(name).convert("RGB")))


def test_cmyk_is_not_inverted():
    """Adobe writes CMYK JPEGs inverted; the picture must not come out as its negative."""
    shown = np.array(open_image(FILES["cmyk.jpg"]).convert("RGB")).astype(int)
    assert np.abs(shown - picture()).mean() < 12


CLEAR = ["la.png", "rgba.png", "rgba.webp", "palette_clear.png", "la16.png", "clear.gif",
         "palette_alpha.png", "rgb_clear.png", "grey_clear.png"]  # fmt: skip


@pytest.mark.parametrize("name", CLEAR)
def test_alpha_lies_over_the_fill(name):
    image = plain(name)
    same(Preprocess(CONFIG)(FILES[name]), over(image), 1)
    red = PreprocessConfig(size=(32, 32), fill=(255, 0, 0))
    same(Preprocess(red)(FILES[name]), over(image, (255, 0, 0)), 1)


def test_16_bits_are_scaled():
    deep = (picture().astype(np.uint16) << 8) | 77
    eight = Image.fromarray(picture())
    same(Preprocess(CONFIG)(raw_png(deep, 16, 2)), eight)
    grey = deep[..., 0]
    for data in (
        raw_png(grey, 16, 0),
        encode(Image.fromarray(grey), "TIFF"),
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.int32)),  # Pillow's older mode for the same
    ):
        same(Preprocess(CONFIG)(data), eight.getchannel(0))
    clipped = Preprocess(CONFIG, "original")(raw_png(grey, 16, 0))  # what open_clip makes of it
    assert float((denormalise(clipped, CONFIG) > 0.99).float().mean()) > 0.9


def test_16_bit_transparency():
    """The key colour is that of pixel (5, 3); at the file's own size nothing is resized."""
    preprocess, want = Preprocess(PreprocessConfig(size=(47, 61), resize="squash")), picture()
    grey = np.array(preprocess.resize(FILES["grey16_clear.png"]))
    assert tuple(grey[3, 5]) == (255, 255, 255)
    assert tuple(grey[10, 10]) == (want[10, 10, 0],) * 3
    colour = np.array(preprocess.resize(FILES["rgb16_clear.png"]))
    assert tuple(colour[3, 5]) == (255, 255, 255)
    assert tuple(colour[10, 10]) == tuple(want[10, 10])


def test_floats_are_scaled_and_unknown_scales_refused():
    eight = Image.fromarray(picture()[..., 0])
    floats = Image.fromarray(picture()[..., 0].astype(np.float32) / 255)
    same(Preprocess(CONFIG)(floats), eight)
    for bad in (np.float32([[0, 300]]), np.float32([[np.nan, 0]]), np.int32([[0, 70000]])):
        with pytest.raises(ImageError, match=r"photo 7: its values run from .* Scale mode"):
            Preprocess(CONFIG)(Image.fromarray(bad), name="photo 7")


def test_original_keeps_the_publishers_faults():
    """open_clip resizes palettes by nearest neighbour and drops alpha; HF lays it over white."""
    ours, theirs = Preprocess(CONFIG, "original"), plain("palette.png")
    assert torch.equal(ours(FILES["palette.png"]), reference(theirs))
    assert not torch.equal(ours(FILES["palette.png"]), reference(theirs.convert("RGB")))
    assert torch.equal(ours(FILES["rgba.png"]), reference(plain("rgba.png")))
    hf = Preprocess(PUBLISHERS["hf"], "original")
    same(hf(FILES["rgba.png"]), over(plain("rgba.png")), 1)
    assert torch.equal(hf(FILES["palette.png"]), reference(theirs.convert("RGB")))


def test_arrays_and_paths(tmp_path):
    array, preprocess = picture(), Preprocess(CONFIG)
    want = reference(Image.fromarray(array))
    path = tmp_path / "a.png"
    path.write_bytes(FILES["plain.png"])
    for given in (array, Image.fromarray(array), path, str(path), FILES["plain.png"]):
        assert torch.equal(preprocess(given), want)
    grey = array[..., 0]
    assert torch.equal(preprocess(grey), reference(Image.fromarray(grey)))
    assert torch.equal(preprocess(grey[..., None]), preprocess(grey))
    bad = (array.astype(float), array[None], array.transpose(2, 0, 1), array[:0], [1, 2], None)
    for wrong in bad:
        with pytest.raises(ImageError, match=r"image 3 of the list: (an array must|is a)"):
            preprocess(wrong, name="image 3 of the list")


def test_pictures_of_the_caller_are_not_changed():
    image = plain("rgb16_clear.png")
    image.getexif()[0x0112] = 6
    before = dict(image.info), image.size, image.tobytes()
    Preprocess(CONFIG)(image)
    assert (dict(image.info), image.size, image.tobytes()) == before


def test_sizes():
    image = Image.fromarray(picture(100, 50))
    for resize, size in (("shortest", (20, 30)), ("squash", (20, 30)), ("longest", (40, 40))):
        config = PreprocessConfig(size=size, resize=resize, pad=9)
        assert Preprocess(config)(image).shape == (3, *size)
    padded = np.array(
        Preprocess(PreprocessConfig(size=(40, 40), resize="longest", pad=9)).resize(image)
    )
    assert (padded[:10] == 9).all() and (padded[30:] == 9).all() and padded[10:30].std() > 10
    both = PreprocessConfig(size=(20, 16), short=30, resize="squash", crop="floor")
    want = image.resize((30, 30), Image.Resampling.BICUBIC).crop((7, 5, 23, 25))
    assert np.array_equal(np.array(Preprocess(both).resize(image)), np.array(want))
    short = PreprocessConfig(size=(20, 20), short=30)
    want = image.resize((60, 30), Image.Resampling.BICUBIC).crop((20, 5, 40, 25))
    assert np.array_equal(np.array(Preprocess(short).resize(image)), np.array(want))
    with pytest.raises(ConfigError, match="short=10 needs"):
        PreprocessConfig(size=(20, 20), short=10)
    with pytest.raises(ConfigError, match="mode must be"):
        Preprocess(CONFIG, "correct")


def test_odd_margins():
    """A margin of 3: torchvision rounds 1.5 to 2, Hugging Face floors to 1."""
    image = Image.fromarray(picture(35, 32))
    for crop, left in (("round", 2), ("floor", 1)):
        got = Preprocess(PreprocessConfig(size=(32, 32), crop=crop)).resize(image)
        assert np.array_equal(np.array(got), picture(35, 32)[:, left : left + 32])


def test_denormalise():
    image = Image.fromarray(picture(32, 32))
    back = denormalise(Preprocess(CONFIG)(image), CONFIG)
    assert torch.allclose(
        back * 255, torch.from_numpy(picture(32, 32)).permute(2, 0, 1).float(), atol=1e-3
    )


def test_rescaling_by_a_product_is_the_same_256_numbers():
    levels = np.arange(256, dtype=np.uint8)
    hugging_face = (levels.astype(np.float64) * (1 / 255)).astype(np.float32)
    assert np.array_equal(hugging_face, torch.from_numpy(levels).float().div(255).numpy())


def test_pickle_and_threads():
    preprocess = pickle.loads(pickle.dumps(Preprocess(CONFIG)))
    want = {name: preprocess(data) for name, data in FILES.items()}
    wrong: list[str] = []

    def work() -> None:
        for name, data in FILES.items():
            if not torch.equal(preprocess(data), want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
