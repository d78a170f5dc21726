"""`diptych moderate`: thresholds from examples, verdicts, text on and off."""

import pytest
from PIL import Image, ImageDraw, ImageFont

from diptych.judge.policy import read_policy

POLICY = """\
labels:
  animal:
    yes: [a dog, a cat]
    no: [a house]
  food: {yes: bread, no: a stone}
"""


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def examples(photos):
    for i in range(20):
        Image.new("RGB", (40, 40), (12 * i, 99, 255 - 12 * i)).save(photos / f"e{i}.png")
    rows = [f"e{i}.png,{'animal' if i < 10 else ''}{';food' if i % 2 else ''}" for i in range(20)]
    (photos / "labelled.csv").write_text("path,labels\n" + "\n".join(rows))
    return photos / "labelled.csv"


def test_without_thresholds_it_is_a_guess_and_says_so(run, policy, photos, model):
    done = run("moderate", "check", policy, photos, "--json", "--model", model)
    assert done.code == 0
    assert "Warning: labels without thresholds" in done.err
    assert len(done.records) == 3
    row = done.records[0]
    assert [label["label"] for label in row["labels"]] == ["animal", "food"]
    for label in row["labels"]:
        assert label["verdict"] == ("yes" if label["score"] > 0 else "no")


def test_fit_and_check(run, policy, examples, model, tmp_path):
    out = tmp_path / "fitted.yaml"
    fit = ("moderate", "fit", policy, "--examples", examples, "--model", model)
    done = run(*fit, "--out", out, "--json")
    assert done.code == 0, done.err
    animal, _ = done.records
    assert animal["num"] == 10 and animal["positives"] == 5
    assert animal["accept"] is None  # too few to promise anything
    fitted = read_policy(out)
    assert fitted.fitted.precision == 0.9
    done = run("moderate", "check", out, examples.parent / "e1.png", "--model", model)
    assert done.code == 0 and done.out.count("unsure") == 2
    loose = ("--target-precision", "0.5", "--target-recall", "0.5", "--confidence", "0.5")
    assert run(*fit, "--out", out, *loose).code == 0
    assert read_policy(out).fitted.recall == 0.5
    assert "held out: 10 pictures" in run(*fit, "--out", out).out
    one = ("moderate", "check", out, examples.parent / "e1.png")
    wrong = run(*one, "--model", model, "--mask-text")
    assert wrong.code == 2 and "set without --mask-text" in wrong.err
    assert run(*one).code == 2  # mini


def test_printed_text_is_shown_where_it_decides(run, policy, photos, model):
    picture = Image.new("RGB", (400, 200), (120, 160, 200))
    font = ImageFont.load_default(60)
    ImageDraw.Draw(picture).text((20, 60), "taxi free", font=font, fill="black")
    picture.save(photos / "words.png")
    done = run("moderate", "check", policy, photos / "words.png", photos / "a.jpg",
               "--mask-text", "--json", "--model", model)  # fmt: skip
    words, plain = done.records
    assert words["printed_text"] and not plain["printed_text"]
    for label in words["labels"]:
        same = label["with_text"] == label["without_text"]
        assert label["verdict"] == (label["with_text"] if same else "unsure")


def test_failures_are_named(run, policy, photos, model, tmp_path):
    (photos / "bad.jpg").write_bytes(b"nothing")
    done = run("moderate", "check", policy, photos, "--json", "--model", model)
    assert done.code == 1
    (error,) = [r for r in done.records if "error" in r]
    assert "bad.jpg" in error["error"]
    assert run("moderate", "check", policy, photos / "bad.jpg", "--model", model).code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [("labels: [", "policy.yaml:1: is no YAML"), ("labels: {a: {yes: x}}", "has no 'no:'")],
)
def test_bad_policies(run, policy, photos, model, text, says):
    policy.write_text(text)
    done = run("moderate", "check", policy, photos, "--model", model)
    assert done.code == 2 and says in done.err


def test_bad_examples(run, policy, photos, model, tmp_path):
    (photos / "x.csv").write_text("path,labels\na.jpg,anmal\n")
    done = run("moderate", "fit", policy, "--examples", photos / "x.csv", "--out", tmp_path / "o",
               "--model", model)  # fmt: skip
    assert done.code == 2 and "x.csv:2" in done.err and "animal" in done.err
    assert not (tmp_path / "o").exists()
