"""Where and how precisely a model runs: the two "auto" answers, and what this machine has."""

from typing import Literal

import torch

from diptych.config import BertConfig, CLIPConfig, TextConfig, ViTConfig
from diptych.errors import ConfigError

__all__ = ["Precision", "has_fast_bf16", "pick_device", "pick_precision"]

Precision = Literal["fp32", "bf16"]


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


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
    """`precision`, with "auto" answered: bf16 on a CPU that multiplies it, for models both of whose
    towers are known to bear it; fp32 everywhere else.

    Raises:
        ConfigError: neither "auto", "fp32" nor "bf16".
    """
    match precision:
        case "auto":
            bear = all(isinstance(side, BF16_TOWERS) for side in (config.visual, config.text))
            return "bf16" if bear and device.type == "cpu" and has_fast_bf16() else "fp32"
        case "fp32" | "bf16":
            return precision
    raise ConfigError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
