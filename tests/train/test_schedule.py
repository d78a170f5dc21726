"""The learning rate of every step against torch's own schedulers and by its properties."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from diptych.train.config import ScheduleConfig, Stage
from diptych.train.schedule import learning_rate, stage_at

KINDS = ("cosine", "constant", "constant_cooldown", "wsd")


def rates(steps: int, cfg: ScheduleConfig, peak: float = 1.0) -> list[float]:
    return [learning_rate(step, steps, cfg, peak) for step in range(steps + 1)]


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_is_torchs(end):
    peak, steps, warmup = 3e-4, 50, 10
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=peak)
    first = lr_scheduler.LinearLR(optimiser, 1 / warmup, 1.0, total_iters=warmup - 1)
    then = lr_scheduler.CosineAnnealingLR(optimiser, steps - warmup, eta_min=end * peak)
    with warnings.catch_warnings():  # torch calls its own schedulers in a way that it warns of
        warnings.simplefilter("ignore")
        both = lr_scheduler.SequentialLR(optimiser, [first, then], [warmup])
        expected = []
        for _ in range(steps + 1):
            expected.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            both.step()
    cfg = ScheduleConfig(kind="cosine", warmup=warmup, end=end)
    assert rates(steps, cfg, peak) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_wsd_falls_as_the_papers_formula():
    """arXiv 2405.18392, section 3: f(n) = 1 - sqrt((n - (N - N_decay)) / N_decay)."""
    cfg = ScheduleConfig(kind="wsd", warmup=10, cooldown=0.2)
    got = rates(100, cfg)
    assert got[10:81] == [1.0] * 71
    expected = [1 - math.sqrt((n - 80) / 20) for n in range(80, 101)]
    assert got[80:] == pytest.approx(expected)


def test_shares_and_steps():
    share, steps = (ScheduleConfig(kind="wsd", warmup=w, cooldown=c) for w, c in
                    ((0.05, 0.2), (10, 40)))  # fmt: skip
    assert rates(200, share) == rates(200, steps)
    assert learning_rate(0, 200, share, 1.0) == 0.1
    one = ScheduleConfig(warmup=1)  # a step, not the whole run
    assert learning_rate(0, 200, one, 1.0) == 1.0


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 300),
    warmup=st.one_of(st.floats(0, 1), st.integers(1, 400)),
    cooldown=st.one_of(st.floats(0, 1), st.integers(1, 400)),
    end=st.floats(0, 1),
)
def test_any_schedule(kind, steps, warmup, cooldown, end):
    peak = 0.3
    got = rates(steps, ScheduleConfig(kind=kind, warmup=warmup, cooldown=cooldown, end=end), peak)
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in got)
    top = max(range(len(got)), key=got.__getitem__)
    assert got[top] == pytest.approx(peak) or (kind != "constant" and top == steps)
    assert got[: top + 1] == sorted(got[: top + 1])
    assert got[top:] == sorted(got[top:], reverse=True)
    if kind != "constant":
        assert got[-1] == pytest.approx(end * peak)
        cfg = ScheduleConfig(kind=kind, warmup=warmup, cooldown=cooldown, end=end)
        assert learning_rate(steps + 7, steps, cfg, peak) == got[-1]


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("cosine", math.pi / 2 / 900), ("constant_cooldown", 1 / 200), ("wsd", math.sqrt(1 / 200))],
)
def test_no_jumps(kind, bound):
    got = rates(1000, ScheduleConfig(kind=kind, warmup=100, cooldown=200))
    steps = [abs(a - b) for a, b in itertools.pairwise(got)]
    assert max(steps) <= max(bound, 1 / 100) * 1.0001


def test_stages():
    last, first = Stage(start=0.9, image_size=64), Stage(start=0.25, image_size=32)
    stages = (last, first)
    assert stage_at(0, 100, stages) is None and stage_at(24, 100, stages) is None
    assert stage_at(25, 100, stages) is first and stage_at(89, 100, stages) is first
    assert stage_at(90, 100, stages) is last and stage_at(99, 100, stages) is last
    assert stage_at(0, 1, (Stage(start=0.0),)) == Stage(start=0.0)
    assert stage_at(5, 10, ()) is None
    assert stage_at(29, 100, (Stage(start=0.29),)) is not None  # 0.29 * 100 is 28.999...
