"""Vectors of pictures, kept beside a model's fingerprint, so that no picture is encoded twice.

One SQLite file a model and precision, by default in the cache. A picture is known by its path,
size and time of change; a batch is one transaction, so what was encoded before a kill is kept.

- Vectors are float32 as they came: a second run gives the same numbers.
- This is a cache, not the truth: `diptych search` has its own store, which knows files by content.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.engine.stream import Batch
from diptych.errors import ConfigError, ImageError
from diptych.zoo.cache import cache_folder

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = ["Kept", "kept_path", "stream"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, vector BLOB NOT NULL)
    WITHOUT ROWID;
"""
_AT_ONCE = 512  # pictures that are looked up, encoded and written together


def kept_path(encoder: Encoder) -> Path:
    """Where this model's vectors are kept unless another file is named."""
    return cache_folder() / "vectors" / f"{encoder.fingerprint[:16]}-{encoder.precision}.db"


class Kept:
    """The file of kept vectors; a context manager.

    Attributes:
        num_encoded: pictures that `stream` had to encode.

    Raises:
        ConfigError: the file cannot be opened, is none of ours, or holds another model's vectors.
    """

    def __init__(self, path: Path, *, encoder: Encoder):
        self.path, self.num_encoded = path, 0
        self._embed_dim = encoder.config.embed_dim
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
            for key, value in (
                ("fingerprint", encoder.fingerprint),
                ("precision", encoder.precision),
            ):
                self._db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", [key, value])
                query = "SELECT value FROM about WHERE key=?"
                (found,) = self._db.execute(query, [key]).fetchone()
                if found != value:
                    raise ConfigError(
                        f"{path}: holds vectors of another model ({key} {found[:16]}, this one has "
                        f"{value[:16]}). Name another file, or none: --vectors FILE"
                    )
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error
        except ConfigError:
            self._db.close()
            raise

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self.path}: cannot be used to keep vectors ({error}). Delete it if it is damaged, "
            "or name another file: --vectors FILE"
        )

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()

    def find(self, facts: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
        """The vectors [e] of those paths whose size and time of change are still the same.

        facts: path -> (bytes, nanoseconds), as `facts_of` gives them.
        """
        found: dict[str, np.ndarray] = {}
        try:
            for path, known in facts.items():
                row = self._db.execute(
                    "SELECT vector FROM vectors WHERE path=? AND size=? AND mtime_ns=?",
                    [os.fsencode(path), *known],
                ).fetchone()
                if row is not None and len(row[0]) == 4 * self._embed_dim:
                    found[path] = np.frombuffer(row[0], "<f4")
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return found

    def add(self, facts: dict[str, tuple[int, int]], vectors: dict[str, np.ndarray]) -> None:
        """Keep the vectors [e] of some paths, all or none of them."""
        rows = [
            (os.fsencode(path), *facts[path], np.ascontiguousarray(vector, "<f4").tobytes())
            for path, vector in vectors.items()
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from error


def facts_of(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds. Raises OSError."""
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def stream(encoder: Encoder, images: Iterable[Any], kept: Kept | None) -> Iterator[Batch]:
    """`Encoder.stream`, but what is kept is not encoded again; in the order of `images`.

    Args:
        images: paths, or what else `Encoder.encode_image` takes, which is never kept.
        kept: where vectors are looked up and put; None: nowhere.

    Yields:
        Batches with float32 numpy vectors. Keys are the paths as given; of anything else the
        position in `images`.
    """
    numbered = enumerate(images)
    while some := list(islice(numbered, _AT_ONCE)):
        yield _batch(encoder, some, kept)


def _batch(encoder: Encoder, some: Sequence[tuple[int, Any]], kept: Kept | None) -> Batch:
    keys = [str(image) if isinstance(image, str | Path) else i for i, image in some]
    whole: dict[Any, str] = {}
    facts: dict[str, tuple[int, int]] = {}
    known: dict[str, np.ndarray] = {}
    if kept is not None:
        for key in keys:
            if isinstance(key, str):
                whole[key] = os.path.abspath(key)  # noqa: PTH100  links stay links
                # of a file that is not there the encoder will say so
                with contextlib.suppress(OSError, ValueError):
                    facts[whole[key]] = facts_of(whole[key])
        known = kept.find(facts)
    vectors = {key: known[path] for key, path in whole.items() if path in known}
    errors: dict[Any, ImageError] = {}
    # a dict: a path that stands twice is encoded once
    new = {key: image for key, (_, image) in zip(keys, some, strict=True) if key not in vectors}
    for batch in encoder.stream_pairs(new.items()):
        rows = batch.vectors.cpu().numpy()
        vectors |= dict(zip(batch.keys, rows, strict=True))
        errors |= batch.errors
    if kept is not None:
        kept.num_encoded += len(new) - len(errors)
        kept.add(facts, {whole[k]: vectors[k] for k in new if k in vectors and k in whole})
    done = [key for key in keys if key in vectors]
    found = np.empty((len(done), encoder.config.embed_dim), np.float32)
    for row, key in zip(found, done, strict=True):
        row[:] = vectors[key]
    return Batch(done, found, errors)
