"""Pictures with the captions, references and ratings that people gave them, read one at a time.

- A list (CSV, TSV, JSON lines, Parquet), a folder with such a list (captions.csv ...), a folder of
  pictures with a `.txt` each, or a tar shard.
- Flickr8k-Expert's protocol of ratings (jmhessel/clipscore): white space in captions is collapsed,
  each rating is an item of its own, a rating that is no number (NaN) is skipped, and counted here.
- Whatever is not given is told to the report, with its line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data import Report, is_shard, read_shard
from diptych.data.captions import captions_of
from diptych.data.lists import PATH_COLUMNS, pick, read_rows
from diptych.data.sources import Source, files_of
from diptych.engine.stream import sources
from diptych.errors import DataError

__all__ = ["Columns", "Pair", "read_pairs", "read_rated"]

TEXT_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a list are read; None: the usual names.

    Attributes:
        image: path, image_path, filepath, image ...
        caption: caption, captions (a list, also as JSON in a cell), text, title.
        references: right captions of the same picture, a text or a list; None: none are wanted.
        ratings: columns of numbers, or of lists of them.
    """

    image: str | None = None
    caption: str | None = None
    references: str | None = None
    ratings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A picture with its captions, each of which is judged alone.

    Attributes:
        key: its path, as it stands in the list.
        image: what `Encoder.encode_image` takes.
        ratings: of each of the captions, where there are any.
        skipped: ratings that are no numbers.
    """

    key: str
    image: Any
    captions: tuple[str, ...]
    references: tuple[str, ...] = ()
    ratings: tuple[float, ...] = ()
    skipped: int = 0


def read_pairs(
    path: str | Path, *, columns: Columns | None = None, report: Report
) -> Iterator[Pair]:
    """The pairs of a list, a folder or a tar, in their order.

    Args:
        report: counts what is dropped, by reason; its `on_drop` is told each with its name. Rows
            of the same picture stay apart: each is judged alone.

    Raises:
        DataError: nothing that holds captions, or a column that is not there (with those that are).
        ShardError: a tar or a list that cannot be read.
    """
    columns = columns or Columns()
    for file in files_of(Source(path=str(path))):
        if file.is_dir():
            if columns != Columns():
                raise DataError(
                    f"{file}: is a folder of pictures, which has no columns. Give a list (CSV, "
                    "TSV, JSON lines, Parquet) with the columns that you name."
                )
            yield from _folder(file, report)
        elif file.suffix.lower() == ".tar":
            yield from _tar(file, columns, report)
        else:
            yield from _list(file, columns, report)


def read_rated(path: str | Path, *, columns: Columns, report: Report) -> Iterator[Pair]:
    """Pictures of a list with ratings but without captions; those with no rating are dropped.

    Raises: as `read_pairs`.
    """
    wanted = [columns.image, *columns.ratings]
    for where, key, image, row in _rows(Path(path), wanted, columns, report):
        ratings, skipped = _ratings(row, columns, where)
        if not ratings:
            report.drop("no rating", where, f"column {', '.join(columns.ratings)}")
            continue
        report.seen += 1
        report.used += 1
        yield Pair(key=key, image=image, captions=(), ratings=ratings, skipped=skipped)


def _folder(folder: Path, report: Report) -> Iterator[Pair]:
    for name, image in sources(folder):
        beside = Path(name).with_suffix(".txt")
        try:
            if beside.stat().st_size > TEXT_BYTES:
                report.drop("text lost", str(beside), f"more than {TEXT_BYTES:,} bytes")
                continue
            text = beside.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            report.drop("no caption", name, f"there is no {beside.name} beside it")
            continue
        except (OSError, UnicodeDecodeError) as error:
            report.drop("text lost", str(beside), str(error))
            continue
        yield from _made(name, image, text, {}, Columns(), report)


def _tar(file: Path, columns: Columns, report: Report) -> Iterator[Pair]:
    taken = Report(on_drop=lambda drop: report.drop(*drop))
    for sample in read_shard(file, report=taken):
        name = f"{file}!{sample.key}"
        yield from _made(name, sample.image, sample.text, sample.meta, columns, report)


def _list(file: Path, columns: Columns, report: Report) -> Iterator[Pair]:
    wanted = [columns.image, columns.caption, columns.references, *columns.ratings]
    for where, key, image, row in _rows(file, wanted, columns, report):
        yield from _made(key, image, None, row, columns, report, where=where)


def _rows(
    file: Path, wanted: Sequence[str | None], columns: Columns, report: Report
) -> Iterator[tuple[str, str, Path, dict[str, Any]]]:
    """(FILE:LINE, path as it stands, where the picture is, the other columns)."""
    if not is_shard(file) or file.suffix.lower() == ".tar":
        raise DataError(f"{file}: is no list by its name. Give .csv, .tsv, .jsonl or .parquet.")
    try:
        opened = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    first = True
    with opened:
        for where, row in read_rows(opened, file, report):
            missing = [name for name in wanted if name is not None and name not in row]
            if first and missing:
                raise DataError(
                    f"{where}: has no column {missing[0]!r}, but {', '.join(row)}. "
                    "Name one of them."
                )
            first = False
            column = columns.image or pick(row, PATH_COLUMNS)
            key = row.get(column) if column else None
            if not isinstance(key, str) or not key.strip():
                report.drop("no path", where, f"it has {', '.join(row)}")
                continue
            about = {name: value for name, value in row.items() if name != column}
            yield where, key, file.parent / key, about


def _made(
    key: str,
    image: Any,
    text: str | None,
    row: dict[str, Any],
    columns: Columns,
    report: Report,
    *,
    where: str | None = None,
) -> Iterator[Pair]:
    """The pair, if it has captions; drops are told."""
    captions, given = captions_of(text, row, columns.caption)
    if columns.ratings:
        captions = [" ".join(caption.split()) for caption in captions]
    where = where or key
    if not captions:
        detail = f"it has {', '.join(row) or 'none'}"
        report.drop("empty caption" if given else "no caption", where, detail)
        return
    references: list[str] = []
    if columns.references is not None:
        references, _ = captions_of(None, row, columns.references)
        if not references:
            report.drop("no reference", where, f"column {columns.references!r} is empty")
            return
    ratings, skipped = _ratings(row, columns, where)
    report.seen += 1
    report.used += 1
    yield Pair(
        key=key,
        image=image,
        captions=tuple(captions),
        references=tuple(references),
        ratings=ratings,
        skipped=skipped,
    )


def _ratings(row: dict[str, Any], columns: Columns, where: str) -> tuple[tuple[float, ...], int]:
    """The ratings that are numbers, and how many are none."""
    numbers = [x for name in columns.ratings for x in _numbers(row.get(name), name, where)]
    good = tuple(value for value in numbers if not math.isnan(value))
    return good, len(numbers) - len(good)


def _numbers(cell: Any, name: str, where: str) -> Sequence[float]:
    """The ratings of a cell: a number, a list of them, or JSON of either; nothing is NaN."""
    if isinstance(cell, str):
        words = cell.strip()
        if words.startswith("["):
            try:
                cell = json.loads(words)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: column {name!r} is no list ({error}).") from None
        elif words.lower() in ("", "na", "n/a", "null", "none"):
            cell = math.nan
    values = cell if isinstance(cell, list) else [cell]
    try:
        found = [math.nan if value is None else float(value) for value in values]
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: column {name!r} has {cell!r:.60} where a number should be. Correct it, or "
            "leave it empty: empty ratings are skipped and counted."
        ) from None
    if wrong := [value for value in found if math.isinf(value)]:
        raise DataError(f"{where}: column {name!r} has {wrong[0]}. Give finite ratings.")
    return found
