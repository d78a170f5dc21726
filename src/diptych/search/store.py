"""The truth of a collection: one SQLite file with files, contents, models and vectors.

- `files` are paths; `contents` are bytes, known by their whole SHA-256; `vectors` belong to a
  content and a model. So one vector serves many paths, a moved file keeps it, and several models
  stand side by side.
- A vector stands in the same transaction as the row that says whose it is. Write-ahead log and
  `synchronous=FULL`: what `commit` returned from survives kill -9 and a power cut.
- Ids of vectors rise and are never used again, and a vector never changes: what is derived from
  the store can be told from the ids alone (`search.matrix`).
- Paths are kept as the bytes of the file system, so one that is not UTF-8 is a path like any other.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from diptych.errors import CollectionBusyError, CollectionError
from diptych.search.records import (
    BELOW,
    DAMAGED,
    DATABASE,
    SCHEMA,
    VERSION,
    Model,
    Root,
    below,
    collection_folder,
)
from diptych.search.writer import Writer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Store"]


class Store:
    """One collection on the disk. Reading is free for all; writing takes `writer`.

    A folder that may not be written, as on a disc, is read as it is. Whoever may write it should
    not do so meanwhile: SQLite cannot keep the two apart there.

    Raises:
        CollectionError: there is none (without `create`), or the file is no store of ours.
    """

    def __init__(self, name: str | Path, *, create: bool = False):
        self.folder = collection_folder(name)
        self.path = self.folder / DATABASE
        if not create and not self.path.is_file():
            raise CollectionError(
                f"{self.folder}: there is no collection. Type: diptych index FOLDER"
            )
        try:
            if create:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._db = self._connect()
        except (OSError, *DAMAGED) as error:
            raise self.unreadable(error) from error
        try:
            with self.reading():
                self._check_version()
                self.id = self._value("id")
        except BaseException:
            self.close()
            raise

    def unreadable(self, error: Exception) -> CollectionError:
        return CollectionError(
            f"{self.path}: cannot be read ({error}). If the file is damaged, put a copy of it in "
            "its place, or delete the folder and index anew. Type: diptych index FOLDER"
        )

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open(os.fspath(self.path))
        except sqlite3.OperationalError:
            if os.access(self.folder, os.W_OK) or not os.access(self.path, os.R_OK):
                raise
        log = self.path.with_name(f"{DATABASE}-wal")
        if log.is_file() and log.stat().st_size:
            raise CollectionError(
                f"{self.folder}: may not be written, and {log.name} shows that a writer was not "
                "done when it was copied. Copy the folder to where you may write, and pass that: "
                "diptych search --collection FOLDER"
            )
        return self._open(f"file:{urllib.parse.quote(os.fsencode(self.path))}?immutable=1")

    def _open(self, address: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            address, timeout=30, isolation_level=None, check_same_thread=False,
            uri=address.startswith("file:"),
        )  # fmt: skip
        try:
            db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            db.close()
            raise
        return db

    def _check_version(self) -> None:
        if self._db.execute("PRAGMA user_version").fetchone()[0] == VERSION:
            return  # without a lock: a reader waits for nobody
        self._db.execute("BEGIN IMMEDIATE")
        try:
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise CollectionError(f"{self.path}: is a database, but no collection.")
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO collection VALUES ('id', ?)", [uuid.uuid4().hex])
                self._db.execute(f"PRAGMA user_version={VERSION}")
            elif found != VERSION:
                raise CollectionError(
                    f"{self.path}: is a store of version {found}, this Diptych reads {VERSION}. "
                    "Use the Diptych that wrote it, or index anew under another name."
                )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def another(self) -> sqlite3.Connection:
        """A second connection, which reads what is committed, whatever the first one is doing."""
        return self._connect()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def writer(self) -> Iterator[Writer]:
        """The one who may change the store; others go on reading.

        Raises:
            CollectionBusyError: another process writes; names its process id.
        """
        lock = filelock.FileLock(self.folder / "writer.lock", timeout=0)
        owner = self.folder / "writer.pid"
        try:
            lock.acquire()
        except filelock.Timeout as error:
            with contextlib.suppress(OSError):
                raise CollectionBusyError(
                    f"{self.folder}: process {owner.read_text('utf-8').strip()} is writing to this "
                    "collection. Wait for it, or stop it: nothing that it has reported is lost."
                ) from error
            raise CollectionBusyError(f"{self.folder}: is being written to. Wait.") from error
        except OSError as error:
            raise CollectionError(
                f"{self.folder}: cannot be written to ({error}). Get the right to, or keep it "
                "elsewhere: diptych index FOLDER --collection PATH"
            ) from error
        try:
            with contextlib.suppress(OSError):  # only for the message above
                owner.write_text(f"{os.getpid()}\n", "utf-8")
            yield Writer(self)
        finally:
            lock.release()

    def rows(
        self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of a question. Paths go in as `fs_path(...)` with CAST(? AS TEXT).

        Raises:
            CollectionError: the file is damaged, or another holds it for too long.
        """
        with self.reading():
            return self._each(self._db.execute(sql, values))

    def _each(self, found: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
        with self.reading():
            yield from found

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Names the file and the way out, where SQLite refuses. Raises CollectionError."""
        try:
            yield
        except DAMAGED as error:
            raise self.unreadable(error) from error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside belongs to one moment, whatever a writer does meanwhile."""
        with self.reading():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def _value(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM collection WHERE key=?", [key]).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"it has no {key}")
        return row[0]

    def roots(self) -> list[Root]:
        """The folders of this collection, sorted."""
        return [
            Root(path=path, exclude=tuple(json.loads(exclude)), hidden=bool(hidden))
            for path, exclude, hidden in self.rows("SELECT * FROM roots ORDER BY path")
        ]

    def models(self) -> list[Model]:
        """The one that answers first, then the others, those that became whole last first."""
        found = self.rows(
            "SELECT id, fingerprint, name, options, precision, embed_dim, generation, whole_at "
            "FROM models ORDER BY whole_at IS NULL, whole_at DESC, id"
        )
        names = Model.__slots__
        rows = [dict(zip(names, row, strict=True)) for row in found]
        return [Model(**row | {"options": json.loads(row["options"])}) for row in rows]

    def model(self, fingerprint: str) -> Model | None:
        return next((m for m in self.models() if m.fingerprint == fingerprint), None)

    def num_vectors(self, model: Model) -> int:
        (row,) = self.rows("SELECT count(*) FROM vectors WHERE model=?", [model.id])
        return row[0]

    def ids(self, model: Model) -> Int[np.ndarray, " n"]:
        """Ids of all vectors of a model, rising."""
        found = self.rows("SELECT id FROM vectors WHERE model=? ORDER BY id", [model.id])
        return np.fromiter((row[0] for row in found), np.int64)

    def vectors(
        self, model: Model, *, after: int = 0, at_once: int = 8192
    ) -> Iterator[tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k e"]]]:
        """(ids, float16 rows) of all vectors with an id above `after`, rising, in blocks."""
        found = self.rows(
            "SELECT id, vector FROM vectors WHERE model=? AND id>? ORDER BY id", [model.id, after]
        )
        while block := list(itertools.islice(found, at_once)):
            ids = np.array([row[0] for row in block], np.int64)
            if {len(row[1]) for row in block} != {2 * model.embed_dim}:
                raise self.unreadable(ValueError("a vector has another length"))
            flat = np.frombuffer(b"".join(row[1] for row in block), "<f2")
            yield ids, flat.reshape(len(ids), model.embed_dim)

    def num_missing(self, model: Model) -> int:
        """Contents that can be decoded and have no vector of this model."""
        (row,) = self.rows(
            "SELECT count(*) FROM contents c WHERE error IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM vectors v WHERE v.content=c.id AND v.model=?)",
            [model.id],
        )
        return row[0]

    def content_of(self, sha256: bytes, model: Model) -> int | None:
        """The id of a content that has a vector of this model; None if it has none."""
        found = self.rows(
            "SELECT c.id FROM contents c WHERE c.sha256=? AND EXISTS "
            "(SELECT 1 FROM vectors v WHERE v.content=c.id AND v.model=?)",
            [sha256, model.id],
        )
        return next((key for (key,) in found), None)

    def files_below(self, folder: str) -> Iterator[str]:
        """Known files below a folder, or the file itself, sorted."""
        found = self.rows(f"SELECT path FROM files WHERE {BELOW} ORDER BY path", below(folder))
        return (path for (path,) in found)

    def counts(self) -> dict[str, int]:
        """Files, contents, and files that failed."""
        (row,) = self.rows(
            "SELECT (SELECT count(*) FROM files), (SELECT count(*) FROM contents), "
            "(SELECT count(*) FROM files f LEFT JOIN contents c ON c.id=f.content "
            " WHERE f.error IS NOT NULL OR c.error IS NOT NULL)"
        )
        return dict(zip(("files", "contents", "failed"), row, strict=True))

    def failures(self) -> Iterator[tuple[str, str]]:
        """(path, why) of each file without a vector."""
        return self.rows(
            "SELECT f.path, coalesce(f.error, c.error) FROM files f "
            "LEFT JOIN contents c ON c.id=f.content "
            "WHERE f.error IS NOT NULL OR c.error IS NOT NULL ORDER BY f.path"
        )
