"""Smaller files of pictures, for shards: the long side at most so many pixels."""

from __future__ import annotations

import io
from contextlib import ExitStack

from PIL import Image, ImageOps

from diptych.errors import ImageError
from diptych.preprocess.open import DEFAULT_LIMITS, PILLOW_ERRORS, Limits, open_image, quiet

__all__ = ["shrink"]


def shrink(
    data: bytes, name: str, *, side: int, quality: int = 95, limits: Limits = DEFAULT_LIMITS
) -> bytes:
    """The bytes of a file whose picture is at most `side` pixels long; as given if it is already.

    A larger one is turned upright and becomes a JPEG, or a PNG where it has transparency. EXIF and
    colour profile are left out, as the models leave them out.

    Raises:
        ImageError: cannot be read, or would cost more than the limits.
    """
    with ExitStack() as turn:
        image = open_image(data, limits=limits, name=name, turn=turn)
        if max(image.size) <= side:
            return data
        try:
            with quiet():
                image = ImageOps.exif_transpose(image)
                clear = "transparency" in image.info or "A" in image.getbands()
                image = image.convert("RGBA" if clear else "RGB")
                image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=None)
                file = io.BytesIO()
                image.save(file, "PNG") if clear else image.save(file, "JPEG", quality=quality)
        except PILLOW_ERRORS as error:
            raise ImageError(f"{name}: cannot be made smaller ({error}). Convert it.") from error
        return file.getvalue()
