"""The probe and k-NN against scikit-learn on its digits, Student's interval against scipy."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from report import record
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from diptych.eval.fewshot import few_shot, student
from diptych.eval.knn import KNN
from diptych.eval.logistic import _loss
from diptych.eval.probe import Probe, Split, readme, sweep

SECTION = "Probes"
PEER = "scikit-learn"


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split, Split]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    parts = order[:900], order[900:1260], order[1260:]
    return tuple(Split(torch.from_numpy(x[p] / 16), torch.from_numpy(y[p])) for p in parts)


def theirs(C: float, data: Split, tol: float = 1e-4, max_iter: int = 1000) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=C, max_iter=max_iter, tol=tol)
        return model.fit(data.features.numpy(), data.labels.numpy())


def both(C: float, data: Split) -> tuple[Probe, LogisticRegression]:
    return Probe(C, max_iter=20000, tol=1e-9).fit(*data), theirs(C, data, 1e-9, 20000)


@pytest.mark.parametrize("C", [1e-6, 1e-4, 1e-2, 0.316, 1.0, 100.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_same_minimum(digits, C, num_classes):
    train, _, test = digits
    train, test = (Split(*(p[s.labels < num_classes] for p in s)) for s in (train, test))
    ours, peer = both(C, train)
    coef = np.abs(ours.coef_.numpy() - peer.coef_).max() / np.abs(peer.coef_).max()
    probability = np.abs(
        ours.predict_proba(test.features).numpy() - peer.predict_proba(test.features.numpy())
    ).max()
    what = f"logistic regression, {num_classes} classes, C up to 100"
    record(SECTION, f"{what}: probabilities", probability, 2e-5, PEER)
    record(SECTION, f"{what}: weights, of the largest", coef, 2e-5, PEER)


@pytest.mark.parametrize("C", [1e-6, 1e-2, 1.0, 1e4, 1e6])
def test_the_default_goes_at_least_as_far(digits, C):
    """By how much our loss at the default `tol` is above theirs at their default."""
    train = digits[0]
    ours, peer = Probe(C).fit(*train), theirs(C, train)

    def loss(coef, intercept) -> float:
        x = torch.cat([torch.as_tensor(coef), torch.as_tensor(intercept)[:, None]], 1)
        return float(_loss(x, train.features, train.labels, C)[0])

    mine, other = (loss(m.coef_, m.intercept_) for m in (ours, peer))
    record(SECTION, "loss above theirs, either's default tol", max(mine - other, 0), 1e-9, PEER)
    assert mine < other  # theirs stops earlier
    assert ours.converged_


def test_the_search_of_the_paper_by_scikit_learn(digits):
    """The same search over fits of scikit-learn, as far converged."""
    train, validation, test = digits
    found = sweep(train, validation, max_iter=20000, tol=1e-9)
    for tried in found.tried:
        if tried.log10_lambda < -2:  # separable: where it ends is a matter of patience
            continue
        peer = theirs(10**-tried.log10_lambda, train, 1e-8, 20000)
        accuracy = peer.score(validation.features.numpy(), validation.labels.numpy())
        difference = abs(accuracy - tried.accuracy)
        record(SECTION, "validation accuracy of a sweep", difference, 0, PEER)
    assert Probe(found.C).fit(*train).score(*test) > 0.93


def test_the_example_of_the_readme(digits):
    train, _, test = digits
    found = readme(train, test)
    peer = theirs(0.316, train).score(test.features.numpy(), test.labels.numpy())
    record(SECTION, "accuracy, C = 0.316", abs(found.accuracy - peer), 0, PEER)


def test_few_shots_rise(digits):
    found = few_shot(*digits, shots=(1, 4, 16), seeds=(1, 2, 3))
    means = [one.mean for one in found]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.1


@pytest.mark.parametrize("n", [2, 3, 5, 10, 31])
def test_student_s_interval(n):
    values = np.random.default_rng(n).normal(size=n)
    mean, interval = student(values.tolist())
    spread = values.std(ddof=1) / np.sqrt(n)
    low, high = student_t.interval(0.95, n - 1, values.mean(), spread)
    assert (mean, interval.low, interval.high) == pytest.approx(
        (values.mean(), low, high), abs=1e-9
    )


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("votes", ["weighted", "counted"])
def test_nearest_neighbours(digits, k, votes):
    train, _, test = digits
    x, z = (F.normalize(s.features, dim=1) for s in (train, test))
    ours = KNN(k, votes=votes).fit(x, train.labels).predict_proba(z).numpy()
    weights = {"weighted": lambda d: np.exp((1 - d - 1) / 0.07), "counted": "uniform"}[votes]
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    peer.fit(x.numpy(), train.labels.numpy())
    difference = np.abs(ours - peer.predict_proba(z.numpy())).max()
    record(SECTION, f"k nearest neighbours, votes {votes}: shares", difference, 2e-6, PEER)
