"""timm's vision transformer as open_clip holds it for SigLIP: `visual.trunk` and `visual.head`.

Module names and state dict are timm's (`blocks[i].attn.qkv`, `attn_pool.latent`). The activation is
that of the config: tanh GELU for SigLIP, as in its training; timm computes the exact one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.compat.parts import activation, freeze
from diptych.config import ViTConfig
from diptych.errors import ConfigError
from diptych.model.vision import drop_patches

__all__ = ["TimmModel"]


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # n h s k


def _mlp(cfg: ViTConfig) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](fc1=nn.Linear(cfg.width, cfg.mlp_dim))
    layers["act"] = activation(cfg.act)
    layers["fc2"] = nn.Linear(cfg.mlp_dim, cfg.width)
    return nn.Sequential(layers)


class _Attention(nn.Module):
    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.num_heads = cfg.heads
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.proj = nn.Linear(cfg.width, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(y, self.num_heads) for y in self.qkv(x).chunk(3, dim=-1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.attn = _Attention(cfg)
        self.norm2 = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.mlp = _mlp(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _AttentionPool(nn.Module):
    """One learned query attends to all patches (the MAP head)."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.num_heads = cfg.heads
        self.latent = nn.Parameter(torch.empty(1, 1, cfg.width))
        self.q = nn.Linear(cfg.width, cfg.width)
        self.kv = nn.Linear(cfg.width, 2 * cfg.width)
        self.proj = nn.Linear(cfg.width, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.mlp = _mlp(cfg)

    def forward(self, x: Tensor) -> Tensor:
        query = self.q(self.latent.expand(x.shape[0], -1, -1))
        q, k, v = (_heads(y, self.num_heads) for y in (query, *self.kv(x).chunk(2, dim=-1)))
        x = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]


class _Trunk(nn.Module):
    def __init__(self, cfg: ViTConfig):
        super().__init__()
        p, grid = cfg.patch_size, cfg.grid
        self.grad_checkpointing = False
        self.patch_dropout = cfg.patch_dropout
        conv = nn.Conv2d(3, cfg.width, p, stride=p, bias=cfg.patch_bias)
        self.patch_embed = nn.Sequential(OrderedDict[str, nn.Module](proj=conv))
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], cfg.width))
        self.blocks = nn.Sequential(*(_Block(cfg) for _ in range(cfg.layers)))
        self.norm = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.attn_pool = _AttentionPool(cfg)

    def forward_features(self, x: Tensor) -> Tensor:
        """The states of the patches, [n s d], after the last norm."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed  # n (y x) d
        if self.training and self.patch_dropout:
            x = drop_patches(x, 0, self.patch_dropout)
        for block in self.blocks:
            if self.grad_checkpointing:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn_pool(self.forward_features(x))


class TimmModel(nn.Module):
    """Pixels [n 3 H W] -> [n e] for a `ViTConfig` with `pool="map"`."""

    def __init__(self, cfg: ViTConfig, embed_dim: int):
        super().__init__()
        self.image_size, self.output_dim = cfg.image_size, embed_dim
        self.input_resolution = cfg.image_size[0]
        self.trunk = _Trunk(cfg)
        head = OrderedDict[str, Any]()
        if cfg.proj == "linear":
            head["proj"] = nn.Linear(cfg.width, embed_dim, bias=False)
        self.head = nn.Sequential(head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the trunk; the head stays as it is, as in open_clip.

        Raises:
            ConfigError: `unlocked_groups`; timm's own grouping is not known here.
        """
        if unlocked_groups:
            raise ConfigError(
                f"unlocked_groups={unlocked_groups}: this tower is locked as a whole. Lock it, "
                "then set requires_grad on the blocks to train: model.visual.trunk.blocks[-1]"
            )
        freeze([[self.trunk]], 0)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return set()  # open_clip's adapter names none
