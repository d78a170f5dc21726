"""A folder of one's own as a set: what is to be measured is told by what lies in it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from diptych.errors import DataError
from diptych.eval.sets.layouts import read_layout
from diptych.eval.sets.row import DataSet

__all__ = ["own_set"]


def own_set(folder: Path, *, taken: frozenset[str] = frozenset()) -> DataSet:
    """The row of a folder in any of the known layouts.

    Pictures with one label each are classified, under "a photo of a {}." unless templates lie
    beside them; pictures with captions are retrieved.

    Args:
        taken: names of other sets: a folder of that name is called "own-NAME".

    Raises:
        DataError: the folder is neither; says why not.
    """
    folder = folder.expanduser()
    name = folder.resolve().name
    base = DataSet(
        name=f"own-{name}" if name in taken else name,
        title=name,
        task="classification",
        metric="top1",
        source=f"your own folder {name}",
    )
    told = []
    for row in (base, replace(base, task="retrieval", metric="mean_r1")):
        try:
            found = read_layout(folder, row)
        except DataError as error:
            told.append(f"{row.task}: {error}")
            continue
        if row.task == "classification" and not found.templates:
            row = replace(row, templates="photo")
        return replace(row, make=partial(read_layout, folder, row))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Known names: diptych eval sets")
    raise DataError(f"{folder}: cannot be measured. " + " ".join(told))
