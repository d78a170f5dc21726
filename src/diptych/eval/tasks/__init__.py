"""How a set is measured: one function a task, from vectors to figures with intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diptych.errors import DataError
from diptych.eval.retrieval import mean_frames
from diptych.eval.sets import DataSet, Samples, Unused
from diptych.eval.tasks.choice import choice
from diptych.eval.tasks.classification import classification
from diptych.eval.tasks.encode import encode
from diptych.eval.tasks.multilabel import multilabel
from diptych.eval.tasks.outcome import Figure, Job, Outcome, Worst
from diptych.eval.tasks.protocol import names_of, templates_for
from diptych.eval.tasks.retrieval import retrieval

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = ["Figure", "Job", "Outcome", "Worst", "measure", "num_pictures"]

_TASKS: dict[str, Callable[[Job], Outcome]] = {
    "classification": classification,
    "multilabel": multilabel,
    "retrieval": retrieval,
    "choice": choice,
}


def num_pictures(found: Samples) -> int:
    """How many pictures `measure` decodes."""
    images = [s.image if isinstance(s.image, list) else [s.image] for s in found.samples]
    files = [str(image) for some in images for image in some if isinstance(image, str | Path)]
    return sum(map(len, images)) - len(files) + len(set(files))


def measure(
    encoder: Encoder,
    row: DataSet,
    found: Samples,
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[Outcome, Job, list[Unused]]:
    """One set, measured.

    Args:
        advance: is told how many more pictures are done.

    Returns:
        What was found, the samples and vectors that it was found of, and the samples that could not
        be used, those that the reader named included.

    Raises:
        DataError: not one sample can be used; names the first reason.
    """
    names, templates = names_of(row, found), templates_for(row, found)
    frames = row.task != "choice"
    kept, vectors, lost = encode(encoder, found.samples, frames=frames, advance=advance)
    unused = [*found.unused, *lost]
    if not kept:
        first = f" The first: {unused[0].key}: {unused[0].reason}" if unused else ""
        raise DataError(f"{row.name}: no sample can be used, of {len(found.samples)}.{first}")
    if frames:
        numbers = torch.tensor([len(v) for v in vectors])
        owner = torch.arange(len(vectors)).repeat_interleave(numbers)
        vectors = mean_frames(torch.cat(vectors), owner)
    samples = [found.samples[i] for i in kept]
    job = Job(
        encoder=encoder,
        row=row,
        samples=samples,
        vectors=vectors,
        names=names,
        templates=templates,
    )
    return _TASKS[row.task](job), job, unused
