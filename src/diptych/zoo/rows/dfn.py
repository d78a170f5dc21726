"""Apple's Data Filtering Networks (arXiv 2309.17425): plain CLIP on filtered data."""

from typing import Any

from diptych.zoo.row import Hub, Row
from diptych.zoo.rows import build

__all__ = ["ROWS"]

_SQUASH = {"resize": "squash"}
_NOTE = (
    "the licence is Apple's own and its text changed over time: read LICENSE beside the weights "
    "before any use but research",
)
_RESIZE = "it was trained on images squashed to a square; no other tags of these sizes are"


def _row(name: str, repo: str, top1: float, notes: tuple[str, ...] = (), **facts: Any) -> Row:
    facts.setdefault("quick_gelu", True)
    return build(
        name,
        Hub(repo=f"apple/{repo}"),
        top1=top1,
        licence="Apple's own: apple-sample-code-license on the model card",
        non_commercial=True,
        notes=(*_NOTE, *notes),
        **facts,
    )


ROWS = (
    _row("ViT-B-16/dfn2b", "DFN2B-CLIP-ViT-B-16", 76.24),
    _row("ViT-L-14/dfn2b", "DFN2B-CLIP-ViT-L-14", 81.41),
    _row(
        "ViT-L-14/dfn2b_s39b",
        "DFN2B-CLIP-ViT-L-14-39B",
        82.19,
        ("alone among DFN's models it has the exact GELU",),
        quick_gelu=False,
        top1_source="the model card of apple/DFN2B-CLIP-ViT-L-14-39B",
    ),
    _row("ViT-H-14/dfn5b", "DFN5B-CLIP-ViT-H-14", 83.44, (_RESIZE,), preprocess=_SQUASH),
    _row("ViT-H-14-378/dfn5b", "DFN5B-CLIP-ViT-H-14-378", 84.37, (_RESIZE,), preprocess=_SQUASH),
)
