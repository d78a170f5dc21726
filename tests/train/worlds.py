"""One function in several processes that talk to each other by gloo, on this machine alone."""

import importlib.util
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(world: int, function: Callable, *args) -> list:
    """`function(*args)` in each of `world` processes; returns their results, rank by rank.

    The function stands at the top of a test file (its rank: `dist.get_rank()`). Arguments and
    results are tensors, numbers, strings and containers of these; arguments may be anything that
    pickles. An error of one rank ends all and is raised here with its traceback.
    """
    # A server that has imported torch once: each process is then a fork of it, in milliseconds.
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed", __name__])
    with tempfile.TemporaryDirectory() as folder:
        target = (function.__code__.co_filename, function.__qualname__)
        mp.start_processes(
            _rank, (world, folder, target, args), nprocs=world, start_method="forkserver"
        )
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, target: tuple[str, str], args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "store").as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    torch.save(_load(*target)(*args), Path(folder, str(rank)))
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


def _load(file: str, name: str) -> Callable:
    """The function by its file: test modules have no name that a new process could import."""
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    return found  # pyrefly: ignore
