"""One shard in, one folder of vectors out: whole or not at all, in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data import Drop, Report, Sample, read_shard
from diptych.engine.bulk.plan import (
    ERRORS,
    MANIFEST,
    ROWS,
    VECTORS,
    Input,
    Job,
    Manifest,
)
from diptych.engine.stream import num_threads
from diptych.errors import CheckpointError, ImageError, MissingExtraError, ShardError
from diptych.preprocess import collate
from diptych.preprocess.metadata import metadata
from diptych.zoo import sha256_of
from diptych.zoo.atomic import atomic_folder, atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.engine.encoder import Encoder

__all__ = ["embed_shard", "retry_shard", "sweep"]

_BYTES_AHEAD = 256 * 2**20  # of images that wait for a decoding thread, beside the one in turn
_ROWS_AT_ONCE = 4096
IMAGE = "image"  # the reason of an image that cannot be decoded; others are those of `Report`


@dataclass(slots=True)
class _Ready:
    """A sample as a decoding thread leaves it."""

    row: dict[str, Any]
    pixels: Tensor | None = None
    vector: np.ndarray | None = None  # float16 [e], of an earlier attempt
    error: str | None = None


@dataclass(slots=True)
class _Earlier:
    """What an attempt before had: rows by key, with their vectors."""

    rows: dict[str, dict[str, Any]]
    vectors: dict[str, np.ndarray]


def embed_shard(
    encoder: Encoder,
    job: Job,
    *,
    model: str,
    keep_on: Callable[[], object] = lambda: None,
    advance: Callable[[int], object] = lambda n: None,
) -> Manifest:
    """Encode a shard into its folder, which must not be there yet.

    Args:
        model: the name for the manifest.
        keep_on: is called before each batch and before the folder gets its name; raises to stop.
        advance: is called with the number of images that were done since.

    Raises:
        ShardError: the shard cannot be read, or changed meanwhile.
        CheckpointError: the folder is there, or the system refused.
        MissingExtraError: pyarrow is not installed.
    """
    with atomic_folder(job.folder) as folder:
        work = _Work(encoder, job, folder, earlier=None, keep_on=keep_on, advance=advance)
        manifest = work.run(model, attempts=1)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        keep_on()
    return manifest


def retry_shard(
    encoder: Encoder,
    job: Job,
    before: Manifest,
    *,
    model: str,
    keep_on: Callable[[], object] = lambda: None,
    advance: Callable[[int], object] = lambda n: None,
) -> Manifest:
    """Encode what failed in a finished shard, and put the folder anew with all rows, in order.

    Where a kill falls, the folder is the old or the new one; between two renames it has no name,
    and `sweep` gives it back.

    Raises:
        As `embed_shard`.
    """
    earlier = _read_earlier(job.folder, before)
    staged = job.folder.with_name(f".{job.folder.name}.{uuid.uuid4().hex}.tmp")
    aside = staged.with_suffix(".old")
    try:
        with atomic_folder(staged) as folder:
            work = _Work(encoder, job, folder, earlier=earlier, keep_on=keep_on, advance=advance)
            manifest = work.run(model, attempts=before.attempts + 1)
            if manifest.input.sha256 != before.input.sha256:
                raise _changed(job.path)
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        keep_on()
        if manifest.rows == before.rows:  # nothing was won: only the attempt is counted
            manifest = replace(before, attempts=manifest.attempts)
            text = manifest.to_json()
            atomic_write(job.folder / MANIFEST, lambda p: p.write_text(text, encoding="utf-8"))
            return manifest
        try:
            job.folder.rename(aside)
            staged.rename(job.folder)
        except OSError as error:
            with contextlib.suppress(OSError):  # another worker was faster: its folder stays
                aside.rename(job.folder)
            raise CheckpointError(f"{job.folder}: cannot be replaced ({error}).") from error
        return manifest
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if job.folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Undo what a worker that died left of `folder`. Only the holder of its lease may call it."""
    one = r"\.[0-9a-f]{32}\.(tmp|old)"  # as `atomic_folder` and `retry_shard` name them
    pattern = re.compile(rf"\.+{re.escape(folder.name)}({one})+")
    found = [path for path in folder.parent.iterdir() if pattern.fullmatch(path.name)]
    for path in found:
        if path.suffix == ".old" and not folder.exists():
            path.rename(folder)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)


class _Work:
    """One pass over a shard into an open folder."""

    def __init__(
        self,
        encoder: Encoder,
        job: Job,
        folder: Path,
        *,
        earlier: _Earlier | None,
        keep_on: Callable[[], object],
        advance: Callable[[int], object],
    ):
        self.encoder, self.job, self.folder = encoder, job, folder
        self.earlier, self.keep_on, self.advance = earlier, keep_on, advance
        self.num_rows = self.num_errors = 0

    def run(self, model: str, *, attempts: int) -> Manifest:
        started, digest = time.monotonic(), hashlib.sha256()
        report = Report()
        before = _stat(self.job.path)
        with _Files(self.folder, self.encoder.config.embed_dim) as files:
            report.on_drop = files.drop
            limit = self.encoder.preprocess.limits.file_bytes
            samples = read_shard(self.job.path, report=report, digest=digest, image_bytes=limit)
            batch: list[_Ready] = []
            num_pixels = 0
            for ready in self._prepared(samples):
                batch.append(ready)
                num_pixels += ready.pixels is not None
                if num_pixels == self.encoder.batch_size or len(batch) == _ROWS_AT_ONCE:
                    self._put(batch, files)
                    batch, num_pixels = [], 0
            self._put(batch, files)
        after = _stat(self.job.path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _changed(self.job.path)
        return Manifest(
            input=Input(
                path=str(self.job.path),
                size=before.st_size,
                mtime_ns=before.st_mtime_ns,
                sha256=digest.hexdigest(),
            ),
            model=model,
            fingerprint=self.encoder.fingerprint,
            precision=self.encoder.precision,
            embed_dim=self.encoder.config.embed_dim,
            seen=report.seen,
            rows=self.num_rows,
            errors=self.num_errors,
            drops=dict(report.drops),
            flaws=dict(report.flaws),
            files={name: sha256_of(self.folder / name) for name in (VECTORS, ROWS, ERRORS)},
            attempts=attempts,
            seconds=round(time.monotonic() - started, 3),
            diptych=version("diptych"),
        )

    def _prepared(self, samples: Iterator[Sample]) -> Iterator[_Ready]:
        """Samples decoded in threads beside the model, in order.

        Like `stream.decode`, which counts images: here their bytes lie in memory, so bytes are
        counted as well.
        """
        waiting: deque[tuple[int, Future[_Ready]]] = deque()
        window, ahead = 2 * self.encoder.batch_size, 0
        with ThreadPoolExecutor(num_threads(), thread_name_prefix="diptych-decode") as pool:
            try:
                more = True
                while more or waiting:
                    while more and len(waiting) < window and ahead <= _BYTES_AHEAD:
                        sample = next(samples, None)
                        more = sample is not None
                        if sample is not None:
                            ahead += len(sample.image)
                            future = pool.submit(self._prepare, sample)
                            waiting.append((len(sample.image), future))
                            del sample  # the future alone holds the bytes
                    if waiting:
                        size, future = waiting.popleft()
                        yield future.result()
                        ahead -= size
            finally:
                for _, future in waiting:
                    future.cancel()

    def _prepare(self, sample: Sample) -> _Ready:
        """In a decoding thread: everything up to the pixels."""
        if self.earlier is not None and sample.key in self.earlier.rows:
            return _Ready(self.earlier.rows[sample.key], vector=self.earlier.vectors[sample.key])
        caption = sample.text
        if caption is None and isinstance(sample.meta.get("caption"), str):
            caption = sample.meta["caption"].encode("utf-8", "backslashreplace").decode()
        row: dict[str, Any] = {
            "key": sample.key,
            "caption": caption,
            "sha256": hashlib.sha256(sample.image).hexdigest(),
            "meta": json.dumps(sample.meta, default=str),
        }

        def look(image: Any) -> None:
            seen = metadata(image)
            row["width"], row["height"] = seen.width, seen.height

        try:
            pixels = self.encoder.preprocess.uint8(sample.image, name=sample.key, look=look)
            return _Ready(row, pixels=pixels)
        except ImageError as error:
            return _Ready(row, error=str(error))

    def _put(self, batch: list[_Ready], files: _Files) -> None:
        """Encode what has pixels, and write the batch."""
        self.keep_on()
        pixels = [ready.pixels for ready in batch if ready.pixels is not None]
        if pixels:
            fresh = self.encoder.run_image(collate(pixels)).cpu().numpy()
            vectors = iter(fresh.astype(np.float16))
            for ready in batch:
                if ready.pixels is not None:
                    ready.vector = next(vectors)
                    if not np.isfinite(ready.vector).all():
                        ready.error = f"{ready.row['key']}: the model makes no number of it"
        good = [ready for ready in batch if ready.error is None]
        files.rows([ready.row for ready in good], [ready.vector for ready in good])
        for ready in batch:
            if ready.error is not None:
                files.error(ready.row["key"], ready.error, IMAGE)
        self.num_rows += len(good)
        self.num_errors += len(batch) - len(good)
        self.advance(len(batch))


class _Files(contextlib.AbstractContextManager):
    """The three files while they are written."""

    def __init__(self, folder: Path, embed_dim: int):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            what = "embedding shards"
            raise MissingExtraError("pyarrow", extra="parquet", needed_for=what) from error
        text = ("key", "caption", "sha256", "meta")
        self.schema = pa.schema(
            [pa.field("key", pa.string()), pa.field("caption", pa.string())]
            + [pa.field(name, pa.int32()) for name in ("width", "height")]
            + [pa.field(name, pa.string()) for name in text[2:]]
        )
        self.table = pa.Table
        self.embed_dim, self.pending, self.count = embed_dim, [], 0
        with contextlib.ExitStack() as stack:
            self.vectors = stack.enter_context((folder / VECTORS).open("wb"))
            self.errors = stack.enter_context((folder / ERRORS).open("w", encoding="utf-8"))
            self.parquet = stack.enter_context(pq.ParquetWriter(folder / ROWS, self.schema))
            self._header()
            self.stack = stack.pop_all()

    def __exit__(self, *failure: Any) -> None:
        with self.stack:
            if failure[0] is None:
                self._flush()
                self.vectors.seek(0)
                self._header()

    def rows(self, rows: list[dict[str, Any]], vectors: list[np.ndarray | None]) -> None:
        for vector in vectors:
            assert vector is not None
            self.vectors.write(vector.astype("<f2").tobytes())
        self.count += len(rows)
        self.pending += rows
        if len(self.pending) >= _ROWS_AT_ONCE:
            self._flush()

    def error(self, key: str, error: str, reason: str) -> None:
        line = json.dumps({"key": key, "error": error, "reason": reason})
        self.errors.write(line + "\n")

    def drop(self, drop: Drop) -> None:
        self.error(drop.name, drop.detail or drop.reason, drop.reason)

    def _flush(self) -> None:
        if self.pending:
            self.parquet.write_table(self.table.from_pylist(self.pending, schema=self.schema))
            self.pending = []

    def _header(self) -> None:
        """Numpy pads it so that the number of rows can grow in place."""
        shape = (self.count, self.embed_dim)
        facts = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.vectors, facts)


def _read_earlier(folder: Path, manifest: Manifest) -> _Earlier:
    """The rows of a finished folder, after a look whether they are what was written."""
    import pyarrow.parquet as pq

    for name, sha256 in manifest.files.items():
        if sha256_of(folder / name) != sha256:
            raise ShardError(f"{folder / name}: is damaged. Type: rm -r {folder}  and embed again")
    vectors = np.load(folder / VECTORS, allow_pickle=False)
    rows = pq.read_table(folder / ROWS).to_pylist()
    keys = [row["key"] for row in rows]
    return _Earlier(dict(zip(keys, rows, strict=True)), dict(zip(keys, vectors, strict=True)))


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        reason = error.strerror or error
        raise ShardError(f"{path}: cannot be read: {reason}. Check the path.") from error


def _changed(path: Path) -> ShardError:
    return ShardError(f"{path}: was changed while it was read. Embed it again when it rests.")
