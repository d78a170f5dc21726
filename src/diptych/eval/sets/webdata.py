"""CLIP_benchmark's and DataComp's web data sets: SPLIT/nshards.txt, SPLIT/0.tar, classnames.txt.

- Members of a sample share their name up to the first dot: KEY.jpg (webp, png), KEY.cls a whole
  number, KEY.txt captions, a line each, KEY.npy a row of numbers: of a multi-label set the truth of
  each class, of a fairness or WILDS set its first number is the group (region, income, place).
- `classnames.txt` and `zeroshot_classification_templates.txt` ("{c}") lie beside the splits.
- Nothing is unpacked. A tar is read once for names, labels and places; pictures are read from their
  place when they are needed. Arrays are read without pickles.
- Source: clip_benchmark 1.6.2, `datasets/builder.py` and `webdataset_builder.py`; DataComp's
  `eval_utils/wilds_eval.py` for the meaning of the rows of numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diptych.data.shards import IMAGES
from diptych.data.tar import TarDamage, members
from diptych.errors import DataError
from diptych.eval.sets.folders import TEMPLATES_FILE
from diptych.eval.sets.found import (
    SPLITS,
    Found,
    Part,
    Picture,
    also_in,
    lines_of,
    split_folders,
)
from diptych.eval.sets.names import Names, order_of
from diptych.eval.sets.row import DataSet, Sample, Samples

__all__ = ["is_webdata", "read_webdata"]

_SMALL = 2**20  # bytes of a label, a caption or an array
_COMPARED = 20_000  # pictures of the other splits whose headers are read


def is_webdata(folder: Path, row: DataSet) -> bool:
    """Whether there are tars in it, or in a folder that is called like a split."""
    del row
    return any(_tars(place) for place in (folder, *split_folders(folder).values()))


def _tars(place: Path) -> list[Path]:
    return sorted(place.glob("*.tar"), key=lambda p: (len(p.stem), p.stem))


def read_webdata(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """The samples of the row's split; where only `test` is there, of that.

    Raises:
        DataError: no such split, no class names, or a list of classes of another length.
    """
    del partial
    place, others, notes = _place(folder, row)
    classes = tuple(filter(None, lines_of(folder / "classnames.txt")))
    found = Found(num_classes=_number(row, folder, names, classes))
    found.notes += notes
    order: list[int] | None = None
    if names is not None and classes:
        order, notes = order_of(names, classes, folder / "classnames.txt")
        found.notes += notes
    pictures = []
    for tar in _expected(place, found):
        for key, entry in _entries(tar, found):
            _add(found, row, f"{tar.stem}/{key}", entry, order)
            if entry.image is not None:
                pictures.append(Picture(f"{tar.name}!{key}", entry.image.size, entry.image))
    beside = _pictures_of(others)
    found.notes += also_in(pictures, beside)
    if len(beside) == _COMPARED:
        found.notes.append(f"of other splits, {_COMPARED:,} pictures were compared, not all")
    return found.done(
        row,
        place,
        classes=classes if names is None else tuple(n[0] for n in names.names),
        templates=[t.replace("{c}", "{}") for t in lines_of(folder / TEMPLATES_FILE)],
    )


def _place(folder: Path, row: DataSet) -> tuple[Path, dict[str, Path], list[str]]:
    """The folder of the tars, those of other splits, notes."""
    splits = {name: p for name, p in split_folders(folder).items() if _tars(p)}
    if not splits:
        return folder, {}, []
    for wanted in (row.split, *SPLITS.get(row.split, ())):
        if wanted in splits:
            return splits[wanted], {n: p for n, p in splits.items() if n != wanted}, []
    if "test" in splits:  # these collections call test what is measured
        note = f"its split test was read; the publisher calls it {row.split}"
        return splits["test"], {n: p for n, p in splits.items() if n != "test"}, [note]
    raise DataError(
        f"{folder}: has {', '.join(splits)} and no {row.split}, which the protocol measures. "
        f"Bring the folder {row.split}."
    )


def _number(
    row: DataSet, folder: Path, names: Names | None, classes: tuple[str, ...]
) -> int | None:
    """How many classes; an error where the data and the protocol cannot be brought together."""
    if row.task not in ("classification", "multilabel"):
        return None
    if names is None:
        if not classes:
            raise DataError(
                f"{folder / 'classnames.txt'}: is missing, and the protocol of {row.name} names no "
                "classes. Write them there, a line each, in the order of the labels."
            )
        return len(classes)
    return len(names.names)


def _expected(place: Path, found: Found) -> list[Path]:
    """The tars in order; those that nshards.txt counts and that are not there are named."""
    tars = _tars(place)
    count = lines_of(place / "nshards.txt")
    if not count:
        return tars
    if not count[0].isdigit():
        raise DataError(f"{place / 'nshards.txt'}: {count[0]!r} is no number of tars")
    present = {tar.stem for tar in tars}
    if present <= {str(i) for i in range(int(count[0]))}:
        for i in range(int(count[0])):
            if str(i) not in present:
                found.flaw("missing tar", f"{place.name}/{i}.tar", f"nshards.txt says {count[0]}")
    elif len(tars) != int(count[0]):
        found.notes.append(f"nshards.txt says {count[0]} tars, found {len(tars)}")
    return tars


@dataclass(slots=True)
class _Entry:
    """The members of one key."""

    image: Part | None = None
    small: dict[str, bytes] = field(default_factory=dict)
    why_not: str = ""


def _entries(tar: Path, found: Found) -> Iterator[tuple[str, _Entry]]:
    """The samples of a tar in order. Damage is named; what came before it is good."""
    key, entry = None, _Entry()
    try:
        with tar.open("rb") as file:
            for member in members(file, length=tar.stat().st_size):
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if member.kind != "file" or not stem or not dot:
                    continue
                if key != folder + slash + stem:
                    if key is not None:
                        yield key, entry
                    key, entry = folder + slash + stem, _Entry()
                suffix = suffix.lower()
                if suffix in IMAGES and entry.image is not None:
                    entry.why_not = "it has two pictures"
                elif suffix in IMAGES:
                    entry.image = Part(tar, member.offset, member.size)
                elif member.size <= _SMALL:
                    entry.small[suffix] = member.read()
                else:
                    entry.why_not = f"{base} has {member.size:,} bytes, more than {_SMALL:,}"
    except TarDamage as damage:
        found.flaw(damage.reason, f"{tar.parent.name}/{tar.name}", damage.detail)
        if damage.cut and key is not None:
            entry.why_not = "the tar is cut short within it"
    except OSError as error:
        found.flaw("cannot be read", str(tar), str(error))
    if key is not None:
        yield key, entry


def _add(found: Found, row: DataSet, key: str, entry: _Entry, order: Sequence[int] | None) -> None:
    if entry.image is None or entry.why_not:
        found.lose(key, entry.why_not or "it has no picture")
        return
    try:
        labels, captions, group = _meaning(row, entry.small)
    except ValueError as error:
        found.lose(key, str(error))
        return
    if order is not None:
        labels = tuple(order[n] if 0 <= n < len(order) else n for n in labels)
    needs = {"retrieval": "captions", "classification": "labels"}.get(row.task, "")
    found.add(Sample(key, entry.image, labels, captions, group), needs=needs)


def _meaning(row: DataSet, small: dict[str, bytes]) -> tuple[tuple[int, ...], tuple[str, ...], str]:
    """Labels, captions and group. Raises ValueError with the reason where they cannot be read."""
    labels: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    group = ""
    if "txt" in small:
        lines = small["txt"].decode("utf-8-sig").splitlines()
        captions = tuple(line.strip() for line in lines if line.strip())
    if "npy" in small:
        array = np.load(io.BytesIO(small["npy"]), allow_pickle=False).ravel()
        if row.task == "multilabel":
            return tuple(np.flatnonzero(array > 0).tolist()), captions, group
        group = str(array[0].item()) if array.size else ""
    if "cls" in small:
        text = small["cls"].decode("ascii", "replace").strip()
        if not text.lstrip("-").isdigit():
            raise ValueError(f"its label {text[:40]!r} is no whole number")
        labels = (int(text),)
    return labels, captions, group


def _pictures_of(others: dict[str, Path]) -> list[Picture]:
    """The pictures of other splits, as far as they are compared."""
    pictures: list[Picture] = []
    for split, place in others.items():
        for tar in _tars(place):
            for key, entry in _entries(tar, Found()):
                if entry.image is not None:
                    name = f"{split}/{tar.name}!{key}"
                    pictures.append(Picture(name, entry.image.size, entry.image))
                if len(pictures) == _COMPARED:
                    return pictures
    return pictures
