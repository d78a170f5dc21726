"""Probes of a few samples a class, as in CoOp, and how many of them equal zero-shot.

- `few_shot`: the linear probe of CoOp (arXiv 2109.01134; lpclip/linear_probe.py): 7 values of C,
  then 8 halvings of an interval around the best, on min(shots, 4) validation samples a class; no
  second fit. Ties go to the larger C first, then to the lower end, as there.
- Which samples a seed draws is ours: a hash of (seed, class, position), so that few shots are among
  the many of one seed, and no library's generator decides.
- The interval is Student's over seeds: it tells how much the drawn samples matter, not the test
  split.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.data.order import hashed
from diptych.errors import ConfigError, DataError
from diptych.eval.logistic import Probe, whole_labels
from diptych.eval.probe import Split
from diptych.eval.uncertainty import Interval

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["COOP_SHOTS", "Shots", "few_shot", "few_shot_split", "student", "zero_shot_crossing"]

log = logging.getLogger("diptych")

COOP_SHOTS = (1, 2, 4, 8, 16)
_VALIDATION_SHOTS = 4
_EXPONENTS = (6, 4, 2, 0, -2, -4, -6)  # of the first seven values of C
_HALVINGS = 8
_FEW = 0xF5  # what the hash is for


def few_shot_split(labels: Int[Tensor, " n"], shots: int, seed: int) -> Int[Tensor, " k"]:
    """Positions of `shots` samples of each class, rising; the same on every machine and version.

    Within a class samples are put in the order of a hash of (seed, class, how-manieth of the class)
    and the first are taken. So the samples of 2 shots are among those of 4 of the same seed. A
    class that has fewer gives all it has, which is logged.

    Raises:
        ConfigError: shots below 1. DataError: labels that are not whole numbers.
    """
    if shots < 1:
        raise ConfigError(f"shots={shots}: at least 1 a class")
    targets = whole_labels(labels, len(labels)).numpy()
    order = np.argsort(targets, kind="stable")
    classes, first, num = np.unique(targets[order], return_index=True, return_counts=True)
    within = np.arange(len(targets)) - np.repeat(first, num)
    keys = hashed(_FEW, seed, targets[order], within)
    drawn = np.lexsort((keys, targets[order]))  # by class, then by hash
    taken = order[drawn[within < shots]]
    if short := int((num < shots).sum()):
        log.warning("%d of %d classes have fewer than %d samples", short, len(classes), shots)
    return torch.from_numpy(np.sort(taken))


class Shots(NamedTuple):
    """What probes of so many samples a class reach: over seeds, mean and Student's 95 % interval.

    Attributes:
        accuracies: one a seed, in [0, 1]. Cs: likewise.
        interval: None for a single seed.
    """

    shots: int
    mean: float
    interval: Interval | None
    accuracies: tuple[float, ...]
    Cs: tuple[float, ...]


def few_shot(
    train: Split,
    validation: Split,
    test: Split,
    *,
    shots: Sequence[int] = COOP_SHOTS,
    seeds: Sequence[int] = tuple(range(1, 11)),
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> list[Shots]:
    """The few-shot linear probe of CoOp, for each number of shots; the whole test split each time.

    CoOp's features are those of `features(encoder, images, projected=True)`.

    Raises:
        ConfigError: no seeds or shots. DataError: as `Probe.fit` and `Probe.score`.
    """
    if not shots or not seeds:
        raise ConfigError("few_shot needs at least one number of shots and one seed")
    found = []
    for num in shots:
        pairs = []
        for seed in seeds:
            few = _drawn(train, num, seed)
            held = _drawn(validation, min(num, _VALIDATION_SHOTS), seed)
            probe = _halved(few, held, max_iter, tol)
            pairs.append((probe.score(*test), probe.C))
        accuracies, penalties = zip(*pairs, strict=True)
        mean, interval = student(accuracies) if len(seeds) > 1 else (accuracies[0], None)
        found.append(Shots(num, mean, interval, accuracies, penalties))
    return found


def _drawn(split: Split, shots: int, seed: int) -> Split:
    rows = few_shot_split(split.labels, shots, seed)
    if isinstance(split.features, Tensor):
        return Split(
            split.features[rows.to(split.features.device)],
            torch.as_tensor(split.labels).cpu()[rows],
        )
    return Split(
        np.asarray(split.features)[rows.numpy()], torch.as_tensor(split.labels).cpu()[rows]
    )


def _halved(train: Split, validation: Split, max_iter: int, tol: float) -> Probe:
    """CoOp's search: the best of seven C, then the better end of an interval, halved 8 times."""
    fitted: dict[float, tuple[Probe, float]] = {}

    def fit(exponent: float) -> tuple[Probe, float]:
        if exponent not in fitted:
            near = min(fitted, key=lambda other: abs(other - exponent), default=None)
            probe = Probe(10**exponent, max_iter=max_iter, tol=tol)
            probe.fit(*train, start=None if near is None else fitted[near][0])
            fitted[exponent] = probe, probe.score(*validation)
        return fitted[exponent]

    peak = max(_EXPONENTS, key=lambda e: fit(float(e))[1])
    low, high, best = peak - 1.0, peak + 1.0, float(peak)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if fit(low)[1] < fit(high)[1]:
            low, best = middle, high
        else:
            high, best = middle, low
    return fit(best)[0]


def zero_shot_crossing(
    shots: Sequence[float], accuracies: Sequence[float], zero_shot: float
) -> float:
    """At how many samples a class a probe is as good as zero-shot (arXiv 2103.00020, figure 7).

    Between two numbers of shots the accuracy is a straight line over their logarithm. The first
    crossing counts; infinite where there is none; the smallest number where that is good enough.

    Raises:
        DataError: not one accuracy for each of rising numbers of shots above 0.
    """
    numbers = list(shots)
    rising = all(a < b for a, b in pairwise(numbers))
    if not numbers or len(numbers) != len(accuracies) or not rising or numbers[0] <= 0:
        raise DataError(
            f"shots {numbers} and {len(accuracies)} accuracies: give rising numbers above 0 and "
            "one accuracy for each"
        )
    if accuracies[0] >= zero_shot:
        return float(numbers[0])
    for i in range(1, len(numbers)):
        low, high = accuracies[i - 1], accuracies[i]
        if high >= zero_shot:
            share = (zero_shot - low) / (high - low)
            return float(numbers[i - 1] * (numbers[i] / numbers[i - 1]) ** share)
    return math.inf


def student(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, Interval]:
    """Mean and Student's interval of at least two independent values (Biometrika 6, 1908).

    Raises:
        DataError: fewer than two.
    """
    n = len(values)
    if n < 2:
        raise DataError(f"an interval over seeds needs at least 2 of them, got {n}")
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = _quantile(confidence, n - 1) * spread
    return mean, Interval(mean - half, mean + half, f"Student {100 * confidence:g} %, {n} seeds")


def _quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| <= t) = confidence, for whole degrees of freedom, by halving."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if degrees == 1:
        return 2 * angle / math.pi
    for k in range(2 + odd, degrees, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
