"""Where each pair of a source stands: made in one pass over a file, kept on disk, read by mapping.

- One index a file: of a tar the offset and size of each image, of a list or folder its path; the
  captions, the key, and what is known of the origin. Whatever is no pair is counted by its reason.
- An index is named after the path, size, time and inode of its file: a file that changed gets a
  new one. It carries a checksum; a damaged one is made again.
- Rows of a list with the same path are captions of one image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.captions import PROVENANCE, captions_of, opted_out, provenance
from diptych.data.columns import Columns, ColumnsWriter
from diptych.data.lists import PATH_COLUMNS, file_bytes, pick, read_rows
from diptych.data.shards import IMAGE_BYTES, IMAGES, Drop, Report, Watched, read_shard
from diptych.data.sources import Source
from diptych.errors import DataError, ShardError

__all__ = ["Index", "Unreadable", "index_file"]

log = logging.getLogger("diptych")

_VERSION = 1
_MOST_NAMES = 50  # columns and suffixes that are remembered
_MOST_ORIGINS = 1000  # licences and sources
_MOST_DROPS = 100  # that are remembered by name


class Unreadable(Exception):
    """An image whose bytes cannot be had: reason and detail, as `Report` has them."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Index:
    """The pairs of one file, with random access. Cheap to open; safe in threads.

    Attributes:
        path: of the index. file: the tar, list or folder. size: number of pairs.
        sha256: of the file, or None.
        info: what was found: "bytes", "seen", "used", "drops", "flaws", "told" (the first drops and
            flaws: reason, name, detail), "names" (columns, or suffixes of members), "origins"
            ({"licence": {...}, "source": {...}}), "without" (pairs without each of them).
    """

    def __init__(self, path: Path, file: Path, *, check: bool = False):
        self.path, self.file = path, file
        self._columns = Columns(path, check=check)
        self.info = self._columns.info
        self.sha256: str | None = self.info["sha256"]
        self.size = int(self.info["used"])
        self._first = self._columns.numbers("first")
        self._is_tar = file.suffix.lower() == ".tar"
        self._base = file if self.info["kind"] == "folder" else file.parent

    def key(self, row: int) -> str:
        """Of a tar the key of the sample; else the path of the image as it is written."""
        return self._columns.text("key", row)

    def name(self, row: int) -> str:
        """What a person calls the sample."""
        return f"{self.file}!{self.key(row)}" if self._is_tar else str(self._base / self.key(row))

    def captions(self, row: int) -> list[str]:
        """At least one, none of them empty."""
        first, last = self._first[row : row + 2].tolist()
        return [self._columns.text("caption", i) for i in range(first, last)]

    def num_captions(self, row: int) -> int:
        """How many `captions` there are."""
        return int(self._first[row + 1] - self._first[row])

    def caption(self, row: int, i: int) -> str:
        """`captions(row)[i]`."""
        return self._columns.text("caption", int(self._first[row]) + i)

    def origin(self, row: int) -> dict[str, Any]:
        """What of url, source, licence, author, retrieved and sha256 is known."""
        return json.loads(self._columns.text("origin", row) or "{}")

    def image(self, row: int) -> bytes:
        """The bytes of the image's file.

        Raises:
            Unreadable: it is not there (any more), or cannot be read.
            DataError: the tar was changed after it was indexed.
        """
        if not self._is_tar:
            data, reason, detail = file_bytes(self._base / self.key(row), IMAGE_BYTES)
            if data is None:
                raise Unreadable(reason, detail)
            return data
        offset, size = (int(self._columns.numbers(name)[row]) for name in ("offset", "size"))
        try:
            with self.file.open("rb", buffering=0) as opened:
                status = os.fstat(opened.fileno())
                if [status.st_size, status.st_mtime_ns] != self.info["identity"]:
                    raise DataError(
                        f"{self.file}: was changed while it was in use. Start again: it will be "
                        "indexed anew."
                    )
                opened.seek(offset)
                data = opened.read(size)
        except OSError as error:
            raise Unreadable("cannot be read", f"{self.file}: {error}") from error
        if len(data) < size:
            raise Unreadable("cannot be read", f"{self.file}: ends before byte {offset + size:,}")
        return data


def index_file(file: Path, folder: Path, *, source: Source, hash: bool = True) -> Index:
    """The index of a tar, a list or a folder; made if `folder` has none of its present state.

    Args:
        folder: where indexes are kept; created. Several processes may use it at once.
        hash: also take the SHA-256 of the file and compare that of each image, where one is given.
            Without it the images of a tar are sought over.

    Raises:
        DataError: not there, not readable, or a list without the columns it needs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kind = "folder" if file.is_dir() else "tar" if file.suffix.lower() == ".tar" else "list"
        identity = _identity(file)
        parts = [_VERSION, str(file.resolve()), identity, source.image_key, source.caption_key]
        path, with_hash = (_named(folder, [*parts, hashed]) for hashed in (hash, True))
        for known in dict.fromkeys((with_hash, path)):  # one with hashes serves those without
            if found := _open(known, file):
                return found
        log.info("%s: is indexed", file)
        return _Builder(file, kind, source, hash, identity).build(path)
    except ShardError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"{file}: cannot be indexed: {error.strerror or error} ({error.filename}). "
            "Check the file, and that there is room for the index."
        ) from error


def _named(folder: Path, parts: list[Any]) -> Path:
    return folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.index"


def _open(path: Path, file: Path) -> Index | None:
    try:
        return Index(path, file, check=True)
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s: the index of %s is damaged (%s) and made again", path, file, error)
        return None


def _identity(file: Path) -> list[Any]:
    """What changes with the file; of a folder, with any picture or text in it."""
    status = file.stat()
    if not file.is_dir():
        return [status.st_size, status.st_mtime_ns, status.st_ino]
    digest, size = hashlib.sha256(), 0
    for name, entry in _walk(file):
        digest.update(f"{name}\0{entry.stat().st_size}\0{entry.stat().st_mtime_ns}\n".encode())
        size += entry.stat().st_size
    return [size, digest.hexdigest(), status.st_ino]


def _walk(folder: Path, inside: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative name, entry) of the pictures and texts of a folder and those in it, sorted."""
    with os.scandir(folder / inside) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{inside}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, f"{name}/")
        elif entry.name.rpartition(".")[2].lower() in IMAGES | {"txt"} and entry.is_file():
            yield name.encode("utf-8", "backslashreplace").decode(), entry


class _Builder:
    """One pass over a file."""

    def __init__(self, file: Path, kind: str, source: Source, hash: bool, identity: list[Any]):
        self.file, self.kind, self.source, self.identity = file, kind, source, identity
        self.digest = hashlib.sha256() if hash else None
        self.told: list[Drop] = []
        self.report = Report(on_drop=self._tell)
        self.names: Counter[str] = Counter()
        self.origins: dict[str, Counter[str]] = {"licence": Counter(), "source": Counter()}
        self.without: Counter[str] = Counter()

    def _tell(self, drop: Drop) -> None:
        if len(self.told) < _MOST_DROPS:
            self.told.append(drop)

    def build(self, path: Path) -> Index:
        """Write the index to `path`."""
        self.writer = ColumnsWriter(
            path.parent, numbers=("offset", "size", "first"), texts=("key", "caption", "origin")
        )
        self.writer.numbers["first"].append(0)
        try:
            {"tar": self._tar, "list": self._list, "folder": self._folder}[self.kind]()
            self.writer.write(path, self._info())
        finally:
            self.writer.close()
        return Index(path, self.file)

    def _info(self) -> dict[str, Any]:
        hashed = self.digest is not None and self.kind != "folder"
        return {
            "kind": self.kind,
            "identity": self.identity[:2],
            "bytes": self.identity[0],
            "sha256": self.digest.hexdigest() if hashed and self.digest else None,
            "seen": self.report.seen,
            "used": self.report.used,
            "drops": dict(self.report.drops),
            "flaws": dict(self.report.flaws),
            "told": [list(drop) for drop in self.told],
            "names": dict(self.names.most_common(_MOST_NAMES)),
            "origins": {name: dict(counts) for name, counts in self.origins.items()},
            "without": dict(self.without),
        }

    def _add(
        self, key: str, texts: list[str], origin: dict[str, Any], offset: int = -1, size: int = 0
    ) -> None:
        writer = self.writer
        writer.numbers["offset"].append(offset)
        writer.numbers["size"].append(size)
        writer.add("key", key)
        total = writer.numbers["first"][-1]
        for text in texts:
            total = writer.add("caption", text)
        writer.numbers["first"].append(total)
        writer.add("origin", json.dumps(origin) if origin else "")
        for name in PROVENANCE:
            self.without[name] += name not in origin
        for name, counts in self.origins.items():
            if name in origin:
                value = str(origin[name])[:200]
                counts[value if value in counts or len(counts) < _MOST_ORIGINS else "others"] += 1

    def _why_not(
        self, meta: dict[str, Any], texts: list[str], given: int, image: bytes | None
    ) -> tuple[str, str] | None:
        """Why it is no pair: reason and detail. `given`: captions, empty ones included."""
        if opted_out(meta):
            return "opted out", ""
        if not texts:
            has = f"it has {', '.join(meta)}" if meta else "it has none, and no .txt beside it"
            return ("empty caption", "") if given else ("no caption", has)
        expected = meta.get("sha256")
        if image is not None and isinstance(expected, str) and expected:
            found = hashlib.sha256(image).hexdigest()
            if found != expected.lower():
                return "sha256 differs", f"{found} instead of {expected}"
        return None

    def _tar(self) -> None:
        hashing = self.digest is not None
        samples = read_shard(
            self.file,
            report=self.report,
            digest=self.digest,
            images=hashing,
            suffixes=self.names,
        )
        for sample in samples:
            if len(self.names) < _MOST_NAMES:
                self.names.update(f"json: {name}" for name in sample.meta)
            texts, given = captions_of(sample.text, sample.meta, self.source.caption_key)
            image = sample.image if hashing else None
            if why_not := self._why_not(sample.meta, texts, given, image):
                self.report.take_back(why_not[0], sample.key, why_not[1])
            else:
                self._add(sample.key, texts, provenance(sample.meta), sample.offset, sample.size)

    def _folder(self) -> None:
        for name, entry in _walk(self.file):
            stem, _, suffix = name.rpartition(".")
            self.names[suffix.lower()] += 1
            if suffix.lower() not in IMAGES:
                continue
            text, reason, detail = file_bytes(Path(entry.path).with_suffix(".txt"), 2**20)
            if text is None and reason != "no such file":
                self.report.flaw("text lost", f"{stem}.txt", detail)
            try:
                words = None if text is None else text.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                self.report.flaw("text lost", f"{stem}.txt", str(error))
                words = None
            texts, given = captions_of(words, {}, None)
            self._image(name, texts, given, {})

    def _image(self, key: str, texts: list[str], given: int, meta: dict[str, Any]) -> None:
        """A picture that is a file: there, of a fair size, and what its row says."""
        base = self.file if self.kind == "folder" else self.file.parent
        reads = self.digest is not None and isinstance(meta.get("sha256"), str)
        image, reason, detail = (
            file_bytes(base / key, IMAGE_BYTES) if reads else _is_there(base / key)
        )
        why_not = (reason, detail) if reason else self._why_not(meta, texts, given, image)
        if why_not:
            self.report.drop(why_not[0], key, why_not[1])
            return
        self.report.seen += 1
        self.report.used += 1
        self._add(key, texts, provenance(meta))

    def _list(self) -> None:
        """Rows to a temporary column, then each path once, in the order of its first row."""
        rows = ColumnsWriter(self.writer.folder, numbers=(), texts=("row",))
        hashes = bytearray()
        try:
            for where, row in self._rows():
                self._check_columns(row)
                column = self.source.image_key or pick(row, PATH_COLUMNS)
                key = row.pop(column, None) if column else None
                if not isinstance(key, str) or not key.strip():
                    self.report.drop("no path", where, f"it has {', '.join(row)}")
                    continue
                hashes += hashlib.blake2b(
                    key.encode("utf-8", "surrogatepass"), digest_size=16
                ).digest()
                texts, given = captions_of(None, row, self.source.caption_key)
                kept = {name: row[name] for name in (*PROVENANCE, "license") if name in row}
                if opted_out(row):
                    kept["opt_out"] = True
                rows.add("row", json.dumps([key, texts, given, kept], default=str))
            for key, texts, given, meta in _joined(rows, hashes):
                self._image(key, texts, given, meta)
        finally:
            rows.close()

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self.file.open("rb") as opened:
            watched = Watched(opened, self.digest)
            yield from read_rows(watched, self.file, self.report)
            while self.digest is not None and watched.read(1 << 20):
                pass

    def _check_columns(self, row: dict[str, Any]) -> None:
        """The keys that a source names must be there: in the first row, once."""
        first = not self.names
        if len(self.names) < _MOST_NAMES:
            self.names.update(dict.fromkeys(row, 1))
        for key in (self.source.image_key, self.source.caption_key) if first else ():
            if key is not None and key not in row:
                raise DataError(
                    f"{self.file}: has no column {key!r}, but {', '.join(row)}. "
                    "Name one of them with image_key= and caption_key=."
                )


def _is_there(path: Path) -> tuple[None, str, str]:
    """Why a picture cannot be one, without reading it; "" if it may be."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None, "no such file", str(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return None, "cannot be read", str(error)
    if not stat.S_ISREG(status.st_mode):
        return None, "not a file", "a folder, a device or a pipe"
    if status.st_size > IMAGE_BYTES:
        return None, "member too large", f"{status.st_size:,} bytes, more than {IMAGE_BYTES:,}"
    return None, "", ""


def _joined(
    rows: ColumnsWriter, hashes: bytearray
) -> Iterator[tuple[str, list[str], int, dict[str, Any]]]:
    """Each path with the captions of all its rows; the rows of a path may be far apart."""
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: rows of a path in their order
    changes = np.flatnonzero((halves[order[1:]] != halves[order[:-1]]).any(1)) + 1
    starts = np.concatenate([[0], changes]).astype(np.int64)[: len(order)]
    stops = np.concatenate([changes, [len(order)]])[: len(order)]
    for group in np.argsort(order[starts], kind="stable").tolist():
        key, texts, given, meta = "", {}, 0, {}
        for row in order[starts[group] : stops[group]].tolist():
            key, more, count, about = json.loads(rows.text("row", row))
            texts |= dict.fromkeys(more)
            given += count
            meta = {**about, **meta}
        yield key, list(texts), given, meta
