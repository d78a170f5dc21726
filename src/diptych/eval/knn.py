"""Nearest neighbours on unit vectors as a classifier: votes weighted by similarity, or counted.

Wu et al., arXiv 1805.01978, section 3.4: each of the k nearest training vectors votes for its class
with exp(cosine / 0.07); DINO (arXiv 2104.14294) takes k = 20.

- Neighbours are exact and the same on every machine (`engine.topk`): of equal cosines the earlier
  sample is the nearer.
- Of classes with equal votes `predict` names the lowest label; `score` counts a tie as wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from diptych.engine.topk import topk
from diptych.errors import ConfigError, DataError
from diptych.eval.logistic import whole_labels
from diptych.eval.ranking import check_finite, on_host

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Rows = Float[Tensor, "n e"] | Float[np.ndarray, "n e"]
    Labels = Int[Tensor, " n"] | Int[np.ndarray, " n"]

__all__ = ["KNN"]

_QUERIES = 4096  # at once
_UNIT = 0.01  # how far from 1 a length may be: of float16 and bfloat16 rows


class KNN:
    """k-nearest-neighbour classifier, in scikit-learn's way.

    Args:
        k: neighbours that vote.
        temperature: of weighted votes, in cosine; smaller: nearer ones count for more.
        votes: "weighted": exp(cosine / temperature); "counted": one each.

    Attributes:
        classes_: int64 [c], the labels that were seen, rising.
    """

    def __init__(
        self,
        k: int = 20,
        *,
        temperature: float = 0.07,
        votes: Literal["weighted", "counted"] = "weighted",
    ):
        self.k = k
        self.temperature = temperature
        self.votes = votes

    def fit(self, vectors: Rows, labels: Labels) -> Self:
        """Keep the training vectors; they are not copied.

        Args:
            vectors: unit rows of any float type, also memory-mapped.

        Raises:
            ConfigError: k, temperature or votes that cannot be.
            DataError: fewer vectors than k, rows that are no unit vectors, labels that are not
                whole numbers or not one for each.
        """
        if self.k < 1 or not self.temperature > 0:
            raise ConfigError(f"KNN(k={self.k}, temperature={self.temperature}): both are above 0")
        if self.votes not in ("weighted", "counted"):
            raise ConfigError(f"votes must be 'weighted' or 'counted', got {self.votes!r}")
        rows = _unit(vectors)
        if len(rows) < self.k:
            raise DataError(
                f"{len(rows)} training vectors and k = {self.k}: give k of them or more"
            )
        self.classes_, self._codes = whole_labels(labels, len(rows)).unique(return_inverse=True)
        self._rows = rows
        return self

    def decision_function(self, vectors: Rows) -> Float[Tensor, "n c"]:
        """The votes for each class, float64 [n, c]. Weighted ones are over that of the nearest."""
        queries = _unit(vectors)
        return self._votes(queries, lambda some: topk(self._rows, queries[some], self.k))

    def leave_one_out(self) -> Float[Tensor, "n c"]:
        """`decision_function` of each training vector with the others as its neighbours.

        Raises:
            DataError: no more than k training vectors.
        """
        if len(self._rows) <= self.k:
            raise DataError(
                f"{len(self._rows)} training vectors: to leave one out k = {self.k} others must be "
                "there. Give a smaller k."
            )

        def others(some: slice) -> tuple[np.ndarray, np.ndarray]:
            scores, found = topk(self._rows, self._rows[some], self.k + 1)
            own = found == np.arange(some.start, some.stop)[:, None]
            own[~own.any(1), -1] = True  # earlier copies stand before it: one too many is there
            shape = len(found), self.k
            return scores[~own].reshape(shape), found[~own].reshape(shape)

        return self._votes(self._rows, others)

    def predict_proba(self, vectors: Rows) -> Float[Tensor, "n c"]:
        """Each class's share of the votes, float64."""
        votes = self.decision_function(vectors)
        return votes / votes.sum(1, keepdim=True)

    def predict(self, vectors: Rows) -> Int[Tensor, " n"]:
        """The label with the most votes; of equals the lowest."""
        return self.classes_[self.decision_function(vectors).argmax(1)]

    def score(self, vectors: Rows, labels: Labels) -> float:
        """The share of right predictions, in [0, 1]; a tie with another class is wrong.

        Raises:
            DataError: a label that was not among the training samples, or no samples.
        """
        return self._score(self.decision_function(vectors), whole_labels(labels, len(vectors)))

    def score_leave_one_out(self) -> float:
        """As `score`, of the training vectors, each without itself."""
        return self._score(self.leave_one_out(), self.classes_[self._codes])

    def _score(self, votes: Tensor, targets: Tensor) -> float:
        if not len(targets):
            raise DataError("KNN has no samples to be scored on")
        codes = torch.searchsorted(self.classes_, targets).clamp(max=len(self.classes_) - 1)
        if (unseen := targets[self.classes_[codes] != targets].unique()).numel():
            raise DataError(
                f"{len(unseen)} classes have no training sample, the first is {int(unseen[0])}: "
                "give some of each, or leave them out of the test"
            )
        return float(((votes >= votes.gather(1, codes[:, None])).sum(1) == 1).double().mean())

    def _votes(self, queries: np.ndarray, nearest: Any) -> Tensor:
        found = torch.zeros(len(queries), len(self.classes_), dtype=torch.float64)
        for start in range(0, len(queries), _QUERIES):
            some = slice(start, min(start + _QUERIES, len(queries)))
            cosines, indices = (torch.from_numpy(part) for part in nearest(some))
            match self.votes:
                case "weighted":
                    wide = cosines.double()
                    weights = ((wide - wide[:, :1]) / self.temperature).exp()
                case "counted":
                    weights = torch.ones(cosines.shape, dtype=torch.float64)
            found[some].scatter_add_(1, self._codes[indices], weights)
        return found


def _unit(vectors: Any) -> np.ndarray:
    """Rows on the host that are unit vectors; a memory map stays one."""
    rows = on_host(vectors)
    if rows.ndim != 2:
        raise DataError(f"vectors must be rows [n, e], got {list(rows.shape)}")
    bad = off = 0
    for start in range(0, len(rows), _QUERIES):
        block = rows[start : start + _QUERIES].astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        bad += int((~np.isfinite(lengths)).sum())
        off += int((np.abs(lengths - 1) > _UNIT).sum())
    check_finite(bad, len(rows), "k-NN")
    if off:
        raise DataError(
            f"{off} of {len(rows)} rows are no unit vectors: divide each by its length; "
            "enc.encode_image gives unit rows"
        )
    return rows
