"""The streamed softmax on NVIDIA GPUs: logits that never leave the chip, in Triton.

Two kernels, each a tiled product with something done to the tile of logits before it is lost: one
gives log-sum-exps, one the derivative of the loss by the logits, in bfloat16 and one tile at a
time. The two products with that derivative are plain matrix products. Used for `precision="bf16"`
where Triton is installed (torch for CUDA brings it); everything else runs the tiles of
`streamed_tiles`, on CUDA too.

- No atomic additions: partial results are written side by side and then added in a fixed order,
  so a run gives the same bits each time.
- Tested in Triton's interpreter against the readable loss, and compiled for compute capability 8.0
  and 9.0. No GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton  # pyrefly: ignore[missing-import] (comes with torch for CUDA)
import triton.language as tl  # pyrefly: ignore[missing-import]
from torch import Tensor

from diptych.train.streamed_tiles import Operands, Positives, Softmax, slices

BLOCK_R, BLOCK_C, BLOCK_E = 128, 128, 64
WARPS = 8


def logsumexp(operands: Operands) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the logits along rows [b] and columns [m], of this rank's rows."""
    m, like = len(operands.columns), operands.rows
    row_lse, column_lse = like.new_empty(len(like)), like.new_full((m,), -torch.inf)
    for r in slices(len(like), operands.size[0]):
        rows = operands.scaled(r)
        grid = (triton.cdiv(len(rows), BLOCK_R), triton.cdiv(m, BLOCK_C))
        by_row = like.new_empty(grid[1], len(rows), dtype=torch.float32)
        by_column = like.new_empty(grid[0], m, dtype=torch.float32)
        _logsumexp[grid](
            rows, operands.columns, by_row, by_column, len(rows), m, rows.shape[1],
            BLOCK_R, BLOCK_C, BLOCK_E, num_warps=WARPS,
        )  # fmt: skip
        row_lse[r] = by_row.logsumexp(0)
        column_lse = torch.logaddexp(column_lse, by_column.logsumexp(0))
    return row_lse, column_lse


def derivatives(
    operands: Operands, softmax: Softmax, positives: Positives
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """(rows, columns, scaled rows, both softmaxes less twice the target [r c]) of each tile."""
    row_ids, column_ids = positives.numbers()
    for r in slices(len(operands.rows), operands.size[0]):
        rows = operands.scaled(r)
        for c in slices(len(operands.columns), operands.size[1]):
            columns = operands.columns[c]
            out = torch.empty(len(rows), len(columns), dtype=operands.dtype, device=rows.device)
            grid = (triton.cdiv(len(rows), BLOCK_R), triton.cdiv(len(columns), BLOCK_C))
            _derivative[grid](
                rows, columns, softmax.row_lse[r], softmax.columns[c], row_ids[r], column_ids[c],
                positives.weights[r], out, len(rows), len(columns), rows.shape[1],
                BLOCK_R, BLOCK_C, BLOCK_E, num_warps=WARPS,
            )  # fmt: skip
            yield r, c, rows, out


@triton.jit
def _logits(
    rows, columns, i, j, b, m, e,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Logits of rows i with columns j in float32, -inf beyond the edges."""
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(0, e, BLOCK_E):
        k = start + tl.arange(0, BLOCK_E)
        x = tl.load(
            rows + i[:, None].to(tl.int64) * e + k[None, :],
            mask=(i < b)[:, None] & (k < e)[None, :],
            other=0.0,
        )
        y = tl.load(
            columns + j[None, :].to(tl.int64) * e + k[:, None],
            mask=(j < m)[None, :] & (k < e)[:, None],
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision="ieee")
    return tl.where((i < b)[:, None] & (j < m)[None, :], total, float("-inf"))


@triton.jit
def _logsumexp(
    rows, columns, by_row, by_column, b, m, e,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    r, c = tl.program_id(0), tl.program_id(1)
    i, j = r * BLOCK_R + tl.arange(0, BLOCK_R), c * BLOCK_C + tl.arange(0, BLOCK_C)
    logits = _logits(rows, columns, i, j, b, m, e, BLOCK_R, BLOCK_C, BLOCK_E)
    # Beyond the edges the largest is -inf; 0 there keeps NaN out of the difference.
    largest = tl.max(logits, 1)
    largest = tl.where(i < b, largest, 0.0)
    total = tl.sum(tl.exp(logits - largest[:, None]), 1)
    tl.store(by_row + c.to(tl.int64) * b + i, largest + tl.log(total), mask=i < b)
    largest = tl.max(logits, 0)
    largest = tl.where(j < m, largest, 0.0)
    total = tl.sum(tl.exp(logits - largest[None, :]), 0)
    tl.store(by_column + r.to(tl.int64) * m + j, largest + tl.log(total), mask=j < m)


@triton.jit
def _derivative(
    rows, columns, row_lse, column_lse, row_ids, column_ids, weights, out, b, m, e,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    logits = _logits(rows, columns, i, j, b, m, e, BLOCK_R, BLOCK_C, BLOCK_E)
    inside_r, inside_c = i < b, j < m
    by_row = tl.exp(logits - tl.load(row_lse + i, mask=inside_r, other=0.0)[:, None])
    by_column = tl.exp(logits - tl.load(column_lse + j, mask=inside_c, other=0.0)[None, :])
    own = tl.load(row_ids + i, mask=inside_r, other=-2)[:, None]
    other = tl.load(column_ids + j, mask=inside_c, other=-1)[None, :]
    weight = tl.load(weights + i, mask=inside_r, other=0.0)[:, None]
    result = by_row + by_column - tl.where(own == other, 2.0 * weight, 0.0)
    place = out + i[:, None].to(tl.int64) * m + j[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=inside_r[:, None] & inside_c[None, :])
