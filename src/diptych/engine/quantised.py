"""The k rows of a large fp16 matrix most like each query: an int8 scan, then exact scores.

- The result is that of `engine.topk` on the same rows, bit for bit; the codes (`engine.codes`)
  only say which rows need not be looked at. One byte a number is read instead of two or four.
- A first pass collects what may be among the k best, given the k best lower bounds so far; what is
  left of it in the end is scored in float64 from the fp16 rows. No matrix [q, n] is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from diptych.engine.codes import (
    BLOCK,
    Codes,
    Folded,
    error_of_one,
    fold,
    quantise,
    whole_numbers,
)
from diptych.engine.int8 import FEW, alone
from diptych.engine.topk import TopK, best_pairs, check_space, checked_queries, dots
from diptych.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Quantised"]

_TILE = 4096  # rows compared first, so that the next know a floor; rows compared directly
_QUERIES = 256  # at once
_SCORES = 2**21  # made at once, 8 MB: the fewer products, the fewer times threads must meet
_PAIRS = 2**20  # candidates collected before they are scored: 40 MB
_FEW = 32  # where fewer than one in so many rows may answer, those are compared directly
_MANY = 500  # candidates of a query, when a second product costs less than their scores


class Quantised:
    """fp16 rows and their codes, to be searched.

    Attributes:
        vectors: float16 [n e], the truth.
        codes: derived from them.
        bound: how far `scores` of a query of length 1 is from the exact ones at most.
    """

    def __init__(
        self,
        vectors: Float[np.ndarray, "n e"],
        codes: Codes,
        *,
        touch: Callable[[np.ndarray], object] | None = None,
    ):
        """touch: called with the rows, int64 [m], that will be read next from `vectors`."""
        self.vectors, self.codes = vectors, codes
        self._touch = touch if touch is not None else lambda rows: None
        self._tensor = torch.from_numpy(codes.codes)
        self._sane = None
        if len(codes.odd):
            self._sane = np.ones(len(vectors), bool)
            self._sane[codes.odd] = False
        self.bound = error_of_one(codes)

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "n e"]) -> Quantised:
        """Codes of rows in memory. Raises ConfigError unless they are float16 [n e]."""
        if vectors.ndim != 2 or vectors.dtype != np.float16:
            raise ConfigError(
                f"vectors must be float16 [n, e], got {vectors.dtype} {list(vectors.shape)}. "
                "Type: vectors.astype(numpy.float16)"
            )
        starts = range(0, len(vectors), BLOCK)
        blocks = [quantise(vectors[start : start + BLOCK]) for start in starts]
        if not blocks:
            none = np.empty((0, vectors.shape[1]), np.float32)
            empty = np.empty(0)
            codes = Codes(none.astype(np.int8), none, none, empty, empty, np.empty(0, np.int64))
            return cls(vectors, codes)
        odd = [block.odd + start for block, start in zip(blocks, starts, strict=True)]
        codes, centres, scales, residuals, longest = (
            np.concatenate(part) for part in list(zip(*blocks, strict=True))[:5]
        )
        return cls(vectors, Codes(codes, centres, scales, residuals, longest, np.concatenate(odd)))

    def topk(
        self,
        queries: Float[np.ndarray, "q e"],
        k: int,
        *,
        where: Bool[np.ndarray, " n"] | None = None,
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Scores and rows of the k largest inner products, best first: exact, as `engine.topk`.

        Args:
            queries: rows of the same space.
            k: at least 1.
            where: the rows that may answer; None for all.

        Returns:
            scores float32 [q, min(k, rows that may answer)], falling, and int64 rows of that shape.

        Raises:
            ConfigError: k below 1, a query with NaN, or shapes that do not belong together.
        """
        queries = checked_queries(queries, k)
        check_space(self.vectors, queries)
        num = len(self.vectors)
        if where is not None:
            if where.shape != (num,) or where.dtype != bool:
                raise ConfigError(
                    f"where must be bool [{num}], got {where.dtype} {list(where.shape)}. "
                    "Give True or False for each row."
                )
            num = int(np.count_nonzero(where))
        if num < 2 * _TILE or num * _FEW < len(self.vectors) or k * 16 > num:
            return self._directly(queries, k, where)
        if 0 < len(queries) <= FEW:
            return alone(_Pass(self, queries, k, where).run)
        parts = [
            _Pass(self, queries[start : start + _QUERIES], k, where).run()
            for start in range(0, len(queries), _QUERIES)
        ]
        if not parts:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, rows = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(rows)

    def scores(self, query: Float[np.ndarray, " e"]) -> Float[np.ndarray, " n"]:
        """Scores of all rows with one query, float32, each within `bound` * |query| of the exact.

        Meant for the distribution of scores. Rows with NaN or infinity have -inf.

        Raises:
            ConfigError: a query with NaN, or of another length than the rows.
        """
        queries = checked_queries(query[None], 1)
        check_space(self.vectors, queries)
        return alone(functools.partial(self._scores, queries))

    def _scores(self, queries: np.ndarray) -> np.ndarray:
        found = np.empty(len(self.vectors), np.float32)
        room = torch.empty(2 * BLOCK, dtype=torch.int32)
        for block, start in enumerate(range(0, len(found), BLOCK)):
            part = fold(queries, self.codes, block, fine=True)
            whole = whole_numbers(part, self._tensor[start : start + BLOCK], room)[0]
            with np.errstate(over="ignore"):
                found[start : start + BLOCK] = (part.base + part.step * whole).astype(np.float32)
        found[self.codes.odd] = -np.inf
        return found

    def _directly(
        self, queries: np.ndarray, k: int, where: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every row that may answer is compared in full."""
        best = TopK(queries, k)
        rows = np.arange(len(self.vectors)) if where is None else np.flatnonzero(where)
        for start in range(0, len(rows), 2 * _TILE):
            some = rows[start : start + 2 * _TILE]
            self._touch(some)
            best.add(self.vectors[some])
        return best.scores, rows[best.indices]


class _Pass:
    """One reading of all codes for some queries."""

    def __init__(self, rows: Quantised, queries: np.ndarray, k: int, where: np.ndarray | None):
        self._rows, self._queries, self._k = rows, queries, k
        odd, sane = rows.codes.odd, rows._sane
        self._odd = odd if where is None else odd[where[odd]]
        self._alive = where if sane is None else sane if where is None else where & sane
        self._most = max(_TILE, min(BLOCK, _SCORES // len(queries)))  # rows of a stripe
        self._room = torch.empty(2 * len(queries) * self._most, dtype=torch.int32)
        self._fine = False  # whether queries have a low part too
        self._floor = np.full(len(queries), -np.inf)  # k rows score this or more
        self._pairs: list[tuple[np.ndarray, ...]] = []  # query, row, value, error
        self._best: tuple[np.ndarray, np.ndarray, np.ndarray]
        self._best = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        tightened = 0
        for block, start, stop in self._stripes():
            if self._alive is not None and not self._alive[start:stop].any():
                continue
            part = fold(self._queries, self._rows.codes, block, fine=self._fine)
            self._scan(part, start, stop)
            if stop >= 2 * tightened or sum(len(p[0]) for p in self._pairs) > _PAIRS:
                self._tighten()
                tightened = stop
        self._tighten()
        self._settle()
        if len(self._odd):
            some = np.repeat(np.arange(len(self._queries)), len(self._odd))
            self._score(some, np.tile(self._odd, len(self._queries)))
        return best_pairs(*self._best, num_queries=len(self._queries), k=self._k)

    def _stripes(self) -> Iterator[tuple[int, int, int]]:
        """(block, start, stop): the first small, so that the next know a floor."""
        n = len(self._rows.vectors)
        for block, first in enumerate(range(0, n, BLOCK)):
            last, start = min(first + BLOCK, n), first
            while start < last:
                stop = min(start + (self._most if start else _TILE), last)
                yield block, start, stop
                start = stop

    def _scan(self, part: Folded, start: int, stop: int) -> None:
        """Collect the pairs of a stripe whose upper bound reaches the floor."""
        found = whole_numbers(part, self._rows._tensor[start:stop], self._room)  # q t
        if np.isneginf(self._floor).any():
            self._first_floor(part, found, start, stop)
        least = (_below(self._floor) - part.base - part.error) / part.step
        whole = np.iinfo(np.int32)
        least = np.ceil(least).clip(whole.min, whole.max).astype(np.int32)
        query, column = np.divmod(np.flatnonzero(found >= least[:, None]), stop - start)
        row = start + column
        value = part.base[query] + part.step[query] * found[query, column]
        pairs = (query, row, value, part.error[query])
        if self._alive is not None:
            keep = self._alive[row]
            pairs = tuple(some[keep] for some in pairs)
        if len(pairs[0]):
            self._pairs.append(pairs)

    def _first_floor(self, part: Folded, found: np.ndarray, start: int, stop: int) -> None:
        """The k-th best lower bound of a stripe."""
        some = found if self._alive is None else found[:, self._alive[start:stop]]
        if some.shape[1] >= self._k:
            kth = np.partition(some, some.shape[1] - self._k, axis=1)[:, -self._k]
            floor = part.base + part.step * kth - part.error
            self._floor = np.maximum(self._floor, floor)

    def _tighten(self) -> None:
        """Raise the floor to the k-th best lower bound; forget the pairs that are now below it."""
        if not self._pairs:
            return
        query, row, value, error = (np.concatenate(c) for c in zip(*self._pairs, strict=True))
        lower = value - error
        order = np.lexsort((-lower, query))
        counts = np.bincount(query, minlength=len(self._queries))
        enough = np.flatnonzero(counts >= self._k)
        kth = (np.cumsum(counts) - counts)[enough] + self._k - 1
        self._floor[enough] = np.maximum(self._floor[enough], lower[order[kth]])
        keep = value + error >= _below(self._floor)[query]
        self._pairs = [(query[keep], row[keep], value[keep], error[keep])]
        self._fine = self._fine or keep.sum() > _MANY * len(self._queries)
        if keep.sum() > _PAIRS // 2:  # many near-ties: only their exact scores tell them apart
            self._settle()

    def _settle(self) -> None:
        """Score what was collected, and keep the k best of it."""
        for query, row, _, _ in self._pairs:
            self._score(query, row)
        self._pairs = []
        query, score, row = self._best
        order = np.lexsort((row, -score, query))
        counts = np.bincount(query, minlength=len(self._queries))
        first = np.cumsum(counts) - counts
        rank = np.arange(len(order)) - first[query[order]]
        kept = order[rank < self._k]
        self._best = query[kept], score[kept], row[kept]
        full = np.flatnonzero(counts >= self._k)
        kth = score[order[first[full] + self._k - 1]].astype(np.float64)
        self._floor[full] = np.maximum(self._floor[full], _below(kth))

    def _score(self, query: np.ndarray, row: np.ndarray) -> None:
        self._rows._touch(row)
        scores = dots(self._queries, self._rows.vectors, query, row)
        queries, found, rows = self._best
        self._best = (
            np.concatenate([queries, query]),
            np.concatenate([found, scores]),
            np.concatenate([rows, row]),
        )


def _below(scores: np.ndarray) -> np.ndarray:
    """Under every number that rounds to the same float32 as the score, or to a better one."""
    with np.errstate(over="ignore"):
        return np.nextafter(scores.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
