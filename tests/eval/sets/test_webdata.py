"""CLIP_benchmark's web data sets, whole and damaged."""

import pickle

import numpy as np
import pytest
from layouts_made import array, hash_of, picture, put, row, tar_of, web_data

from diptych.errors import DataError, ShardError
from diptych.eval.sets import read
from diptych.eval.sets.found import Part


def test_samples_names_templates(tmp_path):
    found = read(row(), web_data(tmp_path))
    assert [(s.key, s.labels) for s in found.samples] == [
        ("0/s0000000", (0,)),
        ("0/s0000001", (1,)),
        ("1/s0000000", (0,)),
        ("1/s0000001", (1,)),
    ]
    assert found.classes == ("bird", "cat")
    assert found.templates == ("a photo of a {}.", "art of {}")
    assert found.samples[3].open() == picture(hash_of("test") + 11)
    assert not found.notes and not found.unused


def test_flat(tmp_path):
    web_data(tmp_path / "x")
    (tmp_path / "x" / "classnames.txt").rename(tmp_path / "x" / "test" / "classnames.txt")
    assert len(read(row(), tmp_path / "x" / "test").samples) == 4


def test_test_is_what_is_measured(tmp_path):
    found = read(row(split="val"), web_data(tmp_path))
    assert found.notes == ("its split test was read; the publisher calls it val",)
    with pytest.raises(DataError, match="has train and no test"):
        read(row(), web_data(tmp_path / "other", split="train"))


def test_missing_tar_is_named(tmp_path):
    (web_data(tmp_path, shards=3) / "test" / "1.tar").unlink()
    found = read(row(size=6), tmp_path)
    assert [(u.key, u.reason) for u in found.unused] == [
        ("test/1.tar", "missing tar: nshards.txt says 3")
    ]
    assert "expected 6 samples, found 4" in found.notes


def test_cut_tar_loses_only_what_is_cut(tmp_path):
    path = web_data(tmp_path) / "test" / "1.tar"
    path.write_bytes(path.read_bytes()[: 5 * 512 + 100])  # in the picture of the second sample
    found = read(row(), tmp_path)
    assert [s.key for s in found.samples] == ["0/s0000000", "0/s0000001", "1/s0000000"]
    reasons = {u.key: u.reason for u in found.unused}
    assert set(reasons) == {"test/1.tar", "1/s0000001"}
    assert "cut inside a member" in reasons["test/1.tar"]
    assert reasons["1/s0000001"] == "the tar is cut short within it"


def test_every_kind_of_bad_sample_is_named(tmp_path):
    tar_of(
        web_data(tmp_path, shards=1) / "test" / "0.tar",
        [
            ("good.png", picture(1)), ("good.cls", b"1\n"),
            ("outside.png", picture(2)), ("outside.cls", b"7"),
            ("word.png", picture(3)), ("word.cls", b"cat"),
            ("nothing.png", picture(4)),
            ("blind.cls", b"0"),
            ("two.png", picture(5)), ("two.jpg", picture(6)), ("two.cls", b"0"),
            ("good.png", picture(7)), ("good.cls", b"0"),
        ],
    )  # fmt: skip
    found = read(row(), tmp_path)
    assert [s.key for s in found.samples] == ["0/good"]
    assert {u.key.removeprefix("0/"): u.reason for u in found.unused} == {
        "outside": "label 7 is outside the 2 classes",
        "word": "its label 'cat' is no whole number",
        "nothing": "it has no label",
        "blind": "it has no picture",
        "two": "it has two pictures",
        "good": "an earlier sample has this key",
    }
    assert found.notes[-1] == "1 of 2 classes have no picture and only stand in the way: bird"


def test_captions(tmp_path):
    tar_of(
        tmp_path / "test" / "0.tar",
        [
            ("a.webp", picture(1, "WEBP")), ("a.txt", b"One bird.\nEin Vogel.\n"),
            ("b.webp", picture(2, "WEBP")), ("b.txt", b"\n \n"),
        ],
    )  # fmt: skip
    found = read(row(task="retrieval"), tmp_path)
    assert [s.captions for s in found.samples] == [("One bird.", "Ein Vogel.")]
    assert [(u.key, u.reason) for u in found.unused] == [("0/b", "its caption is empty")]


def test_numbers_are_labels_or_a_group(tmp_path):
    members = [("a.png", picture(1)), ("a.cls", b"0"), ("a.npy", array([1, 0]))]
    tar_of(web_data(tmp_path, shards=1) / "test" / "0.tar", members)
    assert read(row(task="multilabel"), tmp_path).samples[0].labels == (0,)
    sample = read(row(), tmp_path).samples[0]
    assert (sample.labels, sample.group) == ((0,), "1")


def test_no_pickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, ("PWNED", "w"))

    evil = (
        b"\x93NUMPY\x01\x00v\x00"
        + str({"descr": "|O", "fortran_order": False, "shape": (1,)}).encode().ljust(117)
        + b"\n"
        + pickle.dumps(np.array([Evil()], dtype=object))
    )
    tar_of(web_data(tmp_path, shards=1) / "test" / "0.tar",
           [("a.png", picture(1)), ("a.cls", b"0"), ("a.npy", evil),
            ("b.png", picture(2)), ("b.cls", b"0")])  # fmt: skip
    found = read(row(), tmp_path)
    assert [s.key for s in found.samples] == ["0/b"]
    assert "pickle" in found.unused[0].reason
    assert not (tmp_path / "PWNED").exists()


def test_labels_are_numbered_anew_by_name(tmp_path):
    """clip_benchmark's order of EuroSAT is not OpenAI's: its label 0 is OpenAI's 7."""
    from diptych.eval.classes import class_list

    theirs = [n[0] for n in class_list("clip-benchmark-eurosat").names]
    found = read(row(classes="eurosat"), web_data(tmp_path, classes=theirs))
    assert found.classes == tuple(n[0] for n in class_list("eurosat").names)
    assert [found.classes[s.labels[0]] for s in found.samples[:2]] == theirs[:2]
    assert found.notes[0].startswith("10 of 10 labels were numbered anew")


def test_without_names(tmp_path):
    (web_data(tmp_path) / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"classnames\.txt: is missing"):
        read(row(), tmp_path)


def test_picture_in_two_splits(tmp_path):
    web_data(web_data(tmp_path), split="train", shards=1)
    members = [("z.png", picture(hash_of("test") + 1)), ("z.cls", b"0")]
    tar_of(tmp_path / "train" / "7.tar", members)
    found = read(row(), tmp_path)
    assert found.notes == (
        "1 pictures are in another split too, byte for byte: 0.tar!s0000001 = train/7.tar!z",
    )


def test_a_part_of_a_file_that_shrank(tmp_path):
    with pytest.raises(ShardError, match="ends 3 bytes before the end of a picture"):
        Part(put(tmp_path / "x", b"12345"), 2, 6)()
