"""The state of a run on the disk: whole or not at all, checked before it is believed.

    RUN/checkpoints/step-00000120/state.safetensors   weights, optimiser, mean of the weights
                                  state.json          step, data position, generators, config
                                  manifest.json       size and SHA-256 of the two; written last

- A checkpoint is written into a temporary folder, synced and renamed. One without a manifest, or
  whose files are not what it says, is passed over for the next older one, and why is told.
- Tensors are whole ones, whatever number of ranks saved them, so that any number may go on. The
  same number goes on bit for bit. With another, sample order and learning rate go on the same;
  sums over ranks are rounded differently, and generators of torch start anew from seed and step.
- Nothing is unpickled.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from diptych.errors import CheckpointError, TrainError
from diptych.zoo.atomic import atomic_folder
from diptych.zoo.identity import sha256_of

__all__ = ["Saved", "clean", "full", "newest", "prune", "random_state", "save", "set_random_state"]

_STEP = re.compile(r"step-(\d{8})")
_TENSORS, _FACTS, _MANIFEST = "state.safetensors", "state.json", "manifest.json"


class Saved(NamedTuple):
    """A checkpoint that was read and is whole."""

    step: int
    folder: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with "name/", without that."""
        start = f"{name}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def save(
    folder: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping
) -> Path:
    """Write the checkpoint of `step`; call it on one rank.

    Args:
        folder: of all checkpoints of the run.
        tensors: part -> name -> tensor, whole ones (`full`).
        facts: plain JSON.

    Raises:
        TrainError: a weight that is not a number; nothing is written.
            Or the system refused (disk full): what was there is as it was.
    """
    flat = {f"{part}/{key}": t for part, some in tensors.items() for key, t in some.items()}
    wrong = [k for k, t in flat.items() if t.is_floating_point() and not t.isfinite().all()]
    if wrong:
        raise TrainError(
            f"step {step}: NaN or infinity in {', '.join(wrong[:5])}. It was not saved; the "
            "checkpoints before it are good. Begin anew with a lower rate: --set optim.lr=..."
        )
    path = folder / f"step-{step:08d}"
    if path.exists():  # left by a run that fell back behind it
        _remove(path)
    size = sum(tensor.nbytes for tensor in flat.values())
    try:
        _write(path, flat, {"step": step, **facts})
    except CheckpointError as error:  # disk full, no permission
        raise TrainError(
            f"{error} The checkpoints before it are good. Make room for {size:,} bytes, or "
            "keep fewer (--set checkpoints.keep=1); then type the same again to go on."
        ) from error
    return path


def _write(path: Path, flat: dict[str, Tensor], facts: Mapping) -> None:
    with atomic_folder(path) as temporary:
        try:
            save_file(flat, temporary / _TENSORS)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (temporary / _FACTS).write_text(json.dumps(facts), "utf-8")
        files = {name: _measure(temporary / name) for name in (_TENSORS, _FACTS)}
        (temporary / _MANIFEST).write_text(json.dumps(files, indent=1), "utf-8")


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, or None; and why newer ones were passed over."""
    passed: list[str] = []
    for path in sorted(_checkpoints(folder), reverse=True):
        why_not = _flaw(path)
        if why_not is None:
            facts = json.loads((path / _FACTS).read_text("utf-8"))
            return Saved(facts["step"], path, load_file(path / _TENSORS), facts), passed
        passed.append(f"{path}: {why_not}")
    return None, passed


def clean(folder: Path) -> None:
    """Remove what a run that was killed left half written or half removed."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def prune(folder: Path, *, step: int, keep: int, best: int | None = None) -> None:
    """Remove all checkpoints but the newest `keep` up to `step` and that of step `best`.

    Later ones are damaged, or the run would have gone on from there.
    """
    steps = {int(path.name.removeprefix("step-")): path for path in _checkpoints(folder)}
    kept = sorted(number for number in steps if number <= step)[-keep:]
    for number, path in sorted(steps.items()):
        if number not in (*kept, best):
            _remove(path)


def full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, of shards if need be: then all ranks must call it."""
    whole = {
        k: (v.full_tensor() if isinstance(v, DTensor) else v).detach() for k, v in tensors.items()
    }
    return {k: v.cpu().contiguous().clone() for k, v in whole.items()}


def random_state() -> dict[str, Any]:
    """The state of this process's generators, as JSON: python, numpy, torch, CUDA."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (towers of others may draw from it)
    inner = numpy["state"]
    cuda = torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**inner, "key": inner["key"].tolist()}},
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": cuda,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})  # noqa: NPY002
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _checkpoints(folder: Path) -> list[Path]:
    return [p for p in folder.glob("step-*") if p.is_dir() and _STEP.fullmatch(p.name)]


def _measure(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _flaw(path: Path) -> str | None:
    """Why a checkpoint is not to be believed."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text("utf-8"))
        for name in (_TENSORS, _FACTS):
            if _measure(path / name) != manifest[name]:
                return f"{name} is not what the manifest says: truncated or damaged"
        load_file(path / _TENSORS)
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"cannot be read: {error}"
    return None


def _remove(path: Path) -> None:
    """First out of sight, so that a kill leaves no half checkpoint under its name."""
    gone = path.with_name(f".{path.name}.gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
