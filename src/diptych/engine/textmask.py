"""Where words are printed on a picture, found in its pixels alone, and the picture without them.

CLIP reads: a word on a picture moves its vector towards the word. This finds printed text with
NumPy and Pillow, so that a vector can be made with and without it.

- Thin: strokes are what a morphological opening takes away (top-hat, both polarities), at several
  sizes of the picture, so that letters of a fiftieth to a third of its side are strokes somewhere.
- Letters: connected pieces of one colour, of the proportions of letters, with clear edges.
- Lines: at least three such pieces of like height and colour, side by side, in like distances.
- Not found: handwriting, text on a curve or steeply turned, single letters and digits, letters of
  less than 8 pixels at 640, and contrast below 32 of 255. What looks like a line of letters is
  taken for one: fences, windows in a row, stripes.
- Cost is bounded: the picture is looked at with a long side of 640 pixels at most.
- How much is found, and how much is masked in vain: benchmarks/results/text_mask.txt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["TextMask", "text_mask", "without_text"]

SIDE = 640  # pixels of the long side, at the finest of three sizes
LARGER = 2.0  # a smaller picture is made so much larger at most
STROKE = 13  # pixels: what is thinner in one direction may be a stroke
CONTRAST = 32.0  # of 255, between a stroke and what is around it
LEAST = 8, 100  # pixels of a letter's height, at each size
MARGIN = 2  # pixels around a letter, at the size it was found at
MOST_PIECES = 3000
# Logistic regression on rows of pieces, letters or not: benchmarks/text_mask.py --fit
WEIGHTS = {
    "base": 3.7,
    "heights": -3.8,
    "colours": -17.4,
    "spread": -14.8,
    "contrast": 1.5,
    "fill": 0.9,
    "num": 1.7,
}
BIAS = -8.3
CUT = 0.3  # higher: fewer false lines, and fewer lines


@dataclass(frozen=True, kw_only=True)
class TextMask:
    """Where text is.

    Attributes:
        boxes: int64 [b 4], left, top, right, bottom of each line, in pixels of the picture.
        strokes: bool [h w], the letters themselves with a small margin; all of it in the boxes.
    """

    boxes: Int[np.ndarray, "b 4"]
    strokes: Bool[np.ndarray, "h w"]

    def pixels(self) -> Bool[np.ndarray, "h w"]:
        """True in the boxes."""
        mask = np.zeros_like(self.strokes)
        for left, top, right, bottom in self.boxes.tolist():
            mask[top:bottom, left:right] = True
        return mask

    @property
    def share(self) -> float:
        """Of the picture's area that the boxes take, from 0 to 1."""
        return float(self.pixels().mean())


def text_mask(image: Image.Image) -> TextMask:
    """The lines of printed text on a picture of any size and mode."""
    rgb = _rgb(image)
    longest = max(rgb.size)
    boxes, strokes = [], np.zeros((rgb.height, rgb.width), bool)
    for side in (SIDE, SIDE // 2, SIDE // 4):
        scale = min(side / longest, LARGER)
        size = (max(round(rgb.width * scale), 1), max(round(rgb.height * scale), 1))
        how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
        small = rgb.resize(size, how)
        here = np.zeros((size[1], size[0]), bool)
        for channel in small.split():  # coloured letters may be as bright as what is behind them
            values = np.asarray(channel, np.float32)
            for grey in (values, 255 - values):
                found = _lines(grey, here)
                boxes.append(found * np.array([rgb.width / size[0], rgb.height / size[1]] * 2))
        if here.any():
            here = _slide(here, 2 * MARGIN + 1, np.logical_or)
            whole = Image.fromarray(here).resize(rgb.size, Image.Resampling.NEAREST)
            strokes |= np.asarray(whole)
    every = np.concatenate(boxes)
    every[:, :2], every[:, 2:] = np.floor(every[:, :2]), np.ceil(every[:, 2:])
    every = np.clip(every, 0, [rgb.width, rgb.height] * 2).astype(np.int64)
    found = TextMask(boxes=np.unique(every, axis=0), strokes=strokes)
    return TextMask(boxes=found.boxes, strokes=strokes & found.pixels())


def without_text(image: Image.Image, mask: TextMask | None = None) -> Image.Image:
    """The picture (RGB) with its letters painted over in the colours around them.

    Each pixel of a letter becomes the mean of the pixels around it that belong to none, over a
    window that grows until there are some. What is between the letters stays.
    """
    mask = text_mask(image) if mask is None else mask
    rgb = _rgb(image)
    if not mask.strokes.any():
        return rgb
    pixels = np.asarray(rgb, np.float32)
    known = (~mask.strokes).astype(np.float32)
    missing, out, radius = mask.strokes.copy(), pixels.copy(), 2
    if not known.any():  # letters everywhere: nothing is left to paint with
        out[:] = pixels.mean((0, 1))
        missing[:] = False
    while missing.any():
        weight = _box_sum(known, radius)
        ready = missing & (weight > 0.5)
        for channel in range(3):
            total = _box_sum(pixels[..., channel] * known, radius)
            out[..., channel][ready] = total[ready] / weight[ready]
        missing &= ~ready
        radius *= 2
    return Image.fromarray(np.clip(out + 0.5, 0, 255).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        above = image.convert("RGBA")
        below = Image.new("RGBA", above.size, "white")
        return Image.alpha_composite(below, above).convert("RGB")
    return image.convert("RGB")


# --- one size, one polarity -------------------------------------------------------------------


def _lines(
    grey: Float[np.ndarray, "h w"], strokes: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "b 4"]:
    """Boxes of lines of bright letters on something darker; their pixels are set in `strokes`."""
    thin, bright = _thin(grey)
    letters = _letters(*_pieces(bright), grey, thin)
    found = [
        [*letters.box[some, :2].min(0), *letters.box[some, 2:].max(0)]
        for some in rows_of(letters)
        if _likeness(letters, some) > CUT
    ]
    boxes = _grown(np.array(found, np.float64).reshape(-1, 4))
    height, width = grey.shape
    for left, top, right, bottom in np.clip(boxes, 0, [width, height] * 2).astype(int).tolist():
        strokes[top:bottom, left:right] |= bright[top:bottom, left:right]
    return boxes


def pieces_of(grey: Float[np.ndarray, "h w"]) -> _Letters:
    """The bright pieces that may be letters."""
    thin, bright = _thin(grey)
    return _letters(*_pieces(bright), grey, thin)


def _thin(grey: Float[np.ndarray, "h w"]) -> tuple[np.ndarray, Bool[np.ndarray, "h w"]]:
    """What an opening takes away, and where that is much of the most around it."""
    thin = grey - _slide(_slide(grey, STROKE, np.minimum), STROKE, np.maximum)
    peak = _slide(thin, 2 * STROKE + 1, np.maximum)
    return thin, thin > np.maximum(CONTRAST, 0.5 * peak)


@dataclass(frozen=True)
class _Letters:
    """Pieces that may be letters: boxes [p 4] (left, top, right, bottom), colour and stroke [p]."""

    box: np.ndarray
    colour: np.ndarray
    stroke: np.ndarray
    contrast: np.ndarray
    spread: np.ndarray
    fill: np.ndarray


def _letters(label: np.ndarray, num: int, grey: np.ndarray, thin: np.ndarray) -> _Letters:
    rows, columns = np.nonzero(label)
    piece = label[rows, columns] - 1
    area = np.bincount(piece, minlength=num)
    box = np.stack(
        [
            _extreme(np.minimum, piece, columns, num, label.shape[1]),
            _extreme(np.minimum, piece, rows, num, label.shape[0]),
            _extreme(np.maximum, piece, columns, num, -1) + 1,
            _extreme(np.maximum, piece, rows, num, -1) + 1,
        ],
        1,
    )
    inside = np.pad(label, 1)
    edge = np.zeros(label.shape, np.int64)
    for shift in (inside[:-2, 1:-1], inside[2:, 1:-1], inside[1:-1, :-2], inside[1:-1, 2:]):
        edge += shift != label
    border = np.bincount(piece, weights=edge[rows, columns], minlength=num)
    values = grey[rows, columns]
    colour = np.bincount(piece, weights=values, minlength=num) / area
    spread = np.bincount(piece, weights=values.astype(np.float64) ** 2, minlength=num) / area
    spread = np.sqrt(np.maximum(spread - colour**2, 0))
    contrast = np.bincount(piece, weights=thin[rows, columns], minlength=num) / area
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    stroke = 2 * area / np.maximum(border, 1)
    fill = area / (width * height)
    good = (height >= LEAST[0]) & (height <= LEAST[1]) & (width <= 3 * height)
    good &= (width * 12 >= height) & (fill > 0.12) & (stroke < 0.6 * height)
    good &= (spread < 0.35 * contrast) & (contrast > CONTRAST)
    chosen = np.flatnonzero(good)
    if len(chosen) > MOST_PIECES:
        chosen = chosen[np.argsort(-contrast[chosen], kind="stable")[:MOST_PIECES]]
    kept = (part[chosen] for part in (colour, stroke, contrast, spread, fill))
    return _Letters(box[chosen].astype(np.float64), *kept)


def _extreme(take: np.ufunc, piece: np.ndarray, values: np.ndarray, num: int, start: int):
    found = np.full(num, start)
    take.at(found, piece, values)
    return found


def rows_of(letters: _Letters) -> list[np.ndarray]:
    """Which pieces stand side by side in a row: at least three of like height and colour."""
    box = letters.box
    if len(box) < 3:
        return []
    left, top, right, bottom = box.T
    height, width = bottom - top, right - left
    tall = np.maximum(height[:, None], height[None])
    short = np.minimum(height[:, None], height[None])
    overlap = np.minimum(bottom[:, None], bottom[None]) - np.maximum(top[:, None], top[None])
    gap = np.maximum(left[:, None], left[None]) - np.minimum(right[:, None], right[None])
    thick = np.maximum(letters.stroke[:, None], letters.stroke[None])
    thinner = np.minimum(letters.stroke[:, None], letters.stroke[None])
    beside = (tall < 2.2 * short) & (overlap > 0.6 * short) & (gap < 1.0 * tall)
    beside &= gap > -0.3 * np.minimum(width[:, None], width[None])
    beside &= np.abs(letters.colour[:, None] - letters.colour[None]) < 40
    beside &= thick < 2.2 * thinner
    np.fill_diagonal(beside, False)
    group = _components(len(box), *np.nonzero(beside))
    order = np.argsort(group, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [some for some in rows if len(some) >= 3]


def _likeness(letters: _Letters, some: np.ndarray) -> float:
    """The log-odds that pieces in a row are a line of letters, by the weights of `WEIGHTS`."""
    features = line_features(letters, some)
    return BIAS + sum(weight * features[name] for name, weight in WEIGHTS.items())


def line_features(letters: _Letters, some: np.ndarray) -> dict[str, float]:
    """What pieces in a row have in common, by the names of `WEIGHTS`."""
    height = letters.box[some, 3] - letters.box[some, 1]
    bottom, tall = letters.box[some, 3], float(np.median(height))
    contrast = float(np.median(letters.contrast[some]))
    return {
        # share of the letters that stand on one line
        "base": float(np.mean(np.abs(bottom - np.median(bottom)) < 0.15 * tall)),
        # how much their heights and their colours differ, and the colour inside each
        "heights": float(np.std(height)) / tall,
        "colours": float(np.std(letters.colour[some])) / contrast,
        "spread": float(np.median(letters.spread[some] / letters.contrast[some])),
        "contrast": math.log(contrast),
        "fill": math.log(float(np.median(letters.fill[some]))),
        "num": math.log(len(some)),
    }


def _grown(boxes: np.ndarray) -> np.ndarray:
    """With a margin for what is fainter at the edges, and for dots and tails."""
    margin = 0.2 * (boxes[:, 3] - boxes[:, 1])[:, None] + 1
    return boxes + margin * np.array([-1, -1, 1, 1])


# --- pieces of a mask -------------------------------------------------------------------------


def _pieces(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """(number of its piece from 1 for each pixel, 0 outside; how many): 8 neighbours.

    Runs of a row are the nodes; runs of neighbouring rows that touch are joined.
    """
    height, width = mask.shape
    flat = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(flat, axis=1)
    row, start = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]
    if not len(row):
        return np.zeros(mask.shape, np.int64), 0
    # runs of the row above that end at or after our start, and begin at or before our end
    span = width + 2
    first = np.searchsorted(row * span + stop, (row - 1) * span + start)
    last = np.searchsorted(row * span + start, (row - 1) * span + stop, side="right")
    counts = np.maximum(last - first, 0)
    ours = np.repeat(np.arange(len(row)), counts)
    offset = np.arange(len(ours)) - np.repeat(np.cumsum(counts) - counts, counts)
    piece = _components(len(row), ours, np.repeat(first, counts) + offset)
    label = np.zeros(height * width + 1, np.int64)
    np.add.at(label, row * width + start, piece + 1)
    np.add.at(label, row * width + stop, -(piece + 1))
    return np.cumsum(label)[:-1].reshape(height, width), int(piece.max()) + 1


def _components(num: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of its component, from 0, of each of `num` nodes, given edges a-b."""
    parent = np.arange(num)
    while True:
        before = parent.copy()
        low = np.minimum(parent[a], parent[b])
        np.minimum.at(parent, parent[a], low)
        np.minimum.at(parent, parent[b], low)
        parent = parent[parent]
        if np.array_equal(parent, before):
            return np.unique(parent, return_inverse=True)[1].reshape(-1)


# --- windows ----------------------------------------------------------------------------------


def _slide(values: np.ndarray, width: int, take: np.ufunc) -> np.ndarray:
    """The minimum or maximum over a square of `width` (odd) pixels, whatever is inside."""
    for axis in (0, 1):
        values = _slide_along(np.swapaxes(values, 0, axis), width, take)
        values = np.swapaxes(values, 0, axis)
    return values


def _slide_along(values: np.ndarray, width: int, take: np.ufunc) -> np.ndarray:
    half = width // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    reach = 1  # `padded[i]` is the extreme of so many rows from i
    while 2 * reach <= width:
        padded = take(padded[:-reach], padded[reach:])
        reach *= 2
    rest = width - reach
    return take(padded[: len(values)], padded[rest : rest + len(values)])


def _box_sum(values: Float[np.ndarray, "h w"], radius: int) -> Float[np.ndarray, "h w"]:
    """The sum over a square of 2 radius + 1 pixels, of what is inside."""
    total = np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = values.shape
    top, bottom = (np.clip(np.arange(height) + s, 0, height) for s in (-radius, radius + 1))
    left, right = (np.clip(np.arange(width) + s, 0, width) for s in (-radius, radius + 1))
    rows = total[bottom] - total[top]
    return rows[:, right] - rows[:, left]
