"""How many wrong answers stand before each right one: exact counts over n x m pairs, streamed.

- A score is a float64 product rounded once to float32 (`engine.topk.dots`), so two copies of a
  vector tie. A product in float32 decides all pairs that its bound on rounding can tell apart
  (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), the rest is computed in
  float64: every count is that of the definition, in any block, on any number of ranks.
- The product is numpy's: torch's may run in bfloat16 or TF32 where a program has allowed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.engine.topk import dots
from diptych.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["check_finite", "on_host", "stronger"]

_STRIPE = 4096  # images whose counts are kept while all texts pass by
_ROWS, _COLUMNS = 512, 2048  # of a block of scores: 4 MB, so that comparing finds it in the cache
_BYTE = 255  # counts that fit a byte


class _Side(NamedTuple):
    """The vectors of one side, and the length of the longest, of which roundings are a share."""

    rows: Float[np.ndarray, "n e"]
    longest: float

    @classmethod
    def of(cls, vectors: Tensor | np.ndarray, what: str) -> _Side:
        rows = on_host(vectors)
        longest, bad = 0.0, 0
        for start in range(0, len(rows), _STRIPE):
            block = rows[start : start + _STRIPE].astype(np.float64)
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
            good = np.isfinite(lengths)
            bad += int((~good).sum())
            longest = max(longest, lengths.max(initial=0, where=good))
        check_finite(bad, len(rows), what)
        return cls(rows, float(longest))

    def narrow(self, start: int, stop: int) -> Float[np.ndarray, "b e"]:
        return np.ascontiguousarray(self.rows[start:stop], np.float32)


def check_finite(bad: int, n: int, what: str) -> None:
    """DataError where `bad` of `n` vectors hold a number that is not finite."""
    if bad:
        raise DataError(
            f"{bad} of {n} {what} vectors hold a number that is not finite: the weights "
            "or an input are broken. Go back to a checkpoint whose loss was finite."
        )


def on_host(vectors: Tensor | np.ndarray) -> np.ndarray:
    """On the host, of a type that numpy has; a memory map stays one."""
    if not isinstance(vectors, Tensor):
        return vectors
    vectors = vectors.detach().cpu()
    return (vectors.float() if vectors.dtype == torch.bfloat16 else vectors).numpy()


def _margin(images: _Side, texts: _Side) -> float:
    """How far a product in float32 may be from the float64 score rounded to float32.

    e u |a| |b| for the sum, u each for the rounding of a and b (of float64) and of the score; two
    more for u's higher powers. Numbers below the smallest normal one may count as zero.
    """
    e, of = images.rows.shape[1], np.finfo(np.float32)
    return float((e + 5) * of.eps / 2 * images.longest * texts.longest + (e + 1) * of.tiny)


class _Bar(NamedTuple):
    """What scores are compared with, and where a float32 product is sure; columns or rows."""

    exact: np.ndarray
    surely: np.ndarray
    perhaps: np.ndarray

    @classmethod
    def of(cls, exact: np.ndarray, margin: float) -> _Bar:
        wide = exact.astype(np.float64)
        surely = np.nextafter((wide + margin).astype(np.float32), np.float32(np.inf))
        perhaps = np.nextafter((wide - margin).astype(np.float32), np.float32(-np.inf))
        return cls(exact, surely, perhaps)

    def at(self, where: Any) -> _Bar:
        return _Bar(self.exact[where], self.surely[where], self.perhaps[where])


def stronger(
    image_vectors: Tensor | np.ndarray,
    text_vectors: Tensor | np.ndarray,
    own: Int[np.ndarray, " m"],
    share: range,
) -> Int[np.ndarray, " m+m"]:
    """For each text, the wrong texts that are at least as near to its image (0 if that is not of
    `share`); then the images of `share` that are at least as near to it as its own."""
    images, texts = _Side.of(image_vectors, "image"), _Side.of(text_vectors, "text")
    m = len(own)
    right = dots(images.rows, texts.rows, own, np.arange(m))
    bars = _Bar.of(right, _margin(images, texts))
    counts = np.zeros(2 * m, np.int64)
    order = np.argsort(own, kind="stable")  # the texts of each image
    for start in range(share.start, share.stop, _STRIPE):
        stop = min(start + _STRIPE, share.stop)
        wide = images.narrow(start, stop)
        blocks = []
        for row in range(start, stop, _ROWS):
            rows = slice(row, min(row + _ROWS, stop))
            some = np.searchsorted(own, (rows.start, rows.stop), sorter=order)
            blocks.append((rows, _slots(own, order[slice(*some)], rows.start)))
        for column in range(0, m, _COLUMNS):
            columns = slice(column, min(column + _COLUMNS, m))
            block = texts.narrow(columns.start, columns.stop)
            for rows, slots in blocks:
                scores = wide[rows.start - start : rows.stop - start] @ block.T
                here = own[columns] - rows.start
                pairs = np.flatnonzero((here >= 0) & (here < len(scores)))
                scores[here[pairs], pairs] = -np.inf  # right ones are not in the way

                def exact(i, j, rows=rows, columns=columns):
                    return dots(images.rows, texts.rows, rows.start + i, columns.start + j)

                for lines, owners in slots:
                    these = scores if len(lines) == len(scores) else scores[lines]
                    reach = _reach(
                        these, bars.at(owners[:, None]), lambda i, j, k=lines: exact(k[i], j)
                    )
                    counts[owners] += _in_rows(reach)
                reach = _reach(scores, bars.at(columns), exact)
                counts[m + column : m + columns.stop] += _in_columns(reach)
    return counts


def _slots(own: np.ndarray, texts: np.ndarray, first: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows of a block, a text of each) until every text of the block's images has had its turn."""
    place = own[texts] - first  # rising
    num = np.bincount(place) if len(place) else np.zeros(0, np.int64)
    turn = np.arange(len(place)) - np.repeat(np.cumsum(num) - num, num)
    return [(place[turn == k], texts[turn == k]) for k in range(num.max(initial=0))]


def _reach(
    scores: Float[np.ndarray, "r c"],
    bar: _Bar,
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Bool[np.ndarray, "r c"]:
    """Which scores are at least as high as the bar, where the exact ones of pairs can be had."""
    found = scores >= bar.surely
    unsure = np.flatnonzero(found != (scores >= bar.perhaps))
    if len(unsure):
        i, j = np.divmod(unsure, scores.shape[1])
        found[i, j] = exact(i, j) >= np.broadcast_to(bar.exact, scores.shape)[i, j]
    return found


def _in_rows(mask: Bool[np.ndarray, "r c"]) -> Int[np.ndarray, " r"]:
    """How many are true in each row; eight columns are counted in one addition."""
    if over := mask.shape[1] % 8:
        mask = np.pad(mask, ((0, 0), (0, 8 - over)))
    words = np.ascontiguousarray(mask).view(np.uint64)
    total = np.zeros(len(mask), np.int64)
    for start in range(0, words.shape[1], _BYTE):
        eight = words[:, start : start + _BYTE].sum(1, keepdims=True).view(np.uint8)
        total += eight.sum(1, dtype=np.int64)
    return total


def _in_columns(mask: Bool[np.ndarray, "r c"]) -> Int[np.ndarray, " c"]:
    """How many are true in each column."""
    total = np.zeros(mask.shape[1], np.int64)
    for start in range(0, len(mask), _BYTE):
        some = mask[start : start + _BYTE].view(np.uint8)
        total += np.add.reduce(some, axis=0, dtype=np.uint8)
    return total
