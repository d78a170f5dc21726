"""The rows themselves, one file a publisher; adding a tag is adding a row.

Metrics are ImageNet-1k zero-shot top-1 in percent (80 templates), with whose figure it is.
"""

from typing import Any

from diptych.config import PreprocessConfig, TokenizerConfig
from diptych.zoo.architectures import ARCHITECTURES, with_act
from diptych.zoo.row import Row, Source

__all__ = ["BPE", "HALF", "OPEN_CLIP", "build"]

OPEN_CLIP = "open_clip docs/openclip_results.csv"
BPE = TokenizerConfig(kind="clip_bpe", context_length=77)
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def build(
    name: str,
    *sources: Source,
    quick_gelu: bool = False,
    preprocess: dict[str, Any] | None = None,
    tokenizer: TokenizerConfig = BPE,
    top1: float | None = None,
    top1_source: str = OPEN_CLIP,
    **facts: Any,
) -> Row:
    """The row "architecture/tag"; `preprocess` holds what differs from OpenAI's pixels."""
    config = ARCHITECTURES[name.split("/")[0]]
    return Row(
        name=name,
        config=with_act(config, "quick_gelu") if quick_gelu else config,
        preprocess=PreprocessConfig(size=config.visual.image_size, **(preprocess or {})),
        tokenizer=tokenizer,
        sources=sources,
        metrics={} if top1 is None else {"imagenet1k_zero_shot": top1},
        metrics_source=None if top1 is None else top1_source,
        **facts,
    )
