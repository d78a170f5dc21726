"""Samples of a shard: a WebDataset tar, or a list of files. Each good one once, the rest counted.

- A tar: members that follow each other and share a key are one sample. The key is the name up to
  the first dot of its last part, what follows is the suffix; "__name__" members and names without
  a suffix belong to no sample. Source: webdataset 0.2.86 and 1.0.2, `base_plus_ext`,
  `group_by_keys`.
- A list: a text file with a path a line, CSV or TSV with a header, or Parquet (extra `parquet`). A
  path may be relative to the list; it is the key.
- Nothing is written to disk; links and devices are not followed. One sample is in memory.
"""

from __future__ import annotations

import csv
import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from diptych.data.tar import Member, TarDamage, members
from diptych.errors import MissingExtraError, ShardError

__all__ = [
    "SHARD_SUFFIXES",
    "Drop",
    "Report",
    "Sample",
    "is_shard",
    "read_sample",
    "read_shard",
    "split_name",
]

SHARD_SUFFIXES = frozenset((".tar", ".txt", ".lst", ".csv", ".tsv", ".parquet"))

# of a member of a tar that is taken for the image; HEIC is decoded by the extra `photos`
_IMAGES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic"]
)
_PATH_COLUMNS = ("path", "image_path", "filepath", "file_path", "filename")
_TEXT_COLUMNS = ("caption", "text", "title")

IMAGE_BYTES = 128 * 2**20
TEXT_BYTES = 2**20
META_BYTES = 16 * 2**20


class Sample(NamedTuple):
    """One image with what belongs to it.

    Attributes:
        key: unique in its shard.
        image: the bytes of the file, not decoded.
        text: the member `.txt`, or the column caption, text or title.
        meta: the member `.json`, or the other columns.
    """

    key: str
    image: bytes
    text: str | None
    meta: dict[str, Any]


class Drop(NamedTuple):
    """Something that is not among the samples. `name`: of a sample, a member, or the shard."""

    reason: str
    name: str
    detail: str


@dataclass(slots=True)
class Report:
    """What happened to everything in a shard; whole when `read_shard` has ended.

    Attributes:
        seen: samples, good or dropped.
        used: those that were given.
        drops: dropped samples by reason: "no image", "two images", "member too large",
            "key again", "cut inside a member"; in a list also "no such file", "not a file",
            "cannot be read", "no path".
        flaws: what was lost beside samples, by reason: "damaged tar", "no end mark", "trailing
            garbage", "empty file", "damaged list", "not a file", "text lost", "metadata lost".
        on_drop: is told each drop and each flaw, with its name.
    """

    on_drop: Callable[[Drop], object] | None = None
    seen: int = 0
    used: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    flaws: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, name: str, detail: str = "") -> None:
        """Count a sample that is not given."""
        self.seen += 1
        self.drops[reason] += 1
        self._tell(reason, name, detail)

    def flaw(self, reason: str, name: str, detail: str = "") -> None:
        """Count something that was lost, though no sample was."""
        self.flaws[reason] += 1
        self._tell(reason, name, detail)

    def _tell(self, reason: str, name: str, detail: str) -> None:
        if self.on_drop is not None:
            self.on_drop(Drop(reason, name, detail))


class Digest(Protocol):
    """`hashlib.sha256()` and the like."""

    def update(self, data: bytes, /) -> object: ...


def split_name(name: str) -> tuple[str, str] | None:
    """(shard, key) of "SHARD.tar!KEY", as a sample is called where files are; None for a file."""
    head, mark, key = name.partition(".tar!")
    return (f"{head}.tar", key) if mark else None


def read_sample(name: str) -> bytes:
    """The image of "SHARD.tar!KEY"; the shard is read up to it.

    Raises:
        ShardError: no such shard, or no such sample in it.
    """
    parts = split_name(name)
    if parts is not None:
        shard, key = parts
        for sample in read_shard(shard):
            if sample.key == key:
                return sample.image
    raise ShardError(f"{name}: no such sample. Give SHARD.tar!KEY.")


def is_shard(path: str | Path) -> bool:
    """Whether the name ends like a shard's."""
    return Path(path).suffix.lower() in SHARD_SUFFIXES


def read_shard(
    path: str | Path,
    *,
    report: Report | None = None,
    digest: Digest | None = None,
    image_bytes: int = IMAGE_BYTES,
) -> Iterator[Sample]:
    """The samples of a shard, in its order, each key once.

    Args:
        path: a tar or a list; the suffix says which.
        report: is filled while samples are taken.
        digest: sees every byte of the file once, in order: its hash costs no second pass.
        image_bytes: a larger image is dropped before it is read.

    Raises:
        ShardError: no such file, a folder or a device, unreadable, or an unknown suffix.
        MissingExtraError: Parquet without the extra `parquet`.
    """
    path, report = Path(path), report or Report()
    if not is_shard(path):
        known = ", ".join(sorted(SHARD_SUFFIXES))
        raise ShardError(f"{path}: is not a shard by its name. Give a file that ends in {known}.")
    try:
        with _open(path) as file:
            source = _Watched(file, digest)
            if path.suffix.lower() == ".tar":
                samples = _of_tar(source, path, report, image_bytes)
            else:
                samples = _of_list(source, path, report, image_bytes)
            yield from _once(samples, report)
            while source.read(1 << 20):  # what a damaged or compact file left unread
                pass
    except OSError as error:
        reason = error.strerror or error
        raise ShardError(f"{path}: cannot be read: {reason}. Check the path.") from error


def _open(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ShardError(f"{path}: is a folder, a device or a pipe, not a shard. Give a file.")
    return path.open("rb")


class _Watched:
    """A file whose bytes a digest sees as they are read."""

    def __init__(self, file: BinaryIO, digest: Digest | None):
        self.file, self.digest = file, digest

    def read(self, size: int = -1, /) -> bytes:
        data = self.file.read(size)
        if self.digest is not None:
            self.digest.update(data)
        return data


def _once(samples: Iterable[Sample], report: Report) -> Iterator[Sample]:
    keys: set[str] = set()
    for sample in samples:
        if sample.key in keys:
            report.drop("key again", sample.key, "an earlier sample has this key")
            continue
        keys.add(sample.key)
        report.seen += 1
        report.used += 1
        yield sample


# --- tar ---


@dataclass(slots=True)
class _Group:
    """The members of one key as they come."""

    key: str
    image: bytes | None = None
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    why_not: tuple[str, str] | None = None  # why it is dropped: reason, detail
    others: int = 0

    def end(self, report: Report) -> Iterator[Sample]:
        """The sample, if it is one."""
        if self.why_not is None and self.image is None:
            self.why_not = "no image", f"{self.others} other members"
        if self.why_not is not None:
            report.drop(self.why_not[0], self.key, self.why_not[1])
        elif self.image is not None:
            yield Sample(self.key, self.image, self.text, self.meta)


def _of_tar(file: Any, path: Path, report: Report, image_bytes: int) -> Iterator[Sample]:
    group: _Group | None = None
    if path.stat().st_size == 0:
        report.flaw("empty file", str(path), "0 bytes")
        return
    try:
        for member in members(file):
            if member.kind == "other":
                report.flaw("not a file", member.name, "a link, a device or a sparse file")
            if member.kind != "file":
                continue
            key, suffix = _split(member.name)
            if key is None:
                continue
            if group is None or group.key != key:
                if group is not None:
                    yield from group.end(report)
                group = _Group(key)
            _take(group, member, suffix, report, image_bytes)
    except TarDamage as damage:
        if damage.cut and group is not None:
            group.why_not = damage.reason, damage.detail
        else:
            report.flaw(damage.reason, str(path), damage.detail)
    if group is not None:
        yield from group.end(report)


def _split(name: str) -> tuple[str | None, str]:
    """(key, suffix) of a member's name; no key: it belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    special = any(
        part.startswith("__") and part.endswith("__") and len(part) > 3 for part in name.split("/")
    )
    if not stem or not dot or special:
        return None, ""
    return f"{folder}{slash}{stem}", suffix.lower()


def _take(group: _Group, member: Member, suffix: str, report: Report, image_bytes: int) -> None:
    """Put a member where it belongs. What is not needed is not read into memory."""
    if suffix in _IMAGES:
        if group.image is not None:
            group.why_not = "two images", f"the second is {member.name}"
        elif member.size > image_bytes:
            detail = f"{member.name} has {member.size:,} bytes, more than {image_bytes:,}"
            group.why_not = "member too large", detail
        else:
            group.image = member.read()
        return
    group.others += 1
    lost = {"txt": "text lost", "json": "metadata lost"}.get(suffix)
    if lost is None:
        return
    limit = TEXT_BYTES if suffix == "txt" else META_BYTES
    if member.size > limit:
        report.flaw(lost, member.name, f"{member.size:,} bytes, more than {limit:,}")
        return
    data = member.read()
    try:
        text = data.decode("utf-8-sig")
        if suffix == "txt":
            group.text = text.strip()
        else:
            group.meta = _object(text)
    except (ValueError, RecursionError) as error:
        report.flaw(lost, member.name, str(error))


def _object(text: str) -> dict[str, Any]:
    """A JSON object. NaN and Infinity, which JSON does not have and pandas writes, are None."""
    found = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__} where an object should be")
    return found


# --- lists ---


def _of_list(file: Any, path: Path, report: Report, image_bytes: int) -> Iterator[Sample]:
    rows = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv}.get(path.suffix.lower(), _lines)
    for number, row in enumerate(rows(file, path, report), 1):
        column = next((name for name in _PATH_COLUMNS if isinstance(row.get(name), str)), None)
        if column is None or not row[column].strip():
            known = ", ".join(_PATH_COLUMNS)
            report.drop("no path", f"{path}: row {number}", f"none of the columns {known} has one")
            continue
        key = row.pop(column)
        text_column = next((name for name in _TEXT_COLUMNS if isinstance(row.get(name), str)), None)
        text = None if text_column is None else row.pop(text_column)
        image, why_not, detail = _bytes(path.parent / key, image_bytes)
        if image is None:
            report.drop(why_not, key, detail)
        else:
            yield Sample(key, image, text, row)


def _bytes(path: Path, limit: int) -> tuple[bytes | None, str, str]:
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


def _text_lines(file: Any, path: Path, report: Report) -> Iterator[str]:
    """Lines without their ends, decoded; a line that is not UTF-8 is counted."""
    rest, number = b"", 0
    while block := file.read(1 << 16):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            yield from _decoded(line, f"{path}: line {number}", report)
        if len(rest) > TEXT_BYTES:
            report.flaw("damaged list", str(path), f"line {number + 1} has no end")
            return
    if rest:
        yield from _decoded(rest, f"{path}: line {number + 1}", report)


def _decoded(line: bytes, where: str, report: Report) -> Iterator[str]:
    try:
        yield line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        report.flaw("damaged list", where, str(error))


def _lines(file: Any, path: Path, report: Report) -> Iterator[dict[str, Any]]:
    for line in _text_lines(file, path, report):
        if line.strip():
            yield {"path": line}


def _csv(file: Any, path: Path, report: Report) -> Iterator[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = (line + "\n" for line in _text_lines(file, path, report))
    try:
        for row in csv.DictReader(lines, delimiter=delimiter, strict=True):
            if None in row:
                report.flaw("damaged list", f"{path}", f"a row with too many cells: {row[None]}")
            yield {name: value for name, value in row.items() if name is not None and value}
    except csv.Error as error:
        report.flaw("damaged list", str(path), str(error))


def _parquet(file: Any, path: Path, report: Report) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="parquet", needed_for=f"reading {path}") from error
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        report.flaw("damaged list", str(path), str(error))
