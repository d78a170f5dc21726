"""The k vectors most like each query: exact, in bounded memory, the same on every machine.

- Every vector is compared; there is no index that could miss one.
- A matrix product in float32 says who may be among the best, with a bound on its rounding (Higham,
  Accuracy and Stability of Numerical Algorithms, section 3.1). Only those are scored in float64 and
  rounded once. So a score depends neither on the block a vector came in nor on the BLAS, two copies
  of a vector tie exactly, and a tie goes to the lower index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diptych.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["TopK", "topk"]

_ROWS = 8192  # vectors compared at once
_QUERIES = 512  # with so many queries: 16 MB of scores
_PAIRS = 8192  # pairs scored at once in float64: 100 MB where e = 768


def topk(
    vectors: Float[np.ndarray, "n e"], queries: Float[np.ndarray, "q e"], k: int
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Scores and indices of the k rows of `vectors` with the largest inner products, best first.

    Args:
        vectors: of any float type, also memory-mapped; unit rows make the scores cosines. A row
            with NaN (`on_error="nan"`) is never better than another: its score is -inf.
        queries: rows of the same space.
        k: at least 1; of fewer vectors all are returned.

    Returns:
        scores float32 [q, min(k, n)], falling in each row, and indices int64 of the same shape.

    Raises:
        ConfigError: k below 1, a query with NaN, or shapes that do not belong together.
    """
    best = TopK(queries, k)
    best.add(vectors)
    return best.scores, best.indices


class TopK:
    """`topk` of vectors that come in blocks, as from `Encoder.stream`: none of them is kept.

    Attributes:
        scores: float32 [q, min(k, n)] of the n vectors so far, best first.
        indices: int64 of the same shape: the position among all vectors so far.
        num_vectors: n.
    """

    def __init__(self, queries: Float[np.ndarray, "q e"], k: int):
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        if queries.ndim != 2:
            raise ConfigError(f"queries must be rows [q, e], got {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise ConfigError("queries hold NaN or infinity, as of an image that failed")
        self.k = k
        self.num_vectors = 0
        self.scores = np.empty((len(queries), 0), np.float32)
        self.indices = np.empty((len(queries), 0), np.int64)
        self._queries = np.ascontiguousarray(queries, np.float32)

    def add(self, vectors: Float[np.ndarray, "n e"]) -> None:
        """Compare some more vectors. Raises ConfigError when they are not of the queries' space."""
        width = self._queries.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ConfigError(
                f"vectors {list(vectors.shape)} and queries of {width} numbers are not of one "
                "space. Make both with the same model."
            )
        for start in range(0, len(vectors), _ROWS):
            block = np.ascontiguousarray(vectors[start : start + _ROWS], np.float32)
            parts = [
                self._better(slice(q, q + _QUERIES), block)
                for q in range(0, len(self._queries), _QUERIES)
            ]
            if parts:
                scores, indices = zip(*parts, strict=True)
                self.scores, self.indices = np.concatenate(scores), np.concatenate(indices)
            self.num_vectors += len(block)

    def _better(self, chunk: slice, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best of some queries when `block` has joined what they have."""
        queries, scores, indices = self._queries[chunk], self.scores[chunk], self.indices[chunk]
        rows, columns = self._candidates(queries, block, scores)
        added = _dots(queries, block, rows, columns)

        held = scores.shape[1]
        row = np.concatenate([np.repeat(np.arange(len(queries)), held), rows])
        score = np.concatenate([scores.ravel(), added])
        index = np.concatenate([indices.ravel(), self.num_vectors + columns])
        order = np.lexsort((index, -score, row))  # by row, then falling score, then index
        counts = np.bincount(row, minlength=len(queries))
        first = np.cumsum(counts) - counts
        keep = order[first[:, None] + np.arange(min(self.k, held + len(block)))]  # q k
        return score[keep], index[keep]

    def _candidates(
        self, queries: np.ndarray, block: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every pair whose exact score may be among the k best."""
        rough = queries @ block.T  # q b
        norms = np.sqrt(np.einsum("be,be->b", block, block))
        finite = np.isfinite(norms)
        if not finite.all():
            rough[np.isnan(rough)] = -np.inf
        if scores.shape[1] == self.k:
            floor = scores[:, -1:]
        elif len(block) > self.k:
            floor = np.partition(rough, len(block) - self.k, axis=1)[:, [len(block) - self.k]]
        else:
            floor = np.full((len(queries), 1), -np.inf, np.float32)
        # |rough - exact| <= e u |q| |v| with u = eps / 2, twice, and the last rounding of a score
        longest = np.max(norms, initial=0, where=finite)
        bound = (queries.shape[1] + 2) * np.finfo(np.float32).eps
        margin = bound * longest * np.linalg.norm(queries, axis=1, keepdims=True)
        rows, columns = np.nonzero(rough >= floor - margin)
        return rows, columns


def _dots(
    queries: np.ndarray, block: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Inner products of pairs, summed in float64 and rounded to float32; NaN becomes -inf."""
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS):
        some = slice(start, start + _PAIRS)
        left, right = queries[rows[some]], block[columns[some]]
        found[some] = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
    found[np.isnan(found)] = -np.inf
    return found
