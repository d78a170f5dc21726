"""Filters against the same questions asked in Python of every picture."""

import dataclasses
import os
import random
from datetime import datetime

import numpy as np
import pytest

from diptych.errors import ConfigError
from diptych.preprocess.metadata import Metadata
from diptych.search.filters import Filters
from diptych.search.records import Content


@pytest.fixture
def pictures(store, tmp_path):
    """40 made-up pictures, each with all that can be known, or with some of it missing."""
    rng, made = random.Random(0), []
    (tmp_path / "file").write_bytes(b"")
    moment = datetime(2021, 6, 15, 12).timestamp()
    os.utime(tmp_path / "file", (moment, moment))
    with store.writer() as writer, writer.transaction():
        model = writer.add_model(fingerprint="f", name="m", options={}, precision="fp32", dim=2)
        for i in range(40):
            has_place = rng.random() < 0.7
            meta = Metadata(
                taken=rng.choice([None, f"20{i % 25:02}-0{1 + i % 9}-1{i % 10}T0{i % 10}:30:00"]),
                camera=rng.choice([None, "Canon EOS 5D", "NIKON D70", "Apple iPhone 12"]),
                latitude=rng.uniform(-80, 80) if has_place else None,
                longitude=rng.uniform(-180, 180) if has_place else None,
                width=rng.randrange(100, 5000), height=rng.randrange(100, 5000),
                format=rng.choice(["JPEG", "PNG", "HEIF"]),
            )  # fmt: skip
            content = Content(sha256=bytes([i] * 32), size=1000 * i, kind="image", metadata=meta)
            path = f"/photos/{'ab'[i % 2]}/{i}.jpg"
            key = writer.put_content(content)
            writer.put_vectors(model, key, np.ones((1, 2)), hashes=[0])
            writer.put_file(path, (tmp_path / "file").stat(), key)
            made.append((path, content, meta))
    return made


def taken(meta):
    return meta.taken or "2021-06-15T12:00:00"


CASES = {
    "after a year": (Filters(after="2010"), lambda p, c, m: taken(m) >= "2010"),
    "before a month": (Filters(before="2021-06"), lambda p, c, m: taken(m) < "2021-06"),
    "one day": (
        Filters(after="2021-06-15", before="2021-06-16"),
        lambda p, c, m: taken(m).startswith("2021-06-15"),
    ),
    "folder": (Filters(folder="/photos/a"), lambda p, c, m: p.startswith("/photos/a/")),
    "folder with a slash": (Filters(folder="/photos/"), lambda p, c, m: True),
    "part of a folder's name": (Filters(folder="/phot"), lambda p, c, m: False),
    "camera": (Filters(camera="nikon"), lambda p, c, m: m.camera == "NIKON D70"),
    "types": (Filters(types=("jpeg", "Heif")), lambda p, c, m: m.format != "PNG"),
    "side": (Filters(min_side=2000), lambda p, c, m: min(m.width, m.height) >= 2000),
    "bytes": (
        Filters(min_bytes=10_000, max_bytes=20_000),
        lambda p, c, m: 10_000 <= c.size <= 20_000,
    ),
    "box": (
        Filters(box=(-40, -100, 60, 90)),
        lambda p, c, m: (
            m.latitude is not None and -40 <= m.latitude <= 60 and -100 <= m.longitude <= 90
        ),
    ),
    "over the date line": (
        Filters(box=(-80, 100, 80, -100)),
        lambda p, c, m: m.longitude is not None and (m.longitude >= 100 or m.longitude <= -100),
    ),
    "several": (
        Filters(types=("jpeg",), folder="/photos/a", after="2005"),
        lambda p, c, m: m.format == "JPEG" and p.startswith("/photos/a/") and taken(m) >= "2005",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_python(store, pictures, name):
    filters, holds = CASES[name]
    condition, values = filters.sql()
    rows = store.rows(
        "SELECT f.path FROM files f JOIN contents c ON c.id=f.content "
        f"WHERE {condition} ORDER BY f.path",
        values,
    )
    assert [path for (path,) in rows] == sorted(p for p, c, m in pictures if holds(p, c, m))


def test_empty():
    assert Filters().is_empty
    assert Filters().sql() == ("1", {})
    assert not Filters(camera="x").is_empty
    assert all(field.default in (None, ()) for field in dataclasses.fields(Filters))


@pytest.mark.parametrize("date", ["yesterday", "2024-5", "24", "2024-05-01 18:30"])
def test_no_date(date):
    with pytest.raises(ConfigError, match="is no date"):
        Filters(after=date)


@pytest.mark.parametrize("box", [(50, 0, 40, 1), (0, 0, 91, 1), (0, -181, 1, 1)])
def test_no_box(box):
    with pytest.raises(ConfigError, match="is no box"):
        Filters(box=box)


@pytest.mark.parametrize(
    "wrong",
    [
        {"after": "2024-13"}, {"before": "2024-02-30"}, {"after": "2024-05-01T25"},
        {"after": "0000"}, {"folder": ""}, {"camera": "\udcff"}, {"min_side": -1},
        {"max_bytes": -1}, {"min_bytes": 1 << 63},
    ],
)  # fmt: skip
def test_what_no_picture_could_have_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"Give|Name|Type|must be"):
        Filters(**wrong)


def test_a_folder_as_a_person_names_it(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    _, expected = Filters(folder=str(tmp_path / "a")).sql()
    for name in ("..", "../", "../b/..", f"{tmp_path}/a/", f"{tmp_path}//a/./b/.."):
        assert Filters(folder=name).sql()[1] == expected
    assert (
        Filters(folder="~nobody-of-this-name/x")
        .sql()[1]["me"]
        .endswith(b"a/b/~nobody-of-this-name/x")
    )


@pytest.mark.parametrize(
    ("asked", "formats"),
    [
        ("jpg", {"jpeg", "mpo"}), (".JPG", {"jpeg", "mpo"}), ("JPEG", {"jpeg", "mpo"}),
        ("tif", {"tiff"}), ("heic", {"heif"}), ("png", {"png"}), ("video", {"video"}),
    ],
)  # fmt: skip
def test_types_as_people_call_them(asked, formats):
    assert set(Filters(types=(asked,)).sql()[1].values()) == formats


def test_one_type_is_not_its_letters():
    with pytest.raises(ConfigError, match="types must be several"):
        Filters(types="jpeg")
