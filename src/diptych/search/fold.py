"""Hits that show the same picture stand behind the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diptych.engine.neighbours import DUPLICATE_COSINE, DUPLICATE_HAMMING, hamming

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Candidate", "Hit", "fold"]


@dataclass(kw_only=True, slots=True)
class Hit:
    """One picture, or one moment of a video."""

    path: str  # the first of its files, by name
    score: float  # cosine, -1 to 1
    copies: list[str] = field(default_factory=list)  # other files with the same bytes
    similar: list[str] = field(default_factory=list)  # near-duplicates that were folded in
    moment: float | None = None  # seconds from the start of a video
    moments: list[float] = field(default_factory=list)  # other moments of it that fit
    taken: str | None = None
    camera: str | None = None
    width: int | None = None
    height: int | None = None
    vector_id: int = 0


class Candidate(NamedTuple):
    """A hit, and what says whether it is like another."""

    content: int
    hash: int | None  # perceptual
    hit: Hit


def fold(candidates: Sequence[Candidate], vectors: Float[np.ndarray, "k e"]) -> list[Hit]:
    """The hits, best first, that are unlike all better ones; the others are named in those.

    Args:
        candidates: best first.
        vectors: float32, theirs.
    """
    hits: list[Hit] = []
    # of the hits with a hash: their places among the candidates, and their hashes
    num, places = 0, np.empty(len(candidates), np.int64)
    of_content: dict[int, Hit] = {}
    hashes = np.array([c.hash or 0 for c in candidates], np.uint64)
    taken = np.empty_like(hashes)
    for i, (content, value, hit) in enumerate(candidates):
        if (better := of_content.get(content)) is not None:  # another moment of one video
            better.moments.append(hit.moment or 0.0)
            continue
        if value is not None and num:
            # the hashes first: 8 bytes of each better hit, not a whole vector
            near = places[:num][hamming(taken[:num], hashes[[i]]) <= DUPLICATE_HAMMING]
            near = near[vectors[near] @ vectors[i] >= DUPLICATE_COSINE]
            if len(near):
                candidates[near[0]].hit.similar.append(hit.path)
                continue
        hits.append(hit)
        of_content[content] = hit
        if value is not None:
            places[num], taken[num] = i, hashes[i]
            num += 1
    return hits
