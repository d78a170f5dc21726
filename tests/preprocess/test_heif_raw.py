"""HEIC and RAW: read, upright exactly once, refused by their header, and nothing else touched."""

import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from awkward_files import awkward, encode, exif
from PIL import Image, ImageOps

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Limits, Preprocess, open_image
from diptych.preprocess.heif_raw import kind
from diptych.preprocess.metadata import metadata
from diptych.preprocess.open import quiet
from diptych.preprocess.pixels import orientation

pytest.importorskip("pillow_heif")
pytest.importorskip("rawpy")
from camera_files import RAWS, deep_heic, directory, heic, heic_of_many, jpeg, raw_file

INSTALL = re.escape("Type: pip install 'diptych[photos]'") + "$"


def scene(width=120, height=80) -> Image.Image:
    """Smooth, so that a coder changes little, and unlike itself under every turn."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 200 // width, y * 200 // height, (x + y) * 200 // (width + height)], -1)
    values[: height // 3, : width // 3] = (230, 40, 40)
    return Image.fromarray(values.astype(np.uint8))


def near(image, expected, most=4.0) -> bool:
    assert image.size == expected.size
    a, b = (np.asarray(i.convert("RGB")).astype(int) for i in (image, expected))
    return np.abs(a - b).mean() < most


def upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


PREVIEW = jpeg(scene())


@pytest.mark.parametrize("side", range(1, 9))
def test_heic_is_upright_once(side):
    image = open_image(heic(scene(), exif=exif(side)))
    stored = scene()
    stored.getexif()[0x0112] = side
    assert image.mode == "RGB" and image.format == "HEIF" and orientation(image) == 1
    assert near(image, upright(stored))
    assert metadata(image).width == image.width


def test_heic_of_10_bits():
    values = (np.asarray(scene()).astype(np.uint16) << 8) | 0x40
    image = open_image(deep_heic(values))
    assert image.mode == "RGB"
    assert near(image, scene(), most=1.5)


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_heic_of_other_modes(mode):
    stored = scene().convert(mode)
    if mode == "RGBA":
        stored.putalpha(Image.linear_gradient("L").resize(stored.size))
    image = open_image(heic(stored))
    assert image.mode == mode
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(stored).astype(int))
    assert difference.mean() < 4


def test_heic_by_path_and_through_the_pipeline(tmp_path):
    """A wrong suffix does not matter."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(heic(scene(), exif=exif(6)))
    stored = scene()
    stored.getexif()[0x0112] = 6
    config = PreprocessConfig(size=(32, 32))
    for mode in ("right", "original"):
        got = Preprocess(config, mode).resize(path)
        assert near(got, Preprocess(config).resize(upright(stored)))


@pytest.mark.parametrize("name", RAWS)
def test_raw(name, tmp_path):
    data = raw_file(PREVIEW, (120, 80), **RAWS[name])
    path = tmp_path / "photo.tif"
    path.write_bytes(data)
    for source in (data, path):
        image = open_image(source)
        assert image.format == "RAW" and orientation(image) == 1
        assert (np.asarray(image) == np.asarray(Image.open(io.BytesIO(PREVIEW)))).all()
        found = metadata(image)
        make, model = RAWS[name].get("make", "Diptych"), RAWS[name].get("model", "One")
        assert found.taken == "2024-05-01T12:30:00"
        assert found.camera == f"{make.split()[0]} {model.removeprefix(make.split()[0]).strip()}"


@pytest.mark.parametrize("side", range(1, 9))
@pytest.mark.parametrize("coding", ["jpeg", "bitmap"])
def test_raw_is_upright_once(side, coding):
    """The preview is stored as the sensor saw it, and the RAW file says how it was held."""
    stored = scene()
    if coding == "jpeg":
        data = raw_file(PREVIEW, stored.size, turn=side)
    else:
        data = raw_file(stored.tobytes(), stored.size, turn=side, coding=(1, 2))
    image = open_image(data)
    assert orientation(image) == side
    stored.getexif()[0x0112] = side
    assert near(upright(image), upright(stored))
    config = PreprocessConfig(size=(32, 32))
    assert near(Preprocess(config).resize(data), Preprocess(config).resize(upright(stored)))
    assert orientation(image.copy()) == side


@pytest.mark.parametrize("side", [6, 8])
@pytest.mark.parametrize("own", [None, 1, 6])
def test_a_preview_that_is_turned_already_is_not_turned_again(side, own):
    shown = scene(80, 120)
    options = {} if own is None else {"exif": exif(own)}
    data = raw_file(jpeg(shown, **options), shown.size, turn=side)
    image = open_image(data)
    assert orientation(image) == 1 and near(image, shown)


def test_a_preview_s_own_orientation_counts_where_the_file_has_none():
    preview = jpeg(scene(), exif=exif(6))
    preview = preview[:2] + preview[20:]  # without JFIF: as cameras write it
    assert orientation(open_image(raw_file(preview, (120, 80), turn=1))) == 6


def test_the_place_of_a_raw_file():
    found = metadata(open_image(raw_file(PREVIEW, (120, 80), place=True)))
    assert found.latitude == pytest.approx(53 + 22 / 60 + 58.25 / 3600)
    assert found.longitude == -found.latitude


FILES = awkward()


@pytest.mark.parametrize("name", FILES)
def test_what_pillow_reads_stays_with_pillow(name):
    assert kind(io.BytesIO(FILES[name])) is None


def tiff(tags: dict[int, tuple], **inner) -> bytes:
    """A plain RGB TIFF with further tags, and perhaps another directory."""
    pixels = scene().tobytes()
    out = bytearray(b"II*\0" + bytes(4) + pixels)
    entries = {
        256: (4, [120]), 257: (4, [80]), 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [2]),
        273: (4, [8]), 277: (3, [3]), 278: (4, [80]), 279: (4, [len(pixels)]),
    }  # fmt: skip
    if inner:
        thumbnail = entries | {254: (4, [1])}
        entries[330] = (4, [len(out)])
        out += directory(thumbnail, len(out))
    out[4:8] = struct.pack("<I", len(out))
    return bytes(out + directory(entries | tags, len(out)))


@pytest.mark.parametrize("inner", [False, True])
def test_a_scan_is_a_tiff(inner):
    """Make, model, and pictures inside, as scanners and photo editors write them."""
    tags = {271: (2, b"NIKON CORPORATION\0"), 272: (2, b"NIKON D70\0"), 274: (3, [1])}
    data = tiff(tags, inner=True) if inner else tiff(tags)
    image = open_image(data)
    assert image.format == "TIFF"
    assert (np.asarray(image) == np.asarray(scene())).all()


def test_a_raw_file_can_be_left_to_pillow():
    """The publishers' programs show the first picture of the TIFF, and so does mode "original"."""
    thumbnail = scene(30, 20)
    data = raw_file(thumbnail.tobytes(), thumbnail.size, coding=(1, 2), turn=1)
    image = open_image(data, previews=False)
    assert image.format == "TIFF" and image.size == (30, 20)
    orf = raw_file(PREVIEW, (120, 80), **RAWS["orf"])  # Pillow does not open it
    assert open_image(orf, previews=False).format == "RAW"


HEADS = {
    b"FUJIFILMCCD-RAW 0201": "raw",
    b"IIU\0\x18\0\0\0": "raw",
    b"IIRO\x08\0\0\0": "raw",
    b"MMOR\0\0\0\x08": "raw",
    b"\0MRM\0\0\0\0": "raw",
    b"FOVb": "raw",
    b"II\x1a\0\0\0HEAPCCDR": "raw",
    b"II*\0\x10\0\0\0CR\x02\0": "raw",
    b"II*\0\x10\0\0\0IIII": "raw",
    b"\0\0\0\x18ftypcrx \0\0\0\1crx isom": "raw",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "heif",
    b"\0\0\0\x18ftypheix\0\0\0\0mif1heix": "heif",
    b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf": "heif",
    b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf": None,
    b"\0\0\0\x18ftypavif\0\0\0\0mif1avif": None,
    b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom": None,
    b"II*\0\xff\xff\xff\xff": None,
    b"II*\0\x08\0\0\0\xff\xff": None,
    b"MM\0*": None,
    b"": None,
}


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_kinds(head):
    file = io.BytesIO(head)
    with quiet():
        assert kind(file) == HEADS[head] and file.tell() == 0


def test_directories_in_a_circle():
    """Each points to the next, which is the first again."""
    data = bytearray(tiff({}))
    end = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[end : end + 2])[0]
    data[end + 2 + 12 * count : end + 6 + 12 * count] = struct.pack("<I", end)
    assert kind(io.BytesIO(bytes(data))) is None


@pytest.mark.parametrize("tenth", range(1, 10))
@pytest.mark.parametrize("what", ["heic", "raw"])
def test_cut_short(tenth, what):
    """What of a file is left is refused, or shows the whole preview."""
    data = heic(scene()) if what == "heic" else raw_file(PREVIEW, (120, 80), **RAWS["orf"])
    with pytest.raises(ImageError, match=r"^photo: is a (HEIC|RAW) photo"):
        open_image(data[: len(data) * tenth // 10], name="photo")


@pytest.mark.parametrize(
    "preview", [b"no picture" * 20, PREVIEW[:600], PREVIEW[:1000] + bytes(len(PREVIEW) - 1000)]
)
def test_a_damaged_preview(preview):
    with pytest.raises(ImageError, match=r"^photo: .*(damaged|without a preview)"):
        open_image(raw_file(preview, (120, 80)), name="photo")


def test_without_a_preview():
    with pytest.raises(ImageError, match=r"without a preview that can be read\. Develop it"):
        open_image(raw_file(b"", (120, 80)))


@pytest.mark.parametrize("what", ["heic", "raw", "bitmap"])
def test_limits_are_checked_before_pixels(what, monkeypatch):
    data = {
        "heic": heic(scene()),
        "raw": raw_file(PREVIEW, (120, 80)),
        "bitmap": raw_file(scene().tobytes(), (120, 80), coding=(1, 2)),
    }[what]

    def decoded(*_args):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("pillow_heif.HeifFile.to_pillow", decoded)
    monkeypatch.setattr("diptych.preprocess.open.load", decoded)
    for limits, match in (
        (Limits(pixels=9000), "has 120x80 pixels, more than 9,000"),
        (Limits(memory=9000), "to decode 120x80 pixels of this (HEIC|JPEG|RAW preview) takes"),
        (Limits(aspect=1), "is a strip of 120x80"),
        (Limits(file_bytes=100), "bytes, more than 100"),
    ):
        with pytest.raises(ImageError, match=f"^photo: .*{match}"):
            open_image(data, limits=limits, name="photo")


def test_pictures_that_share_a_description(monkeypatch):
    """pillow-heif copies it for each: 1 MB of EXIF for 60 pictures is 60 MB and more."""
    data = heic_of_many(60, 1 << 20)
    assert open_image(data, limits=Limits(memory=10**9)).size == (64, 64)
    monkeypatch.setattr("pillow_heif.open_heif", None)
    with pytest.raises(ImageError, match=r"^photo: is a HEIC file whose pictures share"):
        open_image(data, name="photo")


def test_without_the_packages(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    path = tmp_path / "a.heic"
    path.write_bytes(heic_of_before)
    with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: is a HEIC photo, .*{INSTALL}"):
        open_image(path)
    with pytest.raises(ImageError, match=f"^image: is a RAW photo, .*{INSTALL}"):
        open_image(raw_file(PREVIEW, (120, 80)))


heic_of_before = heic(scene())


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "a\udcff.nef"
    path.write_bytes(raw_file(PREVIEW, (120, 80)))
    assert open_image(path).size == (120, 80)


def test_pillow_is_left_as_it_was():
    """In a process of its own: nothing of the packages is registered, and import is lazy."""
    program = """
import sys
from diptych.preprocess import open_image
assert "pillow_heif" not in sys.modules and "rawpy" not in sys.modules
from PIL import Image
before = set(Image.OPEN), dict(Image.EXTENSION), Image.MAX_IMAGE_PIXELS
Image.preinit()
before = set(Image.OPEN), dict(Image.EXTENSION), Image.MAX_IMAGE_PIXELS
open_image(sys.argv[1]); open_image(sys.argv[2])
assert "pillow_heif" in sys.modules and "rawpy" in sys.modules
assert (set(Image.OPEN), dict(Image.EXTENSION), Image.MAX_IMAGE_PIXELS) == before
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder, "a.heic"), Path(folder, "a.dng")]
        names[0].write_bytes(heic_of_before)
        names[1].write_bytes(raw_file(PREVIEW, (120, 80)))
        subprocess.run([sys.executable, "-c", program, *map(str, names)], check=True)


def test_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    sources = [heic_of_before, raw_file(PREVIEW, (120, 80)), PREVIEW, encode(scene(), "PNG")] * 10
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(open_image, sources))
    assert all(near(image, scene()) for image in images)


FUZZ = """
import random, sys
from pathlib import Path
from diptych.errors import ImageError
from diptych.preprocess import Limits, open_image
from diptych.preprocess.metadata import metadata
for path in sys.argv[1:]:
    whole, read = Path(path).read_bytes(), 0
    for seed in range(400):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            # most of what steers a reader stands at the ends
            end = rng.choice((64, 600, len(data)))
            at = rng.randrange(end)
            data[at if rng.random() < 0.5 else -1 - at] = rng.randrange(256)
        try:
            metadata(open_image(bytes(data), limits=Limits(memory=100_000_000)))
            read += 1
        except ImageError:
            pass
    print(path, read)
"""


@pytest.mark.slow
def test_no_error_but_imageerror(tmp_path):
    """400 damaged copies of each: in a child, since a fault in C would end it."""
    files = {name.split(",")[0]: raw_file(PREVIEW, (120, 80), **RAWS[name]) for name in RAWS}
    files |= {"heic": heic_of_before, "deep": deep_heic(np.asarray(scene()).astype(np.uint16) << 8)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", FUZZ, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(files)


@pytest.mark.slow
def test_what_the_largest_cost(tmp_path):
    """24 megapixels, what phones write: less than 300 MB, as `cost.py` measures it."""
    small, photo = tmp_path / "small.heic", tmp_path / "photo.heic"
    small.write_bytes(heic_of_before)
    large = scene(5712, 4284)
    photo.write_bytes(heic(large, chroma=420))
    raw = tmp_path / "photo.dng"
    raw.write_bytes(raw_file(jpeg(large), large.size, sensor=large.size))
    command = [sys.executable, str(Path(__file__).with_name("cost.py")), str(small)]
    done = subprocess.run([*command, str(photo), str(raw)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in lines:
        megabytes, _, outcome = line.split(" ", 2)
        assert float(megabytes) < 300 and outcome.startswith("ok"), line


def test_a_folder_walk_takes_what_is_installed(tmp_path, monkeypatch):
    import importlib.util

    from diptych.engine.stream import sources

    names = ["a.HEIC", "b.jpg", "c.nef", "d.CR3", "e.mp4", "f.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for _, path in sources(tmp_path)] == names[:4]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [path.name for _, path in sources(tmp_path)] == ["b.jpg"]
