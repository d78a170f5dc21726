"""When, with what and where: exiftool and the EXIF standard say the same, and nothing raises."""

import json
import shutil
import struct
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from awkward_files import awkward, chunk, encode, exif, picture
from PIL import ExifTags, Image, ImageOps

from diptych.preprocess import open_image
from diptych.preprocess.metadata import Metadata, metadata

NOTHING = {"taken": None, "camera": None, "latitude": None, "longitude": None}
IMAGE = Image.fromarray(picture(60, 40))
BASE, GPS = ExifTags.Base, ExifTags.GPS


def of(main=(), inner=(), place=(), form="JPEG") -> Metadata:
    """`metadata` of an image file with these tags."""
    block = Image.Exif()
    block.update(main)
    block.get_ifd(ExifTags.IFD.Exif).update(inner)
    block.get_ifd(ExifTags.IFD.GPSInfo).update(place)
    return metadata(open_image(encode(IMAGE, form, exif=block.tobytes())))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_everything(form):
    found = of(
        {BASE.Make: "Canon", BASE.Model: "Canon EOS R5", BASE.Orientation: 6},
        {BASE.DateTimeOriginal: "2024:05:01 12:30:00"},
        {
            GPS.GPSLatitudeRef: "S",
            GPS.GPSLatitude: (33.0, 51.0, 24.84),
            GPS.GPSLongitudeRef: "E",
            GPS.GPSLongitude: (151.0, 12.0, 55.44),
        },
        form,
    )
    assert found == Metadata(
        taken="2024-05-01T12:30:00",
        camera="Canon EOS R5",
        latitude=pytest.approx(-33.8569, abs=1e-6),
        longitude=pytest.approx(151.2154, abs=1e-6),
        width=40,
        height=60,
        format=form,
    )


def test_nothing():
    assert metadata(IMAGE) == Metadata(**NOTHING, width=60, height=40, format="")
    found = metadata(open_image(encode(IMAGE, "PNG")))
    assert found == Metadata(**NOTHING, width=60, height=40, format="PNG")


@pytest.mark.parametrize("side", range(1, 9))
def test_the_size_is_upright(side):
    found = metadata(open_image(encode(IMAGE, "JPEG", exif=exif(side))))
    assert (found.width, found.height) == ((40, 60) if side >= 5 else (60, 40))


A, B, C = "2024:05:01 12:30:00", "2023:04:03 02:01:00", "2022:01:02 03:04:05"


@pytest.mark.parametrize(
    "original, digitized, changed, taken",
    [
        (A, B, C, "2024-05-01T12:30:00"),
        (None, B, C, "2023-04-03T02:01:00"),
        (None, None, C, "2022-01-02T03:04:05"),
        ("0000:00:00 00:00:00", B, C, "2023-04-03T02:01:00"),
        ("    :  :     :  :  ", None, C, "2022-01-02T03:04:05"),
        ("2024:02:30 12:30:00", None, None, None),
        ("2024:05:01 24:30:00", None, None, None),
        ("0001:01:01 00:00:00", None, None, None),
        ("2024-05-01T12:30:00.123+02:00", None, None, "2024-05-01T12:30:00"),
        ("2024:05:01 12:30:00\0\0", None, None, "2024-05-01T12:30:00"),
        ("٢٠٢٤:05:01 12:30:00", None, None, None),
        ("nonsense", "", "x" * 100_000, None),
        (None, None, None, None),
    ],
)
def test_taken(original, digitized, changed, taken):
    inner = {BASE.DateTimeOriginal: original, BASE.DateTimeDigitized: digitized}
    inner = {tag: text for tag, text in inner.items() if text is not None}
    main = {} if changed is None else {BASE.DateTime: changed}
    if len(changed or "") > 60_000:  # more than a JPEG holds
        assert of(main, inner, form="PNG").taken == taken
    else:
        assert of(main, inner).taken == taken


CAMERAS = {  # as cameras write them
    ("Canon", "Canon EOS R5"): "Canon EOS R5",
    ("NIKON CORPORATION", "NIKON D70"): "NIKON D70",
    ("NIKON CORPORATION", "Z 6"): "NIKON Z 6",
    ("SONY", "ILCE-7M3"): "SONY ILCE-7M3",
    ("Apple", "iPhone 15"): "Apple iPhone 15",
    ("FUJIFILM", "X-T5"): "FUJIFILM X-T5",
    ("OLYMPUS IMAGING CORP.  ", "E-M1            "): "OLYMPUS E-M1",
    ("EASTMAN KODAK COMPANY", "KODAK DX4900 ZOOM"): "KODAK DX4900 ZOOM",
    ("CASIO COMPUTER CO.,LTD ", "EX-Z3"): "CASIO EX-Z3",
    ("LEICA CAMERA AG", "LEICA Q2"): "LEICA Q2",
    ("SAMSUNG", "SM-G998B"): "SAMSUNG SM-G998B",
    ("HP", "HPx"): "HP HPx",
    ("", "Box"): "Box",
    ("Box", ""): "Box",
    ("", ""): None,
    ("\x1b[31mEvil\x07", "Cam\nera\x9b"): "[31mEvil Cam era",
    ("A\0B", "C\0D"): "A C",
    ("x" * 300, "y"): "x" * 200,
}


@pytest.mark.parametrize("make, model", CAMERAS)
def test_camera(make, model):
    image = Image.new("RGB", (4, 4))
    image.getexif().update({BASE.Make: make, BASE.Model: model})
    assert metadata(image).camera == CAMERAS[make, model]


def place(latitude, north, longitude, east) -> tuple[float | None, float | None]:
    image = Image.new("RGB", (4, 4))
    names = (GPS.GPSLatitude, GPS.GPSLatitudeRef, GPS.GPSLongitude, GPS.GPSLongitudeRef)
    values = zip(names, (latitude, north, longitude, east), strict=True)
    image.getexif().get_ifd(ExifTags.IFD.GPSInfo).update({n: v for n, v in values if v is not None})
    found = metadata(image)
    return found.latitude, found.longitude


def test_places():
    assert place((90, 0, 0), "S", (180, 0, 0), "W") == (-90, -180)
    assert place((0, 0, 0), "N", (0, 0, 0), "E") == (0, 0)
    assert place((10.5,), "N", (20, 30), b"E\0") == (10.5, 20.5)
    good = ((10, 0, 0), "N", (20, 0, 0), "E")
    nan = float("nan")
    for bad in (
        ((90, 0, 1), *good[1:]),
        (*good[:2], (180, 0, 1), "E"),
        (good[0], "E", *good[2:]),
        (good[0], None, *good[2:]),
        (good[0], "", *good[2:]),
        (None, *good[1:]),
        ((), *good[1:]),
        ((1, 2, 3, 4), *good[1:]),
        ((nan, 0, 0), *good[1:]),
        ((-1, 0, 0), *good[1:]),
        ((1, 61, 0), *good[1:]),
        ((1, 0, float("inf")), *good[1:]),
        (("a", "b", "c"), *good[1:]),
        (b"\1\2\3", *good[1:]),
    ):
        assert place(*bad) == (None, None), bad


def test_rationals_over_zero():
    """Written byte by byte: libraries refuse to write them."""
    gps = b"".join(
        struct.pack("<HHI", tag, kind, count) + value
        for tag, kind, count, value in (
            (1, 2, 2, b"N\0\0\0"),
            (2, 5, 3, struct.pack("<I", 92)),
            (3, 2, 2, b"E\0\0\0"),
            (4, 5, 3, struct.pack("<I", 92)),
        )
    )
    main = struct.pack("<HHHIII", 1, ExifTags.IFD.GPSInfo, 4, 1, 26, 0)
    numbers = struct.pack("<6I", 0, 0, 5, 0, 7, 0)
    block = b"II*\0\x08\0\0\0" + main + struct.pack("<H", 4) + gps + bytes(4)
    block = block.ljust(92, b"\0") + numbers
    image = open_image(encode(IMAGE, "JPEG", exif=b"Exif\0\0" + block))
    assert image.getexif().get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
    assert metadata(image) == Metadata(**NOTHING, width=60, height=40, format="JPEG")


FILES = awkward()


@pytest.mark.parametrize("name", FILES)
def test_of_every_format(name):
    """Pillow's own turning gives the same size."""
    image = open_image(FILES[name])
    shown = ImageOps.exif_transpose(image)
    assert metadata(image) == Metadata(
        **NOTHING, width=shown.width, height=shown.height, format=image.format
    )


def test_damage_never_raises():
    """Of EXIF with each directory, bytes are changed one after the other."""
    block = Image.Exif()
    block.update({BASE.Make: "Canon", BASE.Model: "EOS", BASE.DateTime: A})
    block.get_ifd(ExifTags.IFD.Exif).update({BASE.DateTimeOriginal: A})
    numbers = {GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: (1.0, 2.0, 3.0)}
    block.get_ifd(ExifTags.IFD.GPSInfo).update(numbers)
    data = block.tobytes()
    for at in range(6, len(data)):
        for value in (0, 0xFF, data[at] ^ 1):
            image = Image.new("RGB", (4, 4))
            image.info["exif"] = data[:at] + bytes([value]) + data[at + 1 :]
            found = metadata(image)
            assert found.camera is None or len(found.camera) <= 200
    for end in range(len(data)):
        image = Image.new("RGB", (4, 4))
        image.info["exif"] = data[:end]
        metadata(image)


def test_a_giant_block_is_cheap():
    """60,000 tags that all claim the same megabyte."""
    entries = 60_000
    tags = b"".join(struct.pack("<HHII", 700 + i % 64_000, 7, 1 << 20, 8) for i in range(entries))
    block = b"II*\0" + struct.pack("<I", 8 + (1 << 20)) + bytes(1 << 20)
    block += struct.pack("<H", entries) + tags + bytes(4)
    data = encode(IMAGE, "PNG")
    image = open_image(data[:33] + chunk(b"eXIf", block) + data[33:])
    assert metadata(image) == Metadata(**NOTHING, width=60, height=40, format="PNG")


def exiftool(*arguments: str) -> str:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is missing: apt-get install libimage-exiftool-perl")
    done = subprocess.run(["exiftool", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


TAGS = ("DateTimeOriginal", "CreateDate", "ModifyDate", "Make", "Model")
PLACE = ("GPSLatitude", "GPSLongitude")


def agrees(path: Path, found: Metadata) -> None:
    """What `found` says is what exiftool reads from the file's EXIF."""
    names = [f"-EXIF:{tag}" for tag in TAGS] + [f"-Composite:{tag}" for tag in PLACE]
    (told,) = json.loads(exiftool("-j", "-n", *names, str(path)))
    dates = [told[tag] for tag in TAGS[:3] if str(told.get(tag, "0000")) > "1900"]
    assert found.taken == (dates[0][:19].replace(":", "-", 2).replace(" ", "T") if dates else None)
    for tag, value in zip(PLACE, (found.latitude, found.longitude), strict=True):
        assert value == (pytest.approx(told[tag], abs=1e-9) if tag in told else None)
    if found.camera is None:
        assert not told.get("Make") and not told.get("Model")
    else:
        assert found.camera.endswith(" ".join(str(told.get("Model", "")).split()))


@pytest.mark.slow
def test_exiftool_reads_the_same_from_the_samples():
    samples = Path(str(resources.files("diptych") / "assets/samples"))
    for path in sorted(samples.glob("*.jpg")):
        agrees(path, metadata(open_image(path)))


WRITTEN = {  # by exiftool, another writer than Pillow
    "north east": ("-GPSLatitude=48.8583", "-GPSLatitudeRef=N", "-GPSLongitude=2.2945"),
    "south west": ("-GPSLatitude=22.9519", "-GPSLatitudeRef=S", "-GPSLongitudeRef=W"),
    "dates": ("-DateTimeOriginal=1999:12:31 23:59:59", "-CreateDate=2001:01:01 00:00:00"),
    "changed": ("-ModifyDate=2010:10:10 10:10:10", "-SubSecTime=42"),
    "camera": ("-Make=Panasonic", "-Model=DC-G9", "-Orientation#=6"),
    "big endian": ("-ExifByteOrder=MM", "-Make=Sony", "-DateTimeOriginal=2020:02:29 01:02:03"),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("case", WRITTEN)
def test_exiftool_reads_the_same_from_what_it_wrote(case, form, tmp_path):
    path = tmp_path / f"photo.{form.lower()}"
    path.write_bytes(encode(IMAGE, form))
    more = ("-GPSLongitudeRef=E",) if case == "north east" else ()
    more += ("-GPSLongitude=43.2105",) if case == "south west" else ()
    exiftool("-q", "-overwrite_original", *WRITTEN[case], *more, str(path))
    found = metadata(open_image(path))
    agrees(path, found)
    assert found != Metadata(**NOTHING, width=60, height=40, format=form)
