"""The vectors of one model, ready to be searched: the mapped matrix, and what came after it.

- The matrix is derived from the store and may be older. Vectors never change and their ids rise, so
  what came later is read from the store, and what went is masked: an answer is of now.
- Who may write the store rebuilds the matrix when too much of it is old.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.engine.relevance import background_texts
from diptych.errors import CheckpointError, CollectionError, IndexFileError, MissingExtraError
from diptych.search import approximate as approximate_module
from diptych.search import matrix as matrix_module
from diptych.search.approximate import Approximate
from diptych.search.matrix import Matrix
from diptych.search.records import Model
from diptych.search.store import Store
from diptych.zoo.atomic import atomic_write

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from diptych.engine import Encoder

__all__ = [
    "Rows",
    "background_vectors",
    "build_approximate",
    "derived_folder",
    "manifests",
    "refresh",
]

log = logging.getLogger("diptych")

MATRIX, APPROXIMATE = "matrix", "approximate"  # folders in `derived_folder`
_FEW = 2048  # rows that may be read from the store for every question


def derived_folder(store: Store, model: Model) -> Path:
    """Where the derived files of a model lie. They may be deleted at any time."""
    return store.folder / "derived" / model.fingerprint[:16]


def manifests(store: Store, model: Model) -> tuple[Path, Path]:
    """The files that change when a derived file is built: of the matrix, of its index."""
    folder = derived_folder(store, model)
    return (
        folder / MATRIX / matrix_module.MANIFEST,
        folder / APPROXIMATE / approximate_module.MANIFEST,
    )


def _matrix(store: Store, model: Model) -> Matrix | None:
    """The derived matrix, if there is a sound one of this store and model."""
    folder = derived_folder(store, model) / MATRIX
    if not (folder / matrix_module.MANIFEST).is_file():  # or its first build was killed
        return None
    try:
        matrix = Matrix.open(folder)
    except IndexFileError as error:
        log.warning("%s The collection's own file answers instead.", error)
        return None
    same = (matrix.meta["store"], matrix.meta["fingerprint"]) == (store.id, model.fingerprint)
    return matrix if same else None


def _approximate(folder: Path, matrix: Matrix) -> Approximate | None:
    """The approximate index of this very matrix, if there is a sound one."""
    if not (folder / approximate_module.MANIFEST).is_file():
        return None
    try:
        return Approximate.open(folder, matrix)
    except (IndexFileError, MissingExtraError) as error:
        log.warning("%s Everything is compared instead.", error)
        return None


def build_approximate(store: Store, encoder: Encoder, *, recall: float) -> dict[str, Any]:
    """Build the approximate index of the encoder's vectors, tuned on words. Under `Store.writer`.

    Returns:
        What was built and measured.

    Raises:
        MissingExtraError: faiss is not installed.
        CollectionError: there are no vectors of this model.
    """
    model = store.model(encoder.fingerprint)
    if model is None or not store.num_vectors(model):
        raise CollectionError(f"{store.folder}: nothing is indexed. Type: diptych index FOLDER")
    refresh(store, model, force=True)
    folder = derived_folder(store, model)
    matrix = Matrix.open(folder / MATRIX)
    queries = background_vectors(store, model, lambda: encoder)
    return Approximate.build(folder / APPROXIMATE, matrix, queries=queries, recall=recall).facts


def background_vectors(
    store: Store, model: Model, encoder: Callable[[], Encoder]
) -> Float[np.ndarray, "m e"]:
    """float32 vectors of the general words (`engine.relevance`), encoded once and kept."""
    texts = background_texts()
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    file = derived_folder(store, model) / f"words-{digest}.npy"
    try:
        kept = np.load(file, allow_pickle=False)
        if kept.shape == (len(texts), model.embed_dim) and kept.dtype == np.float32:
            return kept
    except (OSError, ValueError):
        pass  # not there yet, or damaged: made again
    vectors = encoder().encode_text(texts)

    def write(part: Path) -> None:
        with part.open("wb") as opened:
            np.save(opened, vectors, allow_pickle=False)

    with contextlib.suppress(CheckpointError):  # a folder that may not be written costs time
        atomic_write(file, write)
    return vectors


def refresh(store: Store, model: Model, *, force: bool = False) -> bool:
    """Rebuild the matrix if much of it is old; returns whether it was. Under `Store.writer`."""
    matrix = _matrix(store, model)
    if matrix is not None and not force:
        ids = store.ids(model)
        here = np.intersect1d(ids, matrix.ids, assume_unique=True).size
        old = max(len(ids), matrix.num_vectors) - here
        if old <= max(_FEW, matrix.num_vectors // 20):
            return False
    elif matrix is None and not force and store.num_vectors(model) <= _FEW:
        return False
    with store.snapshot():
        now = store.model(model.fingerprint)
        assert now is not None
        meta = {
            "store": store.id, "fingerprint": model.fingerprint, "generation": now.generation,
        }  # fmt: skip
        built = Matrix.build(
            derived_folder(store, model) / MATRIX,
            store.vectors(model),
            embed_dim=model.embed_dim,
            meta=meta,
        )
    _grow(derived_folder(store, model) / APPROXIMATE, built)
    return True


def _grow(folder: Path, matrix: Matrix) -> None:
    """Add the new rows to an approximate index; where rows are gone it has to be built again."""
    if not (folder / approximate_module.MANIFEST).is_file():
        return
    try:
        Approximate.open(folder, matrix, grown=True).add(matrix)
    except MissingExtraError as error:
        log.warning("%s Everything is compared meanwhile.", error)
    except IndexFileError as error:
        log.warning(
            "%s Everything is compared meanwhile. Type: diptych index --approximate 0.95", error
        )


class Rows:
    """All vectors of a model at one moment. Row numbers run over the parts.

    Args:
        derived: False reads everything from the store: slow, and needs no sound derived file.

    Attributes:
        ids: int64 [n]: the vectors' ids in the store, rising.
    """

    def __init__(self, store: Store, model: Model, *, derived: bool = True):
        self._mapped = matrix = _matrix(store, model) if derived else None
        with store.snapshot():
            now = store.model(model.fingerprint)
            if now is None:
                raise CollectionError(
                    f"{model.name}: its vectors were removed meanwhile. Type: "
                    "diptych index --status"
                )
            last = int(matrix.ids[-1]) if matrix is not None and matrix.num_vectors else 0
            fresh = list(store.vectors(now, after=last))
            alive = None
            if matrix is not None and matrix.meta["generation"] != now.generation:
                ids = store.ids(now)
                alive = np.isin(matrix.ids, ids, assume_unique=True)
        self._parts: list[tuple[Matrix, np.ndarray | None]] = []
        if matrix is not None and matrix.num_vectors:
            self._parts.append((matrix, None if alive is None or alive.all() else alive))
        if fresh:
            ids, vectors = (np.concatenate(part) for part in zip(*fresh, strict=True))
            self._parts.append((Matrix.of(ids, vectors), None))
        self._approximate = None
        if matrix is not None:
            folder = derived_folder(store, model) / APPROXIMATE
            self._approximate = _approximate(folder, matrix)
        empty = [np.empty(0, np.int64)]
        self.ids = np.concatenate([part.ids for part, _ in self._parts] or empty)
        self.generation = now.generation

    @property
    def num_vectors(self) -> int:
        """Rows that count: without those that are gone."""
        return sum(p.num_vectors if a is None else int(a.sum()) for p, a in self._parts)

    def vectors(self, rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k e"]:
        """float32 vectors of some rows."""
        found = None
        for part, _, offset in self._each():
            here = (rows >= offset) & (rows < offset + part.num_vectors)
            if here.any():
                values = part.vectors[rows[here] - offset].astype(np.float32)
                if found is None:
                    found = np.empty((len(rows), values.shape[1]), np.float32)
                found[here] = values
        assert found is not None, "no such rows"
        return found

    def sample(self, most: int = 4096) -> Float[np.ndarray, "k e"]:
        """float32 vectors of some rows, evenly spread: all of them, if there are few."""
        rows = np.linspace(0, len(self.ids) - 1, min(len(self.ids), most)).round().astype(np.int64)
        return self.vectors(rows)

    def scores(self, query: Float[np.ndarray, " e"]) -> Float[np.ndarray, " m"]:
        """Cosines of the query with all rows that count, as nearly as 8 bits give them."""
        parts = []
        for part, alive, _ in self._each():
            values = part.scores(query)
            parts.append(values if alive is None else values[alive])
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def topk(
        self,
        query: Float[np.ndarray, " e"],
        k: int,
        *,
        allowed: Int[np.ndarray, " m"] | None = None,
        exact: bool = False,
    ) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """(scores, rows) of the best: exactly, unless there is an approximate index.

        Args:
            allowed: ids of the vectors that may answer, rising; None for all.
            exact: also then.
        """
        scores, rows = [], []
        for part, alive, offset in self._each():
            where = alive
            if allowed is not None:
                some = np.isin(part.ids, allowed, assume_unique=True)
                where = some if where is None else where & some
            index = part
            if self._approximate is not None and part is self._mapped and not exact:
                index = self._approximate
            best, found = index.topk(query[None], k, where=where)
            scores.append(best[0])
            rows.append(found[0] + offset)
        if not scores:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        score, row = np.concatenate(scores), np.concatenate(rows)
        order = np.lexsort((row, -score))[:k]
        return score[order], row[order]

    def _each(self) -> Iterator[tuple[Matrix, np.ndarray | None, int]]:
        offset = 0
        for part, alive in self._parts:
            yield part, alive, offset
            offset += part.num_vectors
