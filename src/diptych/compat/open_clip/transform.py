"""open_clip's transforms: the publisher's pixels for inference, a random crop for training.

The random crop draws from torch's global generator as torchvision's `RandomResizedCrop` does: the
same seed gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from PIL import Image
from torch import Tensor

from diptych.config import PreprocessConfig
from diptych.errors import ConfigError, nearest
from diptych.preprocess import Preprocess
from diptych.preprocess.augment import crop_box
from diptych.preprocess.pipeline import normalise

__all__ = [
    "AugmentationCfg",
    "TrainTransform",
    "image_transform",
    "preprocess_config",
    "train_transform",
]


@dataclass(frozen=True)
class AugmentationCfg:
    """The random crop's share of the area and its aspect; the other fields must stay as they are.

    ratio: honoured here; open_clip warns and crops with (3/4, 4/3).
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] | None = None
    color_jitter: Any = None
    re_prob: float | None = None
    re_count: int | None = None
    use_timm: bool = False
    color_jitter_prob: float | None = None
    gray_scale_prob: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self)[2:]:
            if value := getattr(self, field.name):
                raise ConfigError(
                    f"aug_cfg: {field.name}={value!r} is not done here; only scale and ratio are. "
                    "Apply your own augmentation before preprocess_train."
                )


class TrainTransform:
    """A random crop, bicubic whatever the tag (as in open_clip), RGB, normalised. Picklable."""

    def __init__(self, config: PreprocessConfig, augmentation: AugmentationCfg):
        self.config = config
        self.scale = augmentation.scale
        self.ratio = augmentation.ratio or (3 / 4, 4 / 3)

    def __repr__(self) -> str:
        return (
            f"TrainTransform(size={self.config.size}, scale={self.scale}, ratio={self.ratio}, "
            f"mean={self.config.mean}, std={self.config.std})"
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Float32 [3 H W] of a Pillow image."""
        left, top, width, height = self.crop_box(*image.size)
        image = image.crop((left, top, left + width, top + height))
        size = (self.config.size[1], self.config.size[0])
        image = image.resize(size, Image.Resampling.BICUBIC).convert("RGB")
        return normalise(image, self.config)

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, width, height), drawn from torch's global generator."""
        return crop_box(width, height, scale=self.scale, ratio=self.ratio)


def preprocess_config(base: PreprocessConfig, changes: Mapping[str, Any]) -> PreprocessConfig:
    """`base` with open_clip's fields (size, mean, std, interpolation, resize_mode, fill_color).

    Raises:
        ConfigError: a field or value that there is not.
    """
    names = {"resize_mode": "resize", "fill_color": "pad"}
    hints = get_type_hints(PreprocessConfig)
    given: dict[str, Any] = {}
    for key, value in changes.items():
        if value is None or (key, value) == ("mode", "RGB"):
            continue
        field = names.get(key, key)
        if key not in ("size", "mean", "std", "interpolation", "resize_mode", "fill_color"):
            raise ConfigError(f"preprocessing has no {key!r}. {nearest(key, hints)}")
        if field in ("interpolation", "resize") and value not in (known := get_args(hints[field])):
            raise ConfigError(f"{key} must be one of {', '.join(known)}, got {value!r}")
        if field in ("mean", "std"):
            value = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        if field == "size":
            value = tuple(value) if isinstance(value, list | tuple) else (value, value)
        given[field] = value
    return replace(base, **given)


def train_transform(config: PreprocessConfig, aug_cfg: Any = None) -> TrainTransform:
    """`aug_cfg`: an `AugmentationCfg`, a dict of its fields, or None."""
    if isinstance(aug_cfg, Mapping):
        aug_cfg = AugmentationCfg(**aug_cfg)
    return TrainTransform(config, aug_cfg or AugmentationCfg())


def image_transform(
    image_size: int | tuple[int, int],
    is_train: bool,
    mean: Any = None,
    std: Any = None,
    resize_mode: str | None = None,
    interpolation: str | None = None,
    fill_color: int = 0,
    aug_cfg: Any = None,
) -> Preprocess | TrainTransform:
    """open_clip's function: image -> float32 [3 H W]; with `is_train`, a random crop.

    Raises:
        ConfigError: a value that is not honoured.
    """
    changes = {"size": image_size, "mean": mean, "std": std, "resize_mode": resize_mode}
    changes |= {"interpolation": interpolation, "fill_color": fill_color}
    config = preprocess_config(PreprocessConfig(size=(224, 224)), changes)
    return train_transform(config, aug_cfg) if is_train else Preprocess(config, "original")
