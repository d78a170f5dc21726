"""Which sample comes when: a pure function of (seed, position), whoever asks and however many.

- A stream is what is shuffled together: the union of all sources, or one source where they have
  weights. In each epoch its shards are permuted and cut into windows of `window` shards; the
  samples of a window are shuffled together. So reading stays local and nobody holds the data.
- With weights each stream has a share of every batch: the whole part of share x batch, and the
  places that are left go to those to whom most is owed. Shares hold in the long run.
- An epoch that has fewer samples left than its share of a batch ends there; they are counted. So
  no sample is in a batch twice.
- Random numbers are hashes of counters (splitmix64; Steele et al., OOPSLA 2014), not a generator's
  state: any position is as near as any other, and no version of a library changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from diptych.errors import DataError

__all__ = ["Order", "Position", "Ref", "hashed"]

TRIES = 8  # stand-ins for a sample that cannot be decoded

# what a hash is for
_SHARDS, _WINDOW, _SAMPLE, _BATCH, _STAND_IN = range(5)


class Ref(NamedTuple):
    """A sample and its turn.

    source, shard, row: where it stands: shard counts within the source, row within the shard.
    epoch: of its stream, from 0. seed: 63 bits; all that is random about it depends on them.
    """

    source: int
    shard: int
    row: int
    epoch: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far the order has come; the beginning by default.

    Attributes:
        batch: batches given.
        epochs: of each stream, the one it is in.
        taken: of each stream, samples given in this epoch.
        owed: of each stream, the fraction of a place that it has to get.
        left_out: samples at the ends of epochs that no batch held.
    """

    batch: int = 0
    epochs: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()
    owed: tuple[float, ...] = ()
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which keeps a float's bits."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Position:
        """What `to_dict` wrote, also after JSON has made lists of its tuples."""
        tuples = {name: tuple(found[name]) for name in ("epochs", "taken", "owed")}
        return cls(batch=found["batch"], left_out=found["left_out"], **tuples)


class _Batch(NamedTuple):
    """The rows of a batch, the stream and window of each, and the position after it."""

    refs: list[Ref]
    streams: list[int]
    windows: list[int]
    after: Position


def hashed(*parts: Any) -> np.ndarray:
    """uint64: a hash of whole numbers; one may be an array, then one for each element.

    Parts count with their place: (1, 2) and (2, 1) differ.
    """
    with np.errstate(over="ignore"):
        total = np.zeros((), np.uint64)
        for part in parts:
            if isinstance(part, int):
                part = np.uint64(part & 0xFFFFFFFFFFFFFFFF)
            total = (total ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            total = (total ^ (total >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            total = (total ^ (total >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total = total ^ (total >> np.uint64(31))
        return np.asarray(total)


def _permutation(n: int, *key: int) -> np.ndarray:
    return np.argsort(hashed(*key, np.arange(n)), kind="stable")


@dataclass(frozen=True, slots=True)
class _Stream:
    """What is shuffled together: source and shard of each of its units, and their samples."""

    sources: np.ndarray
    shards: np.ndarray
    counts: np.ndarray
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", int(self.counts.sum()))


class Order:
    """The order of all samples of some sources.

    Args:
        counts: of each source, the samples of each of its shards.
        weights: of each source, its share of every batch, in any unit; None: one union.
        seed: any whole number.
        window: shards whose samples are shuffled together.
        names: of the sources, for errors.

    Raises:
        DataError: no sample, or a weight that is not above 0.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        window: int = 16,
        names: Sequence[str] | None = None,
    ):
        self.seed, self.window, self.weights = seed, window, weights
        self.names = names or [f"source {i}" for i in range(len(counts))]
        parts = [np.asarray(part, np.int64) for part in counts]
        if weights is not None and (len(weights) != len(parts) or not all(w > 0 for w in weights)):
            raise DataError(f"weights {weights}: give each of {len(parts)} sources one above 0.")
        if empty := [n for n, part in zip(self.names, parts, strict=True) if not part.sum()]:
            raise DataError(f"{empty[0]}: holds no sample. Give a source that does.")
        which = [np.full(len(part), i) for i, part in enumerate(parts)]
        shard = [np.arange(len(part)) for part in parts]
        if weights is None:
            joined = [np.concatenate(columns) for columns in (which, shard, parts)]
            self._streams = [_Stream(*joined)]
        else:
            self._streams = [_Stream(*columns) for columns in zip(which, shard, parts, strict=True)]
        self.size = sum(stream.size for stream in self._streams)
        self._permuted = lru_cache(4)(self._make_permuted)
        self._in_window = lru_cache(4 + len(self._streams))(self._make_window)
        self._last: tuple[Any, _Batch] | None = None

    def __reduce__(self) -> Any:
        return _again, (self._counts(), self.weights, self.seed, self.window, self.names)

    def _counts(self) -> list[np.ndarray]:
        counts = np.concatenate([stream.counts for stream in self._streams])
        sources = np.concatenate([stream.sources for stream in self._streams])
        return [counts[sources == i] for i in range(len(self.names))]

    def next_batch(self, position: Position, *, batch_size: int) -> tuple[list[Ref], Position]:
        """The samples of the batch at `position`, and the position after it.

        Raises:
            DataError: a source has fewer samples than its share of a batch.
        """
        batch = self._batch(position, batch_size)
        return batch.refs, batch.after

    def stand_ins(self, position: Position, row: int, *, batch_size: int) -> list[Ref]:
        """What may stand for row `row` of that batch if it cannot be decoded, in this order.

        Samples of the same window that are in no row of the batch, while there are some, and no
        two rows have the same ones; then others of the window. At most `TRIES`.
        """
        batch = self._batch(position, batch_size)
        stream, window, epoch = batch.streams[row], batch.windows[row], batch.refs[row].epoch
        found = zip(batch.streams, batch.windows, batch.refs, strict=True)
        mates = [
            i for i, (s, w, r) in enumerate(found) if (s, w, r.epoch) == (stream, window, epoch)
        ]
        inside, known = self._in_window(stream, epoch, window), self._streams[stream]
        columns = [known.sources[inside[0]], known.shards[inside[0]], inside[1]]
        taken = np.array([batch.refs[i][:3] for i in mates])
        shape = [int(column.max()) + 1 for column in columns]  # a window may hold a million
        one = np.ravel_multi_index(columns, shape)
        free = np.flatnonzero(~np.isin(one, np.ravel_multi_index(taken.T, shape)))
        mixed = _permutation(len(free), self.seed, _STAND_IN, position.batch, stream, window)
        own = mixed[mates.index(row) :: len(mates)][:TRIES].tolist()
        if len(own) < TRIES:  # a small window: some that other rows may take as well
            start = int(hashed(self.seed, _STAND_IN, position.batch, row) % max(len(free), 1))
            more = [*range(start, len(free)), *range(start)]
            own += [i for i in more if i not in own][: TRIES - len(own)]
        if len(free):
            chosen = free[own]
            return self._refs(stream, inside[0][chosen], inside[1][chosen], epoch)
        others = [batch.refs[i] for i in mates if i != row]  # the batch holds the whole window
        return (others[mates.index(row) :] + others)[:TRIES]

    # --- a batch ---

    def _batch(self, position: Position, batch_size: int) -> _Batch:
        key, last = (position, batch_size), self._last
        if last is None or last[0] != key:
            last = self._last = (key, self._make_batch(position, batch_size))
        return last[1]

    def _make_batch(self, position: Position, batch_size: int) -> _Batch:
        n = len(self._streams)
        epochs, taken = list(position.epochs or (0,) * n), list(position.taken or (0,) * n)
        quotas, owed = self._quotas(position.owed or (0.0,) * n, batch_size)
        refs: list[Ref] = []
        streams: list[int] = []
        windows: list[int] = []
        left_out = position.left_out
        for i, (stream, quota) in enumerate(zip(self._streams, quotas, strict=True)):
            if stream.size - taken[i] < quota:
                left_out += stream.size - taken[i]
                epochs[i], taken[i] = epochs[i] + 1, 0
            for window, found in self._take(i, epochs[i], taken[i], quota):
                refs += found
                windows += [window] * len(found)
            streams += [i] * quota
            taken[i] += quota
        if n > 1:  # no rank gets all of a source
            mixed = _permutation(batch_size, self.seed, _BATCH, position.batch).tolist()
            refs, streams, windows = ([part[j] for j in mixed] for part in (refs, streams, windows))
        after = Position(
            batch=position.batch + 1,
            epochs=tuple(epochs),
            taken=tuple(taken),
            owed=tuple(owed),
            left_out=left_out,
        )
        return _Batch(refs, streams, windows, after)

    def _quotas(self, owed: Sequence[float], batch_size: int) -> tuple[list[int], list[float]]:
        """Places of each stream in this batch, and what is owed to each after it."""
        weights = [1.0] if self.weights is None else self.weights
        exact = [batch_size * weight / sum(weights) for weight in weights]
        quotas = [int(value) for value in exact]
        debts = [debt + value - int(value) for debt, value in zip(owed, exact, strict=True)]
        for i in sorted(range(len(debts)), key=lambda i: (-debts[i], i))[
            : batch_size - sum(quotas)
        ]:
            quotas[i] += 1
            debts[i] -= 1.0
        for i, value in enumerate(exact):
            most = int(value) + (len(exact) > 1 and value != int(value))
            if self._streams[i].size < most:
                what = self.names[i] if self.weights is not None else "the data"
                raise DataError(
                    f"{what}: has {self._streams[i].size:,} samples, fewer than its {most:,} "
                    f"places in a batch of {batch_size:,}. Make batch_size (or its weight) smaller."
                )
        return quotas, debts

    def _take(
        self, stream: int, epoch: int, start: int, count: int
    ) -> Iterator[tuple[int, list[Ref]]]:
        """`count` samples of an epoch from `start` on, window by window."""
        ends, stop = self._permuted(stream, epoch)[1], start + count
        while start < stop:
            window = int(np.searchsorted(ends, start, side="right"))
            before = int(ends[window - 1]) if window else 0
            units, rows = self._in_window(stream, epoch, window)
            part = slice(start - before, stop - before)
            found = self._refs(stream, units[part], rows[part], epoch)
            yield window, found
            start += len(found)

    def _refs(self, stream: int, units: np.ndarray, rows: np.ndarray, epoch: int) -> list[Ref]:
        sources = self._streams[stream].sources[units]
        shards = self._streams[stream].shards[units]
        seeds = hashed(self.seed, _SAMPLE, sources, shards, rows, epoch) >> np.uint64(1)
        columns = (sources.tolist(), shards.tolist(), rows.tolist(), seeds.tolist())
        return [Ref(s, shard, r, epoch, seed) for s, shard, r, seed in zip(*columns, strict=True)]

    # --- an epoch ---

    def _make_permuted(self, stream: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The units of an epoch in order, and the number of samples up to each window's end."""
        counts = self._streams[stream].counts
        units = _permutation(len(counts), self.seed, _SHARDS, stream, epoch)
        sizes = np.add.reduceat(counts[units], np.arange(0, len(units), self.window))
        return units, np.cumsum(sizes)

    def _make_window(self, stream: int, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit and row of each sample of a window, shuffled."""
        start = window * self.window
        units = self._permuted(stream, epoch)[0][start : start + self.window]
        counts = self._streams[stream].counts[units]
        unit = np.repeat(units, counts)
        row = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
        mixed = _permutation(len(unit), self.seed, _WINDOW, stream, epoch, window)
        return unit[mixed], row[mixed]


def _again(counts: Any, weights: Any, seed: int, window: int, names: Any) -> Order:
    return Order(counts, weights=weights, seed=seed, window=window, names=names)
