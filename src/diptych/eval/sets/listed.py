"""Lists beside pictures: CSV, TSV, JSON lines, and Hugging Face's folders with a metadata file.

Which list: one that is called like the split (test.csv), else labels, metadata, captions,
annotations or choices, in the folder of the split or beside it, else the only one there is. A
column split chooses rows. `classnames.txt` beside it gives the order of the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.data.lists import read_rows
from diptych.errors import DataError
from diptych.eval.sets.folders import TEMPLATES_FILE
from diptych.eval.sets.found import SPLITS, Found, few, lines_of
from diptych.eval.sets.names import Names, order_of
from diptych.eval.sets.row import DataSet, Samples
from diptych.eval.sets.table import (
    PICTURE_COLUMNS,
    SPLIT_COLUMNS,
    Locate,
    choices,
    column,
    labelled,
    locator,
    paired,
)

__all__ = ["is_listed", "read_listed", "take_rows"]

_SUFFIXES = (".csv", ".tsv", ".jsonl")
_STEMS = ("labels", "metadata", "captions", "annotations", "choices", "examples")


def is_listed(folder: Path, row: DataSet) -> bool:
    """Whether there is a list in it, or in its split's folder."""
    return _list_of(folder, row) is not None


def _list_of(folder: Path, row: DataSet) -> Path | None:
    names = (row.split, *SPLITS.get(row.split, ()))
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in names]
    for place in (*inside, folder):
        lists = [p for p in sorted(place.iterdir()) if p.suffix.lower() in _SUFFIXES]
        for stem in (*names, *_STEMS):
            for path in lists:
                if path.stem.lower() == stem:
                    return path
        if len(lists) == 1:
            return lists[0]
    return None


def read_listed(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """The samples of a list.

    Raises:
        DataError: no list of the split, or nothing says what its labels mean.
        ShardError: the list cannot be read.
    """
    del partial
    path = _list_of(folder, row)
    if path is None:
        raise DataError(f"{folder}: has no list of the split {row.split}. Bring {row.split}.csv.")
    found = Found()
    with path.open("rb") as file:
        rows = list(_of_split(read_rows(file, path, found), row, path, found))
    return take_rows(rows, folder, row, names, found, path=path, locate=locator(path.parent))


def _of_split(
    rows: Iterator[tuple[str, dict[str, Any]]], row: DataSet, path: Path, found: Found
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of the split, where a column says; pictures that are in two splits are named."""
    wanted = (row.split, *SPLITS.get(row.split, ()))
    split_of: dict[str, set[str]] = {}
    taken = False
    for where, cells in rows:
        key = f"{path.name}:{where.rpartition(':')[2]}"
        name = column(cells, SPLIT_COLUMNS)
        if name is None:
            taken = True
            yield key, cells
            continue
        split = str(cells[name]).strip().lower()
        picture = column(cells, PICTURE_COLUMNS)
        if picture is not None:
            split_of.setdefault(str(cells[picture]), set()).add(split)
        if split in wanted:
            taken = True
            yield key, cells
    both = sorted(name for name, some in split_of.items() if len(some) > 1)
    if both:
        found.notes.append(f"{len(both):,} pictures are in two splits: {few(both)}")
    if split_of and not taken:
        splits = sorted({split for some in split_of.values() for split in some})
        raise DataError(
            f"{path}: has rows of the splits {few(splits, 8)} and none of {row.split}, which the "
            "protocol measures. Bring its rows."
        )


def take_rows(
    rows: list[tuple[str, Mapping[str, Any]]],
    folder: Path,
    row: DataSet,
    names: Names | None,
    found: Found,
    *,
    path: Path,
    locate: Locate,
    named: Sequence[str] = (),
) -> Samples:
    """Samples of a table, by the task of the row.

    Args:
        path: what errors call the table.
        named: the classes in the order of the data's labels; without them `classnames.txt`.
    """
    match row.task:
        case "retrieval":
            paired(rows, found, locate)
            classes: tuple[str, ...] = ()
        case "choice":
            choices(rows, found, locate)
            classes = ()
        case "classification" | "multilabel":
            named = tuple(named) or tuple(filter(None, lines_of(folder / "classnames.txt")))
            order = None
            if names is None and named:
                names = Names(names=tuple((name,) for name in named))
            elif names is not None and named:
                order, notes = order_of(names, named, path)
                found.notes += notes
            found_names = labelled(rows, row, names, found, locate, order=order)
            classes = tuple(some[0] for some in found_names.names)
    templates = [t.replace("{c}", "{}") for t in lines_of(folder / TEMPLATES_FILE)]
    return found.done(row, path, classes=classes, templates=templates)
