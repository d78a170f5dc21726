"""From a config to the peers' towers, and from our tensors to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from diptych import towers
from diptych.compat.parts import (
    ModifiedResNet,
    TextTransformer,
    VisionTransformer,
    adopt,
    text_features,
)
from diptych.compat.trunk import TimmModel
from diptych.config import CLIPConfig, EfficientNetConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.zoo import keymaps
from diptych.zoo.keymaps import Rule, restore

__all__ = ["Towers", "assemble", "convert", "encode_text", "fill", "lay_out", "random_weights"]

M = TypeVar("M", bound=nn.Module)
Rules = tuple[Rule, ...] | None  # None: a tower of ours, whose tensors keep our names


class Towers(NamedTuple):
    """Two towers without values, and how the peer names their tensors.

    custom: the text tower stands under `.text` (open_clip's `CustomTextCLIP`); else its parts are
        the model's own (both peers' `CLIP`).
    """

    visual: nn.Module
    text: nn.Module
    custom: bool
    visual_rules: Rules
    text_rules: Rules


def lay_out(config: CLIPConfig, *, batch_first: bool, custom: bool = False) -> Towers:
    """The towers of a config on the meta device: the peers' where they have such, else ours.

    custom: put the text under `.text` also where the peer would not.
    """
    with towers.on_meta():
        visual, visual_rules = _visual(config.visual, config.embed_dim, batch_first)
        text, standard = _text(config.text, config.embed_dim, batch_first)
    native = isinstance(visual, VisionTransformer | ModifiedResNet) and standard
    custom = custom or not native
    text_rules: Rules = None
    if isinstance(text, TextTransformer):
        text_rules = keymaps.CUSTOM_TEXT if custom else keymaps.OPENAI_TEXT
        if config.text.proj == "linear_bias":
            text_rules = keymaps.CUSTOM_TEXT_LINEAR
    return Towers(visual, text, custom, visual_rules, text_rules)


def _visual(cfg: Any, embed_dim: int, batch_first: bool) -> tuple[nn.Module, Rules]:
    match cfg:
        case ResNetConfig():
            return ModifiedResNet(cfg, embed_dim), keymaps.OPENAI_RN
        case ViTConfig(pool="map", class_token=False, pre_norm=False, norm_after_pool=False):
            return TimmModel(cfg, embed_dim), keymaps.TIMM_TRUNK
        case ViTConfig(pool="class" | "mean", class_token=True, patch_bias=False, proj="linear"):
            tower = VisionTransformer(cfg, embed_dim, batch_first=batch_first)
            return tower, keymaps.OPENAI_VIT
    tower = towers.build(cfg, embed_dim)
    if isinstance(cfg, ViTConfig | EfficientNetConfig):
        tower.input_resolution = cfg.image_size[0]  # pyrefly: ignore (the peers' attributes)
        tower.image_size, tower.output_dim = cfg.image_size, embed_dim  # pyrefly: ignore
    return tower, None


def _text(cfg: Any, embed_dim: int, batch_first: bool) -> tuple[nn.Module, bool]:
    match cfg:
        case TextConfig(pad_id=None):
            tower = TextTransformer(cfg, embed_dim, batch_first=batch_first)
            return tower, cfg.proj != "linear_bias"
    return towers.build(cfg, embed_dim), False


def assemble(model: Any, config: CLIPConfig, plan: Towers) -> None:
    """Give `model`, a fresh module of either peer, its towers and scalars, without values."""
    model.visual, model.custom = plan.visual, plan.custom
    if plan.custom:
        model.text = plan.text
        model.context_length = config.text.context_length
        model.vocab_size = config.text.vocab_size
    else:
        adopt(model, plan.text)
    model.logit_scale = nn.Parameter(torch.empty((), device="meta"))
    bias = nn.Parameter(torch.empty((), device="meta")) if config.loss == "sigmoid" else None
    model.register_parameter("logit_bias", bias)


def encode_text(model: Any, text: Tensor) -> Tensor:
    """[n e] of ids [n s], not normalised, of a model that `assemble` made."""
    return model.text(text) if model.custom else text_features(model, text, model.text_cfg)


def fill(model: M, state_dict: Mapping[str, Tensor], plan: Towers) -> M:
    """`model`, laid out by `plan`, with the tensors of `state_dict` (our names) in float32.

    Raises:
        CheckpointError: a tensor for which the peer has no place.
    """
    sides: dict[str, dict[str, Tensor]] = {"visual": {}, "text": {}, "": {}}
    for key, tensor in state_dict.items():
        side = key.split(".")[0]
        value = tensor.float() if tensor.is_floating_point() else tensor
        sides[side if side in sides else ""][key] = value
    tensors = sides[""]  # the scalars, which have one name everywhere
    for side, rules in (("visual", plan.visual_rules), ("text", plan.text_rules)):
        tensors |= sides[side] if rules is None else restore(sides[side], rules)
    model.load_state_dict(tensors, assign=True)
    return model


def random_weights(config: CLIPConfig) -> dict[str, Tensor]:
    """The original starting values, under our names, drawn from torch's generator."""
    return towers.build(config).state_dict()


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Matrices and kernels of `model` to `dtype`, in place; norms and embeddings stay."""
    whole = nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention
    for part in model.modules():
        for key, parameter in part.named_parameters(recurse=False):
            if isinstance(part, whole) or key in ("proj", "text_projection"):
                parameter.data = parameter.data.to(dtype)
