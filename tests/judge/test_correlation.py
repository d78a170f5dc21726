"""Kendall, Spearman and Pearson by hand, by definition, and with ties."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import DataError
from diptych.judge.correlation import correlation, kendall, pearson, spearman


def by_definition(x, y):
    n, diff, both_x, both_y = len(x), 0, 0, 0
    for i, j in itertools.combinations(range(n), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        diff, both_x, both_y = diff + a * b, both_x + (a != 0), both_y + (b != 0)
    m = min(len(set(x)), len(set(y)))
    return diff / math.sqrt(both_x * both_y), 2 * diff / (n**2 * (m - 1) / m)


def test_kendall_by_hand():
    x, y = np.array([1.0, 2, 3, 4, 4]), np.array([1.0, 3, 2, 4, 3])
    tau_b, tau_c = kendall(x, y)
    assert tau_c == pytest.approx(0.64)  # scipy's figure
    assert tau_b == pytest.approx(6 / 9)  # 7 against 1, a tie on each side: 6 / sqrt(9 * 9)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), min_size=3, max_size=40))
def test_kendall_is_its_definition(pairs):
    x, y = np.array(pairs, float).T
    if np.ptp(x) and np.ptp(y):
        assert kendall(x, y) == pytest.approx(by_definition(x, y), abs=1e-12)
    else:
        assert math.isnan(kendall(x, y)[0])


def test_perfect_reverse_and_nothing():
    x = torch.arange(50.0)
    same = correlation(x, x**3, samples=0)
    assert (same.kendall_b, same.spearman) == pytest.approx((1, 1))
    assert same.pearson < 1
    back = correlation(x, -x, samples=0)
    assert (back.kendall_b, back.kendall_c, back.pearson) == pytest.approx((-1, -1, -1))


def test_spearman_shares_ranks():
    x, y = np.array([1.0, 2, 2, 9]), np.array([4.0, 3, 3, 1])
    assert spearman(x, y) == pytest.approx(-1)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_nan_is_skipped_and_counted():
    scores = torch.tensor([1.0, math.nan, 2, 3, 4])
    ratings = torch.tensor([1.0, 2, math.nan, 3, 4])
    found = correlation(scores, ratings, samples=0)
    assert (found.num, found.skipped, found.intervals) == (3, 2, {})


def test_intervals_and_clusters():
    rng = torch.Generator().manual_seed(0)
    level = torch.randn(60, generator=rng).repeat_interleave(5)
    scores = level + 0.1 * torch.randn(300, generator=rng)
    ratings = level + 2 * torch.randn(60, generator=rng).repeat_interleave(5)
    groups = torch.arange(60).repeat_interleave(5)
    alone = correlation(scores, ratings, samples=200)
    together = correlation(scores, ratings, clusters=groups, samples=200)
    for name in ("kendall_b", "kendall_c", "spearman", "pearson"):
        low, high, _ = together.intervals[name]
        assert low < {**vars_of(together)}[name] < high
        assert high - low > 1.3 * (alone.intervals[name].high - alone.intervals[name].low)


def vars_of(found):
    names = ("kendall_b", "kendall_c", "spearman", "pearson")
    return {name: getattr(found, name) for name in names}


def test_an_interval_that_cannot_be_measured_is_left_out():
    scores = torch.tensor([1.0, 1, 1, 1, 2])
    found = correlation(scores, torch.arange(5.0), samples=200)
    assert found.num == 5 and found.intervals == {}


def test_many_items_take_a_moment():
    x = np.random.default_rng(0).integers(0, 1000, 300_000).astype(float)
    assert kendall(x, x)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("scores", "ratings", "says"),
    [
        ([1.0, 2], [1.0, 2], "2 items"),
        ([1.0, 1, 1], [1.0, 2, 3], "with 1 scores and 3 ratings"),
        ([1.0, 2, 3], [1.0, 2], "one of each an item"),
    ],
)
def test_bad_input(scores, ratings, says):
    with pytest.raises(DataError, match=says):
        correlation(torch.tensor(scores), torch.tensor(ratings))
