"""The fast paths of transformers: packed products, nothing computed that reaches no result.

- q, k, v are fused; the residual stream and every norm stay fp32.
- Texts of causal towers run at their real length: what stands after EOT cannot reach it. BERT's
  padding reaches nothing either. On a CPU no row is spent on padding at all (`Layout`).
- The last block computes only the pooled position, where there is one.
- Pixels may come as uint8: mean and std are folded into the patch embedding.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from diptych.config import PreprocessConfig
from diptych.engine.lower_parts import Dense, Layers, Layout, attend, attend_rows, pack_mlp
from diptych.model.text import TextTransformer
from diptych.model.transformer import Attention, AttentionPool, Block, Hidden
from diptych.model.vision import VisionTransformer, resize_positions
from diptych.towers.bert import BertBlock, BertEncoder

__all__ = ["FastAttention", "FastBert", "FastText", "FastVision", "Tower", "blocks_of"]

Tower: TypeAlias = VisionTransformer | TextTransformer | BertEncoder
# linear layers -> what gives the outputs of each: `Dense`, or int8
Products: TypeAlias = Callable[..., Callable[[Tensor], tuple[Tensor, ...]]]
Blocks: TypeAlias = list[Callable[[Tensor, Layout], Tensor]]  # each: rows [t d] -> rows

_ROWS_AT_ONCE = 3200  # of image tokens on a CPU: more would only take memory


class FastAttention:
    """q, k, v as one product of `layers`, attention within each sequence, and `out`, the last."""

    def __init__(self, attn: Attention, layers: Products, out: Products, *, pooled: bool):
        self.heads, self.causal, self.is_pooled = attn.heads, attn.causal, pooled
        if pooled:
            self.q, self.kv = layers(attn.q_proj), layers(attn.k_proj, attn.v_proj)
        else:
            self.qkv = layers(attn.q_proj, attn.k_proj, attn.v_proj)
        self.out = out(attn.out_proj)

    def __call__(self, y: Tensor, layout: Layout) -> Tensor:
        if self.is_pooled:
            (q,), (k, v) = self.q(layout.pooled(y)), self.kv(y)
        else:
            q, k, v = self.qkv(y)
        how = {"causal": self.causal, "pooled": self.is_pooled}
        return self.out(attend_rows(q, k, v, self.heads, layout, **how))[0]


class _Block:
    """One residual block on rows [t d], in place. `pooled`: only those positions leave it."""

    def __init__(self, block: Block, act: str, dtype: torch.dtype, layers: Layers, *, pooled: bool):
        self.block, self.dtype, self.is_pooled = block, dtype, pooled
        self.attn = FastAttention(block.attn, layers, layers, pooled=pooled)
        self.fc, self.proj = pack_mlp(block.mlp, act, layers)

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        y = self.attn(self.block.ln_1(x).to(self.dtype), layout)
        x = (layout.pooled(x) if self.is_pooled else x).add_(y)
        y = self.block.ln_2(x).to(self.dtype)
        return x.add_(self.proj(*self.fc(y))[0])


class _PostNorm:
    """One of BERT's blocks. With `pooled`, only the first position is computed."""

    def __init__(self, block: BertBlock, act: str, dtype: torch.dtype, layers: Layers, *, pooled):
        self.block, self.dtype, self.is_pooled = block, dtype, pooled
        self.attn = FastAttention(block.attn, layers, layers, pooled=pooled)
        self.fc, self.proj = pack_mlp(block.mlp, act, layers)

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        y = self.attn(x.to(self.dtype), layout)
        x = self.block.ln_1((layout.pooled(x) if self.is_pooled else x) + y)
        return self.block.ln_2(self.proj(*self.fc(x.to(self.dtype)))[0] + x)


def blocks_of(tower: Tower, dtype: torch.dtype) -> Blocks:
    """The tower's blocks as packed calls. The last one of a tower that pools one position gives
    only these rows.
    """
    pooled = isinstance(tower, TextTransformer) or tower.cfg.pool == "class"
    found: Blocks = []
    for i, block in enumerate(tower.blocks, start=1):
        last = pooled and i == len(tower.blocks)
        match block:
            case BertBlock():
                layers = partial(Dense, dtype=dtype, pack=True)
                found.append(_PostNorm(block, tower.cfg.act, dtype, layers, pooled=last))
            case Block():
                layers = partial(Dense, dtype=dtype)
                found.append(_Block(block, tower.cfg.act, dtype, layers, pooled=last))
    return found


class _AttentionPool:
    """The probe's keys and values in `dtype`; what is one token long stays in fp32."""

    def __init__(self, pool: AttentionPool, dtype: torch.dtype):
        self.pool, self.dtype, attn = pool, dtype, pool.attn
        self.kv = Dense(attn.k_proj, attn.v_proj, dtype=dtype)
        self.query = attn.q_proj(pool.probe).to(dtype)  # 1 1 d

    def __call__(self, x: Tensor) -> Tensor:
        pool, attn = self.pool, self.pool.attn
        k, v = self.kv(x.to(self.dtype))
        x = attend(self.query.expand(len(x), -1, -1), k, v, attn.heads)
        x = attn.out_proj(x.float())[:, 0]
        return x + pool.mlp(pool.ln(x))


class FastVision:
    """Float images or, where it `folds` how `pixels` are normalised, uint8 ones."""

    def __init__(
        self,
        tower: VisionTransformer,
        blocks: Blocks,
        *,
        dtype: torch.dtype,
        pixels: PreprocessConfig | None,
    ):
        self.tower, self.dtype, cfg = tower, dtype, tower.cfg
        self.pooled = cfg.pool == "class"
        weight, bias = tower.patch_embed.weight, tower.patch_embed.bias  # d 3 p p
        self.patch_embed = Dense((weight.flatten(1), bias), dtype=dtype)
        self.folds = pixels is not None and dtype != torch.float32
        if pixels is not None and self.folds:
            # w (v / 255 - mean) / std = w' (v - 128) + w' (128 - 255 mean), w' = w / (255 std):
            # whole numbers up to 128 are exact in every dtype, and near the middle of the colours
            mean, std = (
                weight.new_tensor(values).view(3, 1, 1) for values in (pixels.mean, pixels.std)
            )
            weight = weight / (255 * std)
            shift = (weight * (128 - 255 * mean)).sum((1, 2, 3))
            bias = shift if bias is None else bias + shift
            self.patch_embed_uint8 = Dense((weight.flatten(1), bias), dtype=dtype)
        self.blocks = blocks
        if isinstance(tower.attn_pool, AttentionPool):
            self.attn_pool = _AttentionPool(tower.attn_pool, dtype)

    def __call__(self, image: Tensor) -> Tensor:
        few, p = len(image), self.tower.cfg.patch_size
        if image.device.type == "cpu":
            few = _ROWS_AT_ONCE // ((image.shape[2] // p) * (image.shape[3] // p))
        return torch.cat([self._few(part) for part in image.split(max(1, few))])

    def _patches(self, image: Tensor) -> Tensor:
        """n 3 H W -> rows of the patch embedding, fp32 [n (y x) d]."""
        p = self.tower.cfg.patch_size
        n, y, x = image.shape[0], image.shape[2] // p, image.shape[3] // p
        image = image[:, :, : y * p, : x * p].unflatten(3, (x, p)).unflatten(2, (y, p))
        rows = image.permute(0, 2, 4, 1, 3, 5).reshape(n, y * x, -1)  # n (y x) (3 p p)
        if image.dtype == torch.uint8:
            return self.patch_embed_uint8(rows.to(self.dtype).sub_(128))[0].float()
        return self.patch_embed(rows.to(self.dtype))[0].float()

    def _few(self, image: Tensor) -> Tensor:
        tower, cfg, p = self.tower, self.tower.cfg, self.tower.cfg.patch_size
        n, grid = image.shape[0], (image.shape[2] // p, image.shape[3] // p)
        x = self._patches(image)
        if tower.class_embedding is not None:
            x = torch.cat([tower.class_embedding.expand(n, 1, -1), x], dim=1)
        prefix = int(cfg.class_token)
        x = x + resize_positions(tower.positional_embedding, prefix, cfg.grid, grid)
        layout = Layout([(n, x.shape[1])])
        x = tower.ln_pre(x).flatten(0, 1)
        for block in self.blocks:
            x = block(x, layout)
        if self.pooled:
            return tower.project(tower.ln_post(x))
        x = x.unflatten(0, (n, -1))
        match cfg.pool:
            case "mean" if cfg.norm_after_pool:
                x = tower.ln_post(x[:, prefix:].mean(1))
            case "mean":
                x = tower.ln_post(x)[:, prefix:].mean(1)
            case "map":
                x = self.attn_pool(tower.ln_post(x))
        return tower.project(x)


class FastText:
    """Ids [n s]; on a CPU no row is spent on what stands after EOT."""

    def __init__(self, tower: TextTransformer, blocks: Blocks):
        self.tower, self.blocks = tower, blocks

    def __call__(self, ids: Tensor) -> Tensor:
        tower = self.tower
        rows = tower.pooled(ids)
        if tower.cfg.causal and ids.device.type == "cpu":
            return self._packed(ids, rows)
        (n, s), mask = ids.shape, None
        if tower.cfg.causal:
            mask = (torch.arange(s, device=ids.device) <= rows[:, None])[:, None, None]
        rows = rows + s * torch.arange(n, device=ids.device)
        x = tower.embed(ids) + tower.positional_embedding[:s]
        return self._walk(x.flatten(0, 1), Layout([(n, s)], rows, pooled_mask=mask))

    def _packed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """What stands after the pooled position reaches no result, and is left out."""
        lengths, order = (rows + 1).sort(stable=True)
        column = torch.arange(int(lengths[-1]))
        kept = column < lengths[:, None]  # n s
        x = self.tower.embed(ids[order, : len(column)][kept][None])[0]
        x = x + self.tower.positional_embedding[column.expand_as(kept)[kept]]
        x = self._walk(x, Layout(_groups(lengths), lengths.cumsum(0) - 1))
        return x[order.argsort()]

    def _walk(self, x: Tensor, layout: Layout) -> Tensor:
        for block in self.blocks:
            x = block(x, layout)
        return self.tower.project(self.tower.ln_final(x))


def _groups(lengths: Tensor) -> list[tuple[int, int]]:
    """Sorted lengths [n] -> (how many, length) of each."""
    values, counts = torch.unique_consecutive(lengths, return_counts=True)
    return list(zip(counts.tolist(), values.tolist(), strict=True))


class FastBert:
    """Ids [n s]; on a CPU no row is spent on padding."""

    def __init__(self, tower: BertEncoder, blocks: Blocks):
        self.tower, self.blocks = tower, blocks

    def __call__(self, ids: Tensor) -> Tensor:
        pad = self.tower.cfg.pad_id
        real = torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad
        # where a text begins with padding, that position may be pooled all the same
        packs = ids.device.type == "cpu" and bool(real[:, 0].all())
        return self.tower.project(self._packed(ids, real) if packs else self._padded(ids, real))

    def _packed(self, ids: Tensor, real: Tensor) -> Tensor:
        lengths, order = real.sum(1).sort(stable=True)
        kept, layout = real[order], Layout(_groups(lengths))
        column = torch.arange(ids.shape[1]).expand_as(kept)[kept]
        x = self._walk(ids[order][kept], column, layout)
        if self.tower.cfg.pool == "mean":
            x = torch.cat([part.mean(1) for part in layout.parts(x)])
        return x[order.argsort()]

    def _padded(self, ids: Tensor, real: Tensor) -> Tensor:
        (n, s), mask = ids.shape, None
        if self.tower.cfg.pad_id is not None:
            mask = real[:, None, None]
        column = torch.arange(s, device=ids.device).repeat(n)
        layout = Layout([(n, s)], mask=mask, pooled_mask=mask)
        x = self._walk(ids.flatten(), column, layout).unflatten(0, (n, -1))
        return self.tower.pool(x, Hidden(tokens={}, attention={}, mask=real))

    def _walk(self, ids: Tensor, column: Tensor, layout: Layout) -> Tensor:
        """Rows of ids and their positions -> rows after the last block."""
        tower = self.tower
        x = tower.embed(ids[None])[0]
        x = x + (tower.type_embedding[0] + tower.positional_embedding[column])
        x = tower.ln_embed(x)
        for block in self.blocks:
            x = block(x, layout)
        return x
