"""Label sets and refusals that keep a promise: conformal prediction and calibrated rejection.

Vovk et al., Algorithmic Learning in a Random World (2005); Sadinle et al., arXiv 1609.00451 (LAC);
Romano et al., arXiv 2006.02544 (APS).

- The promises hold for new examples that are exchangeable with those that were fitted on, whatever
  the model. Other photographs, other labels, another share of unknown things: fit again. Nothing
  that was fitted on may be measured on.
- Conformal: the right label is in the set with chance `coverage`, over the drawing of both the
  calibration examples and the new one.
- The thresholds of Rejection are those of `eval.thresholds`.
- Labels that score alike are in a set together or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diptych.errors import ConfigError, DataError
from diptych.eval import metrics
from diptych.eval.binomial import doubt
from diptych.eval.calibration import checked_probabilities, fitted
from diptych.eval.thresholds import covering_threshold, precise_threshold, refusing_threshold

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Conformal", "Rejection"]

Method = Literal["lac", "aps"]

_BLOCK = 1 << 20  # probabilities looked at at once
_ROUNDING = 1e-9  # 0.9 * 10 is not to be 9.000000000000002


class Conformal:
    """Sets of labels that hold the right one as often as promised (split conformal prediction).

    The chance is at least `coverage`, and at most coverage + 1 / (n + 1) where no two of the n
    calibration examples score alike.

    Args:
        coverage: what is promised.
        method: lac: all labels whose probability is above one threshold; the smallest sets on
            average, and an empty one where no label is likely enough. aps: labels from the most
            likely down, until their probabilities add up to the threshold; sets follow the
            difficulty of each image better. Without `seed` it is not randomised: a label goes in
            if its own probability still fits.
        per_class: the promise holds for the images of every class alone (Mondrian), which takes
            calibration examples of every class.
        seed: aps only: randomised as in the paper, where the last label counts for a part of its
            probability; smaller sets, another draw for each row.

    Attributes:
        threshold_: the largest score that is let in, a float; per_class: float64 [c].
        num_classes_: c.
    """

    threshold_: float | Tensor
    num_classes_: int

    def __init__(
        self,
        *,
        coverage: float = 0.9,
        method: Method = "lac",
        per_class: bool = False,
        seed: int | None = None,
    ):
        self.coverage = coverage
        self.method: Method = method
        self.per_class = per_class
        self.seed = seed

    def fit(self, probabilities: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Conformal:
        """Find the threshold on examples that the model was not trained or tuned on.

        Args:
            probabilities: each row sums to 1.
            labels: the right class of each row.

        Raises:
            DataError: no probabilities, a label that is no class, or too few examples; the message
                says how many are needed.
            ConfigError: coverage outside (0, 1), or a seed for lac.
        """
        _share("coverage", self.coverage)
        if self.seed is not None and self.method == "lac":
            raise ConfigError("seed= is for method='aps': lac draws nothing")
        checked_probabilities(probabilities)
        metrics.ranks(probabilities, labels)  # checks the labels
        labels, c = labels.cpu().long(), probabilities.shape[1]
        parts = self._scores(probabilities, self.seed)
        own = zip(parts, labels.split(_step(probabilities)), strict=True)
        scores = torch.cat([part.gather(1, true[:, None])[:, 0] for part, true in own])
        num = torch.bincount(labels, minlength=c) if self.per_class else torch.tensor([len(labels)])
        self._check_enough(num)
        self.num_classes_ = c
        if self.per_class:
            each = [self._quantile(scores[labels == i]) for i in range(c)]
            self.threshold_ = torch.tensor(each, dtype=torch.float64)
        else:
            self.threshold_ = self._quantile(scores)
        return self

    def predict_sets(self, probabilities: Float[Tensor, "n c"]) -> Bool[Tensor, "n c"]:
        """Which labels each row's set holds; on the CPU.

        An empty set says that no label fits as well as the right ones of the calibration do.

        Raises:
            DataError: before `fit`, no probabilities, or another number of classes.
        """
        fitted(self, "threshold_")
        checked_probabilities(probabilities)
        if probabilities.shape[1] != self.num_classes_:
            raise DataError(
                f"Conformal was fitted on {self.num_classes_} classes and is given "
                f"{probabilities.shape[1]}: the promise holds for the same list of labels"
            )
        other = None if self.seed is None else self.seed + 1  # not the draws of the calibration
        return torch.cat([part <= self.threshold_ for part in self._scores(probabilities, other)])

    def _scores(self, probabilities: Tensor, seed: int | None) -> Iterator[Tensor]:
        """How strange each label would be, float64, in blocks of rows; what is above the threshold
        stays out."""
        blocks = probabilities.detach().split(_step(probabilities))
        parts = (part.cpu().double() for part in blocks)
        match self.method:
            case "lac":
                return (1 - part for part in parts)
            case "aps":
                rng = None if seed is None else torch.Generator().manual_seed(seed)
                return (_sums(part, rng) for part in parts)

    def _check_enough(self, num: Tensor) -> None:
        needed = math.ceil(self.coverage / (1 - self.coverage) - _ROUNDING)
        few = (num < needed).nonzero()[:, 0]
        if not len(few):
            return
        where = "calibration examples"
        if self.per_class:
            where += f" of class {int(few[0])} ({len(few)} of {len(num)} classes have too few)"
        raise DataError(
            f"Conformal: {int(num[few[0]])} {where}: a coverage of {self.coverage:g} takes at "
            f"least {needed}{' of each' if self.per_class else ''}. Bring more, or ask for less"
            f"{', or set per_class=False' if self.per_class else ''}"
        )

    def _quantile(self, scores: Tensor) -> float:
        """The ceil((n + 1) coverage)-th least of n scores."""
        place = math.ceil((len(scores) + 1) * self.coverage - _ROUNDING)
        return float(scores.sort().values[place - 1])


class Rejection:
    """Says "none of these" unless the best label is above a threshold that keeps a promise.

    The score of a row is its largest number: a probability, or a cosine. Name one promise; it holds
    with a chance of `confidence` over the drawing of the calibration examples.

    Args:
        precision: of the answers given, at least this share is right. Examples of none of the
            labels (-1) count as wrong, so bring as many of them as will be met.
        coverage: of examples that do have a label, at least this share is answered.
        false_acceptance: of examples of none of the labels (-1), at most this share is answered.
        confidence: how sure the promise is.

    Attributes:
        threshold_: an answer is given where the largest number is above it; -inf: always.
        accepted_: the share of the calibration examples that is answered.
        precision_: the share of these answers that is right; nan where there are none.
    """

    threshold_: float
    accepted_: float
    precision_: float

    def __init__(
        self,
        *,
        precision: float | None = None,
        coverage: float | None = None,
        false_acceptance: float | None = None,
        confidence: float = 0.95,
    ):
        self.precision = precision
        self.coverage = coverage
        self.false_acceptance = false_acceptance
        self.confidence = confidence

    def fit(self, scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Rejection:
        """Find the lowest threshold that keeps the promise (for `coverage` the highest).

        Args:
            scores: probabilities or cosines of examples that the model was not tuned on.
            labels: the right class of each row, -1 where it is none of them.

        Raises:
            DataError: scores or labels that cannot be measured, too few examples (says how many are
                needed), or no threshold that is shown to keep the promise.
            ConfigError: not exactly one promise, or one outside (0, 1).
        """
        promises = (self.precision, self.coverage, self.false_acceptance)
        if sum(promise is not None for promise in promises) != 1:
            raise ConfigError("Rejection: give one of precision=, coverage=, false_acceptance=")
        doubt(self.confidence)  # refuses what is no confidence
        known = (labels >= 0).cpu()
        if (labels < -1).any():
            raise DataError("Rejection: a label below -1: -1 is none of the classes")
        right = (metrics.ranks(scores, labels.clamp(min=0)).cpu() == 1) & known
        top = scores.detach().amax(1).cpu().double()
        if self.precision is not None:
            wanted = _share("precision", self.precision)
            threshold = precise_threshold(top, right, precision=wanted, confidence=self.confidence)
        elif self.coverage is not None:
            wanted = _share("coverage", self.coverage)
            threshold = covering_threshold(top[known], wanted, confidence=self.confidence)
        else:
            wanted = _share("false_acceptance", self.false_acceptance)
            threshold = refusing_threshold(top[~known], wanted, confidence=self.confidence)
        kept = top > threshold
        self.threshold_ = threshold
        self.accepted_ = float(kept.double().mean())
        self.precision_ = float(right[kept].double().mean()) if kept.any() else math.nan
        return self

    def predict(self, scores: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """The best label of each row, of equals the first, and -1 where none is answered.

        Raises:
            DataError: before `fit`, no rows, or a score that is not finite.
        """
        fitted(self, "threshold_")
        metrics.ranks(scores, torch.zeros(len(scores), dtype=torch.int64))  # checks the scores
        best = scores.detach().max(1)
        accepted = best.values.cpu().double() > self.threshold_
        return torch.where(accepted, best.indices.cpu(), -1)


# --- parts ----------------------------------------------------------------------------------------


def _share(name: str, value: float | None) -> float:
    if value is None or not 0 < value < 1:
        raise ConfigError(f"{name}={value}: it lies between 0 and 1, as 0.9 does")
    return value


def _step(probabilities: Tensor) -> int:
    return max(1, _BLOCK // probabilities.shape[1])


def _sums(shares: Tensor, rng: torch.Generator | None) -> Tensor:
    """The sum of all probabilities of a row that are at least as large as each, [n c].

    With `rng` the equal ones, itself included, count for a part that is drawn once a row.
    """
    ordered, order = shares.sort(dim=1, descending=True)
    n, c = shares.shape
    new = torch.ones(n, c, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = torch.arange(c).expand(n, c)
    first = place.masked_fill(~new, 0).cummax(1).values
    last = place.masked_fill(~new.roll(-1, 1), c).flip(1).cummin(1).values.flip(1)
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    above, through = sums.gather(1, first), sums.gather(1, last + 1)
    if rng is not None:
        through = above + torch.rand(n, 1, generator=rng, dtype=shares.dtype) * (through - above)
    return torch.empty_like(shares).scatter_(1, order, through)
