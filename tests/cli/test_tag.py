"""`diptych tag`: lines, JSON, CSV, sidecars, kept vectors, collections, wrong use."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import diptych
from diptych.judge.sidecars import read_subjects

SAMPLES = Path(diptych.__file__).parent / "assets" / "samples"
WORDS = "animal\n  dog, puppy\n  cat\nlandscape\n  mountain\nvehicle\n"


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """Kept vectors go into a cache of this test."""


@pytest.fixture
def real(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for name in ("cat", "dogs", "mountains", "coffee"):
        shutil.copy(SAMPLES / f"{name}.jpg", folder)
    (tmp_path / "words.txt").write_text(WORDS)
    return folder


def found(record):
    return [x["label"] for x in record["labels"]]


def test_tags_of_photographs(real, tmp_path, run):
    ran = run("tag", real, "--vocabulary", tmp_path / "words.txt", "--json", "--alt-text")
    assert ran.code == 0
    by = {Path(r["path"]).stem: r for r in ran.records}
    assert found(by["cat"]) == ["cat", "animal"]
    assert found(by["mountains"])[:2] == ["mountain", "landscape"]
    assert by["cat"]["labels"][0]["parents"] == ["animal"]
    assert by["cat"]["alt_text"] == "a photo: cat, animal"
    assert found(by["coffee"]) == []
    assert by["coffee"]["alt_text"] == "a photo"


def test_another_label_encodes_no_picture(real, tmp_path, run, monkeypatch):
    words = tmp_path / "words.txt"
    first = run("tag", real, "--vocabulary", words)
    assert "4 pictures encoded" in first.err or "32 pictures encoded" in first.err
    words.write_text(WORDS + "cup, coffee\n")

    def no_more(*_):
        raise AssertionError("a picture was encoded")

    monkeypatch.setattr(diptych.engine.Encoder, "run_image", no_more)
    second = run("tag", real, "--vocabulary", words, "--json")
    assert second.code == 0
    assert {Path(r["path"]).stem: found(r) for r in second.records}["coffee"] == ["cup"]


def test_lines_levels_and_numbers(model, photos, run):
    ran = run("tag", photos, "--model", model, "--labels", "a,b", "--threshold", "-1")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 3
    assert "a.jpg: " in ran.out
    ran = run("tag", photos / "a.jpg", "--model", model, "--labels", "a,b", "--threshold", "1")
    assert ran.out.endswith("(no tag)\n")
    one = run("tag", photos, "--model", model, "--labels", "a,b", "--threshold", "-1", "--top", 1,
              "--json")  # fmt: skip
    assert [len(r["labels"]) for r in one.records] == [1, 1, 1]


def test_lowest_level(real, tmp_path, run):
    ran = run("tag", real / "cat.jpg", "--vocabulary", tmp_path / "words.txt", "--level", "lowest",
              "--json")  # fmt: skip
    assert found(ran.records[0]) == ["cat"]
    ran = run("tag", real / "cat.jpg", "--vocabulary", tmp_path / "words.txt", "--level", 1,
              "--json")  # fmt: skip
    assert found(ran.records[0]) == ["animal"]


def test_one_bad_picture_does_not_stop_the_others(model, photos, run):
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    ran = run("tag", photos, "--model", model, "--labels", "a", "--threshold", "-1", "--json")
    assert ran.code == 1
    assert sum("error" in r for r in ran.records) == 1
    assert len(ran.records) == 4


def test_paths_on_stdin(model, photos, run):
    ran = run("tag", "-", "--model", model, "--labels", "a", "--threshold", "-1",
              stdin=f"{photos}/a.jpg\n{photos}/b.png\n")  # fmt: skip
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 2


def test_a_table(model, photos, tmp_path, run):
    (tmp_path / "w.txt").write_text("x = -1\n  y, z = -1\n")
    table = tmp_path / "t.csv"
    ran = run("tag", photos, "--model", model, "--vocabulary", tmp_path / "w.txt", "--csv", table)
    assert ran.code == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["label"] for row in rows} == {"x", "x|y"}
    assert {row["path"] for row in rows} == {str(p) for p in photos.iterdir()}


def test_sidecars_beside_photos_that_stay_as_they_are(model, photos, run):
    before = {p: p.read_bytes() for p in photos.iterdir()}
    asked = ("tag", photos, "--model", model, "--labels", "a dog", "--threshold", "-1")
    ran = run(*asked, "--sidecars", "full")
    assert ran.code == 0
    assert "3 sidecars written" in ran.err
    for path, data in before.items():
        assert path.read_bytes() == data
        side = path.with_name(path.name + ".xmp")
        assert read_subjects(side.read_bytes())[0] == ["a dog"]
    assert "0 sidecars written" in run(*asked, "--sidecars", "full").err


def test_two_photos_with_one_sidecar(model, photos, run):
    shutil.copy(photos / "b.png", photos / "a.png")
    ran = run("tag", photos, "--model", model, "--labels", "a", "--threshold", "-1", "--json",
              "--sidecars", "stem")  # fmt: skip
    assert ran.code == 1
    (failure,) = (r for r in ran.records if "error" in r)
    assert "--sidecars full" in failure["error"]
    assert (photos / "a.xmp").is_file()


def test_a_damaged_sidecar_is_named_and_left(model, photos, run):
    (photos / "a.jpg.xmp").write_text("mine")
    ran = run("tag", photos, "--model", model, "--labels", "a", "--threshold", "-1", "--sidecars",
              "full")  # fmt: skip
    assert ran.code == 1
    assert "a.jpg.xmp" in ran.err
    assert (photos / "a.jpg.xmp").read_text() == "mine"


def test_thresholds_from_examples(real, tmp_path, run):
    (tmp_path / "truth.csv").write_text(
        "path,labels\nreal/cat.jpg,cat\nreal/dogs.jpg,dog\nreal/mountains.jpg,mountain\n"
        "real/coffee.jpg,\n"
    )
    saved = tmp_path / "fitted.json"
    ran = run("tag", real, "--vocabulary", tmp_path / "words.txt", "--examples",
              tmp_path / "truth.csv", "--save", saved, "--threshold", "1")  # fmt: skip
    assert ran.code == 0
    assert "vehicle: no example has it" in ran.err
    assert "animal|cat: " in ran.err
    lines = {Path(x.partition(": ")[0]).stem: x for x in ran.out.splitlines()}
    assert "cat" in lines["cat"].partition(": ")[2]
    tree = json.loads(saved.read_text())
    assert 0 < tree[0]["children"][1]["threshold"] < 1
    again = run("tag", real, "--vocabulary", saved)
    assert again.out == ran.out
    # no photos: only the vocabulary is written
    alone = run("tag", "--vocabulary", tmp_path / "words.txt", "--examples",
                tmp_path / "truth.csv", "--save", saved, "--target-precision", "0.9")  # fmt: skip
    assert alone.code == 0
    assert "do not prove" in alone.err


def test_vectors_of_a_collection(real, tmp_path, run, monkeypatch):
    collection = tmp_path / "c"
    assert run("index", real, "--collection", collection).code == 0
    monkeypatch.setattr(diptych.engine.Encoder, "run_image", None)
    asked = (
        "tag",
        "--collection",
        collection,
        "--labels",
        "a cat,a mountain",
        "--threshold",
        "0.3",
    )
    ran = run(*asked, "--json")
    assert ran.code == 0
    assert {Path(r["path"]).stem: found(r) for r in ran.records}["cat"] == ["a cat"]
    one = run(*asked[:1], real / "cat.jpg", *asked[1:], "--json")
    assert [Path(r["path"]).stem for r in one.records] == ["cat"]


def test_vectors_in_a_file_of_one_s_own(model, photos, tmp_path, run):
    asked = ("tag", photos, "--labels", "a", "--threshold", "0", "--vectors", tmp_path / "v.db")
    assert run(*asked, "--model", model).code == 0
    ran = run(*asked)  # another model
    assert ran.code == 2
    assert "another model" in ran.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--labels", "a"], "no pictures"),
        (["x.jpg"], "one of the two"),
        (["x.jpg", "--labels", "a", "--vocabulary", "v.txt"], "one of the two"),
        (["x.jpg", "--labels", "a", "--save", "v.json"], "--examples"),
        (["x.jpg", "--labels", "a", "--level", "deep"], "--level"),
        (["-", "--labels", "a", "--collection", "c"], "own vectors"),
        (["x.jpg", "--vocabulary", "/no/such/file"], "no such file"),
        (["gone.jpg", "--labels", "a", "--threshold", "0"], "gone.jpg"),
    ],
)
def test_wrong_use(model, run, args, told):
    ran = run("tag", *args, "--model", model)
    assert ran.code == 2
    assert told in ran.err
