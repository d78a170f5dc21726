"""BERT's encoder as a text tower: ALIGN's, and that of the sentence encoders (MiniLM).

Devlin et al., arXiv 1810.04805; mean pooling: Sentence-BERT, arXiv 1908.10084.

- Post-norm: a LayerNorm follows each residual sum, so `final_norm` has nothing left to do.
- Padding is never attended to nor pooled, so a batch may be cut to its longest text.
- A text is one segment: of the token types only row 0 is used; files keep the whole table.
- There is no tanh pooler: neither ALIGN's features nor sentence encoders use it, although the files
  of ALIGN, of BERT and of many sentence encoders hold one (`pooler.dense`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import BertConfig
from diptych.model.transformer import MLP, Attention, Hidden, run_blocks

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from diptych.model.transformer import Mask

    Embeddings = Float[Tensor, "n s d"] | None

__all__ = ["BertBlock", "BertEncoder"]


class BertBlock(nn.Module):
    """Post-norm residual block: ln_1(x + attn(x)), then ln_2(x + mlp(x))."""

    def __init__(self, cfg: BertConfig):
        super().__init__()
        self.attn = Attention(cfg.width, cfg.heads)
        self.ln_1 = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.mlp = MLP(cfg)
        self.ln_2 = nn.LayerNorm(cfg.width, cfg.ln_eps)

    def forward(self, x: Float[Tensor, "n s d"], mask: Mask = None) -> Float[Tensor, "n s d"]:
        x = self.ln_1(x + self.attn(x, x, mask))
        return self.ln_2(x + self.mlp(x))

    def weights(self, x: Float[Tensor, "n s d"], mask: Mask = None) -> Float[Tensor, "n h s s"]:
        return self.attn.weights(x, x, mask)


class BertEncoder(nn.Module):
    """Token ids [n s] -> [n e]. See `BertConfig` for what varies."""

    def __init__(self, cfg: BertConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False  # recompute blocks in the backward pass
        self.token_embedding = nn.Embedding(cfg.vocab_size, cfg.width)
        self.positional_embedding = nn.Parameter(torch.randn(cfg.context_length, cfg.width))
        self.type_embedding = nn.Parameter(torch.randn(cfg.type_vocab_size, cfg.width))
        self.ln_embed = nn.LayerNorm(cfg.width, cfg.ln_eps)
        self.blocks = nn.ModuleList(BertBlock(cfg) for _ in range(cfg.layers))
        match cfg.proj:
            case "none":
                self.proj = nn.Identity()
            case "linear" | "linear_bias":
                self.proj = nn.Linear(cfg.width, embed_dim, bias=cfg.proj == "linear_bias")

    def embed(self, ids: Int[Tensor, "n s"]) -> Float[Tensor, "n s d"]:
        """Token embeddings, without positions and type: what `embeddings=` may replace."""
        return self.token_embedding(ids)

    def hidden(
        self, ids: Int[Tensor, "n s"], layers=(-1,), attention=(), *, embeddings: Embeddings = None
    ) -> Hidden:
        """Tokens and attention of any layer; see `Hidden`."""
        x = self.embed(ids) if embeddings is None else embeddings
        x = x + self.type_embedding[0] + self.positional_embedding[: ids.shape[1]]
        real = None if self.cfg.pad_id is None else ids != self.cfg.pad_id
        mask = None if real is None else real[:, None, None]  # n 1 1 s
        how = {"mask": mask, "checkpointing": self.checkpointing}
        tokens, maps = run_blocks(self.blocks, self.ln_embed(x), layers, attention, **how)
        first = torch.zeros_like(ids[:, 0]) if self.cfg.pool == "class" else None
        return Hidden(tokens=tokens, attention=maps, mask=real, pooled=first)

    def final_norm(self, tokens: Float[Tensor, "n s d"]) -> Float[Tensor, "n s d"]:
        return tokens  # the last block ends with its norm

    def pool(self, tokens: Float[Tensor, "n s d"], hidden: Hidden) -> Float[Tensor, "n d"]:
        match self.cfg.pool:
            case "class":
                return tokens[:, 0]
            case "mean":
                if hidden.mask is None:
                    return tokens.mean(1)
                real = hidden.mask.to(tokens.dtype)[..., None]  # n s 1
                return (tokens * real).sum(1) / real.sum(1)

    def project(self, pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        return self.proj(F.normalize(pooled, dim=-1) if self.cfg.unit else pooled)

    def forward(
        self, ids: Int[Tensor, "n s"], *, embeddings: Embeddings = None
    ) -> Float[Tensor, "n e"]:
        hidden = self.hidden(ids, embeddings=embeddings)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))
