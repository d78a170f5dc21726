"""What the store keeps: its tables, the records of them, and how paths and numbers go in."""

from __future__ import annotations

import os
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import CollectionError

if TYPE_CHECKING:
    from diptych.preprocess.metadata import Metadata

__all__ = [
    "BELOW",
    "DAMAGED",
    "DATABASE",
    "SCHEMA",
    "VERSION",
    "Content",
    "Model",
    "Root",
    "below",
    "collection_folder",
    "data_folder",
    "fs_path",
    "signed",
    "unsigned",
]

VERSION = 1
DATABASE = "collection.db"
# what SQLite raises of a damaged file; the second where its own message holds damaged text
DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)

SCHEMA = """
CREATE TABLE collection (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path TEXT PRIMARY KEY, exclude TEXT NOT NULL, hidden INTEGER NOT NULL);
CREATE TABLE models (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    options TEXT NOT NULL, precision TEXT NOT NULL, embed_dim INTEGER NOT NULL,
    generation INTEGER NOT NULL DEFAULT 0, whole_at TEXT);
CREATE TABLE contents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
    kind TEXT NOT NULL, format TEXT, width INTEGER, height INTEGER, taken TEXT, camera TEXT,
    latitude REAL, longitude REAL, error TEXT);
CREATE TABLE files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, content INTEGER REFERENCES contents(id), error TEXT) WITHOUT ROWID;
CREATE INDEX files_content ON files(content);
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL REFERENCES models(id),
    content INTEGER NOT NULL REFERENCES contents(id), moment REAL NOT NULL,
    hash INTEGER, vector BLOB NOT NULL, UNIQUE (content, model, moment));
CREATE INDEX vectors_model ON vectors(model, id);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """A folder that is kept up to date, and what below it is left out."""

    path: str
    exclude: tuple[str, ...] = ()  # patterns of fnmatch, of a name or of a whole path
    hidden: bool = False  # also names that begin with a dot


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that has vectors here, and how to load it again (`diptych.load(**options)`)."""

    id: int
    fingerprint: str
    name: str
    options: dict[str, Any]
    precision: str
    embed_dim: int
    generation: int  # rises with every change of its vectors
    whole_at: str | None  # when it last had a vector of everything; None: not yet

    def is_called(self, fingerprint: str) -> bool:
        """Whether this is its fingerprint, or the beginning that `index --status` shows."""
        return fingerprint in (self.fingerprint, self.fingerprint[:16])


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What is known of some bytes. `error` says why they cannot be decoded."""

    sha256: bytes
    size: int
    kind: str  # "image" or "video"
    metadata: Metadata | None = None
    error: str | None = None


def data_folder() -> Path:
    """$DIPTYCH_HOME, else the folder of this system for users' data; not created here."""
    if home := os.environ.get("DIPTYCH_HOME"):
        return Path(home)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "diptych"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "diptych"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "diptych"


def collection_folder(name: str | Path) -> Path:
    """The folder of a collection: a name is one of ours, a path is itself."""
    text = os.fspath(name)
    if isinstance(name, Path) or text.startswith((".", "~")) or os.path.sep in text:
        return Path(text).expanduser().absolute()
    if not text or "/" in text or "\0" in text:
        raise CollectionError(f"{text!r} is no name of a collection. Give a word, or a path.")
    return data_folder() / "collections" / text


def signed(value: int | None) -> int | None:
    """64 bits as SQLite keeps them."""
    return None if value is None else int(np.uint64(value).astype(np.int64))


def unsigned(value: int | None) -> int | None:
    """The reverse."""
    return None if value is None else int(np.int64(value).astype(np.uint64))


def fs_path(path: str) -> bytes:
    """A path as it is bound into SQL, inside CAST(? AS TEXT)."""
    return path.encode("utf-8", "surrogateescape")


BELOW = "(path=CAST(:me AS TEXT) OR (path>=CAST(:low AS TEXT) AND path<CAST(:high AS TEXT)))"


def below(folder: str) -> dict[str, bytes]:
    """The values of BELOW: a folder's own name, and the range of paths that begin with it."""
    name = folder.rstrip(os.sep)
    following = chr(ord(os.sep) + 1)
    return {
        "me": fs_path(folder),
        "low": fs_path(name + os.sep),
        "high": fs_path(name + following),
    }
