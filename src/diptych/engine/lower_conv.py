"""The fast paths of convolutional towers: batch norms folded in, channels last."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.engine.lower_parts import Dense, attend, product_dtype
from diptych.model.transformer import Hidden
from diptych.towers.efficientnet import ConvNorm, EfficientNet, MBConv, SqueezeExcite
from diptych.towers.resnet import Bottleneck, ModifiedResNet

__all__ = ["FastEfficientNet", "FastResNet"]


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


class FastResNet:
    """Convolutions in `dtype`; the shortcut is carried in fp32."""

    def __init__(self, tower: ModifiedResNet, dtype: torch.dtype):
        self.tower = tower
        self.dtype = dtype = product_dtype(dtype, tower.attn_pool.attn.q_proj.weight.device)
        with torch.no_grad():
            self.stem = [_Conv(*pair, dtype) for pair in tower.stem_pairs()]
            bottlenecks = [b for b in tower.modules() if isinstance(b, Bottleneck)]  # in order
            self.bottlenecks = [self._bottleneck(b) for b in bottlenecks]
        attn = tower.attn_pool.attn
        self.q = Dense(attn.q_proj, dtype=dtype)
        self.kv = Dense(attn.k_proj, attn.v_proj, dtype=dtype)

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
        return attn.out_proj(attend(q, k, v, attn.heads).float())[:, 0]


_PIXELS_AT_ONCE = 300_000
# oneDNN's names for what follows a convolution, with its two numbers
_AFTER = {nn.SiLU: ("swish", []), nn.ReLU6: ("hardtanh", [0.0, 6.0]), nn.Identity: ("none", [])}


class _ConvNorm:
    """A `ConvNorm` as one call: the norm folded in, the activation and a sum fused on a CPU."""

    def __init__(self, module: ConvNorm):
        self.module = module
        conv, self.act = module.conv, type(module.act)
        folded = _Conv(conv, module.bn, torch.float32)
        self.strided = conv.stride[0] > 1
        around = 0 if self.strided else conv.kernel_size[0] // 2  # see `ConvNorm`
        sizes = ((around, around), conv.stride, (1, 1), conv.groups)
        self.packed = folded.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self.how = (folded.weight, folded.bias, *sizes)
        if not self.packed:  # F.conv2d takes the stride first
            self.how = (folded.weight, folded.bias, conv.stride, (around, around), *sizes[2:])

    def padded(self, x: Tensor, pads: dict["_ConvNorm", Tensor]) -> Tensor:
        """`x` inside zeros, in the memory of the images before: fresh pages would cost most."""
        n, channels, height, width = x.shape
        left, right, top, bottom = self.module.padding(height, width)
        if self not in pads:
            shape = (n, channels, top + height + bottom, left + width + right)
            pads[self] = x.new_zeros(shape).contiguous(memory_format=torch.channels_last)
        whole = pads[self][:n]
        whole[:, :, top : top + height, left : left + width] = x
        return whole

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.packed:
            call, how = torch.ops.mkldnn._convolution_pointwise, self.how
            if residual is not None:
                return call.binary(x, residual, *how, "add", 1.0, None, [], None)
            attr, scalars = _AFTER[self.act]
            return call(x, *how, attr, scalars, "")
        y = F.conv2d(x, *self.how)
        y = self.module.act(y)
        return y if residual is None else y + residual


class _Squeeze:
    """The gate of squeeze-and-excitation."""

    def __init__(self, module: SqueezeExcite):
        self.reduce, self.expand = module.reduce, module.expand

    def __call__(self, x: Tensor) -> Tensor:
        y = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(y)


class FastEfficientNet:
    """Always in fp32: in bfloat16 the published Lite2 falls to a cosine of 0.978 on 200 photos.

    On a CPU a few images run at a time: the maps of the first blocks are so large that more of
    them leave the cache (Lite2, one thread: 64 images a second instead of 40).
    """

    def __init__(self, tower: EfficientNet):
        self.tower = tower
        with torch.no_grad():
            self.stem = _ConvNorm(tower.stem)
            self.blocks = [self._block(b) for b in tower.blocks if isinstance(b, MBConv)]
            self.head = _ConvNorm(tower.head) if isinstance(tower.head, ConvNorm) else None

    def _block(self, block: MBConv):
        expand = _ConvNorm(block.expand) if isinstance(block.expand, ConvNorm) else None
        squeeze = _Squeeze(block.squeeze) if isinstance(block.squeeze, SqueezeExcite) else None
        depthwise, project = (_ConvNorm(x) for x in (block.depthwise, block.project))
        return expand, depthwise, squeeze, project, block.residual

    def __call__(self, image: Tensor) -> Tensor:
        few = len(image)
        if image.device.type == "cpu":
            few = _PIXELS_AT_ONCE // (image.shape[2] * image.shape[3])
        pads: dict[_ConvNorm, Tensor] = {}
        return torch.cat([self._run(part, pads) for part in image.split(max(1, few))])

    def _run(self, image: Tensor, pads: dict[_ConvNorm, Tensor]) -> Tensor:
        beside = self.tower.beside(image)
        x = self.stem(self.stem.padded(image, pads))
        for expand, depthwise, squeeze, project, residual in self.blocks:
            y = x if expand is None else expand(x)
            y = depthwise(depthwise.padded(y, pads) if depthwise.strided else y)
            y = y if squeeze is None else squeeze(y)
            x = project(y, x if residual else None)
        if self.head is not None:
            x = self.head(x)
        hidden = Hidden(tokens={}, attention={}, beside=beside)
        tokens = x.flatten(2).transpose(1, 2)  # n (y x) c
        return self.tower.project(self.tower.pool(tokens, hidden))
