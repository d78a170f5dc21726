"""Hugging Face's Parquet files: data/SPLIT-00000-of-0000N.parquet with pictures inside.

- A picture is a column {bytes, path}, or one of bytes; a column with a path is looked up beside
  the file. Labels are numbers; their names are in the file's own metadata (key "huggingface"), in
  dataset_infos.json, or in the head of README.md.
- Only the small columns are read at first; pictures come from one group of rows at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diptych.errors import DataError, MissingExtraError, ShardError
from diptych.eval.sets.found import SPLITS, Found, few, text_of
from diptych.eval.sets.listed import take_rows
from diptych.eval.sets.names import Names
from diptych.eval.sets.row import DataSet, Samples
from diptych.eval.sets.table import LABEL_COLUMNS, locator

__all__ = ["is_parquet", "read_parquet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture of a Parquet file: read with its group of rows when it is called."""

    path: Path
    group: int
    row: int
    column: str
    place: int = -1  # in a list of pictures

    def __call__(self) -> bytes:
        """Raises ShardError where the file cannot be read or the cell is empty."""
        value = _column(self.path, self.group, self.column)[self.row].as_py()
        if self.place >= 0:
            value = value[self.place]
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes) or not data:
            raise ShardError(f"{self.path}: {self.column} of row {self.row} holds no bytes")
        return data


@lru_cache(maxsize=2)  # Winoground has two columns of pictures
def _column(path: Path, group: int, name: str) -> Any:
    arrow, pq = _arrow(path)
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[name]).column(0)
    except (arrow.ArrowException, OSError) as error:
        raise ShardError(f"{path}: cannot be read: {error}. Bring it again.") from error


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="parquet", needed_for=f"reading {path}") from error
    return arrow, pq


def is_parquet(folder: Path, row: DataSet) -> bool:
    """Whether there are Parquet files in it, in data/ or in its split's folder."""
    del row
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted({*folder.glob("*.parquet"), *folder.glob("*/*.parquet")})


def read_parquet(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """The samples of the files of the split.

    Raises:
        DataError: no file of the split, a missing part of it, or labels without names.
        ShardError: a file cannot be read.
        MissingExtraError: without the extra `parquet`.
    """
    del partial
    files, found = _of_split(folder, row), Found()
    rows: list[tuple[str, Mapping[str, Any]]] = []
    named: tuple[str, ...] = ()
    for path in files:
        named = named or _names_in(path)
        rows += _rows(path, folder)
    named = named or _names_beside(folder)
    beside = locator(folder)

    def locate(cell: Any) -> Any:
        return beside(cell) if isinstance(cell, str) else cell

    where = files[0].parent
    return take_rows(rows, folder, row, names, found, path=where, locate=locate, named=named)


def _of_split(folder: Path, row: DataSet) -> list[Path]:
    wanted = (row.split, *SPLITS.get(row.split, ()))
    files = _files(folder)
    split_of = {path: re.split(r"[-.]", path.name, maxsplit=1)[0].lower() for path in files}
    if not set(split_of.values()) & {name for some in SPLITS.values() for name in some}:
        split_of = {path: path.parent.name.lower() for path in files}  # SPLIT/0000.parquet
    found = [path for path in files if split_of[path] in wanted]
    if not found:
        raise DataError(
            f"{folder}: has Parquet files of {few(sorted(set(split_of.values())), 8)} and none of "
            f"{row.split}, which the protocol measures. Bring {row.split}-*.parquet."
        )
    for path in found:
        if count := re.search(r"-of-0*(\d+)\b", path.name):
            if int(count.group(1)) != len(found):
                raise DataError(
                    f"{path.parent}: has {len(found)} of {count.group(1)} files of {row.split}, "
                    f"the last is {found[-1].name}. Bring all."
                )
            break
    return found


def _rows(path: Path, folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows whose pictures are `Cell`s."""
    arrow, pq = _arrow(path)
    name = path.relative_to(folder).as_posix()
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            heavy = {f.name: _is_list(f.type, arrow) for f in schema if _is_picture(f.type, arrow)}
            small = [f.name for f in schema if f.name not in heavy]
            done = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=small).to_pylist()
                number = file.metadata.row_group(group).num_rows
                for i in range(number):
                    cells = dict(table[i]) if small else {}
                    for column, several in heavy.items():
                        cells[column] = _cells(path, group, i, column, several, cells)
                    yield f"{name}:{done + i}", cells
                done += number
    except (arrow.ArrowException, OSError) as error:
        raise ShardError(f"{path}: cannot be read: {error}. Bring it again.") from error


def _cells(
    path: Path, group: int, row: int, column: str, several: bool, cells: Mapping[str, Any]
) -> Any:
    """A cell, or one for each of the candidates that the row names."""
    if not several:
        return Cell(path, group, row, column)
    count = len(cells.get("candidates") or ())
    return [Cell(path, group, row, column, place) for place in range(count)]


def _is_picture(kind: Any, arrow: Any) -> bool:
    types = arrow.types
    if _is_list(kind, arrow):
        return _is_picture(kind.value_type, arrow)
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_list(kind: Any, arrow: Any) -> bool:
    return arrow.types.is_list(kind) or arrow.types.is_large_list(kind)


# --- names of labels ---


def _names_in(path: Path) -> tuple[str, ...]:
    """The class names in the file's metadata, or ()."""
    arrow, pq = _arrow(path)
    try:
        raw = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    except (arrow.ArrowException, OSError) as error:
        raise ShardError(f"{path}: cannot be read: {error}. Bring it again.") from error
    return _class_names(_json(raw, path))


def _names_beside(folder: Path) -> tuple[str, ...]:
    for name in ("dataset_infos.json", "dataset_info.json"):
        if (folder / name).is_file():
            return _class_names(_json(text_of(folder / name, 2**24), folder / name))
    if (folder / "README.md").is_file():
        head = re.match(r"---\n(.*?)\n---", text_of(folder / "README.md", 2**24), re.DOTALL)
        columns: dict[str, tuple[str, ...]] = {}
        for block in re.split(r"\n\s*- name:\s*", head.group(1))[1:] if head else ():
            column, _, rest = block.partition("\n")
            if found := re.search(r"class_label:\s*\n\s*names:\s*\n(.*)", rest, re.DOTALL):
                columns.setdefault(column.strip(), tuple(_numbered(found.group(1))))
        return _chosen(columns)
    return ()


def _numbered(text: str) -> Iterator[str]:
    """`'0': apple_pie` lines of the dataset card's YAML, as long as they count on."""
    for i, line in enumerate(text.splitlines()):
        found = re.fullmatch(r"\s*['\"]?(\d+)['\"]?:\s*(.+?)\s*", line)
        if found is None or int(found.group(1)) != i:
            return
        yield found.group(2).strip("'\"")


def _json(raw: str | bytes, path: Path) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its description is no JSON ({error}). Bring it again.") from error


def _class_names(thing: Any) -> tuple[str, ...]:
    """Names of the label column among the ClassLabel features of a description."""
    return _chosen(dict(_class_labels("", thing)))


def _class_labels(column: str, thing: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(column, names) of each {"_type": "ClassLabel", "names": [...]}, at any depth."""
    if not isinstance(thing, Mapping):
        return
    names = thing.get("names")
    if thing.get("_type") == "ClassLabel" and isinstance(names, list):
        yield column, tuple(map(str, names))
        return
    for key, child in thing.items():
        # {"feature": {...}} is what a list of labels is made of
        yield from _class_labels(column if key == "feature" else key, child)


def _chosen(columns: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Those of the column that `table` takes for the label."""
    known = {name.lower(): names for name, names in columns.items()}
    return next((known[name] for name in LABEL_COLUMNS if name in known), ())
