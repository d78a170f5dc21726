"""What `Encoder.classify` returns: a plain list that a notebook shows as pictures with bars."""

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from diptych.preprocess import open_image

__all__ = ["Classification"]


class Classification(list):
    """A list with one entry an image: [(label, probability)], best first.

    Notebooks show it as a table with thumbnails; everywhere else it is a list.
    """

    def __init__(self, rows: list[list[tuple[str, float]]], images: list[Any]):
        super().__init__(rows)
        self.images = images

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{_thumbnail(image)}</td><td>{_bars(row[:5])}</td></tr>"
            for image, row in zip(self.images[:50], self[:50], strict=True)
        ]
        more = f"<p>and {len(self) - 50} more</p>" if len(self) > 50 else ""
        return f"<table>{''.join(rows)}</table>{more}"


def _bars(row: list[tuple[str, float]]) -> str:
    return "".join(
        f'<div style="position:relative;width:20em">'
        f'<div style="position:absolute;height:100%;width:{100 * score:.1f}%;'
        f'background:#9ecae1"></div><span style="position:relative">'
        f"{html.escape(label)} {score:.1%}</span></div>"
        for label, score in row
    )


def _thumbnail(image: Any, side: int = 96) -> str:
    if isinstance(image, np.ndarray):
        image = PILImage.fromarray(image)
    elif not isinstance(image, PILImage.Image):
        image = open_image(image)
    small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}">'
