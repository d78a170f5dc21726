"""The one training loop: steps, checkpoints, evaluations, and what ends a run.

    from diptych.train import train
    result = train(config, "runs/first")

A step is: the global batch of its position, cut over ranks and pieces; the exact gradient of the
loss over all of it (`accumulate`, `streamed`); a clipped step of the optimiser; the scale held in
its range. Whatever ends a run leaves the last whole checkpoint, and the same call goes on from it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diptych.errors import TrainError
from diptych.train.accumulate import backward
from diptych.train.config import TrainConfig
from diptych.train.optim import set_lr
from diptych.train.run import Run, opened
from diptych.train.schedule import learning_rate, stage_at

__all__ = ["Health", "Stopped", "step", "train"]

log = logging.getLogger("diptych")

LARGEST_SCALE = 2.0**16  # of fp16's gradients
GROWTH = 2000  # good steps until it is doubled


class Stopped(Exception):
    """The run was asked to stop and has saved its state. `code`: of the process."""

    def __init__(self, code: int, *, step: int, folder: Path):
        super().__init__(f"stopped at step {step}. To go on, type the same again.")
        self.code, self.step, self.folder = code, step, folder


@dataclass(slots=True)
class _Asked:
    """Which signal asked the run to stop."""

    signal: int | None = None


@dataclass(slots=True)
class Health:
    """Steps that were skipped, and the scale of fp16's gradients."""

    skipped: int = 0
    in_a_row: int = 0
    good: int = 0
    scale: float = 1.0


def train(config: TrainConfig, out: str | Path, *, device: str = "auto") -> dict[str, Any]:
    """Train as `config` says in the folder `out`; goes on where an earlier call left off.

    Args:
        out: of checkpoints, metrics, report and the model; the ranks of a run share it.
        device: "auto", "cpu", "cuda".

    Returns:
        The summary that also stands in `out/summary.json`.

    Raises:
        ConfigError: settings that cannot be, or another run in `out`.
        DataError: pairs that cannot be used, or too many bad ones.
        TrainError: a loss that is not a number, as `config.checkpoints.nonfinite` says.
        Stopped: SIGTERM or SIGINT; the state was saved.
    """
    with opened(config, Path(out), device=device) as run, _signals() as asked:
        skipped = _steps(run, asked)
        return run.finish(skipped=skipped)


def _steps(run: Run, asked: _Asked) -> int:
    """All that are left; how many of the run were skipped."""
    cfg, world = run.config, run.world
    health = Health(**run.restored("health", {}))
    if not health.scale > 1 and run.dtype == torch.float16 and run.step == 0:
        health.scale = LARGEST_SCALE
    saved_at, wanted = time.monotonic(), False
    while run.step < run.steps:
        stage = stage_at(run.step, run.steps, cfg.stages)
        run.drop_patches(stage)
        for batch in run.batches(stage):
            record = step(run, batch, health)
            minutes, every = cfg.checkpoints.minutes, cfg.checkpoints.every
            late = minutes is not None and time.monotonic() - saved_at > 60 * minutes
            stop, due = world.agree(asked.signal is not None, late and world.first)
            done, measure = run.step == run.steps, cfg.evaluate.every
            run.tell(record, last=done)
            if done or (measure is not None and run.step % measure == 0):
                run.evaluate()
            best = run.best.get("step") == run.step
            wanted |= due or (every is not None and run.step % every == 0)
            # none among steps that fail: of weights that blew up, it would push out good ones
            if done or stop or best or (wanted and not health.in_a_row):
                run.save(health=asdict(health))
                saved_at, wanted = time.monotonic(), False
            if stop:
                number = asked.signal or signal.SIGTERM  # another rank was asked
                raise Stopped(128 + number, step=run.step, folder=run.folder)
            if done or stage_at(run.step, run.steps, cfg.stages) != stage:
                break
    return health.skipped


def step(run: Run, batch: Any, health: Health) -> dict[str, Any]:
    """One step of the optimiser, or the reason why there was none."""
    cfg, world = run.config, run.world
    started = time.perf_counter()
    lr = learning_rate(run.step, run.steps, cfg.schedule, cfg.optim.lr)
    set_lr(run.optimiser, lr)
    run.optimiser.zero_grad(set_to_none=True)
    statistics = _statistics(run.model)
    value = backward(
        run.model,
        run.pieces(batch),
        run.loss(batch),
        factor=world.size * health.scale,
        autocast=run.autocast,
    )
    norm = _gradients(run, health.scale)
    finite = math.isfinite(float(value)) and math.isfinite(norm)
    (bad,) = world.agree(not finite)
    if bad:
        for buffer, before in statistics:
            buffer.copy_(before)
        _skip(run, batch, health, float(value), norm)
    else:
        run.optimiser.step()
        run.after_step()
        health.in_a_row, health.good = 0, health.good + 1
        if health.scale > 1 and health.good % GROWTH == 0:
            health.scale = min(2 * health.scale, LARGEST_SCALE)
    run.position, run.step = batch.position, run.step + 1
    inside = run.model_inside
    return {
        "step": run.step,
        "loss": float(value),
        "lr": lr,
        "grad_norm": norm,
        "logit_scale": float(inside.logit_scale.detach().exp()),
        **({} if inside.logit_bias is None else {"logit_bias": float(inside.logit_bias.detach())}),
        "image_size": tuple(batch.images.shape[-2:]),
        "tokens": batch.ids.shape[1],
        "seconds": time.perf_counter() - started,
        "skipped": health.skipped,
    }


def _gradients(run: Run, scale: float) -> float:
    """Finish and clip the gradients; their norm before that."""
    world, most = run.world, run.config.optim.clip
    grads = [p.grad for p in run.model.parameters() if p.grad is not None]
    sharded = [g.to_local() for g in grads if isinstance(g, DTensor)]
    whole = [g for g in grads if not isinstance(g, DTensor)]
    if sharded:  # FSDP2 reduces its own alone: scale and bias are left
        for grad in whole:
            world.sum(grad).div_(world.size)
    if scale != 1:
        torch._foreach_div_(sharded + whole, scale)
    squares = [
        torch.stack(torch._foreach_norm(some)).square().sum() for some in (sharded, whole) if some
    ]
    if sharded:
        world.sum(squares[0])
    norm = torch.stack(squares).sum().sqrt()
    if most is not None:
        torch._foreach_mul_(sharded + whole, torch.clamp(most / (norm + 1e-6), max=1.0))
    return float(norm)


def _skip(run: Run, batch: Any, health: Health, value: float, norm: float) -> None:
    """A step that must not happen: count it, and stop if that is what was asked for."""
    limits, step = run.config.checkpoints, run.step + 1
    most = min(limits.max_nonfinite, max(1, run.steps // 2))
    health.skipped, health.in_a_row, health.good = health.skipped + 1, health.in_a_row + 1, 0
    what = f"step {step}: loss {value}, norm of the gradient {norm}"
    if health.scale > 1 and math.isfinite(value):  # fp16's range, not the run
        health.scale, health.in_a_row = health.scale / 2, 0
        run.event(f"{what}; skipped, the scale of fp16 is now {health.scale:g}", step=step)
        return
    run.event(f"{what}; skipped. Its first samples: {', '.join(batch.keys[:5])}", step=step)
    if limits.nonfinite == "stop" or health.in_a_row >= most:
        raise TrainError(
            f"{what}, {health.in_a_row} in a row. Nothing of it was saved; {run.last_saved()} "
            "Look at the samples that metrics.jsonl names, or begin anew with a lower rate: "
            "--set optim.lr=... --out ANOTHER"
        )


def _statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What a forward pass moves, each with a copy: the running statistics of batch norms."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [(buffer, buffer.clone()) for m in norms if m.training for buffer in m.buffers()]


@contextlib.contextmanager
def _signals() -> Iterator[_Asked]:
    """SIGTERM and SIGINT ask for an end at the next step; a second one ends at once."""
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may say what a signal does
        return

    def ask(number: int, _frame: Any) -> None:
        if asked.signal is not None:
            raise KeyboardInterrupt
        asked.signal = number
        log.warning("asked to stop: the state is saved at the end of this step")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
