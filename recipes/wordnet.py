"""WordNet 3.0's nouns: lemmas, gloss and hypernyms by offset, which is also ImageNet's class id."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Noun", "ancestors", "depth", "imagenet", "read"]


@dataclass(frozen=True)
class Noun:
    """One synset. `gloss` is without its examples."""

    lemmas: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]


def read(unpacked: Path) -> dict[str, Noun]:
    """All noun synsets by their offset of 8 digits (`data.noun`, see wndb(5))."""
    found = {}
    path = unpacked / "wordnet-base/usr/share/wordnet/data.noun"
    for line in path.read_text("utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        head, gloss = line.split("|", 1)
        words = head.split()
        end = 4 + 2 * int(words[3], 16)
        pointers = words[end + 1 :]
        found[words[0]] = Noun(
            lemmas=tuple(word.replace("_", " ") for word in words[4:end:2]),
            gloss=re.sub(r';?\s*".*', "", gloss).strip().rstrip(";"),
            hypernyms=tuple(
                pointers[4 * i + 1]
                for i in range(int(words[end]))
                if pointers[4 * i] in ("@", "@i")
            ),
        )
    return found


def imagenet(unpacked: Path) -> list[str]:
    """The offsets of ImageNet's 1,000 classes, in the order of every classifier's outputs."""
    path = unpacked / "timm/timm/data/_info/imagenet_synsets.txt"
    return [line.strip().removeprefix("n") for line in path.read_text("utf-8").splitlines()]


def depth(nouns: Mapping[str, Noun], offset: str) -> int:
    """Steps up to the root ("entity"), on the shortest way."""
    steps, level = 0, {offset}
    while all(nouns[each].hypernyms for each in level):
        level = {above for each in level for above in nouns[each].hypernyms}
        steps += 1
    return steps


def ancestors(nouns: Mapping[str, Noun], offset: str) -> dict[str, int]:
    """Every hypernym above, with its distance on the shortest way."""
    found: dict[str, int] = {}
    level, distance = {offset}, 0
    while level:
        distance += 1
        level = {above for each in level for above in nouns[each].hypernyms} - found.keys()
        found |= dict.fromkeys(sorted(level), distance)
    return found
