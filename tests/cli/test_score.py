"""`diptych score`: captions, lists, agreement, heads."""

import csv
import json

import pytest
import torch

import diptych
from diptych.judge.aesthetics import read_head


@pytest.fixture
def pairs(photos):
    path = photos / "pairs.csv"
    with path.open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["image", "caption", "references", "rating"])
        for i, name in enumerate(("a.jpg", "b.png", "c, with a comma.png", "a.jpg")):
            write.writerow([name, f"caption {i}", json.dumps([f"right {i}"]), i if i else ""])
            write.writerow([name, f"another {i}", f"right {i}", 3 - i])
    return path


def test_texts_of_images(run, photos, model):
    done = run("score", photos, "--text", "a dog", "--text", "a cat", "--json", "--model", model)
    assert done.code == 0, done.err
    *rows, last = done.records
    assert len(rows) == 6 and rows[0]["caption"] == "a dog" and rows[0]["path"].endswith("a.jpg")
    enc = diptych.load(model)
    cosine = enc.similarity(rows[0]["path"], ["A photo depicts a dog"])[0, 0]
    assert rows[0]["score"] == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    summary = last["summary"]
    assert summary["score"] == pytest.approx(sum(r["score"] for r in rows) / 6)
    assert summary["num"] == 6 and summary["name"].startswith("CLIP score of ")
    assert (summary["convention"], summary["prefix"]) == ("clipscore", "A photo depicts ")


def test_a_list_with_references_and_ratings(run, pairs):
    done = run("score", pairs, "--references", "--ratings", "rating", "--json")
    assert done.code == 0, done.err
    rows = [r for r in done.records if "path" in r]
    assert len(rows) == 8 and all("reference_score" in row for row in rows)
    first, second = (r for r in done.records if "agreement" in r)
    assert (first["agreement"], second["agreement"]) == ("score", "reference_score")
    assert (first["num"], first["skipped"]) == (7, 1)
    assert -1 <= first["kendall_c"] <= 1
    told = run("score", pairs, "--references", "--ratings", "rating").out
    assert "Kendall tau-c" in told and "by its code's rule" in told and "1 were no numbers" in told


def test_an_agreement_that_cannot_be_measured_is_an_error(run, photos, model):
    (photos / "x.csv").write_text("path,caption,r\na.jpg,x,1\nb.png,y,2\n")
    done = run("score", photos / "x.csv", "--ratings", "r", "--model", model)
    assert done.code == 1 and "CLIP score of" in done.out
    assert "agreement needs 3 items" in done.err


def test_what_fails_is_named_and_counted(run, photos, model):
    path = photos / "x.jsonl"
    rows = [{"path": name, "caption": "x"} for name in ("a.jpg", "gone.jpg")] + [{"path": "b.png"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    done = run("score", path, "--json", "--model", model)
    assert done.code == 1
    errors = [r["error"] for r in done.records if "error" in r]
    assert any("gone.jpg" in error for error in errors)
    assert any("x.jsonl:3: no caption" in error for error in errors)
    assert done.records[-1]["summary"]["dropped"] == {"no caption": 1}
    assert done.records[-1]["summary"]["errors"] == 1
    path.write_text(json.dumps(rows[2]))
    assert run("score", path, "--model", model).code == 2


def test_a_folder_with_texts(run, photos, model):
    (photos / "a.txt").write_text("one " * 100)
    done = run("score", photos, "--model", model)
    assert done.code == 1  # two pictures have no caption
    assert "1 cut" in done.out and "2 dropped: no caption" in done.out
    done = run("score", photos, "--long", "windows", "--model", model)
    assert "in windows" in done.out and "cut" not in done.out


def test_torchmetrics_has_no_references(run, pairs, model):
    done = run("score", pairs, "--references", "--convention", "torchmetrics", "--model", model)
    assert done.code == 2 and "no references" in done.err


def test_a_head(run, photos, model, tmp_path):
    torch.save(torch.nn.Linear(24, 1).state_dict(), tmp_path / "h.pth")
    head = ("score", photos, "--aesthetics", tmp_path / "h.pth", "--json", "--model", model)
    done = run(*head)
    assert done.code == 2 and "--any-model" in done.err
    done = run(*head, "--any-model")
    assert done.code == 0 and len(done.records) == 3
    known = read_head(tmp_path / "h.pth")
    vector = diptych.load(model).encode_image(done.records[0]["path"])[0]
    expected = float(known.weight @ torch.from_numpy(vector).double()) + known.bias
    assert done.records[0]["score"] == pytest.approx(expected, abs=1e-5)
    torch.save(torch.nn.Linear(768, 1).state_dict(), tmp_path / "h.pth")
    assert "takes vectors of 768" in run(*head, "--any-model").err


def test_a_head_of_one_s_own(run, photos, model, tmp_path):
    path = photos / "rated.csv"
    names = ["a.jpg", "b.png"] * 15
    path.write_text("path,stars\n" + "".join(f"{n},{i % 5}\n" for i, n in enumerate(names)))
    out = tmp_path / "own.safetensors"
    done = run("score", path, "--fit-head", out, "--ratings", "stars", "--model", model)
    assert done.code == 0, done.err
    assert "fitted on 22 pictures" in done.out
    done = run("score", photos, "--aesthetics", out, "--model", model)
    assert done.code == 0 and len(done.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--text", "a", "--aesthetics", "h"), "one of --text, --aesthetics"),
        (("--text", "a", "--ratings", "r"), "name columns of a list"),
        (("--fit-head", "x"), "needs --ratings"),
        (("--aesthetics", "laion-v3"), "laion-v"),
        (("--text", " "), "text is empty"),
        (("more.jpg",), "give one list or folder"),
    ],
)
def test_wrong_use(run, pairs, model, arguments, says):
    done = run("score", pairs, *arguments, "--model", model)
    assert done.code == 2
    assert says in done.err
