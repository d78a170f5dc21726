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

__all__ = ["TopK", "best_pairs", "check_space", "checked_queries", "dots", "topk"]

_ROWS = 8192  # vectors compared at once
_QUERIES = 512  # with so many queries: 16 MB of scores
_HUGE = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).smallest_subnormal)
_PAIRS = 1024  # pairs scored at once in float64: 8 MB where e = 512; with 64 MB, 10 times as slow


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
        queries = checked_queries(queries, k)
        self.k = k
        self.num_vectors = 0
        self.scores = np.empty((len(queries), 0), np.float32)
        self.indices = np.empty((len(queries), 0), np.int64)
        self._queries = queries
        # The rough product is of queries whose largest number is between 1/2 and 1, so that it
        # cannot overflow; a power of two rounds nothing.
        _, exponent = np.frexp(np.abs(queries).max(1, initial=0).astype(np.float64))
        self._scale = np.ldexp(1.0, -exponent)[:, None]
        self._scaled = (queries * self._scale).astype(np.float32)

    def add(self, vectors: Float[np.ndarray, "n e"]) -> None:
        """Compare some more vectors. Raises ConfigError when they are not of the queries' space."""
        check_space(vectors, self._queries)
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
        rows, columns = self._candidates(self._scaled[chunk], self._scale[chunk], block, scores)
        held = scores.shape[1]
        return best_pairs(
            np.concatenate([np.repeat(np.arange(len(queries)), held), rows]),
            np.concatenate([scores.ravel(), dots(queries, block, rows, columns)]),
            np.concatenate([indices.ravel(), self.num_vectors + columns]),
            num_queries=len(queries),
            k=min(self.k, held + len(block)),
        )

    def _candidates(
        self, queries: np.ndarray, scale: np.ndarray, block: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every pair whose exact score may be among the k best."""
        with np.errstate(over="ignore", invalid="ignore"):  # rows with NaN or infinity
            rough = queries @ block.T  # q b
            norms = np.sqrt(np.einsum("be,be->b", block, block))
        finite = np.isfinite(norms)
        if not finite.all():
            rough[np.isnan(rough)] = -np.inf
        if scores.shape[1] == self.k:
            floor = scores[:, -1:] * scale
        elif len(block) > self.k:
            floor = np.partition(rough, len(block) - self.k, axis=1)[:, [len(block) - self.k]]
        else:
            floor = np.full((len(queries), 1), -np.inf)
        floor = np.minimum(floor, _HUGE * scale)  # what is beyond float32 is infinite, and ties
        # |rough - exact| <= e u |q| |v| with u = eps / 2, twice, and the last rounding of a score,
        # which is coarser where it has no normal float32
        longest = np.max(norms, initial=0, where=finite)
        bound = (queries.shape[1] + 2) * np.finfo(np.float32).eps
        margin = bound * longest * np.linalg.norm(queries, axis=1, keepdims=True) + scale * _TINY
        with np.errstate(over="ignore"):
            least = np.nextafter((floor - margin).astype(np.float32), np.float32(-np.inf))
        rows, columns = np.nonzero(rough >= least)
        return rows, columns


def dots(
    queries: Float[np.ndarray, "q e"],
    vectors: Float[np.ndarray, "n e"],
    rows: Int[np.ndarray, " p"],
    columns: Int[np.ndarray, " p"],
) -> Float[np.ndarray, " p"]:
    """Inner products of the pairs (queries[rows[i]], vectors[columns[i]]): what a score is.

    Summed in float64, rounded once to float32; NaN becomes -inf, beyond float32 becomes infinite.
    """
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS):
        some = slice(start, start + _PAIRS)
        left, right = queries[rows[some]], vectors[columns[some]]
        with np.errstate(over="ignore", invalid="ignore"):
            found[some] = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
    found[np.isnan(found)] = -np.inf
    return found


def best_pairs(
    rows: Int[np.ndarray, " p"],
    scores: Float[np.ndarray, " p"],
    indices: Int[np.ndarray, " p"],
    *,
    num_queries: int,
    k: int,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """(scores, indices) of the k best pairs of each query, a tie to the lower index.

    Args:
        rows: the query of each pair; every query has at least k of them.
    """
    order = np.lexsort((indices, -scores, rows))  # by row, then falling score, then index
    counts = np.bincount(rows, minlength=num_queries)
    first = np.cumsum(counts) - counts
    keep = order[first[:, None] + np.arange(k)]  # q k
    return scores[keep], indices[keep]


def checked_queries(queries: Float[np.ndarray, "q e"], k: int) -> Float[np.ndarray, "q e"]:
    """The queries as float32, or ConfigError: k below 1, no rows, or one that is not finite."""
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if queries.ndim != 2:
        raise ConfigError(f"queries must be rows [q, e], got {list(queries.shape)}")
    with np.errstate(over="ignore"):
        queries = np.ascontiguousarray(queries, np.float32)
    if not np.isfinite(queries).all():
        raise ConfigError("queries hold NaN or infinity, as of an image that failed")
    return queries


def check_space(vectors: Float[np.ndarray, "n e"], queries: Float[np.ndarray, "q e"]) -> None:
    """ConfigError unless the vectors are rows as long as the queries."""
    width = queries.shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ConfigError(
            f"vectors {list(vectors.shape)} and queries of {width} numbers are not of one "
            "space. Make both with the same model."
        )
