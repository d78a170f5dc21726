"""Drawn sets whose truth is known: coloured shapes, one thing on another, dots to count.

Everything is drawn from a seed when it is asked for, so the pictures are the same on every machine
with the same Pillow; nothing is stored. They show what a model knows of colours, places and
numbers, not how good it is on photographs.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import partial

from PIL import Image, ImageDraw

from diptych.eval.sets.row import Sample, Samples

__all__ = ["COLOURS", "counting", "shapes", "shapes_swap"]

_SIDE, _FINE = 224, 2  # pixels; drawn at twice the side and reduced
COLOURS = {
    "red": (214, 32, 36),
    "green": (36, 146, 58),
    "blue": (32, 72, 208),
    "yellow": (246, 212, 24),
    "orange": (242, 130, 20),
    "purple": (126, 44, 156),
    "pink": (246, 140, 178),
    "black": (20, 20, 20),
}
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PER_CLASS, _PER_NUMBER, _SCENES = 4, 20, 80

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def _polygon(
    x: float, y: float, r: float, turns: Sequence[float], radii: Sequence[float]
) -> Points:
    """Corners at parts of a full turn from the top, each at its own share of the radius."""
    return [
        (x + r * k * math.sin(2 * math.pi * t), y - r * k * math.cos(2 * math.pi * t))
        for t, k in zip(turns, radii, strict=True)
    ]


def _even(n: int) -> list[float]:
    return [i / n for i in range(n)]


_CROSS = (
    *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)),
    *((0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
)
SHAPES = {
    "circle": lambda x, y, r: _polygon(x, y, r, _even(90), [1.0] * 90),
    "square": lambda x, y, r: _polygon(x, y, r, [0.125, 0.375, 0.625, 0.875], [1.2] * 4),
    "triangle": lambda x, y, r: _polygon(x, y, r, _even(3), [1.15] * 3),
    "star": lambda x, y, r: _polygon(x, y, r, _even(10), [1.15, 0.45] * 5),
    "hexagon": lambda x, y, r: _polygon(x, y, r, _even(6), [1.05] * 6),
    "cross": lambda x, y, r: [(x + r * a, y + r * b) for a, b in _CROSS],
}


def shapes() -> Samples:
    """A coloured shape on a light ground; 48 classes, "a red circle" ..., 4 pictures each."""
    pairs = list(itertools.product(COLOURS, SHAPES))
    samples = [
        Sample(f"{colour}-{shape}-{i}", partial(_shape, colour, shape, i), labels=(label,))
        for label, (colour, shape) in enumerate(pairs)
        for i in range(_PER_CLASS)
    ]
    return Samples(samples=samples, classes=tuple(f"a {colour} {shape}" for colour, shape in pairs))


def _canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    level = rng.randint(225, 255)
    image = Image.new("RGB", (_SIDE * _FINE, _SIDE * _FINE), (level, level, level))
    return image, ImageDraw.Draw(image)


def _reduced(image: Image.Image) -> Image.Image:
    return image.resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _near(colour: str, rng: random.Random) -> Colour:
    """The colour, a little lighter or darker."""
    r, g, b = (min(255, max(0, level + rng.randint(-12, 12))) for level in COLOURS[colour])
    return r, g, b


def _shape(colour: str, shape: str, number: int) -> Image.Image:
    rng = random.Random(f"shapes {colour} {shape} {number}")
    image, draw = _canvas(rng)
    radius = rng.uniform(0.18, 0.32) * image.width
    x, y = (rng.uniform(1.25 * radius, image.width - 1.25 * radius) for _ in range(2))
    draw.polygon(SHAPES[shape](x, y, radius), fill=_near(colour, rng))
    return _reduced(image)


# --- one thing on another ---


def shapes_swap() -> Samples:
    """A solid on another: which of two sentences fits, where only colours or places are exchanged.

    Groups: "colours" ("a red cube on a blue ball" or "a blue cube on a red ball"), "places" ("a red
    cube on a blue ball" or "a blue ball on a red cube").
    """
    samples = []
    for i in range(_SCENES):
        rng = random.Random(f"swap {i}")
        (upper, lower), (first, second) = rng.sample(list(_SOLIDS), 2), rng.sample(list(COLOURS), 2)
        image = partial(_scene, i, upper, first, lower, second)
        right = _sentence(first, upper, second, lower)
        wrong = {
            "colours": _sentence(second, upper, first, lower),
            "places": _sentence(second, lower, first, upper),
        }
        samples += [
            Sample(f"{i}-{group}", image, captions=(right, text), group=group)
            for group, text in wrong.items()
        ]
    return Samples(samples=samples)


def _sentence(colour: str, upper: str, other: str, lower: str) -> str:
    """ "an orange cube on a blue ball"."""
    articles = ["an" if word[0] in "aeiou" else "a" for word in (colour, other)]
    return f"{articles[0]} {colour} {upper} on {articles[1]} {other} {lower}"


def _scene(number: int, upper: str, first: str, lower: str, second: str) -> Image.Image:
    rng = random.Random(f"scene {number}")
    image, draw = _canvas(rng)
    radius = rng.uniform(0.17, 0.21) * image.width
    x = image.width / 2 + rng.uniform(-0.1, 0.1) * image.width
    bottom = image.height / 2 + radius
    _SOLIDS[lower](draw, x, bottom, radius, _near(second, rng))
    _SOLIDS[upper](draw, x, bottom - 2 * radius, radius, _near(first, rng))
    return _reduced(image)


def _toned(colour: Colour, part: float) -> Colour:
    """Towards black below 1, towards white above."""
    r, g, b = (
        round(level * part) if part <= 1 else round(255 - (255 - level) * (2 - part))
        for level in colour
    )
    return r, g, b


def _ball(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    for i in range(24):  # lighter towards a spot on the upper left
        part = i / 24
        at, size = (x - 0.3 * r * part, y - 0.3 * r * part), r * (1 - part)
        box = (at[0] - size, at[1] - size, at[0] + size, at[1] + size)
        draw.ellipse(box, fill=_toned(colour, 0.8 + 0.7 * part * part))


def _cube(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    a, d = 0.8 * r, 0.45 * r  # half a side of the front, and the depth
    front = [(x - a - d / 2, y + r - 2 * a), (x + a - d / 2, y + r - 2 * a)]
    base = [(x + a - d / 2, y + r), (x - a - d / 2, y + r)]
    back = [(px + d, py - d) for px, py in front]
    draw.polygon([*front, *base], fill=colour)
    draw.polygon([front[0], back[0], back[1], front[1]], fill=_toned(colour, 1.3))
    side = [front[1], back[1], (base[0][0] + d, base[0][1] - d), base[0]]
    draw.polygon(side, fill=_toned(colour, 0.7))


def _cone(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=colour)
    draw.ellipse((x - r, y + 0.6 * r, x + r, y + r), fill=colour)
    shade = [(x, y - r), (x + r, y + 0.8 * r), (x + 0.4 * r, y + 0.97 * r)]
    draw.polygon(shade, fill=_toned(colour, 0.75))


_SOLIDS = {"ball": _ball, "cube": _cube, "cone": _cone}

# --- dots ---


def counting() -> Samples:
    """One to ten dots that do not touch; 20 pictures of each number."""
    samples = [
        Sample(f"{word}-{i}", partial(_dots, n, i), labels=(n - 1,))
        for n, word in enumerate(_NUMBERS, 1)
        for i in range(_PER_NUMBER)
    ]
    classes = tuple(f"{word} dot{'s' * (n > 1)}" for n, word in enumerate(_NUMBERS, 1))
    return Samples(samples=samples, classes=classes)


def _dots(count: int, number: int) -> Image.Image:
    rng = random.Random(f"dots {count} {number}")
    image, draw = _canvas(rng)
    colour, radius = _near(rng.choice(list(COLOURS)), rng), rng.uniform(0.035, 0.055) * image.width
    places: list[tuple[float, float]] = []
    while len(places) < count:  # ten dots of this size always find a place
        at = (
            rng.uniform(2 * radius, image.width - 2 * radius),
            rng.uniform(2 * radius, image.height - 2 * radius),
        )
        if all(math.dist(at, other) > 2.6 * radius for other in places):
            places.append(at)
    for x, y in places:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return _reduced(image)
