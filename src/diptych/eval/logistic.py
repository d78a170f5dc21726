"""`Probe`: logistic regression with a penalty on the weights, the one solver of the package.

- What is minimised is what scikit-learn's LogisticRegression(C=C) minimises: the sum of the log
  losses times C plus half the squared weights; the bias is free. Two classes have one weight vector
  (a sigmoid), more have one each (a softmax). In float64, by torch's L-BFGS, strong Wolfe steps.
- It converges further than scikit-learn's default (`tol` 1e-4), so its figures do not hang on
  where an optimiser stopped; measured in tests/oracle/test_probe.py.
- Rows are read a block at a time: features may be float16 and memory-mapped, and nothing of n x c
  numbers is held.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Rows = Float[Tensor, "n d"] | Float[np.ndarray, "n d"]
    Labels = Int[Tensor, " n"] | Int[np.ndarray, " n"]

__all__ = ["Probe", "blocks", "whole_labels"]

log = logging.getLogger("diptych")

_BLOCK = 1 << 22  # numbers of a block, of features and of scores: 32 MB each
_SCALE = 1e6  # torch's L-BFGS forgets a step whose product with the gradient's is below 1e-10
_FLAT = 1e-10  # a difference of two scaled losses that is rounding
_HISTORY = 10  # as scipy's, which scikit-learn calls
_EVALUATIONS = 100  # of the loss an iteration, at most


class Probe:
    """Multinomial logistic regression with a penalty on the weights, in scikit-learn's way.

    Args:
        C: the inverse of the penalty, 1 / lambda; above 0.
        max_iter: L-BFGS iterations at most. Where they do not suffice `converged_` is False.
        tol: it has converged where no number of the gradient of the mean loss (plus the penalty
            over C n) is above this, or where float64 cannot tell one step's loss from the next's
            (scipy stops there too; of small C the gradient is then above this).

    Attributes:
        classes_: int64 [c], the labels that were seen, rising.
        coef_: float64 [c, d], or [1, d] for two classes.
        intercept_: float64 [c], or [1].
        n_iter_: iterations. gradient_: the largest number of the gradient at the end. converged_:
            whether it ended before `max_iter`.
    """

    def __init__(self, C: float = 1.0, *, max_iter: int = 1000, tol: float = 1e-6):
        self.C = C
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, features: Rows, labels: Labels, *, start: Probe | None = None) -> Self:
        """Find the minimum.

        Args:
            features: of any float type, also memory-mapped.
            labels: whole numbers, of at least two classes.
            start: a fitted probe of the same classes to begin with: the minimum is the same, a
                neighbour in a sweep of C is nearer to it than zeros are.

        Raises:
            ConfigError: C, max_iter or tol that cannot be.
            DataError: a number that is not finite, labels that are not whole numbers or not one for
                each row, fewer than two classes.
        """
        if not (self.C > 0 and math.isfinite(self.C) and self.max_iter >= 1 and self.tol > 0):
            raise ConfigError(
                f"Probe(C={self.C}, max_iter={self.max_iter}, tol={self.tol}): C and tol are above "
                "0, max_iter at least 1"
            )
        rows, targets = _rows(features), whole_labels(labels, len(features))
        classes, codes = targets.unique(return_inverse=True)
        if len(classes) < 2:
            raise DataError(
                f"the probe needs samples of at least 2 classes, got {len(rows)} samples of "
                f"{len(classes)}"
            )
        num_outputs = 1 if len(classes) == 2 else len(classes)
        x = torch.zeros(num_outputs, rows.shape[1] + 1, dtype=torch.float64)  # the bias last
        if start is not None and torch.equal(start.classes_, classes):
            x = torch.cat([start.coef_, start.intercept_[:, None]], 1)
        # of weights in units in which the penalty bends no more than the loss does
        unit = torch.ones(x.shape[1], dtype=torch.float64)
        unit[:-1] = min(1.0, math.sqrt(self.C * len(rows)))

        def loss(x: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = _loss(x * unit, rows, codes, self.C)
            return value, gradient * unit

        x, self.n_iter_ = _minimise(loss, x / unit, self.max_iter, self.tol * float(unit[0]))
        x = x * unit
        self.gradient_ = float(_loss(x, rows, codes, self.C)[1].abs().max())
        self.converged_ = self.gradient_ <= self.tol or self.n_iter_ < self.max_iter
        self.classes_ = classes
        self.coef_, self.intercept_ = x[:, :-1].contiguous(), x[:, -1].contiguous()
        if not self.converged_:
            log.info(
                "probe, C = %g: gradient %.1e after %d iterations, %.0e was asked for",
                *(self.C, self.gradient_, self.n_iter_, self.tol),
            )
        return self

    def decision_function(self, features: Rows) -> Float[Tensor, "n c"]:
        """Logits, float64 [n, c]; for two classes too (0 for the first)."""
        rows = _rows(features)
        if rows.shape[1] != self.coef_.shape[1]:
            raise DataError(
                f"features of {rows.shape[1]} numbers, the probe was fitted to "
                f"{self.coef_.shape[1]}: make both in the same way"
            )
        found = torch.empty(len(rows), len(self.classes_), dtype=torch.float64)
        for some in blocks(len(rows), rows.shape[1], len(self.classes_)):
            found[some] = _two(_wide(rows, some) @ self.coef_.T + self.intercept_)
        return found

    def predict_proba(self, features: Rows) -> Float[Tensor, "n c"]:
        """Probabilities of `classes_`, float64."""
        return self.decision_function(features).softmax(1)

    def predict(self, features: Rows) -> Int[Tensor, " n"]:
        """The likeliest label; of equals the lowest."""
        return self.classes_[self.decision_function(features).argmax(1)]

    def score(self, features: Rows, labels: Labels) -> float:
        """The share of right predictions, in [0, 1]. A tie with another class is wrong.

        Raises:
            DataError: a label that was not there when the probe was fitted: it could only be wrong.
        """
        return float(self.right(features, labels).double().mean())

    def right(self, features: Rows, labels: Labels) -> Tensor:
        """Which predictions are right, Bool [n]; as `score`."""
        targets = whole_labels(labels, len(features))
        if not len(targets):
            raise DataError("the probe has no samples to be scored on")
        codes = torch.searchsorted(self.classes_, targets).clamp(max=len(self.classes_) - 1)
        if (unseen := targets[self.classes_[codes] != targets].unique()).numel():
            raise DataError(
                f"{len(unseen)} classes were not there when the probe was fitted, the first is "
                f"{int(unseen[0])}: give training samples of each, or leave them out of the test"
            )
        scores = self.decision_function(features)
        own = scores.gather(1, codes[:, None])
        return (scores >= own).sum(1) == 1


# --- the minimum ----------------------------------------------------------------------------------


def _minimise(
    loss: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, max_iter: int, tol: float
) -> tuple[Tensor, int]:
    """Where the loss is smallest, and the iterations."""
    x = x.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=max_iter,
        max_eval=_EVALUATIONS * max_iter,
        tolerance_grad=tol * _SCALE,
        tolerance_change=_FLAT,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value, gradient = loss(x.detach())
        x.grad = gradient * _SCALE
        return value * _SCALE

    optimiser.step(closure)
    return x.detach(), int(optimiser.state[x]["n_iter"])


def _loss(weights: Tensor, rows: Any, codes: Tensor, C: float) -> tuple[Tensor, Tensor]:
    """The mean log loss plus |w|^2 / (2 C n), and its gradient [o, d + 1]."""
    n = len(rows)
    coef, bias = weights[:, :-1], weights[:, -1]
    value = coef.square().sum() / (2 * C * n)
    gradient = torch.cat([coef / (C * n), torch.zeros_like(bias)[:, None]], 1)
    for some in blocks(n, rows.shape[1], max(2, len(weights))):
        x, y = _wide(rows, some), codes[some]
        logits = _two(x @ coef.T + bias)
        value = value + F.cross_entropy(logits, y, reduction="sum") / n
        slope = logits.softmax(1)
        slope[torch.arange(len(y)), y] -= 1
        slope = slope[:, -len(weights) :] / n
        gradient[:, :-1] += slope.T @ x
        gradient[:, -1] += slope.sum(0)
    return value, gradient


def _two(logits: Tensor) -> Tensor:
    """Of two classes the first has the logit 0."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def blocks(n: int, d: int, c: int) -> list[slice]:
    """Of n rows of d features and c scores, those that are looked at together."""
    size = max(1, _BLOCK // max(d, c))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _wide(rows: Any, some: slice) -> Tensor:
    """A block in float64, on the host."""
    block = rows[some]
    if not isinstance(block, Tensor):
        return torch.from_numpy(block.astype(np.float64))
    return block.cpu().double()


def _rows(features: Any) -> Any:
    """The features, looked at once: a matrix without a number that is not finite."""
    features = features.detach() if isinstance(features, Tensor) else np.asanyarray(features)
    if features.ndim != 2 or not features.shape[1]:
        raise DataError(f"features must be rows [n, d], got {list(features.shape)}")
    bad = 0
    for some in blocks(len(features), features.shape[1], 1):
        bad += int((~_wide(features, some).isfinite().all(1)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(features)} rows of features hold a number that is not finite: an image "
            "could not be read, or the weights are broken"
        )
    return features


def whole_labels(labels: Any, n: int) -> Int[Tensor, " n"]:
    """int64 labels on the host; DataError unless they are whole numbers, one for each row."""
    found = torch.as_tensor(labels).cpu()
    if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
        raise DataError(
            f"labels must be whole numbers, got {found.dtype}: give each class a number from 0 on"
        )
    if found.shape != (n,):
        raise DataError(f"{list(found.shape)} labels for {n} rows of features: give one for each")
    return found.long()
