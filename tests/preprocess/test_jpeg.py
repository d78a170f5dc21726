"""The extra `jpeg` changes no bit and no error: with it, without it, on good and damaged files."""

import io
import warnings

import numpy as np
import pytest
import torch
from awkward_files import awkward, encode, picture
from PIL import Image

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Limits, Preprocess, jpeg, open_image

CONFIG = PreprocessConfig(size=(32, 32))
SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0"]
SIZES = [(1, 1), (7, 5), (16, 16), (17, 33), (61, 47), (200, 131)]


@pytest.fixture
def without(monkeypatch):
    """Calls a function as if simplejpeg were not installed."""

    def call(function, *args):
        with monkeypatch.context() as here:
            here.setattr(jpeg, "_decoder", lambda: None)
            return function(*args)

    return call


def needs_extra() -> None:
    pytest.importorskip("simplejpeg")
    assert jpeg.has_jpeg_extra()


def header(data: bytes):
    return Image.open(io.BytesIO(data))


def files(mode: str):
    for i, (width, height) in enumerate(SIZES):
        image = Image.fromarray(picture(width, height, seed=i)).convert(mode)
        for progressive in (False, True):
            for restart in (0, 2):
                for subsampling in SUBSAMPLINGS if mode == "RGB" else [None]:
                    for quality in (30, 90, 95):
                        options = {"quality": quality, "progressive": progressive}
                        options |= {"subsampling": subsampling} if subsampling else {}
                        yield encode(image, "JPEG", restart_marker_blocks=restart, **options)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_bits_are_those_of_pillow(mode):
    needs_extra()
    for data in files(mode):
        pixels = jpeg.decoded(header(data), io.BytesIO(data))
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(header(data)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_smaller_bits_are_those_of_pillow(mode, scale):
    needs_extra()
    for data in files(mode):
        image = header(data)
        width, height = image.size
        if min(image.size) < scale:
            continue
        pixels = jpeg.decoded(image, io.BytesIO(data), scale)
        image.draft(None, (width // scale, height // scale))
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize("pixels", ["exact", "near", "fast"])
def test_the_extra_changes_nothing(without, pixels):
    needs_extra()
    prepare = Preprocess(CONFIG, pixels=pixels).uint8
    for data in [*files("RGB"), *files("L")]:
        assert torch.equal(prepare(data), without(prepare, data))


def outcome(prepare, data: bytes):
    try:
        return prepare(data)
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("pixels", ["exact", "near", "fast"])
def test_damaged_files_end_the_same(without, pixels):
    needs_extra()
    prepare = Preprocess(CONFIG, pixels=pixels).uint8
    random = np.random.default_rng(1)
    good = [encode(Image.fromarray(picture(150, 170)), "JPEG", quality=80, progressive=p)
            for p in (False, True)]  # fmt: skip
    cases = [data[:cut] for data in good for cut in range(300, len(data), 211)]
    for data in good:
        for _ in range(60):
            bad = bytearray(data)
            for place in random.integers(2, len(bad), 3):
                bad[place] = random.integers(256)
            cases.append(bytes(bad))
    refused = 0
    for data in cases:
        ours, theirs = outcome(prepare, data), outcome(lambda d: without(prepare, d), data)
        assert type(ours) is type(theirs), (ours, theirs)
        refused += isinstance(ours, str)
        assert ours == theirs if isinstance(ours, str) else torch.equal(ours, theirs)
    assert refused > 20


def test_what_follows_the_picture_is_left(without):
    data = encode(Image.fromarray(picture()), "JPEG") + b"\0" * 1000
    prepare = Preprocess(CONFIG).uint8
    assert torch.equal(prepare(data), without(prepare, data))


@pytest.mark.parametrize("what", ["adobe", "components", "codes", "cmyk"])
def test_what_is_unusual_is_left_to_pillow(what):
    needs_extra()
    image = Image.fromarray(picture())
    data = bytearray(encode(image.convert("CMYK") if what == "cmyk" else image, "JPEG"))
    match what:
        case "adobe":
            data[2:2] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x01"
        case "components":
            at = data.index(b"\xff\xc0")
            data[at + 10], data[at + 13], data[at + 16] = b"RGB"
        case "codes":
            data[data.index(b"\xff\xc0") + 1] = 0xC9  # arithmetic
    assert jpeg.decoded(header(bytes(data)), io.BytesIO(data)) is None


def test_a_decoder_with_other_bits_is_not_used(monkeypatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args: decode(*args) ^ 1)
    jpeg._decoder.cache_clear()
    assert not jpeg.has_jpeg_extra()
    monkeypatch.undo()
    jpeg._decoder.cache_clear()
    assert jpeg.has_jpeg_extra()


def test_the_header_is_checked_first():
    data = encode(Image.fromarray(picture(400, 300)), "JPEG")
    for pixels in ("exact", "near", "fast"):
        prepare = Preprocess(CONFIG, pixels=pixels, limits=Limits(pixels=100_000))
        with pytest.raises(ImageError, match="400x300 pixels, more than 100,000"):
            prepare(data)


def test_large_pictures_are_left_to_pillow(monkeypatch):
    needs_extra()
    monkeypatch.setattr(jpeg, "_GAINS", 9_999)
    data = encode(Image.fromarray(picture(100, 100)), "JPEG")
    image = header(data)
    assert not jpeg.fill(image, io.BytesIO(data))
    assert image.tile  # not decoded
    monkeypatch.setattr(jpeg, "_GAINS", 10_000)
    assert jpeg.fill(image, io.BytesIO(data))
    assert image.tobytes() == header(data).tobytes()


@pytest.mark.parametrize("name", ["exif6.jpg", "exif_bad.jpg", "icc.jpg", "two.mpo", "grey.jpg"])
def test_an_opened_image_is_like_one_of_pillow(name):
    data = awkward()[name]
    with warnings.catch_warnings(action="ignore"):  # about the damaged block
        ours, theirs = open_image(data), header(data)
    theirs.load()
    assert not ours.tile
    assert ours.tobytes() == theirs.tobytes()
    assert (ours.mode, ours.size, ours.format) == (theirs.mode, theirs.size, theirs.format)
    assert ours.info == theirs.info
    with warnings.catch_warnings(action="ignore"):  # about the damaged block
        assert outcome_of(ours.getexif) == outcome_of(theirs.getexif)
    assert ours.copy().convert("L").tobytes() == theirs.convert("L").tobytes()


def outcome_of(exif):
    try:
        return dict(exif())
    except (OSError, SyntaxError, ValueError) as error:
        return str(error)
