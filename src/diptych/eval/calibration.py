"""Whether probabilities mean what they say: calibration errors, reliability diagrams, temperature.

Guo et al., arXiv 1706.04599 (ECE, MCE, temperature); Nixon et al., arXiv 1904.01685 (equal mass).

- The confidence of a row is its largest probability; a tie for the largest counts as wrong.
- Bins are (low, high], the first one holds 0 too. Bins of equal width divide [0, 1]; those of equal
  mass end at the quantiles of the confidences (linear between two), so equal confidences are never
  torn apart. ECE weighs each bin by its samples; ACE, as netcal has it, is their plain mean.
- Where every bin errs to the same side, all binnings say |mean confidence - accuracy|.
- Give the model's own probabilities, of exp(logit_scale) times the cosine: a fixed factor of 100 is
  right for the order of labels and wrong here. All of it depends on the list of labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError, DataError
from diptych.eval import metrics

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = [
    "Bin",
    "Temperature",
    "calibration",
    "calibration_multilabel",
    "checked_probabilities",
    "fitted",
    "reliability",
]

Equal = Literal["width", "mass"]

_BINS = 15
_BLOCK = 1 << 20  # numbers looked at at once
_OFF = 1e-3  # of the sum of a row: probabilities may come in half precision
_LEAST = 2.0**-149  # the least that float32 holds above 0
_COLDEST, _HOTTEST = 0.01, 100.0


class Bin(NamedTuple):
    """One bar of a reliability diagram: `n` confidences in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float  # mean of them
    accuracy: float  # share that is right


def calibration(probabilities: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """How far the probabilities of one label an image are from the truth; 15 bins.

    Args:
        probabilities: of any float type; each row sums to 1.
        labels: the right class of each row.

    Returns:
        ece: mean of |accuracy - confidence| over bins of equal width, weighted by their samples.
        ece_equal_mass: the same over bins of equal mass. mce: the largest, ace: the plain mean over
        the bins of equal width that hold samples. These are in [0, 1]. brier: the mean of the sum
        over classes of (probability - truth)^2, in [0, 2] (Brier, 1950). nll: the mean of
        -ln(probability of the label), where 0 counts as 2^-149, the least of float32.

    Raises:
        DataError: no rows, a number that is no probability, a row whose sum is not 1 within 0.001,
            a label that is no class.
    """
    confidence, right = _confidences(probabilities, labels)
    own = labels.to(probabilities.device, torch.int64)
    brier, nll = 0.0, 0.0
    for rows, true in _rows(probabilities, own):
        given = rows.gather(1, true[:, None])
        brier += float((rows.square().sum(1) - 2 * given[:, 0] + 1).sum())
        nll -= float(given.clamp(min=_LEAST).log().sum())
    return _errors(confidence, right) | {"brier": brier / len(own), "nll": nll / len(own)}


def calibration_multilabel(
    probabilities: Float[Tensor, "n c"], truth: Bool[Tensor, "n c"]
) -> dict[str, float]:
    """`calibration` where each label is judged alone, as by the sigmoid of SigLIP.

    Each of the n x c decisions counts: its confidence is the probability that the label is true,
    its accuracy whether it is. It is held in float64 whole.

    Returns:
        As `calibration`; brier, in [0, 1], and nll are means over the n x c decisions.

    Raises:
        DataError: no rows, shapes that differ, a number that is no probability.
    """
    if probabilities.shape != truth.shape or not probabilities.numel():
        raise DataError(
            f"probabilities of shape {tuple(probabilities.shape)} and truth of shape "
            f"{tuple(truth.shape)}: both have the shape [n c], with at least one row"
        )
    if truth.dtype != torch.bool:
        raise DataError(f"truth is {truth.dtype}: give torch.bool")
    _in_range(probabilities)
    confidence = probabilities.detach().cpu().double().flatten().numpy()
    right = truth.cpu().flatten().numpy()
    given = np.where(right, confidence, 1 - confidence)
    return _errors(confidence, right) | {
        "brier": float(np.square(1 - given).mean()),
        "nll": float(-np.log(np.maximum(given, _LEAST)).mean()),
    }


def reliability(
    probabilities: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    bins: int = _BINS,
    equal: Equal = "width",
) -> list[Bin]:
    """The bars of a reliability diagram, from low to high; a bin without a sample is left out.

    Raises:
        DataError: as `calibration`. ConfigError: no bins.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}: at least 1")
    return _bins(*_confidences(probabilities, labels), bins, equal)


class Temperature:
    """Divides logits by one number, found on held-out examples (Guo et al., section 4.2).

    It changes no ranking. Fit it on examples that nothing else is measured on.

    Attributes:
        temperature_: in [0.01, 100], where the mean negative log-likelihood is least.
        bounded_: "low" or "high" where it would fall lower, as where every example is right, or
            rise higher, as where the model does worse than chance; else "".
    """

    temperature_: float
    bounded_: Literal["", "low", "high"]

    def fit(self, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Temperature:
        """Find the temperature.

        Args:
            logits: exp(logit_scale) times the cosine, with which the model computes probabilities;
                the logarithms of probabilities do as well.
            labels: the right class of each row.

        Raises:
            DataError: no rows, one class, a logit that is not finite, a label that is no class.
        """
        ranks = metrics.ranks(logits, labels)  # checks both
        if logits.shape[1] == 1:
            raise DataError(
                f"Temperature: {len(ranks)} examples of 1 class, whose probability is always 1: "
                "give at least 2 classes"
            )
        low, high = math.log(_COLDEST), math.log(_HOTTEST)
        own = labels.to(logits.device, torch.int64)
        if _slope(logits, own, low)[0] >= 0:
            self.bounded_, self.temperature_ = "low", _COLDEST
        elif _slope(logits, own, high)[0] <= 0:
            self.bounded_, self.temperature_ = "high", _HOTTEST
        else:
            self.bounded_, self.temperature_ = "", math.exp(_root(logits, own, low, high))
        return self

    def predict_proba(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Probabilities in float64: softmax(logits / temperature_).

        Raises:
            DataError: before `fit`.
        """
        fitted(self, "temperature_")
        return _wide(logits).div(self.temperature_).softmax(1)

    def report(self, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, float]:
        """ece, ece_equal_mass and nll of these examples, each _before and _after.

        Raises:
            DataError: before `fit`; as `fit`.
        """
        after = self.predict_proba(logits)
        ways = {"before": _wide(logits).softmax(1), "after": after}
        found = {way: calibration(probabilities, labels) for way, probabilities in ways.items()}
        keys = ("ece", "ece_equal_mass", "nll")
        return {f"{key}_{way}": found[way][key] for key in keys for way in ways}


def fitted(estimator: object, name: str) -> None:
    """Refuse an estimator that has not learned `name` yet.

    Raises:
        DataError: it was not fitted.
    """
    if name not in vars(estimator):
        kind = type(estimator).__name__
        raise DataError(f"{kind} has not been fitted: call {kind}(...).fit(...) first")


def checked_probabilities(probabilities: Float[Tensor, "n c"]) -> None:
    """Refuse what is no softmax over classes.

    Raises:
        DataError: no rows, a number outside [0, 1], a row whose sum is not 1 within 0.001.
    """
    if probabilities.ndim != 2 or not probabilities.numel():
        raise DataError(
            f"probabilities of shape {tuple(probabilities.shape)}: give [n c], at least one row"
        )
    _in_range(probabilities)
    for start, rows in zip(_starts(probabilities), _parts(probabilities), strict=True):
        sums = rows.sum(1)
        if (off := (sums - 1).abs() > _OFF).any():
            first = int(off.nonzero()[0, 0])
            raise DataError(
                f"row {start + first} of the probabilities sums to {float(sums[first]):.6g}, not "
                "to 1. Give a softmax over all labels; where each label is judged alone (sigmoid "
                "models) use calibration_multilabel, or divide each row by its sum"
            )


# --- parts ----------------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


def _starts(x: Tensor) -> range:
    return range(0, len(x), max(1, _BLOCK // x.shape[1]))


def _parts(x: Tensor) -> Iterator[Tensor]:
    """Blocks of rows in float64."""
    return map(_wide, x.split(_starts(x).step))


def _rows(x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part, own in zip(_parts(x), labels.split(_starts(x).step), strict=True):
        yield part, own.to(part.device)


def _in_range(probabilities: Tensor) -> None:
    inside = sum(int(((part >= 0) & (part <= 1)).sum()) for part in _parts(probabilities))
    if outside := probabilities.numel() - inside:
        raise DataError(
            f"{outside} of {probabilities.numel()} numbers are no probabilities in [0, 1]. Of "
            "logits take .softmax(1) first"
        )


def _confidences(probabilities: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    checked_probabilities(probabilities)
    right = metrics.ranks(probabilities, labels) == 1
    return probabilities.detach().amax(1).cpu().double().numpy(), right.numpy()


def _bins(confidence: np.ndarray, right: np.ndarray, bins: int, equal: Equal) -> list[Bin]:
    edges = np.arange(bins + 1) / bins
    match equal:
        case "width":
            pass
        case "mass":
            edges[1:-1] = np.quantile(confidence, edges[1:-1])
    place = np.searchsorted(edges[1:-1], confidence)  # an edge belongs to the bin below it
    n = np.bincount(place, minlength=bins)
    sums = np.bincount(place, confidence, minlength=bins)
    hits = np.bincount(place, right, minlength=bins)
    columns = edges[:-1], edges[1:], n, sums / np.maximum(n, 1), hits / np.maximum(n, 1)
    rows = zip(*(column[n > 0].tolist() for column in columns), strict=True)
    return [Bin(*row) for row in rows]


def _errors(confidence: np.ndarray, right: np.ndarray) -> dict[str, float]:
    gaps, shares = _gaps(confidence, right, "width")
    mass = _gaps(confidence, right, "mass")
    return {
        "ece": float(gaps @ shares),
        "ece_equal_mass": float(mass[0] @ mass[1]),
        "mce": float(gaps.max()),
        "ace": float(gaps.mean()),
    }


def _gaps(confidence: np.ndarray, right: np.ndarray, equal: Equal) -> tuple[np.ndarray, np.ndarray]:
    bins = _bins(confidence, right, _BINS, equal)
    gaps = np.array([abs(b.accuracy - b.confidence) for b in bins])
    return gaps, np.array([b.n for b in bins]) / len(confidence)


def _slope(logits: Tensor, labels: Tensor, log: float) -> tuple[float, float]:
    """Of the mean NLL over u = ln T: its first derivative, and its second."""
    inverse, first, second = math.exp(-log), 0.0, 0.0
    for rows, own in _rows(logits, labels):
        rows = (rows - rows.gather(1, own[:, None])) * inverse  # the label's is 0
        shares = rows.softmax(1)
        mean = (shares * rows).sum(1)
        first -= float(mean.sum())
        second += float((mean + (shares * rows * rows).sum(1) - mean * mean).sum())
    return first / len(labels), second / len(labels)


def _root(logits: Tensor, labels: Tensor, low: float, high: float) -> float:
    """Where the slope, negative at `low`, positive at `high`, is 0: Newton's steps, halved where
    they would leave the interval. The NLL is convex in 1 / T, so there is one."""
    at = 0.0  # the model's own temperature
    while high - low > 1e-12:
        first, second = _slope(logits, labels, at)
        low, high = (at, high) if first < 0 else (low, at)
        step = at - first / second if second > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        close, at = abs(following - at) < 1e-7, following  # the next error is its square
        if close:
            break
    return at
