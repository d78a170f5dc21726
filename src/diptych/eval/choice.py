"""Which of a few texts and pictures belong together: pairs, Winoground, associations.

Winoground (arXiv 2204.03162), ARO (2210.01936), SugarCrepe (2306.14610), WinoGAViL (2207.12576).

- A model that cannot tell two texts apart has not chosen: only strictly higher scores count. Peers
  take the first of equals, which is the right one wherever the right one stands first.
- `CHANCE` is what scores drawn at random reach (Winoground: 1/4, 1/4, 1/6).
- Sets whose wrong captions read badly are solved without looking: report `blind`, a score of the
  captions alone, beside every figure (SugarCrepe, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diptych.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = [
    "CHANCE",
    "associations",
    "blind",
    "choice",
    "jaccard",
    "macro",
    "one_of",
    "pair_accuracy",
    "winoground",
]

CHANCE: Mapping[str, float] = MappingProxyType(
    {
        "text_score": 1 / 4,
        "image_score": 1 / 4,
        "group_score": 1 / 6,
        "pair_accuracy": 1 / 2,
        "macro_pair_accuracy": 1 / 2,
        "order_accuracy": 1 / 5,  # of ARO's order sets: the caption among four shuffled ones
        "jaccard": 0.205,  # of WinoGAViL's 3,563 as DataComp publishes it
    }
)


def winoground(scores: Float[Tensor, "n 2 2"]) -> dict[str, Bool[Tensor, " n"]]:
    """Which samples are solved, under each of Winoground's three rules (section 4.1).

    Args:
        scores: of sample n, picture i and text j; picture i belongs to text i.

    Returns:
        text_score: each picture's own text scores higher; image_score: each text's own picture
        does; group_score: both. The means are the figures.

    Raises:
        DataError: no samples, another shape, or a number that is not finite.
    """
    s = _finite(scores, "winoground")
    if s.shape[1:] != (2, 2):
        raise DataError(f"winoground: scores [n 2 2] (pictures x texts), got {list(s.shape)}")
    text = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])
    image = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
    return {"text_score": text, "image_score": image, "group_score": text & image}


def pair_accuracy(
    right: Float[Tensor, " n"],
    wrong: Float[Tensor, " n"],
    *,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """The share of samples whose right text scores strictly higher than the wrong one.

    Args:
        groups: a name for each (ARO: its relation); then macro_pair_accuracy too, the mean over the
            groups of each one's share, as ARO reports it.

    Raises:
        DataError: no samples, counts that differ, or a number that is not finite.
    """
    right, wrong = _finite(right, "pair_accuracy"), _finite(wrong, "pair_accuracy")
    if right.shape != wrong.shape or right.ndim != 1:
        raise DataError(
            f"pair_accuracy: {list(right.shape)} right and {list(wrong.shape)} wrong scores: give "
            "one of each for every sample"
        )
    hits = right > wrong
    found = {"pair_accuracy": float(hits.double().mean())}
    if groups is not None:
        found["macro_pair_accuracy"] = macro(hits, groups)
    return found


def one_of(scores: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
    """Which samples' first text scores strictly higher than each of the other k - 1."""
    s = _finite(scores, "one_of")
    if s.ndim != 2 or s.shape[1] < 2:
        raise DataError(f"one_of: scores [n k] of at least two texts, got {list(s.shape)}")
    return s[:, 0] > s[:, 1:].amax(1)


def macro(right: Bool[Tensor, " n"], groups: Sequence[str] | np.ndarray | Tensor) -> float:
    """The mean over the groups that occur of the share of right ones in each.

    Raises:
        DataError: no samples, or not one group for each.
    """
    hits = np.asarray(right, np.float64)
    if len(hits) != len(groups) or not len(hits):
        raise DataError(
            f"{len(hits)} samples and {len(groups)} groups: give each sample the name of its group"
        )
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    return float((np.bincount(codes, weights=hits) / np.bincount(codes)).mean())


def jaccard(scores: Float[Tensor, " k"], right: Int[Tensor, " r"]) -> float:
    """Of the r best of k pictures and the r right ones: how many are in both, over in either.

    WinoGAViL, section 3: the model is told how many pictures belong to the cue. Of pictures that
    score the same as the last one that would be taken, wrong ones are taken first.

    Args:
        right: positions of the right pictures, each once.

    Raises:
        DataError: no right picture, one twice, one that is not there, or a score that is not
            finite.
    """
    s, right = _finite(scores, "jaccard"), torch.as_tensor(right).cpu().long()
    r = len(right)
    there = r and int(right.min()) >= 0 and int(right.max()) < len(s)
    if not there or len(right.unique()) != r or s.ndim != 1:
        raise DataError(
            f"jaccard: right pictures {right.tolist()} of {len(s)}: give each right position once, "
            f"at least one, from 0 to {len(s) - 1}"
        )
    wrong = torch.ones(len(s), dtype=torch.bool)
    wrong[right] = False
    order = np.lexsort((~wrong.numpy(), -s.numpy()))  # falling; of equals the wrong ones first
    both = int((~wrong)[torch.from_numpy(order[:r].copy())].sum())
    return both / (2 * r - both)


def associations(
    scores: Sequence[Float[Tensor, " k"]], right: Sequence[Int[Tensor, " r"]]
) -> dict[str, float]:
    """The mean `jaccard` of samples whose numbers of pictures may differ."""
    if len(scores) != len(right) or not len(scores):
        raise DataError(f"jaccard: {len(scores)} samples with scores, {len(right)} with answers")
    found = [jaccard(s, r) for s, r in zip(scores, right, strict=True)]
    return {"jaccard": sum(found) / len(found)}


def choice(
    image_vectors: Float[Tensor, "n p e"],
    text_vectors: Float[Tensor, "n k e"],
    *,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """The figures of samples of one shape, from unit vectors.

    Args:
        image_vectors: p = 1 picture with the right text first (pairs for k = 2; one of k), or
            p = k = 2 (Winoground).
        groups: of pairs: as for `pair_accuracy`.

    Returns:
        pair_accuracy (and macro_pair_accuracy), of k > 2 too: first of k; or text_score,
        image_score, group_score. Shares in [0, 1].

    Raises:
        DataError: shapes of no such rule, or a number that is not finite.
    """
    images, texts = image_vectors.detach().cpu().double(), text_vectors.detach().cpu().double()
    if images.ndim != 3 or texts.ndim != 3 or len(images) != len(texts):
        raise DataError(
            f"choice: vectors [n p e] and [n k e], got {list(images.shape)} and {list(texts.shape)}"
        )
    scores = torch.einsum("npe,nke->npk", images, texts).float()  # equal vectors tie
    match scores.shape[1:]:
        case (2, 2):
            return {key: float(hits.double().mean()) for key, hits in winoground(scores).items()}
        case (1, k) if k >= 2:
            hits = one_of(scores[:, 0])
            found = {"pair_accuracy": float(hits.double().mean())}
            return found | ({} if groups is None else {"macro_pair_accuracy": macro(hits, groups)})
    raise DataError(
        f"choice: {scores.shape[1]} pictures and {scores.shape[2]} texts a sample: there are rules "
        "for 1 picture with 2 texts or more and for 2 with 2"
    )


def blind(
    captions: Sequence[Sequence[str]],
    score: Callable[[Sequence[str]], Float[Tensor, " t"]],
    *,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """What is reached without looking: captions are scored alone, the right one first.

    A set on which this is far above chance measures how well its wrong captions read.

    Args:
        captions: of each sample, the right one first.
        score: of texts: a language model's log likelihood, minus their length, or the mean cosine
            to all pictures of the set.

    Returns:
        as `pair_accuracy`, its keys beginning with "blind_".
    """
    if not captions or any(len(some) < 2 for some in captions):
        raise DataError("blind: each sample needs its right caption and at least one wrong one")
    flat = [text for some in captions for text in some]
    parts = torch.as_tensor(score(flat)).cpu().double().split([len(some) for some in captions])
    right = torch.stack([part[0] for part in parts])
    best = torch.stack([part[1:].max() for part in parts])
    found = pair_accuracy(right, best, groups=groups)
    return {f"blind_{key}": value for key, value in found.items()}


def _finite(scores: Tensor, what: str) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu().double()
    if not scores.numel() or not scores.isfinite().all():
        raise DataError(
            f"{what}: {scores.numel()} scores, {int((~scores.isfinite()).sum())} of them not "
            "finite: give finite scores of at least one sample"
        )
    return scores
