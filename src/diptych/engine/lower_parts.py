"""What fast paths are made of: packed linear layers, an MLP of two, attention on split heads.

Legend: n sequences of s positions; t rows, that is the positions of all sequences one after the
other; d the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.transformer import ACTIVATIONS, MLP

__all__ = ["Dense", "Layers", "Layout", "attend", "attend_rows", "pack_mlp", "product_dtype"]

# torch's fused activations of a packed linear; swish(1.702 x) / 1.702 is QuickGELU
FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "quick_gelu": ("swish", "")}

_ROWS_IN_CACHE = 64  # of an activation: 0.8 MB in a ViT-B


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or fp32 on a CPU that oneDNN has no products of `dtype` for: torch's own ones took
    seven times as long as fp32 on an AMD processor with AVX2.
    """
    if device.type != "cpu" or dtype == torch.float32 or not torch.backends.mkldnn.is_available():
        return dtype
    has = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype if has[dtype]() else torch.float32


class Dense:
    """Layers (weight [out in], bias) that share their input, as one product; an activation may
    follow. Where a CPU cannot multiply `dtype`, numbers are rounded to it and multiplied in fp32.
    In fp32 the reference's own tensors are used, so nothing is copied, unless `pack`: oneDNN's fp32
    products took half the time of `F.linear` on an AMD processor.
    """

    def __init__(self, *layers, dtype: torch.dtype, act: str | None = None, pack: bool = False):
        self.layers = [(a.weight, a.bias) if isinstance(a, nn.Linear) else a for a in layers]
        self.sizes = [len(weight) for weight, _ in self.layers]
        self.act = act
        self.weight = self.bias = None
        if dtype == torch.float32 and not pack:
            return
        # QuickGELU's factor goes into this layer; `pack_mlp` takes it out of the next one
        scale = 1.702 if act == "quick_gelu" else 1.0
        weights, biases = zip(*self.layers, strict=True)
        self.dtype = product_dtype(dtype, weights[0].device)
        self.weight = _joined(weights, scale).to(dtype).to(self.dtype)
        if biases[0] is not None:
            self.bias = _joined(biases, scale).to(dtype).to(self.dtype)
        self.packed = self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    @property
    def folds(self) -> bool:
        """Whether QuickGELU's factor has been folded into this layer."""
        return self.weight is not None and self.act == "quick_gelu"

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of each linear layer, in order."""
        if self.weight is None:
            if self.act and x.device.type == "cpu" and not torch.is_grad_enabled():
                return tuple(_activated(F.linear(x, w), bias, self.act) for w, bias in self.layers)
            out = tuple(F.linear(x, weight, bias) for weight, bias in self.layers)
            return tuple(map(ACTIVATIONS[self.act], out)) if self.act else out
        if self.packed:
            attr, algorithm = FUSED[self.act] if self.act else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise(
                x.to(self.dtype), self.weight, self.bias, attr, [], algorithm
            ).to(x.dtype)
        else:
            y = F.linear(x, self.weight, self.bias)
            if self.act:
                y = F.silu(y) if self.act == "quick_gelu" else ACTIVATIONS[self.act](y)
        return y.split(self.sizes, dim=-1)


def _activated(y: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """The activation of y + bias, in place and a few rows at a time: more leave the cache, and
    another buffer of this size is fresh memory, which took four times as long as the numbers.
    """
    for rows in y.split(_ROWS_IN_CACHE):
        if bias is not None:
            rows.add_(bias)
        rows.copy_(ACTIVATIONS[act](rows))
    return y


def _joined(tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """One after the other, times `scale`; no copy where there is nothing to do."""
    whole = tensors[0].detach() if len(tensors) == 1 else torch.cat([t.detach() for t in tensors])
    return whole if scale == 1 else whole * scale


Layers: TypeAlias = Callable[..., Dense]  # `Dense`, with how to pack already given


def pack_mlp(mlp: MLP, act: str, layers: Layers) -> tuple[Dense, Dense]:
    """The two layers of an MLP, the activation in the first: call the second on what it gives."""
    first, weight = layers(mlp.c_fc, act=act), mlp.c_proj.weight
    if first.folds:
        weight = weight / 1.702
    return first, layers((weight, mlp.c_proj.bias))


class Layout(NamedTuple):
    """How rows [t d] are cut into sequences.

    groups: (sequences, their length), in the order of the rows. Texts sorted by length have one
        group a length, so that nothing is padded; images, and texts on a GPU, are one group.
    rows: int64 [n], of all rows those that are pooled, one a sequence; None: each one's first.
    mask: bool [n 1 1 s], what may be attended to, where sequences are padded (one group).
    pooled_mask: the same for the pooled position alone.
    """

    groups: list[tuple[int, int]]
    rows: Tensor | None = None
    mask: Tensor | None = None
    pooled_mask: Tensor | None = None

    def parts(self, x: Tensor, *, pooled: bool = False) -> Iterator[Tensor]:
        """Views [n s ...] of rows [t ...], one a group; `pooled`: x is [n ...], one row each."""
        start = 0
        for n, s in self.groups:
            s = 1 if pooled else s
            yield x[start : start + n * s].unflatten(0, (n, s))
            start += n * s

    def pooled(self, x: Tensor) -> Tensor:
        """Rows [t d] -> the pooled ones [n d]."""
        if self.rows is not None:
            return x[self.rows]
        return torch.cat([part[:, 0] for part in self.parts(x)])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, **mask) -> Tensor:
    """Attention of [n s d] on its heads; `mask` is one keyword of torch's function."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # n h s k
    return F.scaled_dot_product_attention(q, k, v, **mask).transpose(1, 2).flatten(2)


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, heads: int, layout: Layout, *, causal: bool, pooled: bool
) -> Tensor:
    """Attention within each sequence: q [t d], or [n d] of the `pooled` rows; k, v [t d]."""
    # a pooled row of a causal tower that has no mask is the last one: it sees its whole sequence
    mask = layout.pooled_mask if pooled else layout.mask
    how = {"is_causal": causal and not pooled} if mask is None else {"attn_mask": mask}
    views = (layout.parts(q, pooled=pooled), layout.parts(k), layout.parts(v))
    found = [attend(*part, heads, **how).flatten(0, 1) for part in zip(*views, strict=True)]
    return found[0] if len(found) == 1 else torch.cat(found)
