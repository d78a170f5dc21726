"""What happens to an image in training: crop, mirror, colours, drawn from the sample's own seed.

- The random crop is torchvision's RandomResizedCrop (Inception, arXiv 1409.4842), the changes of
  colour its ColorJitter on Pillow images: the same draws, and bits, as far as they go.
- All is drawn from a generator of the sample's seed, never from a global one: the pixels do not
  depend on who makes them, nor on what came before.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from diptych.config import AugmentConfig, PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess.open import DEFAULT_LIMITS, PILLOW_ERRORS, Limits, open_image, quiet
from diptych.preprocess.pipeline import Mode, Preprocess, normalise
from diptych.preprocess.pixels import orientation

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Augment", "AugmentConfig", "crop_box", "jitter"]


class Augment:
    """Bytes of a file and a seed -> Float[3 H W], normalised. Picklable, and safe in threads.

    The crop is made upright (mode "right") and before anything else is done to the pixels, then
    resized to `config.size` with the model's interpolation; mode and limits as in `Preprocess`.
    """

    def __init__(
        self,
        config: PreprocessConfig,
        augment: AugmentConfig,
        mode: Mode = "right",
        *,
        limits: Limits = DEFAULT_LIMITS,
    ):
        self.config, self.augment, self.mode, self.limits = config, augment, mode, limits
        self._whole = Preprocess(config, mode, limits=limits)
        squash = replace(config, resize="squash", short=None)
        self._squash = Preprocess(squash, mode, limits=limits)

    def __repr__(self) -> str:
        return f"Augment({self.config!r}, {self.augment!r}, mode={self.mode!r})"

    def __call__(self, data: bytes, seed: int, name: str = "image") -> Float[Tensor, "3 H W"]:
        """Pixels of one image. The same seed gives the same pixels.

        Raises:
            ImageError: cannot be read, or would cost more than the limits.
        """
        draw = torch.Generator().manual_seed(seed)
        if self.augment.scale is None:
            picture = self._whole.resize(data, name=name)
        else:
            picture = self._cropped(data, draw, name)
        if self.augment.flip and _chance(draw) < self.augment.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment.jitter:
            picture = jitter(picture, self.augment.jitter, generator=draw)
        if self.augment.grey and _chance(draw) < self.augment.grey:
            picture = picture.convert("L").convert("RGB")
        return normalise(picture, self.config)

    def _cropped(self, data: bytes, draw: torch.Generator, name: str) -> Image.Image:
        assert self.augment.scale is not None
        right = self.mode == "right"
        with contextlib.ExitStack() as turn:
            image = open_image(data, limits=self.limits, name=name, turn=turn, previews=right)
            try:
                with quiet():
                    if right and orientation(image) != 1:
                        image = ImageOps.exif_transpose(image)
                    scale, ratio = self.augment.scale, self.augment.ratio
                    box = crop_box(*image.size, scale=scale, ratio=ratio, generator=draw)
                    left, top, width, height = box
                    image = image.crop((left, top, left + width, top + height))
            except PILLOW_ERRORS as error:
                raise ImageError(f"{name}: cannot be cropped ({error}). Convert it.") from error
            return self._squash.resize(image, name=name)


def crop_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator | None = None,
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop: ten draws of an area and an aspect.

    If none fits, the largest in the centre whose aspect is allowed. Source: torchvision,
    `RandomResizedCrop.get_params`; the same draws from the same generator (None: the global one).
    """
    low, high = torch.tensor(ratio).log().tolist()
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(*scale, generator=generator).item()
        aspect = torch.empty(1).uniform_(low, high, generator=generator).exp().item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return left, top, w, h
    w, h = width, height
    if width / height < min(ratio):
        h = round(w / min(ratio))
    elif width / height > max(ratio):
        w = round(h * max(ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def jitter(
    image: Image.Image, strength: float, *, generator: torch.Generator | None = None
) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor in 1 +- `strength`, in a random order.

    Source: torchvision, `ColorJitter(strength, strength, strength)`: the order is drawn first.
    """
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    order = torch.randperm(4, generator=generator).tolist()  # torchvision's fourth is the hue
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = [torch.empty(1).uniform_(low, high, generator=generator).item() for _ in changes]
    for i in order:
        if i < len(changes):
            image = changes[i](image).enhance(factors[i])
    return image


def _chance(draw: torch.Generator) -> float:
    return torch.rand(1, generator=draw).item()
