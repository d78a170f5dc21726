"""Derived files that may be trusted: checksums, a manifest that is the last to be written.

- CRC-32 finds every flipped bit and every burst of up to 32; it is no guard against a forger.
- The manifest names the files of one build. Another build writes files of other names and then puts
  its manifest in place in one step, so a kill at any moment leaves one of the two.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import IndexFileError
from diptych.processors import num_processors
from diptych.zoo.atomic import atomic_write

__all__ = [
    "checksums",
    "compare",
    "damaged",
    "map_file",
    "read_manifest",
    "remove_others",
    "write_manifest",
]

_TOKEN = r"[0-9a-f]{32}"  # of `uuid4().hex`
_AT_ONCE = 32  # checksums that are not worth a thread


def damaged(path: Path, why: str) -> IndexFileError:
    """The error of a derived file that must be made again."""
    return IndexFileError(
        f"{path}: damaged, or of another version: {why}. It can be made again from the "
        "collection: delete it, then type: diptych index"
    )


def write_manifest(path: Path, body: dict[str, Any]) -> None:
    """Put a JSON file with its own checksum in place, whole or not at all.

    Raises:
        CheckpointError: the system refused; an old file is intact.
    """
    text = _text(body)
    atomic_write(path, lambda part: part.write_text(text, "utf-8"))


def read_manifest(path: Path, *, kind: str, version: int) -> dict[str, Any]:
    """What `write_manifest` wrote; its "kind" and "version" are the expected ones.

    Raises:
        IndexFileError: there is no such file, a single byte is another one, or it is of another
            kind or version.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        body = json.loads(text)["body"]
        sound = _text(body) == text
    except FileNotFoundError:
        raise damaged(path, "there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound, body = False, {}
    if not sound:
        raise damaged(path, "it is not as it was written")
    if (body["kind"], body["version"]) != (kind, version):
        raise damaged(path, f"it is {body['kind']} {body['version']}, not {kind} {version}")
    return body


def _text(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"body": body, "crc32": zlib.crc32(text.encode())}, sort_keys=True)


def remove_others(folder: Path, kinds: Iterable[str], kept: Iterable[str]) -> None:
    """Delete the files KIND-TOKEN that are not among `kept`, and temporaries of dead builds."""
    kinds, kept = "|".join(kinds), set(kept)
    ours = re.compile(rf"({kinds})-{_TOKEN}|\.[\w.-]+\.{_TOKEN}\.tmp")
    with contextlib.suppress(OSError):  # no such folder yet, or a file that another has mapped
        for file in list(folder.iterdir()):
            if ours.fullmatch(file.name) and file.name not in kept:
                with contextlib.suppress(OSError):
                    file.unlink()


def map_file(path: Path, dtype: type, shape: tuple[int, ...], *, mode: Any = "r") -> np.ndarray:
    """A file of exactly so many numbers, mapped.

    Raises:
        FileNotFoundError: there is none: another build may have just removed it.
        IndexFileError: it is shorter or longer, or cannot be read.
    """
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
        if size == expected and size:
            return np.memmap(path, dtype, mode, shape=shape).view(np.ndarray)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(path, f"it cannot be read ({error})") from error
    if size != expected:
        raise damaged(path, f"{size} bytes instead of {expected}")
    return np.empty(shape, dtype)


def checksums(rows: np.ndarray, step: int) -> np.ndarray:
    """CRC-32, uint32, of each `step` rows; the last of what remains."""
    rows = np.ascontiguousarray(rows)
    starts = range(0, len(rows), step)
    return np.array([zlib.crc32(rows[start : start + step].data) for start in starts], np.uint32)


def compare(path: Path, rows: np.ndarray, sums: np.ndarray, step: int, chunks: list[int]) -> None:
    """Raises IndexFileError, naming `path`, unless each of the chunks has its checksum."""

    def wrong(chunk: int) -> bool:
        return zlib.crc32(rows[chunk * step : (chunk + 1) * step].data) != sums[chunk]

    if len(chunks) < _AT_ONCE:
        bad = [chunk for chunk in chunks if wrong(chunk)]
    else:
        with ThreadPoolExecutor(min(4, num_processors())) as pool:
            found = pool.map(wrong, chunks)
            bad = [chunk for chunk, is_wrong in zip(chunks, found, strict=True) if is_wrong]
    if bad:
        raise damaged(path, f"the checksum of the {step} rows from {bad[0] * step} is another one")
