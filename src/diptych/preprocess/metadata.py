"""What a photograph says of itself: when, with which camera and where it was taken, and its size.

- From EXIF (2.32, CIPA DC-008), wherever Pillow finds it: JPEG, PNG, WEBP, TIFF, AVIF, and HEIC and
  RAW as `open_image` gives them.
- Nothing here raises: a damaged block, a date that is none and a place off the globe are None.
- The date is the camera's clock, without a time zone and without fractions of a second.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from diptych.preprocess.open import PILLOW_ERRORS, quiet
from diptych.preprocess.pixels import orientation, turned_size

__all__ = ["Metadata", "metadata"]

_LONGEST = 200  # characters of a camera's name
_DATE = re.compile(r"\s*(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_EARLIEST = 1900  # a clock that was never set says 0000; scans of old prints have true dates
# Makers write themselves as companies: "OLYMPUS IMAGING CORP." made the "OLYMPUS E-M1"
_COMPANY = re.compile(
    r"[ ,]+((imaging|optical|electric|computer|photo film) +)?"
    r"(corporation|corp|company|co|ltd|inc|gmbh|ag|ab)\b.*",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What is known of a photograph; None where its file says nothing, or nothing possible.

    Attributes:
        taken: local time of the camera, "2024-05-01T12:30:00".
        camera: make and model, at most 200 characters.
        latitude, longitude: degrees, north and east positive; both or neither.
        width, height: pixels of the upright picture.
        format: of the file, as Pillow calls it, or "HEIF", "RAW"; "" for an image from memory.
    """

    taken: str | None
    camera: str | None
    latitude: float | None
    longitude: float | None
    width: int
    height: int
    format: str


def metadata(image: Image.Image) -> Metadata:
    """What `image`, as `open_image` or `PIL.Image.open` gives it, says of itself. Never raises."""
    with quiet():
        tags, inner, place = _directories(image)
        width, height = turned_size(image, orientation(image))
    latitude, longitude = _place(place)
    return Metadata(
        taken=_taken(tags, inner),
        camera=_camera(tags),
        latitude=latitude,
        longitude=longitude,
        width=width,
        height=height,
        format=image.format or "",
    )


def _directories(image: Image.Image) -> tuple[Mapping[int, Any], ...]:
    """The main, the EXIF and the GPS directory; empty where there is none or it is damaged."""
    try:
        exif = image.getexif()
        wanted = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime)
        main: dict[int, Any] = {tag: exif.get(tag) for tag in wanted}
    except PILLOW_ERRORS:
        return {}, {}, {}
    return main, _inner(exif, ExifTags.IFD.Exif), _inner(exif, ExifTags.IFD.GPSInfo)


def _inner(exif: Image.Exif, which: ExifTags.IFD) -> Mapping[int, Any]:
    try:
        return dict(exif.get_ifd(which))
    except PILLOW_ERRORS:
        return {}


def _taken(tags: Mapping[int, Any], inner: Mapping[int, Any]) -> str | None:
    base = ExifTags.Base
    dates = (inner.get(base.DateTimeOriginal), inner.get(base.DateTimeDigitized))
    for text in (*dates, tags.get(base.DateTime)):
        if isinstance(text, bytes):
            text = text[:32].decode("latin-1")
        if isinstance(text, str) and (found := _DATE.match(text[:32])):
            year, month, day, hour, minute, second = map(int, found.groups())
            try:
                date = datetime.datetime(year, month, day, hour, minute, second)
            except ValueError:  # a 31st of February
                continue
            if year >= _EARLIEST:
                return date.isoformat()
    return None


def _camera(tags: Mapping[int, Any]) -> str | None:
    make, model = _words(tags.get(ExifTags.Base.Make)), _words(tags.get(ExifTags.Base.Model))
    maker = _COMPANY.sub("", make)
    # "EASTMAN KODAK" made the "KODAK DX4900"
    if model.split(" ")[0].casefold() not in maker.casefold().split(" "):
        model = f"{maker} {model}"
    return model.strip()[:_LONGEST].rstrip() or None


def _words(value: Any) -> str:
    """Printable text on one line, up to the first NUL."""
    if isinstance(value, bytes):
        value = value[: 4 * _LONGEST].decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    text = value[: 4 * _LONGEST].split("\0", 1)[0]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _place(tags: Mapping[int, Any]) -> tuple[float | None, float | None]:
    """(latitude, longitude) in degrees; (None, None) unless both are possible."""
    gps = ExifTags.GPS
    latitude = _degrees(tags.get(gps.GPSLatitude), tags.get(gps.GPSLatitudeRef), "NS", 90)
    longitude = _degrees(tags.get(gps.GPSLongitude), tags.get(gps.GPSLongitudeRef), "EW", 180)
    if latitude is None or longitude is None:
        return None, None
    return latitude, longitude


def _degrees(value: Any, side: Any, sides: str, limit: int) -> float | None:
    """Degrees, minutes and seconds to degrees; `sides` are the positive and negative letter."""
    if isinstance(side, bytes):
        side = side[:2].decode("latin-1")
    letter = side.strip("\0 ")[:1].upper() if isinstance(side, str) else ""
    parts = value if isinstance(value, tuple | list) else (value,)
    if not letter or letter not in sides or not 1 <= len(parts) <= 3:
        return None
    total = 0.0
    for part, scale in zip(parts, (1, 60, 3600), strict=False):
        try:
            number = float(part)
        except (TypeError, ValueError, ArithmeticError):
            return None
        if not math.isfinite(number) or number < 0 or (scale > 1 and number > 60):
            return None  # a rational over zero is NaN
        total += number / scale
    if total > limit:
        return None
    return -total if letter == sides[1] else total
