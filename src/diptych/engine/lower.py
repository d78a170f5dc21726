"""The fast path: a tower as packed calls, in bfloat16 or fp32, equal to the tower up to rounding.

- q, k, v are fused and weights packed for oneDNN; the residual stream and every norm stay fp32.
- Texts of causal towers run at their real length: what stands after EOT cannot reach it.
- BERT's texts are cut to the longest real one of the batch: padding reaches nothing there.
- The last block computes only the pooled position, where there is one.
- A tower is lowered only if every module in it is exactly of a type known here and nothing hooks
  into it; anything else (LoRA, hooks, a tower of another package) runs unchanged.
- Packed weights are keyed on each parameter's identity, storage and `_version`, so an optimiser
  step repacks them. Writing through `.data` hides from torch's counter and from us.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diptych.engine.lower_conv import FastEfficientNet, FastResNet
from diptych.engine.lower_parts import Dense, attend, pack_mlp
from diptych.model.text import TextTransformer
from diptych.model.transformer import MLP, Attention, AttentionPool, Block, Hidden
from diptych.model.vision import VisionTransformer, resize_positions
from diptych.towers.bert import BertBlock, BertEncoder
from diptych.towers.concepts import ConceptHead, Palette
from diptych.towers.efficientnet import ConvNorm, EfficientNet, MBConv, SqueezeExcite
from diptych.towers.resnet import AttentionPool2d, Bottleneck, ModifiedResNet

__all__ = ["Lowered", "Versions"]

_KNOWN = {
    *(VisionTransformer, TextTransformer, ModifiedResNet, Bottleneck, AttentionPool2d),
    *(AttentionPool, Attention, Block, MLP, BertEncoder, BertBlock),
    *(EfficientNet, MBConv, ConvNorm, SqueezeExcite, ConceptHead, Palette, nn.SiLU, nn.ReLU6),
    *(nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.Embedding, nn.AvgPool2d),
    *(nn.Identity, nn.ModuleList, nn.Sequential),
}


class Versions:
    """A note of a module's tensors, equal to a later one if none was replaced or written since.

    It keeps the tensors alive: the address of a freed one could come back with other values.
    """

    def __init__(self, module: nn.Module):
        self.tensors = [*module.parameters(), *module.buffers()]
        self.state = [(id(t), t.data_ptr(), t._version) for t in self.tensors]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Versions) and self.state == other.state

    __hash__ = None  # it compares tensors that change


def _is_plain(tower: nn.Module) -> bool:
    return not tower.training and all(
        type(m) in _KNOWN and not (m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m))
        for m in tower.modules()
    )


class Lowered:
    """Calls `tower` by its fast path; always returns what `tower(batch)` would, in fp32.

    Args:
        tower: the reference, which stays as it is.
        dtype: of the matrix products, torch.bfloat16 or torch.float32.
    """

    def __init__(self, tower: nn.Module, *, dtype: torch.dtype):
        self.tower = tower
        self.dtype = dtype
        self._lock = threading.Lock()
        self._packed: tuple[Versions, Callable[[Tensor], Tensor]] | None = None

    def __call__(self, batch) -> Tensor:
        if not _is_plain(self.tower):
            return self.tower(batch)
        return self._run()(batch)

    def _run(self) -> Callable[[Tensor], Tensor]:
        key = Versions(self.tower)
        with self._lock:
            if self._packed is None or self._packed[0] != key:
                self._packed = (key, self._pack())
            return self._packed[1]

    def _pack(self) -> Callable[[Tensor], Tensor]:
        match self.tower:
            case VisionTransformer():
                return _Vision(self.tower, self.dtype)
            case TextTransformer() if self.tower.cfg.pad_id is None:
                return _Text(self.tower, self.dtype)
            case BertEncoder():
                return _Bert(self.tower, self.dtype)
            case EfficientNet():
                return FastEfficientNet(self.tower)
            case ModifiedResNet() if self.dtype == torch.bfloat16:
                return FastResNet(self.tower, self.dtype)
        return self.tower

    def __getstate__(self):
        return {"tower": self.tower, "dtype": self.dtype}

    def __setstate__(self, state):
        self.__init__(state["tower"], dtype=state["dtype"])


class _Block:
    """One residual block. With `rows`, only those positions are computed, one for each item."""

    def __init__(self, block: Block, act: str, dtype: torch.dtype, *, pooled: bool):
        a = block.attn
        self.block, self.dtype, self.heads, self.causal = block, dtype, a.heads, a.causal
        if pooled:
            self.q, self.kv = Dense(a.q_proj, dtype=dtype), Dense(a.k_proj, a.v_proj, dtype=dtype)
        else:
            self.qkv = Dense(a.q_proj, a.k_proj, a.v_proj, dtype=dtype)
        self.out = Dense(a.out_proj, dtype=dtype)
        self.fc, self.proj = pack_mlp(block.mlp, act, dtype)

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        y = self.block.ln_1(x).to(self.dtype)
        if rows is None:
            q, k, v = self.qkv(y)
            y = attend(q, k, v, self.heads, is_causal=self.causal)
        else:
            each = torch.arange(x.shape[0], device=x.device)
            (q,), (k, v) = self.q(y[each, rows][:, None]), self.kv(y)
            mask = None
            if self.causal:
                mask = torch.arange(x.shape[1], device=x.device) <= rows[:, None]  # n s
                mask = mask[:, None, None]
            y = attend(q, k, v, self.heads, attn_mask=mask)
            x = x[each, rows][:, None]  # n 1 d
        x = x + self.out(y)[0]
        y = self.block.ln_2(x).to(self.dtype)
        return x + self.proj(*self.fc(y))[0]


def _blocks(tower, dtype: torch.dtype, *, pooled: bool) -> list[_Block]:
    last = len(tower.blocks) - 1
    return [
        _Block(block, tower.cfg.act, dtype, pooled=pooled and i == last)
        for i, block in enumerate(tower.blocks)
    ]


class _AttentionPool:
    """The probe's keys and values in `dtype`; what is one token long stays in fp32."""

    def __init__(self, pool: AttentionPool, dtype: torch.dtype):
        self.pool, self.dtype, attn = pool, dtype, pool.attn
        self.kv = Dense(attn.k_proj, attn.v_proj, dtype=dtype)
        self.query = attn.q_proj(pool.probe).detach().to(dtype)  # 1 1 d

    def __call__(self, x: Tensor) -> Tensor:
        pool, attn = self.pool, self.pool.attn
        k, v = self.kv(x.to(self.dtype))
        x = attend(self.query.expand(len(x), -1, -1), k, v, attn.heads)
        x = attn.out_proj(x.float())[:, 0]
        return x + pool.mlp(pool.ln(x))


class _Vision:
    def __init__(self, tower: VisionTransformer, dtype: torch.dtype):
        self.tower, self.dtype, cfg = tower, dtype, tower.cfg
        self.pooled = cfg.pool == "class"
        conv = tower.patch_embed
        self.patch_embed = Dense((conv.weight.flatten(1), conv.bias), dtype=dtype)
        self.blocks = _blocks(tower, dtype, pooled=self.pooled)
        if isinstance(tower.attn_pool, AttentionPool):
            self.attn_pool = _AttentionPool(tower.attn_pool, dtype)

    def __call__(self, image: Tensor) -> Tensor:
        tower, cfg, p = self.tower, self.tower.cfg, self.tower.cfg.patch_size
        n, grid = image.shape[0], (image.shape[2] // p, image.shape[3] // p)
        x = image[:, :, : grid[0] * p, : grid[1] * p].to(self.dtype)
        x = x.unflatten(3, (grid[1], p)).unflatten(2, (grid[0], p))  # n 3 y p x p
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(n, grid[0] * grid[1], -1)  # n (y x) (3 p p)
        x = self.patch_embed(x)[0].float()
        if tower.class_embedding is not None:
            x = torch.cat([tower.class_embedding.expand(n, 1, -1), x], dim=1)
        prefix = int(cfg.class_token)
        x = x + resize_positions(tower.positional_embedding, prefix, cfg.grid, grid)
        x = tower.ln_pre(x)
        for block in self.blocks[:-1]:
            x = block(x)
        rows = torch.zeros(n, dtype=torch.long, device=x.device) if self.pooled else None
        x = self.blocks[-1](x, rows)
        match cfg.pool:
            case "class":
                x = tower.ln_post(x[:, 0])
            case "mean" if cfg.norm_after_pool:
                x = tower.ln_post(x[:, prefix:].mean(1))
            case "mean":
                x = tower.ln_post(x)[:, prefix:].mean(1)
            case "map":
                x = self.attn_pool(tower.ln_post(x))
        return tower.project(x)


class _Text:
    def __init__(self, tower: TextTransformer, dtype: torch.dtype):
        self.tower, self.dtype = tower, dtype
        self.blocks = _blocks(tower, dtype, pooled=True)

    def __call__(self, ids: Tensor) -> Tensor:
        tower = self.tower
        rows = tower.pooled(ids)
        if tower.cfg.causal:  # what stands after the last pooled position reaches no result
            ids = ids[:, : int(rows.max()) + 1]
        x = tower.embed(ids) + tower.positional_embedding[: ids.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, rows)[:, 0]
        return tower.project(tower.ln_final(x))


class _PostNorm:
    """One of BERT's blocks. With `pooled`, only the first position is computed."""

    def __init__(self, block: BertBlock, act: str, dtype: torch.dtype, *, pooled: bool):
        a = block.attn
        self.block, self.dtype, self.heads, self.pooled = block, dtype, a.heads, pooled
        how = {"dtype": dtype, "pack": True}
        if pooled:
            self.q, self.kv = Dense(a.q_proj, **how), Dense(a.k_proj, a.v_proj, **how)
        else:
            self.qkv = Dense(a.q_proj, a.k_proj, a.v_proj, **how)
        self.out = Dense(a.out_proj, **how)
        self.fc, self.proj = pack_mlp(block.mlp, act, dtype, pack=True)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = x.to(self.dtype)
        if self.pooled:
            x = x[:, :1]
            (q,), (k, v) = self.q(y[:, :1]), self.kv(y)
        else:
            q, k, v = self.qkv(y)
        y = attend(q, k, v, self.heads, attn_mask=mask)
        x = self.block.ln_1(x + self.out(y)[0])
        return self.block.ln_2(x + self.proj(*self.fc(x.to(self.dtype)))[0])


class _Bert:
    def __init__(self, tower: BertEncoder, dtype: torch.dtype):
        self.tower, cfg = tower, tower.cfg
        last = len(tower.blocks) - 1
        self.blocks = [
            _PostNorm(block, cfg.act, dtype, pooled=cfg.pool == "class" and i == last)
            for i, block in enumerate(tower.blocks)
            if isinstance(block, BertBlock)
        ]

    def __call__(self, ids: Tensor) -> Tensor:
        tower, cfg = self.tower, self.tower.cfg
        real = mask = None
        if cfg.pad_id is not None:
            real = ids != cfg.pad_id
            s = int((real * torch.arange(1, ids.shape[1] + 1, device=ids.device)).max())
            ids, real = ids[:, :s], real[:, :s]
            mask = None if bool(real.all()) else real[:, None, None]  # n 1 1 s
        x = tower.embed(ids) + (
            tower.type_embedding[0] + tower.positional_embedding[: ids.shape[1]]
        )
        x = tower.ln_embed(x)
        for block in self.blocks:
            x = block(x, mask)
        return tower.project(tower.pool(x, Hidden(tokens={}, attention={}, mask=real)))
