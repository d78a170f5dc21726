"""`diptych anomaly`: scores, a page, an evaluation, wrong use."""

import json
import re

import pytest

from diptych.judge.defects import write_defects


@pytest.fixture(scope="module")
def leather(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "defects"
    how = {"categories": ["leather"], "num_train": 2, "num_good": 6, "num_each": 2, "size": 96}
    return write_defects(folder, **how) / "leather"


def test_scores_by_sound_pictures(model, leather, run):
    ran = run(
        "anomaly", leather / "test", "--normal", leather / "train", "--model", model, "--json"
    )
    assert ran.code == 0
    assert len(ran.records) == 14
    first = ran.records[0]
    assert set(first) == {"path", "score", "words", "box", "size"}
    assert first["words"] is None
    assert first["size"] == [96, 96]
    assert first["box"][2] - first["box"][0] == 32


def test_lines_by_words(model, leather, run):
    ran = run("anomaly", leather / "test" / "hole", "--object", "leather", "--model", model)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert len(lines) == 2
    assert all(re.match(r"0\.\d{4}  \S+\.png  32x32\+\d+\+\d+$", line) for line in lines)


def test_a_page_with_the_most_suspect_first(leather, tmp_path, run):
    page = tmp_path / "page.html"
    ran = run("anomaly", leather / "test", "--normal", leather / "train", "--html", page, "--json",
              "--top", 3)  # fmt: skip
    assert ran.code == 0
    text = page.read_text("utf-8")
    assert text.count("<figure") == 3 and text.count("<img") == 6
    best = sorted((r["score"] for r in ran.records), reverse=True)[:3]
    assert re.findall(r"score (\d\.\d{4})", text) == [f"{x:.4f}" for x in best]
    assert "3 of 14 pictures" in text
    assert "<script" not in text


def test_an_evaluation(model, leather, run):
    ran = run("anomaly", "--evaluate", leather.parent, "--shots", 2, "--model", model, "--json")
    assert ran.code == 0
    (found,) = ran.records
    assert (found["category"], found["shots"], found["num_test"]) == ("leather", 2, 14)
    assert found["image_interval"][0] <= found["image_auroc"] <= found["image_interval"][1]
    assert 0 <= found["pixel_auroc"] <= 1
    told = run("anomaly", "--evaluate", leather, "--shots", 1, "--model", model)
    assert re.match(r"leather: image AUROC \d+\.\d \[\d+, \d+\] pixel AUROC", told.out)


def test_one_bad_picture_does_not_stop_the_others(model, leather, tmp_path, run):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG no picture")
    page = tmp_path / "page.html"
    good = leather / "test" / "hole" / "000.png"
    ran = run("anomaly", bad, good, "--normal", good, "--model", model, "--json", "--html", page)
    assert ran.code == 1
    assert "error" in ran.records[0]
    assert ran.records[1]["score"] == pytest.approx(0, abs=1e-6)
    assert page.is_file()
    ran = run("anomaly", good, "--normal", bad, "--model", model)
    assert ran.code == 2  # all sound ones must be readable
    assert "bad.png" in ran.err


def test_a_mask_that_is_missing_is_named(model, leather, tmp_path, run):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(leather, copy)
    (copy / "ground_truth" / "hole" / "001_mask.png").unlink()
    ran = run("anomaly", "--evaluate", copy, "--model", model)
    assert ran.code == 2
    assert "001_mask.png: is missing" in ran.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "one of the two"),
        (["x.png", "--evaluate", "d"], "one of the two"),
        (["x.png"], "--normal FOLDER"),
        (["x.png", "--object", "a", "--scales", "half"], "--scales"),
        (["x.png", "--object", "a", "--scales", "2"], "shares"),
        (["--evaluate", "d", "--normal", "x.png"], "go with PHOTOS"),
        (["--evaluate", "/no/such"], "no category"),
        (["gone.png", "--object", "nut"], "gone.png"),
    ],
)
def test_wrong_use(model, run, args, told):
    ran = run("anomaly", *args, "--model", model)
    assert ran.code == 2
    assert told in ran.err


def test_shots_must_be_there(model, leather, run):
    ran = run("anomaly", "--evaluate", leather, "--shots", 5, "--model", model)
    assert ran.code == 2 and "has 2 pictures" in ran.err
    ran = run("anomaly", "--evaluate", leather, "--shots", 0, "--model", model)
    assert ran.code == 2 and "--object" in ran.err


def test_a_name_that_a_page_could_obey_is_only_shown(model, leather, tmp_path, run):
    import shutil

    evil = tmp_path / "<img src=x onerror=alert(1)>.png"
    shutil.copy(leather / "test" / "hole" / "000.png", evil)
    page = tmp_path / "page.html"
    ran = run("anomaly", evil, "--object", "a", "--model", model, "--html", page, "--json")
    assert json.loads(ran.out)["path"] == str(evil)
    assert "<img src=x" not in page.read_text("utf-8")
