"""Windows: square pieces of a picture in several sizes, their vectors, and maps put together again.

WinCLIP (arXiv 2303.14814, section 4.1) masks tokens of a vision transformer to get a vector for
each window. Here a window is cut out and encoded like any picture, so that every image tower can
do it, also a convolutional one; it costs one run a window.

- Windows are square and of a share of the picture's short side, half overlapping, and reach every
  edge; a picture that is longer has more of them.
- A map has the picture's shape, its long side `MAP_SIDE` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from diptych.engine.page import thumbnail
from diptych.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

    from diptych.engine import Encoder

__all__ = [
    "MAP_SIDE",
    "Box",
    "Windows",
    "check_scales",
    "cut",
    "harmonic",
    "mean_map",
    "opened",
    "windows_of",
]

MAP_SIDE = 128
_MOST_PIXELS_A_SIDE = 1024  # windows of a third of it still have more pixels than most towers take
_MOST_WINDOWS = 4096

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the opened picture


class Windows(NamedTuple):
    """The windows of one scale, and their vectors."""

    boxes: list[Box]
    vectors: Float[Tensor, "w e"]  # unit rows


def opened(image: Any) -> Image:
    """The upright picture in RGB, its long side at most 1024 pixels. Raises ImageError."""
    return thumbnail(image, side=_MOST_PIXELS_A_SIDE)


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Raises ConfigError unless there is a scale and each is above 0 and at most 1."""
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise ConfigError(
            f"scales must be shares of the short side, above 0 and at most 1, got {list(scales)}"
        )
    return tuple(scales)


def cut(width: int, height: int, scale: float) -> list[Box]:
    """The windows of a picture, row by row.

    Raises:
        ConfigError: more than 4096 of them: the picture is too long or the scale too small.
    """
    side = max(1, round(scale * min(width, height)))
    across, down = _starts(width, side), _starts(height, side)
    if len(across) * len(down) > _MOST_WINDOWS:
        raise ConfigError(
            f"{len(across) * len(down)} windows of {side} pixels on {width} x {height}: more than "
            f"{_MOST_WINDOWS}. Use larger scales, or cut the picture."
        )
    return [(x, y, x + side, y + side) for y in down for x in across]


def _starts(length: int, side: int) -> list[int]:
    """Evenly from 0 to length - side, at most half a side apart."""
    steps = math.ceil((length - side) / (side / 2))
    return [round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]


def windows_of(encoder: Encoder, image: Image, scales: Sequence[float]) -> list[Windows]:
    """The windows of each scale with their vectors; all are encoded together."""
    boxes = [cut(image.width, image.height, scale) for scale in scales]
    crops = [image.crop(box) for some in boxes for box in some]
    vectors = encoder.encode_image(crops, out="torch").cpu().split([len(some) for some in boxes])
    return [Windows(some, rows) for some, rows in zip(boxes, vectors, strict=True)]


def mean_map(
    values: Float[Tensor, " w"], boxes: Sequence[Box], width: int, height: int
) -> Float[Tensor, "h w"]:
    """At each place the mean of the values of the windows over it."""
    scale = MAP_SIDE / max(width, height)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    total, count = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
    for value, (left, top, right, bottom) in zip(values.tolist(), boxes, strict=True):
        # the cells that a window covers at least in part: none is ever left without a window
        rows = slice(int(top * shape[0] / height), math.ceil(bottom * shape[0] / height))
        columns = slice(int(left * shape[1] / width), math.ceil(right * shape[1] / width))
        total[rows, columns] += value
        count[rows, columns] += 1
    return (total / count).float()


def harmonic(
    values: Float[Tensor, " w"], boxes: Sequence[Box], width: int, height: int
) -> Float[Tensor, "h w"]:
    """The same with harmonic means, which a single small value pulls down (WinCLIP, section 4.1):
    a place is suspect only if each window over it is."""
    return 1 / mean_map(1 / values.clamp_min(1e-6), boxes, width, height)
