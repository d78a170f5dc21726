"""Lists, Parquet, and the JSON of retrieval and choice sets."""

import json

import pytest
from layouts_made import cell, parquet, picture, put, row

from diptych.errors import DataError, ShardError
from diptych.eval.sets import read
from diptych.eval.sets.parquet import Cell
from diptych.preprocess import open_image

RETRIEVAL = {"task": "retrieval", "metric": "mean_r1"}
CHOICE = {"task": "choice", "metric": "pair_accuracy"}


def labels(found) -> dict[str, tuple[int, ...]]:
    return {sample.key: sample.labels for sample in found.samples}


def reasons(found) -> dict[str, str]:
    return {unused.key: unused.reason for unused in found.unused}


@pytest.fixture
def three(tmp_path):
    for i, name in enumerate("abc"):
        put(tmp_path / "images" / f"{name}.png", i)
    return tmp_path


# --- lists ---


def test_names_in_a_list(three):
    put(three / "labels.csv", "path,label,region\nimages/a.png,dog,Asia\nb.png,cat,Africa\n")
    found = read(row(), three)
    assert found.classes == ("cat", "dog")
    assert labels(found) == {"images/a.png": (1,), "b.png": (0,)}
    assert [s.group for s in found.samples] == ["Asia", "Africa"]
    assert open_image(found.samples[1].open()).size == (8, 8)


def test_numbers_need_names(three):
    put(three / "test.tsv", "image\tlabel\na.png\t1\nb.png\t0\n")
    with pytest.raises(DataError, match=r"labels are numbers \(0, 1\).*classnames\.txt"):
        read(row(), three)
    put(three / "classnames.txt", "cat\ndog\n")
    assert labels(read(row(), three)) == {"a.png": (1,), "b.png": (0,)}


def test_what_is_wrong_in_a_list_is_named(three):
    put(
        three / "labels.csv",
        "path,label\na.png,0\nb.png,5\ngone.png,0\na.png,1\nc.png,\n../up.png,0\n,0\nc.png,cow\n",
    )
    put(three.parent / "up.png", 9)
    put(three / "classnames.txt", "cat\ndog\n")
    found = read(row(size=4), three)
    assert labels(found) == {"a.png": (0,)}
    assert [(u.key, u.reason) for u in found.unused] == [
        ("gone.png", "there is no such picture"),
        (
            "c.png",
            "none of the columns label, labels, class, class_name, classname, ... has a label",
        ),
        ("../up.png", "there is no such picture"),
        ("labels.csv:8", f"none of the columns {PICTURES} has a picture"),
        ("b.png", "label 5 is outside the 2 classes"),
        ("a.png", "an earlier sample has this key"),
        ("c.png", "'cow' is no class of the list"),
    ]
    assert "expected 4 samples, found 1" in found.notes


LABELS = "label, labels, class, class_name, classname"
PICTURES = ", ".join(
    (
        *("path", "image_path", "filepath", "file_path", "filename", "file_name", "image", "img"),
        *("image_file", "picture", "jpg", "png", "webp"),
    )
)


def test_a_column_of_splits(three):
    put(
        three / "metadata.jsonl",
        "\n".join(
            json.dumps(r)
            for r in (
                {"file_name": "a.png", "label": "cat", "split": "test"},
                {"file_name": "b.png", "label": "dog", "split": "train"},
                {"file_name": "a.png", "label": "cat", "split": "train"},
            )
        ),
    )
    found = read(row(), three)
    assert labels(found) == {"a.png": (0,)}
    assert found.notes == ("1 pictures are in two splits: a.png",)
    with pytest.raises(DataError, match="rows of the splits test, train and none of val"):
        read(row(split="val"), three)


def test_image_folder_of_a_split(tmp_path):
    """Hugging Face's folder with its list inside."""
    put(tmp_path / "test" / "a.png", 1)
    put(tmp_path / "test" / "metadata.csv", "file_name,label\na.png,cat\n")
    put(tmp_path / "train" / "metadata.csv", "file_name,label\na.png,dog\n")
    assert read(row(), tmp_path).classes == ("cat",)


def test_several_labels(three):
    put(three / "labels.csv", 'path,labels\na.png,dog|cat\nb.png,"[""dog""]"\nc.png,\n')
    found = read(row(task="multilabel"), three)
    assert found.classes == ("cat", "dog")
    assert labels(found) == {"a.png": (1, 0), "b.png": (1,), "c.png": ()}


def test_digits_are_names_where_names_are_digits(three):
    put(three / "labels.csv", "path,label\na.png,10\nb.png,3\n")
    found = read(row(classes="clevr-counts"), three)
    assert labels(found) == {"a.png": (0,), "b.png": (1,)}
    # a number of JSON is a place in the list
    put(three / "test.jsonl", '{"path": "a.png", "label": 0}\n{"path": "b.png", "label": 3}\n')
    assert labels(read(row(classes="clevr-counts"), three)) == {"a.png": (0,), "b.png": (3,)}


def test_captions_and_languages(three):
    put(
        three / "captions.csv",
        "path,caption,language\na.png,A dog,en\na.png,Ein Hund,de\na.png,A wolf,en\nb.png,,en\n",
    )
    found = read(row(**RETRIEVAL), three)
    assert [(s.key, s.captions, s.group) for s in found.samples] == [
        ("a.png@en", ("A dog", "A wolf"), "en"),
        ("a.png@de", ("Ein Hund",), "de"),
    ]
    assert reasons(found) == {"b.png@en": "its caption is empty"}


def test_damaged_list(three):
    put(three / "labels.csv", b"path,label\na.png,cat\nb.png,\xff\n")
    found = read(row(), three)
    assert labels(found) == {"a.png": (0,)}
    assert any("not UTF-8" in reason for reason in reasons(found).values())


# --- Parquet ---


def test_pictures_and_names_in_the_file(tmp_path):
    pytest.importorskip("pyarrow")
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for part in range(2):
        numbers = range(3 * part, 3 * part + 3)
        parquet(
            tmp_path / "data" / f"test-{part:05}-of-00002.parquet",
            {"image": [cell(i) for i in numbers], "label": [i % 3 for i in numbers]},
            features,
        )
    found = read(row(), tmp_path)
    assert found.classes == ("cat", "dog")
    assert [s.labels[0] for s in found.samples] == [0, 1, 0, 1]
    assert [s.open() for s in found.samples] == [picture(i) for i in (0, 1, 3, 4)]
    assert set(reasons(found).values()) == {"label 2 is outside the 2 classes"}
    (tmp_path / "data" / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="has 1 of 2 files of test"):
        read(row(), tmp_path)


def test_labels_of_parquet_follow_their_names(tmp_path):
    pytest.importorskip("pyarrow")
    from diptych.eval.classes import class_list

    theirs = [n[0] for n in class_list("clip-benchmark-oxford-pets").names]
    features = {"label": {"names": theirs, "_type": "ClassLabel"}}
    table = {"image": [cell(1), cell(2)], "label": [1, 36]}
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table, features)
    found = read(row(classes="oxford-pets"), tmp_path)
    called = [found.classes[s.labels[0]] for s in found.samples]
    assert called == [theirs[1].lower(), theirs[36].lower()]


def test_names_in_the_card(tmp_path):
    pytest.importorskip("pyarrow")
    parquet(tmp_path / "test.parquet", {"img": [cell(1)], "fine_label": [1]})
    put(
        tmp_path / "README.md",
        "---\ndataset_info:\n  features:\n  - name: img\n    dtype: image\n  - name: coarse_label\n"
        "    dtype:\n      class_label:\n        names:\n          '0': animal\n"
        "  - name: fine_label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': cat\n          '1': \"dog\"\n  splits:\n  - name: test\n---\nText\n",
    )
    found = read(row(), tmp_path)
    assert (found.classes, found.samples[0].labels) == (("cat", "dog"), (1,))


def test_parquet_without_its_split_or_whole(tmp_path):
    pytest.importorskip("pyarrow")
    parquet(tmp_path / "train.parquet", {"image": [cell(1)], "label": [0]})
    with pytest.raises(DataError, match="has Parquet files of train and none of test"):
        read(row(), tmp_path)
    path = put(tmp_path / "test.parquet", b"PAR1 no")
    with pytest.raises(ShardError, match=r"test\.parquet: cannot be read"):
        read(row(), tmp_path)
    with pytest.raises(ShardError, match="holds no bytes"):
        empty = parquet(tmp_path / "x.parquet", {"image": [{"bytes": None, "path": "a"}]})
        Cell(empty, 0, 0, "image")()
    assert path.exists()


def test_captions_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = {"image": [cell(1)], "caption": [["A dog.", "A wolf."]]}
    parquet(tmp_path / "test.parquet", table)
    assert read(row(**RETRIEVAL), tmp_path).samples[0].captions == ("A dog.", "A wolf.")


# --- JSON ---


def test_karpathys_split(tmp_path):
    images = [
        {
            "filepath": "val2014", "filename": f"{name}.png", "split": split, "sentids": [],
            "sentences": [{"raw": f" {name} {i} "} for i in range(count)],
        }
        for name, split, count in (
            ("a", "test", 5), ("b", "test", 7), ("c", "train", 5), ("gone", "test", 5),
            ("mute", "test", 0), ("a", "val", 5),
        )
    ]  # fmt: skip
    put(tmp_path / "dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    for i, name in enumerate(("a", "b", "c", "mute")):
        put(tmp_path / "val2014" / f"{name}.png", i)
    found = read(row(**RETRIEVAL, size=4), tmp_path)
    assert [(s.key, len(s.captions)) for s in found.samples] == [("a.png", 5), ("b.png", 5)]
    assert found.samples[0].captions[0] == "a 0"
    assert reasons(found) == {
        "gone.png": "there is no such picture",
        "mute.png": "its caption is empty",
    }
    assert "2 captions beyond the fifth of a picture are left out" in found.notes
    assert "1 pictures are in two splits: a.png" in found.notes
    with pytest.raises(DataError, match="images of the splits test, train, val and none of x"):
        read(row(**RETRIEVAL, split="x"), tmp_path)


def test_sugarcrepe(three):
    pairs = {"0": {"filename": "a.png", "caption": "A cat", "negative_caption": "A dog"},
             "7": {"filename": "b.png", "caption": "A hen", "negative_caption": " "}}  # fmt: skip
    put(three / "swap_att.json", json.dumps(pairs))
    put(three / "add_obj.json", json.dumps({"0": pairs["0"] | {"filename": "no.png"}}))
    found = read(row(**CHOICE), three)
    assert [(s.key, s.captions, s.group) for s in found.samples] == [
        ("swap_att/0", ("A cat", "A dog"), "swap_att")
    ]
    assert reasons(found) == {
        "add_obj/0": "no.png: there is no such picture",
        "swap_att/7": "its caption is empty",
    }


def test_aro_is_cut_to_its_box(three):
    box = {"bbox_x": 1, "bbox_y": 2, "bbox_w": 5, "bbox_h": 3}
    texts = {"image_path": "a.png", "true_caption": "on", "false_caption": "under"}
    content = [box | texts | {"relation_name": "on"}, texts | {"attributes": ["red", "big"]}]
    put(three / "visual_genome_relation.json", json.dumps(content))
    found = read(row(**CHOICE), three)
    assert [s.group for s in found.samples] == ["on", "red_big"]
    assert found.samples[0].image[0]().size == (5, 3)
    assert found.samples[1].image[0].name == "a.png"


def test_winoground(three):
    lines = [
        {"id": i, "image_0": "a", "image_1": second, "caption_0": "x y", "caption_1": "y x",
         "collapsed_tag": "Object"} for i, second in enumerate(("b", "no"))
    ]  # fmt: skip
    put(three / "examples.jsonl", "\n".join(map(json.dumps, lines)))
    found = read(row(**CHOICE), three)
    assert [(s.key, s.captions, s.group) for s in found.samples] == [
        ("0", ("x y", "y x"), "Object")
    ]
    assert [path.name for path in found.samples[0].image] == ["a.png", "b.png"]
    assert reasons(found) == {"1": "one of its pictures is not there"}


def test_winoground_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = {
        "id": [0], "image_0": [cell(1)], "image_1": [cell(2)],
        "caption_0": ["x y"], "caption_1": ["y x"],
    }  # fmt: skip
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table)
    sample = read(row(**CHOICE), tmp_path).samples[0]
    assert [image() for image in sample.image] == [picture(1), picture(2)]


def test_winogavil(three):
    put(
        three / "test.csv",
        "cue,candidates,associations\n"
        'Umbrella,"[""a"", ""b"", ""c""]","[""c"", ""a""]"\n'
        'bank,"[""a"", ""z""]","[""a""]"\nbank,"[""a""]","[""b""]"\n',
    )
    found = read(row(**CHOICE), three)
    assert [(s.captions, s.labels, s.group) for s in found.samples] == [
        (("An umbrella",), (0, 2), "3")
    ]
    assert reasons(found) == {
        "test.csv:3": "pictures that are not there: z",
        "test.csv:4": "its cue is empty, or what it should find is not among its pictures",
    }


def test_winogavil_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = {
        "cue": ["bank"],
        "candidates": [["x", "y"]],
        "associations": [["y"]],
        "candidate_images": [[cell(1), cell(2)]],
    }
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table)
    sample = read(row(**CHOICE), tmp_path).samples[0]
    assert (sample.captions, sample.labels) == (("A bank",), (1,))
    assert [image() for image in sample.image] == [picture(1), picture(2)]


@pytest.mark.parametrize("content", ['{"a": [1', '{"negative_caption": 1}'])
def test_json_that_is_none(tmp_path, content):
    put(tmp_path / "x.json", content + ' "negative_caption"' * content.startswith('{"a'))
    with pytest.raises(DataError, match=r"x\.json"):
        read(row(**CHOICE), tmp_path)
