"""From folders to vectors in the store: read once, hash whole, decode only what is new.

- A file is read into memory by a decoding thread, hashed, looked up, and decoded from the same
  bytes: the vector belongs to the hash whatever happens to the file meanwhile. No more files are
  in memory than there are threads.
- A content that is known costs no decoding: copies, moved, renamed and touched files keep its
  vector. Two copies in one run are decoded once.
- Every batch is one transaction, so a run that is killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from diptych.engine.neighbours import perceptual_hash
from diptych.engine.stream import VIDEO_SUFFIXES, decode, num_threads
from diptych.errors import ImageError
from diptych.preprocess import collate
from diptych.preprocess.metadata import Metadata, metadata
from diptych.preprocess.pipeline import normalise_batch
from diptych.search.records import Content, Model, Root
from diptych.search.scan import Found, scan, todo
from diptych.search.store import Store
from diptych.search.writer import Writer

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = ["Done", "Outcome", "model_of", "update"]

log = logging.getLogger("diptych")

_ROWS = 512  # results that are committed together at most, when few of them need the model
_SECONDS = 2.0  # and at most so long after the last commit
_WAS_CHANGED = "was changed while it was read. Index again when it rests."


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """One file that is in the store now, for good."""

    path: str
    state: Literal["added", "known", "failed"]
    error: str | None = None


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What one run did."""

    found: Found
    model: Model
    added: int = 0  # contents that were encoded
    known: int = 0  # files whose content was there: copied, moved, renamed, touched
    failed: int = 0
    removed: int = 0  # files that are gone
    purged: int = 0  # contents that went with them
    missing: int = 0  # contents that still have no vector of this model
    seconds: float = 0.0

    @property
    def num_changes(self) -> int:
        """Files that are other than they were."""
        return self.added + self.known + self.failed + self.removed


@dataclass(slots=True)
class _Read:
    """A file as a decoding thread leaves it."""

    path: str
    stat: os.stat_result | None = None
    sha256: bytes = b""
    content: int | None = None  # known already, or known after this batch
    waits: bool = False  # for another file of the same bytes that is on its way
    pixels: Tensor | None = None
    is_video: bool = False
    metadata: Metadata | None = None
    error: str | None = None  # without the path: copies of the same bytes share it


def update(
    store: Store,
    writer: Writer,
    encoder: Encoder,
    roots: Sequence[Root],
    *,
    options: dict[str, Any],
    retry_failed: bool = False,
    remove_empty: bool = False,
    started: Callable[[Found], object] = lambda found: None,
    done: Callable[[list[Done]], object] = lambda done: None,
) -> Outcome:
    """Bring the store up to date with the files below `roots`.

    Args:
        options: how `diptych.load` makes this encoder again.
        retry_failed: also the files that failed before and did not change.
        remove_empty: a folder that has no files any more is emptied here as well.
        started: called once, when it is known what there is to do.
        done: called after each commit with the files that it made safe.

    Raises:
        CollectionError: the store cannot be written; what `done` has seen is in it.
    """
    start = time.monotonic()
    with writer.transaction():
        for root in roots:
            writer.add_root(root)
        model = model_of(writer, encoder, options)
    found = scan(store, list(roots), model=model, retry=retry_failed)
    started(found)
    outcome = Outcome(found=found, model=model)
    run = _Run(store, writer, encoder, model, outcome, retry=retry_failed, done=done)
    run.read_all(todo(store, model=model, retry=retry_failed))
    gone = list(found.gone)
    if remove_empty:
        gone += [path for root in found.empty for path in store.files_below(root)]
    with writer.transaction():
        outcome.removed = writer.remove_files(gone)
        outcome.purged = writer.purge()
        outcome.missing = writer.mark_whole(model)
    outcome.seconds = time.monotonic() - start
    return outcome


def model_of(writer: Writer, encoder: Encoder, options: dict[str, Any]) -> Model:
    """The encoder's model in the store. options: how `diptych.load` makes the encoder again."""
    return writer.add_model(
        fingerprint=encoder.fingerprint,
        name=str(encoder.card.get("name", "a model")),
        options=options,
        precision=encoder.precision,
        dim=encoder.config.embed_dim,
    )


class _Run:
    """The state of one run: what is on its way, and what is to be committed next."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        encoder: Encoder,
        model: Model,
        outcome: Outcome,
        *,
        retry: bool,
        done: Callable[[list[Done]], object],
    ):
        self.writer, self.encoder, self.model, self.outcome = writer, encoder, model, outcome
        self.done = done
        self.known = _Known(store, model, retry=retry)
        self.batch: list[_Read] = []
        self.num_pixels = 0
        self.committed = time.monotonic()
        self.waiting: list[_Read] = []

    def read_all(self, files: Iterator[str]) -> None:
        try:
            items = ((path, path) for path in files)
            window = 2 * self.encoder.batch_size
            for step in decode(items, self._read, threads=num_threads(), window=window):
                self._take(step.pixels)
            self._commit()  # copies of what changed meanwhile are left to the next run
        finally:
            self.known.close()

    def _take(self, read: _Read) -> None:
        if read.waits and (found := self.known.find(read.sha256)) is not None:
            read.content, read.error = found  # it was committed since the copy was read
            self.batch.append(read)
        elif read.waits:
            self.waiting.append(read)
        elif read.is_video and read.error is None and read.content is None:
            self._commit()
            self._video(read)
        else:
            self.batch.append(read)
            self.num_pixels += read.pixels is not None
        late = time.monotonic() - self.committed > _SECONDS
        rows = len(self.batch) + len(self.waiting)
        if self.num_pixels == self.encoder.batch_size or rows >= _ROWS or (late and rows):
            self._commit()

    def _read(self, path: str, *, name: str | None = None) -> _Read:
        """In a decoding thread: everything up to the pixels."""
        read = _Read(path)
        read.is_video = os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122
        limit = 0 if read.is_video else self.encoder.preprocess.limits.file_bytes
        try:
            data = _bytes(read, limit)
        except OSError as error:
            read.error = f"cannot be read: {error.strerror or error}"
            return read
        if read.error is not None:
            return read
        read.content, read.waits, read.error = self.known.claim(read.sha256)
        if read.content is not None or read.waits or read.is_video:
            return read

        def look(image: Any) -> None:
            read.metadata = metadata(image)

        try:
            source = path if data is None else data
            read.pixels = self.encoder.preprocess.uint8(source, name=path, look=look)
        except ImageError as error:
            read.error = _reason(error, path)
        return read

    def _commit(self) -> None:
        """Encode what has pixels, and put the whole batch into the store."""
        some, self.batch, self.num_pixels = self.batch, [], 0
        pixels = [read.pixels for read in some if read.pixels is not None]
        vectors, hashes = map(iter, self._encode(pixels) if pixels else ((), ()))
        with self.writer.transaction():
            fresh: dict[bytes, tuple[int, str | None]] = {}
            for read in some:
                content = read.content
                if content is None and read.sha256:
                    content = self._put_content(read)
                    fresh[read.sha256] = content, read.error
                if content is not None and read.pixels is not None:
                    row, value = next(vectors), next(hashes)
                    self.writer.put_vectors(self.model, content, row[None], hashes=[value])
                self._put_file(read, content)
            some += self._release(fresh)
        self._committed(some, fresh)

    def _video(self, read: _Read) -> None:
        """The key frames of a video, as one transaction."""
        from diptych.engine.video import frames

        rows, hashes, moments = [], [], []
        try:
            pending = []
            for second, image in frames(read.path, every=None):
                read.metadata = read.metadata or _of_video(metadata(image), read.path)
                pending.append(self.encoder.preprocess.uint8(image, name=read.path))
                moments.append(second)
                if len(pending) == self.encoder.batch_size:
                    some, pending = pending, []
                    self._add(some, rows, hashes)
            self._add(pending, rows, hashes)
        except ImageError as error:
            read.error, rows = _reason(error, read.path), []
        if _stamp_of(read.path) != _stamp(read.stat):
            self._changed(read)
            return
        with self.writer.transaction():
            content = self._put_content(read)
            if rows:
                self.writer.put_vectors(
                    self.model, content, np.concatenate(rows), hashes=hashes, moments=moments
                )
            self._put_file(read, content)
            fresh = {read.sha256: (content, read.error)}
            some = [read, *self._release(fresh)]
        self._committed(some, fresh)

    def _add(self, pixels: list[Tensor], rows: list[np.ndarray], hashes: list[int]) -> None:
        if pixels:
            some, values = self._encode(pixels)
            rows.append(some)
            hashes += values

    def _changed(self, read: _Read) -> None:
        """A file that is not the one that was hashed any more."""
        read.error, sha256, read.sha256 = _WAS_CHANGED, read.sha256, b""
        with self.writer.transaction():
            self._put_file(read, None)
        self._committed([read], [sha256])

    def _encode(self, pixels: list[Tensor]) -> tuple[np.ndarray, list[int]]:
        """Vectors float32 [k e] and perceptual hashes."""
        batch = collate(pixels)
        assert isinstance(batch, Tensor)
        vectors = self.encoder.run_image(batch).cpu().numpy()
        # of normalised pixels: collections hold such hashes
        normalised = normalise_batch(batch, self.encoder.preprocess.config)
        return vectors, perceptual_hash(normalised).tolist()

    def _put_content(self, read: _Read) -> int:
        assert read.stat is not None
        return self.writer.put_content(
            Content(
                sha256=read.sha256,
                size=read.stat.st_size,
                kind="video" if read.is_video else "image",
                metadata=read.metadata,
                error=read.error,
            )
        )

    def _put_file(self, read: _Read, content: int | None) -> None:
        if read.stat is None:  # could not even be opened: it is tried again next time
            return
        error = read.error if content is None else None
        self.writer.put_file(read.path, read.stat, content, error=error)

    def _release(self, fresh: dict[bytes, tuple[int, str | None]]) -> list[_Read]:
        """The copies that waited for these contents, put beside them."""
        here = [read for read in self.waiting if read.sha256 in fresh]
        self.waiting = [read for read in self.waiting if read.sha256 not in fresh]
        for read in here:
            read.content, read.error = fresh[read.sha256]
            self._put_file(read, read.content)
        return here

    def _committed(self, some: list[_Read], fresh: Iterable[bytes]) -> None:
        self.known.release(fresh)
        told = []
        for read in some:
            if read.error is not None:
                self.outcome.failed += 1
                why = f"{read.path}: {read.error}"
                told.append(Done(path=read.path, state="failed", error=why))
            elif read.content is None:
                self.outcome.added += 1
                told.append(Done(path=read.path, state="added"))
            else:
                self.outcome.known += 1
                told.append(Done(path=read.path, state="known"))
        self.done(told)
        self.committed = time.monotonic()


class _Known:
    """Contents that are in the store, or on their way into it; shared by the decoding threads."""

    def __init__(self, store: Store, model: Model, *, retry: bool):
        self._lock = threading.Lock()
        self._store = store
        self._db: sqlite3.Connection = store.another()
        self._values = (model.id,)
        self._retry = retry
        self._coming: set[bytes] = set()

    def claim(self, sha256: bytes) -> tuple[int | None, bool, str | None]:
        """(id of a content that needs no work, whether another thread has it, its error). No id
        and no other thread: it is the caller's to decode."""
        with self._lock:
            if sha256 in self._coming:
                return None, True, None
            with self._store.reading():
                row = self._db.execute(
                    "SELECT id, error, EXISTS (SELECT 1 FROM vectors v WHERE v.content=c.id "
                    "AND v.model=?) FROM contents c WHERE sha256=?",
                    (*self._values, sha256),
                ).fetchone()
            if row is not None and (row[2] or (row[1] is not None and not self._retry)):
                return row[0], False, row[1]
            self._coming.add(sha256)
            return None, False, None

    def find(self, sha256: bytes) -> tuple[int, str | None] | None:
        """(id, error) of a content that another file has brought; None while it is on its way."""
        with self._lock, self._store.reading():
            if sha256 in self._coming:
                return None
            question = "SELECT id, error FROM contents WHERE sha256=?"
            return self._db.execute(question, (sha256,)).fetchone()

    def release(self, contents: Iterable[bytes]) -> None:
        """These are in the store now."""
        with self._lock:
            self._coming.difference_update(contents)

    def close(self) -> None:
        self._db.close()


def _bytes(read: _Read, limit: int) -> bytes | None:
    """Reads and hashes a file; its bytes too, unless there are more than `limit` of them."""
    with open(read.path, "rb") as file:  # noqa: PTH123
        read.stat = before = os.fstat(file.fileno())
        data = None
        if before.st_size <= limit:
            data = file.read(before.st_size + 1)
            read.sha256 = hashlib.sha256(data).digest()
        else:
            read.sha256 = hashlib.file_digest(file, "sha256").digest()
        after = os.fstat(file.fileno())
        if _stamp(before) != _stamp(after):
            read.error, read.sha256 = _WAS_CHANGED, b""
    return data


def _stamp(stat: os.stat_result | None) -> tuple[int, int]:
    assert stat is not None
    return stat.st_size, stat.st_mtime_ns


def _stamp_of(path: str) -> tuple[int, int] | None:
    try:
        return _stamp(os.stat(path))  # noqa: PTH116
    except OSError:  # it went meanwhile
        return None


def _reason(error: ImageError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")


def _of_video(frame: Metadata, path: str) -> Metadata:
    suffix = os.path.splitext(path)[1]  # noqa: PTH122
    return Metadata(
        width=frame.width, height=frame.height, format=suffix[1:].upper(),
        taken=None, camera=None, latitude=None, longitude=None,
    )  # fmt: skip
