"""The same pixels with torch alone: on any device, and with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess.pipeline import statistics
from diptych.preprocess.pixels import crop_box, target_size

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def tensor_preprocess(
    images: UInt8[Tensor, "n 3 H W"] | Float[Tensor, "n 3 H W"], config: PreprocessConfig
) -> Float[Tensor, "n 3 h w"]:
    """Resize, crop or pad, and normalise a batch of RGB images of one size.

    Largest difference to Pillow over 60 noisy pictures, in levels of 255: 2 where Pillow resizes
    columns before rows, as here. Where Pillow 13 takes the rows first (the height shrinks much
    more than the width), at most 12 for bicubic and 2 for bilinear. Most pixels are equal.

    Args:
        images: uint8 0..255 (rounded to 8 bits after the resize, as Pillow does), or float 0..1
            (differentiable, not rounded, clipped to 0..1 as Pillow clips overshoot).

    Raises:
        ImageError: not [n 3 H W], or another dtype.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageError(f"an image batch is [n, 3, H, W], got {list(images.shape)}")
    whole = images.dtype == torch.uint8
    if not whole and not images.is_floating_point():
        raise ImageError(f"an image batch is uint8 0..255 or float 0..1, got {images.dtype}")
    height, width = images.shape[-2:]
    new_width, new_height = target_size(config, width, height)
    left, top, right, bottom = crop_box(config, new_width, new_height)
    pixels = images.to(torch.float32) if whole else images
    for size in ((height, new_width), (new_height, new_width)):  # Pillow's two passes
        if size == tuple(pixels.shape[-2:]):
            continue
        pixels = F.interpolate(
            pixels, size=size, mode=config.interpolation, align_corners=False, antialias=True
        )
        pixels = pixels.round().clamp(0, 255) if whole else pixels.clamp(0, 1)
    pixels = pixels[:, :, top:bottom, left:right]
    if whole:
        pixels = pixels / 255
    rows, columns = config.size
    x, y = columns - pixels.shape[-1], rows - pixels.shape[-2]
    if x or y:
        border = (x // 2, (x + 1) // 2, y // 2, (y + 1) // 2)
        pixels = F.pad(pixels, border, value=config.pad / 255)
    mean, std = statistics(config, pixels.device)
    return (pixels - mean) / std
