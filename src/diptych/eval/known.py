"""What a model may have seen of an evaluation set: `eval.overlap` on sources as people type them.

A source is a folder of pictures, a list, tar shards ("{0000..0099}" and "*" are understood), or,
on the side of the evaluation, the name of a set. With a report of `eval.run` the accuracy of that
set is also given without the pictures that were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diptych.data.shards import Report, read_shard
from diptych.data.sources import Source, files_of
from diptych.engine.stream import sources
from diptych.errors import DataError, ImageError, ShardError
from diptych.eval.compare import items_of
from diptych.eval.overlap import overlap, with_and_without
from diptych.eval.sets import SETS, DataSet, read

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = ["known_pictures"]


def known_pictures(
    encoder: Encoder,
    train: str,
    evaluation: str,
    *,
    data: Path | None = None,
    report: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Which pictures of `evaluation` are in `train`, by name.

    Args:
        evaluation: a source, or a name of `diptych eval sets`, which is read from `data`.
        report: the folder of an evaluation that holds this set.
        progress: is told how many pictures were read.

    Returns:
        {"num_train", "num_evaluation", "found": [{"path", "num", "matches": [{"train", "reason",
        "cosine", "bits"}]}], "unused": [{"path", "reason"}], "accuracy": None, or
        {"everything", "clean", "overlap", "gain", "p"} with intervals}.

    Raises:
        DataError: nothing to be read on one side; or a report without the set.
    """
    row = SETS.get(evaluation)
    if report is not None and row is None:
        raise DataError(
            f"{evaluation}: is no set that a report can be of. With --report give the name of a "
            "set: diptych eval sets"
        )
    trained = _source(train)
    held = _source(evaluation) if row is None else _set(row, data)
    found = overlap(encoder, trained, held, progress=progress)
    result: dict[str, Any] = {
        "num_train": found.num_train,
        "num_evaluation": found.num_evaluation,
        "found": [
            {
                "path": held.names[one.evaluation],
                "num": one.num_matches,
                "matches": [
                    match._asdict() | {"train": trained.names[match.train]} for match in one.matches
                ],
            }
            for one in found.found
        ],
        "unused": held.unused(found.unused_evaluation) + trained.unused(found.unused_train),
        "accuracy": None,
    }
    if report is not None:
        inside = {line["path"] for line in result["found"]}
        result["accuracy"] = _accuracy(report / "sets" / evaluation, inside)
    return result


class _Named:
    """Pictures for `overlap`, which knows a path by itself and all else by its position."""

    def __init__(self, pairs: Iterator[tuple[str, Any]], lost: list[tuple[str, str]]):
        self.pairs, self.lost = pairs, lost
        self.names: dict[Any, str] = {}

    def __iter__(self) -> Iterator[Any]:
        for i, (name, image) in enumerate(self.pairs):
            self.names[str(image) if isinstance(image, Path) else i] = name
            yield image

    def unused(self, found: Iterable[tuple[Any, str]]) -> list[dict[str, str]]:
        """What could not be read, here and by `overlap`, by name."""
        told = [*self.lost, *((self.names[key], reason) for key, reason in found)]
        return [{"path": name, "reason": reason} for name, reason in told]


def _source(given: str) -> _Named:
    lost: list[tuple[str, str]] = []

    def pairs() -> Iterator[tuple[str, Any]]:
        for file in files_of(Source(path=given)):
            if file.is_dir():
                yield from sources(file)
                continue
            report = Report(on_drop=lambda drop: lost.append((drop.name, drop.reason)))
            for sample in read_shard(file, report=report):
                yield f"{file}!{sample.key}", sample.image

    return _Named(pairs(), lost)


def _set(row: DataSet, data: Path | None) -> _Named:
    found = read(row, None if data is None else data / row.name)
    lost = [(one.key, one.reason) for one in found.unused]

    def pairs() -> Iterator[tuple[str, Any]]:
        for sample in found.samples:
            for image in sample.image if isinstance(sample.image, list) else [sample.image]:
                try:
                    yield sample.key, image() if callable(image) else Path(image)
                except (DataError, ImageError, OSError, ShardError) as error:
                    lost.append((sample.key, str(error)))

    return _Named(pairs(), lost)


def _accuracy(folder: Path, inside: set[str]) -> dict[str, Any]:
    items = items_of(folder)
    overlapping = np.isin(items["key"], list(inside))
    found = with_and_without(torch.from_numpy(items["right"]), torch.from_numpy(overlapping))
    return found._asdict()
