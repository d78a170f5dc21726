"""int8 codes of fp16 rows, and how far a score made of them can be from the true one.

- A block of rows is centre + scale * code + residual: one scale for each dimension, since CLIP's
  have outliers. The scales are folded into the query, w = scale * query, and w is rounded to int8:
  w = step * h + rest. With whole numbers for `h . code`,

      |query . row - (query . centre + step * (h . code))|  <=  |query| |residual| + |rest| |code|

  by Cauchy and Schwarz; the largest |residual| and |code| of each block are kept. Where that is
  too far (a query with outliers of its own), h gets a low part: 16 bits, two products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from diptych.engine.int8 import product

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["BLOCK", "Codes", "Folded", "error_of_one", "fold", "quantise", "whole_numbers"]

BLOCK = 65536  # rows that share a centre and scales
_TILE = 4096  # rows encoded at once
_EPS32, _EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)


class Codes(NamedTuple):
    """int8 codes of n rows in blocks of `BLOCK`, and what bounds their error.

    Attributes:
        codes: int8 [n e], from -127 to 127. In memory of its own, or mapped with mode "c": torch
            takes no array that cannot be written.
        centres: float32 [b e].
        scales: float32 [b e], above 0.
        residuals: float64 [b]: the largest |row - centre - scale * code| of each block.
        lengths: float64 [b]: the largest |code|.
        odd: int64 [m], rising: rows with NaN or infinity. Their codes are 0, and say nothing.
    """

    codes: np.ndarray
    centres: np.ndarray
    scales: np.ndarray
    residuals: np.ndarray
    lengths: np.ndarray
    odd: np.ndarray


def quantise(rows: Float[np.ndarray, "m e"]) -> Codes:
    """The codes of one block: at most `BLOCK` rows of float16."""
    assert len(rows) <= BLOCK, "of one block"
    tiles = [_read(rows[start : start + _TILE]) for start in range(0, len(rows), _TILE)]
    finite = torch.cat([torch.isfinite(tile.float().sum(1)) for tile in tiles])  # no overflow
    odd = np.flatnonzero(~finite.numpy())
    if len(odd):
        widens_none = tiles[0].new_zeros(rows.shape[1])
        if finite.any():
            widens_none = torch.from_numpy(np.array(rows[int(finite.byte().argmax())]))
        for row in odd.tolist():
            tiles[row // _TILE][row % _TILE] = widens_none
    low = torch.stack([tile.amin(0) for tile in tiles]).amin(0).float()
    high = torch.stack([tile.amax(0) for tile in tiles]).amax(0).float()
    centre, scale = (low + high) / 2, (high - low) / 254
    scale[scale == 0] = 1.0
    coded, residuals, lengths = zip(*(_encode(t, centre, scale) for t in tiles), strict=True)
    codes = torch.cat(coded).numpy()
    codes[odd] = 0
    return Codes(
        codes,
        centre.numpy()[None],
        scale.numpy()[None],
        np.array([max(residuals)]),
        np.array([max(lengths)]),
        odd,
    )


def _read(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, np.float16))


def _encode(
    rows: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    """(codes, largest length of a residual, of a code), the last two rounded up."""
    values = rows.float().sub_(centre)
    codes = (values / scale).round_().clamp_(-127, 127)
    away, length = _largest_length(values), _largest_length(codes)
    residual = _largest_length(values.sub_(codes * scale))
    # each of three operations on a number rounds it by eps / 2, at most, of what comes out
    residual += 2 * _EPS32 * (residual + away)
    return codes.to(torch.int8), residual, length


def _largest_length(rows: torch.Tensor) -> float:
    """At least the length of the longest row, summed in float32."""
    return float(rows.square().sum(1).max().double().sqrt()) * (1 + rows.shape[1] * _EPS32)


class Folded(NamedTuple):
    """Queries as one block sees them: score = base + step * whole number, within error."""

    parts: np.ndarray  # int8 [q e], or [2q e]: high parts, then low ones
    factor: int  # whole number = factor * (high . code) + (low . code)
    step: np.ndarray  # float64 [q], above 0
    base: np.ndarray  # float64 [q]
    error: np.ndarray  # float64 [q]


def fold(queries: np.ndarray, codes: Codes, block: int, *, fine: bool) -> Folded:
    """Fold the scales of a block into float32 queries [q e]; fine: with low parts."""
    asked = queries.astype(np.float64)
    centre = codes.centres[block].astype(np.float64)
    w = asked * codes.scales[block]  # 24 bits and 24: exact in float64
    step = np.abs(w).max(1, initial=0) / 127
    step[step == 0] = 1.0
    parts = np.rint(w / step[:, None])
    rest = w - step[:, None] * parts
    factor = 1
    if fine:
        factor = factor_of(len(centre))
        step = step / factor
        low = np.rint(rest / step[:, None])
        rest = rest - step[:, None] * low
        parts = np.concatenate([parts, low])
    base = np.einsum("qe,e->q", asked, centre)  # BLAS would wake threads that then spin
    far, residual, length = lengths(asked), codes.residuals[block], codes.lengths[block]
    error = far * residual + lengths(rest) * length
    # what float64 rounds here, in the comparison, and in the exact score
    reach = far * (lengths(centre) + residual) + lengths(w) * length
    error = error * (1 + 1e-9) + 4 * (len(centre) + 4) * _EPS64 * reach
    return Folded(parts.astype(np.int8), factor, step, base, error)


def factor_of(width: int) -> int:
    """Steps of the low part in one of the high part: int8, and the whole number is int32."""
    return max(1, min(254, (2**31 - 1) // (127 * 127 * width) - 1))


def lengths(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.astype(np.float64), axis=-1)


def error_of_one(codes: Codes) -> float:
    """How far at most a score made of 16 bits is from the true one, for a query of length 1."""
    if not len(codes.residuals):
        return 0.0
    width = codes.codes.shape[1]
    most = codes.scales.max(1).astype(np.float64)  # at least |w|, where |query| is 1
    rest = np.sqrt(width) * most / 127 / (2 * factor_of(width)) * (1 + 1e-9)
    length = lengths(codes.centres) + most * codes.lengths + codes.residuals
    error = codes.residuals + rest * codes.lengths + _EPS32 * length  # that of float32 too
    return float(error.max() * (1 + 1e-6))


def whole_numbers(folded: Folded, rows: torch.Tensor, room: torch.Tensor) -> np.ndarray:
    """int32 [q t] of t rows of codes, in `room`, int32 of at least 2 q t numbers if fine."""
    parts = torch.from_numpy(folded.parts)
    q, t = len(folded.step), len(rows)
    found = room[: len(parts) * t].view(len(parts), t)
    product(parts, rows, found)
    if folded.factor > 1:
        torch.add(found[q:], found[:q], alpha=folded.factor, out=found[:q])
    return found[:q].numpy()
