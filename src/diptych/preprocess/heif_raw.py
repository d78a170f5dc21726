"""Photographs that Pillow does not read: HEIC of phones, and RAW files by their embedded preview.

Both need the extra `photos` (pillow-heif with libheif, rawpy with LibRaw).

- A file is recognised by its content. Most RAW formats are TIFF files, so their directories are
  read: DNGVersion, a mosaic (photometric CFA) or linear RAW is a RAW file; all else stays a TIFF.
- HEIC: libheif turns the picture itself, and pillow-heif sets its EXIF orientation to 1. 10 and
  12 bits become 8. Only the primary picture is decoded.
- RAW: nothing is developed. The largest picture that the camera put beside the sensor's data is
  taken, with an EXIF orientation that makes it upright and the RAW file's own date, camera, place.
- Nothing global changes: neither package is registered with Pillow.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, cast

from PIL import ExifTags, Image, TiffImagePlugin

from diptych.errors import ImageError
from diptych.preprocess.open import PILLOW_ERRORS, Limits, check_cost, decode_with_pillow, take_turn

if TYPE_CHECKING:
    import rawpy

INSTALL = "Type: pip install 'diptych[photos]'"

# ISO 23008-12: HEVC pictures, sequences of them; "mif1" and "msf1" say nothing of the codec
_HEVC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_ANY = (b"mif1", b"msf1")
_AV1 = (b"avif", b"avis")

_RAW_HEADS = (
    b"FUJIFILMCCD-RAW",  # raf
    b"IIU\0",  # rw2, rwl
    *(b"IIRO", b"IIRS", b"MMOR"),  # orf
    b"\0MRM",  # mrw
    b"FOVb",  # x3f
)
_TIFF_HEADS = (b"II*\0", b"MM\0*")
_DNG_VERSION, _SUB_IFDS = 50706, 330
_SENSOR = (32803, 34892)  # PhotometricInterpretation: colour filter array, linear RAW (DNG 1.4)
# Compressions that only cameras write: Sony, Samsung, Nikon, Kodak, Pentax.
_CAMERA = (32767, 32769, 32770, 34713, 65000, 65535)
_DIRECTORIES = 16  # a RAW file has 3 to 6

# Bytes of a pixel at the peak, at 8 bits and above: the decoder's planes, its RGB, the copy in
# Pillow. Measured: at most 3, 10, 12 and 4, 16, 21 (4:4:4 takes most, tiles 0.8 more than none).
_HEIF_BYTES = {"L": (4, 6), "RGB": (11, 17), "RGBA": (13, 22)}

# by LibRaw's `flip` (dcraw: bit 0 mirrors columns, bit 1 rows, bit 2 swaps them)
_TURN_OF_FLIP = (1, 2, 4, 3, 5, 8, 6, 7)


def kind(file: IO[bytes]) -> Literal["heif", "raw"] | None:
    """What a file is by its content; None for all that is left to Pillow. Rewinds the file."""
    file.seek(0)
    head = file.read(64)
    found: Literal["heif", "raw"] | None = None
    if head[4:8] == b"ftyp":
        found = _kind_of_boxes(head)
    elif _is_raw(file, head):
        found = "raw"
    file.seek(0)
    return found


def _kind_of_boxes(head: bytes) -> Literal["heif", "raw"] | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))]
    if brands[0] == b"crx ":
        return "raw"  # cr3
    if brands[0] in _HEVC:
        return "heif"
    if brands[0] in _ANY and not any(brand in _AV1 for brand in brands):
        return "heif"
    return None


def _is_raw(file: IO[bytes], head: bytes) -> bool:
    if head.startswith(_RAW_HEADS) or head[6:14] == b"HEAPCCDR":  # crw
        return True
    return head.startswith(_TIFF_HEADS) and _is_camera_tiff(file, head)


def _is_camera_tiff(file: IO[bytes], head: bytes) -> bool:
    if head[8:10] == b"CR" or head[8:12] in (b"IIII", b"MMMM"):  # cr2, iiq
        return True
    waiting, seen = [_first_directory(head)], set()
    while waiting and len(seen) < _DIRECTORIES:
        place = waiting.pop(0)
        if not place or place in seen:
            continue
        seen.add(place)
        try:
            tags = _directory(file, head, place)
            if _DNG_VERSION in tags or tags.get(TiffImagePlugin.COMPRESSION) in _CAMERA:
                return True
            if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in _SENSOR:
                return True
            inner = tags.get(_SUB_IFDS, ())
            waiting += inner if isinstance(inner, tuple) else (inner,)
            waiting.append(tags.next)
        except PILLOW_ERRORS:  # a damaged directory is no sign of a camera
            continue
    return False


def _first_directory(head: bytes) -> int:
    return int.from_bytes(head[4:8], "little" if head[:1] == b"I" else "big")


def _directory(file: IO[bytes], head: bytes, place: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of one directory. Pillow reads no more bytes of tags than the file has."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
    file.seek(place)
    tags.load(file)
    return tags


def open_heif(
    file: IO[bytes], *, limits: Limits, name: str, turn: contextlib.ExitStack | None
) -> Image.Image:
    """The primary picture of a HEIC file: upright, 8 bits, mode L, RGB or RGBA.

    Raises:
        ImageError: pillow-heif is missing, the file is damaged, or costs more than the limits.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{name}: is a HEIC photo, and the package 'pillow-heif' is missing. {INSTALL}"
        ) from error
    data = file.read()
    if (cost := _description_bytes(data)) > limits.memory:
        raise ImageError(
            f"{name}: is a HEIC file whose pictures share descriptions: to open it takes "
            f"{cost / 1e6:.0f} MB, more than {limits.memory / 1e6:.0f}. Save it as JPEG."
        )
    try:
        photo = pillow_heif.open_heif(data)  # the header only
        size, mode = photo.size, photo.mode
        deep = photo.info["bit_depth"] > 8
    except PILLOW_ERRORS as error:
        raise _damaged(name, "HEIC photo", error) from error
    cost = _HEIF_BYTES.get(mode, _HEIF_BYTES["RGBA"])[deep] * size[0] * size[1]
    check_cost(size, cost, limits, name, what="HEIC")
    take_turn(turn, cost)
    try:
        image = photo.to_pillow()
    except PILLOW_ERRORS as error:
        raise _damaged(name, "HEIC photo", error) from error
    image.format = "HEIF"
    return image


def _description_bytes(data: bytes) -> int:
    """Bytes, at most, that pillow-heif copies of EXIF and colour profiles when it opens a file.

    It copies them for every picture in the file. 5 MB of EXIF that 60 pictures refer to are
    300 MB, so this is bounded before: references to descriptions times the file, and items times
    the box that holds the colour profiles (ISO 14496-12, 8.11).
    """
    cost = 0
    for name, start, end in _boxes(data, 0, len(data)):
        if name != b"meta":
            continue
        for inner, at, stop in _boxes(data, start + 4, end):
            if at == stop:
                continue
            if inner == b"iinf":
                items = int.from_bytes(data[at + 4 : at + (8 if data[at] else 6)], "big")
                cost += items * (end - start)
            elif inner == b"iref":
                wide = 4 if data[at] else 2  # of an item's number
                references = sum(
                    int.from_bytes(data[a + wide : a + wide + 2], "big")
                    for kind, a, _ in _boxes(data, at + 4, stop)
                    if kind == b"cdsc"
                )
                cost += references * len(data)
    return cost


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end of the content) of the boxes from `at` to `end`."""
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        stop = end if size == 0 else at + size
        if 0 < size < head or stop > end:
            return
        yield data[at + 4 : at + 8], at + head, stop
        at = stop


def open_raw(
    file: IO[bytes],
    *,
    path: Path | None,
    limits: Limits,
    name: str,
    turn: contextlib.ExitStack | None,
) -> Image.Image:
    """The largest embedded picture of a RAW file, with an EXIF orientation that is right for it.

    Args:
        file: the content; of a file on disk only what is needed is read, by its `path`.

    Raises:
        ImageError: rawpy is missing, there is no preview, the file is damaged, or costs too much.
    """
    try:
        import rawpy
    except ImportError as error:
        raise ImageError(
            f"{name}: is a RAW photo, and the package 'rawpy' is missing. {INSTALL}"
        ) from error
    try:
        with rawpy.RawPy() as raw:
            _open(raw, file, path)
            flip, sensor = raw.sizes.flip, (raw.sizes.width, raw.sizes.height)
            preview = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
        raise _no_preview(name) from error
    except rawpy.NotSupportedError as error:  # a preview in JPEG XL or HEVC
        raise _no_preview(name) from error
    except (rawpy.LibRawError, *PILLOW_ERRORS) as error:
        raise _damaged(name, "RAW photo", error) from error
    data = preview.data
    if isinstance(data, bytes):
        image = decode_with_pillow(io.BytesIO(data), limits, name, turn, formats=("JPEG",))
    else:  # uint8 [h, w, 3]
        check_cost(data.shape[1::-1], 2 * data.nbytes, limits, name, what="RAW preview")
        image = Image.fromarray(data)
    _carry(image, file, _upright(flip, sensor, image))
    image.format = "RAW"
    return image


def _open(raw: rawpy.RawPy, file: IO[bytes], path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(UnicodeError):  # a name that is not UTF-8: read it whole
            raw.open_file(str(path))
            return
    raw.open_buffer(cast(BinaryIO, file))


def _upright(flip: int, sensor: tuple[int, int], image: Image.Image) -> int:
    """The EXIF orientation of the preview, 1 to 8.

    The RAW file knows how the camera was held. Some cameras turn the preview already: a quarter
    turn shows in its shape. Where LibRaw knows no turn, the preview's own EXIF counts.
    """
    if not 0 < flip < len(_TURN_OF_FLIP):
        own = image.getexif().get(ExifTags.Base.Orientation, 1)
        return own if own in range(1, 9) else 1
    turn = _TURN_OF_FLIP[flip]
    lies, shown = sensor[0] - sensor[1], image.width - image.height
    return 1 if turn >= 5 and lies * shown < 0 else turn


def _carry(image: Image.Image, file: IO[bytes], turn: int) -> None:
    """Gives the preview the RAW file's own date, camera and place, and its orientation."""
    try:
        exif = image.getexif()
        file.seek(0)
        head = file.read(64)
        if head[:2] in (b"II", b"MM"):
            _copy_tags(exif, file, head)
    except PILLOW_ERRORS:  # damaged: what LibRaw or the preview says stays
        image.info.pop("exif", None)
        exif = image.getexif()
    exif[ExifTags.Base.Orientation] = turn
    try:
        image.info["exif"] = exif.tobytes()  # for copies of the image
    except PILLOW_ERRORS:
        image.info.pop("exif", None)


_KEPT = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime)
_KEPT_INSIDE = (ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized)
_PLACE = range(1, 5)  # GPSLatitudeRef, GPSLatitude, GPSLongitudeRef, GPSLongitude


def _copy_tags(exif: Image.Exif, file: IO[bytes], head: bytes) -> None:
    # ORF and RW2 are TIFF files but for their magic number
    header = head[:2] + (b"*\0" if head[:2] == b"II" else b"\0*") + head[4:8]
    own: Any = _directory(file, header, _first_directory(head))
    for tag in _KEPT:
        if tag in own:
            exif[tag] = own[tag]
    for where, tags in ((ExifTags.IFD.Exif, _KEPT_INSIDE), (ExifTags.IFD.GPSInfo, _PLACE)):
        if where not in own:
            continue
        inside = _directory(file, header, own[where])
        found = {tag: inside[tag] for tag in tags if tag in inside}
        if found:
            exif.get_ifd(where).update(found)


def _no_preview(name: str) -> ImageError:
    return ImageError(
        f"{name}: is a RAW photo without a preview that can be read. Develop it to a JPEG first."
    )


def _damaged(name: str, what: str, error: BaseException) -> ImageError:
    text = str(error).removeprefix("b'").removesuffix("'") or type(error).__name__
    return ImageError(
        f"{name}: is a {what} that is damaged, cut short or not of a kind that is read ({text}). "
        "Get the file again, or save it as JPEG."
    )
