"""What a data set is: a row that names its protocol, and the samples that a reader finds of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["DataSet", "Sample", "Samples", "Task", "Unused"]

Task = Literal["classification", "multilabel", "retrieval", "choice"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a set and what is true of it. `key` is unique in the set and stable.

    Attributes:
        image: a path, or a function without arguments that returns what `Encoder.encode_image`
            takes (bytes, a Pillow image, uint8 [H W C]); a list of them for the frames of a video
            and for the pictures of a choice.
        labels: rows of the class list: one for classification, any number for multilabel.
        captions: for retrieval all that describe the picture; for a choice the right text of each
            picture first, then the wrong ones.
        group: what worst-group figures are taken over (a region, an income, a language), or "".
    """

    key: str
    image: Any
    labels: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    group: str = ""

    def open(self) -> Any:
        """What `Encoder.encode_image` takes."""
        return self.image() if callable(self.image) else self.image


@dataclass(frozen=True, slots=True)
class Unused:
    """A sample that could not be used, by name and reason: it is reported with every figure."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a reader found.

    Attributes:
        classes: names in the order of the labels, as the data give them; () where they give none.
        templates: those that lie beside the data (clip_benchmark's web data sets), else ().
        unused: files that are no samples: unreadable rows, pictures that are not there.
        notes: what a person should know: a count that is not the expected one, a checksum.
    """

    samples: Sequence[Sample]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A row: one data set under one protocol.

    Attributes:
        name: as it is typed: "food101", "imagenet-a".
        title: as people write it: "Food-101".
        metric: the figure that the set is quoted by, a key of the task's metrics.
        templates: a prompt set (`engine.prompts.TEMPLATE_SETS`), or None: those beside the data,
            or captions and labels as they are.
        classes: a class list (`eval.classes`), or None: that of the data.
        split: whose samples count.
        size: how many samples the split has as published, None where nobody says.
        num_classes: likewise.
        suites: which collections it belongs to: "paper", "vtab+", "datacomp", "imagenet-shifts",
            "retrieval", "packaged".
        source: the address of its publisher, or the package it comes from. licence: its terms.
        worst_without: groups that cannot be the worst one (FMoW's "Other").
        note: the traps of this set, in a sentence.
        make: for generated sets the function that makes the samples; such a set needs no folder.
    """

    name: str
    title: str
    task: Task
    metric: str
    templates: str | None = None
    classes: str | None = None
    split: str = "test"
    size: int | None = None
    num_classes: int | None = None
    suites: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    worst_without: tuple[str, ...] = ()
    note: str = ""
    make: Callable[[], Samples] | None = field(default=None, repr=False)
