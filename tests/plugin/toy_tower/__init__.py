"""A tower as another package would write it: eats `Patches` of any grid, as NaFlex does."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diptych.config import Patches, ViTConfig
from diptych.model.transformer import AttentionPool, Block, Hidden, run_blocks
from diptych.towers import Family


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig:
    patch_size: int
    width: int
    layers: int
    base: ViTConfig  # a config inside a config


class ToyTower(nn.Module):
    def __init__(self, cfg: ToyConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.patch_embed = nn.Linear(3 * cfg.patch_size**2, cfg.width)
        self.positions = nn.Linear(2, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg.base) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)
        self.attn_pool = AttentionPool(cfg.base)
        self.proj = nn.Linear(cfg.width, embed_dim)
        nn.init.normal_(self.attn_pool.probe)

    def hidden(self, batch: Patches, layers=(-1,), attention=()) -> Hidden:
        index = torch.arange(batch.patches.shape[1])[None]  # 1 s
        columns = batch.grid[:, 1:]  # n 1
        places = torch.stack([index // columns, index % columns], dim=-1)  # n s 2
        x = self.patch_embed(batch.patches) + self.positions(places / batch.grid[:, None])
        mask = batch.mask[:, None, None]  # n 1 1 s
        tokens, maps = run_blocks(self.blocks, x, layers, attention, mask=mask)
        return Hidden(tokens=tokens, attention=maps, mask=batch.mask)

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def pool(self, tokens: Tensor, hidden: Hidden) -> Tensor:
        return self.attn_pool(tokens, hidden.mask)

    def project(self, pooled: Tensor) -> Tensor:
        return self.proj(pooled)

    def forward(self, batch: Patches) -> Tensor:
        hidden = self.hidden(batch)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))


family = Family(config=ToyConfig, build=ToyTower)
