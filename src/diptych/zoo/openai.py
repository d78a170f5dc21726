"""OpenAI's layout: the only one whose config may be inferred from shapes.

Source: openai/CLIP `clip/model.py`, `build_model`. Heads are width // 64 and the activation is
QuickGELU in these nine files, and in these alone; a file counts as one of them by its key names and
by the three scalars that OpenAI's archives carry.
"""

from typing import Any

import torch
from torch import Tensor

from diptych.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo import keymaps
from diptych.zoo.keymaps import restore
from diptych.zoo.settings import differences
from diptych.zoo.tensors import Tensors

__all__ = ["SCALARS", "infer", "recognise", "state_dict_for"]

SCALARS = ("input_resolution", "context_length", "vocab_size")


def recognise(tensors: Tensors) -> bool:
    """Whether these are OpenAI's key names with the three scalars."""
    known = {**tensors.values, **tensors.state_dict}
    return all(name in known for name in (*SCALARS, "visual.conv1.weight", "text_projection"))


def infer(tensors: Tensors, *, source: str) -> CLIPConfig:
    """The config of a file that `recognise` took.

    Raises:
        CheckpointError: shapes that no model of this layout has, or that deny the scalars.
    """
    keys = tensors.state_dict
    try:
        config = _infer(keys)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source}: OpenAI's layout, but incomplete ({error}).") from None
    said = {name: int({**tensors.values, **keys}[name]) for name in SCALARS}
    found = {
        "input_resolution": config.visual.image_size[0],
        "context_length": config.text.context_length,
        "vocab_size": config.text.vocab_size,
    }
    if said != found:
        raise CheckpointError(f"{source}: says {said}, its shapes are {found}.")
    return config


def _infer(keys: dict[str, Tensor]) -> CLIPConfig:
    context_length, width = keys["positional_embedding"].shape
    embed_dim = keys["text_projection"].shape[1]
    text = TextConfig(
        context_length=context_length,
        vocab_size=keys["token_embedding.weight"].shape[0],
        width=width,
        layers=_depth(keys, "transformer.resblocks.", 2),
        heads=_heads(width),
        mlp_dim=4 * width,
        act="quick_gelu",
    )
    if "visual.proj" in keys:
        width, _, patch_size, _ = keys["visual.conv1.weight"].shape
        side = _side(keys["visual.positional_embedding"]) * patch_size
        visual: ViTConfig | ResNetConfig = ViTConfig(
            image_size=(side, side),
            patch_size=patch_size,
            width=width,
            layers=_depth(keys, "visual.transformer.resblocks.", 3),
            heads=_heads(width),
            mlp_dim=4 * width,
            act="quick_gelu",
        )
    else:
        width = keys["visual.layer1.0.conv1.weight"].shape[0]
        side = _side(keys["visual.attnpool.positional_embedding"]) * 32
        stages: Any = tuple(_depth(keys, f"visual.layer{i}.", 2) for i in (1, 2, 3, 4))
        visual = ResNetConfig(
            image_size=(side, side), layers=stages, width=width, heads=_heads(32 * width)
        )
    return CLIPConfig(embed_dim=embed_dim, visual=visual, text=text)


def _side(positions: Tensor) -> int:
    return round((positions.shape[0] - 1) ** 0.5)


def _depth(keys: dict[str, Tensor], prefix: str, place: int) -> int:
    found = {key.split(".")[place] for key in keys if key.startswith(prefix)}
    if not found:
        raise KeyError(prefix)
    return len(found)


def state_dict_for(
    state_dict: dict[str, Tensor], config: CLIPConfig, preprocess: PreprocessConfig
) -> dict[str, Tensor]:
    """The tensors as OpenAI's `build_model` takes them, the three scalars included.

    Raises:
        ConfigError: a field that this layout cannot state; names each.
    """
    visual, text = config.visual, config.text
    if isinstance(visual, ViTConfig | ResNetConfig) and isinstance(text, TextConfig):
        resnet = isinstance(visual, ResNetConfig)
        # What a reader will infer; whatever differs cannot be stated.
        implied: CLIPConfig | None = _implied(visual, text, config.embed_dim)
        wrong = differences(config, implied)
        default = PreprocessConfig(size=visual.image_size)
        wrong += [f"preprocess.{x}" for x in differences(preprocess, default)]
    else:
        resnet, wrong = False, [f"a {type(visual).__name__} and a {type(text).__name__}"]
    if wrong:
        raise ConfigError(
            f"OpenAI's layout cannot state {'; '.join(wrong[:10])}. Save with format='diptych'."
        )
    out = restore(state_dict, keymaps.OPENAI_RESNET if resnet else keymaps.OPENAI)
    numbers = (visual.image_size[0], text.context_length, text.vocab_size)
    return out | {k: torch.tensor(n) for k, n in zip(SCALARS, numbers, strict=True)}


def _implied(visual: ViTConfig | ResNetConfig, text: TextConfig, embed_dim: int) -> CLIPConfig:
    """The config with every field that shapes do not tell at OpenAI's value."""
    implied_text = TextConfig(
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        width=text.width,
        layers=text.layers,
        heads=_heads(text.width),
        mlp_dim=4 * text.width,
        act="quick_gelu",
    )
    side = visual.grid[0]
    if isinstance(visual, ResNetConfig):
        implied: ViTConfig | ResNetConfig = ResNetConfig(
            image_size=(32 * side, 32 * side),
            layers=visual.layers,
            width=visual.width,
            heads=_heads(32 * visual.width),
        )
    else:
        implied = ViTConfig(
            image_size=(side * visual.patch_size, side * visual.patch_size),
            patch_size=visual.patch_size,
            width=visual.width,
            layers=visual.layers,
            heads=_heads(visual.width),
            mlp_dim=4 * visual.width,
            act="quick_gelu",
        )
    return CLIPConfig(embed_dim=embed_dim, visual=implied, text=implied_text)


def _heads(width: int) -> int:
    return width // 64 if width % 64 == 0 else 1
