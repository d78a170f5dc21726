"""What both transformer towers are made of: attention, MLP, block, and the walk through a stack.

- q, k, v and out are four `nn.Linear`, so that adapters find them; the engine fuses them.
- Attention weights are computed beside the fast path, only for the layers that are asked for.
- Starting values are set by `towers.initialise`, not here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.config import BertConfig, TextConfig, ViTConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Mask = Bool[Tensor, "n 1 s s"] | Bool[Tensor, "n 1 1 s"] | None


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(kw_only=True, slots=True)
class Hidden:
    """Activations of one tower. Keys are the layer numbers as they were asked for.

    tokens: {i: [n s d]}, the output of block i; 0 is the input of block 1, -1 the last block's
        output; always before the final norm.
    attention: {i: [n h s s]}, the softmax weights inside block i (rows are queries).
    prefix: leading tokens that are not patches (1 for a class token).
    grid: rows and columns of patches; None for text.
    mask: [n s], True where a token is real; None if all are.
    pooled: [n], the position that a text tower pools; None otherwise.
    beside: [n c], what reaches the pool beside the tokens (colours, for a `Palette`).
    """

    tokens: dict[int, Tensor]
    attention: dict[int, Tensor]
    prefix: int = 0
    grid: tuple[int, int] | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    beside: Tensor | None = None


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762). `causal` holds where no mask is given."""

    def __init__(self, width: int, heads: int, causal: bool = False, out_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, out_dim or width)

    def _split(self, x: Float[Tensor, "n s d"]) -> Float[Tensor, "n h s k"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, query: Float[Tensor, "n q d"], x: Float[Tensor, "n s d"], mask: Mask = None
    ) -> Float[Tensor, "n q o"]:
        q, k, v = self.q_proj(query), self.k_proj(x), self.v_proj(x)
        q, k, v = self._split(q), self._split(k), self._split(v)  # n h s k
        is_causal = self.causal and mask is None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # n q (h k)

    def weights(
        self, query: Float[Tensor, "n q d"], x: Float[Tensor, "n s d"], mask: Mask = None
    ) -> Float[Tensor, "n h q s"]:
        """The softmax weights that `forward` uses, computed apart."""
        q, k = self._split(self.q_proj(query)), self._split(self.k_proj(x))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # n h q s
        if mask is None and self.causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1)


class MLP(nn.Module):
    """Two linear layers and the activation between them."""

    def __init__(self, cfg: ViTConfig | TextConfig | BertConfig):
        super().__init__()
        self.c_fc = nn.Linear(cfg.width, cfg.mlp_dim)
        self.c_proj = nn.Linear(cfg.mlp_dim, cfg.width)
        self.act = ACTIVATIONS[cfg.act]

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm residual block: x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, cfg: ViTConfig | TextConfig, causal: bool = False):
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.attn = Attention(cfg.width, cfg.heads, causal)
        self.ln_2 = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Float[Tensor, "n s d"], mask: Mask = None) -> Float[Tensor, "n s d"]:
        y = self.ln_1(x)
        x = x + self.attn(y, y, mask)
        return x + self.mlp(self.ln_2(x))

    def weights(self, x: Float[Tensor, "n s d"], mask: Mask = None) -> Float[Tensor, "n h s s"]:
        y = self.ln_1(x)
        return self.attn.weights(y, y, mask)


class AttentionPool(nn.Module):
    """One learned probe attends to all tokens: the MAP head of SigLIP (arXiv 2106.04560)."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, cfg.width))
        self.attn = Attention(cfg.width, cfg.heads)
        self.ln = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.mlp = MLP(cfg)

    def forward(
        self, x: Float[Tensor, "n s d"], mask: Bool[Tensor, "n s"] | None = None
    ) -> Float[Tensor, "n d"]:
        mask = None if mask is None else mask[:, None, None]
        x = self.attn(self.probe.expand(x.shape[0], -1, -1), x, mask)[:, 0]
        return x + self.mlp(self.ln(x))


def run_blocks(
    blocks: nn.ModuleList,
    x: Float[Tensor, "n s d"],
    layers: Collection[int],
    attention: Collection[int],
    *,
    mask: Mask = None,
    checkpointing: bool = False,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Walk through the stack up to the last layer that is asked for; returns (tokens, attention).

    Raises:
        IndexError: a layer outside [-depth, depth], or attention of layer 0, which has none.
    """
    depth, wanted = len(blocks), (*layers, *attention)
    if any(not -depth <= i <= depth for i in wanted) or 0 in attention:
        raise IndexError(f"layers {wanted}: blocks are 1 to {depth}, or -1 to {-depth}; 0 is input")
    at = {i: i if i >= 0 else depth + 1 + i for i in wanted}  # -1 -> depth
    states, maps = {0: x}, {}
    for i, block in zip(range(1, max([0, *at.values()]) + 1), blocks, strict=False):
        if i in [at[j] for j in attention]:
            maps[i] = block.weights(x, mask)  # pyrefly: ignore[not-callable] (a ModuleList)
        if checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, mask, use_reentrant=False)
        else:
            x = block(x, mask)
        if i in at.values():
            states[i] = x
    return {i: states[at[i]] for i in layers}, {i: maps[at[i]] for i in attention}
