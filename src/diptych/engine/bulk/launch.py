"""Launchers: ways to start the same worker, in processes of this machine or under a scheduler.

- torchrun, Slurm (arrays, and tasks of one job) and Kubernetes indexed jobs start the processes
  themselves. Their variables only pick the device and where in the list each worker begins; the
  leases do the rest, so a wrong or missing number costs nothing but a few looks.
- `run_local` starts processes here, one a GPU or as many as asked; `run_ray` tasks of a Ray cluster
  that sees the same folders (extra `ray`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch

from diptych.engine.bulk.plan import expand, plan
from diptych.engine.bulk.worker import LEASE, Told, work
from diptych.engine.load import load
from diptych.engine.stream import num_threads
from diptych.errors import ConfigError, DiptychError, MissingExtraError
from diptych.preprocess.pipeline import Mode, Pixels

__all__ = ["Place", "Task", "default_workers", "place", "run_here", "run_local", "run_ray"]

log = logging.getLogger("diptych")

_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, lie far from each other however many

Tell = Callable[[Told], object]
Advance = Callable[[int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What all workers do alike; picklable.

    Attributes:
        inputs: shards, patterns or folders; see `expand`.
        out: the folder of the results.
        model, config, device, precision, mode, pixels, offline: as for `diptych.load`.
        lease, retry_failed: as for `work`.
    """

    inputs: tuple[str, ...]
    out: str
    model: str = "mini"
    config: str | None = None
    device: str = "auto"
    precision: str = "auto"
    mode: Mode = "right"
    pixels: Pixels = "exact"
    offline: bool | None = None
    lease: float = LEASE
    retry_failed: bool = False


class Place(NamedTuple):
    """Which of the workers of a job this one is, counted from 0; and on its machine."""

    rank: int
    local: int

    @property
    def start(self) -> float:
        """Where in the list of shards it begins, 0 to 1."""
        return self.rank * _GOLDEN % 1


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """The place that the launcher's variables name; (0, 0) where there are none.

    torchrun: RANK, LOCAL_RANK. Slurm: SLURM_ARRAY_TASK_ID, SLURM_NTASKS, SLURM_PROCID,
    SLURM_LOCALID. Kubernetes: JOB_COMPLETION_INDEX.

    Raises:
        ConfigError: one of them is not a number.
    """

    def number(name: str, otherwise: int = 0) -> int:
        text = environ.get(name, str(otherwise))
        if not text.isdecimal():
            raise ConfigError(f"{name} must be a number, got {text!r}. Type: unset {name}")
        return int(text)

    if "RANK" in environ:
        return Place(number("RANK"), number("LOCAL_RANK"))
    if "SLURM_PROCID" in environ or "SLURM_ARRAY_TASK_ID" in environ:
        tasks = number("SLURM_NTASKS", 1)
        rank = number("SLURM_ARRAY_TASK_ID") * tasks + number("SLURM_PROCID")
        return Place(rank, number("SLURM_LOCALID"))
    return Place(number("JOB_COMPLETION_INDEX"), 0)


def default_workers(task: Task, environ: Mapping[str, str] = os.environ) -> int:
    """One a GPU of this machine; 1 without, and where torchrun or Slurm start the processes."""
    started_by = ("LOCAL_RANK", "SLURM_LOCALID")
    if task.device not in ("auto", "cuda") or any(name in environ for name in started_by):
        return 1
    return max(1, torch.cuda.device_count())


def run_here(
    task: Task,
    *,
    at: Place | None = None,
    told: Tell = lambda told: None,
    advance: Advance = lambda n: None,
) -> None:
    """Be one worker, in this process.

    Raises:
        ShardError, ConfigError, ModelNotFoundError, CheckpointError: nothing can be done.
    """
    at = place() if at is None else at
    jobs = plan(expand(task.inputs), task.out)
    device, num_gpus = task.device, torch.cuda.device_count()
    if device in ("auto", "cuda") and num_gpus > 1:
        device = f"cuda:{at.local % num_gpus}"
    encoder = load(
        task.model,
        config=task.config,
        device=device,
        precision=task.precision,
        mode=task.mode,
        pixels=task.pixels,
        offline=task.offline,
    )
    work(
        jobs,
        encoder,
        model=task.model,
        lease=task.lease,
        retry_failed=task.retry_failed,
        start=at.start,
        told=told,
        advance=advance,
    )


def run_local(
    task: Task,
    *,
    workers: int,
    told: Tell = lambda told: None,
    advance: Advance = lambda n: None,
    started: Callable[[int], object] = lambda pid: None,
) -> list[str]:
    """Be the parent of so many workers on this machine, and return when all have ended.

    Args:
        workers: processes; they share the machine's cores, and its GPUs if there are any.
        told: is called once for each shard that a worker did, or that failed in one; in the end
            for those that were finished before.
        started: is told the process id of each.

    Returns:
        What went wrong with workers that died; the others have taken over their shards.

    Raises:
        DiptychError: what every worker says that could not begin.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, num_threads() // workers)
    readers: dict[Connection, multiprocessing.process.BaseProcess] = {}
    for i in range(workers):
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(task, Place(i, i), threads, writer))
        child.start()
        writer.close()  # so that its end is seen here when the child ends
        readers[reader] = child
        started(child.pid or 0)
    gathered = _Gathered(told, advance)
    died: list[str] = []
    try:
        while readers:
            for reader in wait(list(readers)):
                assert isinstance(reader, Connection)
                try:
                    gathered.take(reader.recv())
                except EOFError:  # also where it was killed within a message
                    child = readers.pop(reader)
                    child.join()
                    reader.close()
                    if child.exitcode:
                        died.append(f"worker {child.pid} died with code {child.exitcode}")
    finally:
        for child in readers.values():  # we were interrupted
            child.terminate()
            child.join()
    gathered.end()
    if gathered.errors and not gathered.ended:
        raise gathered.errors[0]
    return died + [str(error) for error in gathered.errors]


def run_ray(task: Task, *, workers: int, told: Tell = lambda told: None) -> list[str]:
    """Be so many workers of the Ray cluster that is connected, or of one made here.

    Its machines must see the inputs and the output under the same paths. A task that dies is
    started again by Ray.

    Returns:
        What went wrong with workers, as for `run_local`.

    Raises:
        MissingExtraError: Ray is not installed.
        DiptychError: what every worker says that could not begin.
    """
    try:
        import ray  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray", needed_for="the Ray launcher") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        gpus = 1 if torch.cuda.is_available() else 0  # of a cluster with GPUs, one each
        remote = ray.remote(num_gpus=gpus, max_retries=3)(_of_ray)
        absolute = tuple(str(Path(name).absolute()) for name in task.inputs)
        out = str(Path(task.out).absolute())  # its workers run in a folder of their own
        theirs = replace(task, inputs=absolute, out=out)
        pending = [remote.remote(theirs, i) for i in range(workers)]
        gathered, died = _Gathered(told, lambda n: None), []
        while pending:
            (ready,), pending = ray.wait(pending)
            try:
                for message in ray.get(ready):
                    gathered.take(message)
            except ray.exceptions.RayError as error:
                died.append(f"a worker of Ray died: {error}")
    finally:
        if ours:
            ray.shutdown()
    gathered.end()
    if gathered.errors and not gathered.ended:
        raise gathered.errors[0]
    return died + [str(error) for error in gathered.errors]


class _Gathered:
    """What several workers say, as if one had said it: each shard once, "done" before "known"."""

    def __init__(self, told: Tell, advance: Advance):
        self.told, self.advance = told, advance
        self.known: dict[Path, Told] = {}
        self.done: set[Path] = set()
        self.failed: dict[Path, Told] = {}
        self.errors: list[DiptychError] = []
        self.ended = 0

    def take(self, message: Told | int | DiptychError | None) -> None:
        match message:
            case Told(state="done"):
                self.done.add(message.path)
                self.told(message)
            case Told(state="known"):
                self.known.setdefault(message.path, message)
            case Told():
                self.failed.setdefault(message.path, message)
            case int():
                self.advance(message)
            case DiptychError():
                self.errors.append(message)
            case None:
                self.ended += 1

    def end(self) -> None:
        rest = self.failed | self.known  # what failed in one and was done by another is done
        for path, message in rest.items():
            if path not in self.done:
                self.told(message)


def _child(task: Task, at: Place, threads: int, writer: Connection) -> None:
    """The life of a local worker."""
    _end_on_sigterm()
    _end_with_parent()
    torch.set_num_threads(threads)
    os.environ["DIPTYCH_THREADS"] = str(threads)
    try:
        run_here(task, at=at, told=writer.send, advance=writer.send)
        writer.send(None)
    except DiptychError as error:
        writer.send(error)
    except KeyboardInterrupt:
        sys.exit(130)


def _of_ray(task: Task, rank: int) -> list[Told | DiptychError | None]:
    messages: list[Told | DiptychError | None] = []
    try:
        run_here(task, at=Place(rank, 0), told=messages.append)  # Ray shows each its own GPU
        messages.append(None)
    except DiptychError as error:
        messages.append(error)
    return messages


def _end_on_sigterm() -> None:
    """Give the lease back when the scheduler asks us to go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _end_with_parent() -> None:
    """A worker whose parent was killed goes too: nobody would see what it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)  # its lease becomes stale, as if it had been killed itself

    threading.Thread(target=watch, name="diptych-parent", daemon=True).start()
