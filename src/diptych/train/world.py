"""The ranks of a run: set up from torchrun's variables, and the few things they tell each other.

    torchrun --nproc-per-node 2 -m diptych.cli.main train recipes/emoji.py:gpu --out runs/emoji

- One rank is a world too: the same code runs with and without a process group.
- `torchrun --max-restarts 3` starts lost ranks again. It wants TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  beside it: else the new ranks may find the addresses of the old ones (pytorch#135712), and a
  restart is wasted.
- What ranks tell each other about a run (stop, skip, this is the step) goes through `agree`, one
  small tensor a step, so that no rank ever does something the others do not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.engine.device import pick_device
from diptych.errors import ConfigError, TrainError

__all__ = ["World", "world"]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This rank among `size`; `device` is where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (it cannot be changed)

    @property
    def first(self) -> bool:
        """Whether this rank writes files and talks to people."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank raised it."""
        raised = torch.tensor([float(flag) for flag in flags], device=self.device)
        return [value > 0 for value in self.sum(raised).tolist()]

    def gather(self, thing: Any) -> list[Any]:
        """Each rank's `thing`, a plain Python object, on every rank."""
        if self.size == 1:
            return [thing]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing)
        return found


@contextlib.contextmanager
def world(device: str = "auto", *, timeout: float = 600.0) -> Iterator[World]:
    """The world that the environment describes; alone if it describes none.

    Args:
        device: "auto", "cpu" or "cuda"; a rank takes the device of its LOCAL_RANK.
        timeout: seconds that a collective may take before the run ends with an error.

    Raises:
        ConfigError: variables that contradict each other.
        TrainError: another rank ended or was silent for too long.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized():  # the caller has set it up, as tests do
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=pick_device(device))
        return
    if size == 1:
        yield World(device=pick_device(device))
        return
    missing = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set. Start the ranks with "
            "torchrun --nproc-per-node N -m diptych.cli.main train ..."
        )
    picked = pick_device(device)
    if picked.type == "cuda":
        picked = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(picked)
    backend = "nccl" if picked.type == "cuda" else "gloo"
    rank = os.environ["RANK"]
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        yield World(rank=dist.get_rank(), size=size, device=picked)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainError(
            f"rank {rank} of {size}: another rank has ended, or was silent for {timeout:g} s "
            f"({str(error).splitlines()[0]:.200}). Its own error says why. Type the same again to "
            "go on from the last checkpoint; --set timeout=SECONDS waits longer."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
