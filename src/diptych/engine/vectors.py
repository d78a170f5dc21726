"""Vectors to a file (.npz, .npy, .parquet): bounded memory, and whole or not at all."""

import importlib.util
import itertools
import json
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diptych.errors import ConfigError, MissingExtraError
from diptych.zoo.atomic import atomic_write

__all__ = ["FORMATS", "check_format", "write_vectors"]

Rows = Iterable[tuple[list[str], np.ndarray]]


def check_format(path: Path) -> None:
    """Refuse a file name whose ending names no format, or whose format lacks its package.

    Raises:
        ConfigError, MissingExtraError
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path}: the ending says the format. Use one of {', '.join(sorted(FORMATS))}."
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", extra="parquet", needed_for="Parquet")


def write_vectors(path: Path, rows: Rows, *, embed_dim: int, meta: dict[str, Any]) -> int:
    """Write batches of (keys, float32 [k, e]) as they come; returns the number of rows.
    Without any row no file is written.

    .npz holds `keys`, `vectors` and `meta` (JSON). .npy holds the vectors, and a .json beside it
    the rest. .parquet has the columns `key` and `vector`, and `meta` in its schema's metadata.

    Raises:
        ConfigError: an unknown ending.
        CheckpointError: the system refused the file; an older one of that name is intact.
    """
    check_format(path)
    filled = (batch for batch in rows if batch[0])
    first = next(filled, None)
    if first is None:
        return 0
    count = 0

    def counted() -> Rows:
        nonlocal count
        for keys, vectors in itertools.chain([first], filled):
            count += len(keys)
            yield keys, vectors

    atomic_write(path, lambda part: FORMATS[path.suffix](part, path, counted(), embed_dim, meta))
    return count


def _write_npy(part: Path, path: Path, rows: Rows, embed_dim: int, meta: dict[str, Any]) -> None:
    with part.open("wb") as file:
        keys = _vectors(file, rows, embed_dim)
    beside = json.dumps({"keys": keys, "meta": meta})
    atomic_write(
        path.with_suffix(".json"), lambda p: p.write_text(beside, encoding="utf-8") and None
    )


def _write_npz(part: Path, path: Path, rows: Rows, embed_dim: int, meta: dict[str, Any]) -> None:
    staged = part.with_suffix(".vectors")
    try:
        with staged.open("wb") as file:
            keys = _vectors(file, rows, embed_dim)
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            archive.write(staged, "vectors.npy")
            for name, array in (
                ("keys", np.array(keys, dtype=str)),
                ("meta", np.array(json.dumps(meta))),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    finally:
        staged.unlink(missing_ok=True)


def _write_parquet(
    part: Path, path: Path, rows: Rows, embed_dim: int, meta: dict[str, Any]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.float32(), embed_dim)
    schema = pa.schema(
        [("key", pa.string()), ("vector", vector)], metadata={"diptych": json.dumps(meta)}
    )
    with pq.ParquetWriter(part, schema) as writer:
        for keys, vectors in rows:
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, embed_dim)
            writer.write_batch(
                pa.record_batch([pa.array(keys, pa.string()), column], schema=schema)
            )


def _vectors(file: BinaryIO, rows: Rows, embed_dim: int) -> list[str]:
    """A .npy of rows whose number is known only at the end; returns their keys."""
    file.write(_npy_header(0, embed_dim))
    keys: list[str] = []
    for some, vectors in rows:
        keys += some
        file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
    file.seek(0)
    file.write(_npy_header(len(keys), embed_dim))
    return keys


def _npy_header(rows: int, embed_dim: int) -> bytes:
    """Version 1.0 of numpy's format, padded to 128 bytes whatever the numbers."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {embed_dim}), }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


FORMATS: dict[str, Callable[[Path, Path, Rows, int, dict[str, Any]], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
