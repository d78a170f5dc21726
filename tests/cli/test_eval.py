"""`diptych eval`: sets, run, compare, overlap, as people type them."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from diptych.cli.main import cli
from diptych.engine.prompts import TEMPLATE_SETS
from diptych.eval.classes import CLASS_LISTS
from diptych.eval.sets import SETS
from diptych.eval.sets.names import names_for

SAMPLES = Path(__file__).parents[2] / "src" / "diptych" / "assets" / "samples"


def run(*arguments, code=0):
    done = CliRunner().invoke(cli, ["eval", *map(str, arguments)])
    assert done.exit_code == code, done.output + done.stderr + repr(done.exception)
    return done


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def mine(tmp_path):
    for name in ("cat", "dog", "bee", "guitar"):
        folder = tmp_path / "mine" / "test" / name
        folder.mkdir(parents=True)
        shutil.copy(SAMPLES / f"{name}.jpg", folder)
    return tmp_path / "mine"


def test_a_folder_of_ones_own(mine, tmp_path):
    out = tmp_path / "report"
    done = run("run", "mini", "--sets", mine, "--out", out)
    assert done.stdout.startswith("mine ")
    assert "chance 25.0%, 4 samples" in done.stdout
    assert (out / "report.html").is_file()
    assert "measured before" in run("run", "mini", "--sets", mine, "--out", out).stdout
    (found,) = lines(run("run", "mini", "--sets", mine, "--out", out, "--json"))
    assert found["headline"] == "top1"
    assert found["kept"]
    assert found["low"] <= found["value"] <= found["high"]


def test_what_cannot_be_read_is_told_and_the_exit_code_says_so(mine, tmp_path):
    (mine / "test" / "dog" / "torn.jpg").write_bytes(b"torn")
    done = run("run", "mini", "--sets", mine, "--out", tmp_path / "report", code=1)
    assert "not used: 1; the first: " in done.stdout
    assert "torn.jpg" in done.stdout


def test_captions_make_it_a_retrieval(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = ["image,caption"]
    for name in ("cat", "dog", "bee"):
        shutil.copy(SAMPLES / f"{name}.jpg", folder)
        rows.append(f"{name}.jpg,a photo of a {name}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    (found,) = lines(run("run", "mini", "--sets", folder, "--out", tmp_path / "out", "--json"))
    assert (found["headline"], found["num_measured"]) == ("mean_r1", 3)


def test_wrong_use(tmp_path):
    nowhere = run("run", "mini", "--sets", tmp_path / "nope", "--out", tmp_path / "out", code=2)
    assert "no such folder" in nowhere.stderr
    wrong = run("run", "mini", "--sets", "fod101", code=2)
    assert "Nearest: food101" in wrong.stderr
    absent = run("run", "mini", "--sets", "food101", "--out", tmp_path / "out", code=2)
    assert "--data FOLDER" in absent.stderr
    (tmp_path / "empty").mkdir()
    empty = run("run", "mini", "--sets", tmp_path / "empty", "--out", tmp_path / "out", code=2)
    assert "classification: " in empty.stderr
    assert "retrieval: " in empty.stderr
    nothing = run("compare", tmp_path / "empty", tmp_path / "empty", code=2)
    assert "no result of `diptych eval run`" in nothing.stderr


def test_sets_are_listed_with_where_they_come_from():
    rows = {row["set"]: row for row in lines(run("sets", "--json"))}
    assert set(rows) == set(SETS)
    for name, row in rows.items():
        assert row["source"], name
        assert row["licence"], name
    assert "food101" in run("sets", "paper").stdout
    assert len(run("sets", "imagenet*").stdout.splitlines()) > 4


def test_rows_name_prompts_and_classes_that_there_are():
    for row in SETS.values():
        assert row.templates is None or row.templates in TEMPLATE_SETS, row.name
        if row.classes is not None:
            names = names_for(row).names
            assert len(names) == len(CLASS_LISTS[row.classes].names), row.name
            assert row.num_classes in (None, len(names)), row.name


def test_two_models(mine, tmp_path):
    for name, precision in (("a", "fp32"), ("b", "bf16")):
        arguments = ("--sets", f"{mine},rendered-reviews", "--precision", precision)
        run("run", "mini", *arguments, "--out", tmp_path / name)
    shown = run("compare", tmp_path / "a", tmp_path / "b").stdout
    assert "mini -> mini" in shown
    assert "top1" in shown
    (found,) = lines(run("compare", tmp_path / "a", tmp_path / "b", "--json"))
    assert {line["set"] for line in found["sets"]} == {"mine", "rendered-reviews"}
    assert all(0 <= line["p"] <= line["p_holm"] <= 1 for line in found["sets"])


def test_overlap_by_name_with_the_accuracy_without_it(tmp_path):
    train = tmp_path / "train"
    train.mkdir()
    shutil.copy(SAMPLES / "dog.jpg", train / "other-name.jpg")
    shutil.copy(SAMPLES / "rocket.jpg", train)
    (train / "torn.jpg").write_bytes(b"torn")
    report = tmp_path / "report"
    run("run", "mini", "--sets", "samples", "--out", report)
    done = run("overlap", train, "samples", "--report", report, code=1)
    assert "2 of 28 pictures (7.1%) are among the 2 of training" in done.stdout
    assert "other-name.jpg (same bytes" in done.stdout
    assert "(26 samples), on them" in done.stdout
    assert "torn.jpg" in done.stderr
    (found,) = lines(run("overlap", train, "samples", "--report", report, "--json", code=1))
    assert found["accuracy"]["num_overlap"] == 2
    assert [Path(line["path"]).name for line in found["unused"]] == ["torn.jpg"]
    no_set = run("overlap", train, train, "--report", report, code=2)
    assert "is no set" in no_set.stderr


def test_overlap_of_two_folders(mine, tmp_path):
    done = run("overlap", SAMPLES, mine)
    assert "4 of 4 pictures (100.0%)" in done.stdout
