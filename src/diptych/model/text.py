"""The text transformer: causal and pooled at EOT (CLIP), or bidirectional and pooled last (SigLIP).

- Positions are sliced to the length that comes, so a batch may be cut to its longest text where
  the tower is causal; bidirectional towers attend to their padding and need the full length.
- `embeddings=` replaces the token embeddings (CoOp, guidance); the ids still decide pool and mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diptych.config import TextConfig
from diptych.model.transformer import Block, Hidden, run_blocks

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Embeddings = Float[Tensor, "n s d"] | None


class TextTransformer(nn.Module):
    """Token ids [n s] -> [n e]. See `TextConfig` for what varies."""

    def __init__(self, cfg: TextConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False  # recompute blocks in the backward pass
        self.token_embedding = nn.Embedding(cfg.vocab_size, cfg.width)
        self.positional_embedding = nn.Parameter(torch.randn(cfg.context_length, cfg.width))
        self.blocks = nn.ModuleList(Block(cfg, cfg.causal) for _ in range(cfg.layers))
        self.ln_final = nn.LayerNorm(cfg.width, cfg.ln_eps)
        match cfg.proj:
            case "none":
                self.proj = nn.Identity()
            case "linear" | "linear_bias":
                self.proj = nn.Linear(cfg.width, embed_dim, bias=cfg.proj == "linear_bias")

    def embed(self, ids: Int[Tensor, "n s"]) -> Float[Tensor, "n s d"]:
        """Token embeddings, without positions: what `embeddings=` may replace."""
        return self.token_embedding(ids)

    def hidden(
        self, ids: Int[Tensor, "n s"], layers=(-1,), attention=(), *, embeddings: Embeddings = None
    ) -> Hidden:
        """Tokens and attention of any layer; see `Hidden`."""
        x = self.embed(ids) if embeddings is None else embeddings
        x = x + self.positional_embedding[: ids.shape[1]]
        real = None if self.cfg.pad_id is None else ids != self.cfg.pad_id
        how = {"mask": self._mask(real), "checkpointing": self.checkpointing}
        tokens, maps = run_blocks(self.blocks, x, layers, attention, **how)
        return Hidden(tokens=tokens, attention=maps, mask=real, pooled=self.pooled(ids))

    def _mask(self, real):
        """[n 1 s s] or [n 1 1 s]; None lets the blocks' own `causal` decide."""
        if real is None:
            return None
        mask = real[:, None, None]  # n 1 1 s
        if self.cfg.causal:
            s = real.shape[1]
            mask = mask & torch.ones(s, s, dtype=torch.bool, device=real.device).tril()
        return mask

    def pooled(self, ids: Int[Tensor, "n s"]) -> Int[Tensor, " n"]:
        """The position whose state becomes the text's vector."""
        match self.cfg.pool:
            case "argmax":
                return ids.argmax(-1)
            case "eos":
                return ids.eq(self.cfg.eos_id).int().argmax(-1)  # pyrefly: ignore (the config checks)
            case "last":
                return torch.full_like(ids[:, 0], ids.shape[1] - 1)
            case "first":
                return torch.zeros_like(ids[:, 0])

    def final_norm(self, tokens: Float[Tensor, "n s d"]) -> Float[Tensor, "n s d"]:
        return self.ln_final(tokens)

    def pool(self, tokens: Float[Tensor, "n s d"], hidden: Hidden) -> Float[Tensor, "n d"]:
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), hidden.pooled]

    def project(self, pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        return self.proj(pooled)

    def forward(
        self, ids: Int[Tensor, "n s"], *, embeddings: Embeddings = None
    ) -> Float[Tensor, "n e"]:
        hidden = self.hidden(ids, embeddings=embeddings)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))
