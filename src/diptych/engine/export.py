"""`export`: a model as a folder that other programs run, checked against the model it came from.

    export(diptych.load("mini"), "mini-onnx")

- `image.onnx`, `text.onnx` (or .pt2 for torch.export), the tokenizer's files, `diptych.json` and
  `reference.safetensors`: the folder stands alone. `engine.graph` says what is inside the graphs,
  `engine.exported` what the two last files are.
- Every file is opened again and held against the PyTorch model in fp32 on sample photographs and
  captions. Above the bound nothing is left behind.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safetensors.torch import save_file
from torch import Tensor

from diptych import zoo
from diptych.engine.exported import BOUNDS, KEY, REFERENCE, Parity, measure, sample_inputs, sides_of
from diptych.engine.graph import (
    OPSET,
    SUFFIXES,
    Format,
    Precision,
    Side,
    Tower,
    check_packages,
    open_written,
    write_graph,
)
from diptych.errors import CheckpointError, ConfigError
from diptych.tokenizer.base import locate
from diptych.zoo.atomic import atomic_folder
from diptych.zoo.native import SIDECAR, encode
from diptych.zoo.vocabulary import hf_clip_files

if TYPE_CHECKING:
    from diptych.engine.encoder import Encoder

__all__ = ["Exported", "export"]

log = logging.getLogger("diptych")

_KEPT = {"image": 2, "text": 4}  # rows of the reference that lie in the folder


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` has written.

    path: the folder. files: the SHA-256 of each file in it but diptych.json.
    parity: how far each graph was from the model.
    """

    path: Path
    files: dict[str, str]
    parity: tuple[Parity, ...]


def export(
    encoder: Encoder,
    path: str | Path,
    *,
    format: Format = "onnx",
    towers: Sequence[Tower] = ("image", "text"),
    precision: Precision = "fp32",
    uint8: bool = False,
) -> Exported:
    """Write `encoder` to the folder `path`, for other programs to run, or leave nothing there.

    Args:
        format: "onnx", or "torch" for `torch.export.load`.
        towers: which to write.
        precision: "fp16" stores ONNX weights in half; arithmetic and vectors stay fp32.
        uint8: the image input is RGB levels 0..255 of the resized picture; the normalisation is
            inside. By default it is `encoder.preprocess`'s float32.

    Raises:
        ConfigError: an option that cannot be, or a tower that has no such form.
        CheckpointError: `path` exists, a file is farther from the model than 2e-6 (fp32, elements
            of unit rows) or 1e-3 (fp16, 1 - cosine), or the vocabulary is not there.
        MissingExtraError: a package of the extra `export` is not installed.
    """
    path = Path(path)
    _check(encoder, format, towers, precision)
    check_packages(format)
    written = {
        name: side for name, side in sides_of(encoder, uint8=uint8).items() if name in towers
    }
    with atomic_folder(path) as folder:
        parity: list[Parity] = []
        reference: dict[str, Tensor] = {}
        for side in written.values():
            batch = sample_inputs(encoder, side)
            parity += _write(side, folder, path, batch, format, precision)
            kept = batch[: _KEPT[side.side]].clone()
            reference |= {side.input: kept, side.output: side.rows(kept)}
        save_file(reference, folder / REFERENCE)
        tokenizer = _write_vocabulary(encoder, folder) if "text" in written else None
        files = {file.name: zoo.sha256_of(file) for file in sorted(folder.iterdir())}
        facts = _facts(encoder, written, format, precision)
        facts |= {"parity": [asdict(p) for p in parity], "files": files}
        checkpoint = _as_checkpoint(encoder, tokenizer)
        (folder / SIDECAR).write_text(encode(checkpoint, **{KEY: facts}), "utf-8")
    return Exported(path=path, files=files, parity=tuple(parity))


def _check(encoder: Encoder, format: Format, towers: Sequence[Tower], precision: Precision) -> None:
    if format not in SUFFIXES:
        raise ConfigError(f"format must be 'onnx' or 'torch', got {format!r}")
    if isinstance(towers, str) or not towers or not set(towers) <= set(get_args(Tower)):
        raise ConfigError(f"towers must be ('image', 'text') or one of them, got {towers!r}")
    if precision not in BOUNDS:
        raise ConfigError(f"precision must be 'fp32' or 'fp16', got {precision!r}")
    if precision == "fp16" and format != "onnx":
        raise ConfigError("precision 'fp16' is for ONNX. Export with format='onnx'.")
    if encoder.model.training:
        raise ConfigError("the model is in training mode. Type: enc.model.eval()")


def _write(
    side: Side, folder: Path, path: Path, batch: Tensor, format: Format, precision: Precision
) -> list[Parity]:
    """Write one tower and hold it against the model; `path` is what the folder will be called."""
    file = folder / f"{side.side}{SUFFIXES[format]}"
    write_graph(side, file, format=format, precision=precision)
    found = measure(open_written(file, format), side.rows, side, batch)
    for parity in found:
        log.info("%s: %s, %s: %s", path / file.name, parity.tower, parity.what, parity)
        if parity.differs(precision):
            which, bound = BOUNDS[precision]
            raise CheckpointError(
                f"{path}: not written: {file.name} on {parity.what} differs from the model, "
                f"{parity}, where {which} of {bound:g} is allowed. Export with precision='fp32' "
                "or another format."
            )
    return found


def _write_vocabulary(encoder: Encoder, folder: Path) -> str:
    """Put what the tokenizer reads into the folder; the name to state in the config."""
    source = locate(encoder.tokenizer_config, encoder.folder)
    if source is None:
        for name, text in hf_clip_files(encoder.tokenizer_config).items():
            (folder / name).write_text(text, "utf-8")
        return encoder.tokenizer_config.file
    shutil.copyfile(source, folder / source.name)
    return source.name


def _as_checkpoint(encoder: Encoder, vocabulary: str | None) -> zoo.Checkpoint:
    """All but the weights, and nothing of where it lay."""
    tokenizer = encoder.tokenizer_config
    if vocabulary is not None:
        tokenizer = replace(tokenizer, file=vocabulary)
    beside = ("source", "format", "notes")
    return zoo.Checkpoint(
        state_dict={},
        config=encoder.config,
        preprocess=encoder.preprocess.config,
        tokenizer=tokenizer,
        licence=encoder.card.get("licence"),
        metadata={key: value for key, value in encoder.card.items() if key not in beside},
    )


def _facts(
    encoder: Encoder, written: dict[Tower, Side], format: Format, precision: Precision
) -> dict[str, Any]:
    """The "export" part of diptych.json, without hashes and parity."""
    model, (which, bound) = encoder.model, BOUNDS[precision]
    packages = ("torch", "onnx", "onnxscript", "onnxruntime") if format == "onnx" else ("torch",)
    return {
        "format": format,
        "precision": precision,
        "opset": OPSET if format == "onnx" else None,
        "fingerprint": encoder.fingerprint,
        "mode": encoder.mode,
        "embed_dim": encoder.config.embed_dim,
        "logit_scale": model.logit_scale.item(),
        "logit_bias": None if model.logit_bias is None else model.logit_bias.item(),
        "logits": "exp(logit_scale) * image_features @ text_features.T, plus logit_bias if any",
        "towers": {name: _describe(side, encoder, format) for name, side in written.items()},
        "bound": {which: bound},
        "versions": {package: version(package) for package in packages},
    }


def _describe(side: Side, encoder: Encoder, format: Format) -> dict[str, Any]:
    shape = [side.axes.get(i, size) for i, size in enumerate((0, *side.shape))]
    dtype = str(side.dtype).removeprefix("torch.")
    match side.side:
        case "text":
            what = "token ids; cut behind the longest text or at full length"
            if not side.shorter:
                what = "token ids, padded to the full length"
        case "image" if side.pixels is None:
            what = 'RGB, resized and normalised as "preprocess" says'
        case "image":
            what = 'RGB levels 0..255, resized as "preprocess" says, not normalised'
    return {
        "file": f"{side.side}{SUFFIXES[format]}",
        "input": {"name": side.input, "shape": shape, "dtype": dtype, "what": what},
        "output": {
            "name": side.output,
            "shape": ["n", encoder.config.embed_dim],
            "dtype": "float32",
            "what": "unit rows",
        },
    }
