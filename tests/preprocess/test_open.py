"""Bad input: named, explained, cheap; and no exception but ImageError, whatever the bytes."""

import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from awkward_files import awkward, black_png, chunk, encode, picture
from PIL import Image, ImageFile

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Limits, Preprocess, open_image
from diptych.preprocess import open as opening
from diptych.preprocess.open import quiet

FILES = awkward()
PHOTO = encode(Image.fromarray(picture(300, 200)), "JPEG")


def refused(source, match: str, **limits) -> None:
    with pytest.raises(ImageError, match=match):
        open_image(source, limits=Limits(**limits), name="photo")


@pytest.mark.parametrize("tenth", range(1, 10))
@pytest.mark.parametrize("name", ["plain.jpg", "plain.png", "rgba.webp", "lzw.tif", "plain.bmp"])
def test_cut_short(name, tenth):
    refused(FILES[name][: len(FILES[name]) * tenth // 10], "^photo: .*(damaged|cut short)")


LOOKS = {
    b"": "is empty",
    b"<!DOCTYPE html><html>": "is an HTML page, not an image",
    b"\n <HTML>": "is an HTML page",
    b"<svg xmlns=''>": "is an SVG drawing",
    b"<?xml version='1.0'?><svg>": "is an XML or SVG document",
    b"%PDF-1.7": "is a PDF document",
    b"%!PS-Adobe-3.0 EPSF-3.0": "is a PostScript document",
    b"8BPS\0\1": "is a Photoshop document",
    b"PK\3\4": "is a zip archive",
    b"version https://git-lfs.github.com/spec/v1": "is a Git LFS pointer",
    b"\0\0\0\x18ftypheic": "is a HEIC photo",
    b"\0\0\0\x18ftypmp42": "is a video",
    b"no idea": "is not an image of a format that is read",
}


@pytest.mark.parametrize("data", LOOKS)
def test_says_what_it_looks_like(data, tmp_path):
    refused(data, f"^photo: {LOOKS[data]}")
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"holiday\.jpg: {LOOKS[data]}"):
        open_image(path)


def test_other_formats_stay_shut(tmp_path):
    for form in ("PCX", "PPM", "JPEG2000", "ICO", "TGA"):
        refused(
            encode(Image.fromarray(picture()), form), "is not an image of a format that is read"
        )


def test_places(tmp_path, monkeypatch):
    refused(tmp_path, "^photo: is a directory")
    refused(tmp_path / "none.jpg", "^photo: no such file")
    refused(tmp_path / ("x" * 300), "^photo: cannot be read")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "^photo: is a device or a pipe")
    path = tmp_path / "a.jpg"
    path.write_bytes(PHOTO)

    def shut(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", shut)  # the tests may run as root, who may read all
    refused(path, "^photo: may not be read")


def test_wrong_extension_is_no_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(PHOTO)
    assert open_image(path).size == open_image(str(path)).size == (300, 200)


def test_limits():
    refused(PHOTO, "bytes, more than 100", file_bytes=100)
    refused(PHOTO, "has 300x200 pixels, more than 1,000", pixels=1000)
    refused(PHOTO, "takes 0 MB, more than 0", memory=1000)
    refused(black_png(3010, 10), "is a strip of 3010x10 pixels, longer than 300:1")
    assert open_image(black_png(3000, 10)).size == (3000, 10)
    scans = encode(Image.fromarray(picture()), "JPEG", progressive=True)
    end = scans.rindex(b"\xff\xda")
    refused(scans[:-2] + scans[end:-2] * 200 + scans[-2:], "progressive JPEG of [0-9]+ scans")
    with pytest.raises(ImageError, match=r"photo: 300x200 .* resize to 336x224"):
        small = Limits(memory=100_000)
        Preprocess(PreprocessConfig(size=(224, 224)), limits=small)(
            Image.fromarray(picture(300, 200)), name="photo"
        )
    with pytest.raises(ImageError, match="is a strip"):
        Preprocess(PreprocessConfig(size=(224, 224)))(np.zeros((1, 4000), np.uint8))


def test_run_length_bmp_is_refused():
    grey = encode(Image.fromarray(picture()[..., 0]), "BMP")
    at = 14 + 16  # compression, in the header that follows the 14 bytes of the file's own
    refused(grey[:at] + struct.pack("<I", 1) + grey[at + 4 :], "run-length coded BMP")


def test_nothing_global_changes():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        inside = list(warnings.filters)
        open_image(FILES["exif_bad.jpg"])
        Preprocess(PreprocessConfig(size=(9, 9)), "original")(FILES["palette_alpha.png"])
        refused(black_png(13000, 13000), "more than 66,000,000")
        assert list(warnings.filters) == inside
    assert not seen
    after = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    assert after == before


def test_warnings_of_others_are_heard_while_we_work():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("of the caller", stacklevel=1)
            thread = threading.Thread(target=open_image, args=(FILES["exif_bad.jpg"],))
            thread.start()
            thread.join()
    assert [str(w.message) for w in seen] == ["of the caller"]


def bombs() -> dict[str, bytes]:
    deflated = zlib.compress(b"\0" * 100_000_000, 1)
    many = b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(10_000))
    text = chunk(b"zTXt", b"k\0\0" + deflated)
    exif = Image.Exif()
    for tag in range(0x9000, 0x9000 + 2000):
        exif[tag] = "x" * 20
    return {
        "20000x1.png": black_png(20000, 1),
        "60000x1.png": black_png(60000, 1),
        "65000x1.png": black_png(65000, 1),
        "60000x3.png": black_png(60000, 3),
        "1x4000.png": black_png(1, 4000),
        "9000x9000.png": black_png(9000, 9000),
        "13000x13000.png": black_png(13000, 13000),
        "20000x20000.png": black_png(20000, 20000),
        "8000x8000.png": black_png(8000, 8000),
        "300to1.png": black_png(300 * 224, 224),
        "thin.png": black_png(1, 290),
        "chunks.png": black_png(50, 50, many),
        "iccp.png": black_png(50, 50, chunk(b"iCCP", b"k\0\0" + deflated)),
        "ztxt.png": black_png(50, 50, text),
        "exif.png": encode(Image.fromarray(picture()), "PNG", exif=exif.tobytes()),
        "rgba.png": encode(Image.new("RGBA", (5700, 5700)), "PNG", compress_level=1),
        "rgb.png": encode(Image.new("RGB", (8100, 8100)), "PNG", compress_level=1),
        "frames.gif": encode(
            Image.new("P", (999, 999)), "GIF", save_all=True,
            append_images=[Image.new("P", (999, 999), i) for i in range(1, 100)],
        ),
    }  # fmt: skip


REFUSED = {"20000x1", "60000x1", "65000x1", "60000x3", "1x4000", "9000x9000", "13000x13000"}
REFUSED |= {"20000x20000", "iccp", "ztxt"}


def test_every_bomb_costs_less_than_300_mb_and_2_s(tmp_path):
    """One child for all, in both modes: its peak bounds each of them."""
    small = tmp_path / "small.png"
    small.write_bytes(FILES["plain.png"])
    paths = []
    for name, data in bombs().items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    command = [sys.executable, str(Path(__file__).with_name("cost.py")), str(small)]
    done = subprocess.run(
        [*command, *map(str, paths)], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(paths), done.stderr
    for i, line in enumerate(lines):
        path = paths[i // 2]
        megabytes, seconds, outcome = line.split(" ", 2)
        assert float(megabytes) < 300 and float(seconds) < 2, (path.name, line)
        if path.stem in REFUSED:
            assert outcome.startswith(f"refused: {path}: "), (path.name, line)
        elif path.stem != "8000x8000":  # in RGB it is too large, in its own mode it is not
            assert outcome == "ok (3, 224, 224)", (path.name, line)


def test_mutations():
    """2,000 damaged files: flipped bytes, cuts, repeats. An image or an ImageError, never more."""
    random, seeds = np.random.default_rng(0), sorted(FILES)
    preprocess, read = Preprocess(PreprocessConfig(size=(16, 16))), 0
    for i in range(2000):
        data = bytearray(FILES[seeds[i % len(seeds)]])
        head = len(data) if i % 3 else min(len(data), 200)  # headers hold what parsers trust
        for at in random.integers(0, head, int(random.integers(1, 9))):
            data[at] = random.integers(0, 256)
        if i % 5 == 0:
            del data[int(random.integers(1, len(data))) :]
        if i % 7 == 0:
            at = int(random.integers(0, len(data)))
            data[at:at] = data[at : at + 64]
        try:
            preprocess(bytes(data))
            read += 1
        except ImageError as error:
            assert str(error).startswith("image: ")
    assert read > 200


def test_big_images_take_turns_whatever_the_number_of_threads(monkeypatch):
    """With 8 threads and photos of 64 megapixels, only two are decoded at once."""
    monkeypatch.setattr(opening, "BIG", 1000)
    now = most = 0
    lock, load = threading.Lock(), opening.load

    def counting(image, name):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.02)
        with lock:
            now -= 1
        return load(image, name)

    monkeypatch.setattr(opening, "load", counting)
    data = encode(Image.new("RGB", (64, 64)), "PNG")
    preprocess = Preprocess(PreprocessConfig(size=(32, 32)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(preprocess, [data] * 16))
    assert most == 2
    for _ in range(3):  # a turn that ends in an error is given back
        with pytest.raises(ImageError):
            preprocess(data[:-30])
    preprocess(data)
