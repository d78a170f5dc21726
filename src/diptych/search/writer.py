"""What changes a store: one at a time, and each transaction whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import CollectionError
from diptych.search.records import DAMAGED, Content, Model, Root, fs_path, signed

if TYPE_CHECKING:
    from jaxtyping import Float

    from diptych.search.store import Store

__all__ = ["Writer"]


class Writer:
    """What changes a store. Made by `Store.writer`."""

    def __init__(self, store: Store):
        self.store = store
        self._db = store._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, or nothing.

        Raises:
            CollectionError: the system refused (disk full); the store is as it was before.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except DAMAGED as error:
            raise CollectionError(
                f"{self.store.path}: cannot be written ({error}). What was reported as done is "
                "there. Make room, then start the same command again."
            ) from error

    def add_root(self, root: Root) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO roots VALUES (CAST(? AS TEXT), ?, ?)",
            [fs_path(root.path), json.dumps(root.exclude), root.hidden],
        )

    def remove_root(self, path: str) -> None:
        self._db.execute("DELETE FROM roots WHERE path=CAST(? AS TEXT)", [fs_path(path)])

    def add_model(
        self, *, fingerprint: str, name: str, options: dict[str, Any], precision: str, dim: int
    ) -> Model:
        """The model of this fingerprint, a new one if there was none."""
        self._db.execute(
            "INSERT OR IGNORE INTO models (fingerprint, name, options, precision, embed_dim, "
            "generation) VALUES (?, ?, ?, ?, ?, ?)",
            # not from 0: a model that is removed and indexed again must never come to a generation
            # that what was derived before knows already
            [fingerprint, name, json.dumps(options), precision, dim, time.time_ns()],
        )
        found = self.store.model(fingerprint)
        assert found is not None
        if found.embed_dim != dim:
            raise self.store.unreadable(ValueError(f"{name} has {found.embed_dim} dimensions"))
        return found

    def remove_model(self, model: Model) -> None:
        self._db.execute("DELETE FROM vectors WHERE model=?", [model.id])
        self._db.execute("DELETE FROM models WHERE id=?", [model.id])

    def mark_whole(self, model: Model) -> int:
        """Note that the model has a vector of everything, if it has; returns how many it lacks."""
        missing = self.store.num_missing(model)
        if not missing:
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            self._db.execute("UPDATE models SET whole_at=? WHERE id=?", [now, model.id])
        return missing

    def put_content(self, content: Content) -> int:
        """The id of the content; what is known of it is renewed."""
        meta = asdict(content.metadata) if content.metadata else {}
        names = ("format", "width", "height", "taken", "camera", "latitude", "longitude")
        values = [content.size, content.kind, *map(meta.get, names), content.error]
        (row,) = self._db.execute(
            "INSERT INTO contents (sha256, size, kind, format, width, height, taken, camera, "
            "latitude, longitude, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (sha256) DO UPDATE SET kind=excluded.kind, format=excluded.format, "
            "width=excluded.width, height=excluded.height, taken=excluded.taken, "
            "camera=excluded.camera, latitude=excluded.latitude, longitude=excluded.longitude, "
            "error=excluded.error RETURNING id",
            [content.sha256, *values],
        )
        return row[0]

    def put_vectors(
        self,
        model: Model,
        content: int,
        vectors: Float[np.ndarray, "k e"],
        *,
        hashes: Iterable[int | None],
        moments: Iterable[float] = (0.0,),
    ) -> None:
        """The vectors of a content, one for a picture, one a moment (seconds) of a video; those it
        had are replaced. hashes: `engine.neighbours.perceptual_hash`; None where no pixels were
        seen, as of an imported vector: it is never taken for a near-duplicate."""
        assert vectors.shape[1] == model.embed_dim
        self._db.execute("DELETE FROM vectors WHERE content=? AND model=?", [content, model.id])
        rows = zip(moments, hashes, vectors.astype("<f2"), strict=True)
        self._db.executemany(
            "INSERT INTO vectors (model, content, moment, hash, vector) VALUES (?, ?, ?, ?, ?)",
            [
                (model.id, content, moment, signed(value), row.tobytes())
                for moment, value, row in rows
            ],
        )
        self._changed(model.id)

    def put_file(
        self, path: str, stat: os.stat_result, content: int | None, *, error: str | None = None
    ) -> None:
        """A file and what it holds; or, without content, why it could not be read."""
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (CAST(? AS TEXT), ?, ?, ?, ?, ?)",
            [fs_path(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, content, error],
        )

    def remove_files(self, paths: Iterable[str]) -> int:
        """Forget files; returns how many there were."""
        before = self._db.total_changes
        self._db.executemany(
            "DELETE FROM files WHERE path=CAST(? AS TEXT)", [[fs_path(p)] for p in paths]
        )
        return self._db.total_changes - before

    def purge(self) -> int:
        """Remove contents that no file has any more, with their vectors; returns how many."""
        orphans = (
            "SELECT id FROM contents c WHERE NOT EXISTS (SELECT 1 FROM files WHERE content=c.id)"
        )
        touched = f"SELECT DISTINCT model FROM vectors WHERE content IN ({orphans})"
        models = list(self._db.execute(touched))
        self._db.execute(f"DELETE FROM vectors WHERE content IN ({orphans})")
        removed = self._db.execute(f"DELETE FROM contents WHERE id IN ({orphans})").rowcount
        for (model,) in models:
            self._changed(model)
        return removed

    def _changed(self, model: int) -> None:
        self._db.execute("UPDATE models SET generation=generation+1 WHERE id=?", [model])
