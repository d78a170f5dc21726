"""What this machine multiplies fastest: measured once, and remembered in the cache folder.

Flags of the processor do not tell it all: oneDNN may be told to leave instructions alone
(ONEDNN_MAX_CPU_ISA), an emulator may have them and be slow, and a torch may lack the kernels.
"""

import contextlib
import functools
import json
import os
import platform
import time
from pathlib import Path

import torch

from diptych import zoo
from diptych.engine.int8 import alone
from diptych.errors import CheckpointError
from diptych.zoo.atomic import atomic_write

__all__ = ["bf16_gain"]

FILE = "probe.json"  # in the cache folder: a measured gain for each machine that shares it
_SHAPE = 192, 768, 1024  # rows, inputs, outputs: as in a ViT-B, some 10 ms for the whole probe
_ROUNDS = 5


def bf16_gain() -> float:
    """How many times faster than fp32 this CPU multiplies bfloat16, as the towers do; 0 if not at
    all. Measured when first asked for, by the best of five rounds each.
    """
    return _gain(_machine())


@functools.cache
def _gain(key: str) -> float:
    path = zoo.cache_folder() / FILE
    known = _read(path)
    if key not in known:
        known[key] = round(alone(_measure), 2)
        with contextlib.suppress(CheckpointError):  # it cannot be written: measured again
            atomic_write(path, lambda file: file.write_text(json.dumps(known, indent=1)))
    return known[key]


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _machine() -> str:
    """All that the answer depends on."""
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    flags = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    return f"{_processor()}, amx and avx512_bf16 {flags}, torch {torch.__version__}, limit {limits}"


def _read(path: Path) -> dict[str, float]:
    """What was measured before; nothing if the file is not there or not ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fits = isinstance(found, dict) and all(isinstance(value, float) for value in found.values())
    return found if fits else {}


def _measure() -> float:
    rows, inputs, outputs = _SHAPE
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(rows, inputs, dtype=dtype)
        weight = torch.ones(outputs, inputs, dtype=dtype)
        try:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
            _seconds(x, weight)  # makes the kernel
            best[dtype] = min(_seconds(x, weight) for _ in range(_ROUNDS))
        except (AttributeError, NotImplementedError, RuntimeError):  # a torch without these
            return 0.0
    return best[torch.float32] / best[torch.bfloat16]


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Of this thread alone: other programs have no part in it."""
    start = time.thread_time()
    torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return max(time.thread_time() - start, 1e-6)
