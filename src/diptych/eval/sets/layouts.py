"""Which layout a folder has, by what lies in it and never by its name; and its samples."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from diptych.errors import DataError
from diptych.eval.sets.annotated import is_annotated, read_annotated
from diptych.eval.sets.folders import is_folders, is_mvtec, read_folders, read_mvtec
from diptych.eval.sets.found import few
from diptych.eval.sets.listed import is_listed, read_listed
from diptych.eval.sets.names import Names, names_for
from diptych.eval.sets.parquet import is_parquet, read_parquet
from diptych.eval.sets.row import DataSet, Samples
from diptych.eval.sets.videos import is_videos, read_videos
from diptych.eval.sets.webdata import is_webdata, read_webdata

__all__ = ["LAYOUTS", "read_layout"]


class Sees(Protocol):
    def __call__(self, folder: Path, row: DataSet, /) -> bool: ...


class Reads(Protocol):
    def __call__(
        self, folder: Path, row: DataSet, names: Names | None, /, *, partial: bool
    ) -> Samples: ...


class Layout(NamedTuple):
    """A layout: what a person sees of it, how it is known, and its reader."""

    looks: str
    sees: Sees
    read: Reads


# in this order: a folder of pictures is the last thing that one beside a list is taken for
LAYOUTS = (
    Layout("test/0.tar with classnames.txt", is_webdata, read_webdata),
    Layout("dataset_coco.json or the JSON of a choice set", is_annotated, read_annotated),
    Layout("data/test-00000-of-00001.parquet", is_parquet, read_parquet),
    Layout("test.csv, labels.csv, metadata.jsonl ...", is_listed, read_listed),
    Layout("CATEGORY/test/good (MVTec AD)", is_mvtec, read_mvtec),
    Layout("CLASS/VIDEO.avi or CLASS/VIDEO/frame_0001.jpg", is_videos, read_videos),
    Layout("test/CLASS/*.jpg or CLASS/*.jpg", is_folders, read_folders),
)


def read_layout(folder: Path, row: DataSet, *, partial: bool = False) -> Samples:
    """The samples of a folder in any of the layouts.

    Args:
        partial: whether classes of the list may be without a folder.

    Raises:
        DataError: no such folder, no such layout, or nothing that can be measured.
    """
    if not folder.is_dir():
        there = f"Put a copy of {row.title} there" if row.source.startswith("http") else "Make it"
        raise DataError(f"{folder}: no such folder. {there}: {row.source or row.note}")
    for layout in LAYOUTS:
        if layout.sees(folder, row):
            return layout.read(folder, row, names_for(row), partial=partial)
    names = sorted(path.name for path in folder.iterdir())
    raise DataError(
        f"{folder}: has none of the known layouts; in it: {few(names, 5) or 'nothing'}. Known are "
        f"{'; '.join(layout.looks for layout in LAYOUTS)}."
    )
