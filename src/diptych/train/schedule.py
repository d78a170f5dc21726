"""The learning rate and the stage of a run: pure functions of the step.

Warm-up is linear, peak * (step + 1) / warm-up, as in open_clip. After it:

- cosine: half a cosine down to the end (open_clip's, whose end is 0).
- constant: the peak.
- constant_cooldown: the peak, then a straight line down to the end over the cooldown.
- wsd: the peak, then down as 1 - sqrt(progress) (arXiv 2405.18392; 2404.06395 names the scheme).

The end is reached at `step == steps`, one past the last step of the run.
"""

from __future__ import annotations

import math

from diptych.train.config import ScheduleConfig, Stage

__all__ = ["learning_rate", "stage_at"]


def learning_rate(step: int, steps: int, cfg: ScheduleConfig, peak: float) -> float:
    """The learning rate of a step, in [0, peak]; it stays at the end after `steps`.

    Args:
        step: from 0.
        steps: of the whole run, at least 1.
        cfg: `warmup` and `cooldown` below 1 are shares of the run, else numbers of steps.
    """
    warmup = _length(cfg.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    match cfg.kind:
        case "constant":
            return peak
        case "cosine":
            start = warmup
        case "constant_cooldown" | "wsd":
            start = max(warmup, steps - _length(cfg.cooldown, steps))
    if step < start:
        return peak
    progress = 1.0 if step >= steps else (step - start) / (steps - start)
    match cfg.kind:
        case "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
        case "constant_cooldown":
            left = 1 - progress
        case "wsd":
            left = 1 - math.sqrt(progress)
    return peak * (cfg.end + (1 - cfg.end) * left)


def _length(value: float, steps: int) -> int:
    """A share of the run, or a number of steps, as a number of steps of this run."""
    return min(steps, round(value * steps if value < 1 else value))


def stage_at(step: int, steps: int, stages: tuple[Stage, ...]) -> Stage | None:
    """The stage that holds at a step: the last one begun; None before the first."""
    begun = [stage for stage in stages if round(stage.start * steps) <= step]
    return max(begun, key=lambda stage: stage.start, default=None)
