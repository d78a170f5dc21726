"""A dry run: the run of a config, begun in a folder that is thrown away, and what it shows.

Two steps are done on real data: the first one's loss is that of the start, the second one's time
is that of a step. Nothing of it is kept.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diptych.train.accumulate import Piece, backward
from diptych.train.config import TrainConfig
from diptych.train.dryrun import Facts, dry_run, plan_text
from diptych.train.feed import pieces_of
from diptych.train.flops import Work, peak_flops
from diptych.train.loop import Health, step
from diptych.train.run import Run, opened
from diptych.train.schedule import stage_at
from diptych.train.watch import plain

__all__ = ["preview"]

_PAIRS = 8  # of the batch whose gradient and memory are looked at


def preview(
    config: TrainConfig,
    *,
    device: str = "auto",
    price: float | None = None,
    watts: float | None = None,
    verbose: bool = False,
) -> tuple[dict[str, Any], str]:
    """The plan of a run: as JSON-ready values, and as text.

    Args:
        price: of a device-hour, for the cost. watts: of a device, for the energy.
        verbose: the text shows every setting.

    Raises: as `train`.
    """
    quiet = replace(config, report_to=())
    with tempfile.TemporaryDirectory() as folder, opened(quiet, Path(folder), device=device) as run:
        plan = dry_run(config, _facts(run), price=price, watts=watts)
    return plain(plan), plan_text(plan, config=config if verbose else None)


def _facts(run: Run) -> Facts:
    world, feed = run.world, run.feed
    stage = stage_at(0, run.steps, run.config.stages)
    texts = _captions(run, 256)
    tokens = feed.encoder.tokenizer.tokenize(texts, truncate="silent")
    work = Work(run.model_inside, run.encoder.config, batch_size=run.config.batch_size)
    health, records = Health(), []
    start = time.perf_counter()
    for batch in itertools.islice(run.batches(stage), 2):
        records.append(step(run, batch, health))
    total = time.perf_counter() - start
    piece = pieces_of(batch, _PAIRS, world.device)[0]
    report = feed.pairs.report()
    data: dict[str, Any] = {
        "pairs": report["used"],
        "epochs": round(feed.epoch(run.position) / run.step * run.steps, 2),
        "not used": dict(Counter(report["drops"]) + Counter(report["bad"])),
        "licences": report["licences"],
        "manifest": feed.manifest_hash,
    }
    precision = "fp32" if run.dtype.itemsize == 4 else "bf16"
    return Facts(
        model=run.model_inside,
        clip=run.encoder.config,
        images=piece.images,
        ids=piece.ids,
        steps=run.steps,
        world=world.size,
        autocast=run.autocast,
        flops=work.step(image_size=records[0]["image_size"], tokens=records[0]["tokens"]),
        peak=peak_flops(world.device, precision=precision),
        loss=records[0]["loss"],
        gradients=_gradients(run, piece),
        seconds_per_step=records[-1]["seconds"],
        waiting=max(0.0, 1 - sum(r["seconds"] for r in records) / total),
        cut=(int(tokens.cut.sum()), len(texts)),
        data=data,
    )


def _gradients(run: Run, whole: Piece) -> Callable[[int | None], None]:
    """Leaves the gradient of a small batch, gone through in pieces of so many pairs."""

    rows = torch.arange(len(whole.ids))

    def in_pieces(size: int | None) -> None:
        pieces = [Piece(*(part[some] for part in whole)) for some in rows.split(size or len(rows))]
        backward(run.model_inside, pieces, run.loss_of(None, None), autocast=run.autocast)

    return in_pieces


def _captions(run: Run, most: int) -> list[str]:
    indexes = itertools.chain.from_iterable(run.feed.pairs.indexes)
    found = (index.caption(row, 0) for index in indexes for row in range(index.size))
    return list(itertools.islice(found, most))
