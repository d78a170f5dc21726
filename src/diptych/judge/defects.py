"""Generated surfaces and objects, some of them damaged, in MVTec AD's layout: known truth, no data.

Leather, tiles, wood and cloth; washers and buttons on a plain ground. Light, position, angle and
grain differ from picture to picture, as they do under a real camera. The damages are scratches,
spots, holes and missing pieces, of random place, size and contrast. The same seed writes the same
pictures.

- These are drawings: what is found on them says what a method can see, not what it is worth in a
  factory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from diptych.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["CATEGORIES", "DAMAGES", "write_defects"]

_Random = np.random.Generator


def write_defects(
    folder: Path,
    *,
    categories: Sequence[str] | None = None,
    num_train: int = 8,
    num_good: int = 20,
    num_each: int = 6,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Write CATEGORY/train/good, test/good, test/DAMAGE and ground_truth/DAMAGE; returns `folder`.

    Args:
        folder: must not exist yet; it is there whole or not at all.
        categories: names of `CATEGORIES`; None: all.
        num_each: pictures of each damage.
        size: pixels of a side.

    Raises:
        ConfigError: the folder exists, an unknown category, or a number that cannot be.
    """
    names = list(CATEGORIES) if categories is None else list(categories)
    for name in names:
        if name not in CATEGORIES:
            raise ConfigError(f"no category {name!r}. {nearest(name, CATEGORIES)}")
    if min(num_train, num_good, num_each) < 1 or size < 64:
        raise ConfigError(
            f"each number must be at least 1 and size at least 64, got {num_train}, {num_good}, "
            f"{num_each} and {size}"
        )
    if folder.exists():
        raise ConfigError(f"{folder}: exists already. Remove it, or give another name.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        part = Path(made, "whole")
        for name in names:
            _write_category(part / name, name, num_train, num_good, num_each, size, seed)
        part.rename(folder)
    return folder


def _write_category(
    folder: Path, name: str, num_train: int, num_good: int, num_each: int, size: int, seed: int
) -> None:
    draw, number = CATEGORIES[name], list(CATEGORIES).index(name)
    parts = {"train/good": num_train, "test/good": num_good}
    parts |= {f"test/{damage}": num_each for damage in DAMAGES}
    for place, (part, count) in enumerate(parts.items()):
        (folder / part).mkdir(parents=True)
        damage = part.partition("/")[2]
        for i in range(count):
            random = np.random.default_rng([seed, number, place, i])
            surface, body = draw(random, size)
            if damage in DAMAGES:
                surface, mask = DAMAGES[damage](random, surface, body)
                truth = folder / "ground_truth" / damage
                truth.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth / f"{i:03}_mask.png")
            light = _light(random, size)
            picture = surface * light[..., None] + random.normal(0, 0.012, surface.shape)
            pixels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i:03}.png")


# --- what is drawn ------------------------------------------------------------------------------


def _noise(random: _Random, size: int, cells: int) -> Float[np.ndarray, "h w"]:
    """Smooth noise of about unit variance with features of size / cells pixels."""
    coarse = Image.fromarray(random.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _light(random: _Random, size: int) -> Float[np.ndarray, "h w"]:
    """Brightness: another one for each picture, and falling off to a side."""
    angle, depth = random.uniform(0, 2 * math.pi), random.uniform(0, 0.12)
    y, x = np.mgrid[:size, :size] / size - 0.5
    return random.uniform(0.9, 1.05) + depth * (math.cos(angle) * x + math.sin(angle) * y)


def _coloured(value: Float[np.ndarray, "h w"], colour: tuple[float, float, float]) -> np.ndarray:
    return value[..., None] * np.array(colour)


Drawn = tuple[np.ndarray, np.ndarray]  # the picture [h w 3] from 0 to 1; where the thing is [h w]


def _whole(size: int) -> Bool[np.ndarray, "h w"]:
    return np.ones((size, size), bool)


def _leather(random: _Random, size: int) -> Drawn:
    grain = 0.05 * _noise(random, size, size // 4) + 0.03 * _noise(random, size, size // 16)
    return _coloured(0.62 + grain, (0.78, 0.5, 0.32)), _whole(size)


def _tile(random: _Random, size: int) -> Drawn:
    y, x = np.mgrid[:size, :size]
    step, wide = size / 4, size / 64
    offset = random.uniform(0, step, 2)
    joint = ((x + offset[0]) % step < wide) | ((y + offset[1]) % step < wide)
    value = np.where(joint, 0.55, 0.85 + 0.02 * _noise(random, size, size // 8))
    return _coloured(value, (0.92, 0.95, 0.97)), _whole(size)


def _wood(random: _Random, size: int) -> Drawn:
    y, x = np.mgrid[:size, :size] / size
    bend = 0.06 * _noise(random, size, 3) + 0.01 * _noise(random, size, 12)
    rings = np.sin(2 * math.pi * (9 * (x + bend) + random.uniform()))
    fibre = np.repeat(random.standard_normal((1, size)), size, axis=0) * 0.02
    return _coloured(0.66 + 0.08 * rings + fibre + 0 * y, (0.95, 0.7, 0.45)), _whole(size)


def _cloth(random: _Random, size: int) -> Drawn:
    y, x = np.mgrid[:size, :size]
    phase = random.uniform(0, 2 * math.pi, 2)
    wave = 2 * math.pi / 8
    threads = np.sin(wave * x + phase[0]) * np.sin(wave * y + phase[1])
    value = 0.5 + 0.12 * threads + 0.03 * _noise(random, size, size // 8)
    return _coloured(value, (0.45, 0.65, 0.95)), _whole(size)


def _polar(random: _Random, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(distance, angle) around a middle that is never quite the middle; distances in sizes."""
    middle = 0.5 + random.uniform(-0.03, 0.03, 2)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    dx, dy = x - middle[0], y - middle[1]
    return np.hypot(dx, dy), np.arctan2(dy, dx) + random.uniform(-math.pi, math.pi)


def _washer(random: _Random, size: int) -> Drawn:
    distance, angle = _polar(random, size)
    body = (distance < 0.36) & (distance > 0.15)
    turned = 0.6 + 0.12 * np.cos(2 * angle) + 0.03 * np.sin(160 * distance)
    turned = np.where((distance > 0.345) | (distance < 0.165), turned - 0.15, turned)
    return _on_ground(random, turned, body, (0.95, 0.97, 1.0), 0.2)


def _button(random: _Random, size: int) -> Drawn:
    distance, angle = _polar(random, size)
    body = distance < 0.34
    for k in range(4):
        turn = angle - k * math.pi / 2
        body &= np.hypot(distance * np.cos(turn) - 0.1, distance * np.sin(turn)) > 0.035
    value = 0.62 + 0.1 * np.exp(-(((distance - 0.27) / 0.03) ** 2))
    return _on_ground(random, value, body, (0.9, 0.25, 0.2), 0.85)


def _on_ground(
    random: _Random, value: np.ndarray, body: np.ndarray, colour: tuple, ground: float
) -> Drawn:
    size = len(value)
    around = _coloured(ground + 0.01 * _noise(random, size, size // 8), (1.0, 1.0, 1.0))
    return np.where(body[..., None], _coloured(value, colour), around), body


CATEGORIES: Mapping[str, Callable[[_Random, int], Drawn]] = {
    "leather": _leather,
    "tile": _tile,
    "wood": _wood,
    "cloth": _cloth,
    "washer": _washer,
    "button": _button,
}

# --- what is wrong with it ----------------------------------------------------------------------


def _mask(size: int, paint: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    """Coverage from 0 to 1 of what `paint` draws on a canvas of four times the size."""
    canvas = Image.new("L", (4 * size, 4 * size))
    paint(ImageDraw.Draw(canvas), 4 * size)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def _spot_on(random: _Random, body: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """A place on the thing, not at the rim of the picture; (x, y) in sizes."""
    size = len(body)
    inner = body.copy()
    rim = size // 8
    inner[:rim] = inner[-rim:] = False
    inner[:, :rim] = inner[:, -rim:] = False
    places = np.argwhere(inner)
    y, x = places[random.integers(len(places))]
    return (x + 0.5) / size, (y + 0.5) / size


def _painted(
    surface: np.ndarray, body: np.ndarray, cover: np.ndarray, colour: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The surface under `cover`, and the mask of what changed, as 0 and 255."""
    cover = cover * body
    mixed = surface * (1 - cover[..., None]) + colour * cover[..., None]
    return mixed, np.where(cover >= 0.5, 255, 0).astype(np.uint8)


def _blob(
    random: _Random, x: float, y: float, radius: float
) -> Callable[[ImageDraw.ImageDraw, int], None]:
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    radii = radius * (1 + 0.25 * np.sin(3 * angles + random.uniform(0, 6)) * random.uniform(0, 1))
    points = [
        (x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)
    ]

    def paint(draw: ImageDraw.ImageDraw, side: int) -> None:
        draw.polygon([(px * side, py * side) for px, py in points], fill=255)

    return paint


def _scratch(random: _Random, surface: np.ndarray, body: np.ndarray) -> Drawn:
    x, y = _spot_on(random, body)
    angle, length = random.uniform(0, math.pi), random.uniform(0.15, 0.4)
    along = np.linspace(-0.5, 0.5, 12) * length
    across = np.cumsum(random.normal(0, 0.004, 12))
    points = [
        (
            x + a * math.cos(angle) - b * math.sin(angle),
            y + a * math.sin(angle) + b * math.cos(angle),
        )
        for a, b in zip(along, across, strict=True)
    ]
    wide = random.uniform(0.008, 0.018)

    def paint(draw: ImageDraw.ImageDraw, side: int) -> None:
        line = [(px * side, py * side) for px, py in points]
        draw.line(line, fill=255, width=max(6, round(wide * side)), joint="curve")  # 1.5 pixels

    sign = random.choice([-1, 1])
    colour = (surface + sign * random.uniform(0.2, 0.4)).clip(0, 1)
    return _painted(surface, body, _mask(len(body), paint), colour)


def _spot(random: _Random, surface: np.ndarray, body: np.ndarray) -> Drawn:
    x, y = _spot_on(random, body)
    cover = _mask(len(body), _blob(random, x, y, random.uniform(0.03, 0.08)))
    colour = surface * random.uniform(0.35, 0.85, 3)  # what lies below shines through
    return _painted(surface, body, cover, colour)


def _hole(random: _Random, surface: np.ndarray, body: np.ndarray) -> Drawn:
    x, y = _spot_on(random, body)
    cover = _mask(len(body), _blob(random, x, y, random.uniform(0.02, 0.045)))
    return _painted(surface, body, cover, np.full(3, random.uniform(0.05, 0.2)))


def _missing(random: _Random, surface: np.ndarray, body: np.ndarray) -> Drawn:
    """A piece is torn out: what is seen there is the ground, or of a surface what lies below."""
    x, y = _spot_on(random, body)
    reach, turn = random.uniform(0.07, 0.14), random.uniform(0, 2 * math.pi)
    corners = [
        (x + reach * math.cos(turn + a), y + reach * math.sin(turn + a))
        for a in np.sort(random.uniform(0, 2 * math.pi, 5))
    ]

    def paint(draw: ImageDraw.ImageDraw, side: int) -> None:
        draw.polygon([(px * side, py * side) for px, py in corners], fill=255)

    cover = _mask(len(body), paint)
    if not (cover * body >= 0.5).any():  # five corners on one side of the place: a sliver
        cover = _mask(len(body), _blob(random, x, y, reach / 2))
    ground = surface[~body].mean(0) if not body.all() else np.full(3, random.uniform(0.3, 0.45))
    return _painted(surface, body, cover, ground)


DAMAGES: Mapping[str, Callable[[_Random, np.ndarray, np.ndarray], Drawn]] = {
    "scratch": _scratch,
    "spot": _spot,
    "hole": _hole,
    "missing": _missing,
}
