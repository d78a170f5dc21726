"""Free drawn pairs for `recipes/emoji.py`: three emoji sets and Open Clip Art, split by code point.

- Sets: Fluent (MIT), Noto (Apache-2.0), Twemoji (CC-BY-4.0); names and keywords of emojibase-data
  (MIT). Open Clip Art (public domain) has titles, names of files, keywords. Apple's and Facebook's
  emoji are in npm too, but not free.
- Left out: skin tones (near-duplicates), flags (no flag tells the name of another), letters.
- The split is by base code points, before any picture is looked at. The base of a sequence is its
  code points but for variation selectors, joiners, signs of gender, hair, and persons beside
  something else: "man firefighter" and "firefighter" have that of "fire engine". Rows that share a
  base code point belong together, and all of them are for training or all are held out, in every
  set. Of the groups, drawn by hash, 10 % are for testing and 10 % for choosing.
- A held-out name is no caption and no keyword of a training pair, of clip art neither. Its words
  are, in other names: without them nothing could be known of it.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import drawings
import wordnet

__all__ = ["SETS", "Pair", "bases", "pairs", "parts"]

Part = Literal["train", "val", "test"]
SETS = {
    "fluent": ("lobehub-fluent-emoji-3d", "*/assets", "MIT"),
    "noto": ("emoji-datasource-google", "*/img/google/64", "Apache-2.0"),
    "twemoji": ("emoji-datasource-twitter", "*/img/twitter/64", "CC-BY-4.0"),
}
PERSONS = frozenset(["1F466", "1F467", "1F468", "1F469", "1F9D1", "1F9D2"])
_SIGNS = frozenset(["FE0F", "200D", "2640", "2642", "20E3", "1F9B0", "1F9B1", "1F9B2", "1F9B3"])
_TONES = frozenset(["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"])
_NO_GROUPS = frozenset([None, 2, 9])  # letters, parts of sequences, flags
_CREDIT = 5  # a title of so many pictures is the name of a collection


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture with its captions; the first one is its name."""

    path: Path
    captions: tuple[str, ...]
    source: str
    licence: str
    part: Part


def bases(hexcode: str) -> frozenset[str]:
    """What an emoji is about: "1F468-200D-1F692" (man firefighter) is about 1F692."""
    points = hexcode.upper().split("-")
    return frozenset(points) - _SIGNS - _TONES - PERSONS or frozenset(points[:1])


def parts(hexcodes: list[str]) -> dict[str, Part]:
    """For training, choosing or testing: the same for all that share a base code point, directly
    or through others."""
    group: dict[str, str] = {}

    def root(point: str) -> str:
        while group.setdefault(point, point) != point:
            point = group[point]
        return point

    for hexcode in hexcodes:
        first, *others = sorted(map(root, bases(hexcode)))
        for other in others:
            group[other] = first
    return {hexcode: _part(root(min(bases(hexcode)))) for hexcode in hexcodes}


def _part(group: str) -> Part:
    match int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % 10:
        case 0:
            return "test"
        case 1:
            return "val"
        case _:
            return "train"


def plain(text: str) -> str:
    """For comparing names: letters, digits and single spaces."""
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def pairs(unpacked: Path) -> list[Pair]:
    """All pairs, in a fixed order; captions of the training part are free of held-out names."""
    table = next((unpacked / "emojibase-data").rglob("en/data.json"))
    rows = [r for r in json.loads(table.read_text("utf-8")) if r.get("group") not in _NO_GROUPS]
    part = parts([row["hexcode"] for row in rows])
    held_out = {plain(row["label"]) for row in rows if part[row["hexcode"]] != "train"}
    found = []
    for name, (package, folder, licence) in SETS.items():
        pictures = _pictures(next((unpacked / package).glob(folder)))
        for row in rows:
            if path := pictures.get(_key(row["hexcode"])):
                mine = part[row["hexcode"]]
                words = [w for w in row.get("tags", []) if plain(w) not in held_out]
                words = [w for w in _shuffled(words, name) if plain(w) != plain(row["label"])]
                captions = [row["label"]]
                if mine == "train" and words:
                    captions += [", ".join([row["label"], *words[:3]]), ", ".join(words[3:7])]
                found.append(
                    Pair(
                        path=path,
                        captions=tuple(filter(None, captions)),
                        source=name,
                        licence=licence,
                        part=mine,
                    )
                )
    return found + list(_clip_art(unpacked, held_out))


def _key(hexcode: str) -> str:
    return hexcode.lower().replace("-fe0f", "")


def _pictures(folder: Path) -> dict[str, Path]:
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".png", ".webp"))
    return {_key(path.stem): path for path in files}


def _shuffled(words: list[str], salt: str) -> list[str]:
    return sorted(words, key=lambda word: hashlib.sha256(f"{salt} {word}".encode()).digest())


def _keywords(unpacked: Path, picture: Path) -> list[str]:
    pictures = unpacked / "openclipart-png/usr/share/openclipart/png"
    sources = unpacked / "openclipart-svg/usr/share/openclipart/svg"
    text = (sources / picture.relative_to(pictures).with_suffix(".svg")).read_text(
        "utf-8", "replace"
    )
    return [word.lower().replace("_", " ") for word in re.findall(r"<rdf:li>([^<]+)", text)]


def _clip_art(unpacked: Path, held_out: set[str]) -> Iterator[Pair]:
    nouns = {lemma.lower() for noun in wordnet.read(unpacked).values() for lemma in noun.lemmas}
    everything = drawings.clip_art(unpacked)
    titles = Counter(names[0] for _, names in everything)
    for path, (title, stem) in everything:
        names = [title, stem] if titles[title] < _CREDIT else [stem]
        found = [c for name in names if (c := drawings.caption_of(name, nouns))]
        words = [word for word in _keywords(unpacked, path) if plain(word) in nouns]
        words = [word for word in _shuffled(words, "") if plain(word) not in held_out]
        found = [c for c in dict.fromkeys(found) if plain(c) not in held_out]
        if found and words:
            found.append(", ".join([found[0], *words[:3]]))
        if found and drawings.is_small(path):
            yield Pair(
                path=path,
                captions=tuple(found),
                source="openclipart",
                licence="public domain",
                part="train",
            )
