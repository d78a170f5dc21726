"""The two passes of Pillow's resize, taken apart so that the centre crop costs nothing.

- `Image.resize` makes columns and rows in two passes and rounds to 8 bits between them. A call that
  changes one side is one pass, so two calls give the same bits, with a crop between them.
- Which pass comes first depends on Pillow's version and on the shape: 13 starts with the rows where
  the height shrinks more than twice as much as the width (python-pillow/Pillow#9549), 12 never
  does. The rule of the installed Pillow is found by trying; if none fits, nothing is taken apart.
- The coefficients of a pass depend on where it starts, in float32, so the kept part of an axis
  cannot be asked for by a box without changing a few of them: the pass along it stays whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

__all__ = ["resize_crop_exactly", "rows_first"]

Size = tuple[int, int]  # (width, height)
Box = tuple[int, int, int, int]  # (left, top, right, bottom)
Rule = Callable[[Size, Size], bool]  # sizes before and after -> whether the rows come first

_SUPPORT = {Image.Resampling.BILINEAR: 1.0, Image.Resampling.BICUBIC: 2.0}
_PLAIN = ("RGB", "L")  # others are converted by resize, or resized by nearest neighbour


def rows_first(before: Size, after: Size) -> bool:
    """Pillow 13's rule: whether the pass that changes the height comes first."""
    fewer = before[1] - after[1]
    return fewer > 0 and fewer > 2 * (before[0] - after[0])


def _never(before: Size, after: Size) -> bool:
    return False


def resize_crop_exactly(
    image: Image.Image, size: Size, how: Image.Resampling, box: Box
) -> Image.Image:
    """`image.resize(size, how).crop(box)`, bit for bit, without most of what the crop leaves out.

    Where nothing is resized and nothing cropped, `image` itself.
    """
    whole = (0, 0, *size)
    if size == image.size:
        return image if box == whole else image.crop(box)
    rule = _rule() if box != whole and image.mode in _PLAIN and how in _SUPPORT else None
    if rule is None:
        image = image.resize(size, how)
        return image if box == whole else image.crop(box)
    return _apart(image, size, how, box, int(rule(image.size, size)))


def _apart(
    image: Image.Image, size: Size, how: Image.Resampling, box: Box, first: int
) -> Image.Image:
    """Two calls; `first` is the axis of the first: 0 changes the width, 1 the height."""
    second = 1 - first
    length = image.size[second]
    start, stop = _needed(length, size[second], how, box[second], box[second + 2])
    if stop - start > length * 7 // 8:  # not worth the copy
        start, stop = 0, length
    image = _cut(image, second, start, stop)
    image = _pass(image, first, size[first], how)
    image = _cut(image, first, box[first], box[first + 2])
    if image.size[second] < length:  # the second pass needs its lines where they were
        part, sides = image, list(image.size)
        sides[second] = length
        image = Image.new(part.mode, (sides[0], sides[1]), None)  # its other lines are not used
        image.paste(part, (start, 0) if second == 0 else (0, start))
    image = _pass(image, second, size[second], how)
    return _cut(image, second, box[second], box[second + 2])


def _needed(length: int, new: int, how: Image.Resampling, start: int, stop: int) -> Size:
    """The first and the last line + 1 that lines `start` to `stop` of `new` are made of, at most.

    Source: `precompute_coeffs` in Pillow's Resample.c; a line more at each end is for the rounding.
    """
    scale = length / new
    reach = _SUPPORT[how] * max(scale, 1.0)
    low = math.floor((start + 0.5) * scale - reach) - 1
    high = math.ceil((stop - 0.5) * scale + reach) + 1
    return max(low, 0), min(high, length)


def _cut(image: Image.Image, axis: int, start: int, stop: int) -> Image.Image:
    width, height = image.size
    if (start, stop) == (0, image.size[axis]):
        return image
    return image.crop((start, 0, stop, height) if axis == 0 else (0, start, width, stop))


def _pass(image: Image.Image, axis: int, length: int, how: Image.Resampling) -> Image.Image:
    width, height = image.size
    if image.size[axis] == length:
        return image
    return image.resize((length, height) if axis == 0 else (width, length), how)


# Before and after, on both sides of Pillow 13's rule and at it.
_TRIED = (
    *(((60, 40), (31, 21)), ((40, 60), (21, 31)), ((20, 90), (13, 40)), ((33, 71), (23, 50))),
    *(((33, 71), (23, 51)), ((33, 71), (23, 52)), ((20, 60), (30, 30)), ((30, 20), (45, 51))),
)


@functools.cache
def _rule() -> Rule | None:
    """Which pass the installed Pillow takes first; None where no known rule gives its bits."""
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    for rule in (rows_first, _never):
        if all(_fits(Image.fromarray(noise), rule, *sizes) for sizes in _TRIED):
            return rule
    return None


def _fits(noise: Image.Image, rule: Rule, before: Size, after: Size) -> bool:
    image = noise.crop((0, 0, *before))
    box = (1, 2, after[0] - 2, after[1] - 1)
    for how in _SUPPORT:
        whole = image.resize(after, how).crop(box)
        if _apart(image, after, how, box, int(rule(before, after))).tobytes() != whole.tobytes():
            return False
    return True
