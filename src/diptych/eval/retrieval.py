"""What ranks tell: retrieval with several captions an image, of videos too; zero-shot accuracy.

- A rank is 1 + the number of wrong answers that score at least as well: a tie counts against the
  model, so a model whose vectors are all the same finds nothing. Peers take the first of equals,
  which is the right one wherever the right one stands first.
- R@k (Karpathy and Fei-Fei, arXiv 1412.2306): from an image, whether any of its captions is among
  the first k; from a text, whether its image is.
- A score is a float64 product rounded once to float32: it depends on neither the block nor the
  rank it was computed in, and two copies of a vector tie.
- Vectors may be memory-mapped; nothing of n x m numbers is held. 100,000 images and 500,000 texts
  are measured in benchmarks/results/retrieval_large.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import DataError
from diptych.eval.ranking import check_finite, on_host, stronger

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["mean_frames", "ranks", "retrieval", "zero_shot"]

Reduce = Callable[[Tensor], Tensor]

_ROWS = 1024  # images compared with all classes at once
_FRAMES = 65536  # averaged at once
_KS = (1, 5, 10)


def retrieval(
    image_vectors: Float[Tensor, "n e"] | Float[np.ndarray, "n e"],
    text_vectors: Float[Tensor, "m e"] | Float[np.ndarray, "m e"],
    image_of_text: Int[Tensor, " m"],
    *,
    rank: int = 0,
    world: int = 1,
    reduce: Reduce | None = None,
) -> dict[str, float]:
    """R@1, R@5, R@10, mean and median rank and mAP, from images to texts and back.

    mAP is the mean over queries of the average precision: the mean, over a query's right answers,
    of the share of right ones down to each of them. A text has one right answer: its average
    precision is 1 / rank.

    Args:
        image_vectors: unit rows of any float type, on any device or memory-mapped. An image
            without a caption only stands in the way.
        text_vectors: unit rows.
        image_of_text: the row of each text's image.
        rank, world: this process compares its share of the images; all hold all vectors.
        reduce: the sum of an int64 tensor over all ranks; needed where `world` is above 1. The
            counts are whole numbers, so every rank returns what one process would.

    Returns:
        image_to_text_r1, _r5, _r10 (shares in [0, 1]), image_to_text_mean_rank, _median_rank, _map;
        the same for text_to_image; num_images (those with a caption) and num_texts.

    Raises:
        DataError: no texts, a number that is not finite, or an image that does not exist.
    """
    n, m = len(image_vectors), len(text_vectors)
    own = _owners(image_of_text, n, m)
    before = stronger(image_vectors, text_vectors, own, _share(n, rank, world))
    if reduce is not None:
        device = text_vectors.device if isinstance(text_vectors, Tensor) else None
        before = reduce(torch.from_numpy(before).to(device)).cpu().numpy()
    first = _first(before[:m], own, n)
    found = _summary("image_to_text", first[first > 0])
    found["image_to_text_map"] = _mean_average_precision(before[:m], own)
    found |= _summary("text_to_image", 1 + before[m:])
    found["text_to_image_map"] = float((1 / (1 + before[m:])).mean())
    return found | {"num_images": int((first > 0).sum()), "num_texts": m}


def ranks(
    image_vectors: Float[Tensor, "n e"] | Float[np.ndarray, "n e"],
    text_vectors: Float[Tensor, "m e"] | Float[np.ndarray, "m e"],
    image_of_text: Int[Tensor, " m"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """The rank of the best caption of each image (0: it has none) and of the image of each text.

    Arguments and errors as for `retrieval`.
    """
    n, m = len(image_vectors), len(text_vectors)
    own = _owners(image_of_text, n, m)
    before = stronger(image_vectors, text_vectors, own, range(n))
    return torch.from_numpy(_first(before[:m], own, n)), torch.from_numpy(1 + before[m:])


def mean_frames(
    vectors: Float[Tensor, "f e"] | Float[np.ndarray, "f e"], owner: Int[Tensor, " f"]
) -> Float[Tensor, "v e"]:
    """One unit vector a video: the mean of its frames' unit vectors, normalised (float32).

    The mean pooling of CLIP4Clip (arXiv 2104.08860, section 3.3), for `retrieval` of videos.

    Args:
        vectors: unit rows, one a frame, also memory-mapped.
        owner: the video of each frame, from 0 on; frames may come in any order.

    Raises:
        DataError: a video without a frame, one whose frames cancel out, or a number that is not
            finite.
    """
    rows, own = on_host(vectors), torch.as_tensor(owner).cpu().long()
    if not len(rows) or len(own) != len(rows) or own.min() < 0:
        raise DataError(
            f"mean_frames: {len(rows)} frames and {len(own)} numbers of videos: give each frame "
            "the number of its video, from 0 on"
        )
    num = torch.bincount(own)
    if empty := (num == 0).nonzero()[:, 0].tolist():
        raise DataError(f"mean_frames: {len(empty)} videos have no frame; the first is {empty[0]}")
    total = torch.zeros(len(num), rows.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), _FRAMES):
        some = torch.from_numpy(rows[start : start + _FRAMES].astype(np.float64))
        total.index_add_(0, own[start : start + _FRAMES], some)
    lengths = total.norm(dim=1) / num
    if bad := (~(lengths > 1e-6)).nonzero()[:, 0].tolist():
        raise DataError(
            f"mean_frames: the frames of {len(bad)} videos have no mean direction (a number that "
            f"is not finite, or they cancel out); the first is {bad[0]}"
        )
    return F.normalize(total, dim=1).float()


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


def _wide(vectors: Tensor, what: str) -> Tensor:
    vectors = vectors.detach()
    if vectors.device.type == "mps":  # has no float64
        vectors = vectors.cpu()
    vectors = vectors.double()
    check_finite(int((~vectors.isfinite().all(1)).sum()), len(vectors), what)
    return vectors


def _share(n: int, rank: int, world: int) -> range:
    return range(n * rank // world, n * (rank + 1) // world)


def _owners(image_of_text: Tensor | np.ndarray, n: int, m: int) -> Int[np.ndarray, " m"]:
    own = np.asarray(torch.as_tensor(image_of_text).cpu(), np.int64)
    if not m or own.shape != (m,) or own.min() < 0 or own.max() >= n:
        raise DataError(
            f"retrieval: {n} images, {m} texts and {len(own)} rows of images that name "
            "others: give each text the row of its image, from 0 on"
        )
    return own


# --- ranks of the whole ---------------------------------------------------------------------------


def _first(before: Int[np.ndarray, " m"], own: np.ndarray, n: int) -> Int[np.ndarray, " n"]:
    """The rank of each image's best text; 0 where it has none."""
    none = np.iinfo(np.int64).max
    best = np.full(n, none)
    np.minimum.at(best, own, before)
    return np.where(best == none, 0, best + 1)


def _mean_average_precision(before: Int[np.ndarray, " m"], own: np.ndarray) -> float:
    """Of images that have a text: the j-th right text has before[j] wrong ones before it."""
    order = np.lexsort((before, own))
    num = np.bincount(own)
    place = 1 + np.arange(len(own)) - np.repeat(np.cumsum(num) - num, num)
    precision = place / (place + before[order])
    total = np.bincount(own[order], weights=precision)
    return float((total[num > 0] / num[num > 0]).mean())


def _summary(way: str, ranks: Int[np.ndarray, " q"]) -> dict[str, float]:
    found = {f"{way}_r{k}": _fraction(ranks <= k) for k in _KS}
    found[f"{way}_mean_rank"] = int(ranks.sum()) / len(ranks)
    found[f"{way}_median_rank"] = float(np.median(ranks))
    return found


def _fraction(hits: Tensor | np.ndarray) -> float:
    return int(hits.sum()) / len(hits)
