"""Shares of independent trials: exact chances, and the intervals of Wilson and Clopper-Pearson.

- Wilson (JASA 22, 1927) covers the true share about as often as it says, on average over shares.
- Clopper and Pearson (Biometrika 26, 1934) never cover it less often, so they are wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from diptych.errors import ConfigError, DataError

__all__ = ["Interval", "at_least", "clopper_pearson", "doubt", "percent", "wilson"]


class Interval(NamedTuple):
    """The ends of an interval, and how it was made."""

    low: float
    high: float
    method: str


def wilson(share: float, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share of n independent trials; 95 % by default.

    Captions of one image are not independent: for text_to_image it is too narrow where an image
    has several (`uncertainty.bootstrap` with clusters).
    """
    if not n:
        return 0.0, 1.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at the ends the interval ends there too, which rounding would miss by a bit
    return max(middle - half, 0.0) * (share > 0), 1.0 if share >= 1 else min(middle + half, 1.0)


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a share: it holds the true one at least as often as it says.

    One end alone, with the doubt d, is that of `confidence = 1 - 2 d`.

    Raises:
        DataError: hits outside 0..n. ConfigError: confidence outside (0, 1).
    """
    tail = doubt(confidence) / 2
    if not 0 <= hits <= n:
        raise DataError(f"{hits} hits of {n}: give how many of n trials were hits")
    low = _where(lambda p: at_least(hits, n, p), tail) if hits else 0.0
    high = _where(lambda p: at_least(hits + 1, n, p), 1 - tail) if hits < n else 1.0
    return Interval(low, high, f"Clopper-Pearson {percent(confidence)}, n = {n:,}")


def at_least(hits: int, n: int, p: float) -> float:
    """The chance of `hits` or more in n independent trials that each succeed with chance p.

    The regularised incomplete beta function I_p(hits, n - hits + 1), as a continued fraction (DLMF
    8.17.22, by Lentz's method); within 1e-9 for n up to a million.
    """
    if hits <= 0:
        return 1.0
    if hits > n or p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    a, b = float(hits), float(n - hits + 1)
    if p > (a + 1) / (a + b + 2):  # there the fraction of the other tail converges
        return 1.0 - _beta(b, a, 1 - p, p)
    return _beta(a, b, p, 1 - p)


def doubt(confidence: float) -> float:
    """1 - confidence.

    Raises:
        ConfigError: it is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence}: it lies between 0 and 1, as 0.95 does")
    return 1 - confidence


def percent(confidence: float) -> str:
    """0.95 as "95 %"."""
    return f"{100 * confidence:g} %"


def _beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) for y = 1 - x and x < (a + 1) / (a + b + 2)."""
    log = math.lgamma(a + b) - math.lgamma(a + 1) - math.lgamma(b)
    front = math.exp(log + a * math.log(x) + b * math.log(y))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction, m = d, 0
    while True:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / (1 + even * d), 1 + even / c
        fraction *= c * d
        d, c = 1 / (1 + odd * d), 1 + odd / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            return front * fraction


def _where(rising: Callable[[float], float], target: float) -> float:
    """Where in [0, 1] a rising function meets the target."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if rising(middle) < target:
            low = middle
        else:
            high = middle
    return middle
