"""Which labels of pictures mean nearly the same, by WordNet: "bunny" where there is a "rabbit".

A label stands for the longest end of it that WordNet knows as a noun ("party hat": "hat"), in all
senses. `strict` kin: one of the two is a synonym, a hypernym or a hyponym of the other. `near` kin:
also two that share a direct hypernym which is not a very general one (5 steps below "entity").
"""

import re
from pathlib import Path

import numpy as np
import wordnet

__all__ = ["kin", "most_tagged"]

_FILES = {  # of WordNet's lexicographers, lexnames(5): those for what can be seen
    "05": "animal", "06": "artifact", "08": "body", "13": "food", "17": "object", "18": "person",
    "19": "phenomenon", "20": "plant",
}  # fmt: skip
_MEASURES = {"pair", "bunch", "head", "string", "glass", "quarter", "plant"}
_CUT = re.compile(r" (?:of|at|in|with|from|making|used|covered|resembles|as) ")


def most_tagged(unpacked: Path, number: int) -> dict[str, list[str]]:
    """For each file of nouns for visible things: those tagged most often in SemCor in their first
    sense, by the counts in `cntlist.rev` (cntlist(5)); ties by name."""
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in _FILES.values()}
    path = unpacked / "wordnet-base/usr/share/wordnet/cntlist.rev"
    for line in path.read_text("utf-8").splitlines():
        key, sense, count = line.split()
        lemma, rest = key.split("%")
        part_of_speech, file = rest.split(":")[:2]
        if part_of_speech == "1" and sense == "1" and file in _FILES:
            found[_FILES[file]].append((-int(count), lemma.replace("_", " ")))
    return {name: [word for _, word in sorted(words)[:number]] for name, words in found.items()}


def kin(unpacked: Path, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(strict, near), bool [l l]: which labels are each other's kin, each its own too."""
    nouns, index = wordnet.read(unpacked), _Index(unpacked)
    synsets = [index.synsets(label) for label in labels]
    above = []
    for some in synsets:
        distance: dict[str, int] = {}
        for synset in some:
            for offset, steps in {**wordnet.ancestors(nouns, synset), synset: 0}.items():
                distance[offset] = min(steps, distance.get(offset, steps))
        above.append(distance)
    strict = np.eye(len(labels), dtype=bool)
    near = strict.copy()
    for i in range(len(labels)):
        for j in range(i):
            strict[i, j] = any(s in above[j] for s in synsets[i])
            strict[i, j] |= any(s in above[i] for s in synsets[j])
            near[i, j] = strict[i, j] or any(
                steps <= 1 and above[j].get(offset, 9) <= 1 and wordnet.depth(nouns, offset) >= 5
                for offset, steps in above[i].items()
            )
    return strict | strict.T, near | near.T


class _Index:
    """`index.noun` and `noun.exc`, see wndb(5) and morphy(7)."""

    def __init__(self, unpacked: Path):
        folder = unpacked / "wordnet-base/usr/share/wordnet"
        self.offsets: dict[str, list[str]] = {}
        for line in (folder / "index.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):  # the licence
                parts = line.split()
                self.offsets[parts[0].replace("_", " ")] = parts[-int(parts[2]) :]
        lines = (folder / "noun.exc").read_text("utf-8").splitlines()
        self.irregular = {line.split()[0]: line.split()[1] for line in lines}

    def synsets(self, label: str) -> list[str]:
        parts = _CUT.split(re.sub(r"[^a-z0-9 \-']", "", label.replace("—", " ")).strip())
        if parts[0] in _MEASURES and len(parts) > 1:
            parts = parts[1:]
        words = parts[0].split()
        for start in range(len(words)):
            if (found := self._singular(" ".join(words[start:]))) in self.offsets:
                return self.offsets[found]
        return []

    def _singular(self, word: str) -> str:
        endings = (
            ("ies", "y"),
            ("ses", "s"),
            ("xes", "x"),
            ("ches", "ch"),
            ("shes", "sh"),
            ("s", ""),
        )
        if word in self.offsets:
            return word
        for ending, other in endings:
            if word.endswith(ending) and word.removesuffix(ending) + other in self.offsets:
                return word.removesuffix(ending) + other
        return self.irregular.get(word, word)
