"""One tower as a file that other programs run: ONNX or torch.export, written and opened.

- Inside the graph: the tower in fp32 and the normalisation to unit rows. Any number of rows; texts
  also shorter than the context, where what stands behind them reaches no result.
- Operator set 18: the first that has everything needed, so the widest choice of runtimes. (In 23
  attention is one operator, whose masks ONNX Runtime 1.32 does not broadcast.)
- Up to 256 MB the weights lie in the .onnx file, above in .onnx.data beside it: a file in one piece
  is held in memory twice while it is written, and 2 GB is the most that it can be.
- Where the exporter was called from is cut out of the graph: the paths of a machine are nobody
  else's business, and the same model gives the same bytes.
- A .pt2 file can run code when it is opened (torch 2.13 unpickles whatever the archive calls a
  pickle), so only `open_written` opens one: a file that this process has just written.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import BertConfig, CLIPConfig, PreprocessConfig, TextConfig, TokenizerConfig
from diptych.errors import CheckpointError, ConfigError, MissingExtraError
from diptych.model import CLIP
from diptych.preprocess.pipeline import normalise_batch

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "OPSET",
    "SUFFIXES",
    "Format",
    "Precision",
    "Side",
    "Tower",
    "check_packages",
    "open_onnx",
    "open_written",
    "session",
    "sides",
    "write_graph",
]

Format: TypeAlias = Literal["onnx", "torch"]
Tower: TypeAlias = Literal["image", "text"]
Precision: TypeAlias = Literal["fp32", "fp16"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
_INSIDE = 256_000_000  # bytes of weights that may lie in the .onnx file itself
_FEW = 4096  # numbers: smaller tensors stay fp32 under precision="fp16"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One tower, and what it takes.

    shape: of one row, [3 H W] or [s]. shorter: a text may have fewer ids than that.
    pixels: set if the input is uint8 levels: then the normalisation to do inside.
    """

    side: Tower
    tower: nn.Module
    shape: tuple[int, ...]
    shorter: bool = False
    pixels: PreprocessConfig | None = None

    @property
    def input(self) -> str:
        return {"image": "pixels", "text": "ids"}[self.side]

    @property
    def output(self) -> str:
        return f"{self.side}_features"

    @property
    def dtype(self) -> torch.dtype:
        if self.side == "text":
            return torch.int64
        return torch.float32 if self.pixels is None else torch.uint8

    @property
    def axes(self) -> dict[int, str]:
        """The dimensions of the input that are free, with their names."""
        return {0: "n", 1: "tokens"} if self.shorter else {0: "n"}

    def rows(self, batch: Tensor) -> Tensor:
        """Unit rows [n e] of a batch by the tower itself, on the CPU: the reference, in fp32."""
        device = next(self.tower.parameters()).device
        with torch.no_grad():
            return _Unit(self.tower, self.pixels)(batch.to(device)).cpu()


def sides(
    model: CLIP,
    config: CLIPConfig,
    preprocess: PreprocessConfig,
    tokenizer: TokenizerConfig,
    *,
    uint8: bool = False,
) -> dict[Tower, Side]:
    """Both towers of a model. uint8: images come as levels 0..255, not normalised."""
    return {
        "image": Side(
            side="image",
            tower=model.visual,
            shape=(3, *preprocess.size),
            pixels=preprocess if uint8 else None,
        ),
        "text": Side(
            side="text",
            tower=model.text,
            shape=(tokenizer.context_length,),
            shorter=_may_be_shorter(config.text),
        ),
    }


def _may_be_shorter(text: Any) -> bool:
    match text:
        case TextConfig():
            return text.causal and text.pool in ("argmax", "eos")
        case BertConfig():
            return text.pad_id is not None
    return False  # a tower of another package: what padding does there is not known


class _Unit(nn.Module):
    """Pixels or ids to unit rows."""

    def __init__(self, tower: nn.Module, pixels: PreprocessConfig | None):
        super().__init__()
        self.tower = tower
        self.pixels = pixels

    def forward(self, batch: Tensor) -> Tensor:
        if self.pixels is not None:
            batch = normalise_batch(batch, self.pixels)
        return F.normalize(self.tower(batch), dim=-1)


def check_packages(format: Format) -> None:
    """Whether what the format needs is installed.

    Raises:
        MissingExtraError: a package of the extra `export` is not.
    """
    if format != "onnx":
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="export", needed_for="ONNX")


def write_graph(side: Side, path: Path, *, format: Format, precision: Precision = "fp32") -> None:
    """Write one tower to `path`; of ONNX with many weights also `path` + ".data".

    Args:
        precision: "fp16" stores large ONNX weights in half; arithmetic stays fp32.

    Raises:
        ConfigError: the exporter does not know an operation of the tower; its words.
        MissingExtraError: see `check_packages`.
    """
    check_packages(format)
    with _quiet(), torch.no_grad():
        program = _traced(side)
        match format:
            case "onnx":
                _write_onnx(program, side, path, precision)
            case "torch":
                torch.export.save(program, path)


def _traced(side: Side) -> torch.export.ExportedProgram:
    tower = side.tower
    if any(tensor.device.type != "cpu" for tensor in tower.parameters()):
        tower = copy.deepcopy(tower).cpu()
    unit = _Unit(tower, side.pixels).eval()
    example = torch.ones(2, *side.shape, dtype=side.dtype)
    free = dict.fromkeys(side.axes, torch.export.Dim.DYNAMIC)
    program = torch.export.export(unit, (example,), dynamic_shapes=(free,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _write_onnx(
    program: torch.export.ExportedProgram, side: Side, path: Path, precision: Precision
) -> None:
    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[side.input],
            output_names=[side.output],
            dynamic_shapes=(side.axes,),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[-1]
        kind = type(side.tower).__name__
        raise ConfigError(f"the {side.side} tower {kind} has no ONNX form: {reason}") from error
    assert written is not None  # it is None for the exporter of old
    model = written.model
    for node in model.graph:
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    if precision == "fp16":
        _halve(model)
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(weight.nbytes for weight in weights if weight is not None)
    written.save(path, external_data=size > _INSIDE)


def _halve(model: Any) -> None:
    """Large fp32 weights become fp16 with a cast behind, which runtimes do once, at the start."""
    import numpy as np
    import onnx_ir

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _FEW:
            continue
        half = onnx_ir.tensor(tensor.numpy().astype(np.float16), name=f"{name}.fp16")
        stored = onnx_ir.Value(
            name=half.name,
            shape=value.shape,
            type=onnx_ir.TensorType(half.dtype),
            const_value=half,
        )
        cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT.value})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        graph.insert_before(graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """The exporters' warnings are about themselves: of deprecations, of packages not needed."""
    names = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX file opened by ONNX Runtime on the CPU, with as many threads as torch has.

    Raises:
        CheckpointError: ONNX Runtime refuses the file; its words.
        MissingExtraError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as reasons
    except ModuleNotFoundError as error:
        needed_for = "running an ONNX file"
        raise MissingExtraError("onnxruntime", extra="export", needed_for=needed_for) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: errors come as exceptions, and say the same
    refused = (reasons.Fail, reasons.InvalidGraph, reasons.InvalidProtobuf, reasons.NoSuchFile)
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (*refused, reasons.RuntimeException, reasons.NotImplemented) as error:
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it ({error}).") from error


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """An ONNX file of one input and one output as a function of a batch. Runs no code of it.

    Raises: as `session`.
    """
    opened = session(path)
    name = opened.get_inputs()[0].name

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(opened.run(None, {name: batch.numpy()})[0])

    return run


def open_written(path: Path, format: Format) -> Callable[[Tensor], Tensor]:
    """A file that `write_graph` has just written, as a function of a batch.

    Never for a file from elsewhere: opening a .pt2 can run code that is in it.
    """
    match format:
        case "onnx":
            return open_onnx(path)
        case "torch":
            with _quiet():
                return torch.export.load(path).module()
