"""A checkpoint, whole: tensors under our names, all that belongs to them, and whether they fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.errors import CheckpointError
from diptych.towers import outline

__all__ = ["Checkpoint", "Format", "check_finite", "check_shapes", "expected_shapes"]

Format = Literal["diptych", "openai", "open_clip", "hf"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors under our names, dtype as in the file, and what they need to be used.

    state_dict: memory-mapped where the file allows it.
    folder: where the tokenizer's file lies; None if it is in the package.
    source: the path that was read.
    notes: what the file did not say and which default was taken.
    metadata: whatever else travels with it: model card, hash of the data manifest.
    """

    state_dict: dict[str, Tensor]
    config: CLIPConfig
    preprocess: PreprocessConfig
    tokenizer: TokenizerConfig
    folder: Path | None = None
    format: Format = "diptych"
    source: str = ""
    licence: str | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def card(self, name: str | Path) -> dict[str, Any]:
        """What to show and to save beside the model: name, source, format, licence, notes."""
        known = {"name": str(name), "source": self.source, "format": self.format}
        return {**self.metadata, **known, "licence": self.licence, "notes": list(self.notes)}


def expected_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a config's model; costs no memory."""
    model = outline(config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def check_shapes(state_dict: Mapping[str, Tensor], config: CLIPConfig, *, source: str) -> None:
    """Whether the tensors are exactly those of the config's model.

    Raises:
        CheckpointError: lists the first 10 differences with the config's and the file's shape.
    """
    expected = expected_shapes(config)
    wrong = [f"{key}: missing, {list(expected[key])}" for key in expected if key not in state_dict]
    wrong += [f"{key}: not in this model" for key in state_dict if key not in expected]
    for key, shape in expected.items():
        if key in state_dict and tuple(state_dict[key].shape) != shape:
            found = list(state_dict[key].shape)
            wrong.append(f"{key}: the config asks for {list(shape)}, the file has {found}")
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise CheckpointError(
            f"{source}: is not a checkpoint of this config: {'; '.join(wrong[:10])}{more}. "
            "Pass the config= (--config) of the model that was saved."
        )


def check_finite(checkpoint: Checkpoint) -> None:
    """Whether every weight is a number.

    Raises:
        CheckpointError: names the tensors that hold NaN or infinity.
    """
    wrong = [
        key
        for key, tensor in checkpoint.state_dict.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.source}: NaN or infinity in {', '.join(wrong[:10])}"
            f"{f' and {len(wrong) - 10} more' if len(wrong) > 10 else ''}. The training that wrote "
            "it had diverged, or the file is damaged: fetch it again."
        )
