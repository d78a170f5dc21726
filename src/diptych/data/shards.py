"""Samples of a shard: a WebDataset tar, or a list of files. Each good one once, the rest counted.

- A tar: members that follow each other and share a key are one sample. The key is the name up to
  the first dot of its last part, what follows is the suffix; "__name__" members and names without
  a suffix belong to no sample. Source: webdataset 0.2.86 and 1.0.2, `base_plus_ext`,
  `group_by_keys`.
- A list: a text file with a path a line, CSV or TSV with a header, JSON lines, or Parquet (extra
  `parquet`). A path may be relative to the list; it is the key.
- Nothing is written to disk; links and devices are not followed. One sample is in memory.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from diptych.data.lists import (
    PATH_COLUMNS,
    TEXT_BYTES,
    TEXT_COLUMNS,
    as_object,
    file_bytes,
    pick,
    read_rows,
)
from diptych.data.tar import Member, TarDamage, members
from diptych.errors import ShardError

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

SHARD_SUFFIXES = frozenset((".tar", ".txt", ".lst", ".csv", ".tsv", ".jsonl", ".parquet"))

# of a member of a tar that is taken for the image; HEIC is decoded by the extra `photos`
IMAGES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic"]
)

IMAGE_BYTES = 128 * 2**20
META_BYTES = 16 * 2**20


class Sample(NamedTuple):
    """One image with what belongs to it.

    Attributes:
        key: unique in its shard.
        image: the bytes of the file, not decoded.
        text: the member `.txt`, or the column caption, text or title.
        meta: the member `.json`, or the other columns.
        offset, size: where the image's bytes are in a tar; (-1, 0) in a list.
    """

    key: str
    image: bytes
    text: str | None
    meta: dict[str, Any]
    offset: int = -1
    size: int = 0


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
            garbage", "empty file", "damaged list", "not UTF-8", "not a file", "text lost",
            "metadata lost".
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

    def take_back(self, reason: str, name: str, detail: str = "") -> None:
        """Count a sample that was given and then found unfit."""
        self.used -= 1
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
    images: bool = True,
    suffixes: Counter[str] | None = None,
) -> Iterator[Sample]:
    """The samples of a shard, in its order, each key once.

    Args:
        path: a tar or a list; the suffix says which.
        report: is filled while samples are taken.
        digest: sees every byte of the file once, in order: its hash costs no second pass.
        image_bytes: a larger image is dropped before it is read.
        images: False leaves the images of a tar empty and, without a digest, seeks over them.
        suffixes: of the members of a tar; is filled while samples are taken.

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
            source = Watched(file, digest)
            if path.suffix.lower() == ".tar":
                seek = digest is None and not images
                length = path.stat().st_size if seek else None
                found = members(file if seek else cast(BinaryIO, source), length=length)
                taker = _Taker(
                    report, image_bytes, images, Counter() if suffixes is None else suffixes
                )
                samples = _of_tar(found, path, taker)
            else:
                samples = _of_list(source, path, report, image_bytes)
            yield from _once(samples, report)
            while digest is not None and source.read(
                1 << 20
            ):  # what a damaged or compact file left unread
                pass
    except OSError as error:
        reason = error.strerror or error
        raise ShardError(f"{path}: cannot be read: {reason}. Check the path.") from error


def _open(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ShardError(f"{path}: is a folder, a device or a pipe, not a shard. Give a file.")
    return path.open("rb")


class Watched:
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
    offset: int = -1
    size: int = 0
    why_not: tuple[str, str] | None = None  # why it is dropped: reason, detail
    others: int = 0

    def end(self, report: Report) -> Iterator[Sample]:
        """The sample, if it is one."""
        if self.why_not is None and self.image is None:
            self.why_not = "no image", f"{self.others} other members"
        if self.why_not is not None:
            report.drop(self.why_not[0], self.key, self.why_not[1])
        elif self.image is not None:
            yield Sample(self.key, self.image, self.text, self.meta, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class _Taker:
    """How members are taken: where faults are counted, and which bytes are wanted."""

    report: Report
    image_bytes: int
    images: bool
    suffixes: Counter[str]


def _of_tar(found: Iterable[Member], path: Path, taker: _Taker) -> Iterator[Sample]:
    group: _Group | None = None
    report = taker.report
    if path.stat().st_size == 0:
        report.flaw("empty file", str(path), "0 bytes")
        return
    try:
        for member in found:
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
            _take(group, member, suffix, taker)
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


def _take(group: _Group, member: Member, suffix: str, taker: _Taker) -> None:
    """Put a member where it belongs. What is not needed is not read into memory."""
    taker.suffixes[suffix] += 1
    report = taker.report
    if suffix in IMAGES:
        if group.image is not None:
            group.why_not = "two images", f"the second is {member.name}"
        elif member.size > taker.image_bytes:
            detail = f"{member.name} has {member.size:,} bytes, more than {taker.image_bytes:,}"
            group.why_not = "member too large", detail
        else:
            group.offset, group.size = member.offset, member.size
            group.image = member.read() if taker.images else b""
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
            group.meta = as_object(text)
    except (ValueError, RecursionError) as error:
        report.flaw(lost, member.name, str(error))


# --- lists ---


def _of_list(file: Any, path: Path, report: Report, image_bytes: int) -> Iterator[Sample]:
    for where, cells in read_rows(file, path, report):
        row = {name: cell for name, cell in cells.items() if cell != ""}
        column = pick(row, PATH_COLUMNS)
        if column is None or not row[column].strip():
            known = ", ".join(PATH_COLUMNS)
            report.drop("no path", where, f"none of the columns {known} has one")
            continue
        key = row.pop(column)
        text_column = pick(row, TEXT_COLUMNS)
        text = None if text_column is None else row.pop(text_column)
        image, why_not, detail = file_bytes(path.parent / key, image_bytes)
        if image is None:
            report.drop(why_not, key, detail)
        else:
            yield Sample(key, image, text, row)
