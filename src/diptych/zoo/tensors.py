"""One file of tensors, recognised by its content: safetensors, TorchScript, pickle.

Nothing in a file is run: pickles go through `weights_only=True`, archives through `torchscript`.
"""

import json
import pickletools
import re
import struct
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from diptych.errors import CheckpointError, ModelNotFoundError, UnsafeFileError
from diptych.zoo.torchscript import UnpicklingError, is_torchscript, read_torchscript

__all__ = ["Tensors", "read_tensors", "safetensors_header"]

MAX_HEADER = 100_000_000  # bytes, safetensors' own limit

# What people really have on disk under the name of a model.
_NOT_A_MODEL = (
    (rb"\x89PNG\r\n", "is a PNG image"),
    (rb"\xff\xd8\xff", "is a JPEG image"),
    (rb"GIF8", "is a GIF image"),
    (rb"RIFF....WEBP", "is a WebP image"),
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file it points to: git lfs pull"),
    (rb"\s*<(!DOCTYPE|html|HTML|\?xml)", "is a web page, saved in place of the file"),
    (rb"\x93NUMPY", "is a NumPy array"),
    (rb"\x1f\x8b", "is compressed with gzip: gunzip it"),
)
_CODE = re.compile(
    r"(?:[Gg]lobal:?|GLOBAL) (?!GLOBAL)([\w.]+)|reduce for unrecognized function (\S+)"
)
_DETAIL = re.compile(r"WeightsUnpickler error: (.*)")


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """What a file holds, before any key is understood.

    values: plain numbers and texts beside the tensors (a TorchScript module's attributes).
    metadata: the strings in a safetensors header.
    """

    kind: Literal["safetensors", "torchscript", "pickle"]
    state_dict: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensors(path: Path) -> Tensors:
    """The tensors of one file, memory-mapped where the format allows, under the file's own keys.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsafeFileError: the file would have to run code to be read; nothing was run.
        CheckpointError: not a file of tensors, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file.") from None
    if not head:
        raise CheckpointError(f"{path}: is empty. Fetch the file again.")
    for pattern, what in _NOT_A_MODEL:
        if re.match(pattern, head, re.DOTALL):
            raise CheckpointError(f"{path}: {what}. Give the path of a checkpoint.")
    if head[:4] == b"PK\3\4":
        return _read_zip(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:1] == b"\x80":
        return _read_pickle(path, mapped=False)
    raise CheckpointError(
        f"{path}: starts with {head[:8]!r}: neither safetensors, TorchScript nor a torch pickle."
    )


def _read_zip(path: Path) -> Tensors:
    try:
        scripted = is_torchscript(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: is cut off or damaged ({error}). Fetch it again.") from None
    if not scripted:
        return _read_pickle(path, mapped=True)
    archive = read_torchscript(path)
    return Tensors(kind="torchscript", state_dict=archive.state_dict, values=archive.attributes)


def _read_pickle(path: Path, *, mapped: bool) -> Tensors:
    try:
        with warnings.catch_warnings():  # of a newer pickle protocol: it loads, or it is refused
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # torch opens whatever is named .safetensors as such, and maps only what it is named
            named = mapped and path.suffix != ".safetensors"
            with path.open("rb") as file:
                source = path if named else file
                data = torch.load(source, map_location="cpu", weights_only=True, mmap=named or None)
    except UnpicklingError as error:
        found = _CODE.search(str(error))
        name = (found[1] or found[2]).rstrip(".") if found else first_global(path)
        if name is not None:
            raise UnsafeFileError(
                f"{path}: reading it would need {name}, which is code. Nothing was run. Get the "
                "weights as safetensors, or save the tensors alone with torch.save."
            ) from None
        detail = found[1] if (found := _DETAIL.search(str(error))) else "it is cut off"
        raise CheckpointError(
            f"{path}: is no pickle of tensors ({detail[:200]}). Fetch the file again."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{path}: damaged file ({_first_line(error)}).") from None
    except (AttributeError, AssertionError, MemoryError, struct.error) as error:
        raise CheckpointError(f"{path}: damaged file ({_first_line(error)}).") from None
    return _unwrap(data, path)


def first_global(path: Path) -> str | None:
    """The first name that the pickle in a bare file would import; found by reading, not running."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    except (ValueError, IndexError, struct.error):
        pass  # no pickle, or its head alone
    return None


def _unwrap(data: Any, path: Path) -> Tensors:
    """The state dict in a training checkpoint, without the wrappers' prefixes."""
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]  # beside epoch, optimizer, scaler: open_clip's training files
    if not isinstance(data, dict) or not any(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(f"{path}: holds no state dict but a {type(data).__name__}.")
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Tensor):
            tensors[str(key)] = value.detach()
        elif isinstance(value, bool | int | float | str):
            values[str(key)] = value
        else:
            raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor.")
    return Tensors(kind="pickle", state_dict=strip_wrappers(tensors), values=values)


def strip_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefixes of DistributedDataParallel and torch.compile."""
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): v for key, v in state_dict.items()}


def _read_safetensors(path: Path) -> Tensors:
    header = safetensors_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is cut short or damaged ({error}). Fetch the file again."
        ) from None
    metadata = header.get("__metadata__") or {}
    return Tensors(
        kind="safetensors", state_dict=strip_wrappers(state_dict), metadata=dict(metadata)
    )


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header, checked: size, syntax, and that no key stands twice.

    Raises:
        CheckpointError: names the fault; a duplicate key is named, as the safetensors package
            (0.8) keeps the last one silently.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise CheckpointError(f"{path}: the header names {key!r} twice.")
            out[key] = value
        return out

    total = path.stat().st_size
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if size > MAX_HEADER or size + 8 > total:
            raise CheckpointError(
                f"{path}: its safetensors header claims {size} bytes, the file has {total}. "
                "Fetch the file again."
            )
        raw = file.read(size)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its safetensors header is no JSON ({error}).") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its safetensors header is no JSON object.")
    return header


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
