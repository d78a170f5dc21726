"""What fast paths are made of: packed linear layers, an MLP of two, attention on split heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.transformer import ACTIVATIONS, MLP

__all__ = ["Dense", "attend", "pack_mlp"]

# torch's fused activations of a packed linear; swish(1.702 x) / 1.702 is QuickGELU
FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "quick_gelu": ("swish", "")}


class Dense:
    """Layers (weight [out in], bias) that share their input, as one product; an activation may
    follow. In fp32 the reference's own tensors are used, so nothing is copied, unless `pack`:
    oneDNN's fp32 products took half the time of `F.linear` on an AMD processor.
    """

    def __init__(self, *layers, dtype: torch.dtype, act: str | None = None, pack: bool = False):
        self.layers = [(a.weight, a.bias) if isinstance(a, nn.Linear) else a for a in layers]
        self.sizes = [len(weight) for weight, _ in self.layers]
        self.act = act
        self.weight = self.bias = None
        if dtype == torch.float32 and not pack:
            return
        # QuickGELU's factor goes into this layer; `pack_mlp` takes it out of the next one
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
            attr, algorithm = FUSED[self.act] if self.act else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, attr, [], algorithm)
        else:
            y = F.linear(x, self.weight, self.bias)
            if self.act:
                y = F.silu(y) if self.act == "quick_gelu" else ACTIVATIONS[self.act](y)
        return y.split(self.sizes, dim=-1)


def pack_mlp(mlp: MLP, act: str, dtype: torch.dtype, *, pack: bool = False) -> tuple[Dense, Dense]:
    """The two layers of an MLP, the activation in the first: call the second on what it gives."""
    weight = mlp.c_proj.weight
    if act == "quick_gelu" and (pack or dtype != torch.float32):
        weight = weight / 1.702
    return (
        Dense(mlp.c_fc, dtype=dtype, act=act, pack=pack),
        Dense((weight, mlp.c_proj.bias), dtype=dtype, pack=pack),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, **mask) -> Tensor:
    """Attention of [n s d] on its heads; `mask` is one keyword of torch's function."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # n h s k
    return F.scaled_dot_product_attention(q, k, v, **mask).transpose(1, 2).flatten(2)
