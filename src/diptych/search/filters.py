"""Which pictures may answer: by date, folder, camera, type, size and place, as a piece of SQL."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from typing import Any

from diptych.errors import ConfigError
from diptych.search.records import BELOW, below

__all__ = ["Filters"]

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}(T\d{2}(:\d{2}(:\d{2})?)?)?)?)?")
# What people call formats. A JPEG file of several pictures, as many phones write it, is MPO.
_KINDS = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), ("jpeg", "mpo")),
    **dict.fromkeys(("heic", "hif"), ("heif",)),
    "tif": ("tiff",),
}
# The camera's clock; where the picture has no date, that of the file, in local time as well.
_TAKEN = (
    "coalesce(c.taken, strftime('%Y-%m-%dT%H:%M:%S', f.mtime_ns/1000000000, 'unixepoch', "
    "'localtime'))"
)


def _is_date(text: str) -> bool:
    """Whether it is one that the calendar has: 2024-13 would pass as a text and mean nothing."""
    if not _DATE.fullmatch(text):
        return False
    whole = text + "0001-01-01T00:00:00"[len(text) :]
    try:
        datetime.datetime.fromisoformat(whole)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """All of them must hold. Dates are ISO, also in part: "2024", "2024-05", "2024-05-01T18:30".

    Attributes:
        after, before: from this moment on; up to it, without it.
        folder: at or below it.
        camera: a part of make and model, in any case.
        types: formats, as "jpeg", "heif", "png", or "video"; suffixes as "jpg" are understood.
        min_side: pixels of the shorter side.
        min_bytes, max_bytes: of the file.
        box: (south, west, north, east) in degrees; west above east crosses the date line.
    """

    after: str | None = None
    before: str | None = None
    folder: str | None = None
    camera: str | None = None
    types: tuple[str, ...] = ()
    min_side: int | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, date in (("after", self.after), ("before", self.before)):
            if date is not None and not _is_date(date):
                raise ConfigError(
                    f"{name}={date!r} is no date. Give 2024, 2024-05, 2024-05-01 or "
                    "2024-05-01T18:30."
                )
        if self.folder is not None and not self.folder:
            raise ConfigError("the folder is empty. Name one, or leave it out.")
        if self.camera is not None and any("\ud800" <= c <= "\udfff" for c in self.camera):
            raise ConfigError(f"camera={self.camera!r} is not UTF-8. Type it again.")
        for name, number in (
            ("min_side", self.min_side),
            ("min_bytes", self.min_bytes),
            ("max_bytes", self.max_bytes),
        ):
            if number is not None and not 0 <= number < 1 << 63:
                raise ConfigError(f"{name} must be from 0 to 2^63 - 1, got {number}")
        if isinstance(self.types, str):
            raise ConfigError(f"types must be several, got {self.types!r}. Type: ({self.types!r},)")
        if self.box is not None:
            south, west, north, east = self.box
            if not (-90 <= south <= north <= 90 and abs(west) <= 180 and abs(east) <= 180):
                raise ConfigError(
                    f"{self.box} is no box. Give south,west,north,east in degrees, as "
                    "47.3,5.9,55.1,15.0."
                )

    @property
    def is_empty(self) -> bool:
        return self == Filters()

    def sql(self) -> tuple[str, dict[str, Any]]:
        """A condition on `files f` and `contents c`, and its values."""
        parts: list[str] = []
        values: dict[str, Any] = {}

        def need(condition: str, **bound: Any) -> None:
            parts.append(condition)
            values.update(bound)

        if self.after is not None:
            need(f"{_TAKEN}>=:after", after=self.after)
        if self.before is not None:
            need(f"{_TAKEN}<:before", before=self.before)
        if self.folder is not None:
            folder = os.path.abspath(os.path.expanduser(self.folder))  # noqa: PTH100, PTH111
            need(BELOW, **below(folder))
        if self.camera is not None:
            need("instr(lower(c.camera), lower(:camera))", camera=self.camera)
        if self.types:
            given = [kind.lower().removeprefix(".") for kind in self.types]
            kinds = [kind for name in given for kind in _KINDS.get(name, (name,))]
            names = {f"type{i}": kind for i, kind in enumerate(kinds)}
            listed = ", ".join(f":{name}" for name in names)
            need(f"(lower(c.format) IN ({listed}) OR c.kind IN ({listed}))", **names)
        if self.min_side is not None:
            need("min(c.width, c.height)>=:side", side=self.min_side)
        if self.min_bytes is not None:
            need("c.size>=:least", least=self.min_bytes)
        if self.max_bytes is not None:
            need("c.size<=:most", most=self.max_bytes)
        if self.box is not None:
            south, west, north, east = self.box
            word = "AND" if west <= east else "OR"
            need(
                "c.latitude BETWEEN :south AND :north AND "
                f"(c.longitude>=:west {word} c.longitude<=:east)",
                south=south, west=west, north=north, east=east,
            )  # fmt: skip
        return " AND ".join(f"({part})" for part in parts) or "1", values
