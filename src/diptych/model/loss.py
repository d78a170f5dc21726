"""The losses that bring a picture and its caption together, each as its paper writes it.

n pairs, k hard negatives, e embed_dim, v words. Rows of features are unit vectors, `scale` is
exp(logit_scale). These make the n x n logits, to be read and to be checked against;
`diptych.train.streamed` gives the same numbers without them, over any number of processes.

- `groups` [n]: pairs with equal numbers are positives of each other, so that a caption that stands
  twice in a batch is not its own negative.
- `negatives` [k e]: texts that belong to no picture: columns for every picture, no rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

    Scalar = Float[Tensor, ""]
    Rows = Float[Tensor, "n e"]
    Groups = Int[Tensor, " n"] | None
    Negatives = Float[Tensor, "k e"] | None


def softmax_loss(
    image: Rows, text: Rows, scale: Scalar, *, groups: Groups = None, negatives: Negatives = None
) -> Scalar:
    """CLIP (arXiv 2103.00020, figure 3): mean of the cross-entropies of rows and of columns.

    With groups the target is uniform over the group (UniCL, arXiv 2204.03610).
    """
    target = _positives(len(image), groups, image)
    target = target / target.sum(1, keepdim=True)
    return _cross_entropy(image, text, scale, target, target, negatives)


def sigmoid_loss(
    image: Rows,
    text: Rows,
    scale: Scalar,
    bias: Scalar,
    *,
    groups: Groups = None,
    negatives: Negatives = None,
) -> Scalar:
    """SigLIP (arXiv 2303.15343, section 3.2): each pair alone is right or wrong; sum / n."""
    sign = 2 * _positives(len(image), groups, image) - 1
    loss = -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum()
    if negatives is not None:
        loss = loss - F.logsigmoid(-(scale * image @ negatives.T + bias)).sum()
    return loss / len(image)


def soft_target_loss(
    image: Rows, text: Rows, scale: Scalar, targets: Float[Tensor, "n n"]
) -> Scalar:
    """`softmax_loss` towards any `targets` >= 0, which are made to sum to 1 along each axis."""
    rows, columns = (targets / targets.sum(dim, keepdim=True) for dim in (1, 0))
    return _cross_entropy(image, text, scale, rows, columns)


def distillation_loss(
    image: Rows,
    text: Rows,
    scale: Scalar,
    teacher_image: Float[Tensor, "n t"],
    teacher_text: Float[Tensor, "n t"],
    teacher_scale: Scalar,
) -> Scalar:
    """CLIP-KD (arXiv 2307.12732, relational loss), plus the teacher's constant entropy."""
    logits = teacher_scale * teacher_image @ teacher_text.T
    return _cross_entropy(image, text, scale, logits.softmax(1), logits.softmax(0))


def hinge_rank_loss(
    image: Rows, text: Float[Tensor, "m e"], labels: Int[Tensor, " n"], *, margin: float = 0.1
) -> Scalar:
    """DeViSE (NIPS 2013, equation 1): every wrong label stays `margin` below the right one."""
    cosine = image @ text.T
    right = cosine.gather(1, labels[:, None])
    wrong = torch.ones_like(cosine).scatter(1, labels[:, None], 0)
    return ((margin - right + cosine).relu() * wrong).sum() / len(image)


def nt_xent_loss(image: Rows, text: Rows, scale: Scalar, *, weight: float = 0.75) -> Scalar:
    """ConVIRT (arXiv 2010.00747, equations 2 to 4): `weight` is lambda, of images to texts."""
    logits, pair = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return weight * F.cross_entropy(logits, pair) + (1 - weight) * F.cross_entropy(logits.T, pair)


def bag_of_words_loss(logits: Float[Tensor, "n v"], words: Shaped[Tensor, "n v"]) -> Scalar:
    """Joulin et al. (arXiv 1511.02251): a softmax over the vocabulary.

    `words` is 1 for each word of the caption, else 0; summed over words, mean over images.
    """
    return -(words * logits.log_softmax(1)).sum() / len(logits)


def _positives(n: int, groups: Tensor | None, like: Tensor) -> Tensor:
    """[n n], 1 where image and text belong together, else 0."""
    groups = torch.arange(n, device=like.device) if groups is None else groups
    return (groups[:, None] == groups).to(like.dtype)


def _cross_entropy(image, text, scale, rows, columns, negatives=None) -> Tensor:
    """Mean of both directions: `rows` sums to 1 along dimension 1, `columns` along 0."""
    every = text if negatives is None else torch.cat([text, negatives])
    logits, n = scale * image @ every.T, len(text)  # n (n k)
    by_row = rows * logits.log_softmax(1)[:, :n]
    by_column = columns * logits[:, :n].log_softmax(0)
    return -(by_row + by_column).sum() / (2 * n)
