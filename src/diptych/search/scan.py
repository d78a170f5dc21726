"""Which files of a folder are new, changed, moved or gone, from their names and dates alone.

- A file whose size, time of change and time of inode change are as they were is the same file. The
  third makes a replaced file with a forged date be read again; `chmod` costs a reading, no more.
- What is seen is kept in a temporary table and compared by SQL: a million files in little memory.
- What could not be listed is not taken for gone, nor is a whole folder that suddenly has no files:
  a drive that is not mounted looks like that. What lies in a folder that was indexed by itself goes
  when that one is looked at, not with a folder around it.
- Only regular files are files: to read a pipe would mean to wait for ever.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib.util
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from diptych.engine.stream import (
    HEIF_SUFFIXES,
    RAW_SUFFIXES,
    VIDEO_SUFFIXES,
    readable_suffixes,
)
from diptych.search.records import BELOW, Model, Root, below, fs_path
from diptych.search.store import Store

__all__ = ["Found", "scan", "todo"]

_AT_ONCE = 4096
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # since it was listed, or a link to nothing
_TABLE = """
CREATE TEMP TABLE IF NOT EXISTS seen (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER) WITHOUT ROWID
"""
_CHANGED = """
FROM temp.seen s LEFT JOIN files f USING (path) LEFT JOIN contents c ON c.id=f.content
WHERE f.path IS NULL OR f.size<>s.size OR f.mtime_ns<>s.mtime_ns OR f.ctime_ns<>s.ctime_ns
  OR (:retry AND (f.error IS NOT NULL OR c.error IS NOT NULL))
  OR (f.error IS NULL AND c.error IS NULL AND NOT EXISTS (
      SELECT 1 FROM vectors v WHERE v.content=f.content AND v.model=:model))
"""


@dataclass(kw_only=True, slots=True)
class Found:
    """What a scan came upon."""

    num_files: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # folder or file: why
    empty: list[str] = field(default_factory=list)  # roots without any file, that had some
    left_out: dict[str, int] = field(default_factory=dict)  # suffix: files that need an extra
    num_todo: int = 0
    gone: list[str] = field(default_factory=list)


def scan(store: Store, roots: list[Root], *, model: Model, retry: bool) -> Found:
    """Look at every name below `roots`; `todo` then gives the files that need work.

    retry: also files that failed and did not change.
    """
    with store.reading():
        return _scan(store, roots, model=model, retry=retry)


def _scan(store: Store, roots: list[Root], *, model: Model, retry: bool) -> Found:
    found, suffixes = Found(), _taken()
    db = store._db
    db.execute(_TABLE)
    db.execute("DELETE FROM temp.seen")
    others = (HEIF_SUFFIXES | RAW_SUFFIXES | VIDEO_SUFFIXES) - suffixes
    for root in roots:
        number, rows = 0, []
        for path, suffix in _walk(root, found):
            if suffix in others:
                found.left_out[suffix] = found.left_out.get(suffix, 0) + 1
                number += 1
            if suffix not in suffixes:
                continue
            try:
                stat = os.stat(path)  # noqa: PTH116  a Path for each of a million files is slow
            except OSError as error:
                if error.errno not in _GONE:
                    found.unreadable[path] = error.strerror or str(error)
                continue
            if not modes.S_ISREG(stat.st_mode):
                continue
            rows.append([fs_path(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
            number += 1
            if len(rows) == _AT_ONCE:
                _keep(db, rows)
                rows = []
        _keep(db, rows)
        if not number and any(store.files_below(root.path)):
            found.empty.append(root.path)
    # each once, though a folder lies in another
    found.num_files = db.execute("SELECT count(*) FROM temp.seen").fetchone()[0]
    values = {"model": model.id, "retry": retry}
    found.num_todo = db.execute(f"SELECT count(*) {_CHANGED}", values).fetchone()[0]
    paths = {root.path for root in roots}
    elsewhere = [root.path for root in store.roots() if root.path not in paths]
    gone: set[str] = set()
    for root in roots:
        if root.path not in found.empty:
            kept = [*found.unreadable, *found.empty, *elsewhere]
            kept = [path for path in kept if not root.path.startswith(_inside(path))]
            gone.update(_gone(store, root.path, kept))
    # what was indexed with an extra that is not here today has not gone
    gone = {path for path in gone if os.path.splitext(path)[1].lower() not in others}  # noqa: PTH122
    found.gone = sorted(gone)
    return found


def todo(store: Store, *, model: Model, retry: bool) -> Iterator[str]:
    """The files of the last scan that need work, by path."""
    values = {"model": model.id, "retry": retry}
    # all names at once: the question must not be open while answers are being written
    rows = store.rows(f"SELECT s.path {_CHANGED} ORDER BY s.path", values)
    yield from [path for (path,) in rows]


def _keep(db, rows: list[list]) -> None:
    db.execute("BEGIN")
    db.executemany("INSERT OR REPLACE INTO temp.seen VALUES (CAST(? AS TEXT), ?, ?, ?)", rows)
    db.execute("COMMIT")


def _walk(root: Root, found: Found) -> Iterator[tuple[str, str]]:
    """(path, suffix) of each file below a root that is not excluded."""

    def failed(error: OSError) -> None:
        found.unreadable[str(error.filename)] = error.strerror or str(error)

    def kept(name: str, path: str) -> bool:
        if not root.hidden and name.startswith("."):
            return False
        return not any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(path, p) for p in root.exclude)

    if os.path.isfile(root.path):  # noqa: PTH113
        yield root.path, os.path.splitext(root.path)[1].lower()  # noqa: PTH122
        return
    for folder, folders, names in os.walk(root.path, onerror=failed):
        folders[:] = sorted(n for n in folders if kept(n, os.path.join(folder, n)))  # noqa: PTH118
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            if kept(name, path):
                yield path, os.path.splitext(name)[1].lower()  # noqa: PTH122


def _inside(folder: str) -> str:
    return os.path.join(folder, "")  # noqa: PTH118


def _gone(store: Store, root: str, kept: list[str]) -> list[str]:
    """Files that were known below a root and were not seen, but for those at or below `kept`."""
    found = store.rows(
        f"SELECT path FROM files WHERE {BELOW} "
        "AND path NOT IN (SELECT path FROM temp.seen) ORDER BY path",
        below(root),
    )
    names, folders = set(kept), tuple(map(_inside, kept))
    return [path for (path,) in found if path not in names and not path.startswith(folders)]


def _taken() -> frozenset[str]:
    """Suffixes of what can be read with what is installed: pictures, and videos."""
    videos = VIDEO_SUFFIXES if importlib.util.find_spec("av") is not None else frozenset()
    return readable_suffixes() | videos
