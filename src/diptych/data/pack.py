"""Any source of pairs to WebDataset shards: the same bytes each time, and resumed after a kill.

OUT/00000.tar ...    per sample N.jpg (.png, ...), N.txt, and N.json: its key, all captions if
                     there are several, what is known of its origin, the SHA-256 of its image
OUT/manifest.json    written last: shards with SHA-256 and counts, inputs, what was dropped
OUT/.pack/           while it is made: one record a finished shard, which is not made again
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import filelock
import numpy as np

from diptych.data.index import Index, Unreadable, index_file
from diptych.data.sources import Source, as_sources, files_of
from diptych.errors import DataError, ImageError

__all__ = ["pack"]

_MAGIC = (  # beginning of a file, at which byte, suffix
    (b"\xff\xd8\xff", 0, "jpg"),
    (b"\x89PNG", 0, "png"),
    (b"WEBP", 8, "webp"),
    (b"GIF8", 0, "gif"),
    (b"BM", 0, "bmp"),
    (b"II*\0", 0, "tif"),
    (b"MM\0*", 0, "tif"),
    (b"ftypavif", 4, "avif"),
    (b"ftyp", 4, "heic"),
)


class _Packed(NamedTuple):
    """One sample as it goes into a shard."""

    image: bytes
    suffix: str
    texts: list[str]
    meta: dict[str, Any]


def pack(
    sources: Sequence[str | Path | Source] | str | Path | Source,
    out: Path,
    *,
    folder: Path,
    shard_size: int = 10_000,
    max_bytes: int | None = None,
    shrink: Callable[[bytes, str], bytes] | None = None,
    shrunk: str = "",
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, Any]:
    """Write shards into the folder `out`; returns what stands in its manifest.

    Args:
        folder: where indexes are kept.
        shard_size: samples of a shard. max_bytes: a shard of more images than this ends.
        shrink: bytes, name -> bytes, made smaller or as they are; raises ImageError.
        shrunk: what `shrink` does, in words: a pack that was begun otherwise is not gone on with.
        progress: is told how many samples more are packed.

    Raises:
        DataError: the inputs cannot be read, or `out` holds something else.
    """
    given = as_sources(sources)
    indexes = [
        index_file(file, folder, source=source) for source in given for file in files_of(source)
    ]
    options = {"shard_size": shard_size, "max_bytes": max_bytes, "shrunk": shrunk}
    inputs = [
        {"name": i.file.name, "bytes": i.info["bytes"], "sha256": i.sha256, "samples": i.size}
        for i in indexes
    ]
    plan = {"format": 1, "options": options, "inputs": inputs}
    try:
        if (out / "manifest.json").exists():
            return _finished(out, plan)
        work = out / ".pack"
        work.mkdir(parents=True, exist_ok=True)
        with _alone(work):
            same = plan | {"identity": [index.info["identity"] for index in indexes]}
            _check_plan(out, work / "plan.json", same)
            drops = _drops(indexes)
            shards = _shards(indexes, out, options, shrink, drops, progress)
            if not shards:
                raise DataError(f"{given[0].path}: holds no pair that can be packed ({drops}).")
            samples = sum(shard["samples"] for shard in shards)
            whole = plan | {
                "samples": samples,
                "shards": shards,
                "drops": dict(sorted(drops.items())),
            }
            _write(out / "manifest.json", _json(whole))
        shutil.rmtree(work)
        return whole
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}). Make room, or choose another "
            "folder; then type the same again: finished shards are kept."
        ) from error


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    found = json.loads((out / "manifest.json").read_text("utf-8"))
    if {name: found.get(name) for name in plan} != plan:
        raise DataError(f"{out}: holds shards of other inputs or options. Choose another folder.")
    shutil.rmtree(out / ".pack", ignore_errors=True)
    return found


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(work / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise DataError(f"{work.parent}: another process packs into it. Wait for it.") from error


def _check_plan(out: Path, path: Path, plan: dict[str, Any]) -> None:
    if path.exists():
        if json.loads(path.read_text("utf-8")) != json.loads(_json(plan)):
            raise DataError(
                f"{out}: was begun with other inputs or options. Remove it, or choose another "
                "folder."
            )
        return
    if others := [file.name for file in out.glob("*.tar")]:
        raise DataError(f"{out}: holds {others[0]} already. Choose an empty folder.")
    _write(path, _json(plan))


def _drops(indexes: list[Index]) -> Counter[str]:
    drops: Counter[str] = Counter()
    for index in indexes:
        drops.update(index.info["drops"])
    return drops


def _shards(
    indexes: list[Index],
    out: Path,
    options: dict[str, Any],
    shrink: Callable[[bytes, str], bytes] | None,
    drops: Counter[str],
    progress: Callable[[int], object],
) -> list[dict[str, Any]]:
    """All shards, made or found made; `drops` counts what is left out."""
    ends = np.cumsum([index.size for index in indexes])
    total = sum(index.size for index in indexes)
    done: list[dict[str, Any]] = []
    at = number = 0
    while at < total:
        name = f"{len(done):05}.tar"
        record = out / ".pack" / f"{name}.json"
        if not record.exists():
            lost: Counter[str] = Counter()
            with _Shard(out / name, number) as shard:
                while at < total and not shard.is_full(options):
                    i = int(np.searchsorted(ends, at, side="right"))
                    row = at - int(ends[i]) + indexes[i].size
                    sample = _sample(indexes[i], row, shrink, lost)
                    at += 1
                    if sample is not None:
                        shard.add(sample)
            found = {**shard.facts(), "samples": shard.samples}
            _write(record, _json({"shard": found, "next": at, "drops": lost}))
        made = json.loads(record.read_text("utf-8"))
        at = made["next"]
        drops.update(made["drops"])
        if not made["shard"]["samples"]:  # what was left of the inputs was all bad
            break
        if (out / name).stat().st_size != made["shard"]["bytes"]:
            raise DataError(f"{out / name}: was changed after it was made. Remove {out}.")
        number += made["shard"]["samples"]
        done.append({"name": name, **made["shard"]})
        progress(made["shard"]["samples"])
    return done


def _sample(
    index: Index, row: int, shrink: Callable[[bytes, str], bytes] | None, lost: Counter[str]
) -> _Packed | None:
    name = index.name(row)
    try:
        image = index.image(row)
        if shrink is not None:
            image = shrink(image, name)
    except Unreadable as error:
        lost[error.reason] += 1
        return None
    except ImageError:
        lost["cannot be decoded"] += 1
        return None
    suffix = next((s for magic, at, s in _MAGIC if image[at:].startswith(magic)), None)
    if suffix is None:
        lost["no image by its first bytes"] += 1
        return None
    texts = index.captions(row)
    meta: dict[str, Any] = {"key": index.key(row), **index.origin(row)}
    if len(texts) > 1:
        meta["captions"] = texts
    return _Packed(image, suffix, texts, meta | {"sha256": hashlib.sha256(image).hexdigest()})


class _Shard:
    """A tar that gets its name when it is whole."""

    def __init__(self, path: Path, first: int):
        self.path, self.first, self.samples, self.images = path, first, 0, 0
        self._temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> _Shard:
        self._file = _Hashed(self._temporary.open("wb"))
        self._tar = tarfile.open(
            fileobj=cast(Any, self._file), mode="w", format=tarfile.USTAR_FORMAT
        )
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._file.file:
            if kind is None:
                self._tar.close()
                self._file.file.flush()
                os.fsync(self._file.file.fileno())
        if kind is None and self.samples:
            self._temporary.replace(self.path)
        self._temporary.unlink(missing_ok=True)

    def is_full(self, options: dict[str, Any]) -> bool:
        most = options["max_bytes"]
        return self.samples >= options["shard_size"] or (most is not None and self.images >= most)

    def add(self, sample: _Packed) -> None:
        """Mode, owner and time are the same for all."""
        parts = {
            sample.suffix: sample.image,
            "json": _json(sample.meta),
            "txt": sample.texts[0].encode("utf-8", "replace"),
        }
        for suffix, data in sorted(parts.items()):
            info = tarfile.TarInfo(f"{self.first + self.samples:09}.{suffix}")
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
        self.samples += 1
        self.images += len(sample.image)

    def facts(self) -> dict[str, Any]:
        """Bytes and hash of a finished one."""
        return {"bytes": self._file.size, "sha256": self._file.digest.hexdigest()}


class _Hashed:
    """A file that knows its hash as it grows."""

    def __init__(self, file: IO[bytes]):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size


def _json(found: dict[str, Any]) -> bytes:
    text = json.dumps(found, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
