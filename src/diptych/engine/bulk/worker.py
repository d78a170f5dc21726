"""A worker: takes shards nobody works on, until all are done. Any number of them, anywhere.

Workers know of each other through the folder alone. One that dies at any moment costs the others
its shard's work and one lease period; what it had begun is removed by who takes the shard over.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diptych.engine.bulk.lease import Lease, claim, leased
from diptych.engine.bulk.plan import Job, Manifest, finished
from diptych.engine.bulk.unit import embed_shard, retry_shard, sweep
from diptych.errors import CheckpointError, ConfigError, ShardError

if TYPE_CHECKING:
    from diptych.engine.encoder import Encoder

__all__ = ["LEASE", "Told", "work"]

log = logging.getLogger("diptych")

LEASE = 60.0  # seconds
_LONGEST_WAIT = 2.0  # seconds between two looks at shards that others have


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What became of one shard.

    Attributes:
        state: "done" by this worker, "known": finished before or by another, "failed".
    """

    path: Path
    folder: Path
    state: Literal["done", "known", "failed"]
    manifest: Manifest | None = None
    error: str | None = None


class _Lost(Exception):
    """The lease is another worker's now."""


def work(
    jobs: Sequence[Job],
    encoder: Encoder,
    *,
    model: str,
    lease: float = LEASE,
    retry_failed: bool = False,
    start: float = 0.0,
    told: Callable[[Told], object] = lambda told: None,
    advance: Callable[[int], object] = lambda n: None,
) -> None:
    """Do what nobody else does, and return when all jobs are finished or failed here.

    Args:
        jobs: of `plan`; the same for all workers, in any order.
        model: the name for the manifests.
        lease: seconds after which a worker that does not renew its lease is taken for dead.
        retry_failed: encode anew what failed in shards that were finished when this call began.
        start: where in the list to begin, 0 to 1, so that workers do not meet at each shard.
        told: is called once for each job.
        advance: is called with the number of images that were done since.

    Raises:
        ConfigError: a folder holds vectors of another model (before anything is done), or the
            output cannot be written.
    """
    if lease < 1:
        raise ConfigError(f"lease must be 1 second at least, got {lease}")
    worker = _Worker(encoder, model, lease, advance)
    again = {}  # folder -> attempts so far, of shards whose failures are to be tried again
    for job in jobs:
        with contextlib.suppress(ShardError):  # told when its turn comes
            manifest = finished(job, fingerprint=encoder.fingerprint)
            if manifest is not None and manifest.errors and retry_failed:
                again[job.folder] = manifest.attempts
    first = int(start * len(jobs))
    waiting = deque([*jobs[first:], *jobs[:first]])
    while waiting:
        left = len(waiting)
        dirty = leased(waiting[0].leases)
        for _ in range(left):
            job = waiting.popleft()
            outcome = worker.try_one(job, again.get(job.folder, 0), dirty=job.folder.name in dirty)
            if outcome is None:
                waiting.append(job)
            else:
                told(outcome)
        if len(waiting) == left:
            time.sleep(min(_LONGEST_WAIT, lease / 4))
    for folder in {job.leases for job in jobs}:
        with contextlib.suppress(OSError):  # others still work
            folder.rmdir()


@dataclass(slots=True)
class _Worker:
    encoder: Encoder
    model: str
    lease: float
    advance: Callable[[int], object]

    def try_one(self, job: Job, attempts: int, *, dirty: bool) -> Told | None:
        """What became of a job, now; None: another worker has it.

        Args:
            attempts: try its failures again if it has had so many.
            dirty: there is a lease on it, perhaps of a worker that died.
        """
        try:
            manifest = self._finished(job)
            to_do = manifest is None or manifest.attempts == attempts
            if not to_do and not dirty:
                return _told(job, "known", manifest)
            lease = claim(job.leases, job.folder.name, period=self.lease)
            if lease is None:
                return None if to_do else _told(job, "known", manifest)
            try:
                return self._do(job, attempts, lease)
            finally:
                lease.release()
        except (ShardError, CheckpointError) as error:
            return Told(path=job.path, folder=job.folder, state="failed", error=str(error))

    def _do(self, job: Job, attempts: int, lease: Lease) -> Told | None:
        if lease.number:
            log.warning("%s: a worker has died or slept; taking it over", job.path)
            sweep(job.folder)
        manifest = self._finished(job)  # somebody may have been faster

        def keep_on() -> None:
            if lease.lost.is_set():
                raise _Lost

        try:
            rest = {"model": self.model, "keep_on": keep_on, "advance": self.advance}
            if manifest is None:
                manifest = embed_shard(self.encoder, job, **rest)
            elif manifest.attempts == attempts:
                manifest = retry_shard(self.encoder, job, manifest, **rest)
            else:
                return _told(job, "known", manifest)
        except _Lost:
            log.warning("%s: was taken over while this worker slept", job.path)
            return None
        except CheckpointError:
            if lease.is_mine():
                raise
            return None  # who took it over swept our folder, or put its own
        return _told(job, "done", manifest)

    def _finished(self, job: Job) -> Manifest | None:
        return finished(job, fingerprint=self.encoder.fingerprint)


def _told(job: Job, state: Literal["done", "known"], manifest: Manifest | None) -> Told:
    return Told(path=job.path, folder=job.folder, state=state, manifest=manifest)
