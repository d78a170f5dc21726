"""What ranks tell: retrieval with several captions an image, zero-shot accuracy, and an interval.

- A rank is 1 + the number of wrong answers that score at least as well: a tie counts against the
  model, so a model whose vectors are all the same finds nothing. Peers take the first of equals,
  which is the right one wherever the right one stands first.
- R@k (Karpathy and Fei-Fei, arXiv 1412.2306): from an image, whether any of its captions is among
  the first k; from a text, whether its image is.
- A score is a float64 product rounded once to float32. So it depends on neither the block nor the
  rank it was computed in, and two copies of a vector tie. Nothing of n x m numbers is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["retrieval", "wilson", "zero_shot"]

Reduce = Callable[[Tensor], Tensor]

_ROWS, _COLUMNS = 1024, 4096  # of a block of scores: 32 MB in float64
_KS = (1, 5, 10)


def retrieval(
    image_vectors: Float[Tensor, "n e"],
    text_vectors: Float[Tensor, "m e"],
    image_of_text: Int[Tensor, " m"],
    *,
    rank: int = 0,
    world: int = 1,
    reduce: Reduce | None = None,
) -> dict[str, float]:
    """R@1, R@5, R@10 and the mean and median rank, from images to texts and back.

    Args:
        image_vectors: unit rows, on any device. An image without a caption only stands in the way.
        text_vectors: unit rows.
        image_of_text: the row of each text's image.
        rank, world: this process compares its share of the images; all hold all vectors.
        reduce: the sum of an int64 tensor over all ranks; needed where `world` is above 1. The
            counts are whole numbers, so every rank returns what one process would.

    Returns:
        image_to_text_r1, _r5, _r10 (shares in [0, 1]), image_to_text_mean_rank, _median_rank; the
        same for text_to_image; num_images (those with a caption) and num_texts.

    Raises:
        DataError: no texts, a number that is not finite, or an image that does not exist.
    """
    n, m = len(image_vectors), len(text_vectors)
    if not m or len(image_of_text) != m or image_of_text.min() < 0 or image_of_text.max() >= n:
        raise DataError(
            f"retrieval: {n} images, {m} texts and {len(image_of_text)} rows of images that name "
            "others: give each text the row of its image, from 0 on"
        )
    images, texts = _wide(image_vectors, "image"), _wide(text_vectors, "text")
    own = image_of_text.to(texts.device, torch.int64)
    right = torch.cat(
        [_scores(images[own[i : i + _ROWS]], texts[i : i + _ROWS]) for i in range(0, m, _ROWS)]
    )
    best = right.new_full((n,), -math.inf).scatter_reduce_(0, own, right, "amax")
    better = _count_better(images, texts, own, right, best, _share(n, rank, world))
    ranks = 1 + (reduce(better) if reduce is not None else better)
    captioned = torch.bincount(own, minlength=n) > 0
    found = _summary("image_to_text", ranks[:n][captioned])
    found |= _summary("text_to_image", ranks[n:])
    return found | {"num_images": int(captioned.sum()), "num_texts": m}


def zero_shot(
    image_vectors: Float[Tensor, "n e"],
    labels: Int[Tensor, " n"],
    classifier: Float[Tensor, "c e"],
    *,
    rank: int = 0,
    world: int = 1,
    reduce: Reduce | None = None,
) -> dict[str, float]:
    """Accuracy of the nearest class vector; `rank`, `world` and `reduce` as for `retrieval`.

    Args:
        image_vectors: unit rows.
        labels: the right class of each image.
        classifier: unit rows, one a class.

    Returns:
        top1, top5 (of all images, in [0, 1]), mean_per_class (of top1, over the classes that occur)
        and num_images.

    Raises:
        DataError: no images, a number that is not finite, or a label that is no class.
    """
    n, c = len(image_vectors), len(classifier)
    if not n or len(labels) != n or labels.min() < 0 or labels.max() >= c:
        raise DataError(
            f"zero_shot: {n} images, {len(labels)} labels, {c} classes: give each image one label "
            f"in 0..{c - 1}"
        )
    images, classes = _wide(image_vectors, "image"), _wide(classifier, "class")
    labels = labels.to(images.device, torch.int64)
    ranks = labels.new_zeros(n)
    share = _share(n, rank, world)
    for start in range(share.start, share.stop, _ROWS):
        rows = slice(start, min(start + _ROWS, share.stop))
        scores = (images[rows] @ classes.T).float()
        ranks[rows] = (scores >= scores.gather(1, labels[rows, None])).sum(1)  # itself included
    if reduce is not None:
        ranks = reduce(ranks)
    num = torch.bincount(labels, minlength=c).double()
    hits = torch.bincount(labels[ranks == 1], minlength=c).double()
    return {
        "top1": _fraction(ranks <= 1),
        "top5": _fraction(ranks <= 5),
        "mean_per_class": float((hits / num)[num > 0].mean()),
        "num_images": n,
    }


def wilson(share: float, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share of n independent trials (JASA 22, 1927); 95 % by default.

    Captions of one image are not independent: for text_to_image it is too narrow where an image
    has several.
    """
    if not n:
        return 0.0, 1.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _wide(vectors: Tensor, what: str) -> Tensor:
    vectors = vectors.detach()
    if vectors.device.type == "mps":  # has no float64
        vectors = vectors.cpu()
    vectors = vectors.double()
    if bad := int((~vectors.isfinite().all(1)).sum()):
        raise DataError(
            f"{bad} of {len(vectors)} {what} vectors hold a number that is not finite: the weights "
            "or an input are broken. Go back to a checkpoint whose loss was finite."
        )
    return vectors


def _scores(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1).float()


def _share(n: int, rank: int, world: int) -> range:
    return range(n * rank // world, n * (rank + 1) // world)


def _count_better(
    images: Tensor, texts: Tensor, own: Tensor, right: Tensor, best: Tensor, share: range
) -> Tensor:
    """int64 [n + m]: wrong texts at least as good for each image of `share`, then wrong images of
    `share` for each text."""
    n, m = len(images), len(texts)
    better = own.new_zeros(n + m)
    for row in range(share.start, share.stop, _ROWS):
        rows = slice(row, min(row + _ROWS, share.stop))
        for column in range(0, m, _COLUMNS):
            columns = slice(column, min(column + _COLUMNS, m))
            scores = (images[rows] @ texts[columns].T).float()
            here = own[columns] - row
            pairs = ((here >= 0) & (here < len(scores))).nonzero()[:, 0]
            scores[here[pairs], pairs] = -math.inf  # right ones are not in the way
            better[rows] += (scores >= best[rows, None]).sum(1)
            better[n + column : n + columns.stop] += (scores >= right[columns]).sum(0)
    return better


def _summary(way: str, ranks: Tensor) -> dict[str, float]:
    found = {f"{way}_r{k}": _fraction(ranks <= k) for k in _KS}
    ordered, middle = ranks.sort().values, len(ranks) // 2
    median = ordered[middle] if len(ranks) % 2 else ordered[middle - 1 : middle + 1].double().mean()
    found[f"{way}_mean_rank"] = int(ranks.sum()) / len(ranks)
    found[f"{way}_median_rank"] = float(median)
    return found


def _fraction(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)
