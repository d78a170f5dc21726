"""Promises of coverage and precision, kept on new draws; thresholds by hand."""

import math

import pytest
import torch

from diptych.errors import ConfigError, DataError
from diptych.eval.conformal import Conformal, Rejection


def drawn(n: int, c: int = 5, *, seed: int = 0, sharp: float = 2.0, honest: float = 0.5):
    """Probabilities of a model that is too sure of itself, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(n, c, generator=g, dtype=torch.float64)
    labels = torch.multinomial((honest * logits).softmax(1), 1, generator=g)[:, 0]
    return logits.softmax(1), labels


def covered(sets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return sets.gather(1, labels[:, None])[:, 0].double()


# --- conformal ------------------------------------------------------------------------------------


def of_two(*first: float) -> torch.Tensor:
    first = torch.tensor(first, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1)


def test_lac_by_hand():
    """Nine examples: the ceil(10 x 0.8) = 8th least of the scores 1 - p decides."""
    shares = of_two(0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3)
    fitted = Conformal(coverage=0.8).fit(shares, torch.zeros(9, dtype=torch.int64))
    assert fitted.threshold_ == pytest.approx(0.6)  # p >= 0.4
    sets = fitted.predict_sets(of_two(0.9, 0.62, 0.5, 0.3))
    assert sets.tolist() == [[True, False], [True, False], [True, True], [False, True]]


def test_aps_by_hand():
    """A score is the sum of all that is at least as likely."""
    shares = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).repeat(4, 1)
    labels = torch.tensor([0, 1, 0, 2])  # scores 0.5, 0.8, 0.5, 1.0
    fitted = Conformal(coverage=0.6, method="aps").fit(shares, labels)  # the 3rd of 4
    assert fitted.threshold_ == pytest.approx(0.8)
    new = torch.tensor([[0.1, 0.6, 0.3], [0.45, 0.45, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    sets = fitted.predict_sets(new)
    assert sets[1:].tolist() == [[False, False, False], [False, False, True]]
    assert sets[0].tolist() == [False, True, False]


def test_labels_that_score_alike_stand_or_fall_together():
    shares, labels = drawn(200)
    for kind in ({}, {"method": "aps"}, {"method": "aps", "seed": 0}):
        fitted = Conformal(coverage=0.7, **kind).fit(shares, labels)
        new = torch.tensor([[0.3, 0.3, 0.3, 0.05, 0.05]]).repeat(50, 1).double()
        for row in fitted.predict_sets(new).tolist():
            assert row[0] == row[1] == row[2]
            assert row[3] == row[4]


@pytest.mark.parametrize(
    "kind", [{}, {"method": "aps"}, {"method": "aps", "seed": 5}], ids=["lac", "aps", "drawn"]
)
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_coverage_is_as_promised(kind, coverage):
    """Mean over 300 calibrations with 99 examples: in [coverage, coverage + 1 / 100]."""
    found = []
    for seed in range(300):
        shares, labels = drawn(99 + 200, seed=seed)
        if "seed" in kind:
            kind = kind | {"seed": 1000 * seed}
        fitted = Conformal(coverage=coverage, **kind).fit(shares[:99], labels[:99])
        found.append(covered(fitted.predict_sets(shares[99:]), labels[99:]).mean())
    found = torch.stack(found)
    error = 3 * float(found.std()) / math.sqrt(300)
    assert coverage - error < float(found.mean()) < coverage + 1 / 100 + error


def test_each_class_alone_is_covered_only_if_asked():
    """Class 0 is hard: without per_class it pays for the others."""
    found = {True: [], False: []}
    for seed in range(100):
        shares, labels = drawn(600, 3, seed=seed, honest=1.0)
        hard = (torch.arange(600) % 4 == 0) & (labels == 1)
        labels = labels.masked_fill(hard, 0)
        for per_class, held in found.items():
            fitted = Conformal(coverage=0.9, per_class=per_class).fit(shares[:300], labels[:300])
            new = covered(fitted.predict_sets(shares[300:]), labels[300:])
            held.append([new[labels[300:] == i].mean() for i in range(3)])
    alone, together = (torch.tensor(found[key]).mean(0) for key in (True, False))
    assert (alone > 0.895).all()
    assert (alone < 0.93).all()
    assert together[0] < 0.87


def test_sets_are_larger_where_more_is_promised():
    shares, labels = drawn(500)
    for kind in ({}, {"method": "aps"}, {"per_class": True}):
        sizes = [
            Conformal(coverage=c, **kind).fit(shares, labels).predict_sets(shares).sum()
            for c in (0.5, 0.8, 0.95)
        ]
        assert sizes[0] < sizes[1] < sizes[2]


def test_randomised_sets_are_smaller_and_repeat():
    shares, labels = drawn(2000)
    plain = Conformal(method="aps").fit(shares, labels).predict_sets(shares)
    fitted = Conformal(method="aps", seed=1).fit(shares, labels)
    sets = fitted.predict_sets(shares)
    assert torch.equal(sets, fitted.predict_sets(shares))
    assert sets.sum() < plain.sum()


def test_blocks_change_nothing(monkeypatch):
    from diptych.eval import conformal as module

    shares, labels = drawn(300)
    kinds = ({}, {"method": "aps"}, {"method": "aps", "seed": 2})
    whole = [Conformal(**k).fit(shares, labels).predict_sets(shares) for k in kinds]
    monkeypatch.setattr(module, "_BLOCK", 64)
    for kind, sets in zip(kinds, whole, strict=True):
        assert torch.equal(Conformal(**kind).fit(shares, labels).predict_sets(shares), sets)


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19), (0.5, 1), (0.99, 99)])
def test_too_few_examples_are_refused_with_their_number(coverage, needed):
    shares, labels = drawn(needed)
    fitted = Conformal(coverage=coverage).fit(shares, labels)
    assert fitted.threshold_ == float((1 - shares.gather(1, labels[:, None])).max())
    if needed > 1:
        with pytest.raises(DataError, match=f"{needed - 1} calibration .* at least {needed}"):
            Conformal(coverage=coverage).fit(shares[1:], labels[1:])


def test_classes_with_too_few_examples_are_named():
    shares, labels = drawn(100, 3)
    labels[labels == 2] = 1
    labels[:3] = 2
    with pytest.raises(DataError, match=r"3 calibration .* class 2 \(1 of 3 classes.* 9 of each"):
        Conformal(per_class=True).fit(shares, labels)
    assert Conformal().fit(shares, labels).threshold_ > 0


def test_conformal_use_that_cannot_be():
    shares, labels = drawn(50)
    with pytest.raises(ConfigError, match="coverage=90"):
        Conformal(coverage=90).fit(shares, labels)
    with pytest.raises(ConfigError, match="seed="):
        Conformal(seed=0).fit(shares, labels)
    with pytest.raises(DataError, match="has not been fitted"):
        Conformal().predict_sets(shares)
    with pytest.raises(DataError, match="fitted on 5 classes and is given 4"):
        Conformal().fit(shares, labels).predict_sets(drawn(3, 4)[0])
    with pytest.raises(DataError, match="sums to"):
        Conformal().fit(shares / 2, labels)
    with pytest.raises(DataError, match="none of the 5 classes"):
        Conformal().fit(shares, labels - 1)


# --- none of these --------------------------------------------------------------------------------


def met(n: int, *, seed: int, unknown: float = 0.2):
    """Cosine-like scores; a part of the examples is of none of the labels, and scores lower."""
    g = torch.Generator().manual_seed(seed)
    scores = 0.05 * torch.randn(n, 4, generator=g, dtype=torch.float64) + 0.15
    labels = torch.randint(4, (n,), generator=g)
    gain = 0.12 * torch.rand(n, generator=g, dtype=torch.float64)
    scores[torch.arange(n), labels] += gain
    return scores, labels.masked_fill(torch.rand(n, generator=g) < unknown, -1)


def outcome(fitted: Rejection, seed: int) -> tuple[float, float, float]:
    """Precision, coverage of the known and false acceptance on 40,000 new examples."""
    scores, labels = met(40_000, seed=10_000 + seed % 7)
    said = fitted.predict(scores)
    kept = said >= 0
    precision = float((said == labels)[kept].double().mean()) if kept.any() else 1.0
    known = labels >= 0
    return precision, float(kept[known].double().mean()), float(kept[~known].double().mean())


def test_a_promised_precision_is_kept():
    """Fitted 150 times on 400 examples: broken at most as often as the confidence allows."""
    broken, refused, answered = 0, 0, []
    for seed in range(150):
        scores, labels = met(400, seed=seed)
        try:
            fitted = Rejection(precision=0.6, confidence=0.9).fit(scores, labels)
        except DataError:
            refused += 1
            continue
        precision, coverage, _ = outcome(fitted, seed)
        broken += precision < 0.6
        answered.append(coverage)
    assert broken <= 0.1 * 150
    assert len(answered) > 30  # it does find thresholds
    assert sum(answered) / len(answered) > 0.2


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_promised_coverage_and_false_acceptance_are_kept(confidence):
    kept = {"coverage": 0, "false_acceptance": 0}
    for seed in range(200):
        scores, labels = met(300, seed=seed)
        fitted = Rejection(coverage=0.9, confidence=confidence).fit(scores, labels)
        kept["coverage"] += outcome(fitted, seed)[1] >= 0.9
        fitted = Rejection(false_acceptance=0.2, confidence=confidence).fit(scores, labels)
        kept["false_acceptance"] += outcome(fitted, seed)[2] <= 0.2
    error = 3 * math.sqrt(confidence * (1 - confidence) / 200)
    for num in kept.values():  # at least as promised, and not by refusing or taking everything
        assert num / 200 >= confidence - error
        assert num / 200 < 1


def test_all_right_accepts_everything():
    scores, labels = torch.eye(4)[torch.arange(400) % 4].double(), torch.arange(400) % 4
    fitted = Rejection(precision=0.9).fit(scores, labels)
    assert fitted.threshold_ == -math.inf
    assert (fitted.accepted_, fitted.precision_) == (1, 1)
    assert torch.equal(fitted.predict(scores), labels)


def test_a_precision_by_hand():
    """100 sure ones that are right, 100 unsure ones that are wrong: the sure ones are answered."""
    sure = torch.tensor([[0.9, 0.1]]).repeat(100, 1)
    scores = torch.cat([sure, torch.tensor([[0.6, 0.4]]).repeat(100, 1)])
    labels = torch.cat([torch.zeros(100), torch.ones(100)]).long()
    fitted = Rejection(precision=0.9).fit(scores, labels)
    assert fitted.threshold_ == pytest.approx(0.6)
    assert (fitted.accepted_, fitted.precision_) == (0.5, 1)
    assert fitted.predict(torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8]])).tolist() == [0, -1, 1]


def test_coverage_and_false_acceptance_by_hand():
    """Order statistics: of 59 known the least is below 95 % of all with confidence 95 %."""
    scores = torch.zeros(118, 2, dtype=torch.float64)
    scores[:, 0] = torch.arange(118).double() / 200
    labels = torch.zeros(118, dtype=torch.int64)
    labels[59:] = -1
    fitted = Rejection(coverage=0.95).fit(scores, labels)
    assert fitted.threshold_ == math.nextafter(0.0, -1)
    fitted = Rejection(false_acceptance=0.05).fit(scores, labels)
    assert fitted.threshold_ == 117 / 200
    assert fitted.accepted_ == 0
    assert math.isnan(fitted.precision_)
    with pytest.raises(DataError, match=r"58 examples that have a label.* at least 59"):
        Rejection(coverage=0.95).fit(scores[1:], labels[1:])
    with pytest.raises(DataError, match=r"58 examples with the label -1.* at least 59"):
        Rejection(false_acceptance=0.05).fit(scores[:-1], labels[:-1])


def test_no_threshold_is_said_and_not_made_up():
    scores, labels = met(1000, seed=0)
    with pytest.raises(DataError, match=r"no threshold is shown to reach a precision of 0\.99"):
        Rejection(precision=0.99).fit(scores, labels)
    with pytest.raises(DataError, match=r"28 examples.* at least 29"):
        Rejection(precision=0.9).fit(scores[:28], labels[:28])
    # all right, and just enough of them
    sure = torch.eye(2)[torch.zeros(29, dtype=torch.int64)]
    assert Rejection(precision=0.9).fit(sure, torch.zeros(29).long()).accepted_ == 1


def test_no_class_is_guessed_in_a_tie():
    """Two labels that score alike are never right in what is fitted on."""
    scores, labels = torch.full((200, 2), 0.5), torch.arange(200) % 2
    with pytest.raises(DataError, match="no threshold"):
        Rejection(precision=0.4).fit(scores, labels)


def test_rejection_use_that_cannot_be():
    scores, labels = met(100, seed=0)
    for promises in ({}, {"precision": 0.5, "coverage": 0.5}):
        with pytest.raises(ConfigError, match="give one of"):
            Rejection(**promises).fit(scores, labels)
    for name in ("precision", "coverage", "false_acceptance"):
        with pytest.raises(ConfigError, match=f"{name}=1.5"):
            Rejection(**{name: 1.5}).fit(scores, labels)
    with pytest.raises(ConfigError, match="confidence=2"):
        Rejection(precision=0.5, confidence=2).fit(scores, labels)
    with pytest.raises(DataError, match="below -1"):
        Rejection(precision=0.5).fit(scores, labels - 1)
    with pytest.raises(DataError, match="has not been fitted"):
        Rejection(precision=0.5).predict(scores)
    with pytest.raises(DataError, match="not finite"):
        Rejection(coverage=0.5).fit(scores, labels).predict(scores / 0)
