"""The recipe that writes sets from packages: its folders are read as what they are."""

import gzip
import sys
import zipfile
from pathlib import Path

import pytest
from layouts_made import picture, put
from PIL import Image

from diptych.eval.sets import SETS, read

sys.path.insert(0, str(Path(__file__).parents[3] / "recipes"))

import evaluation
import photographs


def photo(key, label, number):
    return photographs.Picture(key, label, picture(number), frozenset())


def test_only_the_reported_half_among_all_labels(tmp_path):
    words = [f"thing {i}" for i in range(12)]
    pictures = [photo(f"a/{i}.png", word, i) for i, word in enumerate(words)]
    reported = [word for word in words if photographs.is_reported(word)]
    assert 0 < len(reported) < 12
    part = tmp_path / "tuxpaint"
    part.mkdir()
    assert evaluation._photographs(part, pictures, reported=True) == len(reported)
    found = read(SETS["tuxpaint"], part)
    assert found.classes == tuple(sorted(words))
    assert [found.classes[s.labels[0]] for s in found.samples] == reported


def test_captions_in_languages(tmp_path):
    word = next(w for w in map(str, range(99)) if photographs.is_reported(w))
    put(
        tmp_path / "stamps" / "a.txt",
        "A dog.\nde.utf8=Ein Hund.\nfr.utf8=\nsr@latin.utf8=Pas.\nx\n",
    )
    part = tmp_path / "tuxpaint-languages"
    part.mkdir()
    evaluation._languages(part, [photo("a.png", word, 1)], tmp_path / "stamps")
    found = read(SETS["tuxpaint-languages"], part)
    assert {(s.group, s.captions) for s in found.samples} == {
        ("en", ("A dog.",)),
        ("de", ("Ein Hund.",)),
        ("sr@latin", ("Pas.",)),
    }


def test_digits_are_pictures(tmp_path):
    lines = [",".join([str(level)] * 64 + [str(digit)]) for level, digit in ((0, 3), (16, 7))]
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        text = gzip.compress("\n".join(lines).encode())
        wheel.writestr("sklearn/datasets/data/digits.csv.gz", text)
    assert evaluation._digits(tmp_path / "digits", tmp_path / "x.whl") == 2
    image = Image.open(tmp_path / "digits" / "test" / "7" / "0001.png")
    assert (image.size, image.getpixel((0, 0))) == ((8, 8), 255)


def test_a_set_is_written_whole_or_not(tmp_path):
    put(tmp_path / "x" / "old", "1")

    def fails(part):
        put(part / "new", "2")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        evaluation._whole(tmp_path / "x", fails)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["old"]
    assert evaluation._whole(tmp_path / "x", lambda part: put(part / "new", "2") and 1) == 1
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["new"]
