"""Lists of images with their captions: text, CSV, TSV, JSON lines, Parquet; rows as they stand.

A list is UTF-8 (a byte order mark and CRLF are fine). "NULL" and "NA" are words like any other. A
path may be relative to the list.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from diptych.errors import MissingExtraError

__all__ = ["PATH_COLUMNS", "TEXT_COLUMNS", "Flaws", "as_object", "file_bytes", "pick", "read_rows"]

PATH_COLUMNS = (
    *("path", "image_path", "filepath", "file_path", "filename", "file_name"),
    *("image", "img", "image_file"),
)
TEXT_COLUMNS = ("caption", "text", "title")

TEXT_BYTES = 2**20


class Flaws(Protocol):
    """What `shards.Report` does with a thing that was lost though no sample was."""

    def flaw(self, reason: str, name: str, detail: str = "") -> None: ...


def read_rows(file: Any, path: Path, report: Flaws) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, row) of a list; Parquet counts rows. Cells that are not there are not in a row.

    Raises:
        MissingExtraError: Parquet without the extra `parquet`.
    """
    readers = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines}
    for number, row in readers.get(path.suffix.lower(), _lines)(file, path, report):
        yield f"{path}:{number}", row


def pick(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The key in `row` of the first of `names` that is a text there; "Caption" is "caption"."""
    texts = {key.strip().lower(): key for key, value in row.items() if isinstance(value, str)}
    return next((texts[name] for name in names if name in texts), None)


def file_bytes(path: Path, limit: int) -> tuple[bytes | None, str, str]:
    """The bytes of a file, or why not: reason and detail."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None, "not a file", "a folder, a device or a pipe"
        if status.st_size <= limit:
            with path.open("rb") as file:
                data = file.read(limit + 1)  # it may grow meanwhile
            if len(data) <= limit:
                return data, "", ""
        return None, "member too large", f"{status.st_size:,} bytes, more than {limit:,}"
    except FileNotFoundError:
        return None, "no such file", str(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return None, "cannot be read", str(error)


def as_object(text: str) -> dict[str, Any]:
    """A JSON object. NaN and Infinity, which JSON does not have and pandas writes, are None."""
    found = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__} where an object should be")
    return found


_Rows = Iterator[tuple[int, dict[str, Any]]]


def _text_lines(file: Any, path: Path, report: Flaws) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, decoded; a line that is not UTF-8 is counted."""
    rest, number = b"", 0
    while block := file.read(1 << 16):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            yield from _decoded(line, number, path, report)
        if len(rest) > TEXT_BYTES:
            report.flaw("damaged list", f"{path}:{number + 1}", "the line has no end")
            return
    if rest:
        yield from _decoded(rest, number + 1, path, report)


def _decoded(line: bytes, number: int, path: Path, report: Flaws) -> Iterator[tuple[int, str]]:
    try:
        yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        report.flaw("not UTF-8", f"{path}:{number}", f"{error}; save the list as UTF-8")


def _lines(file: Any, path: Path, report: Flaws) -> _Rows:
    for number, line in _text_lines(file, path, report):
        if line.strip():
            yield number, {"path": line}


def _json_lines(file: Any, path: Path, report: Flaws) -> _Rows:
    for number, line in _text_lines(file, path, report):
        if line.strip():
            try:
                row = as_object(line)
            except (ValueError, RecursionError) as error:
                report.flaw("damaged list", f"{path}:{number}", str(error))
                continue
            yield number, row


def _csv(file: Any, path: Path, report: Flaws) -> _Rows:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = (line + "\n" for _, line in _text_lines(file, path, report))
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    began = 1  # an open quote is noticed lines later
    try:
        for row in rows:
            began = rows.line_num + 1
            if None in row:
                detail = f"a row with too many cells: {row[None]}"
                report.flaw("damaged list", f"{path}:{rows.line_num}", detail)
            yield (
                rows.line_num,
                {name: value for name, value in row.items() if None not in (name, value)},
            )
    except csv.Error as error:
        report.flaw("damaged list", f"{path}:{began}", f"{error}; the rest is not read")


def _parquet(file: Any, path: Path, report: Flaws) -> _Rows:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="parquet", needed_for=f"reading {path}") from error
    done = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from enumerate(batch.to_pylist(), done + 1)
                done += batch.num_rows
    except pa.ArrowException as error:
        report.flaw("damaged list", f"{path}:{done}", f"{error}; the rest is not read")
