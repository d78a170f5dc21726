"""The data of a run: pairs in the order of its seed, as the model takes them, and held-out ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diptych.config import PreprocessConfig, TokenizerConfig
from diptych.data.manifest import manifest_of
from diptych.data.order import Position
from diptych.data.pairs import PairBatch, Pairs
from diptych.engine import Encoder
from diptych.errors import ConfigError
from diptych.preprocess.augment import Augment
from diptych.preprocess.batch import collate
from diptych.processors import num_processors
from diptych.tokenizer import build as build_tokenizer
from diptych.train.accumulate import Piece
from diptych.train.config import Stage, TrainConfig
from diptych.train.evaluate import check_best
from diptych.train.parts import can_trim
from diptych.train.world import World
from diptych.zoo.cache import cache_folder

__all__ = ["Feed", "pieces_of"]


class Feed:
    """What a run is fed.

    Attributes:
        pairs: the training pairs. steps: of the whole run. start: the beginning of the data.
            held_out, classes: `Pairs` to measure with, or None.
    """

    def __init__(self, config: TrainConfig, encoder: Encoder, world: World):
        self.config, self.encoder, self.world = config, encoder, world
        if config.batch_size % world.size:
            raise ConfigError(
                f"batch_size={config.batch_size} cannot be shared by {world.size} ranks. Type: "
                f"--set batch_size={-(-config.batch_size // world.size) * world.size}"
            )
        data = config.data
        self.pairs = self._open(data.sources, data.max_bad_fraction)
        self.start = Position()
        per_epoch = self.pairs.batches_per_epoch(config.batch_size)
        self._check_batch(per_epoch)
        self._check_stages()
        self.steps = config.steps or max(1, round((config.epochs or 1) * per_epoch))
        measured = config.evaluate
        check_best(measured)
        self.held_out = self._open(measured.sources, 1.0) if measured.sources else None
        self.classes = self._open(measured.classes, 1.0) if measured.classes else None
        self.manifest, self.manifest_hash = manifest_of(self.pairs)
        self._open_batches = contextlib.ExitStack()

    def _open(self, sources: tuple, max_bad_fraction: float) -> Pairs:
        data, world = self.config.data, self.world
        return Pairs.open(
            sources,
            folder=cache_folder() / "pairs",
            hash=data.hash,
            seed=self.config.seed,
            window=data.window,
            max_bad_fraction=max_bad_fraction,
            rank=world.rank,
            world=world.size,
            barrier=world.barrier,
        )

    def _check_batch(self, per_epoch: int) -> None:
        size, loss = self.pairs.size, self.encoder.config.loss
        if not per_epoch:
            raise ConfigError(
                f"batch_size={self.config.batch_size} is more than the {size:,} pairs of the data. "
                f"Type: --set batch_size={size}"
            )
        if self.config.batch_size == 1 and loss == "softmax" and self.config.loss.teacher is None:
            raise ConfigError(
                "batch_size=1: a pair alone has no other to be told from, so its loss is 0 and "
                "nothing is learnt. "
                + ("Type: --set batch_size=2" if size > 1 else "Give two pairs or more.")
            )

    def _check_stages(self) -> None:
        """What would else end the run in the middle."""
        most = self.encoder.tokenizer_config.context_length
        for stage in self.config.stages:
            if stage.context_length is not None and stage.context_length > most:
                raise ConfigError(
                    f"stages: context_length={stage.context_length}, but the model takes {most} "
                    "tokens. Give the stage that or less."
                )

    def settings(self, stage: Stage | None) -> tuple[PreprocessConfig, TokenizerConfig]:
        """Pixels and tokens of a stage."""
        pixels, tokens = self.encoder.preprocess.config, self.encoder.tokenizer_config
        if stage is not None and stage.image_size is not None:
            pixels = replace(pixels, size=(stage.image_size, stage.image_size))
        if stage is not None and stage.context_length is not None:
            tokens = replace(tokens, context_length=stage.context_length)
        return pixels, tokens

    def batches(self, position: Position, stage: Stage | None) -> Iterator[PairBatch]:
        """This rank's batches from `position` on."""
        self.close()
        pixels, tokens = self.settings(stage)
        tokenizer, config = build_tokenizer(tokens, self.encoder.folder), self.config
        found = self.pairs.batches(
            position,
            batch_size=config.batch_size,
            image=Augment(pixels, config.data.augment, self.encoder.mode),
            tokenize=partial(tokenizer.tokenize, truncate="silent"),
            rank=self.world.rank,
            world=self.world.size,
            workers=self._workers(),
            trim=config.trim and can_trim(self.encoder.config.text),
            collate=collate,
        )
        return self._open_batches.enter_context(contextlib.closing(found))

    def _workers(self) -> int:
        """On a CPU the model has all cores, and threads decode beside it."""
        if self.config.data.workers is not None:
            return self.config.data.workers
        if self.world.device.type == "cpu":
            return 0
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return min(8, max(1, num_processors() // ranks_here - 1))

    def epoch(self, position: Position) -> float:
        """How often the data has been gone through."""
        return position.batch * self.config.batch_size / self.pairs.size

    def gathered(self) -> dict[str, list[str]]:
        """What could not be used on any rank; every rank calls it."""
        tally = self.pairs.tally
        for bad in self.world.gather(tally.bad):
            tally.bad |= bad
        return tally.bad

    def restore(self, bad: dict[str, list[str]]) -> None:
        """Go on counting."""
        self.pairs.tally.bad = dict(bad)

    def close(self) -> None:
        """End the threads or processes that decode."""
        self._open_batches.close()


def pieces_of(batch: PairBatch, size: int | None, device: torch.device) -> list[Piece]:
    """A rank's part of the batch in pieces of at most `size` pairs, on the device."""
    n = len(batch.ids)
    size = size or n
    return [
        Piece(
            *(
                _rows(part, slice(i, i + size), device)
                for part in (batch.images, batch.ids, batch.seeds)
            )
        )
        for i in range(0, n, size)
    ]


def _rows(part: Any, rows: slice, device: torch.device) -> Any:
    if isinstance(part, Tensor):
        return part[rows].to(device, non_blocking=True)
    return type(part)(*(_rows(each, rows, device) for each in part))  # Patches
