"""How well scores agree with people: Kendall's tau-b and tau-c, Spearman, Pearson, with intervals.

Papers: Kendall, Rank Correlation Methods (1945: tau-b); Stuart, Biometrika 40 (1953: tau-c);
Knight, JASA 61 (1966: Kendall in n log n).

- Which tau a published figure is says its set: Flickr8k-Expert is tau-c, Flickr8k-CF tau-b.
- Discordant pairs are counted bit by bit of the ranks, in whole arrays: n log n, no n x n table.
- Intervals draw whole pictures again, where several items belong to one: they are not independent.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diptych.errors import DataError
from diptych.eval.binomial import Interval
from diptych.eval.uncertainty import bootstrap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Correlation", "correlation", "kendall", "pearson", "spearman"]

SAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """Four ways to agree, each in [-1, 1].

    Attributes:
        num: items that were compared. skipped: items whose rating or score is NaN.
        intervals: of each by its name, 95 % by bootstrap; one is missing where none was asked for,
            or where too few different values make it unmeasurable.
    """

    num: int
    skipped: int
    kendall_b: float
    kendall_c: float
    spearman: float
    pearson: float
    intervals: dict[str, Interval]


def correlation(
    scores: Float[Tensor, " n"],
    ratings: Float[Tensor, " n"],
    *,
    clusters: Int[Tensor, " n"] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Correlation:
    """Agreement of scores with ratings.

    Args:
        scores, ratings: one of each an item; an item with a NaN is skipped and counted.
        clusters: which picture each item belongs to; whole pictures are drawn again.
        samples: of the bootstrap; 0: no intervals.

    Raises:
        DataError: lengths that differ, fewer than 3 items, or one value alone on a side.
    """
    x = np.asarray(torch.as_tensor(scores).detach().cpu(), np.float64)
    y = np.asarray(torch.as_tensor(ratings).detach().cpu(), np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise DataError(
            f"scores {list(x.shape)} and ratings {list(y.shape)}: give one of each an item."
        )
    good = ~(np.isnan(x) | np.isnan(y))
    x, y = x[good], y[good]
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        raise DataError(
            f"{len(x)} items with {len(np.unique(x))} scores and {len(np.unique(y))} ratings: "
            "agreement needs 3 items, and 2 different values on each side."
        )
    ways = {
        "kendall_b": lambda a, b: kendall(a, b)[0],
        "kendall_c": lambda a, b: kendall(a, b)[1],
        "spearman": spearman,
        "pearson": pearson,
    }
    values = {name: float(way(x, y)) for name, way in ways.items()}
    intervals: dict[str, Interval] = {}
    if samples:
        groups = None if clusters is None else torch.as_tensor(clusters)[torch.from_numpy(good)]
        for name, way in ways.items():
            with contextlib.suppress(DataError):  # one value alone on a side in too many draws
                intervals[name] = bootstrap(
                    lambda rows, way=way: float(way(x[rows.numpy()], y[rows.numpy()])),
                    len(x),
                    clusters=groups,
                    samples=samples,
                    seed=seed,
                )
    return Correlation(num=len(x), skipped=int((~good).sum()), intervals=intervals, **values)


def kendall(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(tau-b, tau-c) of two float64 arrays [n]; NaN where a side has one value alone.

    tau-b = (C - D) / sqrt((N - T_x)(N - T_y)); tau-c = 2 (C - D) m / (n^2 (m - 1)), with m the
    smaller number of different values, N = n (n - 1) / 2 and T the tied pairs of a side.
    """
    n = len(x)
    xs, ys = (np.unique(a, return_inverse=True)[1].reshape(-1) for a in (x, y))
    classes = min(xs.max(), ys.max()) + 1
    if n < 2 or classes < 2:
        return math.nan, math.nan
    order = np.lexsort((ys, xs))
    discordant = _inversions(ys[order])
    both = np.unique(xs * (ys.max() + 1) + ys, return_counts=True)[1]
    tied_x, tied_y, tied = (_pairs(c) for c in (np.bincount(xs), np.bincount(ys), both))
    total = n * (n - 1) // 2
    difference = total - tied_x - tied_y + tied - 2 * discordant  # concordant - discordant
    tau_b = difference / math.sqrt(total - tied_x) / math.sqrt(total - tied_y)
    return tau_b, 2 * difference / (n**2 * (classes - 1) / classes)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(_mean_ranks(x), _mean_ranks(y))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Of two float64 arrays [n]; NaN where a side has one value alone."""
    a, b = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _mean_ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def _inversions(ranks: np.ndarray) -> int:
    """Pairs i < j with ranks[i] > ranks[j], of whole numbers from 0.

    From the highest bit down: two numbers whose higher bits are equal are in the wrong order where
    a 1 stands before a 0. `ranks` is kept grouped by the higher bits, otherwise in its order.
    """
    found = 0
    for bit in reversed(range(int(ranks.max()).bit_length())):
        ones = (ranks >> bit) & 1
        before = np.cumsum(ones) - ones
        group = ranks >> (bit + 1)
        first = np.flatnonzero(np.diff(group, prepend=-1))  # groups stand in ascending order
        start = np.repeat(before[first], np.diff(np.append(first, len(ranks))))
        found += int((before - start)[ones == 0].sum())
        ranks = ranks[np.argsort(ranks >> bit, kind="stable")]
    return found
