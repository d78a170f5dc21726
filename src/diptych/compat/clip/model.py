"""`clip.model` of openai/CLIP: its `CLIP` module, `build_model` and `convert_weights`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diptych.compat.parts import (
    LayerNorm,
    ModifiedResNet,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from diptych.compat.weights import Towers, assemble, convert, encode_text, lay_out
from diptych.config import CLIPConfig
from diptych.errors import CheckpointError
from diptych.zoo import openai
from diptych.zoo.tensors import Tensors

__all__ = [
    "CLIP",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]


class CLIP(nn.Module):
    """OpenAI's module tree; its blocks run on [s n d]. `weights.fill` gives it values.

    A model that OpenAI's code could not hold (SigLIP, BERT) has its text tower under `.text`, and
    `forward` adds its `logit_bias`, if it has one.
    """

    visual: Any
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def __init__(self, config: CLIPConfig, towers: Towers):
        super().__init__()
        assemble(self, config, towers)

    @property
    def dtype(self) -> torch.dtype:
        """That of the first convolution, as in OpenAI's code."""
        return next(m.weight.dtype for m in self.visual.modules() if isinstance(m, nn.Conv2d))

    def encode_image(self, image: Tensor) -> Tensor:
        """[n e] of pixels [n 3 H W]; not normalised."""
        return self.visual(image.to(self.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        """[n e] of token ids [n s]; not normalised."""
        return encode_text(self, text)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_per_image [n m], logits_per_text [m n]): exp(logit_scale) * cosine."""
        image_features, text_features = self.encode_image(image), self.encode_text(text)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.t()


def build_model(state_dict: Mapping[str, Any]) -> CLIP:
    """The model of one of OpenAI's nine files, in float32 and evaluation mode.

    state_dict: OpenAI's keys; its config is inferred from their shapes.

    Raises:
        CheckpointError: shapes or keys of no such model.
    """
    keys = {key: value for key, value in state_dict.items() if key not in openai.SCALARS}
    config = openai.infer(_with_scalars(keys), source="state_dict")
    model = CLIP(config, lay_out(config, batch_first=False))
    own = {key: value.to(torch.float32, copy=True) for key, value in keys.items()}
    model.load_state_dict(own, assign=True)
    return model.eval()


def _with_scalars(keys: dict[str, Tensor]) -> Tensors:
    """With the three numbers that OpenAI's archives carry and a saved `state_dict()` does not."""
    try:
        if "visual.proj" in keys:
            patches, stride = (
                keys["visual.positional_embedding"],
                keys["visual.conv1.weight"].shape[-1],
            )
        else:
            patches, stride = keys["visual.attnpool.positional_embedding"], 32
        resolution = stride * math.isqrt(patches.shape[0] - 1)
        numbers = (
            resolution,
            keys["positional_embedding"].shape[0],
            keys["token_embedding.weight"].shape[0],
        )
    except KeyError as error:
        raise CheckpointError(
            f"state_dict: no key {error}. build_model takes the state dict of one of OpenAI's "
            "models; for any other file: clip.load(path)."
        ) from None
    values = dict(zip(openai.SCALARS, numbers, strict=True))
    return Tensors(kind="pickle", state_dict=keys, values=values)


def convert_weights(model: nn.Module) -> None:
    """Matrices and kernels to fp16, in place; norms and embeddings stay in float32."""
    convert(model, torch.float16)
