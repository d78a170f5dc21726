"""CLIP: a visual and a text tower, a learned scale, and nothing else.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020; the sigmoid variant with a bias is SigLIP, arXiv 2303.15343.

- The towers are given, not made here: any pair that keeps the tower contract will do.
- `forward` returns unit features and the raw parameters; no n x n matrix is made on the way, so a
  distributed loss can stay linear in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Features(NamedTuple):
    """What a loss needs: unit rows and the two learned scalars."""

    image_features: Float[Tensor, "n e"]
    text_features: Float[Tensor, "m e"]
    logit_scale: Float[Tensor, ""]  # the parameter itself: logits use its exponential
    logit_bias: Float[Tensor, ""] | None


class CLIP(nn.Module):
    """Two towers on one hinge.

    Args:
        visual: image batch -> [n e], not normalised.
        text: token ids [n s] -> [n e], not normalised.
        logit_scale: starting value of the log scale (paper, section 2.5: ln(1 / 0.07)).
        logit_bias: starting value of SigLIP's bias; None for softmax models.
    """

    def __init__(
        self,
        visual: nn.Module,
        text: nn.Module,
        logit_scale: float,
        logit_bias: float | None = None,
    ):
        super().__init__()
        self.visual = visual
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias))
        self.register_parameter("logit_bias", bias)

    def encode_image(self, image) -> Float[Tensor, "n e"]:
        """Unit rows for an image batch (pixels [n 3 H W] or `Patches`)."""
        return F.normalize(self.visual(image), dim=-1)

    def encode_text(self, ids: Int[Tensor, "n s"]) -> Float[Tensor, "n e"]:
        """Unit rows for token ids."""
        return F.normalize(self.text(ids), dim=-1)

    def forward(self, image, text: Int[Tensor, "m s"]) -> Features:
        """Unit features of both sides, and the scalars (not yet exponentiated)."""
        return Features(
            self.encode_image(image), self.encode_text(text), self.logit_scale, self.logit_bias
        )

    def logits(
        self, image_features: Float[Tensor, "n e"], text_features: Float[Tensor, "m e"]
    ) -> Float[Tensor, "n m"]:
        """exp(logit_scale) * cosine, plus the bias if there is one. Features are unit rows."""
        logits = self.logit_scale.exp() * image_features @ text_features.T
        return logits if self.logit_bias is None else logits + self.logit_bias
