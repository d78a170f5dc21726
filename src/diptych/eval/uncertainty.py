"""How far a figure can be trusted: intervals, and tests between two models on the same samples.

- Shares of independent samples: `eval.binomial`, whose intervals are given here too.
- Everything else: the bootstrap (Efron and Tibshirani, 1993), by percentiles or BCa (chapter 14).
  Captions of one image, frames of one video are not independent: `clusters` draws whole ones.
- Between models: McNemar's exact test and Newcombe's interval (Statistics in Medicine 17, 1998,
  2635, method 10) for right and wrong; flipped signs (Fisher) for any other difference.
- What is drawn depends on `seed` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError, DataError
from diptych.eval.binomial import Interval, at_least, clopper_pearson, doubt, percent, wilson

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Clusters = Int[Tensor, " n"] | Int[np.ndarray, " n"]

__all__ = [
    "Interval",
    "bootstrap",
    "clopper_pearson",
    "mcnemar",
    "paired_bootstrap",
    "paired_interval",
    "paired_permutation",
    "wilson",
]

_NORMAL = NormalDist()
_BLOCK = 1 << 22  # numbers drawn at once
_GROUPS = 1000  # at most so many left out, one after the other, for the acceleration of BCa
_EXACT = 16  # differences up to which all 2^n signs are looked at
_LOST = 0.05  # of the samples drawn again may be such that a statistic cannot be taken of them

Method = Literal["percentile", "bca"]


# --- bootstrap ------------------------------------------------------------------------------------


def bootstrap(
    statistic: Callable[[Int[Tensor, " m"]], float],
    n: int,
    *,
    clusters: Clusters | None = None,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """The interval of any figure of n samples, which are drawn again with replacement.

    Args:
        statistic: the figure of the samples whose rows it is given (int64, a row may come twice).
        clusters: a number for each sample; those of one number are drawn together.
        samples: how often. 1,000 leave an end of a 95 % interval uncertain by some hundredths of
            its width; of a mean of 50,000 they take half a second.
        method: bca corrects bias and skewness; it leaves each sample (or cluster, or one of 1,000
            groups of them) out once more.

    Returns:
        The interval; its method says how many draws had no figure, if any (a statistic that raises
        DataError or is NaN there, as an AUC of one class, is left out), and whether there is just
        one sample or cluster, of which no spread can be seen.

    Raises:
        DataError: no samples, clusters of another number, or more than 5 % of the draws without
            a figure. What `statistic` raises for all rows.
        ConfigError: confidence outside (0, 1), fewer than 2 draws, bca of one sample or cluster.
    """
    units = _Units.of(n, clusters)
    observed = float(statistic(torch.arange(n)))
    draws = _draws(len(units.sizes), samples, seed)
    found = [_figure(statistic, units.rows(drawn)) for drawn in draws]
    left_out: list[float] = []
    if method == "bca":
        if len(units.sizes) == 1:
            raise ConfigError("bca leaves each sample out once: of 1 nothing would remain")
        left_out = [_figure(statistic, units.rows(kept)) for kept in units.without_some(seed)]
    low, high, told = _interval(np.array(found), observed, np.array(left_out), confidence, method)
    told += "" if clusters is None else f" of {len(units.sizes):,} clusters"
    told += ", of which no spread can be seen" if len(units.sizes) == 1 else ""
    return Interval(low, high, told)


def paired_bootstrap(
    first: Float[Tensor, " n"] | Bool[Tensor, " n"],
    second: Float[Tensor, " n"] | Bool[Tensor, " n"],
    *,
    clusters: Clusters | None = None,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The interval of mean(second) - mean(first) of two models on the same samples.

    Raises:
        DataError: as `bootstrap`; also a value that is not finite, and numbers of samples that
            differ.
    """
    _paired(first, second)
    gain = torch.from_numpy(_values(second) - _values(first))

    def mean(rows: Tensor) -> float:
        return float(gain[rows].mean())

    return bootstrap(
        mean, len(gain), clusters=clusters, samples=samples, seed=seed, confidence=confidence
    )


# --- two models on the same samples ---------------------------------------------------------------


def mcnemar(a_right: Bool[Tensor, " n"], b_right: Bool[Tensor, " n"]) -> float:
    """p of McNemar's exact test (Psychometrika 12, 1947): are two models right equally often?

    Of the samples that just one has right, each has so with chance 1/2; both tails. 1 where there
    are none.

    Raises:
        DataError: no samples, or numbers of samples that differ.
    """
    _, only_a, only_b, _ = _fourfold(a_right, b_right)
    return min(1.0, 2 * at_least(max(only_a, only_b), only_a + only_b, 0.5))


def paired_interval(
    a_right: Bool[Tensor, " n"], b_right: Bool[Tensor, " n"], *, confidence: float = 0.95
) -> Interval:
    """Newcombe's interval of b's share minus a's: Wilson's of each, joined by their correlation.

    Raises:
        DataError: as `mcnemar`. ConfigError: confidence outside (0, 1).
    """
    both, only_a, only_b, neither = _fourfold(a_right, b_right)
    n = both + only_a + only_b + neither
    z = _NORMAL.inv_cdf(1 - doubt(confidence) / 2)
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(share_a, n, z=z)
    low_b, high_b = wilson(share_b, n, z=z)
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    excess = both * neither - only_a * only_b
    if excess > 0:
        excess = max(excess - n / 2, 0.0)  # his correction for continuity
    phi = excess / math.sqrt(product) if product else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    gain = share_b - share_a
    low = gain - reach(share_b - low_b, high_a - share_a)
    high = gain + reach(high_b - share_b, share_a - low_a)
    return Interval(low, high, f"Newcombe's method 10, {percent(confidence)}, n = {n:,} pairs")


def paired_permutation(
    difference: Float[Tensor, " n"],
    *,
    clusters: Clusters | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> float:
    """p of the sign-flip test: could the mean difference of two models be chance?

    If the models are alike, each difference (of a cluster: their sum) could as well have the other
    sign. Both tails. Of up to 16 differences that are not 0 all signs are looked at and p is exact;
    of more `samples` are drawn and p = (1 + as large) / (1 + samples), which is never too small
    (Phipson and Smyth, arXiv 1603.05766).

    Raises:
        DataError: no samples, a difference that is not finite, clusters of another number.
        ConfigError: no draws.
    """
    own = _values(difference)
    if samples < 1:
        raise ConfigError(f"samples={samples}: draw at least one")
    sums = _Units.of(len(own), clusters).totals(own)
    observed, sizes = abs(sums.sum()), np.abs(sums[sums != 0])
    whole = sizes.sum()
    least = observed - 1e-12 * whole  # sums of the same terms in another order are equal
    if len(sizes) <= _EXACT:
        signs = np.arange(1 << len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        return float((np.abs(whole - 2 * (signs @ sizes)) >= least).mean())
    rng, step, as_large = np.random.default_rng(seed), max(1, _BLOCK // len(sizes)), 0
    for start in range(0, samples, step):
        shape = min(step, samples - start), -(-len(sizes) // 8)
        bits = np.unpackbits(rng.integers(256, size=shape, dtype=np.uint8), axis=1)
        flipped = bits[:, : len(sizes)] @ sizes
        as_large += int((np.abs(whole - 2 * flipped) >= least).sum())
    return (1 + as_large) / (1 + samples)


# --- parts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Units:
    """What is drawn as one: a sample, or all samples of a cluster.

    `order` holds the rows of the first unit, then those of the second; unit i has `sizes[i]` of
    them from `starts[i]` on. None for `order`: each unit is its row.
    """

    sizes: np.ndarray
    starts: np.ndarray
    order: np.ndarray | None

    @classmethod
    def of(cls, n: int, clusters: Clusters | None) -> _Units:
        if n < 1:
            raise DataError("0 samples: nothing can be measured")
        if clusters is None:
            return cls(np.ones(n, np.int64), np.arange(n), None)
        codes = np.asarray(clusters)
        if codes.shape != (n,):
            raise DataError(f"clusters of shape {codes.shape} for {n} samples: give each a number")
        _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
        return cls(sizes, np.cumsum(sizes) - sizes, np.argsort(codes, kind="stable"))

    def rows(self, units: np.ndarray) -> Tensor:
        """The rows of these units, a unit as often as it is named."""
        if self.order is None:
            return torch.from_numpy(units)
        sizes = self.sizes[units]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return torch.from_numpy(self.order[np.repeat(self.starts[units], sizes) + within])

    def totals(self, values: np.ndarray) -> np.ndarray:
        """The sum of each unit."""
        return values if self.order is None else np.add.reduceat(values[self.order], self.starts)

    def without_some(self, seed: int) -> Iterator[np.ndarray]:
        """All units but one; of more than `_GROUPS` all but one group of them."""
        n = len(self.sizes)
        mixed = np.random.default_rng(seed).permutation(n)
        for group in np.array_split(mixed, min(n, _GROUPS)):
            kept = np.ones(n, bool)
            kept[group] = False
            yield kept.nonzero()[0]


def _draws(num: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """`samples` times `num` units with replacement."""
    if samples < 2:
        raise ConfigError(f"samples={samples}: draw at least two, better 1,000")
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield rng.integers(num, size=num)


def _figure(statistic: Callable[[Tensor], float], rows: Tensor) -> float:
    try:
        return float(statistic(rows))
    except DataError:  # this draw has no figure; counted in `_interval`
        return math.nan


def _interval(
    found: np.ndarray,
    observed: float,
    left_out: np.ndarray,
    confidence: float,
    method: Method,
) -> Interval:
    """The ends, from the figures of all draws and of all but one unit."""
    tail = doubt(confidence) / 2
    lost = int(np.isnan(found).sum() + np.isnan(left_out).sum())
    if math.isnan(observed) or lost > _LOST * (len(found) + len(left_out)):
        raise DataError(
            f"bootstrap: {lost} of {len(found) + len(left_out)} draws have no figure (all samples: "
            f"{observed:g}): there are too few samples of some kind to measure its spread"
        )
    found = found[~np.isnan(found)]
    ends = np.array([tail, 1 - tail])
    match method:
        case "percentile":
            pass
        case "bca":
            ends = _bca(ends, found, observed, left_out[~np.isnan(left_out)])
    low, high = np.quantile(found, ends)
    told = f"{method} bootstrap {percent(confidence)}, {len(found):,} draws"
    told += f", {lost} more without a figure" if lost else ""
    return Interval(float(low), float(high), told)


def _bca(ends: np.ndarray, found: np.ndarray, observed: float, left_out: np.ndarray) -> np.ndarray:
    """Efron and Tibshirani, equations 14.9 to 14.15."""
    below = ((found < observed).mean() + (found <= observed).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / len(found)), 1 - 0.5 / len(found)))
    away = left_out.mean() - left_out
    spread = (away**2).sum() ** 1.5
    skew = (away**3).sum() / (6 * spread) if spread else 0.0
    moved = [bias + _NORMAL.inv_cdf(end) for end in ends]
    return np.array([_NORMAL.cdf(bias + x / (1 - skew * x)) for x in moved])


def _fourfold(a: Tensor, b: Tensor) -> tuple[int, int, int, int]:
    """How many have both right, only a, only b, neither."""
    _paired(a, b)
    if not len(a) or a.dtype != torch.bool or b.dtype != torch.bool:
        raise DataError(
            f"{len(a)} samples of {a.dtype} and {b.dtype}: give torch.bool, whether each is right"
        )
    a, b = a.cpu(), b.cpu()
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def _paired(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise DataError(
            f"{len(a)} and {len(b)} samples: a paired comparison takes the same ones, in one order"
        )


def _values(values: Tensor) -> np.ndarray:
    own = values.detach().cpu().double().numpy()
    if own.ndim != 1 or not np.isfinite(own).all():
        raise DataError(
            f"values of shape {own.shape}, {int((~np.isfinite(own)).sum())} of them not finite: "
            "give a finite number for each sample"
        )
    return own
