"""Weights in 8 bits: a row of whole numbers from -127 to 127 and one scale for each row.

In the file a tensor `weight` is int8 and `weight.int8_scale` float32 [rows]; reading multiplies
them back to float32, so that what is loaded is exactly what the file says.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from diptych.errors import CheckpointError

__all__ = ["SCALE", "dequantise", "quantise", "rows"]

SCALE = ".int8_scale"


def rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 of the same shape, float32 scale [rows]): the largest of a row becomes 127.

    Rounds to the nearest, so a weight is off by at most half a scale.
    """
    flat = tensor.detach().float().flatten(1)
    scale = flat.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (flat / scale[:, None]).round().to(torch.int8).view_as(tensor), scale


def quantise(state_dict: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """`state_dict` with the tensors `names` in 8 bits."""
    out = dict(state_dict)
    for name in names:
        out[name], out[name + SCALE] = rows(out[name])
    return out


def dequantise(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state_dict` with every pair of numbers and scales multiplied out to float32.

    Raises:
        CheckpointError: a scale without its numbers, numbers without a scale, or another shape.
    """
    out = {key: tensor for key, tensor in state_dict.items() if not key.endswith(SCALE)}
    for key, scale in state_dict.items():
        if not key.endswith(SCALE):
            continue
        name = key.removesuffix(SCALE)
        whole = out.get(name)
        if whole is None or whole.dtype != torch.int8 or scale.shape != whole.shape[:1]:
            raise CheckpointError(f"{source}: {key!r} does not fit rows of int8. It is damaged.")
        out[name] = whole.float().mul_(scale.view(-1, *[1] * (whole.ndim - 1)))
    if left := [key for key, tensor in out.items() if tensor.dtype == torch.int8]:
        raise CheckpointError(f"{source}: {left[0]!r} is int8 without a scale. It is damaged.")
    return out
