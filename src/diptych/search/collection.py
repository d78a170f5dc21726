"""A collection that can be asked: words or pictures in, hits with their files out.

    photos = Collection("default")
    for hit in photos.search("a dog on the beach", top=20): ...

- The model is the one whose vectors are whole, not the one that is being indexed: a change of the
  model never leaves a collection without answers.
- Hits that fit no better than anything would are not shown (`engine.relevance`), so the answer
  can be that nothing was found. Near-duplicates stand behind the best of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.engine import load
from diptych.engine.neighbours import DUPLICATE_COSINE
from diptych.engine.relevance import STRICTNESS, Relevance
from diptych.errors import (
    CollectionError,
    ConfigError,
    IndexFileError,
    ModelNotFoundError,
    nearest,
)
from diptych.search.filters import Filters
from diptych.search.fold import Candidate, Hit
from diptych.search.fold import fold as fold_hits
from diptych.search.query import Term, vector
from diptych.search.records import Model, fs_path, unsigned
from diptych.search.rows import Rows, background_vectors
from diptych.search.store import Store
from diptych.zoo.opening import SUFFIXES

if TYPE_CHECKING:
    from jaxtyping import Float

    from diptych.engine import Encoder

__all__ = ["Answer", "Collection", "Hit", "name_to_keep"]

log = logging.getLogger("diptych")


@dataclass(kw_only=True, slots=True)
class Answer:
    """The hits of a question, best first, and what was decided about the rest.

    Attributes:
        threshold: the cosine below which nothing is shown; -1 without a cut-off.
        best: the highest cosine of all, shown or not; None where nothing may answer.
        num_searched: vectors that were compared.
    """

    hits: list[Hit]
    threshold: float
    best: float | None
    num_searched: int


class Collection:
    """A store with a model that answers.

    Args:
        name: a name, or the path of a collection's folder.
        model: a name or fingerprint of one of its models; by default the one that is whole.
        encoder: already loaded; it must have the fingerprint of the vectors.
        loading: more options for `diptych.load`, as `device`.

    Raises:
        CollectionError: there is no such collection, or no vectors of that model in it.
    """

    def __init__(
        self,
        name: str | Path = "default",
        *,
        model: str | None = None,
        encoder: Encoder | None = None,
        loading: dict[str, Any] | None = None,
    ):
        self.store = Store(name)
        try:
            self.model = _choose(self.store, encoder.fingerprint if encoder else model)
        except CollectionError:
            self.store.close()
            raise
        self._encoder = encoder
        self._loading = loading or {}
        self._rows: Rows | None = None
        self._measured: tuple[Rows, Relevance] | None = None

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.store.close()

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors; loaded when first needed.

        Raises:
            CollectionError: the same name loads another model today, or none.
        """
        if self._encoder is None:
            options = self.model.options
            if not options:
                raise CollectionError(
                    f"{self.model.name}: it is not known where this model comes from. Pass "
                    "encoder=."
                )
            try:
                found = load(**options, **self._loading)
            except ModelNotFoundError as error:
                raise CollectionError(
                    f"{error} It has made the vectors of {self.store.folder}. Bring it back, or "
                    "index with another: diptych index --model NAME"
                ) from error
            if found.fingerprint != self.model.fingerprint:
                raise CollectionError(
                    f"{options['name']}: its fingerprint is {found.fingerprint[:16]}, the vectors "
                    f"were made by {self.model.fingerprint[:16]}: another model, or other files. "
                    f"To index with it beside the old one, type: diptych index --model "
                    f"{options['name']}"
                )
            self._encoder = found
        return self._encoder

    def rows(self) -> Rows:
        """The vectors of now; kept while the store does not change."""
        current = self.store.model(self.model.fingerprint)
        if current is None:
            raise CollectionError(
                f"{self.model.name}: its vectors were removed meanwhile. Type: "
                "diptych index --status"
            )
        if self._rows is None or self._rows.generation != current.generation:
            self._rows = Rows(self.store, current)
        return self._rows

    def search(
        self,
        query: str | Sequence[Term] | Float[np.ndarray, " e"],
        *,
        top: int = 10,
        filters: Filters | None = None,
        strictness: float | None = STRICTNESS,
        fold: bool = True,
        exact: bool = False,
    ) -> Answer:
        """What fits best.

        Args:
            query: words, terms (`search.query.parse`), or a unit vector.
            top: hits at most.
            strictness: from 0 (show what may fit) to 1 (only what surely fits); None shows the
                `top` best whatever they are.
            fold: near-duplicates, and moments of one video, stand behind the best of them.
            exact: compare everything, even if there is an approximate index.

        Raises:
            ConfigError: `top` below 1, or a query that is none.
        """
        if top < 1:
            raise ConfigError(f"top must be at least 1, got {top}")
        if isinstance(query, str):
            if not query.strip():
                raise ConfigError("the query is empty. Give some words.")
            query = [Term(query)]
        asked = query if isinstance(query, np.ndarray) else self._vector(query)
        allowed = self._allowed(filters) if filters and not filters.is_empty else None
        words = not isinstance(query, np.ndarray) and not any(t.is_image for t in query)
        how = {
            "top": top, "allowed": allowed, "strictness": strictness, "words": words,
            "filters": filters or Filters(),
        }  # fmt: skip
        try:
            return self._answer(self.rows(), asked, fold=fold, exact=exact, **how)
        except IndexFileError as error:  # a row that was never needed before
            log.warning("%s The collection's own file answers instead.", error)
            self._rows = Rows(self.store, self.model, derived=False)
            return self._answer(self._rows, asked, fold=fold, exact=True, **how)

    def _answer(
        self,
        rows: Rows,
        asked: np.ndarray,
        *,
        top: int,
        allowed: np.ndarray | None,
        filters: Filters,
        strictness: float | None,
        words: bool,
        fold: bool,
        exact: bool,
    ) -> Answer:
        threshold, hits = -1.0, []
        wanted, best = 2 * top + 16 if fold else top, None
        while True:
            scores, found = rows.topk(asked, wanted, allowed=allowed, exact=exact)
            if len(scores) and best is None:
                best = float(scores[0])
                if strictness is not None:
                    threshold = self._threshold(rows, asked, best, strictness, words=words)
            good = int((scores >= threshold).sum())
            hits = self._hits(rows, scores[:good], found[:good], filters, fold=fold)
            if len(hits) >= top or good < wanted:
                break
            wanted *= 4
        num_searched = rows.num_vectors if allowed is None else len(allowed)
        return Answer(hits=hits[:top], threshold=threshold, best=best, num_searched=num_searched)

    def _vector(self, terms: Sequence[Term]) -> Float[np.ndarray, " e"]:
        return vector(
            terms,
            encode_text=lambda text: self.encoder.encode_text(text)[0],
            encode_image=self.vector_of,
        )

    def _threshold(
        self, rows: Rows, asked: np.ndarray, best: float, strictness: float, *, words: bool
    ) -> float:
        """The cosine that a hit must reach; the general words are encoded once and kept."""
        if self._measured is None or self._measured[0] is not rows:
            background = background_vectors(self.store, self.model, lambda: self.encoder)
            self._measured = rows, Relevance.fit(rows.sample(), background)
        relevance, kind = self._measured[1], "text" if words else "image"
        bar = relevance.threshold(rows.scores(asked), kind=kind, strictness=strictness, best=best)
        # what may be the same picture is never hidden from one who asks with a picture
        return bar if words else min(bar, DUPLICATE_COSINE)

    def _allowed(self, filters: Filters) -> np.ndarray:
        condition, values = filters.sql()
        found = self.store.rows(
            "SELECT DISTINCT v.id FROM vectors v JOIN contents c ON c.id=v.content "
            f"JOIN files f ON f.content=c.id WHERE v.model=:model AND {condition} ORDER BY v.id",
            values | {"model": self.model.id},
        )
        return np.fromiter((row[0] for row in found), np.int64)

    def _hits(
        self, rows: Rows, scores: np.ndarray, found: np.ndarray, filters: Filters, *, fold: bool
    ) -> list[Hit]:
        """Hits of rows, best first."""
        if not len(found):
            return []
        known = self._candidates(rows.ids[found], filters)
        kept = [i for i, key in enumerate(rows.ids[found].tolist()) if key in known]
        candidates = [known[int(rows.ids[found[i]])] for i in kept]  # the rest went meanwhile
        for i, candidate in zip(kept, candidates, strict=True):
            candidate.hit.score = float(scores[i])
        if not fold:
            return [candidate.hit for candidate in candidates]
        return fold_hits(candidates, rows.vectors(found[kept]))

    def _candidates(self, ids: np.ndarray, filters: Filters) -> dict[int, Candidate]:
        """By vector id: what is known of it, without a score. Of several files with the same
        bytes the first that passes the filters stands for all."""
        condition, values = filters.sql()
        found: dict[int, Candidate] = {}
        for row in self.store.rows(
            "SELECT v.id, v.content, v.hash, v.moment, c.kind, c.taken, c.camera, c.width, "
            "c.height, f.path FROM (SELECT value FROM json_each(:ids)) j "
            "JOIN vectors v ON v.id=j.value "
            "JOIN contents c ON c.id=v.content JOIN files f ON f.content=c.id "
            f"ORDER BY v.id, NOT ({condition}), f.path",
            values | {"ids": json.dumps(ids.tolist())},
        ):
            key, content, value, moment, kind, taken, camera, width, height, path = row
            if key in found:
                found[key].hit.copies.append(path)
                continue
            hit = Hit(
                path=path,
                score=0.0,
                moment=moment if kind == "video" else None,
                taken=taken,
                camera=camera,
                width=width,
                height=height,
                vector_id=key,
            )
            found[key] = Candidate(content, unsigned(value), hit)
        return found

    def vector_of(self, image: Any) -> Float[np.ndarray, " e"]:
        """The unit vector of a picture: from the store, if it is a path that is there unchanged."""
        if isinstance(image, str | Path):
            with contextlib.suppress(OSError):
                path = os.path.abspath(image)  # noqa: PTH100  without "..", as it is kept
                stat = os.stat(path)  # noqa: PTH116
                found = self.store.rows(
                    "SELECT v.vector FROM files f JOIN vectors v ON v.content=f.content "
                    "JOIN contents c ON c.id=f.content WHERE f.path=CAST(? AS TEXT) "
                    "AND f.size=? AND f.mtime_ns=? AND v.model=? AND c.kind='image'",
                    [fs_path(path), stat.st_size, stat.st_mtime_ns, self.model.id],
                )
                for (blob,) in found:
                    kept = np.frombuffer(blob, "<f2").astype(np.float32)
                    return kept / np.linalg.norm(kept)
        return self.encoder.encode_image(image)[0]


def name_to_keep(name: str) -> str:
    """A model's name that means the same from every folder: a path is made whole."""
    if name.startswith((".", "~")) or name.endswith(SUFFIXES):
        return os.path.abspath(os.path.expanduser(name))  # noqa: PTH100, PTH111
    return name


def _choose(store: Store, wanted: str | None) -> Model:
    models = store.models()
    if not models:
        raise CollectionError(f"{store.folder}: nothing is indexed. Type: diptych index FOLDER")
    if wanted is None:
        return models[0]
    for model in models:
        names = (model.name, model.options.get("name"))
        if wanted in names or name_to_keep(wanted) in names or model.is_called(wanted):
            return model
    known = [model.name for model in models]
    raise CollectionError(
        f"{store.folder}: has no vectors of {wanted!r}. {nearest(wanted, known)} "
        f"Type: diptych index --model {wanted}"
    )
