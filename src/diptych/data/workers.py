"""The work behind `pairs`: chunks of a batch, made by threads or by processes, in their order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.data.captions import group_of
from diptych.data.index import Index, Unreadable
from diptych.data.order import Order, Position, Ref, hashed
from diptych.data.shards import Drop
from diptych.errors import DataError, DiptychError, ImageError, TrainError
from diptych.processors import num_processors

__all__ = ["Chunk", "Files", "Maker", "Task", "are_alike", "in_processes", "in_threads"]

_CAPTION = 0xCA  # what a hash is for

ImageOf = Callable[[bytes, int, str], Any]
TokensOf = Callable[[list[str]], tuple[Tensor, Tensor]]


def are_alike(images: list[Any]) -> bool:
    """Whether they are tensors of one shape."""
    shapes = {image.shape if isinstance(image, Tensor) else None for image in images}
    return len(shapes) == 1 and None not in shapes


class Task(NamedTuple):
    """Rows `start`.. of the batch at `position`."""

    position: Position
    start: int
    refs: list[Ref]


class Chunk(NamedTuple):
    """A task that is done, or the error that ended it."""

    images: Any
    ids: Tensor
    lengths: Tensor
    groups: list[int]
    seeds: list[int]
    keys: list[str]
    drops: list[tuple[str, Drop]]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Files:
    """Index and file of each unit of each source, opened when they are needed."""

    paths: list[list[tuple[str, str, int]]]  # index, file, first row

    def find(self, ref: Ref) -> tuple[Index, int]:
        path, file, first = self.paths[ref.source][ref.shard]
        return _opened(path, file), first + ref.row


@lru_cache(256)
def _opened(path: str, file: str) -> Index:
    return Index(Path(path), Path(file))


class Maker(Dataset):
    """Makes chunks; goes to the workers by pickle."""

    def __init__(
        self,
        files: Files,
        order: Order,
        *,
        batch_size: int,
        image: ImageOf,
        tokenize: TokensOf,
    ):
        self.files, self.order, self.batch_size = files, order, batch_size
        self.image, self.tokenize = image, tokenize

    def __getitem__(self, index: Task) -> Chunk:
        try:
            return self._make(index)
        except DiptychError as error:  # DataLoader would wrap its text in a traceback
            return Chunk(None, torch.empty(0), torch.empty(0), [], [], [], [], str(error))

    def _make(self, task: Task) -> Chunk:
        images, texts, keys, seeds = [], [], [], []
        drops: list[tuple[str, Drop]] = []
        for row, ref in enumerate(task.refs, task.start):
            used, picture = self._picture(task.position, row, ref, drops)
            index, at = self.files.find(used)
            chosen = int(hashed(used.seed, _CAPTION) % np.uint64(index.num_captions(at)))
            images.append(picture)
            texts.append(index.caption(at, chosen))
            keys.append(index.name(at))
            seeds.append(used.seed)
        ids, lengths = self.tokenize(texts)
        groups = [group_of(text) for text in texts]
        together = torch.stack(images) if are_alike(images) else images
        return Chunk(together, ids, lengths, groups, seeds, keys, drops)

    def _picture(
        self, position: Position, row: int, ref: Ref, drops: list[tuple[str, Drop]]
    ) -> tuple[Ref, Any]:
        """The image of `ref`, or of the first stand-in that can be decoded."""
        stand_ins: list[Ref] | None = None
        tried = ref
        while True:
            index, at = self.files.find(tried)
            name = index.name(at)
            try:
                return tried, self.image(index.image(at), tried.seed, name)
            except Unreadable as error:
                drop = Drop(error.reason, name, error.detail)
            except ImageError as error:
                drop = Drop("cannot be decoded", name, str(error))
            drops.append((f"{tried.source}/{tried.shard}/{tried.row}", drop))
            if stand_ins is None:
                stand_ins = self.order.stand_ins(position, row, batch_size=self.batch_size)
                stand_ins.reverse()
            if not stand_ins:
                tries = "; ".join(drop.detail for _, drop in drops[-3:])
                raise DataError(
                    f"{self.files.find(ref)[0].name(at)}: neither it nor its stand-ins can be "
                    f"decoded: {tries}. Look at the data: diptych doctor data PATH"
                )
            tried = stand_ins.pop()


def in_threads(maker: Maker, tasks: Iterator[Task], n: int) -> Generator[Chunk]:
    """Chunks in order, two batches ahead: Pillow decodes while the model runs."""
    threads = min(num_processors(), 8)
    running: deque[Future[Chunk]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="diptych-data")
    try:
        for task in tasks:
            running.append(pool.submit(maker.__getitem__, task))
            if len(running) * len(task.refs) >= 2 * n:
                yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(maker: Maker, tasks: Iterator[Task], workers: int) -> Generator[Chunk]:
    """Chunks in order, four a process ahead. Raises TrainError if a process dies."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if "forkserver" in known:  # torch is imported once, not by each worker
        context.set_forkserver_preload([__name__])
    loader = DataLoader(
        maker,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=_as_it_is,
        prefetch_factor=4,
    )
    chunks = iter(loader)
    try:
        while True:
            yield next(chunks)
    except (RuntimeError, OSError, EOFError) as error:
        # The first is DataLoader's word; the others come from a pipe or socket that nobody holds.
        # What an image or a tokenizer raised in a worker begins with "Caught".
        died = "worker" in str(error) and "pid" in str(error)
        if str(error).startswith("Caught") or (isinstance(error, RuntimeError) and not died):
            raise
        raise TrainError(
            f"a process that decodes images died ({error}). Often memory has run out: use fewer "
            "workers, or workers=0 to decode in threads; then resume."
        ) from error
    finally:
        del chunks


def _as_it_is(chunk: Any) -> Any:
    return chunk
