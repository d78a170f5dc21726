"""A picture with and without its printed text, as two views that are encoded together."""

from __future__ import annotations

from typing import Any

from diptych.engine.page import thumbnail
from diptych.engine.textmask import text_mask, without_text

__all__ = ["with_and_without_text"]

SIDE = 1024  # pixels of the long side of the painted picture; no model here looks at more


def with_and_without_text(image: Any, name: str) -> list[Any]:
    """[the picture], and behind it the same with its printed text painted over, if it has any.

    For `images.encode_items(views=)`. `name` is what errors call it; whatever cannot be decoded is
    left to the preprocessing, whose error names it.

    Raises:
        ImageError: the picture cannot be read.
    """
    upright = thumbnail(image, side=SIDE)
    mask = text_mask(upright)
    return [image, without_text(upright, mask)] if len(mask.boxes) else [image]
