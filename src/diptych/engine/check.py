"""`diptych models check`: is this checkpoint whole, the published one, and does it run right?

Of an exported folder: are its files those that were written, and do they give the model's vectors?
"""

from pathlib import Path
from typing import Any

import torch

from diptych import zoo
from diptych.config import CLIPConfig, TextConfig
from diptych.engine.exported import check_export, is_export, read_manifest
from diptych.engine.gate import worst_cosine
from diptych.engine.golden import compare
from diptych.engine.load import encoder_of, load
from diptych.errors import ConfigError

__all__ = ["check_model"]


def check_model(
    name: str | Path,
    *,
    config: CLIPConfig | str | None = None,
    offline: bool | None = None,
    against: str | Path | None = None,
) -> dict[str, Any]:
    """Fetch what is not here, read it strictly, and compare its outputs with published ones.

    Args:
        against: of an exported folder: the model that it was made of; None: the vectors that lie in
            the folder. `config` then belongs to that model.

    Returns:
        What was found, in words: format, source, notes, parameters, SHA-256 of the file beside the
        published one, where it was fetched from, fingerprint, the smallest cosine of the fast path
        to the fp32 reference over 8 random images and 8 random rows of token ids, the "published
        outputs", a line each (`golden.Comparison`), and "differs": whether one of them does.
        Of an exported folder: see `exported.check_export`.

    Raises:
        CheckpointError: a key, a shape, a number or the hash is wrong; says which.
    """
    if is_export(name):
        return _check_export(Path(name), against, config, offline)
    if against is not None:
        raise ConfigError(
            f"{name}: is no exported folder, so there is nothing to hold against {against}. Leave "
            "--model out, or type: diptych models export"
        )
    checkpoint = zoo.open_model(name, config=config, offline=offline)
    encoder = encoder_of(checkpoint, name=str(name))
    facts: dict[str, Any] = {"model": str(name), "format": checkpoint.format}
    facts |= {"source": checkpoint.source, "notes": list(checkpoint.notes) or "none"}
    facts |= zoo.num_parameters(checkpoint.config)
    facts["keys, shapes, numbers"] = "all as they should be"
    facts |= _origin(str(name), Path(checkpoint.source))
    facts["fingerprint"] = encoder.fingerprint
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, *checkpoint.preprocess.size, generator=generator)
    facts[f"images: cosine {encoder.precision} to fp32"] = (
        f"{worst_cosine(encoder.run_image, encoder.model.visual, pixels.to(encoder.device)):.7f}"
    )
    if isinstance(checkpoint.config.text, TextConfig):
        text = checkpoint.config.text
        shape = (8, checkpoint.tokenizer.context_length)
        ids = torch.randint(1, text.vocab_size, shape, generator=generator)
        facts[f"texts: cosine {encoder.precision} to fp32"] = (
            f"{worst_cosine(encoder.run_text, encoder.model.text, ids.to(encoder.device)):.7f}"
        )
    return facts | _published_outputs(name, config, checkpoint, offline)


def _check_export(
    folder: Path,
    against: str | Path | None,
    config: CLIPConfig | str | None,
    offline: bool | None,
) -> dict[str, Any]:
    if against is None:
        return check_export(folder)
    how = {"device": "cpu", "precision": "fp32", "mode": read_manifest(folder)["mode"]}
    return check_export(folder, load(against, config=config, offline=offline, **how))


def _origin(name: str, source: Path) -> dict[str, str]:
    """`open_model` has held a registry's file against the published hash already."""
    if not source.is_file():
        return {}
    published = name in zoo.list_models() and zoo.published(zoo.get(name), source)
    facts = {"sha256": zoo.sha256_of(source) + (" (as published)" if published else "")}
    record = zoo.read_record(source.parent).get(source.name, {})
    for key, what in (("url", "fetched from"), ("commit", "commit"), ("date", "fetched on")):
        if record.get(key):
            facts[what] = str(record[key])
    return facts


def _published_outputs(
    name: str | Path,
    config: CLIPConfig | str | None,
    checkpoint: zoo.Checkpoint,
    offline: bool | None,
) -> dict[str, Any]:
    """The goldens of the row that the model is, or is said to be."""
    names = [x for x in (config, name) if isinstance(x, str) and x in zoo.list_models()]
    goldens = zoo.get(names[0]).goldens if names else ()
    if not goldens:
        return {"published outputs": ["none are known of this model"], "differs": False}
    encoder = encoder_of(checkpoint, name=str(name), mode="original", precision="fp32")
    comparisons = [compare(encoder, golden, offline=offline) for golden in goldens]
    return {
        "published outputs": [str(c) for c in comparisons],
        "differs": any(c.differs for c in comparisons),
    }
