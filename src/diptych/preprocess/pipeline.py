"""`Preprocess`: one image, however it is given, to normalised pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from diptych.config import PreprocessConfig
from diptych.errors import ConfigError, ImageError
from diptych.preprocess.open import (
    BYTES,
    DEFAULT_LIMITS,
    PILLOW_ERRORS,
    Limits,
    check_shape,
    load,
    open_image,
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
    from jaxtyping import Float

Image: TypeAlias = str | Path | bytes | PILImage.Image | np.ndarray
Mode = Literal["right", "original"]


class Preprocess:
    """Image -> Float[3 H W], normalised, on the CPU. Picklable, and safe in threads.

    Args:
        config: sizes, arithmetic and order of the model's tag.
        mode: "right" honours EXIF orientation, 16 bits, palettes and alpha; "original" gives the
            publisher's bits for every file. Both are the same for plain 8-bit RGB and grey files.
        limits: what one image may cost.
    """

    def __init__(
        self, config: PreprocessConfig, mode: Mode = "right", *, limits: Limits = DEFAULT_LIMITS
    ):
        if mode not in ("right", "original"):
            raise ConfigError(f"mode must be 'right' or 'original', got {mode!r}")
        self.config = config
        self.mode: Mode = mode
        self.limits = limits

    def __repr__(self) -> str:
        return f"Preprocess({self.config!r}, mode={self.mode!r})"

    def __call__(
        self,
        image: Image,
        *,
        name: str | None = None,
        look: Callable[[PILImage.Image], object] | None = None,
    ) -> Float[Tensor, "3 H W"]:
        """Pixels of one image.

        Args:
            image: a path, the bytes of a file, a Pillow image, or uint8 [H W] or [H W C] with 1
                (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels.
            name: what errors call it ("image 3 of the list").
            look: is shown the decoded picture in the file's own size and mode, so that what else
                is to be known of it (its date, its size) costs no second decoding.

        Raises:
            ImageError: cannot be read, or would cost more than the limits.
        """
        return normalise(self.resize(image, name=name, look=look), self.config)

    def resize(
        self,
        image: Image,
        *,
        name: str | None = None,
        look: Callable[[PILImage.Image], object] | None = None,
    ) -> PILImage.Image:
        """The same, before the normalisation: an RGB picture of `config.size`."""
        with contextlib.ExitStack() as turn:
            opened, name = self._open(image, name, turn)
            if look is not None:
                look(opened)
            return self._resize(opened, name, owned=opened is not image)

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
        self, image: Image, name: str | None, turn: contextlib.ExitStack
    ) -> tuple[PILImage.Image, str]:
        if isinstance(image, str | Path | bytes):
            label = name or (str(image) if not isinstance(image, bytes) else "image")
            previews = self.mode == "right"
            opened = open_image(image, limits=self.limits, name=label, turn=turn, previews=previews)
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


def normalise(image: PILImage.Image, config: PreprocessConfig) -> Float[Tensor, "3 H W"]:
    """(pixel / 255 - mean) / std in float32, in the order of operations of torchvision.

    Hugging Face multiplies by 1/255 in float64 and rounds: the same 256 numbers (a test checks).
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = statistics(config, pixels.device)
    return pixels.div_(255).sub_(mean).div_(std)


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
