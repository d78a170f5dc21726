"""open_clip's `CLIP` and `CustomTextCLIP`: two towers, the peer's methods and tensor names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.compat.parts import (
    ModifiedResNet,
    TextTransformer,
    VisionTransformer,
    freeze,
    lock_text,
)
from diptych.compat.trunk import TimmModel
from diptych.compat.weights import Towers, assemble, convert, encode_text
from diptych.config import CLIPConfig
from diptych.errors import ConfigError
from diptych.model.transformer import ACTIVATIONS, MLP

__all__ = [
    "CLIP",
    "CustomTextCLIP",
    "convert_weights_to_fp16",
    "convert_weights_to_lp",
    "exact_gelu_",
    "get_cast_dtype",
    "get_input_dtype",
]

_Visual = VisionTransformer | ModifiedResNet | TimmModel


class _Contrastive(nn.Module):
    """What the two classes share. The style guide's one level of inheritance is two here."""

    visual: Any
    text: Any
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def __init__(self, config: CLIPConfig, towers: Towers, *, output_dict: bool = False):
        super().__init__()
        self.output_dict = output_dict
        assemble(self, config, towers)
        if not towers.custom:
            self.text_pool_type, self.text_eos_id = config.text.pool, config.text.eos_id

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """[n e] of pixels [n 3 H W]; unit rows with `normalize`."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """[n e] of token ids [n s]; unit rows with `normalize`."""
        features = encode_text(self, text)
        return F.normalize(features, dim=-1) if normalize else features

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(image_logits [n m], text_logits [m n]): scaled cosines, and the bias if there is one."""
        vectors = self.encode_image(image, normalize=True), self.encode_text(text, normalize=True)
        logits = self.logit_scale.exp() * vectors[0] @ vectors[1].T
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Unit features (None for what is not given), exp(logit_scale), and the bias if any."""
        out: dict[str, Tensor | None] = {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            out["logit_bias"] = self.logit_bias
        return out if self.output_dict else tuple(out.values())

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the image tower but for its last groups (LiT, arXiv 2111.07991)."""
        if isinstance(self.visual, _Visual):
            self.visual.lock(unlocked_groups, freeze_bn_stats)
        else:
            _lock_whole(self.visual, unlocked_groups)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, in both towers."""
        if isinstance(self.visual, _Visual):
            self.visual.set_grad_checkpointing(enable)
        else:
            self.visual.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters of more than one axis that should not decay."""
        names = self.visual.no_weight_decay() if isinstance(self.visual, _Visual) else set()
        return {f"visual.{name}" for name in names}


def _lock_whole(tower: nn.Module, unlocked: int) -> None:
    if unlocked:
        raise ConfigError(
            f"a {type(tower).__name__} is locked as a whole, got {unlocked} groups to leave "
            "unlocked. Lock it with 0, then set requires_grad on the blocks to train."
        )
    freeze([[tower]], 0)


class CLIP(_Contrastive):
    """The text tower's parts stand at the top level: `transformer`, `token_embedding`, ..."""

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last groups; norms are treated as other weights."""
        assert freeze_layer_norm, "norms cannot be left out, here and in open_clip"
        lock_text(self, unlocked_layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.transformer.grad_checkpointing = enable  # pyrefly: ignore (a Transformer)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"positional_embedding"}


class CustomTextCLIP(_Contrastive):
    """The text tower stands under `.text`. A tower that open_clip has not is Diptych's own."""

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """As `CLIP.lock_text_tower`."""
        assert freeze_layer_norm, "norms cannot be left out, here and in open_clip"
        if isinstance(self.text, TextTransformer):
            lock_text(self.text, unlocked_layers)
        else:
            _lock_whole(self.text, unlocked_layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        if isinstance(self.text, TextTransformer):
            self.text.set_grad_checkpointing(enable)
        else:
            self.text.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        names = self.text.no_weight_decay() if isinstance(self.text, TextTransformer) else set()
        return super().no_weight_decay() | {f"text.{name}" for name in names}


def exact_gelu_(model: nn.Module) -> nn.Module:
    """Turn every tanh GELU of `model` into the exact one, in place; returns the model.

    SigLIP and CLIPA were trained with the tanh form, which this package computes; open_clip
    computes the exact one. This gives open_clip's numbers, and is farther from the training.

    Raises:
        ConfigError: a tower that open_clip has not, whose activation is no module.
    """
    for part in model.modules():
        if isinstance(part, MLP) and part.act is ACTIVATIONS["gelu_tanh"]:
            raise ConfigError("exact_gelu_: open_clip has no such tower to agree with.")
        if isinstance(part, nn.GELU):
            part.approximate = "none"
    return model


def convert_weights_to_lp(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Matrices and kernels to `dtype`, in place; norms and embeddings stay in float32."""
    convert(model, dtype)


convert_weights_to_fp16 = convert_weights_to_lp


def get_cast_dtype(precision: str) -> torch.dtype | None:
    """What a model in "bf16" or "fp16" computes in; None otherwise."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def get_input_dtype(precision: str) -> torch.dtype | None:
    """What pixels should be cast to; None: float32."""
    return get_cast_dtype(precision.removeprefix("pure_"))
