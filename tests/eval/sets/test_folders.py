"""Folders of classes: what is right is found, what is wrong is named."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts_made import class_folders, picture, put, row
from PIL import Image

from diptych.errors import DataError, ImageError
from diptych.eval.sets import read
from diptych.eval.sets.folders import Crop, read_folders
from diptych.eval.sets.layouts import read_layout
from diptych.eval.sets.names import Names, numbers_of_folders, order_of, plain


def named(*names: str, ids: tuple[str, ...] = ()) -> Names:
    return Names(names=tuple((name,) for name in names), ids=ids)


def labels(found) -> dict[str, int]:
    return {sample.key: sample.labels[0] for sample in found.samples}


def test_classes_of_the_data(tmp_path):
    found = read(row(), class_folders(tmp_path, ("big_cat", "bird", "dog")))
    assert found.classes == ("big cat", "bird", "dog")
    assert labels(found) == {
        f"test/{name}/{i}.png": c
        for c, name in enumerate(("big_cat", "bird", "dog"))
        for i in (0, 1)
    }
    assert not found.notes and not found.unused


def test_no_split_folders(tmp_path):
    class_folders(tmp_path / "x", split="a")
    assert len(read_layout(tmp_path / "x" / "a", row()).samples) == 6


def test_split_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"has train and no test.*Bring the folder test"):
        read(row(), class_folders(tmp_path, split="train"))


def test_validation_is_val(tmp_path):
    found = read(row(split="val"), class_folders(tmp_path, split="validation"))
    assert len(found.samples) == 6


def test_missing_class_folder_is_named(tmp_path):
    class_folders(tmp_path, ("bird", "dog"))
    names = named("cat", "bird", "dog", "hen")
    with pytest.raises(DataError, match=r"2 of 4 classes have no folder: cat, hen\..*partial=True"):
        read_folders(tmp_path, row(), names, partial=False)
    found = read_folders(tmp_path, row(), names, partial=True)
    assert labels(found)["test/dog/0.png"] == 2
    assert found.notes == ("2 of 4 classes have no picture and only stand in the way: cat, hen",)


def test_empty_class_folder_is_a_missing_one(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "test" / "hen").mkdir()
    names = named("bird", "cat", "dog", "hen")
    with pytest.raises(DataError, match="1 of 4 classes have no folder: hen"):
        read_folders(tmp_path, row(), names, partial=False)


def test_number_of_folders_without_a_list(tmp_path):
    with pytest.raises(DataError, match=r"has 3 folders of pictures, and Pets has 5 classes"):
        read(row(num_classes=5), class_folders(tmp_path))


def test_folder_that_is_no_class_is_counted(tmp_path):
    class_folders(tmp_path, ("bird", "cat", "zebra"))
    found = read_folders(tmp_path, row(), named("bird", "cat"), partial=False)
    assert len(found.samples) == 4
    assert "1 folders are no class of the list: zebra" in found.notes
    assert "2 pictures are in folders that are no class: left out" in found.notes


def test_wrong_count(tmp_path):
    found = read(row(size=7), class_folders(tmp_path))
    assert found.notes == ("expected 7 samples, found 6",)


def test_picture_in_two_splits(tmp_path):
    class_folders(tmp_path)
    class_folders(tmp_path, split="train")
    put(tmp_path / "train" / "dog" / "other.png", (tmp_path / "test/cat/1.png").read_bytes())
    found = read(row(), tmp_path)
    assert found.notes == (
        "1 pictures are in another split too, byte for byte: test/cat/1.png = train/dog/other.png",
    )


def test_picture_twice_in_the_split(tmp_path):
    class_folders(tmp_path)
    put(tmp_path / "test" / "dog" / "9.png", (tmp_path / "test/cat/1.png").read_bytes())
    found = read(row(), tmp_path)
    assert found.notes == (
        "1 pictures are in the split twice, byte for byte: test/dog/9.png = test/cat/1.png",
    )


def test_too_much_to_hash_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.eval.sets.found._HASHED", 1)
    class_folders(tmp_path)
    put(tmp_path / "train" / "cat" / "1.png", (tmp_path / "test/cat/1.png").read_bytes())
    put(tmp_path / "train" / "cat" / "8.png", (tmp_path / "test/cat/0.png").read_bytes())
    notes = read(row(), tmp_path).notes
    assert "diptych eval overlap looks at all" in notes[0]
    assert notes[1].startswith("1 pictures are in another split too")  # of the same name alone


def test_empty_and_loose_pictures(tmp_path):
    class_folders(tmp_path)
    put(tmp_path / "test" / "dog" / "5.png", b"")
    put(tmp_path / "test" / "loose.png", 5)
    put(tmp_path / "test" / "dog" / "Thumbs.db", b"x")
    found = read(row(), tmp_path)
    assert {(u.key, u.reason) for u in found.unused} == {
        ("test/dog/5.png", "is empty (0 bytes)"),
        ("test/loose.png", "lies beside the class folders"),
    }
    assert any(note.startswith("2 could not be used:") for note in found.notes)


def test_names_ids_and_numbers(tmp_path):
    names = named("tench", "gold fish", "great white shark", ids=("n01", "n01440764", "n02"))
    numbers, notes = numbers_of_folders(
        ["001.Tench", "Great_White-Shark", "n01440764"], names, tmp_path, partial=False
    )
    assert (numbers, notes) == ([0, 2, 1], [])


@pytest.mark.parametrize(
    ("folders", "first"), [(["0", "1", "10", "2"], 0), (["00001", "00002", "11", "00003"], 1)]
)
def test_folders_that_are_numbers(folders, first, tmp_path):
    names = named(*"abcdefghijk")
    numbers, notes = numbers_of_folders(folders, names, tmp_path, partial=True)
    assert numbers == [int(f) - first for f in folders]
    assert notes == [f"folders are numbers, counted from {first}"]


def test_digits_that_are_names(tmp_path):
    """CLEVR's classes are called 10, 3, 4: a folder 3 is the second."""
    numbers, _ = numbers_of_folders(
        ["10", "3", "4"], named("10", "3", "4"), tmp_path, partial=False
    )
    assert numbers == [0, 1, 2]


def test_order_of_folders_where_most_names_agree(tmp_path):
    folders = ["AnnualCrop", "Forest", "River"]
    names = named("crops of a year", "forest", "river")
    numbers, notes = numbers_of_folders(folders, names, tmp_path, partial=False)
    assert numbers == [0, 1, 2] and "2 of 3 have the same name" in notes[0]
    with pytest.raises(DataError, match="1 of 3 classes have no folder: crops of a year"):
        numbers_of_folders(folders, named("forest", "crops of a year", "river"), tmp_path,
                           partial=False)  # fmt: skip


def test_order_file(tmp_path):
    put(tmp_path / "folders.txt", "x\nz\ny\n")
    names = named("one", "two", "three")
    assert numbers_of_folders(["x", "y", "z"], names, tmp_path, partial=False)[0] == [0, 2, 1]
    put(tmp_path / "folders.txt", "x\nz\n")
    with pytest.raises(DataError, match=r"folders\.txt: has 2 lines, and the list 3"):
        numbers_of_folders(["x", "y", "z"], names, tmp_path, partial=False)


def test_folders_that_fit_no_list(tmp_path):
    with pytest.raises(DataError, match=r"none of its 2 folders is called like a class"):
        numbers_of_folders(["x", "y"], named("a", "b"), tmp_path, partial=True)
    with pytest.raises(DataError, match="are the same class"):
        numbers_of_folders(["a", "A_"], named("a", "b"), tmp_path, partial=True)


def test_the_known_lists_take_the_publishers_folders(tmp_path):
    """EuroSAT's folders are in another order than OpenAI's list, under other names."""
    names = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    )
    found = read(row(name="eurosat", classes="eurosat"), class_folders(tmp_path, names, each=1))
    assert found.classes[labels(found)["test/SeaLake/0.png"]] == "lake or sea"
    assert found.classes[labels(found)["test/AnnualCrop/0.png"]] == "annual crop land"
    assert not found.notes


@given(st.permutations(["forest", "river", "lake", "sea"]))
def test_labels_follow_names(tmp_path_factory, order):
    names = named("river", "sea", "forest", "lake")
    numbers, notes = order_of(names, order, tmp_path_factory.getbasetemp())
    assert [names.names[n][0] for n in numbers] == order
    assert bool(notes) == (numbers != [0, 1, 2, 3])


def test_labels_that_cannot_be_understood(tmp_path):
    with pytest.raises(DataError, match="has 2 classes and the protocol's list 3"):
        order_of(named("a", "b", "c"), ["a", "b"], tmp_path)
    with pytest.raises(DataError, match=r"3 of 3 classes are called otherwise.*classnames\.txt"):
        order_of(named("a", "b", "c"), ["x", "y", "z"], tmp_path)
    # one name is left, and one class
    assert order_of(named("a", "b", "c"), ["c", "other", "a"], tmp_path)[0] == [2, 1, 0]
    # two names are the same ("sunglasses"): the place decides
    assert order_of(named("x", "x", "c"), ["x", "x", "c"], tmp_path) == ([0, 1, 2], [])


@given(st.text())
def test_plain_is_stable(text):
    assert plain(plain(text)) == plain(text)


def test_nested_folders_are_a_path(tmp_path):
    """SUN397: a/abbey and b/apartment/outdoor."""
    put(tmp_path / "a" / "abbey" / "1.png", 1)
    put(tmp_path / "a" / "apartment_building" / "outdoor" / "1.png", 2)
    names = named("abbey", "apartment building outdoor")
    found = read_folders(tmp_path, row(), names, partial=False)
    assert labels(found) == {"a/abbey/1.png": 0, "a/apartment_building/outdoor/1.png": 1}


def test_objectnet_is_called_and_cut_as_its_publisher_says(tmp_path):
    import json

    put(tmp_path / "mappings" / "folder_to_objectnet_label.json",
        json.dumps({"alarm_clock": "Alarm clock", "zip": "Zip tie"}))  # fmt: skip
    put(tmp_path / "images" / "alarm_clock" / "1.png", picture(1, side=12))
    put(tmp_path / "images" / "zip" / "1.png", 2)
    found = read_folders(tmp_path, row(), named("alarm clock"), partial=False)
    assert [s.key for s in found.samples] == ["images/alarm_clock/1.png"]
    image = found.samples[0].open()
    whole = Image.open(tmp_path / "images" / "alarm_clock" / "1.png").convert("RGB")
    assert image.size == (8, 8)
    assert image.convert("RGB").tobytes() == whole.crop((2, 2, 10, 10)).tobytes()


def test_crop_of_what_is_no_picture(tmp_path):
    with pytest.raises(ImageError, match=r"bad\.png"):
        Crop(put(tmp_path / "bad.png", b"no"), (0, 0, 1, 1))()


def test_mvtec(tmp_path):
    for part in ("train/good/0", "test/good/0", "test/crack/0", "ground_truth/crack/0_mask"):
        put(tmp_path / "bottle" / f"{part}.png", hash(part) % 1000)
    found = read(row(), tmp_path)
    assert found.classes == ("good", "defect")
    assert labels(found) == {"bottle/test/good/0.png": 0, "bottle/test/crack/0.png": 1}
    assert {s.group for s in found.samples} == {"bottle"}


def test_captions_are_not_in_folders(tmp_path):
    with pytest.raises(DataError, match="say nothing of captions"):
        read(row(task="retrieval", source="https://example.org"), class_folders(tmp_path))


@pytest.mark.parametrize("content", ["empty", "text", "missing"])
def test_nothing_to_read(tmp_path, content):
    folder = tmp_path / "pets"
    if content != "missing":
        folder.mkdir()
    if content == "text":
        put(folder / "notes.md", "x")
    match = {
        "empty": "none of the known layouts; in it: nothing",
        "text": r"none of the known layouts; in it: notes\.md",
        "missing": r"no such folder\. Put a copy of Pets there: https",
    }[content]
    with pytest.raises(DataError, match=match):
        read(row(source="https://example.org"), folder)


def test_nothing_but_empty_files(tmp_path):
    put(tmp_path / "test" / "dog" / "1.png", b"")
    with pytest.raises(DataError, match=r"no sample of pets.*The first: test/dog/1.png: is empty"):
        read(row(), tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_that_leads_nowhere_is_left_to_the_decoder(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "test" / "dog" / "7.png").symlink_to(tmp_path / "gone.png")
    assert "test/dog/7.png" in labels(read(row(), tmp_path))
