"""`diptych dedup`: groups of equal bytes and of nearly equal pictures, the best first."""

import shutil

import pytest
from pictures import picture
from PIL import Image, ImageEnhance

from diptych.search.duplicates import duplicates
from diptych.search.filters import Filters


@pytest.fixture
def groups(index, store, library):
    original = picture(80, (400, 300))
    original.save(library / "b original.png")
    original.resize((200, 150)).save(library / "a small.png")
    ImageEnhance.Brightness(original).enhance(1.1).save(library / "c brighter.jpg", quality=85)
    exif = Image.Exif()
    exif[0x0112] = 6
    original.transpose(Image.Transpose.ROTATE_90).save(library / "d turned.png", exif=exif)
    shutil.copy(library / "b original.png", library / "e copy.png")
    shutil.copy(library / "holiday" / "7.png", library / "holiday" / "7 again.png")
    outcome, _ = index()
    return lambda **rest: duplicates(store, outcome.model, **rest)


def names(group):
    keep = [path.rsplit("/", 1)[-1] for path in group.keep.paths]
    others = [path.rsplit("/", 1)[-1] for picture in group.others for path in picture.paths]
    return keep, sorted(others)


def test_near_and_exact(groups):
    first, second = groups()
    assert names(first)[0] == ["e copy.png", "b original.png"]
    assert names(first)[1] == ["a small.png", "c brighter.jpg", "d turned.png"]
    assert names(second) == (["7.png", "7 again.png"], [])
    assert [path.rsplit("/", 1)[-1] for path in second.spare] == ["7 again.png"]
    for other in first.others:
        assert 0.9 <= other.cosine <= 1 + 1e-12
        assert other.bits <= 10
    assert first.spare_bytes == first.keep.size + sum(p.size for p in first.others)


def test_only_equal_bytes(groups):
    found = groups(cosine=2.0)
    assert sorted(names(group)[0] for group in found) == [
        ["7.png", "7 again.png"], ["e copy.png", "b original.png"],
    ]  # fmt: skip
    assert not any(group.others for group in found)


def test_in_one_folder(groups, library):
    (group,) = groups(filters=Filters(folder=str(library / "holiday")))
    assert names(group)[0] == ["7.png", "7 again.png"]


def test_progress(groups):
    told = []
    groups(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (told[-1][1], told[-1][1]) == (12, 12)


def test_imported_pictures_are_known_by_their_bytes_alone(groups, store):
    store.rows("UPDATE vectors SET hash=NULL")
    found = groups()
    assert sorted(map(names, found)) == [
        (["7.png", "7 again.png"], []), (["e copy.png", "b original.png"], []),
    ]  # fmt: skip
    assert sorted(map(names, groups(cosine=2))) == sorted(map(names, found))
