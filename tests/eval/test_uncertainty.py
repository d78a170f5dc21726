"""Intervals that cover what they say, and tests whose p can be counted by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError, DataError
from diptych.eval.binomial import at_least
from diptych.eval.uncertainty import (
    bootstrap,
    clopper_pearson,
    mcnemar,
    paired_bootstrap,
    paired_interval,
    paired_permutation,
    wilson,
)


def binomial(n: int, p: float) -> list[float]:
    """The chance of each number of hits."""
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def mean_of(values: torch.Tensor):
    return lambda rows: float(values[rows].mean())


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(15, 50), (1, 7), (0, 100), (100, 100), (3333, 5000)])
def test_wilson_solves_its_equation(hits, n):
    """Both ends p have |hits/n - p| = z sqrt(p (1 - p) / n): the score test just rejects them."""
    share, z = hits / n, 1.959964
    ends = wilson(share, n)
    for p in ends:
        assert math.isclose(abs(share - p), z * math.sqrt(p * (1 - p) / n), abs_tol=1e-9)
    assert ends[0] <= share <= ends[1]
    assert ends[1] - ends[0] > 0


def test_wilson_of_nothing():
    assert wilson(0.5, 0) == (0, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(-1, 82), st.floats(0, 1))
def test_at_least_is_the_sum(n, hits, p):
    assert at_least(hits, n, p) == pytest.approx(
        math.fsum(binomial(n, p)[max(hits, 0) :]), abs=1e-12
    )


@pytest.mark.parametrize("n", [1, 12, 40])
def test_clopper_pearson_solves_its_equations(n):
    for hits in range(n + 1):
        low, high, method = clopper_pearson(hits, n)
        if hits:
            assert math.fsum(binomial(n, low)[hits:]) == pytest.approx(0.025, abs=1e-10)
        if hits < n:
            assert math.fsum(binomial(n, high)[: hits + 1]) == pytest.approx(0.025, abs=1e-10)
        assert (low == 0) == (hits == 0)
        assert (high == 1) == (hits == n)
        assert f"n = {n}" in method
    assert clopper_pearson(0, 10).high == pytest.approx(1 - 0.025**0.1)


def test_coverage_of_shares_is_exact_arithmetic():
    """The chance that the interval holds p, summed over all outcomes: no simulation needed."""
    n, wilsons, exacts = 60, [], []
    ends_of = [
        (wilsons, [wilson(k / n, n) for k in range(n + 1)]),
        (exacts, [clopper_pearson(k, n)[:2] for k in range(n + 1)]),
    ]
    for p in np.linspace(0.02, 0.98, 97):
        chances = binomial(n, p)
        for found, ends in ends_of:
            held = [c for c, (low, high) in zip(chances, ends, strict=True) if low <= p <= high]
            found.append(math.fsum(held))
    assert min(exacts) >= 0.95
    assert abs(np.mean(wilsons) - 0.95) < 0.007
    assert min(wilsons) > 0.83


def test_shares_that_cannot_be():
    with pytest.raises(DataError, match="11 hits of 10"):
        clopper_pearson(11, 10)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        clopper_pearson(1, 10, confidence=95)


# --- bootstrap ------------------------------------------------------------------------------------


def test_a_seed_decides_everything():
    values = torch.randn(40, dtype=torch.float64)
    first = bootstrap(mean_of(values), 40, seed=3)
    assert first == bootstrap(mean_of(values), 40, seed=3)
    assert first != bootstrap(mean_of(values), 40, seed=4)
    assert first.method == "percentile bootstrap 95 %, 1,000 draws"


def test_the_ends_of_a_mean_are_those_of_its_normal():
    values = torch.randn(2000, dtype=torch.float64)
    error = 1.96 * float(values.std()) / math.sqrt(2000)
    for method in ("percentile", "bca"):
        low, high, _ = bootstrap(mean_of(values), 2000, method=method, samples=4000)
        assert low == pytest.approx(float(values.mean()) - error, abs=0.1 * error)
        assert high == pytest.approx(float(values.mean()) + error, abs=0.1 * error)


def test_coverage_of_the_bootstrap_is_simulated():
    """Of the mean of 50 exponential values, 400 times: skewed, so a bit below 95 %."""
    held = {"percentile": 0, "bca": 0}
    for trial in range(400):
        g = torch.Generator().manual_seed(trial)
        values = torch.empty(50, dtype=torch.float64).exponential_(generator=g)
        for method in held:
            low, high, _ = bootstrap(mean_of(values), 50, samples=300, seed=trial, method=method)
            held[method] += low <= 1 <= high
    assert all(0.89 < num / 400 < 0.97 for num in held.values())


def test_captions_of_one_image_are_drawn_together():
    """Five copies of each number say no more than one: the interval of the numbers alone is kept,
    and one that takes copies for new samples is too narrow."""
    values = torch.randn(100, dtype=torch.float64)
    copies, owner = values.repeat_interleave(5), torch.arange(100).repeat_interleave(5)
    alone = bootstrap(mean_of(values), 100)
    whole = bootstrap(mean_of(copies), 500, clusters=owner)
    assert whole[:2] == pytest.approx(alone[:2], abs=1e-12)
    assert "of 100 clusters" in whole.method
    blind = bootstrap(mean_of(copies), 500)
    ratio = (whole.high - whole.low) / (blind.high - blind.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.12)


def test_a_cluster_comes_whole_or_not_at_all():
    owner = torch.tensor([7, 2, 7, 7, 2, 9])
    seen = set()

    def look(rows: torch.Tensor) -> float:
        counts = torch.bincount(rows, minlength=6)
        for code in (2, 7, 9):
            assert len(set(counts[owner == code].tolist())) == 1
        seen.add(len(rows))
        return float(len(rows))

    bootstrap(look, 6, clusters=owner.numpy(), samples=200, method="bca")
    assert {3, 4, 5, 6, 7, 8, 9} <= seen


def test_coverage_with_clusters_is_simulated():
    held = {"clusters": 0, "blind": 0}
    for trial in range(200):
        g = torch.Generator().manual_seed(trial)
        base = torch.randn(60, generator=g, dtype=torch.float64).repeat_interleave(5)
        values = base + 0.5 * torch.randn(300, generator=g, dtype=torch.float64)
        owner = torch.arange(60).repeat_interleave(5)
        for way, clusters in (("clusters", owner), ("blind", None)):
            found = bootstrap(mean_of(values), 300, clusters=clusters, samples=200, seed=trial)
            held[way] += found.low <= 0 <= found.high
    assert 0.90 < held["clusters"] / 200 < 0.98
    assert held["blind"] / 200 < 0.75


def test_draws_without_a_figure_are_told_or_refused():
    few = torch.arange(100) < 4  # e**-4 of the draws have none of them

    def rare(rows: torch.Tensor) -> float:
        if not few[rows].any():
            raise DataError("none")
        return float(few[rows].double().mean())

    method = bootstrap(rare, 100).method
    assert "more without a figure" in method
    lost = int(method.split(", ")[-1].split()[0])
    assert 5 <= lost <= 40
    assert f"{1000 - lost} draws" in method
    few = torch.arange(100) < 1
    with pytest.raises(DataError, match="too few samples of some kind"):
        bootstrap(rare, 100)


def test_what_the_statistic_says_of_everything_is_raised():
    def never(rows: torch.Tensor) -> float:
        raise DataError("nothing to see")

    with pytest.raises(DataError, match="nothing to see"):
        bootstrap(never, 10)
    with pytest.raises(DataError, match="no figure"):
        bootstrap(lambda rows: math.nan, 10)


def test_one_sample_has_no_spread_and_says_so():
    one = torch.tensor([0.5])
    assert "no spread can be seen" in bootstrap(mean_of(one), 1).method
    assert "no spread" in bootstrap(mean_of(one.expand(9)), 9, clusters=torch.zeros(9)).method
    with pytest.raises(ConfigError, match="bca"):
        bootstrap(mean_of(one), 1, method="bca")


def test_a_constant_has_a_point():
    for method in ("percentile", "bca"):
        assert bootstrap(mean_of(torch.ones(30)), 30, method=method)[:2] == (1, 1)


def test_bootstraps_that_cannot_be():
    values = torch.ones(5)
    with pytest.raises(DataError, match="0 samples"):
        bootstrap(mean_of(values), 0)
    with pytest.raises(DataError, match="clusters of shape"):
        bootstrap(mean_of(values), 5, clusters=torch.zeros(4))
    with pytest.raises(ConfigError, match="at least two"):
        bootstrap(mean_of(values), 5, samples=1)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        bootstrap(mean_of(values), 5, confidence=1)


# --- two models -----------------------------------------------------------------------------------


def right(both: int, only_a: int, only_b: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return torch.tensor(a), torch.tensor(b)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1), (1, 0, 1), (5, 0, 2 / 32), (3, 3, 1), (6, 2, 2 * (28 + 8 + 1) / 256)],
)
def test_mcnemar_by_hand(only_a, only_b, p):
    assert mcnemar(*right(10, only_a, only_b, 4)) == pytest.approx(p)
    assert mcnemar(*right(3, only_b, only_a, 90)) == pytest.approx(p)


def test_newcombe_s_example():
    """His table: 36, 12, 2, 0 of 50 pairs, difference 0.2, method 10: 0.0569 to 0.3404."""
    low, high, _ = paired_interval(*right(36, 2, 12, 0))
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high, _ = paired_interval(*right(36, 12, 2, 0))  # and the other way around
    assert (low, high) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_newcombe_of_models_that_agree():
    low, high, _ = paired_interval(*right(5, 0, 0, 5))
    assert low == -high
    assert 0 < high < 0.5
    low, high, _ = paired_interval(*right(10, 0, 0, 0))
    assert -0.4 < low < 0 < high < 0.4


def test_coverage_of_paired_intervals_is_simulated():
    """Shares 0.7 and 0.6 of the same 100 questions, which go together."""
    held = {"newcombe": 0, "bootstrap": 0}
    for trial in range(300):
        g = torch.Generator().manual_seed(trial)
        hard = torch.rand(100, generator=g)
        a, b = hard < 0.7, (hard + 0.2 * torch.rand(100, generator=g)) < 0.7
        low, high, _ = paired_interval(a, b)
        held["newcombe"] += low <= -0.1 <= high
        low, high, _ = paired_bootstrap(a, b, samples=200, seed=trial)
        held["bootstrap"] += low <= -0.1 <= high
    assert 0.93 < held["newcombe"] / 300 <= 0.995
    assert 0.90 < held["bootstrap"] / 300 < 0.985


def test_permutation_counts_all_signs():
    values = [3.0, -1.0, 2.5, 0.0, 2.0, 1.5]
    total, as_large = sum(values), 0
    for signs in itertools.product((1, -1), repeat=len(values)):
        as_large += abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= total
    assert paired_permutation(torch.tensor(values)) == as_large / 2 ** len(values)
    assert paired_permutation(torch.ones(4)) == 2 / 16
    assert paired_permutation(torch.tensor([1.0, -1.0])) == 1
    assert paired_permutation(torch.zeros(5)) == 1


def test_permutation_of_many_is_drawn():
    a, b = right(200, 20, 8, 100)
    gain = b.double() - a.double()
    p = paired_permutation(gain, samples=20_000)
    assert p == pytest.approx(mcnemar(a, b), abs=0.005)  # the same test
    assert p == paired_permutation(gain, samples=20_000)
    assert p != paired_permutation(gain, samples=20_000, seed=1)
    assert paired_permutation(torch.ones(60), samples=99) == 0.01  # never 0


def test_permutation_of_clusters_flips_them_whole():
    gain = torch.tensor([1.0, 1, 1, 1, -1, -1])
    owner = torch.tensor([0, 0, 0, 0, 1, 1])  # sums 4 and -2: |2| or more is 2 in 2
    assert paired_permutation(gain, clusters=owner) == 1
    assert paired_permutation(torch.ones(6), clusters=owner) == 2 / 4


def test_alike_models_are_told_apart_as_often_as_alpha():
    small = 0
    for trial in range(400):
        g = torch.Generator().manual_seed(trial)
        gain = torch.randn(30, generator=g, dtype=torch.float64)
        small += paired_permutation(gain, samples=199, seed=trial) <= 0.1
    assert 0.06 < small / 400 < 0.14


def test_comparisons_that_cannot_be():
    a, b = right(3, 1, 1, 1)
    for test in (mcnemar, paired_interval, paired_bootstrap):
        with pytest.raises(DataError, match="6 and 5 samples"):
            test(a, b[:5])
    for test in (mcnemar, paired_interval):
        with pytest.raises(DataError, match=r"torch\.bool"):
            test(a.long(), b)
        with pytest.raises(DataError, match="0 samples"):
            test(a[:0], b[:0])
    with pytest.raises(DataError, match="1 of them not finite"):
        paired_permutation(torch.tensor([1.0, math.nan]))
    with pytest.raises(ConfigError, match="samples=0"):
        paired_permutation(torch.ones(3), samples=0)
