"""What a measurement is made of: figures with intervals, tables, and what each sample came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diptych.eval.uncertainty import Interval, bootstrap, wilson

if TYPE_CHECKING:
    from diptych.engine import Encoder
    from diptych.eval.sets import DataSet, Sample

__all__ = ["Figure", "Job", "Outcome", "Worst", "mean", "plain", "share", "share_of"]


class Figure(NamedTuple):
    """A number and its 95 % interval; None where there is none, `how` says why or which."""

    value: float
    low: float | None
    high: float | None
    how: str

    @classmethod
    def of(cls, value: float, interval: Interval) -> Figure:
        return cls(float(value), interval.low, interval.high, interval.method)


class Worst(NamedTuple):
    """A sample that the model is wrong about and sure of: its row, and what is to be said of it."""

    row: int
    told: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a task measures: `vectors` are unit rows, one a sample (a choice: `[n p e]`)."""

    encoder: Encoder
    row: DataSet
    samples: Sequence[Sample]
    vectors: Any
    names: tuple[tuple[str, ...], ...]  # of each class, the first is how it is called
    templates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task found.

    Attributes:
        figures: by name; the set's headline is among them.
        chance: what guessing reaches in the headline; None where that is not known.
        tables: anything else, as JSON takes it.
        items: an array by name, one entry a sample: what `compare` pairs.
        worst: at most a dozen, worst first.
    """

    figures: Mapping[str, Figure]
    chance: float | None = None
    tables: Mapping[str, Any] = field(default_factory=dict)
    items: Mapping[str, np.ndarray] = field(default_factory=dict)
    worst: Sequence[Worst] = ()


def share(hits: Any) -> Figure:
    """The share of true entries, with Wilson's interval for independent samples."""
    hits = np.asarray(hits)
    return share_of(float(hits.mean()), len(hits))


def share_of(value: float, n: int) -> Figure:
    """A share of n independent samples, with Wilson's interval."""
    low, high = wilson(value, n)
    return Figure(value, low, high, f"Wilson 95 %, n = {n:,}")


def mean(values: Any, *, clusters: Any = None) -> Figure:
    """The mean and its bootstrap; samples of one cluster (captions of a picture) stay together."""
    values = np.asarray(values, np.float64)
    interval = bootstrap(lambda rows: values[rows.numpy()].mean(), len(values), clusters=clusters)
    return Figure.of(float(values.mean()), interval)


def plain(value: float, why: str) -> Figure:
    """A figure without an interval, and why it has none."""
    return Figure(float(value), None, None, why)
