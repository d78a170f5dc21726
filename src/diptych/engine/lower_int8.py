"""Blocks of the fast path with int8 weights and uint8 activations, for CPUs with VNNI or AMX.

- q, k, v and the MLP are integer products by oneDNN. Attention and its projection stay in bf16:
  to quantise what attention gives took as long as the smaller product saved.
- Quantising must not be a pass of its own, or it costs what int8 gains. So the steps are fixed
  beforehand: the norms before q, k, v and the MLP have them in their gain and bias, the first layer
  of the MLP writes uint8 in its epilogue, and its second adds to the residual in its own.
- Fixed steps also keep a vector independent of its batch. They come from `watch`: the reaches that
  some samples show in the fp32 tower. What lies beyond is clamped, so look at `engine.gate`.
- Channels with a long reach are narrowed and their weights widened (SmoothQuant, arXiv 2211.10438);
  each is quantised around its own middle, which then stands in the bias.
- After the activation a few channels are long and cannot be narrowed: int8 there is the caller's
  choice (`whole`). On MiniLM it takes the cosine from 0.9993 to 0.994.
- The products are private calls of torch. `has_fast_int8` compares them once with plain integers.
"""

import functools
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import TextConfig
from diptych.engine.lower_parts import FUSED, Dense, Layout
from diptych.engine.lower_transformer import FastAttention, Tower
from diptych.model.transformer import MLP, Attention, Block
from diptych.towers.bert import BertBlock

__all__ = ["Int8Dense", "Reach", "Steps", "has_fast_int8", "int8_blocks", "watch"]

_MIDDLE = 128  # the uint8 that stands for a channel's middle before q, k, v and the MLP
_LOW = -0.17  # what the activations do not go below: gelu -0.1700, quick_gelu -0.1636
_BEYOND = 1.2  # room around what the samples show
_NARROW = 0.7  # how much of a channel's reach its weights take over; see docs/log.md


class Reach(NamedTuple):
    """The smallest and largest numbers that samples show in one block.

    attn: two [d], of each channel that enters q, k and v.
    mlp: two [d], of each channel that enters the MLP.
    top: the largest after the MLP's activation.
    """

    attn: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor]
    top: float


class Steps(NamedTuple):
    """How channels become uint8: round((x - middle) * factor) + zero, of which one is a `step`.

    factor: [d], 1 / (step * widen).
    widen: [d], what the weights of each channel are multiplied by.
    middle: [d], what `zero` stands for.
    """

    step: float
    zero: int
    factor: Tensor
    widen: Tensor
    middle: Tensor

    @classmethod
    def of_channels(cls, reach: tuple[Tensor, Tensor], *weights: Tensor) -> "Steps":
        """For inputs that lie in `reach` ([d], [d]) of layers with `weights` [out d]."""
        low, high = reach
        heavy = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
        middle, half = (high + low) / 2, (high - low) / 2
        # a channel that samples never moved, or no weight reads, keeps a width
        half, heavy = (x.clamp_min(1e-3 * float(x.mean()) + 1e-20) for x in (half, heavy))
        widen = half**_NARROW / heavy ** (1 - _NARROW)
        step = float((half / widen).max()) * _BEYOND / 127
        return cls(step, _MIDDLE, 1 / (step * widen), widen, middle)

    @classmethod
    def of_activation(cls, top: float, width: int) -> "Steps":
        """From the activation's lowest number to `top`, the same for all channels."""
        step = (max(top, 1e-3) * _BEYOND - _LOW) / 255
        ones = torch.ones(width)
        return cls(step, round(-_LOW / step), ones / step, ones, torch.zeros(width))

    @property
    def shift(self) -> Tensor:
        """[d], what is added to x * factor: half a step too, as converting cuts fractions off."""
        return self.zero + 0.5 - self.middle * self.factor

    def quantise(self, x: Tensor) -> Tensor:
        """fp32 [... d] -> uint8. What lies beyond the range is clamped."""
        return torch.addcmul(self.shift, x, self.factor).clamp_(0, 255).to(torch.uint8)


class Int8Dense:
    """Linear layers that share their input, as one product of uint8 rows and int8 weights.

    Args:
        layers: `nn.Linear`, or pairs of weight [out in] and bias [out] or None.
        steps: of the input.
        act: the activation that follows, a key of `ACTIVATIONS`.
        out: steps of the output, which is then uint8 and not bf16.
    """

    def __init__(self, *layers, steps: Steps, act: str | None = None, out: Steps | None = None):
        pairs = [(a.weight, a.bias) if isinstance(a, nn.Linear) else a for a in layers]
        weights, biases = zip(*pairs, strict=True)
        # swish(1.702 x) / 1.702 is QuickGELU; the division is in the step of the output
        scale = 1.702 if act == "quick_gelu" else 1.0
        self.sizes, self.act = [len(w) for w in weights], FUSED[act] if act else ("none", "")
        self.step, self.zero = steps.step, steps.zero
        self.out_step, self.out_zero = (out.step * scale, out.zero) if out else (1.0, 0)
        self.dtype = torch.uint8 if out else torch.bfloat16
        weight = torch.cat([w.detach() for w in weights]) * scale
        self.bias = weight @ steps.middle
        if biases[0] is not None:
            self.bias = self.bias + torch.cat([b.detach() for b in biases]) * scale
        weight = weight * steps.widen
        self.scales = (weight.abs().amax(1) / 127).clamp_min(1e-20)
        weight = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)

    def _input(self, x: Tensor) -> tuple:
        return x, self.step, self.zero, self.weight, self.scales, self.zeros

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """uint8 [... in] -> the outputs of each layer, in order: bf16, or uint8 under `out`."""
        output = (self.bias, self.out_step, self.out_zero, self.dtype)
        attr, algorithm = self.act
        y = torch.ops.onednn.qlinear_pointwise(*self._input(x), *output, attr, [], algorithm)
        return y.split(self.sizes, dim=-1)

    def add_(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual fp32 [t out], plus what uint8 [t in] gives, in place. Returns it."""
        output = (residual, self.bias, 1.0, 0, torch.float32)
        how = (1.0, 0, "sum", 1.0, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise.binary(*self._input(x), *output, *how)


class _Norm:
    """A LayerNorm whose result is uint8: the step is in its gain, the zero in its bias."""

    def __init__(self, norm: nn.LayerNorm, steps: Steps):
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight = norm.weight.detach() * steps.factor
        self.bias = norm.bias.detach() * steps.factor + steps.shift

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return y.clamp_(0, 255).to(torch.uint8)


def _attention(attn: Attention, steps: Steps, *, pooled: bool) -> FastAttention:
    """q, k and v in int8; the projection in bf16."""
    layers, out = partial(Int8Dense, steps=steps), partial(Dense, dtype=torch.bfloat16)
    return FastAttention(attn, layers, out, pooled=pooled)


class _MLP:
    """Both layers in int8 where `whole`; the first alone, and the second in bf16, elsewhere."""

    def __init__(self, mlp: MLP, act: str, steps: Steps, top: float, *, whole: bool):
        if whole:
            middle = Steps.of_activation(top, mlp.c_fc.out_features)
            self.fc = Int8Dense(mlp.c_fc, steps=steps, act=act, out=middle)
            self.proj = Int8Dense(mlp.c_proj, steps=middle)
        else:
            self.fc = Int8Dense(mlp.c_fc, steps=steps, act=act)
            weight = mlp.c_proj.weight / (1.702 if act == "quick_gelu" else 1.0)
            self.proj = Dense((weight, mlp.c_proj.bias), dtype=torch.bfloat16)

    def add_(self, residual: Tensor, y: Tensor) -> Tensor:
        (y,) = self.fc(y)
        if isinstance(self.proj, Int8Dense):
            return self.proj.add_(residual, y)
        return residual.add_(self.proj(y)[0])


def _attn_steps(attn: Attention, reach: tuple[Tensor, Tensor]) -> Steps:
    layers = (attn.q_proj, attn.k_proj, attn.v_proj)
    return Steps.of_channels(reach, *(layer.weight.detach() for layer in layers))


class _PreNorm:
    """One residual block on rows [t d], in place. `pooled`: only those positions leave it."""

    def __init__(self, block: Block, act: str, reach: Reach, *, pooled: bool, whole: bool):
        self.is_pooled = pooled
        steps = _attn_steps(block.attn, reach.attn)
        self.ln_1, self.attn = (
            _Norm(block.ln_1, steps),
            _attention(block.attn, steps, pooled=pooled),
        )
        steps = Steps.of_channels(reach.mlp, block.mlp.c_fc.weight.detach())
        self.ln_2, self.mlp = (
            _Norm(block.ln_2, steps),
            _MLP(block.mlp, act, steps, reach.top, whole=whole),
        )

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        y = self.attn(self.ln_1(x), layout)
        x = (layout.pooled(x) if self.is_pooled else x).add_(y)
        return self.mlp.add_(x, self.ln_2(x))


class _PostNorm:
    """One of BERT's blocks: its norms give the residual too, so quantising is apart."""

    def __init__(self, block: BertBlock, act: str, reach: Reach, *, pooled: bool, whole: bool):
        self.block, self.is_pooled = block, pooled
        self.attn_steps = _attn_steps(block.attn, reach.attn)
        self.attn = _attention(block.attn, self.attn_steps, pooled=pooled)
        self.mlp_steps = Steps.of_channels(reach.mlp, block.mlp.c_fc.weight.detach())
        self.mlp = _MLP(block.mlp, act, self.mlp_steps, reach.top, whole=whole)

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        y = self.attn(self.attn_steps.quantise(x), layout)
        x = self.block.ln_1((layout.pooled(x) if self.is_pooled else x) + y)
        y = self.mlp_steps.quantise(x)
        return self.block.ln_2(self.mlp.add_(x, y))


@torch.no_grad()
def watch(tower: Tower, batch: Tensor) -> list[Reach]:
    """What `batch` (pixels [n 3 H W] or ids [n s]) reaches in each block of the fp32 tower.

    Positions that reach no result (padding, what stands after EOT) are not looked at.
    """
    hidden = tower.hidden(batch, layers=(0,))
    x = hidden.tokens[0]
    mask = None if hidden.mask is None else hidden.mask[:, None, None]  # n 1 1 s
    seen = torch.ones(x.shape[:2], dtype=torch.bool) if hidden.mask is None else hidden.mask
    if isinstance(tower.cfg, TextConfig) and tower.cfg.causal:
        assert hidden.pooled is not None
        seen = seen & (torch.arange(x.shape[1]) <= hidden.pooled[:, None])
    found = []
    for block in tower.blocks:
        match block:
            case BertBlock():
                a, x = x, block.ln_1(x + block.attn(x, x, mask))
                m, h = x, block.mlp.act(block.mlp.c_fc(x))
                x = block.ln_2(x + block.mlp.c_proj(h))
            case Block():
                a = block.ln_1(x)
                x = x + block.attn(a, a, mask)
                m = block.ln_2(x)
                h = block.mlp.act(block.mlp.c_fc(m))
                x = x + block.mlp.c_proj(h)
            case _:
                raise TypeError(f"a block of type {type(block).__name__}")
        found.append(Reach(a[seen].aminmax(dim=0), m[seen].aminmax(dim=0), float(h[seen].max())))
    return found


def int8_blocks(tower: Tower, reaches: list[Reach], *, whole: bool) -> list:
    """The tower's blocks for the fast path, with steps that fit `reaches`, which `watch` gave.

    `whole`: the second layer of each MLP is in int8 too; False leaves it in bf16.
    Call each with rows fp32 [t d] and their `Layout`, as those of `engine.lower`. The last one of a
    tower that pools one position gives only these rows.
    """
    pooled = isinstance(tower.cfg, TextConfig) or tower.cfg.pool == "class"
    last = len(tower.blocks) - 1
    blocks: list[_PreNorm | _PostNorm] = []
    for i, (block, reach) in enumerate(zip(tower.blocks, reaches, strict=True)):
        how = {"pooled": pooled and i == last, "whole": whole}
        match block:
            case BertBlock():
                blocks.append(_PostNorm(block, tower.cfg.act, reach, **how))
            case Block():
                blocks.append(_PreNorm(block, tower.cfg.act, reach, **how))
    return blocks


@functools.cache
def has_fast_int8() -> bool:
    """Whether this CPU multiplies int8 (VNNI), and torch's products of it are right here."""
    if not torch.cpu._is_vnni_supported():
        return False
    numbers = torch.tensor([255, 0, 255, 1, 128, 254, 7, 255], dtype=torch.uint8)
    x = numbers.repeat(5, 32)  # sums of pairs that saturate the instructions before VNNI
    weight = torch.tensor([127, -127, 127, -127, -1], dtype=torch.int8).repeat(13)
    weight = weight[:64, None] * torch.tensor([1, -1, 1, 1], dtype=torch.int8).repeat(64)
    pairs = [(weight.float() / 2, torch.arange(64.0))]
    expected = (x.int() - 3).double() @ weight.double().T / 2 + torch.arange(64)
    try:
        ones, none = torch.ones(256), torch.zeros(256)
        steps = Steps(1.0, 3, ones, ones, none)
        dense = Int8Dense(*pairs, steps=steps)
        found = dense.add_(torch.ones(5, 64), x)
        (y,) = Int8Dense(*pairs, steps=steps, act="gelu", out=Steps(500.0, 9, ones, ones, none))(x)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    written = (F.gelu(expected) / 500).round().add(9).clamp(0, 255)
    # the row of -1 has scales of 1/254, which are not exact
    return bool(
        torch.allclose(found.double() - 1, expected, rtol=1e-6)
        and (y.double() - written).abs().max() <= 1
    )
