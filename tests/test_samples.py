"""The sample photographs: complete, small, upright, free, and each with its owner's name."""

import importlib.util
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from diptych.preprocess import open_image

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "src" / "diptych" / "assets" / "samples"
ROWS = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
KEYS = {"file", "caption", "labels", "author", "licence", "source", "changes"}
LICENCES = {
    "public domain",
    "CC0-1.0",
    *(f"CC-BY-{version}" for version in ("1.0", "2.0", "2.5", "3.0", "4.0")),
    *(f"CC-BY-SA-{version}" for version in ("1.0", "2.0", "2.5", "3.0", "4.0")),
}
ORIENTATION = 0x0112


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])
def test_a_row_is_complete_and_its_photo_opens(row):
    assert row.keys() == KEYS
    assert all(row[key].strip() for key in KEYS - {"labels"})
    assert row["caption"].endswith(".")
    assert 1 <= len(row["labels"]) <= 3
    assert row["licence"] in LICENCES
    image = open_image(SAMPLES / row["file"])
    assert image.mode in ("RGB", "L")
    assert max(image.size) <= 1024


@pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])
def test_a_photo_says_nothing_of_where_it_was_taken(row):
    with Image.open(SAMPLES / row["file"]) as image:
        assert set(image.getexif()) <= {ORIENTATION}
        assert not {"comment", "icc_profile", "photoshop", "xmp"} & image.info.keys()


def test_a_phone_turned_on_its_side_is_among_them():
    turned = []
    for row in ROWS:
        with Image.open(SAMPLES / row["file"]) as image:
            if image.getexif().get(ORIENTATION, 1) != 1:
                turned.append(row)
    assert turned
    assert all("EXIF" in row["changes"] for row in turned)


def test_the_list_and_the_folder_agree_in_alphabetical_order():
    names = [row["file"] for row in ROWS]
    assert names == sorted(set(names))
    assert {path.name for path in SAMPLES.iterdir()} == {*names, "queries.json", "samples.json"}


def test_they_take_at_most_four_megabytes():
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) <= 4_000_000


def test_notice_names_each_photo_with_its_author_and_licence():
    lines = (ROOT / "NOTICE").read_text("utf-8").splitlines()
    for row in ROWS:
        start = f"src/diptych/assets/samples/{row['file']}: "
        (line,) = [line for line in lines if line.startswith(start)]
        assert row["author"] in line
        assert row["licence"] in line
        assert row["source"] in line


# The archives of the recipe


def archive(*, flags=1, claimed=None, child=1, name="f") -> bytes:
    """A Qt resource archive of version 2 with one compressed file."""
    content = b"photo " * 100
    packed = struct.pack(">I", len(content) if claimed is None else claimed) + zlib.compress(
        content
    )
    data = struct.pack(">I", len(packed)) + packed
    names = struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tree = struct.pack(">IHIIQ", 0, 2, 1, child, 0) + struct.pack(">IHHHIQ", 0, flags, 0, 0, 0, 0)
    head = struct.pack(">4s4I", b"qres", 2, 20 + len(data) + len(names), 20, 20 + len(data))
    return head + data + names + tree


def test_an_archive_is_read(tmp_path):
    path = tmp_path / "a.rcc"
    path.write_bytes(archive())
    assert recipe("rcc").read_rcc(path) == {"f": b"photo " * 100}


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"PK\3\4" + archive()[4:], "no Qt resource archive"),
        (archive()[:-9], "damaged"),
        (archive(claimed=599), "another length"),
        (archive(claimed=1 << 31), "exceeds the limit"),
        (archive(flags=4), "Zstandard"),
        (archive(child=0), "another folder"),
        (archive(name=".."), "may not be named"),
        (archive(name="a/b"), "may not be named"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, raw, match):
    path = tmp_path / "a.rcc"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=match):
        recipe("rcc").read_rcc(path)
