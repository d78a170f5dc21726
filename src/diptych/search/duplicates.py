"""Pictures of a collection that are there twice, byte for byte or almost: a report, no deletion.

- The best of a group is kept: the most pixels, then the largest file, then the earliest date, then
  the first path. Every other picture of the group is near that one, not only near another of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych.engine.neighbours import DUPLICATE_COSINE, DUPLICATE_HAMMING, hamming, leaders
from diptych.search.filters import Filters
from diptych.search.records import Model, unsigned
from diptych.search.store import Store

__all__ = ["Group", "Picture", "duplicates"]


@dataclass(kw_only=True, slots=True)
class Picture:
    """One content and its files."""

    paths: list[str]  # all with these very bytes, the shortest first
    width: int
    height: int
    size: int  # bytes
    taken: str | None
    cosine: float = 1.0  # with the one that is kept
    bits: int = 0  # by which their perceptual hashes differ


@dataclass(kw_only=True, slots=True)
class Group:
    """What shows the same."""

    keep: Picture
    others: list[Picture] = field(default_factory=list)

    @property
    def spare(self) -> list[str]:
        """Every path but the one to keep."""
        others = [path for picture in self.others for path in picture.paths]
        return self.keep.paths[1:] + others

    @property
    def spare_bytes(self) -> int:
        """What the spare files take on the disk."""
        same = (len(self.keep.paths) - 1) * self.keep.size
        return same + sum(len(picture.paths) * picture.size for picture in self.others)


def duplicates(
    store: Store,
    model: Model,
    *,
    filters: Filters | None = None,
    cosine: float = DUPLICATE_COSINE,
    bits: int = DUPLICATE_HAMMING,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Group]:
    """Groups of two files and more, the one that wastes most first.

    Args:
        filters: only pictures that pass.
        cosine: near-duplicates have at least this cosine; above 1: only equal bytes count.
        bits: and perceptual hashes that differ in at most so many of 64 bits.
        progress: is told (pictures done, of how many).
    """
    pictures, vectors, hashes = _pictures(store, model, filters or Filters())
    order = sorted(range(len(pictures)), key=lambda i: _rank(pictures[i]))
    groups = [[i] for i in range(len(pictures))]
    some = np.flatnonzero([value is not None for value in hashes])
    hashes = np.array([unsigned(value) or 0 for value in hashes], np.uint64)
    if cosine <= 1 and len(some):
        place = {int(i): j for j, i in enumerate(some)}
        near = leaders(
            vectors[some],
            threshold=cosine,
            hashes=hashes[some],
            distance=bits,
            order=[place[i] for i in order if i in place],
            progress=lambda done: progress(done, len(some)),
        )
        near = [[int(some[j]) for j in group] for group in near]
        taken = {i for group in near for i in group}
        groups = near + [[i] for i in range(len(pictures)) if i not in taken]
    found = []
    for first, *rest in groups:
        if not rest and len(pictures[first].paths) == 1:
            continue
        unit = vectors[[first, *rest]].astype(np.float64)  # of length 1 only up to float16
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines = unit[1:] @ unit[0]
        for i, value in zip(rest, cosines.tolist(), strict=True):
            pictures[i].cosine = value
            pictures[i].bits = int(hamming(hashes[[i]], hashes[[first]])[0])
        found.append(Group(keep=pictures[first], others=[pictures[i] for i in rest]))
    return sorted(found, key=lambda group: (-group.spare_bytes, group.keep.paths))


def _pictures(
    store: Store, model: Model, filters: Filters
) -> tuple[list[Picture], np.ndarray, list[int | None]]:
    """Pictures, float16 vectors [n e] and hashes [n] of all that pass; no videos. An imported
    picture has no hash, and its copies are known all the same."""
    condition, values = filters.sql()
    rows = store.rows(
        "SELECT c.id, f.path, c.width, c.height, c.size, c.taken, v.hash, v.vector "
        "FROM vectors v JOIN contents c ON c.id=v.content JOIN files f ON f.content=c.id "
        "WHERE v.model=:model AND c.kind='image' "
        f"AND {condition} ORDER BY c.id, f.path",
        values | {"model": model.id},
    )
    pictures: list[Picture] = []
    hashes: list[int | None] = []
    blobs: list[bytes] = []
    last = None
    for content, path, width, height, size, taken, value, blob in rows:
        if content == last:
            pictures[-1].paths.append(path)
            # of equal files the one with the shorter name: "dog.jpg", not "dog copy.jpg"
            pictures[-1].paths.sort(key=lambda path: (len(path), path))
            continue
        last = content
        pictures.append(
            Picture(paths=[path], width=width or 0, height=height or 0, size=size, taken=taken)
        )
        hashes.append(value)
        blobs.append(blob)
    vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), model.embed_dim)
    return pictures, vectors, hashes


def _rank(picture: Picture) -> tuple[Any, ...]:
    """Small for what is worth keeping."""
    pixels = picture.width * picture.height
    return -pixels, -picture.size, picture.taken or "9999", picture.paths
