"""CLIPA-v2 (arXiv 2306.15658): trained on short sequences, read at full length."""

from typing import Any

from diptych.zoo.row import Hub, Row
from diptych.zoo.rows import build
from diptych.zoo.vocabulary import wordpiece

__all__ = ["ROWS"]

_PIXELS: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
    "resize": "squash",
}
_NOTES = (
    "the tanh GELU is that of the training code; open_clip computes the exact one",
    "epsilon is 1e-5 as in open_clip; the training code has 1e-6",
)


def _row(name: str, repo: str, top1: float) -> Row:
    source = Hub(
        repo=f"UCSC-VLAA/{repo}", beside=("vocab.txt",), beside_repo="google-bert/bert-base-uncased"
    )
    return build(
        name,
        source,
        preprocess=_PIXELS,
        tokenizer=wordpiece(32, "vocab.txt", strip_sep=True),
        top1=top1,
        top1_source="UCSC-VLAA/CLIPA README",
        licence="Apache-2.0",
        notes=_NOTES,
    )


ROWS = (
    _row("ViT-L-14-CLIPA/datacomp1b", "ViT-L-14-CLIPA-datacomp1B", 79.57),
    _row("ViT-L-14-CLIPA-336/datacomp1b", "ViT-L-14-CLIPA-336-datacomp1B", 80.26),
    _row("ViT-H-14-CLIPA/datacomp1b", "ViT-H-14-CLIPA-datacomp1B", 81.52),
    _row("ViT-H-14-CLIPA-336/laion2b", "ViT-H-14-CLIPA-336-laion2B", 79.10),
    _row("ViT-H-14-CLIPA-336/datacomp1b", "ViT-H-14-CLIPA-336-datacomp1B", 81.80),
    _row("ViT-bigG-14-CLIPA/datacomp1b", "ViT-bigG-14-CLIPA-datacomp1B", 82.70),
    _row("ViT-bigG-14-CLIPA-336/datacomp1b", "ViT-bigG-14-CLIPA-336-datacomp1B", 83.09),
)
