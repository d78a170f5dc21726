"""kill -9 of a run, of one of its ranks, and in the middle of a save: nothing of it is lost."""

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from killed_runs import alone, checkpoints, log, ranks, saving, step_of, torchrun, two_ranks, wait
from miniature import rows, told

pytestmark = pytest.mark.slow
STEPS = 120  # of recipes/smoke.py


def sums(out: Path) -> dict[str, str]:
    """SHA-256 of the model, of the best one, and of the last state."""
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    files = [out / "model.safetensors", out / "best.safetensors", last / "state.safetensors"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A run of one process that nothing has disturbed."""
    out = tmp_path_factory.mktemp("one") / "run"
    with alone(out) as process:
        assert process.wait() == 0, log(out)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A run of two ranks that nothing has disturbed."""
    out = tmp_path_factory.mktemp("two") / "run"
    with torchrun(out) as process:
        assert process.wait() == 0, log(out)
    return out


def finish(out: Path) -> None:
    with alone(out) as process:
        assert process.wait() == 0, log(out)


def whole(out: Path) -> None:
    """The reports of the run are those of one that came through."""
    steps = [row["step"] for row in rows(out, "step")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    assert len(steps) == STEPS // 5
    assert [row["step"] for row in rows(out, "evaluation")] == [40, 80, 120]
    assert not list(out.rglob(".*.tmp"))


def test_the_same_run_twice(one, tmp_path):
    finish(tmp_path / "run")
    assert sums(tmp_path / "run") == sums(one)


def test_five_kills_at_random_and_one_in_each_of_two_saves(one, tmp_path):
    rng, out = random.Random(0), tmp_path / "run"
    kills = [("step", rng.randrange(1, STEPS - 5)) for _ in range(5)] + [("save", 0), ("save", 30)]
    met = {"step": 0, "save": 0}
    for kind, least in sorted(kills, key=lambda kill: kill[1]):
        pause = rng.uniform(0, 0.5) if kind == "step" else rng.uniform(0, 0.02)

        def until(kind=kind, least=least) -> bool:
            return step_of(out) >= least and (kind == "step" or saving(out))

        with alone(out) as process:
            assert wait(until, process, every=0.002 if kind == "save" else 0.02), log(out)
            time.sleep(pause)
            process.kill()
            assert process.wait() == -9
        met[kind] += 1
        if kind == "save":
            assert list((out / "checkpoints").glob(".step-*.tmp")), "the kill came too late"
    finish(out)
    assert sums(out) == sums(one)
    whole(out)
    assert met == {"step": 5, "save": 2}


def test_sigterm_and_sigint(one, tmp_path):
    out = tmp_path / "run"
    for number, code, least in ((signal.SIGTERM, 143, 15), (signal.SIGINT, 130, 50)):
        with alone(out) as process:
            assert wait(lambda least=least: step_of(out) >= least, process)
            process.send_signal(number)
            assert process.wait() == code, log(out)
        assert "To go on, type the same again" in log(out)
    finish(out)
    assert sums(out) == sums(one)
    whole(out)


def test_a_disk_that_is_full(one, tmp_path):
    out = tmp_path / "run"
    with alone(out) as process:
        assert wait(lambda: "step-00000020" in checkpoints(out), process)
        process.kill()
    with alone(out, limit=20_000) as process:  # a checkpoint is larger
        assert process.wait() == 2
    assert "step-00000040: cannot be written" in log(out)
    assert "type the same again" in log(out) and "Traceback" not in log(out)
    assert checkpoints(out) == {"step-00000020"}
    finish(out)
    assert sums(out) == sums(one)


def test_a_rank_that_is_killed_ends_the_other_and_the_run_goes_on(two, tmp_path):
    out = tmp_path / "run"
    for number, least in ((1, 30), (0, 70)):
        with two_ranks(out) as processes:
            assert wait(lambda least=least: step_of(out) >= least, processes[0]), log(out)
            processes[number].kill()
            start = time.monotonic()
            assert processes[1 - number].wait(30) == 2, log(out)
            assert time.monotonic() - start < 10
        assert f"rank {1 - number} of 2: another rank has ended" in log(out)
    with torchrun(out) as process:
        assert process.wait() == 0, log(out)
    assert sums(out) == sums(two)
    whole(out)


def test_torchrun_restarts_a_run_whose_ranks_are_killed(two, tmp_path):
    out, rng = tmp_path / "run", random.Random(1)
    with torchrun(out, restarts=3) as agent:
        for number, least in (("1", 25), ("0", 55), ("1", 90)):
            assert wait(lambda least=least: step_of(out) >= least, agent), log(out)
            time.sleep(rng.uniform(0, 0.3))
            gone = ranks(agent)[number]
            os.kill(gone, signal.SIGKILL)
            assert wait(lambda gone=gone: gone not in ranks(agent).values(), agent)
        assert agent.wait() == 0, log(out)
    assert told(out).count("goes on from step") == 3
    assert sums(out) == sums(two)
    whole(out)


def test_sigterm_to_torchrun_saves_the_state(two, tmp_path):
    out = tmp_path / "run"
    with torchrun(out) as agent:
        assert wait(lambda: step_of(out) >= 30, agent), log(out)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait() != 0
    assert max(checkpoints(out)) > "step-00000030"
    with torchrun(out) as process:
        assert process.wait() == 0, log(out)
    assert sums(out) == sums(two)
    whole(out)


def test_a_rank_that_hangs_ends_the_other_with_a_word(tmp_path):
    out = tmp_path / "run"
    with two_ranks(out, "timeout=5") as processes:
        assert wait(lambda: step_of(out) >= 25, processes[0]), log(out)
        processes[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        assert processes[0].wait(60) == 2, log(out)
        assert time.monotonic() - start < 15
    assert "rank 0 of 2: another rank has ended, or was silent for 5 s" in log(out)
    assert "step-00000020" in checkpoints(out)
