"""The pictures of a set to vectors: streamed, and every one that cannot be read is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.errors import DataError, ImageError, ShardError
from diptych.eval.sets import Sample, Unused

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = ["encode"]


def encode(
    encoder: Encoder,
    samples: Sequence[Sample],
    *,
    frames: bool,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[list[int], list[Tensor], list[Unused]]:
    """Unit vectors of the pictures of each sample.

    Args:
        frames: the pictures of one sample are frames of a video: one that cannot be read is named
            and the rest stands for it. Otherwise a sample needs all of its pictures.
        advance: is told how many more pictures are done.

    Returns:
        The rows of the samples that can be used, their vectors (fp32, on the CPU) [p e] each, and
        what cannot be used.
    """
    pictures = _Pictures(samples)
    for batch in encoder.stream_pairs(pictures):
        vectors = batch.vectors.float().cpu()
        pictures.vectors |= dict(zip(batch.keys, vectors, strict=True))
        pictures.reasons |= {key: str(error) for key, error in batch.errors.items()}
        advance(len(batch.keys) + len(batch.errors))
    kept, rows, unused = [], [], []
    for row, sample in enumerate(samples):
        places = [pictures.first.get(place, place) for place in _places(row, sample)]
        good = [pictures.vectors[place] for place in places if place in pictures.vectors]
        bad = [pictures.reasons[place] for place in places if place in pictures.reasons]
        unused += [Unused(sample.key, reason) for reason in bad]
        if good and (frames or not bad):
            kept.append(row)
            rows.append(torch.stack(good))
    return kept, rows, unused


Place = tuple[int, int]  # the row of a sample, and the number of its picture


def _places(row: int, sample: Sample) -> list[Place]:
    return [(row, i) for i in range(len(sample.image) if isinstance(sample.image, list) else 1)]


class _Pictures:
    """The pictures of all samples, to be encoded; a file that several samples name only once.

    Attributes:
        first: of a picture that has come before, the place where it came.
        vectors, reasons: what became of a picture: its vector, or why there is none.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples
        self.first: dict[Place, Place] = {}
        self.vectors: dict[Place, Tensor] = {}
        self.reasons: dict[Place, str] = {}

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        seen: dict[str, Place] = {}
        for row, sample in enumerate(self.samples):
            several = sample.image if isinstance(sample.image, list) else [sample.image]
            for place, image in zip(_places(row, sample), several, strict=True):
                if isinstance(image, str | Path):
                    before = seen.setdefault(str(image), place)
                    if before != place:
                        self.first[place] = before
                        continue
                try:
                    yield place, image() if callable(image) else image
                except (DataError, ImageError, OSError, ShardError) as error:
                    self.reasons[place] = str(error)
