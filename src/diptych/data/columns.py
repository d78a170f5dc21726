"""A file of columns of whole numbers and texts: written in bounded memory, read by mapping it.

    column | column | ... | JSON | SHA-256 of all before it | bytes of the JSON (u64) | magic

Columns start at multiples of 64. The JSON says where each one is, and holds whatever the writer
knows beside them. A text column is its UTF-8 bytes and the ends of its texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["Columns", "ColumnsWriter"]

_MAGIC = b"DIPTYCH\x01"
_TAIL = 32 + 8 + len(_MAGIC)
_PIECE = 1 << 20


class ColumnsWriter:
    """Collects columns; text goes to temporary files in `folder`, eight bytes a cell stay."""

    def __init__(self, folder: Path, *, numbers: tuple[str, ...], texts: tuple[str, ...]):
        self.folder = folder
        self.numbers = {name: array("q") for name in numbers}
        self._ends = {name: array("q") for name in texts}
        self._texts: dict[str, IO[bytes]] = {}
        for name in texts:
            self._texts[name] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  `close`

    def add(self, name: str, text: str) -> int:
        """Append a text to a column; returns how many it has."""
        self._texts[name].write(text.encode("utf-8", "surrogatepass"))
        self._ends[name].append(self._texts[name].tell())
        return len(self._ends[name])

    def text(self, name: str, row: int) -> str:
        """A text that was added."""
        ends, file = self._ends[name], self._texts[name]
        start = file.seek(ends[row - 1] if row else 0)
        return file.read(ends[row] - start).decode("utf-8", "surrogatepass")

    def write(self, path: Path, info: dict[str, Any]) -> None:
        """Put the file in its place, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                self._fill(file, info)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _fill(self, file: IO[bytes], info: dict[str, Any]) -> None:
        digest, at, places = hashlib.sha256(), 0, {}
        for name, pieces in self._columns():
            start = at
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                at += len(piece)
            places[name] = [start, at - start]
            padding = bytes(-at % 64)
            file.write(padding)
            digest.update(padding)
            at += len(padding)
        tail = json.dumps({"columns": places, "info": info}).encode()
        digest.update(tail)
        file.write(tail + digest.digest() + len(tail).to_bytes(8, "little") + _MAGIC)

    def _columns(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        for name, numbers in (*self.numbers.items(), *self._ends.items()):
            yield (name if name in self.numbers else f"{name}.ends"), _bytes_of(numbers)
        for name, text in self._texts.items():
            text.seek(0)
            yield name, iter(lambda text=text: text.read(_PIECE), b"")

    def close(self) -> None:
        """Give up the temporary files."""
        for text in self._texts.values():
            text.close()


def _bytes_of(numbers: array) -> Iterator[bytes]:
    for start in range(0, len(numbers), _PIECE):
        yield np.asarray(numbers[start : start + _PIECE], "<i8").tobytes()


class Columns:
    """The columns of a file, mapped: opening costs a few reads, and processes share the memory.

    Raises:
        ValueError: not such a file, or cut short; with `check`, also any other damage.
        OSError: cannot be read.
    """

    def __init__(self, path: Path, *, check: bool = False):
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(length - _TAIL, 0))
            tail = file.read(_TAIL)
            size = int.from_bytes(tail[32:40], "little")
            if tail[40:] != _MAGIC or size > length - _TAIL:
                raise ValueError("no file of columns, or cut short")
            if check:
                file.seek(0)
                _check(file, length - _TAIL, tail[:32])
            file.seek(length - _TAIL - size)
            head = json.loads(file.read(size))
        self.info: dict[str, Any] = head["info"]
        self._places: dict[str, list[int]] = head["columns"]
        body = length - _TAIL - size
        if any(start + count > body for start, count in self._places.values()):
            raise ValueError("cut short")
        self._mapped = np.asarray(np.memmap(path, np.uint8, "r"))

    def numbers(self, name: str) -> np.ndarray:
        """A column of int64."""
        start, size = self._places[name]
        return self._mapped[start : start + size].view("<i8")

    def text(self, name: str, row: int) -> str:
        """A text of a column."""
        ends = self.numbers(f"{name}.ends")
        start = self._places[name][0]
        first = int(ends[row - 1]) if row else 0
        return (
            self._mapped[start + first : start + int(ends[row])]
            .tobytes()
            .decode("utf-8", "surrogatepass")
        )


def _check(file: IO[bytes], left: int, expected: bytes) -> None:
    digest = hashlib.sha256()
    while left and (piece := file.read(min(_PIECE, left))):
        digest.update(piece)
        left -= len(piece)
    if digest.digest() != expected:
        raise ValueError("its bytes are not those that were written")
