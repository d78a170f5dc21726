"""EfficientNet: inverted bottlenecks scaled from one table; the image tower of ALIGN, and Lite.

Tan and Le, arXiv 1905.11946; ALIGN: arXiv 2102.05918; Lite: `efficientnet/lite` in tensorflow/tpu.

- `blocks` are the inverted bottlenecks, one after the other over all stages, as files number them.
  Hidden state i is block i's feature map as tokens [n (y x) c], 0 the stem's; the grid is the last
  map's, and earlier ones are finer.
- `final_norm` is the last 1x1 convolution with its batch norm: it looks at one position at a time.
- There is no attention to ask for.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.config import EfficientNetConfig
from diptych.model.transformer import Hidden
from diptych.towers.concepts import ConceptHead

# Running statistics must not move twice: the same for every tower with batch norms.
from diptych.towers.resnet import StatisticsKept

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["B0", "ConvNorm", "EfficientNet", "Layer", "MBConv", "SqueezeExcite", "layers"]

_STEM = 32  # channels, before scaling
B0 = (  # kernel, stride, expansion, channels in, channels out, repeats
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)


class Layer(NamedTuple):
    """One inverted bottleneck, after scaling."""

    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels: int


def scaled(channels: int, mult: float) -> int:
    """`channels * mult` to a multiple of 8, never less than 90 % of it."""
    wanted = channels * mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def stem_width(cfg: EfficientNetConfig) -> int:
    return _STEM if cfg.lite else scaled(_STEM, cfg.width_mult)


def layers(cfg: EfficientNetConfig) -> list[Layer]:
    """The table of B0, scaled: one row a block."""
    found, channels_in = [], stem_width(cfg)
    for stage, (kernel, stride, expansion, _, out, repeats) in enumerate(B0):
        channels = scaled(out, cfg.width_mult)
        if not (cfg.lite and stage in (0, len(B0) - 1)):
            repeats = math.ceil(cfg.depth_mult * repeats)
        for i in range(repeats):
            found.append(Layer(kernel, 1 if i else stride, expansion, channels_in, channels))
            channels_in = channels
    return found


def pooled_width(cfg: EfficientNetConfig) -> int:
    """Channels of what is averaged."""
    return cfg.head_width or layers(cfg)[-1].channels


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if `act`, the config's activation."""

    def __init__(
        self,
        cfg: EfficientNetConfig,
        channels_in: int,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        act: bool = True,
    ):
        super().__init__()
        self.odd = cfg.padding == "same"  # an odd side gets one more
        groups = channels_in if depthwise else 1
        around = 0 if stride > 1 else kernel // 2
        self.conv = nn.Conv2d(
            channels_in, channels, kernel, stride, around, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels, cfg.bn_eps, momentum=0.01)
        self.act = (nn.ReLU6() if cfg.lite else nn.SiLU()) if act else nn.Identity()

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Of a strided convolution: left, right, top, bottom; the odd one goes behind."""
        extra = self.conv.kernel_size[0] - 2
        x, y = (extra + (side % 2 if self.odd else 0) for side in (width, height))
        return x // 2, x - x // 2, y // 2, y - y // 2

    def forward(self, x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n C Y X"]:
        if self.conv.stride[0] > 1:
            x = F.pad(x, self.padding(x.shape[-2], x.shape[-1]))
        return self.act(self.bn(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Each channel times a gate that sees the mean of all of them (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return torch.sigmoid(gate) * x


class MBConv(nn.Module):
    """Inverted bottleneck (arXiv 1801.04381): widen, filter each channel, gate, narrow."""

    def __init__(self, cfg: EfficientNetConfig, layer: Layer):
        super().__init__()
        kernel, stride, expansion, channels_in, channels = layer
        wide = channels_in * expansion
        self.expand = ConvNorm(cfg, channels_in, wide) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(cfg, wide, wide, kernel, stride=stride, depthwise=True)
        squeezed = max(1, channels_in // 4)
        self.squeeze = nn.Identity() if cfg.lite else SqueezeExcite(wide, squeezed)
        self.project = ConvNorm(cfg, wide, channels, act=False)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n C Y X"]:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """Pixels -> [n e]. See `EfficientNetConfig` for what varies."""

    def __init__(self, cfg: EfficientNetConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False  # recompute blocks in the backward pass
        table = layers(cfg)
        self.stem = ConvNorm(cfg, 3, stem_width(cfg), 3, stride=2)
        self.blocks = nn.ModuleList(MBConv(cfg, layer) for layer in table)
        last, head = table[-1].channels, cfg.head_width
        self.head = nn.Identity() if head is None else ConvNorm(cfg, last, head)
        match cfg.proj:
            case "none":
                self.proj = nn.Identity()
            case "linear":
                self.proj = nn.Linear(pooled_width(cfg), embed_dim, bias=False)
            case "concepts":
                assert cfg.concepts is not None  # the config checks
                self.proj = ConceptHead(cfg.concepts, pooled_width(cfg), embed_dim)

    def hidden(self, image: Float[Tensor, "n 3 H W"], layers=(-1,), attention=()) -> Hidden:
        """Feature maps of any block as tokens; see `Hidden` and the notes above."""
        depth = len(self.blocks)
        if attention:
            raise IndexError(f"attention of layers {attention}: a convolutional network has none")
        if any(not -depth <= i <= depth for i in layers):
            raise IndexError(f"layers {layers}: blocks are 1 to {depth}, or -1 to {-depth}")
        at = {i: i if i >= 0 else depth + 1 + i for i in layers}  # -1 -> depth
        x = self.stem(image)
        states = {0: x}
        for i, block in enumerate(self.blocks, start=1):
            if self.checkpointing and torch.is_grad_enabled():
                contexts = nullcontext(), StatisticsKept(block)  # first pass, second pass
                x = checkpoint(block, x, use_reentrant=False, context_fn=lambda c=contexts: c)
            else:
                x = block(x)
            if i in at.values():
                states[i] = x
        tokens = {i: states[at[i]].flatten(2).transpose(1, 2) for i in layers}
        grid = (x.shape[-2], x.shape[-1])
        return Hidden(tokens=tokens, attention={}, grid=grid, beside=self.beside(image))

    def beside(self, image: Float[Tensor, "n 3 H W"]) -> Tensor | None:
        """What the projection needs of the pixels themselves: shares of colours, or nothing."""
        if isinstance(self.proj, ConceptHead) and self.proj.palette is not None:
            return self.proj.palette.shares(image)
        return None

    def final_norm(self, tokens: Float[Tensor, "n s c"]) -> Float[Tensor, "n s C"]:
        maps = tokens.transpose(1, 2)[..., None]  # n c (y x) 1
        return self.head(maps)[..., 0].transpose(1, 2)

    def pool(self, tokens: Float[Tensor, "n s c"], hidden: Hidden) -> Float[Tensor, "n C"]:
        x = tokens.mean(1)
        return x if hidden.beside is None else torch.cat([x, hidden.beside], dim=1)

    def project(self, pooled: Float[Tensor, "n c"]) -> Float[Tensor, "n e"]:
        return self.proj(pooled)

    def forward(self, image: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n e"]:
        hidden = self.hidden(image)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))
