"""Pairs of image and caption in batches: the same ones for any number of workers and of ranks.

- Which samples: `order`. What is random about a sample (crop, caption, ...) hangs on its seed.
- A sample that cannot be decoded is counted, and a stand-in of its window takes its place.
- The work is cut into chunks: of a thread pool (workers=0), or of processes that open the indexes
  by path. Nothing but a few numbers goes to them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.index import Index, index_file
from diptych.data.order import Order, Position
from diptych.data.shards import Drop
from diptych.data.sources import Source, as_sources, files_of
from diptych.data.workers import (
    Chunk,
    Files,
    ImageOf,
    Maker,
    Task,
    TokensOf,
    are_alike,
    in_processes,
    in_threads,
)
from diptych.errors import DataError

__all__ = ["PairBatch", "Pairs", "Tally"]

UNIT = 1 << 16  # rows of a large list that count as a shard: a window of them fits into memory
CHUNK = 32  # rows that a worker makes at a time


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One rank's part of a batch of n pairs.

    Attributes:
        images: Float[n 3 H W], or what `collate` makes of images of several shapes.
        ids: int64 [n s]. seeds: int64 [n], for what else is random (patch dropout).
        groups: int64 [n], equal where captions are equal but for case and white space.
        keys: names of the samples.
        position: of the next batch: save it to go on there.
        drops: samples that stand-ins have replaced, by (source/shard/row, drop).
    """

    images: Any
    ids: Tensor
    seeds: Tensor
    groups: Tensor
    keys: list[str]
    position: Position
    drops: list[tuple[str, Drop]]


@dataclass(slots=True)
class Tally:
    """Samples that could not be used while training, each once, however often it comes round.

    bad: "source/shard/row" to [reason, name]: JSON that a resumed run goes on with.
    """

    bad: dict[str, list[str]] = field(default_factory=dict)

    def add(self, drops: Sequence[tuple[str, Drop]]) -> None:
        """Count the drops of a batch, of this rank or of another."""
        for sample, drop in drops:
            self.bad.setdefault(sample, [drop.reason, drop.name])

    def reasons(self) -> Counter[str]:
        """How many by reason."""
        return Counter(reason for reason, _ in self.bad.values())


class Pairs:
    """All pairs of some sources, indexed, in a fixed order. Made by `Pairs.open`.

    Attributes:
        sources, indexes: each source, and the indexes of its files.
        order: which sample comes when. size: usable pairs. tally: what could not be used so far.
    """

    def __init__(
        self,
        sources: list[Source],
        indexes: list[list[Index]],
        *,
        seed: int,
        window: int,
        max_bad_fraction: float,
    ):
        self.sources, self.indexes = sources, indexes
        self.seed, self.window, self.max_bad_fraction = seed, window, max_bad_fraction
        self.tally = Tally()
        for source, found in zip(sources, indexes, strict=True):
            _check_usable(source, found)
        units: list[list[tuple[str, str, int]]] = []
        counts: list[list[int]] = []
        for found in indexes:
            parts = [
                (str(index.path), str(index.file), first, min(UNIT, index.size - first))
                for index in found
                for first in range(0, index.size, UNIT)
            ]
            units.append([part[:3] for part in parts])
            counts.append([part[3] for part in parts])
        weights = [source.weight for source in sources if source.weight is not None]
        names = [source.path for source in sources]
        self.order = Order(counts, weights=weights or None, seed=seed, window=window, names=names)
        self.size = self.order.size
        self._files = Files(units)
        self._seen = sum(index.info["seen"] for index in self._flat())
        self._bad: Counter[str] = Counter()
        for index in self._flat():
            self._bad.update(index.info["drops"])
        del self._bad["opted out"]  # that is nobody's fault
        self._check_bad()

    @classmethod
    def open(
        cls,
        sources: Sequence[str | Path | Source] | str | Path | Source,
        *,
        folder: Path,
        hash: bool = True,
        seed: int = 0,
        window: int = 16,
        max_bad_fraction: float = 0.01,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], object] = lambda: None,
    ) -> Pairs:
        """Index what is not indexed yet, and open it.

        Args:
            sources: paths, patterns, folders, or `Source` with weights and columns.
            folder: where indexes are kept.
            hash: take the SHA-256 of the files, for the manifest, and check those of images.
            seed, window: of the order.
            max_bad_fraction: share of samples that may be unusable, now and later.
            rank, world, barrier: the files are shared among ranks, which then meet at `barrier`.

        Raises:
            DataError: files missing, no pair in a source, or too many bad samples.
        """
        given = as_sources(sources)
        files = [files_of(source) for source in given]
        mine = [(s, file) for s, part in zip(given, files, strict=True) for file in part]
        for source, file in mine[rank::world]:
            if world > 1:
                with contextlib.suppress(DataError):  # raised below, by all ranks alike
                    index_file(file, folder, source=source, hash=hash)
        barrier()
        indexes = [
            [index_file(file, folder, source=source, hash=hash) for file in part]
            for source, part in zip(given, files, strict=True)
        ]
        return cls(given, indexes, seed=seed, window=window, max_bad_fraction=max_bad_fraction)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Whole batches in `size` pairs."""
        return self.size // batch_size

    def report(self) -> dict[str, Any]:
        """What became of everything: for logs, pages and JSON.

        "seen", "used", "drops" and "flaws" by reason when indexing; "bad" by reason while training;
        "licences" and "sources" with counts, "without": pairs that carry no url, licence, ...
        """
        total = {name: Counter() for name in ("drops", "flaws", "licence", "source", "without")}
        seen = 0
        for index in self._flat():
            seen += index.info["seen"]
            total["drops"].update(index.info["drops"])
            total["flaws"].update(index.info["flaws"])
            total["without"].update(index.info["without"])
            for name in ("licence", "source"):
                total[name].update(index.info["origins"][name])
        return {
            "seen": seen,
            "used": self.size,
            "drops": dict(total["drops"]),
            "flaws": dict(total["flaws"]),
            "bad": dict(self.tally.reasons()),
            "licences": dict(total["licence"]),
            "sources": dict(total["source"]),
            "without": dict(total["without"]),
        }

    def count(self, drops: Sequence[tuple[str, Drop]]) -> None:
        """Count drops of a batch. `batches` does it for this rank's; give those of others.

        Raises:
            DataError: more than `max_bad_fraction` of all samples are bad.
        """
        if drops:
            self.tally.add(drops)
            self._check_bad()

    def _check_bad(self) -> None:
        bad, seen = self._bad.total() + len(self.tally.bad), self._seen
        if bad > self.max_bad_fraction * seen:
            reasons = self._bad + self.tally.reasons()
            why = ", ".join(f"{reason}: {n:,}" for reason, n in reasons.most_common())
            told = (drop for index in self._flat() for drop in index.info["told"])
            names = [name for reason, name, _ in told if reason in self._bad]
            names += [name for _, name in self.tally.bad.values()]
            raise DataError(
                f"{bad:,} of {seen:,} samples are bad ({why}), more than "
                f"{self.max_bad_fraction:.2%}; the first: {', '.join(names[:3])}. See them all "
                "with: diptych doctor data PATH; or allow more: --set data.max_bad_fraction=0.5"
            )

    def _flat(self) -> Iterator[Index]:
        return itertools.chain.from_iterable(self.indexes)

    def batches(
        self,
        position: Position | None = None,
        *,
        batch_size: int,
        image: ImageOf,
        tokenize: TokensOf,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        trim: bool = False,
        collate: Callable[[list[Any]], Any] = torch.stack,
    ) -> Generator[PairBatch]:
        """Batches without end, from `position` on.

        Args:
            batch_size: of all ranks together; this rank gets rows rank * n to (rank + 1) * n.
            image: (bytes of the file, seed, name) -> image; raises ImageError for a bad one.
            tokenize: texts -> (ids int64 [n s], lengths int64 [n]).
            workers: processes; `image` and `tokenize` are pickled for them. 0: threads.
            trim: cut ids to the longest text of the rank's rows.
            collate: list of the rank's images -> images, in this process, where they are not
                tensors of one shape, which are stacked.

        Raises:
            DataError: a batch cannot be shared among the ranks, or what `count` says.
            TrainError: a worker died.
        """
        if batch_size < 1 or batch_size % world:
            raise DataError(
                f"batch_size={batch_size} cannot be shared by {world} ranks. Make it a multiple."
            )
        maker = Maker(
            self._files,
            self.order,
            batch_size=batch_size,
            image=image,
            tokenize=tokenize,
        )
        join = partial(_joined, collate=collate, trim=trim)
        return self._batches(maker, position or Position(), rank, world, workers, join)

    def _batches(
        self, maker: Maker, position: Position, rank: int, world: int, workers: int, join: Any
    ) -> Generator[PairBatch]:
        n = maker.batch_size // world
        size = min(CHUNK, -(-n // 4))  # at least four parts, so that the cores share a batch
        tasks = self._tasks(position, maker.batch_size, rank * n, n, size)
        per_batch = -(-n // size)
        chunks = in_processes(maker, tasks, workers) if workers else in_threads(maker, tasks, n)
        with contextlib.closing(chunks):
            while True:
                parts = list(itertools.islice(chunks, per_batch))
                for part in parts:
                    if part.error:
                        raise DataError(part.error)
                _, position = self.order.next_batch(position, batch_size=maker.batch_size)
                batch = join(parts, position)
                self.count(batch.drops)
                yield batch

    def _tasks(
        self, position: Position, batch_size: int, start: int, n: int, size: int
    ) -> Iterator[Task]:
        while True:
            refs, after = self.order.next_batch(position, batch_size=batch_size)
            for first in range(start, start + n, size):
                yield Task(position, first, refs[first : min(first + size, start + n)])
            position = after


def _check_usable(source: Source, indexes: list[Index]) -> None:
    if sum(index.size for index in indexes):
        return
    names: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    for index in indexes:
        names.update(index.info["names"])
        drops.update(index.info["drops"])
        drops.update(index.info["flaws"])
    found = ", ".join(sorted(names)) or "nothing"
    why = ", ".join(f"{reason}: {n:,}" for reason, n in drops.most_common()) or "it is empty"
    raise DataError(
        f"{source.path}: holds no pair of image and caption ({why}). It has: {found}. Name its "
        "keys with Source(path=..., image_key=..., caption_key=...), or look with: "
        "diptych doctor data PATH"
    )


def _joined(
    parts: list[Chunk],
    position: Position,
    *,
    collate: Callable[[list[Any]], Any],
    trim: bool,
) -> PairBatch:
    ids, images = torch.cat([part.ids for part in parts]), [part.images for part in parts]
    alike = are_alike([image[0] for image in images])
    if trim:
        longest = max(int(part.lengths.max()) for part in parts)
        ids = ids[:, : min(longest, ids.shape[1])].contiguous()
    return PairBatch(
        images=torch.cat(images) if alike else collate([*itertools.chain.from_iterable(images)]),
        ids=ids,
        seeds=torch.tensor([seed for part in parts for seed in part.seeds]),
        groups=torch.tensor([group for part in parts for group in part.groups]),
        keys=[key for part in parts for key in part.keys],
        position=position,
        drops=[drop for part in parts for drop in part.drops],
    )
