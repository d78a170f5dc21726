"""Folders, labels and words to rows of a class list: by name, by WordNet id, or by number.

- A name matches whatever its case, blanks and signs: "apple_pie" is "apple pie".
- Where some folders match none, the order is followed if the others stand at their places in it:
  "AnnualCrop" is the first of EuroSAT's folders and "annual crop land" the first of its names.
- `folders.txt` beside the folders settles every case: a folder's name a line, in the list's order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.errors import DataError
from diptych.eval.sets.found import few, lines_of
from diptych.eval.sets.row import DataSet

__all__ = ["Names", "names_for", "numbers_of_folders", "order_of", "plain"]

ORDER_FILE = "folders.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The classes of a set in the order of its labels.

    Attributes:
        names: of each class one or more.
        ids: WordNet ids of the classes, or ().
    """

    names: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...] = ()

    def _table(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, names in enumerate(self.names):
            for name in names:
                found.setdefault(plain(name), i)
        for i, wnid in enumerate(self.ids):
            found.setdefault(plain(wnid), i)
        return found

    def numbers(self, texts: Sequence[str]) -> list[int | None]:
        """The class that each text names, or None."""
        table = self._table()
        return [next((table[v] for v in _variants(t) if v in table), None) for t in texts]


def plain(text: str) -> str:
    """Letters and digits, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


# what publishers call their folders, and OpenAI's lists the class
_ALSO = {
    **{word: str(i) for i, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])},
    "annualcrop": "annual crop land",
    "herbaceousvegetation": "brushland or shrubland",
    "highway": "highway or road",
    "industrial": "industrial buildings or commercial buildings",
    "pasture": "pasture land",
    "permanentcrop": "permanent crop land",
    "residential": "residential buildings or homes or apartments",
    "sealake": "lake or sea",
    "backgroundgoogle": "background",
    "faces": "off-center face",
    "faceseasy": "centered face",
    "leopards": "leopard",
    "motorbikes": "motorbike",
    "airplanes": "airplane",
    "carside": "side of a car",
    "cougarbody": "body of a cougar cat",
    "cougarface": "face of a cougar cat",
    "crocodilehead": "head of a crocodile",
    "flamingohead": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yinyang": "yin and yang symbol",
    "anger": "angry",
    "disgust": "disgusted",
    "fear": "fearful",
    "happiness": "happy",
    "sadness": "sad",
    "surprise": "surprised",
}  # fmt: skip


def _variants(text: str) -> list[str]:
    """What a folder may be called for its class: "n01440764_tench", "001.Albatross", "a/abbey"."""
    _, _, last = text.rpartition("/")
    _, _, below = text.partition("/")
    cut = re.sub(r"^(n\d{8}|\d+)[-._ ]+", "", last)
    wnid = re.match(r"n\d{8}\b|n\d{8}(?=_)", last)
    found = [text, last, below, cut, wnid.group() if wnid else "", text.partition(",")[0]]
    keys = [key for key in dict.fromkeys(plain(t) for t in found) if key]
    return keys + [plain(_ALSO[key]) for key in keys if key in _ALSO]


def names_for(row: DataSet) -> Names | None:
    """The row's class list; None where the data must name their classes."""
    if row.classes is None:
        return None
    from diptych.eval.classes import class_list  # reads a file of the package

    found = class_list(row.classes)
    return Names(names=found.names, ids=found.ids)


def order_of(names: Names, classes: Sequence[str], where: Path) -> tuple[list[int], list[str]]:
    """The row of the list for each label of data that name their classes, and notes.

    Two publishers of one set order its classes in two ways (EuroSAT, CLEVR's counts, Pets): where
    every class is found by its name, the labels are numbered anew. Where some are called otherwise
    and most of the rest stand at their place, the order is the list's own.

    Raises:
        DataError: another number of classes, or neither of both.
    """
    num = len(names.names)
    if len(classes) != num:
        raise DataError(
            f"{where}: has {len(classes):,} classes and the protocol's list {num:,}: labels would "
            "mean something else. Bring the set of this protocol."
        )
    at_place = [plain(c) in map(plain, own) for c, own in zip(classes, names.names, strict=True)]
    found = names.numbers(classes)
    order = [
        i if at else number for i, (at, number) in enumerate(zip(at_place, found, strict=True))
    ]
    free = sorted(set(range(num)) - set(order))
    if order.count(None) == len(free) == 1:
        order[order.index(None)] = free[0]
    if set(order) == set(range(num)):
        numbers = [number for number in order if number is not None]
        moved = sum(i != number for i, number in enumerate(numbers))
        told = f"{moved:,} of {num:,} labels were numbered anew: the data order classes otherwise"
        return numbers, [told] * bool(moved)
    other = [f"{i}: {classes[i]} / {names.names[i][0]}" for i in range(num) if not at_place[i]]
    count = f"{len(other):,} of {num:,} classes are called otherwise in the data than in the list"
    if 2 * sum(at_place) < num:
        raise DataError(
            f"{where}: {count}: {few(other)}; what the labels mean is not known. Write the list's "
            "names into classnames.txt, a line each, in the order of the data's labels."
        )
    return list(range(num)), [f"{count}: {few(other)}"]


def numbers_of_folders(
    folders: Sequence[str], names: Names, where: Path, *, partial: bool
) -> tuple[list[int | None], list[str]]:
    """The class of each folder (None: of no class), and what a person should know of it.

    Args:
        folders: sorted.
        partial: whether classes may be without a folder.

    Raises:
        DataError: no folder fits the list, two are the same class, or a class has none.
    """
    order = lines_of(where / ORDER_FILE)
    if order:
        numbers, notes = _by_file(folders, order, names, where), []
    else:
        numbers, notes = _by_name(folders, names, where)
    _check_once(folders, numbers, where)
    outside = [f for f, number in zip(folders, numbers, strict=True) if number is None]
    if outside:
        notes.append(f"{len(outside):,} folders are no class of the list: {few(outside)}")
    present = set(numbers)
    missing = [n[0] for i, n in enumerate(names.names) if i not in present]
    if missing and not partial:
        raise DataError(
            f"{where}: {len(missing):,} of {len(names.names):,} classes have no folder: "
            f"{few(missing)}.{_outside(outside)} Bring the folders; or, if the set is meant to be "
            f"a part, say so with partial=True (--partial); or write the folders' names in the "
            f"list's order, a line each, into {where / ORDER_FILE}."
        )
    return numbers, notes


def _outside(outside: Sequence[str]) -> str:
    return f" Folders that are no class: {few(outside)}." if outside else ""


def _by_file(
    folders: Sequence[str], order: Sequence[str], names: Names, where: Path
) -> list[int | None]:
    if len(order) != len(names.names):
        raise DataError(
            f"{where / ORDER_FILE}: has {len(order):,} lines, and the list {len(names.names):,} "
            "classes. Write a folder's name a line, in the order of the list."
        )
    place = {name: i for i, name in enumerate(order)}
    return [place.get(folder) for folder in folders]


def _by_name(
    folders: Sequence[str], names: Names, where: Path
) -> tuple[list[int | None], list[str]]:
    numbers = names.numbers(folders)
    if None not in numbers:
        return numbers, []
    if all(re.fullmatch(r"\d+", folder) for folder in folders):
        return _by_digits(folders, len(names.names))
    matched = [(i, number) for i, number in enumerate(numbers) if number is not None]
    in_order = len(folders) == len(names.names) and all(i == number for i, number in matched)
    if in_order and 2 * len(matched) >= len(folders):
        note = (
            f"folders stand for the list's classes by their order: {len(matched):,} of "
            f"{len(folders):,} have the same name"
        )
        return list(range(len(folders))), [note]
    if not matched:
        raise DataError(
            f"{where}: none of its {len(folders):,} folders is called like a class: "
            f"{few(folders)}; classes are {few([n[0] for n in names.names])}. Write the "
            f"folders' names in the list's order, a line each, into {where / ORDER_FILE}."
        )
    return numbers, []


def _by_digits(folders: Sequence[str], num: int) -> tuple[list[int | None], list[str]]:
    """0 to num - 1, or 1 to num if 0 is not there and num is."""
    values = [int(folder) for folder in folders]
    first = 1 if 0 not in values and num in values else 0
    notes = [f"folders are numbers, counted from {first}"]
    return [v - first if first <= v < num + first else None for v in values], notes


def _check_once(folders: Sequence[str], numbers: Sequence[int | None], where: Path) -> None:
    seen: dict[int, str] = {}
    for folder, number in zip(folders, numbers, strict=True):
        if number is not None and seen.setdefault(number, folder) != folder:
            raise DataError(
                f"{where}: the folders {seen[number]} and {folder} are the same class. Keep one, "
                f"or write the folders' names in the list's order into {where / ORDER_FILE}."
            )
