"""Read the tensors of a TorchScript archive without running any of it: OpenAI's .pt files.

The archive is a zip: `data.pkl` describes objects, `data/N` holds tensors, `code/` holds programs.
- `data.pkl` is unpickled with a table of inert stand-ins; any other global is refused by name.
  Classes of the archive become empty shells, and nothing that a pickle can reach is callable but
  the functions below. `constants.pkl`, traced inputs and debug files are never opened.
- `code/` is only searched, as text, for the names of parameters and buffers, so the result equals
  `torch.jit.load(path).state_dict()`.
- Tensors are views of the memory-mapped file; dtype, strides and offsets are kept, bounds checked.
"""

import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.errors import CheckpointError, UnsafeFileError

__all__ = ["Archive", "UnpicklingError", "is_torchscript", "read_torchscript"]

MAX_PICKLE = 64 << 20  # bytes; OpenAI's largest data.pkl has 1 MB
MAX_CODE = 64 << 20

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  __\w+__ = \[[^\]]*\]\n)*)", re.MULTILINE)
_NAMES = re.compile(r"__(parameters|buffers)__ = \[([^\]]*)\]")


class Archive(NamedTuple):
    """state_dict: parameters and buffers by name. attributes: plain values of the top module."""

    state_dict: dict[str, Tensor]
    attributes: dict[str, Any]


class _Shell:
    """Stands for an object of a class in the archive: a name and a state, no behaviour."""

    __slots__ = ("state",)
    qualified_name = ""

    def __new__(cls) -> "_Shell":
        shell = super().__new__(cls)
        shell.state = None
        return shell

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Call:
    """A function that the pickle may call. It has no `__dict__` that a pickle could write to."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def is_torchscript(path: Path) -> bool:
    """Whether the zip at `path` is laid out as `torch.jit.save` does; reads names only."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    roots = {name.split("/", 1)[0] for name in names}
    return any(f"{root}/data.pkl" in names and f"{root}/constants.pkl" in names for root in roots)


def read_torchscript(path: Path) -> Archive:
    """The tensors and the top-level values of a TorchScript archive.

    Raises:
        UnsafeFileError: its pickle asks for a global that is not on the list; nothing was run.
        CheckpointError: not such an archive, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive, path)
            top = _Unpickler(archive, root, path).load()
            names = _declared_names(archive, root, path)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, UnpicklingError, EOFError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged archive ({error}). Fetch the file again.") from None
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError) as error:
        # Whatever a hostile pickle can make the unpickler raise.
        raise CheckpointError(f"{path}: data.pkl is malformed ({error}).") from None
    if not isinstance(top, _Shell):
        raise CheckpointError(f"{path}: data.pkl does not hold a module.")
    state_dict: dict[str, Tensor] = {}
    attributes = _walk(top, "", names, state_dict, path, depth=0)
    return Archive(state_dict, attributes)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path):
        info = archive.getinfo(f"{root}/data.pkl")
        if info.file_size > MAX_PICKLE:
            raise CheckpointError(
                f"{path}: data.pkl has {info.file_size} bytes, at most {MAX_PICKLE}."
            )
        data = archive.read(info)
        for opcode, argument, _ in pickletools.genops(data):
            # Python makes room for the whole memo at once: one such number asks for gigabytes.
            put = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
            if put and int(argument or 0) > len(data):
                raise CheckpointError(f"{path}: data.pkl is malformed (memo entry {argument}).")
        super().__init__(io.BytesIO(data))
        self._archive, self._root, self._path = archive, root, path
        self._mapped: Tensor | None = None
        self._storages: dict[str, Tensor] = {}
        self._classes: dict[str, type] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            qualified = f"{module}.{name}"
            if qualified not in self._classes:
                fields = {"__slots__": (), "qualified_name": qualified}
                self._classes[qualified] = type("Shell", (_Shell,), fields)
            return self._classes[qualified]
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return _Call(self._rebuild)
            case "torch._utils", "_rebuild_parameter":
                return _Call(lambda tensor, requires_grad, hooks: tensor)
            case "torch.jit._pickle", "restore_type_tag":
                return _Call(lambda value, type_name: value)
            case "torch.jit._pickle", list_name if list_name in _LISTS:
                return _Call(lambda values: values)
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch", storage if storage in _STORAGES:
                return _STORAGES[storage]
        raise UnsafeFileError(
            f"{self._path}: reading it would call {module}.{name}, which no checkpoint needs. "
            "Nothing was run. Get the weights as safetensors from a source you trust."
        )

    def persistent_load(self, pid: Any, /) -> Any:
        """('storage', dtype, record, device, number of elements) -> a flat tensor."""
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise CheckpointError(f"{self._path}: a persistent id {pid!r:.80} that is no storage.")
        found = self._storages.get(key)
        if found is None:
            found = self._storages[key] = self._record(key, dtype)
        if found.dtype != dtype:
            raise CheckpointError(f"{self._path}: data/{key} is used as {found.dtype} and {dtype}.")
        return found

    def _record(self, key: str, dtype: torch.dtype) -> Tensor:
        try:
            info = self._archive.getinfo(f"{self._root}/data/{key}")
        except KeyError:
            raise CheckpointError(f"{self._path}: the record data/{key} is missing.") from None
        size = dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size % size:
            raise CheckpointError(f"{self._path}: the record data/{key} is not raw {dtype} data.")
        if info.file_size == 0:
            return torch.empty(0, dtype=dtype)
        if self._mapped is None:
            length = self._path.stat().st_size
            self._mapped = torch.from_file(
                str(self._path), shared=False, size=length, dtype=torch.uint8
            )
        start = self._data_offset(info)
        if start + info.file_size > self._mapped.numel():
            raise CheckpointError(f"{self._path}: data/{key} reaches past the end. Fetch it again.")
        raw = self._mapped[start : start + info.file_size]
        return (raw if start % size == 0 else raw.clone()).view(dtype)

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Where the record's bytes begin: after the local header, whose extra field may differ."""
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise CheckpointError(f"{self._path}: no local header for {info.filename}.")
        name, extra = struct.unpack("<HH", header[26:30])
        return info.header_offset + 30 + name + extra

    def _rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        numbers = [offset, *size, *stride]
        if not isinstance(storage, Tensor) or any(type(n) is not int or n < 0 for n in numbers):
            raise CheckpointError(f"{self._path}: a tensor with malformed sizes {numbers[:9]}.")
        if len(size) != len(stride):
            raise CheckpointError(
                f"{self._path}: a tensor with {len(size)} sizes, {len(stride)} strides."
            )
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.numel():
            raise CheckpointError(f"{self._path}: a tensor {list(size)} reaches past its record.")
        return torch.as_strided(storage, size, stride, storage.storage_offset() + offset)


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    roots = [n[: -len("/data.pkl")] for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{path}: {len(roots)} records named data.pkl, expected one.")
    byteorder = f"{roots[0]}/byteorder"
    if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
        raise CheckpointError(f"{path}: big-endian tensors cannot be read. Convert the file.")
    return roots[0]


def _declared_names(archive: zipfile.ZipFile, root: str, path: Path) -> dict[str, dict[str, list]]:
    """{class: {"parameters": names, "buffers": names}}, found in the code as text."""
    out: dict[str, dict[str, list]] = {}
    total = 0
    for info in archive.infolist():
        if not (info.filename.startswith(f"{root}/code/") and info.filename.endswith(".py")):
            continue
        total += info.file_size
        if total > MAX_CODE:
            raise CheckpointError(f"{path}: more than {MAX_CODE} bytes of code.")
        module = info.filename[len(root) + len("/code/") : -len(".py")].replace("/", ".")
        text = archive.read(info).decode("utf-8", errors="replace")
        for name, head in _CLASS.findall(text):
            lists = {kind: re.findall(r'"([^"]*)"', body) for kind, body in _NAMES.findall(head)}
            out[f"{module}.{name}"] = lists
    return out


def _walk(
    shell: _Shell,
    prefix: str,
    names: dict[str, dict[str, list]],
    out: dict[str, Tensor],
    path: Path,
    *,
    depth: int,
) -> dict[str, Any]:
    """Collect the tensors below `shell` into `out`; returns its plain attributes."""
    state = shell.state
    if depth > 64 or not isinstance(state, dict):
        raise CheckpointError(f"{path}: the module {prefix[:-1]!r} is malformed.")
    declared = names.get(shell.qualified_name)
    if declared is None:
        raise CheckpointError(f"{path}: no code names the parameters of {shell.qualified_name}.")
    # Files from before torch 1.6 list no buffers: every tensor is taken there.
    wanted = None if "buffers" not in declared else {*declared["parameters"], *declared["buffers"]}
    attributes: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, _Shell):
            _walk(value, f"{prefix}{name}.", names, out, path, depth=depth + 1)
        elif isinstance(value, Tensor):
            if wanted is None or name in wanted:
                out[f"{prefix}{name}"] = value
        elif isinstance(value, bool | int | float | str):
            attributes[str(name)] = value
    return attributes
