"""The fast path: a tower as packed calls, in bfloat16 or fp32, equal to the tower up to rounding.

- q, k, v are fused and weights packed for oneDNN; the residual stream and every norm stay fp32.
- Texts of causal towers run at their real length: what stands after EOT cannot reach it.
- The last block computes only the pooled position, where there is one.
- A tower is lowered only if every module in it is exactly of a type known here and nothing hooks
  into it; anything else (LoRA, hooks, a tower of another package) runs unchanged.
- Packed weights are keyed on each parameter's identity, storage and `_version`, so an optimiser
  step repacks them. Writing through `.data` hides from torch's counter and from us.
"""

import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from diptych.model.text import TextTransformer
from diptych.model.transformer import ACTIVATIONS, MLP, Attention, AttentionPool, Block
from diptych.model.vision import VisionTransformer, resize_positions

__all__ = ["Lowered", "Versions"]

_KNOWN = {
    *(VisionTransformer, TextTransformer, ModifiedResNet, Bottleneck, AttentionPool2d),
    *(AttentionPool, Attention, Block, MLP),
    *(nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.Embedding, nn.AvgPool2d),
    *(nn.Identity, nn.ModuleList, nn.Sequential),
}
# torch's fused activations of a packed linear; swish(1.702 x) / 1.702 is QuickGELU
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "quick_gelu": ("swish", "")}


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
            case ModifiedResNet() if self.dtype == torch.bfloat16:
                return _ResNet(self.tower, self.dtype)
        return self.tower

    def __getstate__(self):
        return {"tower": self.tower, "dtype": self.dtype}

    def __setstate__(self, state):
        self.__init__(state["tower"], dtype=state["dtype"])


class _Dense:
    """Layers (weight [out in], bias) that share their input, as one product; an activation may
    follow. In fp32 the reference's own tensors are used, so nothing is copied.
    """

    def __init__(self, *layers, dtype: torch.dtype, act: str | None = None):
        self.layers = [(a.weight, a.bias) if isinstance(a, nn.Linear) else a for a in layers]
        self.sizes = [len(weight) for weight, _ in self.layers]
        self.act = act
        self.weight = self.bias = None
        if dtype == torch.float32:
            return
        # QuickGELU's factor goes into this layer; `_mlp` takes it out of the next one
        scale = 1.702 if act == "quick_gelu" else 1.0
        weights, biases = zip(*self.layers, strict=True)
        self.weight = (torch.cat([w.detach() for w in weights]) * scale).to(dtype)
        if biases[0] is not None:
            self.bias = (torch.cat([b.detach() for b in biases]) * scale).to(dtype)
        self.packed = self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of each linear layer, in order."""
        if self.weight is None:
            out = tuple(F.linear(x, weight, bias) for weight, bias in self.layers)
            return tuple(map(ACTIVATIONS[self.act], out)) if self.act else out
        if self.packed:
            attr, algorithm = _FUSED[self.act] if self.act else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, attr, [], algorithm)
        else:
            y = F.linear(x, self.weight, self.bias)
            if self.act:
                y = F.silu(y) if self.act == "quick_gelu" else ACTIVATIONS[self.act](y)
        return y.split(self.sizes, dim=-1)


def _mlp(mlp: MLP, act: str, dtype: torch.dtype) -> tuple[_Dense, _Dense]:
    weight = mlp.c_proj.weight
    if act == "quick_gelu" and dtype != torch.float32:
        weight = weight / 1.702
    return _Dense(mlp.c_fc, dtype=dtype, act=act), _Dense((weight, mlp.c_proj.bias), dtype=dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, **mask) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # n h s k
    return F.scaled_dot_product_attention(q, k, v, **mask).transpose(1, 2).flatten(2)


class _Block:
    """One residual block. With `rows`, only those positions are computed, one for each item."""

    def __init__(self, block: Block, act: str, dtype: torch.dtype, *, pooled: bool):
        a = block.attn
        self.block, self.dtype, self.heads, self.causal = block, dtype, a.heads, a.causal
        if pooled:
            self.q, self.kv = _Dense(a.q_proj, dtype=dtype), _Dense(a.k_proj, a.v_proj, dtype=dtype)
        else:
            self.qkv = _Dense(a.q_proj, a.k_proj, a.v_proj, dtype=dtype)
        self.out = _Dense(a.out_proj, dtype=dtype)
        self.fc, self.proj = _mlp(block.mlp, act, dtype)

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        y = self.block.ln_1(x).to(self.dtype)
        if rows is None:
            q, k, v = self.qkv(y)
            y = _attend(q, k, v, self.heads, is_causal=self.causal)
        else:
            each = torch.arange(x.shape[0], device=x.device)
            (q,), (k, v) = self.q(y[each, rows][:, None]), self.kv(y)
            mask = None
            if self.causal:
                mask = torch.arange(x.shape[1], device=x.device) <= rows[:, None]  # n s
                mask = mask[:, None, None]
            y = _attend(q, k, v, self.heads, attn_mask=mask)
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
        self.kv = _Dense(attn.k_proj, attn.v_proj, dtype=dtype)
        self.query = attn.q_proj(pool.probe).detach().to(dtype)  # 1 1 d

    def __call__(self, x: Tensor) -> Tensor:
        pool, attn = self.pool, self.pool.attn
        k, v = self.kv(x.to(self.dtype))
        x = _attend(self.query.expand(len(x), -1, -1), k, v, attn.heads)
        x = attn.out_proj(x.float())[:, 0]
        return x + pool.mlp(pool.ln(x))


class _Vision:
    def __init__(self, tower: VisionTransformer, dtype: torch.dtype):
        self.tower, self.dtype, cfg = tower, dtype, tower.cfg
        self.pooled = cfg.pool == "class"
        conv = tower.patch_embed
        self.patch_embed = _Dense((conv.weight.flatten(1), conv.bias), dtype=dtype)
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


class _Conv:
    """A convolution with its batch norm folded in, channels last."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, dtype: torch.dtype):
        mean, variance = bn.get_buffer("running_mean"), bn.get_buffer("running_var")
        scale = bn.weight / (variance + bn.eps).sqrt()
        weight = conv.weight * scale[:, None, None, None]
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.bias = (bn.bias - mean * scale).to(dtype)
        self.stride, self.padding = conv.stride, conv.padding

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _ResNet:
    """Convolutions in `dtype`; the shortcut is carried in fp32."""

    def __init__(self, tower: ModifiedResNet, dtype: torch.dtype):
        self.tower, self.dtype = tower, dtype
        with torch.no_grad():
            self.stem = [_Conv(*pair, dtype) for pair in tower.stem_pairs()]
            bottlenecks = [b for b in tower.modules() if isinstance(b, Bottleneck)]  # in order
            self.bottlenecks = [self._bottleneck(b) for b in bottlenecks]
        attn = tower.attn_pool.attn
        self.q = _Dense(attn.q_proj, dtype=dtype)
        self.kv = _Dense(attn.k_proj, attn.v_proj, dtype=dtype)

    def _bottleneck(self, b: Bottleneck):
        convs = [
            _Conv(*p, self.dtype) for p in ((b.conv1, b.bn1), (b.conv2, b.bn2), (b.conv3, b.bn3))
        ]
        shortcut = None
        if b.downsample is not None:
            pool, conv, bn = b.downsample
            assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
            shortcut = (pool, _Conv(conv, bn, self.dtype))
        return convs, b.avgpool, shortcut

    def __call__(self, image: Tensor) -> Tensor:
        x = image.to(self.dtype, memory_format=torch.channels_last)
        for conv in self.stem:
            x = F.relu(conv(x))
        x = F.avg_pool2d(x, 2).float()
        for (conv1, conv2, conv3), avgpool, shortcut in self.bottlenecks:
            low = x.to(self.dtype)
            y = conv3(avgpool(F.relu(conv2(F.relu(conv1(low))))))
            if shortcut is not None:
                pool, conv = shortcut
                x = conv(pool(low)).float()
            x = F.relu(x + y)
        grid, attn = (x.shape[-2], x.shape[-1]), self.tower.attn_pool.attn
        x = self.tower.attn_pool.embed(x.flatten(2).transpose(1, 2), grid).to(self.dtype)
        (q,), (k, v) = self.q(x[:, :1]), self.kv(x)
        return attn.out_proj(_attend(q, k, v, attn.heads).float())[:, 0]
