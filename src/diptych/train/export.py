"""The model that a run leaves: one file, with what it was trained from and on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.engine import Encoder
from diptych.zoo import Checkpoint, write

__all__ = ["write_model"]


def write_model(
    path: Path, encoder: Encoder, weights: Mapping[str, Tensor], *, name: str, facts: Mapping
) -> None:
    """Write trained weights with the pixels and tokens of the encoder that they started from.

    Args:
        weights: of the plain model, whole.
        facts: go into the file's header beside the card of the start.

    Raises: as `zoo.write`.
    """
    card: dict[str, Any] = dict(encoder.card)
    start = card.pop("name", None)
    for key in ("source", "format", "notes"):  # of the file that the start was read from
        card.pop(key, None)
    checkpoint = Checkpoint(
        state_dict=dict(weights),
        config=encoder.config,
        preprocess=encoder.preprocess.config,
        tokenizer=encoder.tokenizer_config,
        folder=encoder.folder,
        licence=encoder.card.get("licence"),
        metadata={**card, "name": name, "trained_from": start, **facts},
    )
    write(checkpoint, path, format="diptych")
