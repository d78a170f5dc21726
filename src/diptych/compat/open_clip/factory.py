"""open_clip's `create_model` and its kin: from names and options to a model and its transforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from diptych import zoo
from diptych.compat.open_clip import names
from diptych.compat.open_clip.model import CLIP, CustomTextCLIP, convert_weights_to_lp
from diptych.compat.open_clip.tokenizer import FileTokenizer, SimpleTokenizer
from diptych.compat.open_clip.transform import TrainTransform, preprocess_config, train_transform
from diptych.compat.weights import fill, lay_out, random_weights
from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig, ViTConfig
from diptych.errors import CheckpointError, ConfigError, ModelNotFoundError, nearest
from diptych.model.vision import resize_positions
from diptych.preprocess import Preprocess
from diptych.tokenizer import build as build_tokenizer
from diptych.zoo import Checkpoint
from diptych.zoo.architectures import with_act
from diptych.zoo.settings import differences

__all__ = [
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "get_model_preprocess_cfg",
    "get_tokenizer",
]

_PRECISIONS = {  # dtype, and whether norms and embeddings are converted too
    "fp32": None,
    "amp": None,
    "amp_bf16": None,
    "amp_bfloat16": None,
    "fp16": (torch.float16, False),
    "bf16": (torch.bfloat16, False),
    "pure_fp16": (torch.float16, True),
    "pure_bf16": (torch.bfloat16, True),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keyword arguments of the three functions, with open_clip's names and defaults."""

    load_weights: bool = True
    precision: str = "fp32"
    device: str | torch.device = "cpu"
    force_quick_gelu: bool = False
    force_custom_text: bool = False
    force_patch_dropout: float | None = None
    force_image_size: int | tuple[int, int] | None = None
    force_preprocess_cfg: Mapping[str, Any] | None = None
    image_mean: Any = None
    image_std: Any = None
    image_interpolation: str | None = None
    image_resize_mode: str | None = None
    cache_dir: str | Path | None = None
    output_dict: bool | None = None
    require_pretrained: bool = False
    # Not honoured, so refused when they ask for something.
    jit: bool = False
    force_context_length: int | None = None
    pretrained_image: bool = False
    pretrained_text: bool = True
    pretrained_hf: bool = True
    pretrained_image_path: str | None = None
    pretrained_text_path: str | None = None
    weights_only: bool = True

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise ConfigError(
                f"precision must be one of {', '.join(_PRECISIONS)}, got {self.precision!r}"
            )
        for field in fields(self)[-8:]:
            if (value := getattr(self, field.name)) != field.default:
                raise ConfigError(
                    f"{field.name}={value!r} is not done by diptych.compat.open_clip. "
                    f"Leave it at {field.default!r}."
                )

    @property
    def pixels(self) -> dict[str, Any]:
        """What changes the preprocessing, under open_clip's names."""
        return {
            **(self.force_preprocess_cfg or {}),
            "mean": self.image_mean,
            "std": self.image_std,
            "interpolation": self.image_interpolation,
            "resize_mode": self.image_resize_mode,
        }


def _options(given: dict[str, Any]) -> Options:
    known = [field.name for field in fields(Options)]
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"no option is named {unknown[0]!r}. {nearest(unknown[0], known)}")
    return Options(**given)


def create_model(model_name: str, pretrained: str | None = None, **options: Any) -> Any:
    """A `CLIP` or `CustomTextCLIP` in training mode, as open_clip gives it.

    Args:
        model_name: an architecture of `list_models()`, "hf-hub:org/name" or "local-dir:path".
        pretrained: a tag, a path, or None for random weights.
        options: see `Options`; those of open_clip that are not honoured are refused.

    Raises:
        ModelNotFoundError: no such architecture, tag or file.
        ConfigError: an option that is unknown or not honoured.
        CheckpointError: a file of another model.
    """
    return _create(model_name, pretrained, _options(options))[0]


def create_model_and_transforms(
    model_name: str, pretrained: str | None = None, *, aug_cfg: Any = None, **options: Any
) -> tuple[Any, TrainTransform, Preprocess]:
    """(model in training mode, preprocess_train, preprocess_val); see `create_model`.

    Args:
        aug_cfg: `AugmentationCfg` or a dict of its fields, for `preprocess_train`.
    """
    model, pixels = _create(model_name, pretrained, _options(options))
    return model, train_transform(pixels, aug_cfg), Preprocess(pixels, "original")


def create_model_from_pretrained(
    model_name: str,
    pretrained: str | None = None,
    *,
    return_transform: bool = True,
    **options: Any,
) -> Any:
    """(model in training mode, preprocess), or the model alone; weights are required."""
    required = _options({**options, "require_pretrained": True})
    model, pixels = _create(model_name, pretrained, required)
    return (model, Preprocess(pixels, "original")) if return_transform else model


def _create(
    model_name: str, pretrained: str | None, options: Options
) -> tuple[CLIP | CustomTextCLIP, PreprocessConfig]:
    checkpoint = _checkpoint(model_name, pretrained, options)
    if options.force_image_size is not None:
        checkpoint = _resized(checkpoint, options.force_image_size)
    config = checkpoint.config
    if options.force_patch_dropout is not None:
        visual = _vit(config, "force_patch_dropout")
        visual = replace(visual, patch_dropout=options.force_patch_dropout)
        config = replace(config, visual=visual)
    towers = lay_out(config, batch_first=True, custom=options.force_custom_text)
    make = CustomTextCLIP if towers.custom else CLIP
    model = make(config, towers, output_dict=bool(options.output_dict))
    fill(model, checkpoint.state_dict, towers)
    if low := _PRECISIONS[options.precision]:
        dtype, everything = low
        model.to(dtype) if everything else convert_weights_to_lp(model, dtype)
    pixels = preprocess_config(checkpoint.preprocess, options.pixels)
    _describe(model.visual, pixels)
    return model.to(options.device), pixels


def _describe(visual: Any, pixels: PreprocessConfig) -> None:
    """The attributes with which open_clip states the pixels."""
    visual.image_mean, visual.image_std = pixels.mean, pixels.std
    visual.preprocess_cfg = {
        "size": pixels.size,
        "mode": "RGB",
        "mean": pixels.mean,
        "std": pixels.std,
        "interpolation": pixels.interpolation,
        "resize_mode": pixels.resize,
        "fill_color": pixels.pad,
    }


def get_model_preprocess_cfg(model: Any) -> dict[str, Any]:
    """open_clip's description of the pixels that the model takes."""
    return model.visual.preprocess_cfg


# --- from names to a checkpoint -----------------------------------------------------------------


def _checkpoint(model_name: str, pretrained: str | None, options: Options) -> Checkpoint:
    scheme, _, rest = model_name.partition(":")
    places = {"hf-hub": f"hf:{rest}", "local-dir": Path(rest)}
    if scheme in places:
        if pretrained or options.force_quick_gelu or not options.load_weights:
            raise ConfigError(
                f"{model_name} brings its own weights and settings: leave out pretrained=, "
                "force_quick_gelu= and load_weights=. open_clip ignores the first in silence."
            )
        return _finite(zoo.open_model(places[scheme], cache_dir=options.cache_dir))
    if not pretrained:
        return _random(model_name, None, options)
    row = names.find_row(model_name, pretrained)
    if row is None:
        if Path(pretrained).exists():
            return _from_path(model_name, Path(pretrained), options)
        tags = ", ".join(row.name.partition("/")[2] for row in names.rows_of(model_name))
        raise ModelNotFoundError(
            f"{model_name}: no tag and no file is named {pretrained!r}. Its tags: {tags}"
        )
    if options.force_quick_gelu and with_act(row.config, "quick_gelu") != row.config:
        raise ConfigError(
            f"{row.name} was not trained with QuickGELU: leave out force_quick_gelu=True."
        )
    if not options.load_weights:
        return _random(model_name, row, options)
    return _finite(zoo.open_model(row.name, cache_dir=options.cache_dir))


def _finite(checkpoint: Checkpoint) -> Checkpoint:
    zoo.check_finite(checkpoint)
    return checkpoint


def _random(model_name: str, row: zoo.Row | None, options: Options) -> Checkpoint:
    """Starting values; pixels are the tag's, or open_clip's default."""
    if options.require_pretrained:
        raise ModelNotFoundError(f"{model_name}: give pretrained=, a tag or a path.")
    if row is None:
        config = names.config_of(model_name, quick_gelu=options.force_quick_gelu)
        pixels = PreprocessConfig(size=config.visual.image_size)
        tokenizer = names.rows_of(model_name)[0].tokenizer
    else:
        config, pixels, tokenizer = row.config, row.preprocess, row.tokenizer
    return Checkpoint(
        state_dict=random_weights(config), config=config, preprocess=pixels, tokenizer=tokenizer
    )


def _from_path(model_name: str, path: Path, options: Options) -> Checkpoint:
    """A file: what it says of itself counts; a bare state dict is of `model_name`."""
    config = names.config_of(model_name, quick_gelu=options.force_quick_gelu)
    try:
        found = zoo.open_model(path)
    except CheckpointError:  # says nothing, or is no checkpoint, and then this fails again
        return _finite(zoo.open_model(path, config=config))
    named, read = (with_act(each, "gelu") for each in (config, found.config))
    if wrong := differences(named, read):
        raise CheckpointError(f"{path}: is no {model_name}: {'; '.join(wrong[:10])}.")
    return _finite(found)


def _vit(config: CLIPConfig, option: str) -> ViTConfig:
    if not isinstance(config.visual, ViTConfig):
        raise ConfigError(f"{option}: a {type(config.visual).__name__} has no patches.")
    return config.visual


def _resized(checkpoint: Checkpoint, size: int | tuple[int, int]) -> Checkpoint:
    """The same for images of another size: positions are interpolated (bicubic, anti-aliased)."""
    visual = _vit(checkpoint.config, "force_image_size")
    new = replace(visual, image_size=(size, size) if isinstance(size, int) else tuple(size))
    key = "visual.positional_embedding"
    old = checkpoint.state_dict[key].float()
    positions = resize_positions(old, int(visual.class_token), visual.grid, new.grid)
    return replace(
        checkpoint,
        state_dict={**checkpoint.state_dict, key: positions},
        config=replace(checkpoint.config, visual=new),
        preprocess=replace(checkpoint.preprocess, size=new.image_size),
    )


# --- tokenizers ---------------------------------------------------------------------------------


def get_tokenizer(
    model_name: str = "",
    context_length: int | None = None,
    cache_dir: str | Path | None = None,
) -> SimpleTokenizer | FileTokenizer:
    """The tokenizer of an architecture, "hf-hub:org/name" or "local-dir:path".

    Texts are cut in silence, and the end of text is kept. Without a name it is CLIP's.

    Raises:
        ModelNotFoundError: no such architecture, or its vocabulary is not on this machine.
    """
    config, folder = _vocabulary(model_name, cache_dir)
    if config.clean == "canonicalize_hf":
        # open_clip's rules for SigLIP are those of its training code with ftfy before them;
        # Hugging Face's, which came with the weights, also delete "_".
        config = replace(config, clean="canonicalize_open_clip")
    config = replace(config, context_length=context_length or config.context_length)
    if config.file == "clip":
        return SimpleTokenizer(context_length=config.context_length)
    return FileTokenizer(build_tokenizer(config, folder))


def _vocabulary(
    model_name: str, cache_dir: str | Path | None
) -> tuple[TokenizerConfig, Path | None]:
    scheme, _, rest = model_name.partition(":")
    places = {"hf-hub": f"hf:{rest}", "local-dir": Path(rest)}
    wanted = places.get(scheme)
    if not model_name:
        return TokenizerConfig(kind="clip_bpe", context_length=77), None
    if wanted is None:
        rows = names.rows_of(model_name)
        if rows[0].tokenizer.file == "clip":
            return rows[0].tokenizer, None
        cache = None if cache_dir is None else Path(cache_dir)
        row = next((row for row in rows if zoo.find(row, cache=cache)), rows[0])
        folder = zoo.fetch_vocabulary(row, cache=cache)
        if folder is not None:
            return row.tokenizer, folder
        wanted = row.name  # the file of weights holds its vocabulary
    checkpoint = zoo.open_model(wanted, cache_dir=cache_dir)
    return checkpoint.tokenizer, checkpoint.folder
