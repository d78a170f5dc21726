"""The one safe way to open an image: a list of formats, and a cost that its header must promise.

- Formats: JPEG (and MPO, the same with a second picture), PNG, WEBP, GIF, BMP, TIFF and AVIF:
  what cameras, browsers, phones and scanners write. EPS, PSD, FITS, JPEG 2000, FLI, BLP, PCX, SGI
  and PDF carry most of Pillow's CVEs and are not photographs.
- With the extra `photos` also HEIC, and RAW files by their preview: see `heif_raw`.
- Whatever is refused is refused from the header: no pixel of a bomb is decoded.
- Only the first picture of an animation or of a multi-page file is read.
- Nothing global changes: not `Image.MAX_IMAGE_PIXELS`, not `LOAD_TRUNCATED_IMAGES`.
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

from PIL import (
    AvifImagePlugin,  # noqa: F401  the plugins that Pillow does not load by itself
    Image,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from diptych.errors import ImageError
from diptych.preprocess import jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# What Pillow's parsers raise on damaged data, as its fuzzers and ours found. Only calls of Pillow
# are guarded with it, so a fault of our own cannot hide behind the wide ones.
PILLOW_ERRORS = (
    OSError,  # also UnidentifiedImageError
    SyntaxError,  # Pillow's word for "not a file of this format"
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # the WebP and AVIF decoders
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # of a pixel in Pillow; others 4

_LOOKS_LIKE = (  # beginnings, in lower case
    (b"<!doctype html", "is an HTML page"),
    (b"<html", "is an HTML page"),
    (b"<svg", "is an SVG drawing"),
    (b"<?xml", "is an XML or SVG document"),
    (b"%pdf", "is a PDF document"),
    (b"%!ps", "is a PostScript document"),
    (b"8bps", "is a Photoshop document"),
    (b"pk\x03\x04", "is a zip archive"),
    (b"\x1f\x8b", "is a gzip archive"),
    (b"{", "is a JSON text"),
    (b"version https://git-lfs", "is a Git LFS pointer"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one image may cost. The defaults keep it below 300 MB and 2 s of one core."""

    file_bytes: int = 128 * 2**20
    pixels: int = 66_000_000  # a 64-megapixel camera; a 1-bit bomb has 169 or 400
    memory: int = 280_000_000  # bytes at the peak, as the header promises it
    # Of a longer strip, the centre crop would show less than 1/300: 20000x1 at 224 pixels would be
    # resized to 4,480,000x224 (4 GB in open_clip) to keep its middle pixel.
    aspect: int = 300
    scans: int = 100  # of a progressive JPEG: each costs a pass over all pixels; cameras write 10


DEFAULT_LIMITS = Limits()
# For one's own pictures, where phones take 200 megapixels and RAW files have 200 MB.
LARGE = Limits(file_bytes=2**30, pixels=250_000_000, memory=2**31)

# Above BIG bytes (25 megapixels) two images at a time, however many threads decode.
BIG = 100_000_000
_big = threading.BoundedSemaphore(2)


T = TypeVar("T")
# Decodes an opened file of Pillow's formats otherwise than `load` does; None: leaves it to `load`.
Other = Callable[[ImageFile.ImageFile, IO[bytes]], T | None]


def open_image(
    source: str | Path | bytes,
    *,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
    turn: contextlib.ExitStack | None = None,
    previews: bool = True,
) -> Image.Image:
    """The decoded first picture of a file or of its bytes, in the file's own mode.

    Args:
        source: a path, or the content of a file.
        limits: what the image may cost.
        name: what errors call it; the path, or "image".
        turn: where threads share the memory: a big image waits here for its turn, which ends when
            the stack is closed.
        previews: False leaves RAW files that are TIFF files to Pillow, as the publishers do: it
            shows the first picture in them, often a thumbnail.

    Raises:
        ImageError: missing, unreadable, not an image, damaged, cut short, or above a limit.
    """
    return open_otherwise(
        source, _not_at_all, limits=limits, name=name, turn=turn, previews=previews
    )


def _not_at_all(image: ImageFile.ImageFile, file: IO[bytes]) -> None:
    return None


def open_otherwise(
    source: str | Path | bytes,
    other: Other[T],
    *,
    limits: Limits,
    name: str | None,
    turn: contextlib.ExitStack | None,
    previews: bool,
) -> Image.Image | T:
    """`open_image`, where `other` may decode what Pillow opened and the limits allow."""
    if isinstance(source, bytes):
        name = name or "image"
        _check_bytes(len(source), limits, name)
        return _decode(io.BytesIO(source), None, limits, name, turn, previews, other)
    path = Path(source)
    name = name or str(source)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: is a directory, not an image. Give the files in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: is a device or a pipe, not an image. Give a file.")
        _check_bytes(status.st_size, limits, name)
        with path.open("rb") as file:
            return _decode(file, path, limits, name, turn, previews, other)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file. Check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read. Type: chmod +r {name}") from error
    except OSError as error:  # a loop of links, a name too long, a disk that fails
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from error


def _check_bytes(size: int, limits: Limits, name: str) -> None:
    if not size:
        raise ImageError(f"{name}: is empty (0 bytes). Get the file again.")
    if size > limits.file_bytes:
        raise ImageError(
            f"{name}: has {size:,} bytes, more than {limits.file_bytes:,}. "
            "Make it smaller, or pass limits=Limits(file_bytes=...)."
        )


def _decode(
    file: IO[bytes],
    path: Path | None,
    limits: Limits,
    name: str,
    turn: contextlib.ExitStack | None,
    previews: bool,
    other: Other[T],
) -> Image.Image | T:
    from diptych.preprocess import heif_raw  # it is built on this module

    with quiet():
        match heif_raw.kind(file):
            case "heif":
                return heif_raw.open_heif(file, limits=limits, name=name, turn=turn)
            case "raw" if previews or not _opens(file):
                return heif_raw.open_raw(file, path=path, limits=limits, name=name, turn=turn)
        return _decode_otherwise(file, other, limits, name, turn, FORMATS)


def _opens(file: IO[bytes]) -> bool:
    """Whether Pillow takes the file. Rewinds it."""
    try:
        Image.open(file, formats=FORMATS)
    except PILLOW_ERRORS:
        return False
    finally:
        file.seek(0)
    return True


def decode_with_pillow(
    file: IO[bytes],
    limits: Limits,
    name: str,
    turn: contextlib.ExitStack | None,
    *,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """The decoded picture of a file that Pillow reads. Raises ImageError as `open_image` does."""
    return _decode_otherwise(file, _not_at_all, limits, name, turn, formats)


def _decode_otherwise(
    file: IO[bytes],
    other: Other[T],
    limits: Limits,
    name: str,
    turn: contextlib.ExitStack | None,
    formats: tuple[str, ...],
) -> Image.Image | T:
    with quiet():
        try:
            image = Image.open(file, formats=formats)
            cost, scans = _memory(image), _scans(image, file)
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name}: {error} Make it smaller.") from error
        except PILLOW_ERRORS as error:
            raise ImageError(f"{name}: {_diagnosis(file, error)}") from error
        _check_header(image, cost, scans, limits, name)
        take_turn(turn, cost)
        if (done := other(image, file)) is not None:
            return done
        if jpeg.fill(image, file):
            return image
        return load(image, name)


def take_turn(turn: contextlib.ExitStack | None, cost: int) -> None:
    """Waits for the turn of an image that takes `cost` bytes, if that is much."""
    if turn is not None and cost > BIG:
        turn.enter_context(_big)


def load(image: Image.Image, name: str) -> Image.Image:
    """`image` with its pixels decoded. Raises ImageError when they are damaged."""
    try:
        image.load()
    except PILLOW_ERRORS as error:
        raise ImageError(
            f"{name}: the {image.format or 'image'} data is damaged or cut short "
            f"({_text(error)}). Get the file again, or leave it out."
        ) from error
    return image


def check_shape(size: tuple[int, int], limits: Limits, name: str) -> None:
    """Refuses a strip. `size` is (width, height)."""
    long, short = max(size), min(size)
    if long > limits.aspect * max(short, 1):
        raise ImageError(
            f"{name}: is a strip of {size[0]}x{size[1]} pixels, longer than {limits.aspect}:1. "
            "Cut it into pieces, or pass limits=Limits(aspect=...)."
        )


def check_cost(
    size: tuple[int, int], cost: int, limits: Limits, name: str, *, what: str | None
) -> None:
    """Refuses what is above the limits. `size` is (width, height); `cost` bytes at the peak."""
    width, height = size
    check_shape(size, limits, name)
    if width * height > limits.pixels:
        raise ImageError(
            f"{name}: has {width}x{height} pixels, more than {limits.pixels:,}. "
            "Make it smaller, or pass limits=Limits(pixels=..., memory=...)."
        )
    if cost > limits.memory:
        raise ImageError(
            f"{name}: to decode {width}x{height} pixels of this {what} takes "
            f"{cost / 1e6:.0f} MB, more than {limits.memory / 1e6:.0f}. "
            "Make it smaller, or pass limits=Limits(memory=...)."
        )


def _check_header(
    image: ImageFile.ImageFile, cost: int, scans: int, limits: Limits, name: str
) -> None:
    check_cost(image.size, cost, limits, name, what=image.format)
    if scans > limits.scans:
        raise ImageError(
            f"{name}: is a progressive JPEG of {scans} scans, more than {limits.scans}. "
            "Save it again, or pass limits=Limits(scans=...)."
        )
    if image.tile and image.tile[0][0] == "bmp_rle":  # decoded in pure Python: minutes
        raise ImageError(f"{name}: is a run-length coded BMP. Save it as PNG.")


def _memory(image: ImageFile.ImageFile) -> int:
    """Bytes at the peak of decoding: the picture and what its decoder holds beside it."""
    pixels = image.width * image.height
    total = pixels * BYTES.get(image.mode, 4)
    match image.format:
        case "JPEG" | "MPO" if image.info.get("progressive"):
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            # all coefficients, 16 bits each; `layer` is (id, horizontal, vertical sampling, table)
            area = [h * v for _, h, v, _ in image.layer]
            total += 2 * pixels * sum(area) // max(area)
        case "TIFF" if image.tile and image.tile[0][0] == "libtiff":
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            tags = image.tag_v2
            bits = sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
            rows = min(tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height), image.height)
            total += image.width * rows * max(bits, 8) // 8  # one strip
        case "WEBP" | "AVIF":
            total += 12 * pixels  # canvas, its previous state, the copy that Pillow is given
    return total


def _scans(image: Image.Image, file: IO[bytes]) -> int:
    """Scans of a progressive JPEG, at most: thumbnails inside the metadata count as well."""
    if not image.info.get("progressive"):
        return 1
    place = file.tell()
    file.seek(0)
    found = file.read().count(b"\xff\xda")  # in the coded data 0xff is always followed by 0
    file.seek(place)
    return found


def _diagnosis(file: IO[bytes], error: BaseException) -> str:
    """What the file is instead of an image that we read, and what to do."""
    file.seek(0)
    head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in _LOOKS_LIKE:
        if text.startswith(start):
            return f"{what}, not an image. Check where it came from."
    if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis"):
        return "is a video, not an image. Take a picture out of it first."
    known = ", ".join(FORMATS)
    return f"is not an image of a format that is read ({known}), or is damaged ({_text(error)})."


def _text(error: BaseException) -> str:
    """One line about an error of Pillow, without the address of its file object."""
    first = str(error).splitlines()[:1]
    return "unknown content" if not first or "<_io." in first[0] else first[0]


_lock = threading.Lock()
_inside = 0
_filter: object = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Pillow's own warnings (bombs, corrupt EXIF) are not shown while any thread is in here.

    `warnings.catch_warnings` would be simpler, but it restores the whole process's filters, and
    with two threads it restores the wrong ones. This adds one filter that sees only Pillow's
    modules, and takes it out with the last thread.
    """
    global _inside, _filter
    with _lock:
        if not _inside:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _filter = warnings.filters[0]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            filters = cast("list[object]", warnings.filters)
            if not _inside and _filter in filters:
                filters.remove(_filter)
