"""Policies as YAML: read, written, and refused with the line."""

import pytest

from diptych.errors import ConfigError
from diptych.judge.policy import Fitted, Label, Policy, read_policy, write_policy

GOOD = """\
note: for the playground
labels:
  animal:
    yes: ["a photo of an animal", a bird]
    no: a building
  food:
    yes: [food]
    no: [a stone, "no"]
    accept: 1.5
    reject: -2
"""


def read(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_policy(path)


def test_a_policy(tmp_path):
    policy = read(tmp_path, GOOD)
    assert policy.note == "for the playground" and policy.fitted is None
    animal, food = policy.labels
    assert animal == Label(
        name="animal", yes=("a photo of an animal", "a bird"), no=("a building",)
    )
    assert not animal.has_thresholds
    assert (food.accept, food.reject, food.no) == (1.5, -2.0, ("a stone", "no"))


def test_written_and_read_again(tmp_path):
    fitted = Fitted(
        model="mini", fingerprint="ab" * 32, mask_text=True, precision=0.9, recall=0.8,
        confidence=0.95,
    )  # fmt: skip
    labels = (
        Label(name="on", yes=("yes", "1"), no=("größer: als",), accept=0.1 + 0.2, reject=None),
        Label(name="2", yes=("- a",), no=("#b",)),
    )
    policy = Policy(labels=labels, fitted=fitted, note="ä: b")
    write_policy(policy, tmp_path / "x" / "p.yaml")
    assert read_policy(tmp_path / "x" / "p.yaml") == policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "where names with values should be"),
        ("- a", "where names with values should be"),
        ("labels: {}", "p.yaml:1: labels: has {}"),
        ("label: 1", "p.yaml:1: label: is not known here. Nearest: labels"),
        ("labels:\n  a:\n    yes: [x]\n", "p.yaml:2: labels.a: has no 'no:'"),
        ("labels:\n  a:\n    yes: [x]\n    no: [true]\n", "p.yaml:4: labels.a.no: has True"),
        ("labels:\n  a:\n    yes: [x]\n    no: [x]\n", "under yes and under no"),
        ("labels:\n  a:\n    yes: []\n    no: [x]\n", "p.yaml:3: labels.a.yes: has 0 sentences"),
        ("labels:\n  a:\n    yes: x\n    no: y\n    acept: 1\n", "p.yaml:5: labels.a.acept: is"),
        ("labels:\n  a:\n    yes: x\n    no: y\n    accept: .nan\n", "where a number should be"),
        ("labels:\n  a:\n    yes: x\n    no: y\n    accept: yes\n", "where a number should be"),
        ("labels:\n  a:\n    yes: x\n    no: y\n    accept: 1\n    reject: 2\n", "turn them round"),
        ("labels:\n  a:\n    yes: x\n    no: y\n  a:\n    yes: z\n    no: y\n", "p.yaml:5: 'a'"),
        ("labels:\n  a: [", "p.yaml:2: is no YAML"),
        ("labels: &x {}\nnote: *x\n", "p.yaml:2: has an alias"),
        ("labels: " + "[" * 7 + "]" * 7, "nested more than 6 deep"),
        ("labels: " + "[" * 100_000, "nested more than 6 deep"),
        ("labels: !!python/object/apply:os.system [echo]", "is no YAML"),
        (b"labels: \xff", "is not UTF-8"),
        ("#" * 1_100_000, "more than 1,048,576 bytes"),
        ("note: 2024-99-99", "is no YAML"),
        ("a\x00b", "is no YAML"),
        ("labels: {a: {yes: x, no: y}}\nfitted: {model: m}\n", "p.yaml:2: fitted: has no 'fing"),
    ],
)
def test_bad_policies(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_policy(tmp_path / "none.yaml")
