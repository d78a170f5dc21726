"""`Preprocess`: one image, however it is given, to pixels: whole levels, or normalised."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageFile
from torch import Tensor

from diptych.config import PreprocessConfig
from diptych.errors import ConfigError, ImageError
from diptych.preprocess import jpeg
from diptych.preprocess.near import resize_near
from diptych.preprocess.open import (
    BYTES,
    DEFAULT_LIMITS,
    FORMATS,
    PILLOW_ERRORS,
    Limits,
    check_shape,
    load,
    open_otherwise,
    quiet,
)
from diptych.preprocess.pixels import (
    copied_bytes,
    is_plain,
    orientation,
    original,
    right,
    target_size,
    turned_size,
)

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

Image: TypeAlias = str | Path | bytes | PILImage.Image | np.ndarray
Mode = Literal["right", "original"]
Pixels = Literal["exact", "near", "fast"]
Look = Callable[[PILImage.Image], object]


class _Levels(NamedTuple):
    """What a decoder made of a JPEG file beside Pillow."""

    values: np.ndarray  # uint8 [h w] or [h w 3]
    scale: int  # how many times smaller than the picture
    image: PILImage.Image  # the opened file


class Preprocess:
    """Image -> Float[3 H W], normalised, on the CPU. Picklable, and safe in threads.

    Args:
        config: sizes, arithmetic and order of the model's tag.
        mode: "right" honours EXIF orientation, 16 bits, palettes and alpha; "original" gives the
            publisher's bits for every file. Both are the same for plain 8-bit RGB and grey files.
        limits: what one image may cost.
        pixels: how close to Pillow, the reference, in levels of 255 on photographs. "exact": its
            bits. "near": another kernel resizes; 1 level off at most, but for two values in a
            million, which are 2 off. "fast": the decoder also makes JPEG files smaller, never to
            less than three times of what is needed; 0.2 levels off on average (0.4 for a photograph
            full of fur) and 6 at most. What is not plain 8-bit RGB or grey is always exact.

    Raises:
        ConfigError: a mode or a way of the pixels that there is not.
    """

    def __init__(
        self,
        config: PreprocessConfig,
        mode: Mode = "right",
        *,
        limits: Limits = DEFAULT_LIMITS,
        pixels: Pixels = "exact",
    ):
        if mode not in ("right", "original"):
            raise ConfigError(f"mode must be 'right' or 'original', got {mode!r}")
        if pixels not in get_args(Pixels):
            raise ConfigError(f"pixels must be 'exact', 'near' or 'fast', got {pixels!r}")
        self.config = config
        self.mode: Mode = mode
        self.limits = limits
        self.pixels: Pixels = pixels

    def __repr__(self) -> str:
        pixels = "" if self.pixels == "exact" else f", pixels={self.pixels!r}"
        return f"Preprocess({self.config!r}, mode={self.mode!r}{pixels})"

    def __call__(
        self, image: Image, *, name: str | None = None, look: Look | None = None
    ) -> Float[Tensor, "3 H W"]:
        """Pixels of one image.

        Args:
            image: a path, the bytes of a file, a Pillow image, or uint8 [H W] or [H W C] with 1
                (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels.
            name: what errors call it ("image 3 of the list").
            look: is shown the picture in the file's own size and mode, once it could be decoded,
                so that what else is to be known of it (its date, its size) costs no second
                opening. Under "near" and "fast" its values may be decoded for `look` alone.

        Raises:
            ImageError: cannot be read, or would cost more than the limits.
        """
        return normalise_batch(self.uint8(image, name=name, look=look), self.config)

    def uint8(
        self, image: Image, *, name: str | None = None, look: Look | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        """The same, before the normalisation: levels 0..255, contiguous.

        `normalise_batch(uint8, config)` gives what a call gives, bit for bit.
        """
        made = self._made(image, name, look)
        return made if isinstance(made, Tensor) else to_tensor(made)

    def resize(
        self, image: Image, *, name: str | None = None, look: Look | None = None
    ) -> PILImage.Image:
        """The same as a picture: RGB, of `config.size`."""
        made = self._made(image, name, look)
        if isinstance(made, Tensor):
            return PILImage.fromarray(made.permute(1, 2, 0).numpy())
        return made

    def _made(self, image: Image, name: str | None, look: Look | None) -> PILImage.Image | Tensor:
        with contextlib.ExitStack() as turn:
            opened, name = self._open(image, name, look, turn)
            if isinstance(opened, _Levels):
                return self._resize_near(opened, name)
            if look is not None:
                look(opened)
            if self.pixels != "exact" and is_plain(opened) and self._has_room(opened):
                return self._resize_near(_Levels(np.array(opened), 1, opened), name)
            return self._resize(opened, name, owned=opened is not image)

    def _has_room(self, image: PILImage.Image) -> bool:
        """Whether two copies fit beside the picture: numpy's from Pillow's bytes."""
        return 10 * image.width * image.height <= self.limits.memory

    def _resize_near(self, levels: _Levels, name: str) -> UInt8[Tensor, "3 H W"]:
        image, turn = levels.image, 1
        if self.mode == "right":
            with quiet():
                turn = orientation(image)
        self._check_memory(image, turn, name, owned=True)
        values = torch.from_numpy(levels.values)
        return resize_near(values, self.config, size=image.size, scale=levels.scale, turn=turn)

    def _decode(
        self, image: ImageFile.ImageFile, file: IO[bytes], name: str, look: Look | None
    ) -> _Levels | None:
        """A JPEG file without Pillow's picture of it; None: by Pillow."""
        if self.pixels == "exact" or not jpeg.is_jpeg(image):
            return None
        scale = 1
        if self.pixels == "fast":
            turn = orientation(image) if self.mode == "right" else 1
            upright = turned_size(image, turn)
            scale = jpeg.shrunk(*upright, target_size(self.config, *upright))
        values = jpeg.decoded(image, file, scale)
        if values is None:
            if scale == 1:
                return None
            values = np.array(load(_drafted(image, file, scale), name))
        if look is not None:
            look(image)
        return _Levels(values, scale, image)

    def _resize(self, opened: PILImage.Image, name: str, *, owned: bool) -> PILImage.Image:
        turn = 1
        if self.mode == "right":
            with quiet():
                turn = orientation(opened)
        last = self._check_memory(opened, turn, name, owned=owned)
        with quiet():
            try:
                if self.mode == "original":
                    return original(opened, self.config)
                return right(opened, self.config, turn=turn, turn_last=last, name=name)
            except ImageError:
                raise
            except PILLOW_ERRORS as error:
                raise ImageError(
                    f"{name}: mode {opened.mode!r} cannot be made RGB ({error}). "
                    "Convert it with image.convert('RGB')."
                ) from error

    def _check_memory(self, image: PILImage.Image, turn: int, name: str, *, owned: bool) -> bool:
        """Refuses what needs too much memory; True if the picture has to be turned last.

        Counted are the decoded picture (if it is ours), its converted copy, and the resize.
        """
        width, height = turned_size(image, turn)
        new_width, new_height = target_size(self.config, width, height)
        between = max(new_width * height, width * new_height)  # one of Pillow's two passes
        need = 4 * (new_width * new_height + between)
        need += BYTES.get(image.mode, 4) * width * height * owned
        copy = copied_bytes(image, self.config, self.mode, turn) * width * height
        last = turn != 1 and is_plain(image) and need + copy > self.limits.memory
        if need + copy * (not last) > self.limits.memory:
            raise ImageError(
                f"{name}: {width}x{height} pixels of mode {image.mode} would take "
                f"{(need + copy) / 1e6:.0f} MB to resize to {new_width}x{new_height}, more than "
                f"{self.limits.memory / 1e6:.0f}. "
                "Make it smaller, or pass limits=Limits(memory=...)."
            )
        return last

    def _open(
        self, image: Image, name: str | None, look: Look | None, turn: contextlib.ExitStack
    ) -> tuple[PILImage.Image | _Levels, str]:
        if isinstance(image, str | Path | bytes):
            label = name or (str(image) if not isinstance(image, bytes) else "image")
            opened = open_otherwise(
                image,
                lambda one, file: self._decode(one, file, label, look),
                limits=self.limits,
                name=label,
                turn=turn,
                previews=self.mode == "right",
            )
            return opened, label
        name = name or "image"
        if isinstance(image, np.ndarray):
            image = _from_array(image, name)
        elif not isinstance(image, PILImage.Image):
            raise ImageError(
                f"{name}: is a {type(image).__name__}. Give a path, the bytes of a file, a Pillow "
                "image or a uint8 array of [height, width, channels]."
            )
        check_shape(image.size, self.limits, name)
        with quiet():
            return load(image, name), name


def _from_array(array: np.ndarray, name: str) -> PILImage.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))
    if array.dtype != np.uint8 or not good or not array.size:
        raise ImageError(
            f"{name}: an array must be uint8 [height, width] or [height, width, 1 to 4 channels], "
            f"got {array.dtype} {list(array.shape)}. Scale it to 0..255 and put channels last."
        )
    return PILImage.fromarray(array)


def _drafted(image: PILImage.Image, file: IO[bytes], scale: int) -> PILImage.Image:
    """The file once more, to be decoded at 1/scale; `image` keeps its size."""
    file.seek(0)
    draft = PILImage.open(file, formats=FORMATS)
    draft.draft(None, (image.width // scale, image.height // scale))
    return draft


def to_tensor(image: PILImage.Image) -> UInt8[Tensor, "3 H W"]:
    """Levels of an RGB picture, plane by plane, contiguous."""
    planes = np.empty((3, image.height, image.width), np.uint8)
    for plane, band in zip(planes, "RGB", strict=True):
        plane.reshape(-1)[:] = np.frombuffer(image.tobytes("raw", band), np.uint8)
    return torch.from_numpy(planes)


def normalise(image: PILImage.Image, config: PreprocessConfig) -> Float[Tensor, "3 H W"]:
    """Float32 of an RGB picture: `normalise_batch` of `to_tensor`."""
    return normalise_batch(to_tensor(image), config)


def normalise_batch(
    pixels: UInt8[Tensor, "*n 3 H W"], config: PreprocessConfig
) -> Float[Tensor, "*n 3 H W"]:
    """(pixel / 255 - mean) / std in float32, in the order of operations of torchvision.

    On the device of the images, one or many. Hugging Face multiplies by 1/255 in float64 and
    rounds: the same 256 numbers (a test checks).
    """
    return normalise_by(pixels, *statistics(config, pixels.device))


def normalise_by(
    pixels: UInt8[Tensor, "*n 3 H W"], mean: Tensor, std: Tensor
) -> Float[Tensor, "*n 3 H W"]:
    """`normalise_batch` with `statistics` that are on the device already."""
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def statistics(config: PreprocessConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std, float32 [3 1 1]."""
    mean = torch.tensor(config.mean, dtype=torch.float32, device=device)
    std = torch.tensor(config.std, dtype=torch.float32, device=device)
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def denormalise(
    pixels: Float[Tensor, "*n 3 H W"], config: PreprocessConfig
) -> Float[Tensor, "*n 3 H W"]:
    """Normalised pixels back to [0, 1], for pictures and plots."""
    mean, std = statistics(config, pixels.device)
    return (pixels * std + mean).clamp(0, 1)
