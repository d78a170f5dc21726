"""The members of a tar file, in one pass and bounded memory, with every damage named.

Python's `tarfile` keeps a record of each member, stops without a word at a header that is damaged
in the middle of a file, and reads extended headers of any length whole. Its parser of the 512
bytes of a header is used here; the walk from header to header is our own.

Formats: POSIX.1-2001 (pax: path and size), GNU (long names), ustar and V7.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

__all__ = ["Member", "TarDamage", "members"]

BLOCK = 512
_LONGEST_NAME = 1 << 16
_LONGEST_PAX = 1 << 20
_NOTHING = b"\0" * BLOCK
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PIECE = 1 << 20


class TarDamage(Exception):
    """Where and why the rest of the file cannot be read. `cut`: within the data of a member."""

    def __init__(self, reason: str, *, detail: str, cut: bool = False):
        super().__init__(detail)
        self.reason, self.detail, self.cut = reason, detail, cut


@dataclass(frozen=True, slots=True)
class Member:
    """A name, and its bytes while it is the current one.

    Attributes:
        name: as it stands in the file; bytes that are not UTF-8 as \\xNN.
        kind: "other" is a link, a device or a sparse file. Only a file's bytes are given.
        size: of the data.
        offset: of the data in the file.
        read: all of it; call it before the next member is asked for, at most once.
    """

    name: str
    kind: Literal["file", "folder", "other"]
    size: int
    offset: int
    read: Callable[[], bytes]


class _Walk:
    """A file read from the start to the end, and nothing twice."""

    def __init__(self, file: BinaryIO, length: int | None):
        self.file, self.at, self.data_left, self.length = file, 0, 0, length

    def take(self, size: int) -> bytes:
        """Up to `size` bytes."""
        data = self.file.read(size)
        self.at += len(data)
        return data

    def read(self, name: str) -> bytes:
        """What is left of the current member's data."""
        data = self.take(self.data_left)
        if len(data) < self.data_left:
            raise _cut(name, self.data_left - len(data))
        self.data_left = 0
        return data

    def skip(self, size: int) -> int:
        """Goes past `size` bytes; returns how many are missing."""
        self.data_left = 0
        if self.length is not None:
            step = min(size, self.length - self.at)
            self.at = self.file.seek(self.at + step)
            return size - step
        while size and (piece := self.take(min(size, _PIECE))):
            size -= len(piece)
        return size


def members(file: BinaryIO, *, length: int | None = None) -> Iterator[Member]:
    """The members of `file`, in order. Reads everything up to the end of the file.

    Args:
        file: open at the start; what cannot seek will do. A `read` that watches the bytes sees
            each of them once, in order.
        length: of a file that can seek: the data that nobody reads is sought over.

    Raises:
        TarDamage: at the place of the damage; what came before was good.
    """
    walk = _Walk(file, length)
    extra: dict[bytes, bytes] = {}  # of extended headers that belong to the next member
    while header := walk.take(BLOCK):
        if header == _NOTHING:
            return _end(walk)
        info = _parse(header, walk.at - BLOCK)
        match info.type:
            case tarfile.GNUTYPE_LONGNAME | tarfile.GNUTYPE_LONGLINK:
                text = _extension(walk, info, _LONGEST_NAME).split(b"\0", 1)[0]
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    extra[b"path"] = text
                continue
            case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                extra |= _pax(_extension(walk, info, _LONGEST_PAX), walk.at)
                continue
            case tarfile.XGLTYPE:
                _extension(walk, info, _LONGEST_PAX)
                continue
            case tarfile.GNUTYPE_SPARSE:
                more = header[482]
                while more and (block := walk.take(BLOCK)):
                    more = block[504]
        member = _member(walk, info, extra)
        extra = {}
        padding = -walk.data_left % BLOCK
        yield member
        if missing := walk.skip(walk.data_left):
            raise _cut(member.name, missing)
        walk.skip(padding)
    raise TarDamage("no end mark", detail=f"the file ends after {walk.at:,} bytes without one")


def _member(walk: _Walk, info: tarfile.TarInfo, extra: dict[bytes, bytes]) -> Member:
    """The member whose header was read, and how much data follows it."""
    raw = extra.get(b"path", info.name.encode("utf-8", "surrogateescape"))
    size = _number(extra[b"size"]) if b"size" in extra else info.size
    folder = info.type == tarfile.AREGTYPE and raw.endswith(b"/")  # as V7 wrote it
    # like tarfile: a folder, a link or a device has no data, whatever its size says
    has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    walk.data_left = size if has_data and not folder else 0
    sparse = any(key.startswith(b"GNU.sparse.") for key in extra)
    name = raw.decode("utf-8", "backslashreplace")
    kind = "file" if info.type in _FILE_TYPES and not sparse else "other"
    if folder or info.isdir():
        kind = "folder"
    return Member(name, kind, size, walk.at, lambda: walk.read(name))


def _parse(header: bytes, at: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        zipped = at == 0 and header.startswith(b"\x1f\x8b")
        why = "the file is gzipped. Type: gunzip FILE" if zipped else error
        raise TarDamage("damaged tar", detail=f"byte {at:,}: no header ({why})") from error
    if info.size < 0:
        raise TarDamage("damaged tar", detail=f"byte {at:,}: a size of {info.size}")
    return info


def _end(walk: _Walk) -> None:
    """Behind the end mark there are only zeros, or somebody put something there."""
    end, found = walk.at, None
    while piece := walk.take(_PIECE):
        if found is None and piece.strip(b"\0"):
            found = walk.at - len(piece.lstrip(b"\0"))
    if found is not None:
        detail = f"{walk.at - found:,} bytes from byte {found:,} on, behind the end mark at {end:,}"
        raise TarDamage("trailing garbage", detail=detail)


def _extension(walk: _Walk, info: tarfile.TarInfo, longest: int) -> bytes:
    if info.size > longest:
        detail = f"byte {walk.at:,}: an extended header of {info.size:,} bytes"
        raise TarDamage("damaged tar", detail=detail)
    walk.data_left = info.size
    data = walk.read("an extended header")
    walk.skip(-info.size % BLOCK)
    return data


def _pax(data: bytes, at: int) -> dict[bytes, bytes]:
    """Records of "length key=value\\n"; POSIX.1-2001, pax, "Extended Header"."""
    found, start = {}, 0
    while start < len(data) and data[start : start + 1] != b"\0":
        digits, space, _ = data[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[start : start + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not (space and equals and length > len(digits) and record.endswith(b"\n")):
            raise TarDamage("damaged tar", detail=f"an extended header before byte {at:,}")
        found[key] = value[:-1]
        start += length
    return found


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise TarDamage("damaged tar", detail=f"a size of {text[:20]!r}")
    return int(text)


def _cut(name: str, missing: int) -> TarDamage:
    detail = f"the file ends {missing:,} bytes before the end of {name}"
    return TarDamage("cut inside a member", detail=detail, cut=True)
