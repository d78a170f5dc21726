"""Bins by hand, probabilities that are known to be right, and a temperature that is known."""

import math

import pytest
import torch

from diptych.errors import ConfigError, DataError
from diptych.eval.calibration import (
    Bin,
    Temperature,
    calibration,
    calibration_multilabel,
    reliability,
)


def of_two(*confidence: float) -> torch.Tensor:
    """Probabilities [n 2] whose first is as given."""
    first = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1)


def sampled(n: int, c: int, *, seed: int = 0, temperature: float = 1.0):
    """Logits, and labels drawn from their softmax; then they are too sharp by `temperature`."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=g, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    return temperature * logits, labels


P = of_two(0.7, 0.75, 0.9, 0.1)
Y = torch.tensor([0, 1, 0, 1])  # right, wrong, right, right; confidences .7 .75 .9 .9


def test_errors_by_hand():
    """Of 15 bins 0.7 stands in (10/15, 11/15], 0.75 in the next, 0.9 in (13/15, 14/15]."""
    found = calibration(P, Y)
    assert found["ece"] == pytest.approx((0.3 + 0.75 + 2 * 0.1) / 4)
    assert found["mce"] == pytest.approx(0.75)
    assert found["ace"] == pytest.approx((0.3 + 0.75 + 0.1) / 3)
    assert found["ece_equal_mass"] == pytest.approx((0.3 + 0.75 + 2 * 0.1) / 4)
    squares = 2 * (0.3**2 + 0.75**2 + 0.1**2 + 0.1**2) / 4
    assert found["brier"] == pytest.approx(squares)
    logs = math.log(0.7) + math.log(0.25) + 2 * math.log(0.9)
    assert found["nll"] == pytest.approx(-logs / 4)


def test_reliability_by_hand():
    found = reliability(P, Y, bins=10)
    assert [b[:3] for b in found] == [(0.6, 0.7, 1), (0.7, 0.8, 1), (0.8, 0.9, 2)]
    assert found[1] == Bin(0.7, 0.8, 1, 0.75, 0.0)
    assert found[2] == pytest.approx((0.8, 0.9, 2, 0.9, 1.0))
    low, high = reliability(P, Y, bins=2, equal="mass")
    # the median of .7 .75 .9 .9 is .825
    assert low == pytest.approx((0, 0.825, 2, 0.725, 0.5))
    assert high == pytest.approx((0.825, 1, 2, 0.9, 1.0))


def test_bins_are_open_below_and_closed_above():
    found = reliability(of_two(0.5, 0.75, 1.0), torch.zeros(3, dtype=torch.int64), bins=4)
    assert [(b.low, b.high, b.n) for b in found] == [(0.25, 0.5, 1), (0.5, 0.75, 1), (0.75, 1, 1)]


def test_equal_confidences_are_never_torn_apart():
    labels = torch.zeros(100, dtype=torch.int64)
    (one,) = reliability(of_two(*[0.7] * 100), labels, equal="mass")
    assert one.n == 100
    assert sum(b.n for b in reliability(sampled(1000, 4)[0].softmax(1), labels.repeat(10))) == 1000


def test_a_tie_for_the_largest_is_wrong():
    found = calibration(torch.full((6, 4), 0.25), torch.arange(6) % 4)
    assert found["ece"] == pytest.approx(0.25)


def test_where_all_bins_err_to_one_side_the_binning_does_not_matter():
    logits, labels = sampled(5000, 8, temperature=3)
    shares = logits.softmax(1)
    right = (shares.argmax(1) == labels).double()
    gap = float(shares.amax(1).mean() - right.mean())
    assert all(b.confidence > b.accuracy for b in reliability(shares, labels, bins=4))
    ece = sum(
        b.n / 5000 * abs(b.confidence - b.accuracy) for b in reliability(shares, labels, bins=4)
    )
    assert ece == pytest.approx(gap, abs=1e-12)


def test_true_probabilities_are_calibrated():
    logits, labels = sampled(100_000, 5)
    found = calibration(logits.softmax(1), labels)
    assert found["ece"] < 0.01
    assert found["ece_equal_mass"] < 0.01
    assert calibration((3 * logits).softmax(1), labels)["ece"] > 0.1


def test_half_precision_is_taken():
    logits, labels = sampled(200, 50)
    exact = calibration(logits.softmax(1), labels)
    for dtype in (torch.float32, torch.float16):
        assert calibration(logits.softmax(1).to(dtype), labels) == pytest.approx(exact, abs=0.02)


def test_a_probability_of_0_does_not_make_a_figure_infinite():
    found = calibration(of_two(1.0, 1.0), torch.tensor([0, 1]))
    assert found["nll"] == pytest.approx(149 * math.log(2) / 2)
    assert found["brier"] == 1


# --- each label alone -----------------------------------------------------------------------------


def test_multilabel_by_hand():
    shares = torch.tensor([[0.9, 0.2], [0.9, 0.2]], dtype=torch.float64)
    truth = torch.tensor([[True, False], [False, False]])
    found = calibration_multilabel(shares, truth)
    assert found["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)
    assert found["mce"] == pytest.approx(0.4)
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.04 + 0.04) / 4)
    logs = math.log(0.9) + math.log(0.1) + 2 * math.log(0.8)
    assert found["nll"] == pytest.approx(-logs / 4)


def test_multilabel_of_true_probabilities():
    shares = torch.rand(2000, 20, dtype=torch.float64)
    assert calibration_multilabel(shares, torch.rand(2000, 20) < shares)["ece"] < 0.02
    assert calibration_multilabel(shares, torch.rand(2000, 20) < shares**3)["ece"] > 0.2


# --- temperature ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.7, 20.0])
def test_a_known_temperature_is_found(factor):
    logits, labels = sampled(40_000, 6, temperature=factor)
    fitted = Temperature().fit(logits, labels)
    assert fitted.temperature_ == pytest.approx(factor, rel=0.03)
    assert fitted.bounded_ == ""
    assert calibration(fitted.predict_proba(logits), labels)["ece"] < 0.015


def test_no_neighbour_is_better():
    logits, labels = sampled(300, 9, temperature=2.5)
    at = Temperature().fit(logits, labels).temperature_

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, labels))

    assert nll(at) < min(nll(at * 1.0001), nll(at / 1.0001))
    slope = (nll(at * 1.00001) - nll(at / 1.00001)) / 2e-5
    assert abs(slope) < 1e-6


def test_report_says_before_and_after():
    fitted = Temperature().fit(*sampled(4000, 6, temperature=4))
    logits, labels = sampled(4000, 6, temperature=4, seed=1)
    found = fitted.report(logits, labels)
    assert found["ece_before"] == calibration(logits.softmax(1), labels)["ece"] > 0.15
    assert found["ece_after"] < 0.03
    assert found["nll_after"] < found["nll_before"]
    assert set(found) == {
        f"{key}_{way}" for key in ("ece", "ece_equal_mass", "nll") for way in ("before", "after")
    }


def test_log_probabilities_are_logits():
    logits, labels = sampled(500, 5, temperature=2)
    at = Temperature().fit(logits, labels).temperature_
    assert Temperature().fit(logits.log_softmax(1), labels).temperature_ == pytest.approx(at, 1e-9)


def test_temperatures_without_an_optimum_are_bounded_and_say_so():
    logits = 10 * torch.eye(4)
    right = Temperature().fit(logits, torch.arange(4))
    assert (right.temperature_, right.bounded_) == (0.01, "low")
    assert torch.equal(right.predict_proba(logits), torch.eye(4, dtype=torch.float64))
    wrong = Temperature().fit(logits, (torch.arange(4) + 1) % 4)
    assert (wrong.temperature_, wrong.bounded_) == (100, "high")
    # a fit leaves nothing of the one before
    assert wrong.fit(*sampled(500, 4)).bounded_ == ""


def test_blocks_change_nothing(monkeypatch):
    from diptych.eval import calibration as module

    logits, labels = sampled(333, 7, temperature=2)
    whole = calibration(logits.softmax(1), labels), Temperature().fit(logits, labels).temperature_
    monkeypatch.setattr(module, "_BLOCK", 64)
    parts = calibration(logits.softmax(1), labels), Temperature().fit(logits, labels).temperature_
    assert parts[0] == pytest.approx(whole[0], abs=1e-12)
    assert parts[1] == pytest.approx(whole[1], rel=1e-10)


# --- what cannot be measured ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "labels", "told"),
    [
        (torch.tensor([[0.5, 0.5], [0.5, 0.4]]), [0, 0], "row 1 .* sums to 0.9"),
        (torch.tensor([[1.5, -0.5]]), [0], "2 of 2 numbers"),
        (torch.tensor([[math.nan, 1.0]]), [0], "1 of 2 numbers"),
        (torch.tensor([[0.5, 0.5]]), [2], "none of the 2 classes"),
        (torch.tensor([[0.5, 0.5]]), [0, 0], "n labels"),
        (torch.zeros(0, 2), [], "at least one row"),
        (torch.zeros(3), [0, 0, 0], "at least one row"),
    ],
)
def test_what_is_no_distribution(probabilities, labels, told):
    labels = torch.tensor(labels, dtype=torch.int64)
    for measure in (calibration, reliability):
        with pytest.raises(DataError, match=told):
            measure(probabilities, labels)


def test_other_wrong_use():
    with pytest.raises(ConfigError, match="bins=0"):
        reliability(P, Y, bins=0)
    with pytest.raises(DataError, match="has not been fitted"):
        Temperature().predict_proba(P)
    with pytest.raises(DataError, match="1 class"):
        Temperature().fit(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="not finite"):
        Temperature().fit(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]))
    with pytest.raises(DataError, match=r"torch\.bool"):
        calibration_multilabel(P, (P > 0.5).long())
    with pytest.raises(DataError, match="shape"):
        calibration_multilabel(P, P[:1] > 0.5)
    with pytest.raises(DataError, match="numbers are no prob"):
        calibration_multilabel(P + 1, P > 0.5)
