"""What `diptych models show` tells of a row: sizes computed, the rest as the row states it."""

from typing import Any

from diptych.config import CLIPConfig, to_dict
from diptych.towers import outline
from diptych.zoo.registry import Asset, Hub, Row, Url

__all__ = ["describe", "num_parameters"]


def num_parameters(config: CLIPConfig) -> dict[str, int]:
    """Parameters of the whole model and of each tower; computed without memory for them."""
    model = outline(config)
    parts = {"parameters": model, "of them visual": model.visual, "of them text": model.text}
    return {what: sum(p.numel() for p in part.parameters()) for what, part in parts.items()}


def describe(row: Row) -> dict[str, Any]:
    """A row as names and JSON-ready values."""
    match row.source:
        case Asset(file=file):
            source = f"in this package: assets/{file}"
        case Url(url=url):
            source = url
        case Hub(repo=repo, revision=revision):
            source = f"https://huggingface.co/{repo} ({revision})"
    return {
        "name": row.name,
        **num_parameters(row.config),
        "image_size": list(row.preprocess.size),
        "embed_dim": row.config.embed_dim,
        "context_length": row.tokenizer.context_length,
        "licence": row.licence,
        "non_commercial": row.non_commercial,
        "metrics": dict(row.metrics),
        "metrics_source": row.metrics_source,
        "source": source,
        "sha256": row.sha256,
        "notes": list(row.notes),
        "config": to_dict(row.config),
        "preprocess": to_dict(row.preprocess),
        "tokenizer": to_dict(row.tokenizer),
    }
