"""Effective robustness: the line of supervised models, hand-computed, and its picture."""

import json
import math
from importlib import resources

import pytest

from diptych.errors import ConfigError, DataError
from diptych.eval.robustness import SHIFTS, effective_robustness, line_of, robustness_section


def test_a_supervised_model_is_on_the_line():
    line = line_of("imagenet-v2")
    for model, x, y in line.points:
        rho = effective_robustness(x, y, "imagenet-v2")
        assert abs(rho) < 0.01, model
    assert line.spread < 0.004


def test_the_line_is_least_squares_between_logits():
    line = line_of("imagenet-sketch")
    xs = [math.log(x / (1 - x)) for _, x, _ in line.points]
    errors = [
        math.log(y / (1 - y)) - line.slope * x - line.intercept
        for x, (_, _, y) in zip(xs, line.points, strict=True)
    ]
    assert sum(errors) == pytest.approx(0, abs=1e-9)
    assert sum(e * x for e, x in zip(errors, xs, strict=True)) == pytest.approx(0, abs=1e-9)
    middle = sum(xs) / len(xs)
    expected = 1 / (1 + math.exp(-(line.slope * middle + line.intercept)))
    assert line.at(1 / (1 + math.exp(-middle))) == pytest.approx(expected)


def test_published_clip_is_above_the_line():
    """open_clip's table: ViT-L-14-336 76.56, V2 70.89, R 89.05, Sketch 61.00."""
    assert effective_robustness(0.7656, 0.7089, "imagenet-v2") == pytest.approx(0.0642, abs=5e-4)
    assert effective_robustness(0.7656, 0.8905, "imagenet-r") > 0.5
    assert effective_robustness(0.7656, 0.6100, "imagenet-sketch") > 0.3


def test_the_points_are_sane():
    file = resources.files("diptych").joinpath("assets/robustness.json")
    data = json.loads(file.read_text("utf-8"))
    assert "pytorch-image-models" in data["source"]
    names = [row["model"] for row in data["points"]]
    assert len(set(names)) == len(names) >= 30
    for row in data["points"]:
        assert 0 <= row["imagenet-a"] < row["imagenet-r"] < row["imagenet"] < 90
        assert row["imagenet-v2"] < row["imagenet"] < row["imagenet as r"] < 98
        foreign = ("in21k", "in22k", "in12k", "clip", "ssl", "wsl", "dist", "ns_jft", "mae")
        assert not any(mark in row["model"] for mark in foreign)
    assert len(line_of("imagenet-a").points) == len(names) - 1  # without the ResNet-50


def test_two_hundred_classes_are_another_axis():
    whole = effective_robustness(0.7656, 0.8, "imagenet-r")
    same = effective_robustness(0.92, 0.8, "imagenet-r", same_classes=True)
    assert whole != same
    assert line_of("imagenet-v2") == line_of("imagenet-v2", same_classes=True)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.5), (1.0, 0.5), (76.5, 70.8), (0.5, 1.1)])
def test_accuracies_out_of_range(x, y):
    with pytest.raises(DataError, match="shares"):
        effective_robustness(x, y, "imagenet-v2")


def test_a_tiny_accuracy_does_not_overflow():
    assert effective_robustness(1e-300, 0.0, "imagenet-a") == pytest.approx(0)


def test_a_set_without_a_line():
    with pytest.raises(ConfigError, match="no supervised models are known for 'objectnet'"):
        line_of("objectnet")


def test_the_section_of_the_report():
    values = {"imagenet": 0.7656, "imagenet-v2": 0.7089, "imagenet-a": 0.7748, "food101": 0.9}
    html = robustness_section(values)
    assert html.count("<svg") == 2
    assert "<b>+6.4</b>" in html
    assert "resnet50.tv_in1k" in html
    assert robustness_section({"imagenet": 0.7}) == ""
    assert robustness_section({"imagenet-v2": 0.7}) == ""
    assert robustness_section({"imagenet": 0.0, "imagenet-v2": 0.0}) == ""
    assert set(SHIFTS) >= {"imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r"}
