"""From a run's config to its loss: which one, over which ranks, with what counted as a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from diptych.config import CLIPConfig
from diptych.errors import ConfigError
from diptych.model import Features
from diptych.train.config import LossConfig
from diptych.train.streamed import distillation_loss, sigmoid_loss, softmax_loss

__all__ = ["build_loss"]

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def build_loss(cfg: LossConfig, clip: CLIPConfig) -> Callable[[Tensor | None, Any], Loss]:
    """A function of (groups [n], the teacher's `Features` or None) that gives the step's loss.

    The loss takes image features, text features, log scale and bias, all of this rank.

    Raises:
        ConfigError: sigmoid for a model without `logit_bias`, or softmax for one with it.
    """
    kind = clip.loss if cfg.kind == "auto" else cfg.kind
    if kind != clip.loss:
        raise ConfigError(
            f"loss.kind={kind!r}, but the model was made for {clip.loss!r}: "
            "its logit_bias would be missing or never trained. Leave loss.kind=auto."
        )
    if cfg.teacher is not None and kind == "sigmoid":
        raise ConfigError("distillation is a softmax loss; this model is trained with sigmoid")
    how: dict[str, Any] = {"precision": cfg.precision}

    def bind(groups: Tensor | None, teacher: Features | None) -> Loss:
        if not cfg.groups:
            groups = None

        def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
            if bias is not None:
                return sigmoid_loss(image, text, scale.exp(), bias, groups=groups, **how)
            if teacher is None:
                return softmax_loss(image, text, scale.exp(), groups=groups, **how)
            told = (teacher.image_features, teacher.text_features, teacher.logit_scale.exp())
            value = distillation_loss(image, text, scale.exp(), *told, **how)
            if cfg.teacher_weight < 1:
                plain = softmax_loss(image, text, scale.exp(), groups=groups, **how)
                value = cfg.teacher_weight * value + (1 - cfg.teacher_weight) * plain
            return value

        return loss

    return bind
