"""Where and how precisely a model runs: the two "auto" answers, and what this machine has."""

from typing import Literal

import torch

from diptych.config import BertConfig, CLIPConfig, TextConfig, ViTConfig
from diptych.engine.lower_int8 import has_fast_int8
from diptych.engine.probe import bf16_gain
from diptych.errors import ConfigError

__all__ = ["DTYPES", "Precision", "has_fast_bf16", "pick_device", "pick_precision"]

Precision = Literal["fp32", "bf16", "fp16", "int8"]
DTYPES = {  # of the activations between products
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,
}
WORTH_IT = 1.5  # times as fast as fp32: less would not pay for what the rounding costs


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16), measurably faster."""
    known = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return known and bf16_gain() >= WORTH_IT


def pick_device(device: str | torch.device) -> torch.device:
    """`device`, with "auto" answered: CUDA, else Apple's MPS, else the CPU.

    Raises:
        ConfigError: a device that torch does not know or does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError without CUDA
        raise ConfigError(
            f"device {str(device)!r} cannot be used here ({error}). Use 'auto' or 'cpu'."
        ) from error
    return picked


# Towers whose bfloat16 path keeps the gate of cosine >= 0.9999 to fp32 on random weights; BERT's on
# those of all-MiniLM-L6-v2 (0.99997 over 200 texts). An EfficientNet always runs in fp32. For a
# modified ResNet that depends on how activations grow from block to block (docs/log.md), and what
# trained ones do was not measured.
BF16_TOWERS = (ViTConfig, TextConfig, BertConfig)


def pick_precision(precision: str, device: torch.device, config: CLIPConfig) -> Precision:
    """`precision`, with "auto" answered: bf16 on a CPU that multiplies it faster than fp32, for
    models both of whose towers are known to bear it; fp32 everywhere else.

    Raises:
        ConfigError: no such precision, or int8 where it is not to be had.
    """
    bear = [isinstance(side, BF16_TOWERS) for side in (config.visual, config.text)]
    match precision:
        case "auto":
            fast = all(bear) and device.type == "cpu" and has_fast_bf16()
            return "bf16" if fast else "fp32"
        case "int8" if device.type != "cpu" or not has_fast_int8():
            raise ConfigError(
                "precision 'int8' is for CPUs that multiply it (VNNI, AMX), and not for "
                f"{device} here. Use 'auto'."
            )
        case "int8" if not any(bear):
            raise ConfigError("precision 'int8' is for transformers. Use 'auto'.")
        case "fp32" | "bf16" | "fp16" | "int8":
            return precision
    raise ConfigError(
        f"precision must be 'auto', 'fp32', 'bf16', 'fp16' or 'int8', got {precision!r}"
    )
