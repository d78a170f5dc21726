"""Pictures that are nearly the same: by their vectors and a hash of their pixels together.

- The embedding alone takes two pictures of one kind for copies; the hash alone takes two that are
  laid out alike (a dark thing on white). What both say is right far more often: figures in
  docs/explanation/duplicates.md, which `DUPLICATE_COSINE` and `DUPLICATE_HAMMING` come from.
- A pair is in if and only if its cosine in float64 reaches the threshold: a product in float32 with
  a bound on its rounding says which pairs to compute (as in `engine.topk`).
- Nothing n x n is made. `neighbours` gives its pairs as it meets them; `leaders` groups without the
  pairs, comparing each picture with one leader of each group, so that ten thousand copies of one
  picture take little memory and little time.
- A member is near its group's leader, not near another member: a chain of small steps does not join
  pictures that are unlike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch.nn.functional as F

from diptych.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt64
    from torch import Tensor

__all__ = [
    "DUPLICATE_COSINE",
    "DUPLICATE_HAMMING",
    "Pairs",
    "between",
    "hamming",
    "leaders",
    "neighbours",
    "perceptual_hash",
]

DUPLICATE_COSINE = 0.8
DUPLICATE_HAMMING = 10
_TILE = 2048  # rows and columns compared at once: 16 MB of cosines
_PAIRS = 8192  # pairs computed at once in float64: 100 MB where e = 768
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
_SIDE, _LOW = 32, 8


class Pairs(NamedTuple):
    """Near pairs: positions i < j, int64 [p], and cosines, float32 [p]."""

    i: np.ndarray
    j: np.ndarray
    cosine: np.ndarray


def perceptual_hash(pixels: Float[Tensor, "n 3 H W"]) -> UInt64[np.ndarray, " n"]:
    """64 bits of each picture that stay when it is resized, recompressed or made brighter.

    The pHash of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010)
    as the package imagehash computes it: grey, 32 x 32 by area, which of the 8 x 8 lowest
    coefficients of the cosine transform are above their median; rows first, the first bit highest.
    The constant coefficient counts as above it, so brightness and what a model's normalisation adds
    do not matter; a factor does not either, if it is the same for the three channels. Models divide
    by nearly equal deviations: a bit or two may differ from the hash of plain pixels.

    Args:
        pixels: what `Preprocess` gives, normalised or not; upright, so two orientations in EXIF
            have one hash.
    """
    # no product of numpy's here: its threads would spin beside the model
    area = F.adaptive_avg_pool2d(pixels.detach().float(), _SIDE).double().cpu().numpy()
    small = np.einsum("c,nchw->nhw", _GREY, area)
    largest = np.abs(small).max((1, 2), keepdims=True, initial=0)
    small = small - small.mean((1, 2), keepdims=True)
    # rounding is no picture: an area of one colour, or the halves of a mirror image, give zeros
    flat = np.abs(small).max((1, 2), keepdims=True, initial=0) <= 1e-5 * largest
    small = np.where(flat, 0, small)
    k, x = np.arange(_LOW)[:, None], np.arange(_SIDE)
    basis = np.cos(np.pi * k * (2 * x + 1) / (2 * _SIDE))  # DCT-II, not normalised
    low = (basis @ small @ basis.T).reshape(len(small), _LOW * _LOW)
    low[np.abs(low) <= 1e-6 * np.abs(low).max(1, keepdims=True, initial=0)] = 0
    low[:, 0] = np.inf
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def hamming(
    a: UInt64[np.ndarray, "*n"] | np.uint64, b: UInt64[np.ndarray, "*n"] | np.uint64
) -> Int[np.ndarray, "*n"]:
    """In how many of 64 bits two hashes differ, 0 to 64; arrays are broadcast."""
    different = np.array(np.bitwise_xor(a, b), np.uint64, order="C")
    return _ONES[different[..., None].view(np.uint8)].sum(-1, dtype=np.int64)


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def neighbours(
    vectors: Float[np.ndarray, "n e"],
    *,
    threshold: float,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Pairs]:
    """All pairs whose cosine is at least `threshold`, a block of them at a time.

    Every row is compared with every other, n * n * e operations: 1.4 s for 20,000 x 512 on two
    cores. Within a block pairs rise by i, then j; blocks come in a fixed order.

    Args:
        vectors: of any float type, also memory-mapped; rows with NaN or of length 0 have no
            neighbour.
        threshold: above 0, at most 1. Many equal rows make many pairs: take them as they come, or
            use `leaders`.
        progress: is told the number of rows that are done, after each stripe.

    Raises:
        ConfigError: a threshold outside that range, or no matrix.
    """
    _check(vectors, threshold)
    for start in range(0, len(vectors), _TILE):
        left = _Block.of(vectors[start : start + _TILE])
        for other in range(start, len(vectors), _TILE):
            right = left if other == start else _Block.of(vectors[other : other + _TILE])
            rough, bound = _rough(left, right)
            if other == start:
                rough = np.triu(rough, 1)
            rows, columns = np.nonzero(rough >= threshold - bound)
            keep = start + rows < other + columns  # of a threshold within the bound of 0
            rows, columns = rows[keep], columns[keep]
            for first in range(0, len(rows), _PAIRS):
                i, j = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
                cosines = _cosines(left, i, right, j)
                near = cosines >= threshold
                if near.any():
                    some = start + i[near], other + j[near], cosines[near].astype(np.float32)
                    yield Pairs(*some)
        if progress is not None:
            progress(min(start + _TILE, len(vectors)))


def between(
    vectors: Float[np.ndarray, "n e"], others: Float[np.ndarray, "m e"], *, threshold: float
) -> Iterator[Pairs]:
    """As `neighbours`, of pairs (i, j) of a row of `vectors` and a row of `others`.

    Raises:
        ConfigError: a threshold outside (0, 1], or matrices that are not of one space.
    """
    _check(vectors, threshold)
    _check(others, threshold)
    if vectors.shape[1] != others.shape[1]:
        raise ConfigError(
            f"vectors {list(vectors.shape)} and {list(others.shape)} are not of one space. "
            "Make both with the same model."
        )
    for start in range(0, len(vectors), _TILE):
        left = _Block.of(vectors[start : start + _TILE])
        for other in range(0, len(others), _TILE):
            right = _Block.of(others[other : other + _TILE])
            rows, columns = _near(left, right, threshold)
            for first in range(0, len(rows), _PAIRS):
                i, j = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
                cosines = _cosines(left, i, right, j).astype(np.float32)
                yield Pairs(start + i, other + j, cosines)


def leaders(
    vectors: Float[np.ndarray, "n e"],
    *,
    threshold: float = DUPLICATE_COSINE,
    hashes: UInt64[np.ndarray, " n"] | None = None,
    distance: int = DUPLICATE_HAMMING,
    order: Sequence[int] | np.ndarray | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Near-duplicates around leaders: a list for each group, its leader first.

    In the given order each picture that is in no group yet becomes a leader and takes all its
    neighbours that are in none. Pictures without a neighbour are in no list. No pairs are kept: ten
    thousand equal pictures take the memory of one.

    Args:
        vectors: as for `neighbours`.
        threshold: the cosine of a member and its leader is at least this.
        hashes: of `perceptual_hash`; with them, a member's differs from its leader's in at most
            `distance` bits too.
        order: all positions, the best first.
        progress: is told the number of pictures that are done.

    Raises:
        ConfigError: a threshold outside 0 to 1, or hashes that do not belong to the vectors.
    """
    _check(vectors, threshold)
    if hashes is not None and len(hashes) != len(vectors):
        raise ConfigError(
            f"{len(hashes)} hashes for {len(vectors)} vectors. Give one for each, in their order."
        )
    n = len(vectors)
    order = _order(n, order)

    def near(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(i, j), rising: left[i] and right[j], positions in the order, are near-duplicates."""
        some, others = order[left], order[right]
        i, j = _near(_Block.of(vectors[some]), _Block.of(vectors[others]), threshold)
        if hashes is not None:
            keep = hamming(hashes[some[i]], hashes[others[j]]) <= distance
            i, j = i[keep], j[keep]
        return i, j

    leader = np.full(n, -1)
    chiefs = np.empty(0, np.int64)
    for start in range(0, n, _TILE):
        block = np.arange(start, min(start + _TILE, n))
        for first in range(0, len(chiefs), _TILE):
            theirs, mine = chiefs[first : first + _TILE], block[leader[block] < 0]
            j, i = near(mine, theirs)
            j, where = np.unique(j, return_index=True)  # the first leader in the order
            leader[mine[j]] = theirs[i[where]]
        mine = block[leader[block] < 0]
        i, j = near(mine, mine)
        bounds = np.searchsorted(i, np.arange(len(mine) + 1))
        for k, rank in enumerate(mine.tolist()):
            if leader[rank] < 0:
                taken = mine[j[bounds[k] : bounds[k + 1]]]
                taken = taken[taken > rank]
                leader[taken[leader[taken] < 0]] = rank
        chiefs = np.concatenate([chiefs, mine[leader[mine] < 0]])
        if progress is not None:
            progress(block[-1] + 1)
    members = np.flatnonzero(leader >= 0)
    members = members[np.argsort(leader[members], kind="stable")]
    bounds = np.flatnonzero(np.diff(leader[members], prepend=-1))
    parts = np.split(members, bounds[1:]) if len(members) else []
    return [order[[leader[part[0]], *part]].tolist() for part in parts]


def _check(vectors: np.ndarray, threshold: float) -> None:
    if vectors.ndim != 2:
        raise ConfigError(f"vectors must be rows [n, e], got {list(vectors.shape)}")
    if not 0 < threshold <= 1:
        raise ConfigError(
            f"threshold must be a cosine above 0, at most 1, got {threshold}. "
            f"Near-duplicates have {DUPLICATE_COSINE} and more."
        )


def _order(n: int, order: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """The position of each rank, int64 [n]."""
    order = np.arange(n) if order is None else np.asarray(order, np.int64)
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ConfigError(f"order must hold each position from 0 to {n - 1} once")
    return order


# --- tiles ----------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Rows float32 [b e], and their lengths, float64 [b]: NaN for a row of zeros, near nothing."""

    rows: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> _Block:
        rows = np.ascontiguousarray(vectors, np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        return cls(rows, np.where(lengths > 0, lengths, np.nan))


def _rough(left: _Block, right: _Block) -> tuple[np.ndarray, float]:
    """(cosines [l r], float32, how far at most they are off)."""
    # |product in float32 - exact| <= e u |a| |b| with u = eps / 2: twice that, and the roundings
    bound = float((left.rows.shape[1] + 8) * np.finfo(np.float32).eps)
    with np.errstate(invalid="ignore"):
        # numpy's product: torch's may run in bfloat16 where a program has allowed it
        found = left.rows @ right.rows.T
        found /= left.lengths.astype(np.float32)[:, None]
        found /= right.lengths.astype(np.float32)
    return found, bound


def _near(left: _Block, right: _Block, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of all pairs that reach the threshold, rising."""
    rough, bound = _rough(left, right)
    rows, columns = np.nonzero(rough >= threshold - bound)
    unsure = np.flatnonzero(rough[rows, columns] < threshold + bound)
    keep = np.ones(len(rows), bool)
    for some in np.split(unsure, range(_PAIRS, len(unsure), _PAIRS)):
        keep[some] = _cosines(left, rows[some], right, columns[some]) >= threshold
    return rows[keep], columns[keep]


def _cosines(left: _Block, i: np.ndarray, right: _Block, j: np.ndarray) -> np.ndarray:
    """Cosines of pairs, float64."""
    a, b = left.rows[i].astype(np.float64), right.rows[j].astype(np.float64)
    return np.einsum("ij,ij->i", a, b) / (left.lengths[i] * right.lengths[j])
