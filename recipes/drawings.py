"""Free drawn pictures with words: Open Clip Art and Fluent emoji, for the class matrix of `mini`.

`drawings(unpacked)` lists pictures and captions; `on_ground` puts one on a plain ground.
"""

import json
import random
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wordnet
from PIL import Image

from diptych.towers.concepts import COLOURS

__all__ = [
    "Drawing",
    "caption_of",
    "clip_art",
    "colour_word",
    "drawings",
    "is_small",
    "on_ground",
    "on_white",
    "small",
]

# Folders of Open Clip Art without things in them; "computer" holds desktop icons.
_NO_THINGS = frozenset(["shapes", "logos", "signs_and_symbols", "buttons", "geography", "special"])
_NO_THINGS |= {"decorations", "computer"}
_EMOJI_GROUPS = frozenset((0, 1, 3, 4, 5, 6, 7))  # not skin tones, symbols and flags
_CREDITS = re.compile(r"clip ?art|architetto|icon|theme|svg")


@dataclass(frozen=True)
class Drawing:
    path: Path
    caption: str


def colour_word(text: str) -> str | None:
    """The colour word of a text of several words, if it has exactly one."""
    words = text.split()
    found = [word for word in words if word in COLOURS]
    return found[0] if len(found) == 1 and len(words) > 1 else None


def drawings(unpacked: Path) -> list[Drawing]:
    """Every drawing that has a caption of at most 6 words, half of them nouns of WordNet."""
    nouns = {lemma.lower() for noun in wordnet.read(unpacked).values() for lemma in noun.lemmas}
    found = []
    for path, names in (*clip_art(unpacked), *_emoji(unpacked)):
        caption = next((c for name in names if (c := caption_of(name, nouns))), None)
        if caption and is_small(path):
            found.append(Drawing(path, caption))
    return found


def caption_of(name: str, nouns: set[str]) -> str | None:
    name = " ".join(re.sub(r"[^a-z \-]", " ", name.lower().replace("_", " ")).split())
    words = [word for word in name.split() if len(word) > 2]
    known = sum(word in nouns or word.rstrip("s") in nouns for word in words)
    good = 0 < len(words) <= 6 and 2 * known >= len(words) and not _CREDITS.search(name)
    return name if good else None


def clip_art(unpacked: Path) -> list[tuple[Path, list[str]]]:
    """(picture, [title, name of the file])."""
    pictures = unpacked / "openclipart-png/usr/share/openclipart/png"
    sources = unpacked / "openclipart-svg/usr/share/openclipart/svg"
    found = []
    for path in sorted(pictures.rglob("*.png")):
        inside = path.relative_to(pictures)
        if inside.parts[0] in _NO_THINGS:
            continue
        stem = re.sub(r"\b[a-z]?\b", " ", re.sub(r"[\d_\-]+", " ", path.stem))
        text = (sources / inside.with_suffix(".svg")).read_text("utf-8", "replace")
        title = re.search(r"<dc:title>([^<]*)", text)
        found.append((path, [title[1] if title else "", stem]))
    return found


def _emoji(unpacked: Path) -> list[tuple[Path, list[str]]]:
    table = next((unpacked / "emojibase-data").rglob("en/data.json"))
    pictures = next((unpacked / "lobehub-fluent-emoji-3d").rglob("assets"))
    rows = json.loads(table.read_text("utf-8"))
    found = [
        (pictures / f"{row['hexcode'].lower()}.webp", [row["label"]])
        for row in rows
        if row.get("group") in _EMOJI_GROUPS
    ]
    return [(path, names) for path, names in found if path.is_file()]


def on_white(path: Path) -> Image.Image:
    """The drawing, at most 400 px, in the middle of a white square."""
    image = small(path)
    side = max(image.size)
    ground = Image.new("RGB", (side, side), (255, 255, 255))
    ground.paste(image, ((side - image.width) // 2, (side - image.height) // 2), image)
    return ground


def on_ground(path: Path, rng: random.Random, side: int = 260) -> Image.Image:
    """The drawing somewhere on a flat, graded or noisy ground of random colours."""
    image = small(path)
    if box := image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox():
        image = image.crop(box)
    scale = rng.uniform(0.5, 0.95) * side / max(image.size)
    size = tuple(max(1, round(scale * s)) for s in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    one, two = (np.array([rng.randrange(256) for _ in range(3)]) for _ in range(2))
    match rng.randrange(3):
        case 0:
            pixels = np.broadcast_to(one, (side, side, 3))
        case 1:
            down = np.linspace(0, 1, side)[:, None, None]
            pixels = np.broadcast_to(down * one + (1 - down) * two, (side, side, 3))
        case _:
            noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, 40, (65, 65, 3))
            pixels = np.clip(one + noise.repeat(4, 0).repeat(4, 1)[:side, :side], 0, 255)
    ground = Image.fromarray(pixels.astype(np.uint8))
    place = tuple(rng.randrange(side - s + 1) for s in image.size)
    ground.paste(image, place, image)
    return ground


def is_small(path: Path) -> bool:
    """Below Pillow's limit of 89 million pixels: one of the drawings has 623 million."""
    try:
        with warnings.catch_warnings(action="error"), Image.open(path):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False


def small(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.thumbnail((400, 400))
        return image.convert("RGBA")
