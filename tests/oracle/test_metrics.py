"""Figures, intervals, calibration and temperature against scikit-learn, netcal, scipy and others.

Random inputs that are a bit right: a model that is sure of some wrong answers and unsure of some
right ones, so that the bins of a calibration err to both sides.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from report import record
from scipy import optimize, stats
from sklearn import metrics as sk

from diptych.eval import metrics, uncertainty
from diptych.eval.binomial import at_least
from diptych.eval.calibration import Temperature, calibration, calibration_multilabel, reliability

SECTION = "Metrics"
N, C = 3000, 20
SKLEARN, SCIPY = "scikit-learn", "scipy"


@pytest.fixture(scope="module")
def one() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in float64 and labels of unequal classes."""
    g = torch.Generator().manual_seed(0)
    labels = (C * torch.rand(N, generator=g) ** 2).long()
    scores = torch.randn(N, C, generator=g, dtype=torch.float64)
    scores[torch.arange(N), labels] += 1.5
    return scores, labels


@pytest.fixture(scope="module")
def shares(one) -> torch.Tensor:
    """Probabilities, too sure in one half and too unsure in the other, without a constant error."""
    scale = torch.where(torch.arange(N) % 2 == 0, 3.0, 0.6)[:, None]
    found = (scale * one[0]).softmax(1)
    signs = [b.accuracy > b.confidence for b in reliability(found, one[1])]
    assert 0.1 < sum(signs) / len(signs) < 0.9  # mixed: the binnings do not all say the same
    return found


@pytest.fixture(scope="module")
def many() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and any number of true labels, some equal scores, and one class without any."""
    g = torch.Generator().manual_seed(1)
    truth = torch.rand(1000, 12, generator=g) < torch.linspace(0.02, 0.5, 12)
    scores = torch.randn(1000, 12, generator=g, dtype=torch.float64) + truth
    return scores, truth


def test_classification(one):
    scores, labels = one
    found = metrics.classification(scores, labels)
    wide, said = scores.numpy(), scores.argmax(1)
    for k in (1, 5):
        theirs = sk.top_k_accuracy_score(labels, wide, k=k, labels=np.arange(C))
        record(SECTION, f"top-{k} accuracy", abs(found[f"top{k}"] - theirs), 1e-12, SKLEARN)
    theirs = sk.balanced_accuracy_score(labels, said)
    record(SECTION, "mean per class", abs(found["mean_per_class"] - theirs), 1e-12, SKLEARN)
    theirs = sk.f1_score(labels, said, labels=np.unique(labels), average="macro")
    record(SECTION, "macro F1", abs(found["macro_f1"] - theirs), 1e-12, SKLEARN)
    assert abs(found["mean_per_class"] - found["top1"]) > 1e-3
    assert abs(found["macro_f1"] - found["top1"]) > 1e-3
    table = metrics.per_class(scores, labels)
    theirs = sk.precision_recall_fscore_support(
        labels, said, labels=np.arange(C), zero_division=np.nan
    )
    for name, row in zip(("precision", "recall", "f1", "num"), theirs, strict=True):
        difference = np.abs(table[name].numpy() - row).max()
        record(SECTION, f"{name} of each class", difference, 1e-12, SKLEARN)
    wrong = (metrics.confusion(scores, labels).numpy() != sk.confusion_matrix(labels, said)).sum()
    record(SECTION, "confusion matrix, cells that differ", wrong, 0, SKLEARN)


def test_classes_that_do_not_occur_do_not_count(one):
    """scikit-learn's own default for macro F1 counts one that is only predicted as 0."""
    scores, labels = one[0], one[1].clamp(max=C - 4)
    found = metrics.classification(scores, labels)["macro_f1"]
    said = scores.argmax(1)
    own = sk.f1_score(labels, said, labels=np.unique(labels), average="macro")
    record(SECTION, "macro F1, classes without an image", abs(found - own), 1e-12, SKLEARN)
    assert sk.f1_score(labels, said, average="macro", zero_division=0) < own - 0.01


def test_accuracy_of_clip_benchmark(one, monkeypatch):
    from clip_benchmark.metrics import zeroshot_classification as theirs

    # `float` of an array with one number is no longer taken by numpy 2.4
    monkeypatch.setattr(theirs, "float", lambda x: np.asarray(x).item(), raising=False)
    found = metrics.classification(*one)
    for k, value in zip((1, 5), theirs.accuracy(*one, topk=(1, 5)), strict=True):
        record(SECTION, f"top-{k} accuracy", abs(found[f"top{k}"] - value), 1e-7, "clip-benchmark")


def test_worst_group(one):
    """The least accuracy over groups, as scikit-learn computes each."""
    scores, labels = one
    groups = [f"region {i % 7}" for i in range(N)]
    found = metrics.classification(scores, labels, groups=groups, worst_without=["region 3"])
    parts = [[i for i in range(N) if i % 7 == g] for g in range(7) if g != 3]
    for k in (1, 5):
        theirs = min(
            sk.top_k_accuracy_score(labels[p], scores[p].numpy(), k=k, labels=np.arange(C))
            for p in parts
        )
        difference = abs(found[f"worst_group_top{k}"] - theirs)
        record(SECTION, f"worst group, top-{k}", difference, 1e-12, SKLEARN)


@pytest.mark.parametrize("steps", [None, 12], ids=["scores differ", "equal scores"])
def test_ranking(many, steps):
    scores, truth = many
    what = "" if steps is None else ", equal scores"
    if steps is not None:
        scores = (scores * steps / 6).round() / steps
    own = [metrics.average_precision(scores[:, i], truth[:, i]) for i in range(12)]
    theirs = [sk.average_precision_score(truth[:, i], scores[:, i]) for i in range(12)]
    difference = np.abs(np.subtract(own, theirs)).max()
    record(SECTION, f"average precision{what}", difference, 1e-12, SKLEARN)
    found = metrics.multilabel(scores, truth)
    macro = sk.average_precision_score(truth, scores, average="macro")
    record(SECTION, f"mAP{what}", abs(found["map"] - macro), 1e-12, SKLEARN)
    points = []
    for i in range(12):
        precision, recall, _ = sk.precision_recall_curve(truth[:, i], scores[:, i])
        precision, recall = precision[:-1], recall[:-1]  # its last point is an invention
        reached = [precision[recall >= r / 10 - 1e-12].max() for r in range(11)]
        points.append(np.mean(reached))
    difference = abs(found["map_11_point"] - np.mean(points))
    record(SECTION, f"11-point mAP{what}", difference, 1e-12, f"{SKLEARN}'s curve")
    own = [metrics.roc_auc(scores[:, i], truth[:, i]) for i in range(12)]
    theirs = [sk.roc_auc_score(truth[:, i], scores[:, i]) for i in range(12)]
    difference = np.abs(np.subtract(own, theirs)).max()
    record(SECTION, f"ROC-AUC{what}", difference, 1e-12, SKLEARN)


def test_average_precision_of_clip_benchmark_and_torchmetrics(many):
    from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class
    from torchmetrics.functional.classification import multilabel_average_precision

    scores, truth = many
    own = metrics.multilabel(scores, truth)["map"]
    theirs = average_precision_per_class(scores, truth).double().mean()
    record(SECTION, "mAP", abs(own - float(theirs)), 1e-6, "clip-benchmark")
    theirs = multilabel_average_precision(scores.sigmoid(), truth.long(), num_labels=12)
    record(SECTION, "mAP", abs(own - float(theirs)), 1e-6, "torchmetrics")


def test_roc_auc_of_two_classes(one):
    scores, labels = one[0][:, :2], one[1] % 2
    theirs = sk.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    difference = abs(metrics.classification(scores, labels)["roc_auc"] - theirs)
    record(SECTION, "ROC-AUC, two classes", difference, 1e-12, SKLEARN)


# --- calibration ----------------------------------------------------------------------------------


def test_errors_of_netcal(one, shares):
    from netcal.metrics import ACE, ECE, MCE

    # quantiles that are samples would belong to the bin above them there: none are of 2,999
    own, p, y = calibration(shares[1:], one[1][1:]), shares[1:].numpy(), one[1][1:].numpy()
    for name, what, theirs in (
        ("ece", "ECE", ECE(15)),
        ("ece_equal_mass", "ECE, equal mass", ECE(15, equal_intervals=False)),
        ("mce", "MCE", MCE(15)),
        ("ace", "ACE", ACE(15)),
    ):
        difference = abs(own[name] - float(theirs.measure(p, y)))
        record(SECTION, what, difference, 1e-12, "netcal")
    assert len({round(own[k], 4) for k in ("ece", "ece_equal_mass", "mce", "ace")}) == 4


def test_errors_of_torchmetrics(one, shares):
    from torchmetrics.functional.classification import multiclass_calibration_error

    own = calibration(shares, one[1])
    for name, what, norm in (("ece", "ECE", "l1"), ("mce", "MCE", "max")):
        theirs = multiclass_calibration_error(shares, one[1], C, n_bins=15, norm=norm)
        record(SECTION, what, abs(own[name] - float(theirs)), 1e-6, "torchmetrics")


def test_brier_and_nll(one, shares):
    own, p = calibration(shares, one[1]), shares.numpy()
    theirs = sk.brier_score_loss(one[1], p, labels=np.arange(C), scale_by_half=False)
    record(SECTION, "Brier score", abs(own["brier"] - theirs), 1e-12, SKLEARN)
    theirs = sk.log_loss(one[1], p, labels=np.arange(C))
    record(SECTION, "NLL", abs(own["nll"] - theirs), 1e-12, SKLEARN)


def test_each_label_alone(many):
    from netcal.metrics import ECE
    from torchmetrics.functional.classification import binary_calibration_error

    p, truth = (1.4 * many[0] - 1).sigmoid(), many[1]
    own, flat, hits = calibration_multilabel(p, truth), p.flatten(), truth.flatten()
    theirs = ECE(15).measure(flat.numpy(), hits.numpy().astype(int))
    record(SECTION, "ECE, each label alone", abs(own["ece"] - float(theirs)), 1e-12, "netcal")
    theirs = float(binary_calibration_error(flat, hits.long(), n_bins=15))
    record(SECTION, "ECE, each label alone", abs(own["ece"] - theirs), 1e-6, "torchmetrics")
    theirs = sk.brier_score_loss(hits, flat.numpy())
    record(SECTION, "Brier score, each label alone", abs(own["brier"] - theirs), 1e-12, SKLEARN)
    theirs = sk.log_loss(hits, flat.numpy())
    record(SECTION, "NLL, each label alone", abs(own["nll"] - theirs), 1e-12, SKLEARN)


@pytest.mark.parametrize("factor", [0.3, 1.0, 8.0])
def test_temperature(one, factor):
    logits, labels = factor * one[0], one[1]
    own = Temperature().fit(logits, labels).temperature_

    def nll(log: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log), labels))

    best = optimize.minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    # a parabola's bottom is known to the root of the rounding, no better
    record(SECTION, "temperature, relative", abs(own / math.exp(best.x) - 1), 1e-6, SCIPY)
    assert nll(math.log(own)) <= best.fun + 1e-12


def test_temperature_of_netcal(one):
    from netcal.scaling import TemperatureScaling

    logits, labels = 2 * one[0], one[1]
    own = Temperature().fit(logits, labels)
    theirs = TemperatureScaling()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(logits.softmax(1).numpy(), labels.numpy())
    difference = abs(own.temperature_ * float(np.squeeze(theirs.temperature)) - 1)  # it multiplies
    record(SECTION, "temperature, relative", difference, 1e-4, "netcal")


# --- uncertainty ----------------------------------------------------------------------------------


def test_intervals_of_shares():
    worst = {"Wilson": 0.0, "Clopper-Pearson": 0.0}
    for hits, n in [(0, 10), (1, 7), (15, 50), (333, 1000), (1000, 1000), (41_234, 50_000)]:
        test = stats.binomtest(hits, n)
        for name, method, own in (
            ("Wilson", "wilson", uncertainty.wilson(hits / n, n)),
            ("Clopper-Pearson", "exact", uncertainty.clopper_pearson(hits, n)[:2]),
        ):
            theirs = test.proportion_ci(0.95, method=method)
            difference = max(abs(own[0] - theirs.low), abs(own[1] - theirs.high))
            worst[name] = max(worst[name], difference)
    record(SECTION, "Wilson's interval", worst["Wilson"], 1e-7, SCIPY)  # z in seven digits
    record(SECTION, "Clopper-Pearson's interval", worst["Clopper-Pearson"], 1e-10, SCIPY)


def test_tail_of_the_binomial():
    rng, worst = np.random.default_rng(0), 0.0
    for n in (3, 60, 1000, 50_000):
        for p in rng.random(30):
            near = int(np.clip(rng.normal(n * p, 3 * math.sqrt(n * p * (1 - p))), 0, n))
            worst = max(worst, abs(at_least(near, n, p) - stats.binom.sf(near - 1, n, p)))
    record(SECTION, "tail of the binomial, n to 50,000", worst, 1e-9, SCIPY)


def test_mcnemar():
    g, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(50):
        a, b = torch.rand(2, 200, generator=g) < torch.tensor([[0.7], [0.6]])
        only = int((a & ~b).sum()), int((~a & b).sum())
        theirs = stats.binomtest(only[0], sum(only), 0.5).pvalue
        worst = max(worst, abs(uncertainty.mcnemar(a, b) - theirs))
    record(SECTION, "McNemar's exact p", worst, 1e-12, f"{SCIPY}'s binomial test")


@pytest.mark.parametrize(("method", "name"), [("percentile", "percentiles"), ("bca", "BCa")])
@pytest.mark.parametrize("statistic", [np.mean, np.std], ids=["mean", "std"])
def test_bootstrap(method, name, statistic):
    """scipy makes its interval of our draws, so no chance is left between the two."""
    values = np.random.default_rng(0).exponential(size=80)
    seen = []

    def figure(rows: torch.Tensor) -> float:
        seen.append(float(statistic(values[rows.numpy()])))
        return seen[-1]

    own = uncertainty.bootstrap(figure, 80, method=method)
    draws = type("Draws", (), {"bootstrap_distribution": np.array(seen[1:1001])})
    theirs = stats.bootstrap(
        (values,), statistic, n_resamples=0, method=method, bootstrap_result=draws, vectorized=True
    ).confidence_interval
    difference = max(abs(own.low - theirs.low), abs(own.high - theirs.high))
    record(SECTION, f"bootstrap by {name}, same draws", difference, 1e-12, SCIPY)


def test_sign_flips():
    gain = torch.from_numpy(np.random.default_rng(3).normal(0.4, 1, 12))
    theirs = stats.permutation_test(
        (gain.numpy(),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    difference = abs(uncertainty.paired_permutation(gain) - theirs)
    record(SECTION, "sign-flip test, exact p", difference, 1e-12, SCIPY)
    assert 0.01 < theirs < 0.9
    gain = gain.repeat(8) * torch.rand(96, generator=torch.Generator().manual_seed(0))
    theirs = stats.permutation_test(
        (gain.numpy(),), np.mean, permutation_type="samples", n_resamples=50_000, rng=0
    ).pvalue
    difference = abs(uncertainty.paired_permutation(gain, samples=50_000) - theirs)
    record(SECTION, "sign-flip test, 50,000 draws of either", difference, 0.01, SCIPY)
