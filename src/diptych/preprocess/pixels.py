"""The arithmetic of pixels: sizes, crops, and what colours, depths and orientation mean.

- The resize is Pillow's, whose two passes round to 8 bits between them: see `passes`.
- Orientation, depth and alpha are dealt with in bands of rows: a picture needs memory twice at
  most, and not at all where there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess.open import BYTES, PILLOW_ERRORS
from diptych.preprocess.passes import resize_crop_exactly

BAND = 1 << 20  # pixels of a band: 4 MB in RGB

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

ORIENTATION = 0x0112  # EXIF tag; per value: how to turn, and where a band of rows comes from
_TURN = {  # value: (method, rows are columns of the file, counted from the end)
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, False),
    3: (Image.Transpose.ROTATE_180, False, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, True, True),
}


def target_size(config: PreprocessConfig, width: int, height: int) -> tuple[int, int]:
    """(width, height) after the resize and before crop or padding.

    torchvision's Resize, open_clip's ResizeKeepRatio and Hugging Face's
    get_resize_output_image_size; where a side would become 0, for which they fail, it is 1.
    """
    rows, columns = config.size
    match config.resize:
        case "squash":
            return (columns, rows) if config.short is None else (config.short, config.short)
        case "shortest" if rows == columns or config.short is not None:
            side = config.short or rows
            long = int(side * max(width, height) / min(width, height))
            return (side, long) if width <= height else (long, side)
        case "shortest":
            ratio = min(height / rows, width / columns)
        case "longest":
            ratio = max(height / rows, width / columns)
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def crop_box(config: PreprocessConfig, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the centre crop; a side that is too short stays whole."""
    rows, columns = min(config.size[0], height), min(config.size[1], width)
    if config.crop == "floor":
        left, top = (width - columns) // 2, (height - rows) // 2
    else:
        left, top = round((width - columns) / 2), round((height - rows) / 2)
    return left, top, left + columns, top + rows


def pad(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    """`image` in the centre of `config.size`; torchvision's pad, which fills in the file's mode."""
    rows, columns = config.size
    right, below = columns - image.width, rows - image.height
    if not right and not below:
        return image
    border = (right // 2, below // 2, (right + 1) // 2, (below + 1) // 2)
    bands = len(image.getbands())
    padded = ImageOps.expand(image, border, config.pad if bands == 1 else (config.pad,) * bands)
    if image.mode == "P":
        padded.putpalette(image.getpalette() or [])
    return padded


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except PILLOW_ERRORS:
        return 1
    return value if value in _TURN else 1


def turned_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """(width, height) of the upright picture."""
    return image.size[::-1] if turn in _TURN and _TURN[turn][1] else image.size


def _rows(image: Image.Image, turn: int, start: int, stop: int) -> Image.Image:
    """Rows `start` to `stop` of the upright picture."""
    width, height = image.size
    if turn == 1:
        return image.crop((0, start, width, stop))
    method, columns, from_end = _TURN[turn]
    if from_end:
        length = width if columns else height
        start, stop = length - stop, length - start
    box = (start, 0, stop, height) if columns else (0, start, width, stop)
    return image.crop(box).transpose(method)


def prepared(
    image: Image.Image, prepare: Callable[[Image.Image], Image.Image], turn: int = 1
) -> Image.Image:
    """`prepare(upright image)`, in bands of rows. `prepare` works pixel by pixel."""
    width, height = turned_size(image, turn)
    step = max(BAND // width, 1)
    whole: Image.Image | None = None
    for start in range(0, height, step):
        band = prepare(_rows(image, turn, start, min(start + step, height)))
        if step >= height:
            return band
        if whole is None:
            whole = Image.new(band.mode, (width, height))
        whole.paste(band, (0, start))
    assert whole is not None
    return whole


def resize_crop(image: Image.Image, config: PreprocessConfig, turn: int = 1) -> Image.Image:
    """`image` at `target_size`, turned, cropped and padded to `config.size`, in its own mode."""
    size = target_size(config, *turned_size(image, turn))
    stored = size if turned_size(image, turn) == image.size else size[::-1]
    how, box = FILTERS[config.interpolation], crop_box(config, *size)
    if turn == 1:
        return pad(resize_crop_exactly(image, size, how, box), config)
    if stored != image.size:
        image = image.resize(stored, how)
    image = image.transpose(_TURN[turn][0])
    return pad(image if box == (0, 0, *size) else image.crop(box), config)


def original(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    """RGB of `config.size` as the publisher makes it from any file.

    torchvision's order resizes in the file's own mode (so palettes and 1-bit pictures by nearest
    neighbour, alpha premultiplied) and converts to RGB after the crop, dropping alpha. Hugging
    Face's order converts first, over white where there is alpha (transformers 5).
    """
    if config.rgb == "before":
        return resize_crop(prepared(image, _over_white), config).convert("RGB")
    return resize_crop(image, config).convert("RGB")


def is_plain(image: Image.Image) -> bool:
    """8-bit RGB or grey without transparency: nothing to convert before the resize."""
    return image.mode in ("RGB", "L") and "transparency" not in image.info


def copied_bytes(image: Image.Image, config: PreprocessConfig, mode: str, turn: int) -> int:
    """Bytes of a pixel of the full-size copy that has to be made before the resize."""
    if mode == "original" and config.rgb == "after":
        return 4 if image.mode in ("LA", "RGBA") else 0  # Pillow premultiplies
    if is_plain(image):
        return 0 if turn == 1 else BYTES.get(image.mode, 4)
    return 1 if image.mode.startswith("I;16") and "transparency" not in image.info else 4


def right(
    image: Image.Image, config: PreprocessConfig, *, turn: int, turn_last: bool, name: str
) -> Image.Image:
    """RGB of `config.size` of what the file shows: upright, over `config.fill`, in 8 bits.

    Depths above 8 bits keep the top 8, as Pillow does for 16-bit colour; CMYK and the other colour
    spaces are converted by Pillow's rules, without their profile. `turn_last` turns the resized
    picture instead of the large one: less memory, and a few levels off where the passes round.

    Raises:
        ImageError: mode "I" outside 0..65535, or mode "F" outside 0..1: the scale is not known.
    """
    first = 1 if turn_last else turn
    if first != 1 or not is_plain(image):
        image = prepared(image, lambda band: _flat(band, config.fill, name), first)
    return resize_crop(image, config, turn if turn_last else 1).convert("RGB")


def _over_white(band: Image.Image) -> Image.Image:
    """transformers.image_transforms.convert_to_rgb."""
    if "A" in band.getbands() or band.info.get("transparency") is not None:
        return _over(band.convert("RGBA"), (255, 255, 255))
    return band.convert("RGB")


def _over(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    ground = Image.new("RGBA", image.size, (*fill, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def _flat(band: Image.Image, fill: tuple[int, int, int], name: str) -> Image.Image:
    """RGB, or L where all three channels are equal."""
    key = band.info.get("transparency")
    if band.mode in ("RGB", "L") and key is None:
        return band
    if band.mode.startswith("I") or band.mode == "F":
        values = np.asarray(band)
        band = _eight_bits(values, band.mode, name)
        if key is None:
            return band
        band.putalpha(Image.fromarray((values != key).astype(np.uint8) * np.uint8(255)))
    elif band.mode == "La":
        band = band.convert("LA")
    elif isinstance(key, tuple) and max(key) > 255:  # the transparent colour of a 16-bit file
        band = band.copy()
        band.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None or band.mode in ("LA", "PA", "RGBA", "RGBa"):
        return _over(band.convert("RGBA"), fill)
    return band.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str, name: str) -> Image.Image:
    """Mode L of 16-bit grey, of Pillow's older mode "I" for it, or of floats in 0..1."""
    top = 1 if mode == "F" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also NaN
        raise ImageError(
            f"{name}: its values run from {low} to {high}, so their scale is not known. "
            f"Scale mode {mode!r} to 0..{top}, or convert the image to 8 bits."
        )
    eight = values * np.float32(255) + np.float32(0.5) if mode == "F" else values >> 8
    return Image.fromarray(eight.astype(np.uint8))
