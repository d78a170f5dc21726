"""The geometry of the space: alignment, uniformity, the gap between images and texts.

Wang and Isola, arXiv 2005.10242 (alignment, uniformity); Liang et al., arXiv 2203.02053 (gap).

- All in float64 and in memory that grows with the number of vectors, not its square.
- Uniformity is over all pairs of up to 8,192 vectors; of more, so many are drawn with a fixed seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["alignment", "geometry", "modality_gap", "pair_cosine", "uniformity"]

_MOST = 8192  # vectors, of which all pairs are looked at: 34 million
_ROWS = 512  # at once: 32 MB


def alignment(a: Float[Tensor, "n e"], b: Float[Tensor, "n e"]) -> float:
    """Mean squared distance of the pairs (a_i, b_i); of unit rows in [0, 4], smaller is better."""
    return float((_wide(a) - _wide(b)).square().sum(1).mean())


def uniformity(vectors: Float[Tensor, "n e"], *, t: float = 2.0) -> float:
    """ln of the mean of exp(-t |x - y|^2) over pairs of different rows; smaller is more even.

    0 where all are the same; a large set spread evenly over the sphere of many dimensions comes
    near -2 t. NaN for fewer than two rows.
    """
    if len(vectors) > _MOST:
        drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:_MOST]
        vectors = vectors[drawn.to(vectors.device)]
    x, n = _wide(vectors), len(vectors)
    if n < 2:
        return math.nan
    total, squares = x.new_zeros(()), x.square().sum(1)
    for start in range(0, n, _ROWS):
        rows, rest = x[start : start + _ROWS], x[start:]
        distances = squares[start : start + _ROWS, None] + squares[start:] - 2 * rows @ rest.T
        total += (-t * distances.clamp(min=0)).exp().triu(1).sum()
    return float((total / (n * (n - 1) / 2)).log())


def modality_gap(a: Float[Tensor, "n e"], b: Float[Tensor, "m e"]) -> float:
    """Distance of the two centroids; of unit rows in [0, 2]."""
    return float((_wide(a).mean(0) - _wide(b).mean(0)).norm())


def pair_cosine(a: Float[Tensor, "n e"], b: Float[Tensor, "n e"]) -> tuple[float, float]:
    """Mean and standard deviation (over n) of the cosines of the pairs; rows are unit vectors."""
    cosines = (_wide(a) * _wide(b)).sum(1)
    return float(cosines.mean()), float(cosines.std(correction=0))


def geometry(
    image_vectors: Float[Tensor, "n e"],
    text_vectors: Float[Tensor, "m e"],
    image_of_text: Int[Tensor, " m"],
) -> dict[str, float]:
    """All of the above. Pairs are each text and its image; rows are unit vectors.

    Returns:
        alignment, uniformity_image, uniformity_text, modality_gap, pair_cosine_mean,
        pair_cosine_std.
    """
    images = image_vectors[image_of_text]
    mean, std = pair_cosine(images, text_vectors)
    return {
        "alignment": alignment(images, text_vectors),
        "uniformity_image": uniformity(image_vectors),
        "uniformity_text": uniformity(text_vectors),
        "modality_gap": modality_gap(image_vectors, text_vectors),
        "pair_cosine_mean": mean,
        "pair_cosine_std": std,
    }


def _wide(vectors: Tensor) -> Tensor:
    vectors = vectors.detach()
    return (vectors.cpu() if vectors.device.type == "mps" else vectors).double()
