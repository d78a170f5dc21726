"""The vision transformer, with the fields in which CLIP's families differ.

arXiv 2010.11929; class token and ln_pre of openai/CLIP; MAP head of SigLIP; mean pooling, then
norm, of CLIPA (arXiv 2305.07017); patch dropout of FLIP (arXiv 2212.00794).

- Positions are resized on the fly (bicubic, anti-aliased, as open_clip does when it loads), so one
  set of weights sees any resolution and aspect, and nothing is lost.
- The class token is `tokens[:, 0]`; patches run row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import ViTConfig
from diptych.model.transformer import AttentionPool, Block, Hidden, run_blocks

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class VisionTransformer(nn.Module):
    """Pixels -> [n e]. See `ViTConfig` for what varies."""

    def __init__(self, cfg: ViTConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False  # recompute blocks in the backward pass
        self.sample_seeds: Tensor | None = None  # int64 [n]; None: torch's generator drops patches
        self.prefix = int(cfg.class_token)  # tokens in front of the patches
        width, p = cfg.width, cfg.patch_size
        self.patch_embed = nn.Conv2d(3, width, p, stride=p, bias=cfg.patch_bias)
        self.class_embedding = nn.Parameter(torch.randn(width)) if cfg.class_token else None
        positions = torch.randn(self.prefix + cfg.grid[0] * cfg.grid[1], width)
        self.positional_embedding = nn.Parameter(positions, cfg.positions == "learned")
        self.ln_pre = nn.LayerNorm(width, cfg.ln_eps) if cfg.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.ln_post = nn.LayerNorm(width, cfg.ln_eps)
        self.attn_pool = AttentionPool(cfg) if cfg.pool == "map" else nn.Identity()
        linear = cfg.proj == "linear"
        self.proj = nn.Linear(width, embed_dim, bias=False) if linear else nn.Identity()

    def embed(self, image: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n s d"]:
        """Patches, class token and positions: the input of the first block."""
        x = self.patch_embed(image)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # n (y x) d
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + resize_positions(self.positional_embedding, self.prefix, self.cfg.grid, grid)
        if self.training and self.cfg.patch_dropout:
            x = drop_patches(x, self.prefix, self.cfg.patch_dropout, self.sample_seeds)
        return self.ln_pre(x)

    def hidden(self, image: Float[Tensor, "n 3 H W"], layers=(-1,), attention=()) -> Hidden:
        """Tokens and attention of any layer; see `Hidden`."""
        tokens, maps = run_blocks(
            self.blocks, self.embed(image), layers, attention, checkpointing=self.checkpointing
        )
        p = self.cfg.patch_size
        grid = (image.shape[-2] // p, image.shape[-1] // p)
        return Hidden(tokens=tokens, attention=maps, prefix=self.prefix, grid=grid)

    def final_norm(self, tokens: Float[Tensor, "n s d"]) -> Float[Tensor, "n s d"]:
        return tokens if self.cfg.norm_after_pool else self.ln_post(tokens)

    def pool(self, tokens: Float[Tensor, "n s d"], hidden: Hidden) -> Float[Tensor, "n d"]:
        match self.cfg.pool:
            case "class":
                x = tokens[:, 0]
            case "mean":
                x = tokens[:, hidden.prefix :].mean(1)
            case "map":
                x = self.attn_pool(tokens)
        return self.ln_post(x) if self.cfg.norm_after_pool else x

    def project(self, pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        return self.proj(pooled)

    def forward(self, image: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n e"]:
        hidden = self.hidden(image)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))


def resize_positions(
    positions: Float[Tensor, "s d"], prefix: int, old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "t d"]:
    """Positions of an `old` grid for a `new` one; the `prefix` rows in front stay as they are."""
    if old == new:
        return positions
    front, patches = positions[:prefix], positions[prefix:]
    patches = patches.T.unflatten(-1, old)[None]  # 1 d y x
    patches = F.interpolate(patches, new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([front, patches[0].flatten(1).T])


def drop_patches(
    x: Float[Tensor, "n s d"], prefix: int, rate: float, seeds: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "n t d"]:
    """Keep a random share of 1 - `rate` of each image's patches, at least one; prefix stays.

    With `seeds` an image keeps the same patches in any batch, on any rank and device.
    """
    n, num_patches = x.shape[0], x.shape[1] - prefix
    num_kept = max(1, int(num_patches * (1 - rate)))
    if seeds is None:
        noise = torch.randn(n, num_patches, device=x.device)
    else:
        noise = mix(seeds[:, None] + mix(torch.arange(num_patches, device=x.device)))
    kept = noise.topk(num_kept, dim=-1).indices
    rows = torch.arange(n, device=x.device)[:, None]
    return torch.cat([x[:, :prefix], x[:, prefix:][rows, kept]], dim=1)


def mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """A random number for each number: splitmix64 (Steele et al., OOPSLA 2014), which wraps."""
    x = x - 0x61C8864680B583EB  # 2**64 over the golden ratio, as int64 has it
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)
