"""Lists, folders and tars of pictures with captions, references and ratings."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from diptych.data import Report
from diptych.errors import DataError
from diptych.judge.pairs import Columns, read_pairs, read_rated


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def read(path, **columns):
    told = []
    report = Report(on_drop=lambda drop: told.append((drop.reason, drop.name)))
    pairs = list(read_pairs(path, columns=Columns(**columns), report=report))
    assert report.used == len(pairs)
    return pairs, told


def test_csv_with_references_and_ratings(folder):
    (folder / "x.csv").write_text(
        "image,caption,references,r1,r2\n"
        'a.png,"a  dog\tthere","[""one"", ""two""]",1,nan\n'
        'b.png,NULL,one,2.5,"[3, null]"\n'
    )
    (a, b), told = read(folder / "x.csv", references="references", ratings=("r1", "r2"))
    assert (a.captions, a.references, a.ratings, a.skipped) == (
        ("a dog there",),
        ("one", "two"),
        (1,),
        1,
    )
    assert (b.captions, b.ratings, b.skipped, b.image) == (("NULL",), (2.5, 3), 1, folder / "b.png")
    assert not told


def test_without_ratings_white_space_is_as_it_was(folder):
    (folder / "x.csv").write_text("image,caption\na.png,a  dog \n")
    (pair,), _ = read(folder / "x.csv")
    assert pair.captions == ("a  dog",)


def test_what_is_dropped_is_told_with_its_line(folder):
    rows = [
        {"path": "a.png", "captions": ["x", "y"]},
        {"path": "", "caption": "x"},
        {"path": "b.png", "caption": " "},
        {"path": "c.png"},
        {"path": "c.png", "caption": "later"},
    ]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nno json\n")
    pairs, told = read(folder / "x.jsonl")
    assert [pair.captions for pair in pairs] == [("x", "y"), ("later",)]
    where = f"{folder / 'x.jsonl'}"
    assert told == [
        ("no path", f"{where}:2"),
        ("empty caption", f"{where}:3"),
        ("no caption", f"{where}:4"),
        ("damaged list", f"{where}:6"),
    ]


def test_a_row_without_its_reference_is_dropped(folder):
    (folder / "x.csv").write_text("path,caption,ref\na.png,x,y\nb.png,x,\n")
    pairs, told = read(folder / "x.csv", references="ref")
    assert [pair.key for pair in pairs] == ["a.png"]
    assert told == [("no reference", f"{folder / 'x.csv'}:3")]


def test_a_folder_of_pictures_with_text_beside(folder):
    (folder / "a.txt").write_text("a dog\n")
    (folder / "b.txt").write_bytes(b"\xff\xfe")
    pairs, told = read(folder)
    assert [pair.captions for pair in pairs] == [("a dog",)]
    assert [reason for reason, _ in told] == ["text lost", "no caption"]


def test_a_folder_with_a_list(folder):
    (folder / "captions.csv").write_text("path,caption\nc.png,x\n")
    pairs, _ = read(folder)
    assert [pair.key for pair in pairs] == ["c.png"]


def test_a_tar(folder):
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in (("s.png", (folder / "a.png").read_bytes()), ("s.txt", b"a dog"),
                           ("t.png", b"x")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    pairs, told = read(folder / "x.tar")
    assert [(pair.key, pair.captions) for pair in pairs] == [(f"{folder / 'x.tar'}!s", ("a dog",))]
    assert told == [("no caption", f"{folder / 'x.tar'}!t")]


def test_rated_pictures_need_no_caption(folder):
    (folder / "x.csv").write_text("path,rating\na.png,4\nb.png,\n")
    report = Report()
    pairs = list(read_rated(folder / "x.csv", columns=Columns(ratings=("rating",)), report=report))
    assert [(pair.key, pair.ratings) for pair in pairs] == [("a.png", (4.0,))]
    assert report.drops == {"no rating": 1}


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        ("path,caption\na.png,x\n", {"ratings": ("stars",)}, "no column 'stars', but path"),
        ("path,caption,r\na.png,x,good\n", {"ratings": ("r",)}, "x.csv:2: column 'r' has 'good'"),
        ("path,caption,r\na.png,x,inf\n", {"ratings": ("r",)}, "finite"),
        ('path,caption,r\na.png,x,"[1,"\n', {"ratings": ("r",)}, "is no list"),
    ],
)
def test_bad_lists(folder, text, columns, says):
    (folder / "x.csv").write_text(text)
    with pytest.raises(DataError, match=says.replace("[", r"\[")):
        read(folder / "x.csv", **columns)


def test_columns_of_a_folder_are_an_error(folder):
    with pytest.raises(DataError, match="no columns"):
        read(folder, ratings=("r",))
