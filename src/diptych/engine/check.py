"""`diptych models check`: is this checkpoint whole, and does it run here as it should?"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from diptych import zoo
from diptych.config import CLIPConfig, TextConfig
from diptych.engine.load import encoder_of

__all__ = ["check_model"]


def check_model(name: str | Path, *, config: CLIPConfig | str | None = None) -> dict[str, Any]:
    """Read a checkpoint strictly and compare the fast path with the fp32 reference.

    Returns:
        What was found, in words: format, source, notes, parameters, SHA-256 of the file beside the
        published one, fingerprint, and the smallest cosine between the two paths over 8 random
        images and 8 random rows of token ids.

    Raises:
        CheckpointError: a key, a shape, a number or the hash is wrong; says which.
    """
    checkpoint = zoo.open_model(name, config=config)
    encoder = encoder_of(checkpoint, name=str(name))
    facts: dict[str, Any] = {"model": str(name), "format": checkpoint.format}
    facts |= {"source": checkpoint.source, "notes": list(checkpoint.notes) or "none"}
    facts |= zoo.num_parameters(checkpoint.config)
    facts["keys, shapes, numbers"] = "all as they should be"
    facts |= _hash(str(name), Path(checkpoint.source))
    facts["fingerprint"] = encoder.fingerprint
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, *checkpoint.preprocess.size, generator=generator)
    facts[f"images: cosine {encoder.precision} to fp32"] = _cosine(
        encoder.run_image(pixels), encoder.model.visual, pixels
    )
    if isinstance(checkpoint.config.text, TextConfig):
        text = checkpoint.config.text
        shape = (8, checkpoint.tokenizer.context_length)
        ids = torch.randint(1, text.vocab_size, shape, generator=generator)
        facts[f"texts: cosine {encoder.precision} to fp32"] = _cosine(
            encoder.run_text(ids), encoder.model.text, ids
        )
    return facts


def _cosine(rows: torch.Tensor, tower: torch.nn.Module, batch: torch.Tensor) -> str:
    with torch.no_grad():
        reference = F.normalize(tower(batch.to(rows.device)), dim=-1)
    return f"{F.cosine_similarity(rows.double(), reference.double()).min():.7f}"


def _hash(name: str, source: Path) -> dict[str, str]:
    """`open_model` has held a registry's file against the published hash already."""
    if not source.is_file():
        return {}
    published = name in zoo.list_models() and zoo.get(name).sha256 is not None
    return {"sha256": zoo.sha256_of(source) + (" (as published)" if published else "")}
