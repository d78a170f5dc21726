"""Products of int8 rows, exact in int32, by whatever this processor does best.

- The work is done by `torch._int_mm`, a private call: oneDNN's kernels for VNNI and AMX. A probe
  compares it once with numpy, on numbers that saturate the instructions of older processors, and
  numpy does the work where it is wrong, refused or gone.
- A few queries are limited by memory, and one thread reads it as fast as two (17 ms for 0.5 GB on
  either). A second one would have to be woken for each block: 130 ms where another program, or an
  OpenMP that spins, has its processor. So they are asked in a thread that works `alone`.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

__all__ = ["FEW", "alone", "product"]

FEW = 3  # queries whose product is limited by memory
_ROWS = 4096  # of the probe
_lock = threading.Lock()
_T = TypeVar("_T")


def alone(function: Callable[[], _T]) -> _T:
    """`function()`, in a thread of ours in which torch uses no other threads."""
    with _lock:
        pool = _pool()
    return pool.submit(function).result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    num = torch.get_num_threads()
    ready = threading.Barrier(num + 1)

    def start() -> None:
        torch.get_num_threads()  # takes the common number, which the next line would lose to
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(num, thread_name_prefix="diptych-scan", initializer=start)
    for _ in range(num):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(num)  # of all threads to come; those of the pool keep their one
    if os.name == "posix":
        os.register_at_fork(after_in_child=_pool.cache_clear)  # threads are not there after a fork
    return pool


def product(queries: torch.Tensor, tile: torch.Tensor, out: torch.Tensor) -> None:
    """int8 [q e], int8 [t e] -> int32 [q t], exactly."""
    multiply = _kernel if _has_kernel(tile.shape[1]) else _plain
    multiply(queries, tile, out)


def _kernel(queries: torch.Tensor, tile: torch.Tensor, out: torch.Tensor) -> None:
    if len(queries) > FEW:
        torch._int_mm(queries, tile.T, out=out)
        return
    for query, row in zip(queries, out, strict=True):  # a matrix and a vector: as fast as memory
        torch._int_mm(tile, query[:, None], out=row[:, None])


def _plain(queries: torch.Tensor, tile: torch.Tensor, out: torch.Tensor) -> None:
    """In float32 by numpy: sums of 1024 products of 7 bits are below 2**24, so exact."""
    left, right = queries.numpy(), tile.numpy()
    total = out.zero_().numpy()
    for start in range(0, left.shape[1], 1024):
        some = slice(start, start + 1024)
        total += (left[:, some].astype(np.float32) @ right[:, some].T.astype(np.float32)).astype(
            np.int32
        )


@functools.cache
def _has_kernel(width: int) -> bool:
    """Whether this torch multiplies int8 rows of that width on this processor, and rightly."""
    numbers = torch.tensor([127, -127, 127, 127, -127, -1, 0, 5], dtype=torch.int8)
    tile = numbers.repeat(_ROWS * width // 8 + 1)[: _ROWS * width].view(_ROWS, width)
    tile[:8] = numbers[:, None]  # rows of one number: the largest sums
    try:
        for queries in (tile[:1], tile[1:3], tile[:8], tile[:64]):
            found, expected = torch.zeros((2, len(queries), _ROWS), dtype=torch.int32)
            _kernel(queries, tile, found)
            _plain(queries, tile, expected)
            if not torch.equal(found, expected):
                return False
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True
