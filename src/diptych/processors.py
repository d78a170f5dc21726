"""How many processors this process may use: its affinity, and a container's quota of time."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["num_processors", "obey_quota"]

GROUPS = Path("/proc/self/cgroup")  # lines "number:controllers:path"; cgroups(7)
MOUNTED = Path("/sys/fs/cgroup")


def num_processors() -> int:
    """Processors that this process may use: a quota (`docker run --cpus 1.5`) is rounded up."""
    return min([_affinity(), *map(math.ceil, _quotas())])


def obey_quota() -> None:
    """Under a quota, has PyTorch take no more threads; to be called before it is imported.

    It takes one for each core of the machine. Under a quota they spend it in a fraction of each
    period and wait for one another in the rest. OMP_NUM_THREADS holds where it is set.
    """
    if num_processors() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(num_processors()))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Of the control groups around this process, those with a limit: in processors' time."""
    lines = []
    with contextlib.suppress(OSError):  # not Linux
        lines = GROUPS.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = MOUNTED / controllers
        # a container may be told the host's path, while its own group is mounted as the root
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == root:
                break


def _quota(folder: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # the same in cgroups of version 1
        quota, period = (int((folder / f"cpu.cfs_{x}_us").read_text()) for x in ("quota", "period"))
        if quota > 0:  # -1: none
            yield quota / period
