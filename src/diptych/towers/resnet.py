"""OpenAI's modified ResNet (arXiv 2103.00020, section 2.4).

- Three 3x3 convolutions and an average pool as the stem; strides are average pools ("anti-aliased",
  arXiv 1904.11486); the last pool is attention whose query is the mean token.
- `blocks` are the four stages. Hidden state i is stage i's feature map as tokens [n (y x) c]; the
  grid is the last stage's, and stages 0 to 3 are finer by 8, 8, 4 and 2.
- The only attention is the pool's: it is returned for the last layer, [n h 1 1+(y x)], mean first.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.config import ResNetConfig
from diptych.model.transformer import Attention, Hidden
from diptych.model.vision import resize_positions

if TYPE_CHECKING:
    from jaxtyping import Float


class Bottleneck(nn.Module):
    """1x1, 3x3, average pool if strided, 1x1 to four times the channels; plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        out = 4 * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or channels_in != out:
            parts = OrderedDict[str, nn.Module]({"-1": nn.AvgPool2d(stride)})
            parts["0"] = nn.Conv2d(channels_in, out, 1, bias=False)
            parts["1"] = nn.BatchNorm2d(out)
            self.downsample = nn.Sequential(parts)

    def forward(self, x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n C Y X"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    """Attention over [mean, every position]; the answer to the mean token is the image's vector."""

    def __init__(self, cfg: ResNetConfig, embed_dim: int):
        super().__init__()
        self.grid = cfg.grid
        channels, num_positions = 32 * cfg.width, 1 + cfg.grid[0] * cfg.grid[1]
        self.positional_embedding = nn.Parameter(torch.randn(num_positions, channels))
        self.attn = Attention(channels, cfg.heads, out_dim=embed_dim)

    def embed(self, x: Float[Tensor, "n s c"], grid: tuple[int, int]) -> Float[Tensor, "n t c"]:
        """The mean in front, positions added."""
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        return x + resize_positions(self.positional_embedding, 1, self.grid, grid)

    def forward(self, x: Float[Tensor, "n s c"], grid: tuple[int, int]) -> Float[Tensor, "n e"]:
        x = self.embed(x, grid)
        return self.attn(x[:, :1], x)[:, 0]

    def weights(self, x: Float[Tensor, "n s c"], grid) -> Float[Tensor, "n h 1 t"]:
        x = self.embed(x, grid)
        return self.attn.weights(x[:, :1], x)


class ModifiedResNet(nn.Module):
    """Pixels -> [n e]."""

    def __init__(self, cfg: ResNetConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False  # recompute stages in the backward pass
        w = cfg.width
        self.conv1 = nn.Conv2d(3, w // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w // 2)
        self.conv2 = nn.Conv2d(w // 2, w // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(w // 2)
        self.conv3 = nn.Conv2d(w // 2, w, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(w)
        self.blocks = nn.ModuleList()
        channels_in = w
        for stage, depth in enumerate(cfg.layers):
            channels, stride = w * 2**stage, 1 if stage == 0 else 2
            first = Bottleneck(channels_in, channels, stride)
            rest = [Bottleneck(4 * channels, channels, 1) for _ in range(depth - 1)]
            self.blocks.append(nn.Sequential(first, *rest))
            channels_in = 4 * channels
        self.attn_pool = AttentionPool2d(cfg, embed_dim)

    def stem_pairs(self):
        return (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)

    def stem(self, image: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c y x"]:
        x = image
        for conv, bn in self.stem_pairs():
            x = F.relu(bn(conv(x)))
        return F.avg_pool2d(x, 2)

    def hidden(self, image: Float[Tensor, "n 3 H W"], layers=(-1,), attention=()) -> Hidden:
        """Feature maps of any stage as tokens; see `Hidden` and the notes above."""
        if any(not -4 <= i <= 4 for i in layers) or any(i not in (4, -1) for i in attention):
            raise IndexError(f"layers {layers}, attention {attention}: 0 to 4; attention only of 4")
        x = self.stem(image)
        states = {0: x}
        for i, stage in enumerate(self.blocks, start=1):
            if self.checkpointing and torch.is_grad_enabled():
                contexts = nullcontext(), StatisticsKept(stage)  # first pass, second pass
                x = checkpoint(stage, x, use_reentrant=False, context_fn=lambda c=contexts: c)
            else:
                x = stage(x)
            if i in layers or i - 5 in layers:
                states[i] = x
        tokens = {i: states[i if i >= 0 else 5 + i].flatten(2).transpose(1, 2) for i in layers}
        grid = (x.shape[-2], x.shape[-1])
        last = x.flatten(2).transpose(1, 2)  # n (y x) c
        maps = {i: self.attn_pool.weights(last, grid) for i in attention}
        return Hidden(tokens=tokens, attention=maps, grid=grid)

    def final_norm(self, tokens: Float[Tensor, "n s c"]) -> Float[Tensor, "n s c"]:
        return tokens  # the last batch norm lies inside the last stage

    def pool(self, tokens: Float[Tensor, "n s c"], hidden: Hidden) -> Float[Tensor, "n e"]:
        return self.attn_pool(tokens, hidden.grid)

    def project(self, pooled: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        return pooled  # the attention pool's out_proj has done it

    def forward(self, image: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n e"]:
        hidden = self.hidden(image)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))


class StatisticsKept:
    """Context in which batch norms compute as ever, but do not move their running statistics."""

    def __init__(self, stage: nn.Module):
        kinds = nn.BatchNorm2d | nn.SyncBatchNorm
        norms = [m for m in stage.modules() if isinstance(m, kinds)]
        self.norms = [(m, m.momentum, m.num_batches_tracked) for m in norms]

    def __enter__(self):
        for norm, _, _ in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_):
        for norm, momentum, num_batches in self.norms:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
