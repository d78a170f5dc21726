"""Vectors that other tools made: clip-retrieval, rclip, and our own bulk output, in one shape.

- What such a file says is not believed: sizes, dimensions and numbers are checked, pickles are not
  read, databases are opened read-only and never migrated.
- Where no fingerprint tells which model made them, `check_model` encodes some of the files again.
- rclip and clip-retrieval do not turn photographs upright: vectors of files whose EXIF orientation
  is not 1 are other vectors than ours, so `usable` leaves them out.

Formats: rclip 3.3.0, `db.py` (versions 3 and 4); clip-retrieval 2.45.0, `writer.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from diptych.engine.bulk import read_manifest
from diptych.errors import CollectionError, ConfigError, MissingExtraError
from diptych.preprocess.open import FORMATS, PILLOW_ERRORS, quiet
from diptych.preprocess.pixels import orientation
from diptych.zoo import sha256_of

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = [
    "Batches",
    "Check",
    "Foreign",
    "check_model",
    "read_bulk",
    "read_clip_retrieval",
    "read_rclip",
    "usable",
]

_ROWS = 1024  # at once
_LARGEST_DIM = 16384
_LEAST = 0.999  # median cosine: the same model by another runtime, in float16
_SAMPLE = 32


class Foreign(NamedTuple):
    """One vector with what its tool knew of the image.

    Attributes:
        path: of the image; a key, where the image was in a shard.
        vector: float32 [e], unit length.
        size, mtime: bytes, and seconds since 1970, of the file that was encoded.
        sha256: of its bytes, 64 digits.
        meta: the rest.
    """

    path: str
    vector: np.ndarray
    size: int | None
    mtime: float | None
    sha256: str | None
    meta: dict[str, Any]


Batches = Iterator[tuple[list[Foreign], np.ndarray]]


class Check(NamedTuple):
    """How the vectors of some files compare with the encoder's own."""

    num_files: int
    median: float
    lowest: float


def read_clip_retrieval(
    folder: str | Path, *, base: str | Path = ".", skipped: Counter[str] | None = None
) -> Batches:
    """Image vectors of `clip-retrieval inference`: (rows, float32 [k e]), in order.

    Args:
        folder: that holds `img_emb` and `metadata`.
        base: what the paths in it are relative to, if they are.
        skipped: counts rows without a usable vector, by reason.

    Raises:
        CollectionError: no such folder, a file that is damaged or that lacks its partner.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = _pyarrow("reading clip-retrieval's metadata")
    folder, skipped = Path(folder), _counter(skipped)
    dim: int | None = None
    for vectors_path, rows_path in _partitions(folder):
        vectors = _load(vectors_path, dim)
        dim = vectors.shape[1]
        with _damaged(rows_path, pa.ArrowException, OSError), pq.ParquetFile(rows_path) as table:
            if table.metadata.num_rows != len(vectors):
                raise CollectionError(
                    f"{rows_path}: has {table.metadata.num_rows} rows, {vectors_path.name} has "
                    f"{len(vectors)} vectors. Run clip-retrieval again for this part."
                )
            if "image_path" not in table.schema_arrow.names:
                raise CollectionError(
                    f"{rows_path}: has no column image_path, but {table.schema_arrow.names}. "
                    "Run clip-retrieval inference with --enable_image True."
                )
            start = 0
            for batch in table.iter_batches(batch_size=_ROWS):
                some = np.asarray(vectors[start : start + len(batch)], np.float32)
                start += len(batch)
                records = [_of_clip_retrieval(row, Path(base)) for row in batch.to_pylist()]
                yield from _batch(records, some, skipped)


def read_rclip(database: str | Path, *, skipped: Counter[str] | None = None) -> Batches:
    """Vectors of rclip's database: (rows, float32 [k e]). It is opened read-only.

    Raises:
        CollectionError: no such file, not rclip's, damaged, or in use by a process that died.
    """
    path, skipped = Path(database), _counter(skipped)
    if not path.is_file():
        raise CollectionError(f"{path}: no such file. rclip's is ~/.local/share/rclip/db.sqlite3")
    address = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
            db.text_factory = os.fsdecode  # paths
            db.execute("PRAGMA query_only=ON")
            db.execute("PRAGMA trusted_schema=OFF")
            fits = f"typeof(vector)='blob' AND length(vector) BETWEEN 4 AND {4 * _LARGEST_DIM}"
            what = "deleted IS NULL AND typeof(filepath)='text'"
            (bad,) = db.execute(
                f"SELECT count(*) FROM images WHERE NOT ({what} AND {fits})"
            ).fetchone()
            if bad:
                skipped["deleted or damaged"] += bad
            rows = db.execute(
                f"SELECT filepath, vector, size, modified_at FROM images WHERE {what} AND {fits}"
            )
            size = None
            while some := rows.fetchmany(_ROWS):
                size = len(some[0][1]) if size is None else size
                even = [row for row in some if len(row[1]) == size and size % 4 == 0]
                if len(even) < len(some):
                    skipped["of another length"] += len(some) - len(even)
                vectors = np.array([np.frombuffer(row[1], "<f4") for row in even], np.float32)
                yield from _batch([_of_rclip(row) for row in even], vectors, skipped)
    except sqlite3.Error as error:
        raise CollectionError(
            f"{path}: cannot be read as rclip's database ({error}). If rclip was stopped while it "
            "wrote, run it once."
        ) from error


def read_bulk(
    folder: str | Path, *, fingerprint: str | None = None, skipped: Counter[str] | None = None
) -> Batches:
    """Vectors of `diptych embed SHARDS --out FOLDER`: (rows, float32 [k e]), shard by shard.

    Where the shard was a list of files, `path` is the file's; of a tar it is "SHARD.tar!KEY".

    Args:
        fingerprint: of the encoder that they must be of.

    Raises:
        CollectionError: no finished shard there, or a file that is not as it was written.
        ConfigError: vectors of another model.
        MissingExtraError: pyarrow is not installed.
    """
    _, pq = _pyarrow("reading rows.parquet")
    folder, skipped, found = Path(folder), _counter(skipped), False
    for part in sorted(path for path in folder.glob("*") if not path.name.startswith(".")):
        manifest = read_manifest(part)
        if manifest is None:
            continue
        found = True
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise ConfigError(
                f"{part}: holds vectors of {manifest.model} ({manifest.fingerprint[:12]}), not of "
                f"this model ({fingerprint[:12]}). Give the --model and --mode that made them."
            )
        for name, sha256 in manifest.files.items():
            if Path(name).name != name or sha256_of(part / name) != sha256:
                raise CollectionError(
                    f"{part / name}: is damaged. Type: rm -r {part}  and embed again"
                )
        source = Path(manifest.input.path).absolute()
        where = f"{source}!" if source.suffix.lower() == ".tar" else f"{source.parent}{os.sep}"
        vectors, start = _load(part / "vectors.npy", manifest.embed_dim), 0
        with pq.ParquetFile(part / "rows.parquet") as table:
            for batch in table.iter_batches(batch_size=_ROWS):
                some = np.asarray(vectors[start : start + len(batch)], np.float32)
                start += len(batch)
                yield from _batch(
                    [_of_bulk(row, where) for row in batch.to_pylist()], some, skipped
                )
    if not found:
        raise CollectionError(f"{folder}: no finished shards there. Type: diptych embed --help")


def usable(
    batches: Batches, *, skipped: Counter[str] | None = None, turned: bool = False
) -> Batches:
    """The rows whose file is there, and is still the one that was encoded.

    Args:
        skipped: counts the others: "missing", "changed", "turned" (its EXIF orientation is not 1),
            "no image"; they are to be embedded anew.
        turned: the tool turned photographs upright, as we do: those are taken as well.
    """
    skipped = _counter(skipped)
    for rows, vectors in batches:
        reasons = [_why_not(row, turned=turned) for row in rows]
        skipped.update(reason for reason in reasons if reason is not None)
        keep = [i for i, reason in enumerate(reasons) if reason is None]
        if keep:
            yield [rows[i] for i in keep], vectors[keep]


def check_model(
    encoder: Encoder, batches: Batches, *, source: str, num_files: int = _SAMPLE, seed: int = 0
) -> Check:
    """Whether the vectors are of this encoder: files are encoded again and compared.

    Args:
        batches: of `usable`; read to the end, so that the sample is one of all rows.
        source: what errors call it.
        num_files: at most so many, drawn at random.

    Returns:
        The cosines between their vectors and ours.

    Raises:
        ConfigError: another dimension, no file to compare, or a median cosine below 0.999.
    """
    dim, rng, sample, seen = encoder.config.embed_dim, random.Random(seed), [], 0
    for rows, vectors in batches:
        if vectors.shape[1] != dim:
            raise ConfigError(
                f"{source}: its vectors have {vectors.shape[1]} numbers, this model's {dim}. "
                "Give the --model that made them."
            )
        for row in rows:  # reservoir sampling: Vitter 1985, algorithm R
            seen += 1
            place = len(sample) if len(sample) < num_files else rng.randrange(seen)
            if place < num_files:
                sample[place : place + 1] = [row]
    found = encoder.encode_image([row.path for row in sample], on_error="nan") if sample else []
    pairs = zip(sample, found, strict=True)
    cosines = np.array([row.vector @ ours for row, ours in pairs if np.isfinite(ours).all()])
    if not len(cosines):
        raise ConfigError(
            f"{source}: none of its files is here to compare with, so nothing tells which model "
            "made the vectors. Give the folder that its paths are relative to."
        )
    check = Check(len(cosines), float(np.median(cosines)), float(cosines.min()))
    if check.median < _LEAST:
        raise ConfigError(
            f"{source}: its vectors are another model's: over {check.num_files} files the median "
            f"cosine to ours is {check.median:.4f}, not {_LEAST} or more. "
            "Give the --model that made them."
        )
    return check


def _batch(
    rows: list[tuple[str | None, int | None, float | None, str | None, dict[str, Any]]],
    vectors: np.ndarray,
    skipped: Counter[str],
) -> Batches:
    """Rows with unit vectors; those that have no path or are no direction are counted."""
    if not rows:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    good = np.isfinite(norms) & (norms > 0)
    named = np.array([row[0] is not None for row in rows])
    if not good.all():
        skipped["not a vector"] += int((~good).sum())
    if not named.all():
        skipped["no path"] += int((good & ~named).sum())
    keep = np.flatnonzero(good & named)
    if len(keep):
        units = (vectors[keep] / norms[keep, None]).astype(np.float32)
        pairs = zip((rows[i] for i in keep), units, strict=True)
        yield [Foreign(row[0] or "", unit, *row[1:]) for row, unit in pairs], units


def _of_clip_retrieval(row: dict[str, Any], base: Path) -> tuple:
    path = row.pop("image_path")
    named = isinstance(path, str) and path
    return (str(base / path) if named else None), None, None, None, row


def _of_rclip(row: tuple) -> tuple:
    path, _, size, mtime = row
    numbers = isinstance(size, int) and isinstance(mtime, int | float)
    return path, (size if numbers else None), (mtime if numbers else None), None, {}


def _of_bulk(row: dict[str, Any], where: str) -> tuple:
    key = row.pop("key")
    path = key if os.path.isabs(key) else where + key  # noqa: PTH117
    meta = json.loads(row.pop("meta")) | {k: row[k] for k in ("caption", "width", "height")}
    return path, None, None, row["sha256"], meta


def _why_not(row: Foreign, *, turned: bool) -> str | None:
    try:
        status = os.stat(row.path)  # noqa: PTH116  a name that is none raises here as well
    except (OSError, ValueError):
        return "missing"
    if row.size is not None and row.size != status.st_size:
        return "changed"
    if row.mtime is not None and abs(row.mtime - status.st_mtime) > 1e-3:
        return "changed"
    if not stat.S_ISREG(status.st_mode):
        return "missing"
    if turned:
        return None
    try:
        with quiet(), Image.open(row.path, formats=FORMATS) as image:
            return None if orientation(image) == 1 else "turned"
    except PILLOW_ERRORS:
        return "no image"


def _partitions(folder: Path) -> list[tuple[Path, Path]]:
    """(vectors, rows) of clip-retrieval's parts, in the order of their numbers."""
    found = []
    for path in (folder / "img_emb").glob("img_emb_*.npy"):
        number = re.fullmatch(r"img_emb_(\d+)\.npy", path.name)
        if number:
            found.append(
                (int(number[1]), path, folder / "metadata" / f"metadata_{number[1]}.parquet")
            )
    if not found:
        raise CollectionError(
            f"{folder}: no img_emb/img_emb_0.npy there. Give the --output_folder of "
            "clip-retrieval inference."
        )
    for _, path, rows in found:
        if not rows.is_file():
            raise CollectionError(
                f"{rows}: is not there, but {path.name} is. Run clip-retrieval again for this part."
            )
    return [(path, rows) for _, path, rows in sorted(found)]


def _load(path: Path, dim: int | None) -> np.ndarray:
    """A mapped array of floats [n e]; nothing of it is read yet."""
    with _damaged(path, ValueError, OSError, EOFError):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    good = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind == "f"
    if not good or not 0 < array.shape[1] <= _LARGEST_DIM or dim not in (None, array.shape[1]):
        shape = (
            f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "no array"
        )
        wanted = "[n, e]" if dim is None else f"[n, {dim}]"
        raise CollectionError(f"{path}: holds {shape}, not floats {wanted}. Make it again.")
    return array


@contextlib.contextmanager
def _damaged(path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except CollectionError:
        raise
    except errors as error:
        raise CollectionError(f"{path}: cannot be read ({error}). Make it again.") from error


def _pyarrow(needed_for: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="parquet", needed_for=needed_for) from error
    return pa, pq


def _counter(skipped: Counter[str] | None) -> Counter[str]:
    return Counter() if skipped is None else skipped
