"""Logits in tiles: their softmaxes, their positives, and gradients from a tile's derivative.

For `diptych.train.streamed`, which says what is computed and why. b rows on this rank, n pairs on
all ranks, m columns, e embed_dim; r and c slice a tile out of b x m.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["fp32", "bf16"]
Derivative = Callable[[Tensor, slice, slice], Tensor]
Tile = tuple[slice, slice, Tensor, Tensor]  # r, c, scaled rows [r e], something of [r c]

ROWS, COLUMNS = 512, 1024  # of a tile on a CPU, where it should stay in the cache
PAD = 32  # more columns in bfloat16: a multiple that products are fast for
SHIFT = 70.0  # exp(70) x 10^8 terms is a float32
SMALLEST = 1e-25  # a sum below has lost terms that matter


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that share a batch; one process alone needs no group."""

    group: dist.ProcessGroup | None

    @property
    def world(self) -> int:
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all ranks, in their order; no gradient passes."""
        if self.world == 1:
            return x
        out = x.new_empty(self.world * len(x), *x.shape[1:])
        dist.all_gather(list(out.chunk(self.world)), x.contiguous(), group=self.group)
        return out

    def scatter(self, x: Tensor) -> Tensor:
        """Sum over ranks of the rows that belong to this one."""
        if self.world == 1:
            return x
        out = torch.empty_like(x[: len(x) // self.world])
        dist.reduce_scatter(out, list(x.chunk(self.world)), group=self.group)
        return out

    def sum(self, x: Tensor) -> Tensor:
        if self.world > 1:
            x = x.clone()
            dist.all_reduce(x, group=self.group)
        return x

    def logsumexp(self, x: Tensor) -> Tensor:
        if self.world == 1:
            return x
        largest = x.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return self.sum((x - largest).exp()).log() + largest


class Operands:
    """The two factors of the logits, scale x rows [b e] x columns [m e] transposed, in tiles.

    `first`: the column that belongs to row 0; the others follow. In bfloat16 off CUDA a product
    comes back rounded to 8 bits, too few for large logits. There the factors get columns that
    subtract the logit of the row's own pair inside the product, where sums are float32, and the
    tile adds it again: near that logit, where a trained model's weight is, rounding is least.
    Both passes must round alike: nearer values in the second made the gradient worse.
    """

    def __init__(
        self, rows: Tensor, columns: Tensor, scale: Tensor, *, first: int, precision: Precision
    ):
        self.rows, self.scale, self.first = rows, scale, first
        self.dtype = torch.bfloat16 if precision == "bf16" else rows.dtype
        self.columns = columns.to(self.dtype)
        larger = 1 if rows.device.type == "cpu" else 8
        self.size = (larger * ROWS, larger * COLUMNS)  # of a tile
        self.near = None
        if precision == "bf16" and rows.device.type != "cuda":
            self.near = self.own()  # b
            self._columns = F.pad(self.columns, (0, PAD), value=1.0)
            self.columns = self._columns[:, : columns.shape[1]]

    def own(self) -> Tensor:
        """The logit of each row with its own column, [b]."""
        return self.dot(self.columns[self.first : self.first + len(self.rows)])

    def dot(self, others: Tensor, which: Tensor | None = None) -> Tensor:
        """Each scaled row's product with its row of `others`, or with the one in `which` [b]."""
        parts = []
        for r in slices(len(self.rows), self.size[0]):
            other = others[r] if which is None else others[which[r]]
            parts.append((self.scaled(r).to(self.rows.dtype) * other).sum(1))
        return torch.cat(parts)

    def scaled(self, r: slice) -> Tensor:
        return (self.rows[r] * self.scale).to(self.dtype)

    def tiles(self) -> Iterator[Tile]:
        """The logits, row after row."""
        for r in slices(len(self.rows), self.size[0]):
            rows, logits = self.row(r)
            for c in slices(len(self.columns), self.size[1]):
                yield r, c, rows, logits(c)

    def row(self, r: slice) -> tuple[Tensor, Callable[[slice], Tensor]]:
        """Scaled rows [r e], and the function that gives their logits with columns c."""
        rows = self.scaled(r)
        if self.near is None:
            return rows, lambda c: product(rows, self.columns[c])
        near = self.near[r, None]
        rows = F.pad(rows, (0, PAD))
        left = -near
        for part in rows[:, -PAD:].split(1, 1)[:3]:  # three times 8 bits are a float32
            part.copy_(left)
            left = left - part
        return rows[:, :-PAD], lambda c: product(rows, self._columns[c]).add_(near)


def fused(operands: Operands) -> bool:
    """Whether `streamed_triton` makes the softmaxes of these."""
    on_gpu = operands.rows.device.type == "cuda" and operands.dtype == torch.bfloat16
    return on_gpu and importlib.util.find_spec("triton") is not None


def derivatives(operands: Operands, derivative: Derivative) -> Iterator[Tile]:
    """The tiles with `derivative(tile, r, c)`, which may write into the tile, for the logits."""
    for r, c, rows, tile in operands.tiles():
        yield r, c, rows, derivative(tile, r, c).to(operands.dtype)


def gradients(
    operands: Operands, tiles: Iterator[Tile], factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """By rows, columns and scale, of a loss whose derivative by the logits is factor x `tiles`."""
    rows, columns, scale = operands.rows, operands.columns, operands.scale
    d_rows = torch.zeros_like(rows)
    d_columns = torch.zeros(columns.shape, dtype=rows.dtype, device=rows.device)
    d_scale = torch.zeros((), dtype=torch.float64, device=rows.device)
    for r, c, scaled, g in tiles:
        d_rows[r] += product(g, columns[c].T)
        d_columns[c] += product(g.T, scaled.T)
    for r in slices(len(rows), operands.size[0]):
        # The sum of derivative x cosine, without another pass over the tiles.
        d_scale += (rows[r] * d_rows[r]).sum() * factor
    return d_rows.mul_(scale * factor), d_columns.mul_(factor), d_scale


class Softmax:
    """The softmaxes of the logits along rows and along columns, as their log-sum-exps.

    Only the first n columns have a softmax of their own; the others are hard negatives.
    """

    def __init__(self, ranks: Ranks, operands: Operands, n: int):
        self.ranks, self.n = ranks, n
        self.shift = max(float(operands.scale) - SHIFT, 0.0)
        self.quick = False
        if fused(operands):
            from diptych.train import streamed_triton

            self.row_lse, columns = streamed_triton.logsumexp(operands)
        else:
            # With unit rows one exponential serves both directions. A row or a column far below
            # the others would underflow: then each with a maximum of its own.
            rows, columns = self._quick(operands)
            sums = torch.cat([rows, columns])
            self.quick = bool(((sums > SMALLEST) & sums.isfinite()).all())
            if self.quick:
                self.row_lse, columns = rows.log() + self.shift, columns.log() + self.shift
            else:
                self.row_lse, columns = self._careful(operands)
        self.column_lse = ranks.logsumexp(columns[:n])
        infinite = columns.new_full((len(columns) - n,), torch.inf)
        self.columns = torch.cat([self.column_lse, infinite])  # m
        if self.quick:
            self._row_weight = (self.shift - self.row_lse).exp()
            self._column_weight = (self.shift - self.columns).exp()

    def _quick(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """Sums of exp(logits - shift) along rows [b] and columns [m]."""
        rows = operands.rows.new_zeros(len(operands.rows))
        columns = operands.rows.new_zeros(len(operands.columns))
        for r, c, _scaled, tile in operands.tiles():
            e = self._exp_(tile)
            rows[r] += e.sum(1)
            columns[c] += e.sum(0)
        return rows, columns

    def _careful(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """Log-sum-exps along rows [b] and columns [m] at any size of logits."""
        rows = operands.rows.new_full((len(operands.rows),), -torch.inf)
        columns = operands.rows.new_full((len(operands.columns),), -torch.inf)
        for r, c, _scaled, tile in operands.tiles():
            rows[r] = torch.logaddexp(rows[r], tile.logsumexp(1))
            columns[c] = torch.logaddexp(columns[c], tile.logsumexp(0))
        return rows, columns

    def value(self, local: Tensor) -> Tensor:
        """The loss of all ranks: of the rows, their part `local` is this rank's alone."""
        return (self.ranks.sum(local) + self.column_lse.sum(dtype=torch.float64)) / (2 * self.n)

    def _exp_(self, tile: Tensor) -> Tensor:
        return (tile.sub_(self.shift) if self.shift > 0 else tile).exp_()

    def probabilities_(self, tile: Tensor, r: slice, c: slice) -> Tensor:
        """Logits to the sum of both softmaxes, in place."""
        if self.quick:
            both = self._row_weight[r, None] + self._column_weight[c]
            return self._exp_(tile).mul_(both)
        by_column = (tile - self.columns[c]).exp_()
        return tile.sub_(self.row_lse[r, None]).exp_().add_(by_column)


class Positives:
    """Which columns belong to which row: the pair's own, or all of its group.

    `shared`: the row's weight is spread over its positives; otherwise each of them has weight 1.
    """

    def __init__(self, ranks: Ranks, operands: Operands, groups: Tensor | None, *, shared: bool):
        b, self.operands = len(operands.rows), operands
        self.first, self.n = ranks.rank * b, ranks.world * b
        self.ids = None
        self.weights = operands.rows.new_ones(b)
        self.number = float(b)  # of positives, weighted
        if groups is not None:
            every = ranks.gather(groups)
            _, ids, counts = every.unique(return_inverse=True, return_counts=True)
            self.row_ids = ids[self.first : self.first + b]
            counts = counts[self.row_ids]
            self.ids = F.pad(ids, (0, len(operands.columns) - self.n), value=-1)
            if shared:
                self.weights = 1 / counts.to(self.weights)
            else:
                self.number = float(counts.sum())

    def logits(self) -> Tensor:
        """The weighted sum of the logits of all positives of this rank's rows, without bias."""
        operands = self.operands
        if self.ids is None:
            logits = operands.own()
        else:
            sums = operands.rows.new_zeros(int(self.ids.max()) + 1, operands.rows.shape[1])
            sums.index_add_(0, self.ids[: self.n], operands.columns[: self.n].to(sums.dtype))
            logits = operands.dot(sums, self.row_ids)
        return (logits * self.weights).sum(dtype=torch.float64)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Equal numbers for what belongs together, of rows [b] and columns [m]."""
        if self.ids is not None:
            return self.row_ids, self.ids
        ids = torch.arange(len(self.operands.columns), device=self.weights.device)
        return ids[self.first : self.first + len(self.weights)], ids

    def subtract_(self, tile: Tensor, r: slice, c: slice, times: float = 1.0) -> Tensor:
        """The tile less `times` the weight at each positive, in place."""
        if self.ids is None:
            tile.diagonal(self.first + r.start - c.start).sub_(times)
            return tile
        same = self.row_ids[r, None] == self.ids[c]
        return tile.addcmul_(same.to(tile.dtype), self.weights[r, None], value=-times)


def slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [r e] x b [c e] transposed, added up in float32 or wider."""
    if a.device.type == "cpu" and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # Twice as fast as the BLAS behind `@` on processors of another maker than its own.
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    if a.dtype == torch.bfloat16:
        if a.device.type == "cuda":
            return torch.mm(a, b.T, out_dtype=torch.float32)
        return (a @ b.T).float()
    return a @ b.T
