"""What `Encoder.classify` returns: a plain list that a notebook shows as pictures with bars."""

from typing import Any

from diptych.engine.page import bars, picture

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
            f"<tr><td>{picture(image, alt=row[0][0], side=96)}</td>"
            f'<td style="min-width:20em;text-align:left">{bars(row[:5])}</td></tr>'
            for image, row in zip(self.images[:50], self[:50], strict=True)
        ]
        more = f"<p>and {len(self) - 50} more</p>" if len(self) > 50 else ""
        return f"<table>{''.join(rows)}</table>{more}"
