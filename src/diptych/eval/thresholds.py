"""Thresholds that keep a promise on new examples: of precision, of coverage, of false alarms.

Clopper and Pearson, Biometrika 26, 1934; order statistics; Angelopoulos et al., arXiv 2110.01052.

- A promise holds, with a chance of `confidence` over the drawing of the examples, for what is
  exchangeable with them, whatever the model. Nothing that was fitted on may be measured on.
- A precision is tested at some 30 numbers of accepted examples at most, which n alone decides, each
  exactly and with its part of the doubt (Bonferroni). A fixed sequence from strict to lenient would
  spend no doubt, but it stops at its first failure, and its thresholds, being scores that were
  drawn, would need precision to fall steadily with the threshold. This assumes nothing.
- What scores above a threshold is accepted; of equal scores all are, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from diptych.errors import DataError
from diptych.eval.binomial import at_least, clopper_pearson, doubt, percent

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["covering_threshold", "precise_threshold", "refusing_threshold"]

_STEP = 1.25  # from one number of accepted examples to the next
_ROUNDING = 1e-9  # 0.9 * 10 is not to be 9.000000000000002


def precise_threshold(
    scores: Float[Tensor, " n"],
    right: Bool[Tensor, " n"],
    *,
    precision: float,
    confidence: float = 0.95,
) -> float:
    """The lowest threshold such that at least `precision` of what scores above it is right.

    Given the next score, the k examples above it are like any k of all that exceed it: how many are
    right is binomial, and the test of each k that n alone has fixed is exact.

    Args:
        scores: of examples that nothing was tuned on, float64. right: which of them are.

    Returns:
        A score, or -inf: everything may be accepted.

    Raises:
        DataError: too few examples (says how many are needed), or no threshold that is shown to
            keep the promise (says the best that is).
        ConfigError: confidence outside (0, 1).
    """
    n, risk = len(scores), doubt(confidence)
    counts = [n]
    while (following := math.ceil(counts[-1] / _STEP)) < counts[-1] and following > 1:
        tests = len(counts) + 1
        if precision**following > risk / tests:  # all right, and still not sure
            break
        counts.append(following)
    each = risk / len(counts)
    needed = math.ceil(math.log(risk) / math.log(precision) - _ROUNDING)
    if n < needed:
        raise DataError(
            f"{n} examples: a precision of {precision:g} with a confidence of "
            f"{percent(1 - risk)} takes at least {needed}, all of them right"
        )
    ordered = scores.sort(descending=True).values
    best, told = -1.0, ""
    for k in counts:
        threshold = float(ordered[k]) if k < n else -math.inf
        kept = scores > threshold
        num, hits = int(kept.sum()), int(right[kept].sum())
        if at_least(hits, num, precision) <= each:
            return threshold
        bound = clopper_pearson(hits, num, 1 - 2 * each).low
        if bound > best:
            best, told = bound, f"{hits:,} of {num:,} right, so surely above {bound:.3f} only"
    raise DataError(
        f"no threshold is shown to reach a precision of {precision:g} with a confidence "
        f"of {percent(1 - risk)} on {n:,} examples; the best of {len(counts)}: {told}. Ask for "
        "less, bring more examples or a better model"
    )


def covering_threshold(
    scores: Float[Tensor, " n"], coverage: float, *, confidence: float = 0.95
) -> float:
    """The highest threshold such that at least `coverage` of all like these score above it.

    Below the k-th least of n scores lies less than 1 - coverage of all, with a chance of
    P(Bin(n, 1 - coverage) >= k); the largest k that is sure enough.

    Raises:
        DataError: too few examples; says how many are needed. ConfigError: as above.
    """
    n, risk = len(scores), doubt(confidence)
    needed = math.ceil(math.log(risk) / math.log(coverage) - _ROUNDING)
    if n < needed:
        raise DataError(
            f"{n} examples that have a label: a coverage of {coverage:g} with a "
            f"confidence of {percent(1 - risk)} takes at least {needed}"
        )
    k = _last(n, lambda k: at_least(k, n, 1 - coverage) >= 1 - risk)
    return math.nextafter(float(scores.sort().values[k - 1]), -math.inf)


def refusing_threshold(
    scores: Float[Tensor, " n"], share: float, *, confidence: float = 0.95
) -> float:
    """The lowest threshold such that at most `share` of all like these score above it.

    Above the k-th largest of n scores lies less than the share of all, with a chance of
    P(Bin(n, share) >= k); the largest k that is sure enough.

    Raises:
        DataError: too few examples; says how many are needed. ConfigError: as above.
    """
    n, risk = len(scores), doubt(confidence)
    needed = math.ceil(math.log(risk) / math.log(1 - share) - _ROUNDING)
    if n < needed:
        raise DataError(
            f"{n} examples with the label -1 (none of the classes): a false acceptance "
            f"of {share:g} with a confidence of {percent(1 - risk)} takes at least {needed}"
        )
    k = _last(n, lambda k: at_least(k, n, share) >= 1 - risk)
    return float(scores.sort(descending=True).values[k - 1])


def _last(n: int, holds: Callable[[int], bool]) -> int:
    """The largest k in 1..n for which it holds; it holds for 1, and from some k on no more."""
    low, high = 1, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
