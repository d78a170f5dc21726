"""Qt resource archives (`.rcc`): every file of one, by its path inside.

    files = read_rcc("explore_monuments.rcc")  # {"gcompris/src/...": b"RIFF...", ...}

Layout, all numbers big-endian: the magic `qres`; the version and the offsets of the tree, the data
and the names, 32 bits each. The tree is a list of entries of 14 bytes (version 1) or 22 (from 2 on:
8 bytes of time follow); entry 0 is the root.

    name offset u32, flags u16, then
      a directory (flag 2):  number of children u32, index of the first child u32
      a file:                territory u16, language u16, data offset u32
    name:  length u16 in UTF-16 units, hash u32, UTF-16BE
    data:  length u32, then the bytes; compressed by zlib (flag 1): length u32 unpacked, zlib stream

Strict: an offset outside the file, a directory met twice, two files of one path, a name that would
leave the folder, a wrong length, or more bytes than `max_bytes` is an error. Zstandard (flag 4) is
refused: nothing this project reads has it.
"""

import struct
import zlib
from pathlib import Path

__all__ = ["MAX_BYTES", "read_rcc"]

MAX_BYTES = 1 << 30
ZLIB, DIRECTORY, ZSTD = 1, 2, 4
VERSIONS = (1, 2, 3)


def read_rcc(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    """All files of an archive, in the order of its tree.

    Args:
        path: the `.rcc` file.
        max_bytes: what the archive, and what its files together, may take.

    Raises:
        ValueError: not such an archive, damaged, compressed by Zstandard, or above `max_bytes`.
    """
    path = Path(path)
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, at most {max_bytes} are read.")
    try:
        return _read(path.read_bytes(), max_bytes)
    except (struct.error, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: a damaged Qt resource archive: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(raw: bytes, max_bytes: int) -> dict[str, bytes]:
    if raw[:4] != b"qres":
        raise ValueError(f"starts with {raw[:4]!r}, not b'qres': no Qt resource archive.")
    version, tree, data, names = struct.unpack_from(">4I", raw, 4)
    if version not in VERSIONS:
        raise ValueError(f"version {version} of the format, known are {VERSIONS}.")
    step = 14 if version == 1 else 22
    files: dict[str, bytes] = {}
    left = max_bytes
    seen = {0}
    todo = [(0, "")]  # entry, path of its parent with the last slash
    while todo:
        entry, parent = todo.pop()
        name_offset, flags = struct.unpack_from(">IH", raw, tree + entry * step)
        here = parent + _name(raw, names + name_offset) if entry else ""
        if flags & DIRECTORY:
            number, first = struct.unpack_from(">2I", raw, tree + entry * step + 6)
            if number * step > len(raw):
                raise ValueError(f"'{here}' claims {number} entries, more than the file holds.")
            children = range(first, first + number)
            if not seen.isdisjoint(children):
                raise ValueError(f"'{here}' holds an entry of another folder.")
            seen.update(children)
            todo += [(child, here + "/" if here else "") for child in reversed(children)]
            continue
        if here in files or not here:
            raise ValueError(f"two files named '{here}'.")
        (offset,) = struct.unpack_from(">I", raw, tree + entry * step + 10)
        files[here] = _content(raw, data + offset, flags, left, here)
        left -= len(files[here])
    return files


def _name(raw: bytes, at: int) -> str:
    (units,) = struct.unpack_from(">H", raw, at)
    name = _slice(raw, at + 6, 2 * units).decode("utf-16-be")
    if name in ("", ".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
        raise ValueError(f"a file may not be named {name!r}.")
    return name


def _content(raw: bytes, at: int, flags: int, left: int, name: str) -> bytes:
    """The bytes of one file, of which at most `left` may come."""
    if flags & ZSTD:
        raise ValueError(f"'{name}' is compressed by Zstandard, which is not read here.")
    (length,) = struct.unpack_from(">I", raw, at)
    packed = _slice(raw, at + 4, length)
    if not flags & ZLIB:
        if length > left:
            raise ValueError(f"'{name}' exceeds the limit of all files; give max_bytes=.")
        return packed
    (unpacked,) = struct.unpack_from(">I", packed)
    if unpacked > left:
        raise ValueError(f"'{name}' exceeds the limit of all files; give max_bytes=.")
    stream = zlib.decompressobj()
    content = stream.decompress(packed[4:], unpacked + 1)
    if len(content) != unpacked or not stream.eof:
        raise ValueError(f"'{name}' unpacks to another length than the {unpacked} bytes it claims.")
    return content


def _slice(raw: bytes, at: int, length: int) -> bytes:
    piece = raw[at : at + length]
    if len(piece) != length:
        raise ValueError(f"ends inside a piece of {length} bytes at {at}: the file was cut short.")
    return piece
