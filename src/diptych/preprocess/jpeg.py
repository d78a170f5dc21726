"""JPEG files: Pillow's bits from a faster decoder, and pictures that the decoder makes smaller.

- The extra `jpeg` (simplejpeg) wraps the library that Pillow wraps, libjpeg-turbo, and hands over
  lines without Pillow's copies. It is used for what is usual: Huffman-coded, 8 bits, grey or YCbCr.
  Whatever it refuses or warns about goes to Pillow, so errors are Pillow's.
- DCT scaling (ITU-T T.81 leaves it to decoders; libjpeg's `scale_denom`) decodes 1/2, 1/4 or 1/8 of
  the size from the low frequencies of each block, without the work for the others.
"""

from __future__ import annotations

import functools
import io
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, features

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import UInt8

__all__ = ["decoded", "fill", "has_jpeg_extra", "is_jpeg", "shrunk"]

SCALES = (8, 4, 2)
# At 2, photographs were 0.39 levels off on average and 11 at most; at 3, 0.20 and 5.
_ENOUGH = 3

# Start of frame: baseline, extended and progressive, with Huffman codes. Then those with other
# codes or without loss, the start of a scan, and what has no length.
_HUFFMAN = (0xC0, 0xC1, 0xC2)
_UNUSUAL = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), *range(0xD0, 0xDB))
_GAINS = 2**20  # pixels: 13 % faster than Pillow at 500x375, no faster from 1600x1200 on
_LARGEST = 2**25  # bytes of a file: it is read whole, which the limits do not count
# what simplejpeg says of files that it does not take
_REFUSED = (ValueError, RuntimeError, LookupError, MemoryError)

Decoder = Any  # simplejpeg.decode_jpeg


def is_jpeg(image: Image.Image) -> bool:
    """An opened JPEG file, also the first picture of an MPO, that is grey or RGB."""
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def has_jpeg_extra() -> bool:
    """Whether simplejpeg is installed and gives Pillow's bits here."""
    return _decoder() is not None


def fill(image: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    """Decodes `image`, which was opened from `file`, as its `load()` would. False: not done.

    Only what has at most a megapixel: the copy into Pillow's picture costs what was gained.
    """
    if image.width * image.height > _GAINS:
        return False
    pixels = decoded(image, file)
    if pixels is None:
        return False
    made = Image.fromarray(pixels)
    image.im, image.readonly = made.im, made.readonly
    image.tile, image.fp = [], None
    return True


def decoded(
    image: ImageFile.ImageFile, file: IO[bytes], scale: int = 1
) -> UInt8[np.ndarray, "h w *c"] | None:
    """Pixels of a file that Pillow opened, [h w] or [h w 3]; None where Pillow has to do it.

    `image` stays as it is. With `scale` the sides are 1/scale, rounded up.
    """
    if not (is_jpeg(image) and image.tile and _is_usual(image)):
        return None
    decode = _decoder()
    if decode is None:
        return None
    file.seek(0)
    data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST or not _is_huffman(data):
        return None
    width, height = -(-image.width // scale), -(-image.height // scale)
    try:
        pixels = decode(data, _space(image.mode), min_height=height, min_width=width)
    except _REFUSED:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return pixels[:, :, 0] if image.mode == "L" else pixels


def shrunk(width: int, height: int, needed: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 that leaves both sides `_ENOUGH` times `needed` (width, height)."""
    most = min(width // (_ENOUGH * needed[0]), height // (_ENOUGH * needed[1]))
    return next((scale for scale in SCALES if scale <= most), 1)


def _space(mode: str) -> str:
    return "GRAY" if mode == "L" else "RGB"


def _is_usual(image: Image.Image) -> bool:
    """Whether the colours are those of JFIF. Adobe's marker, or other components, may change it."""
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    components = [layer[0] for layer in image.layer]
    return "adobe" not in image.info and (len(components) == 1 or components == [1, 2, 3])


def _is_huffman(data: bytes) -> bool:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker in _HUFFMAN or marker in _UNUSUAL:
            return marker in _HUFFMAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


@functools.cache
def _decoder() -> Callable[..., np.ndarray] | None:
    """simplejpeg's decoder; None where it is missing, or where one probe has other bits.

    Both libraries bring a libjpeg of their own, and Pillow may be built with one that is not turbo.
    """
    try:
        import simplejpeg
    except ImportError:
        return None
    if not features.check_feature("libjpeg_turbo"):
        return None
    noise = np.random.default_rng(0).integers(0, 256, (37, 45, 3), np.uint8)
    for mode in ("L", "RGB"):
        file = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(file, "JPEG", quality=90)
        pillow = np.asarray(Image.open(file))
        theirs = simplejpeg.decode_jpeg(file.getvalue(), _space(mode))
        if not np.array_equal(theirs.reshape(pillow.shape), pillow):
            return None
    return simplejpeg.decode_jpeg
