"""Runs of recipes/smoke.py in processes of their own, for test_killed.py to kill."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from miniature import rows

ROOT = Path(__file__).parents[2]
SECONDS = 600  # for anything that is waited for


def command(out: Path, *settings: str) -> list[str]:
    """What a person types, but for the interpreter."""
    given = [part for setting in settings for part in ("--set", setting)]
    return [
        *("-m", "diptych.cli.main", "train", str(ROOT / "recipes" / "smoke.py")),
        *("--out", str(out), *given),
    ]


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DIPTYCH_CACHE": str(cache), **more}


@contextlib.contextmanager
def alone(out: Path, *settings: str, limit: int | None = None) -> Iterator[subprocess.Popen]:
    """A run of one process; `limit`: the largest file that it may write, in KiB."""
    line = [sys.executable, *command(out, *settings)]
    if limit is not None:
        line = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *line]
    with _process(line, environment(out.parent / "cache"), out) as process:
        yield process


@contextlib.contextmanager
def torchrun(out: Path, *settings: str, restarts: int = 0) -> Iterator[subprocess.Popen]:
    """A run of two ranks under torchrun."""
    how = ("--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts))
    line = [sys.executable, "-m", "torch.distributed.run", *how, *command(out, *settings)]
    # else ranks that are started again may find the addresses of those before (pytorch#135712)
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with _process(line, environment(out.parent / "cache", **fresh), out) as process:
        yield process
        for pid in ranks(process).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def two_ranks(out: Path, *settings: str) -> Iterator[list[subprocess.Popen]]:
    """Two ranks that nobody looks after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = [sys.executable, *command(out, *settings)]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                _process(line, environment(out.parent / "cache", RANK=str(rank), **world), out)
            )
            for rank in range(2)
        ]


@contextlib.contextmanager
def _process(line: list[str], env: dict[str, str], out: Path) -> Iterator[subprocess.Popen]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.log").open("ab") as log:
        process = subprocess.Popen(line, env=env, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def log(out: Path) -> str:
    """What all processes of a run have printed."""
    return (out.parent / f"{out.name}.log").read_text("utf-8", "replace")


def ranks(agent: subprocess.Popen) -> dict[str, int]:
    """The process of each rank that a torchrun has started."""
    found = {}
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{agent.pid}/task")
        children = " ".join((task / "children").read_text() for task in tasks.iterdir())
        for pid in children.split():
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                of_rank = [v for v in variables if v.startswith(b"RANK=")]
                if of_rank:
                    found[of_rank[0].removeprefix(b"RANK=").decode()] = int(pid)
    return found


def wait(until: Callable[[], object], process: subprocess.Popen, *, every: float = 0.02) -> bool:
    """Whether `until` came true before the process ended by itself."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if until():
            return True
        if process.poll() is not None:
            return False
        time.sleep(every)
    raise TimeoutError(f"nothing in {SECONDS} s")


def step_of(out: Path) -> int:
    """The last step that metrics.jsonl has; the run may be writing it."""
    with contextlib.suppress(OSError, ValueError):
        found = rows(out, "step")
        return found[-1]["step"] if found else 0
    return 0


def saving(out: Path) -> bool:
    """A checkpoint is being written now."""
    return any((out / "checkpoints").glob(".step-*.tmp"))


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").glob("step-*")}
