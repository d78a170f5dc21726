"""How an encoder's towers are called: packed on a CPU, as graphs on a GPU, or by ONNX Runtime."""

from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from diptych.config import CLIPConfig, TokenizerConfig
from diptych.engine.cuda import Graphs
from diptych.engine.device import DTYPES, Precision, pick_device, pick_precision
from diptych.engine.gate import sample_images, sample_texts
from diptych.engine.lower import Lowered
from diptych.engine.onnx import OnnxTower, onnx_towers
from diptych.errors import ConfigError
from diptych.model import CLIP
from diptych.preprocess import Preprocess
from diptych.tokenizer import build as build_tokenizer

__all__ = ["Engine", "Runner", "pick", "runners"]

Engine: TypeAlias = Literal["torch", "onnxruntime"]
Runner: TypeAlias = Lowered | Graphs | OnnxTower


def pick(
    engine: Engine, device: str | torch.device, precision: str, config: CLIPConfig
) -> tuple[torch.device, Precision]:
    """Device and precision, "auto" answered.

    Raises:
        ConfigError: one that there is not, or that the engine does not have.
    """
    if engine == "onnxruntime":
        if precision not in ("auto", "fp32"):
            raise ConfigError(
                f"engine 'onnxruntime' computes in fp32, not {precision!r}. Use precision='auto'."
            )
        device, precision = ("cpu" if device == "auto" else device), "fp32"
    elif engine != "torch":
        raise ConfigError(f"engine must be 'torch' or 'onnxruntime', got {engine!r}")
    picked = pick_device(device)
    return picked, pick_precision(precision, picked, config)


def runners(
    model: CLIP,
    engine: Engine,
    precision: Precision,
    *,
    config: CLIPConfig,
    preprocess: Preprocess,
    tokenizer: TokenizerConfig,
    folder: Path | None,
    fingerprint: str | None,
) -> tuple[Runner, Runner]:
    """The image and the text tower of a model that is on its device, as what calls them there."""
    if engine == "onnxruntime":
        made_of = {"config": config, "preprocess": preprocess.config, "tokenizer": tokenizer}
        return onnx_towers(model, **made_of, fingerprint=fingerprint)
    photos, captions = None, None
    if precision == "int8":
        photos = partial(sample_images, preprocess)
        captions = partial(_captions, tokenizer, folder)
    dtype = DTYPES[precision]
    visual = Lowered(model.visual, dtype=dtype, pixels=preprocess.config, samples=photos)
    text = Lowered(model.text, dtype=dtype, samples=captions)
    device = model.logit_scale.device
    if device.type != "cuda":
        return visual, text
    return (
        Graphs(visual.tower, visual, visual.fixed, device=device),
        Graphs(text.tower, text, text.fixed, device=device),
    )


def _captions(tokenizer: TokenizerConfig, folder: Path | None) -> Tensor:
    return sample_texts(build_tokenizer(tokenizer, folder))
