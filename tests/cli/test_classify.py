"""`diptych classify`: DESIGN's JSON, labels in three forms, exit codes 0, 1 and 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_json_is_one_object_a_line(run, model, photos):
    ran = run("classify", photos / "a.jpg", "--labels", "a cat,a dog", "--json", "--model", model)
    assert ran.code == 0
    (record,) = ran.records
    assert record["path"] == str(photos / "a.jpg")
    assert {x["label"] for x in record["labels"]} == {"a cat", "a dog"}
    assert sum(x["score"] for x in record["labels"]) == pytest.approx(1, abs=1e-5)


def test_a_folder_and_the_three_forms_of_labels(run, model, photos, tmp_path):
    (tmp_path / "labels.txt").write_text("a café\n\n a dog \n", encoding="utf-8")
    ran = run("classify", photos, "--labels", f"@{tmp_path / 'labels.txt'}", "--label", "a, b",
              "--json", "--model", model)  # fmt: skip
    assert ran.code == 0
    assert [r["path"] for r in ran.records] == [str(p) for p in sorted(photos.iterdir())]
    assert {x["label"] for x in ran.records[0]["labels"]} == {"a café", "a dog", "a, b"}


def test_text_for_people(run, model, photos):
    ran = run("classify", photos / "a.jpg", "--labels", "a cat,a dog", "--top", 1, "--model", model)
    lines = ran.out.splitlines()
    assert lines[0] == str(photos / "a.jpg")
    assert len(lines) == 2
    assert "%" in lines[1]


@pytest.mark.parametrize("templates", ["photo", "openai-7", "a drawing of a {}"])
def test_templates(run, model, photos, templates):
    ran = run("classify", photos, "--labels", "cat,dog", "--templates", templates, "--model", model)
    assert ran.code == 0


def test_some_inputs_failed(run, model, photos):
    (photos / "broken.jpg").write_bytes(b"<!doctype html><html>404</html>")
    ran = run(
        "classify", photos, photos / "none.jpg", "--labels", "a,b", "--json", "--model", model
    )
    assert ran.code == 1
    failed = {Path(r["path"]).name: r["error"] for r in ran.records if "error" in r}
    assert set(failed) == {"broken.jpg", "none.jpg"}
    assert "HTML" in failed["broken.jpg"]
    assert len([r for r in ran.records if "labels" in r]) == 3


def test_nothing_done(run, model, tmp_path, photos):
    ran = run("classify", tmp_path / "none.jpg", "--labels", "a,b", "--model", model)
    assert ran.code == 2
    assert "none.jpg" in ran.err
    (tmp_path / "empty").mkdir()
    ran = run("classify", tmp_path / "empty", "--labels", "a,b", "--model", model)
    assert ran.code == 2
    assert "no images" in ran.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--labels", ""], 'no labels. Give --labels "a cat,a dog"'),
        (["--labels", " , ,"], "no labels"),
        ([], "no labels"),
        (["--labels", "@nowhere.txt"], "nowhere.txt: No such file"),
        (["--labels", "a,b", "--templates", "fotos"], "Nearest: food, photo"),
        (["--labels", "a,b", "--top", "0"], "--top must be at least 1"),
        (["--label", os.fsdecode(b"caf\xe9")], "is not UTF-8"),
        (["--labels", "a,b", "--precision", "int4"], "'int4' is not one of"),
    ],
)
def test_wrong_use(run, model, photos, args, message):
    ran = run("classify", photos, "--model", model, *args)
    assert ran.code == 2
    assert message in ran.err


def test_unknown_models_name_the_nearest(run, photos):
    ran = run("classify", photos, "--labels", "a,b", "--model", "ViT-B-32/openia")
    assert ran.code == 2
    assert "ViT-B-32/openai" in ran.err
    assert "diptych models list" in ran.err


def test_stdin_holds_paths_or_one_image(run, model, photos):
    names = "\n".join(str(p) for p in sorted(photos.iterdir()))
    ran = run("classify", "-", "--labels", "a,b", "--json", "--model", model, stdin=names)
    assert [r["path"] for r in ran.records] == names.splitlines()
    zero = names.replace("\n", "\0") + "\0"
    ran = run("classify", "-", "--labels", "a,b", "--json", "--model", model, stdin=zero)
    assert [r["path"] for r in ran.records] == names.splitlines()
    image = (photos / "a.jpg").read_bytes()
    ran = run("classify", "-", "--labels", "a,b", "--json", "--model", model, stdin=image)
    assert [r["path"] for r in ran.records] == ["-"]
    assert ran.code == 0


def test_a_file_name_that_is_not_utf8(run, model, photos):
    (photos / "b.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    ran = run("classify", photos, "--labels", "a,b", "--json", "--model", model)
    assert ran.code == 0
    assert len(ran.records) == 3


@pytest.mark.parametrize("piped", [True, False])
def test_a_bar_never_stands_among_the_results(model, photos, piped):
    """On a terminal: `classify ... --json | jq` has a bar on stderr, plain `classify` has none."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "diptych.cli.main", "classify", str(photos)]
    command += ["--labels", "a,b", "--json", "--model", model]
    out = subprocess.PIPE if piped else theirs
    ran = subprocess.run(command, stdout=out, stderr=theirs, timeout=120, check=True)
    os.close(theirs)
    terminal = os.read(ours, 1 << 16)
    os.close(ours)
    assert (b"classifying" in terminal) == piped
    lines = (ran.stdout if piped else terminal).splitlines()
    paths = [str(path) for path in sorted(photos.iterdir())]
    assert [json.loads(line)["path"] for line in lines] == paths
