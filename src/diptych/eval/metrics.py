"""Figures of scores and true labels: accuracy, F1, ROC-AUC, average precision, worst group.

scikit-learn's definitions, with these choices:

- A rank is 1 + the number of wrong classes that score at least as well: a tie counts against the
  model, in the accuracies, in F1 and in the confusion matrix alike.
- Means over classes are over those that occur among the labels. A class that only gets false
  alarms costs the recall of the others and is not counted again; scikit-learn's macro F1 counts it
  as a 0 unless `labels=` leaves it out.
- Average precision groups equal scores (the steps of a precision-recall curve), as scikit-learn
  does; ROC-AUC counts an equal pair as half (Hanley and McNeil, Radiology 143, 1982).
- Scores compare in their own type, in blocks of rows or columns: 50,000 x 1,000 of them cost some
  100 MB beside themselves. Counts are whole numbers; what is divided is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diptych.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = [
    "average_precision",
    "average_precision_11_point",
    "classification",
    "confusion",
    "group_figures",
    "multilabel",
    "of_ranks",
    "per_class",
    "predictions",
    "ranks",
    "roc_auc",
]

_BLOCK = 1 << 20  # scores looked at at once


# --- one label an image ---------------------------------------------------------------------------


def classification(
    scores: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    groups: Sequence[str] | None = None,
    worst_without: Sequence[str] = (),
) -> dict[str, float]:
    """The figures of a classifier; all are shares in [0, 1].

    Args:
        scores: cosines, logits or probabilities: larger is better, each row compared with itself.
        labels: the right class of each row.
        groups: the group of each row (a region, an income), for the worst group.
        worst_without: groups that cannot be the worst (FMoW's "Other").

    Returns:
        top1 and top5; mean_per_class (of top1) and macro_f1, over the classes that occur;
        mean_top1_top5, half their sum. With groups, worst_group_top1 and worst_group_top5, the
        least over the groups that occur, however small (`group_figures` tells how small). With two
        classes that both occur, roc_auc of class 1's score minus class 0's.

    Raises:
        DataError: no rows, a score that is not finite, a label that is no class, groups of another
            number, or no group left to be the worst.
    """
    codes = None if groups is None else _codes(groups, len(labels), worst_without)
    rank, predicted = ranks(scores, labels), predictions(scores, labels)
    found = of_ranks(rank, predicted, labels, num_classes=scores.shape[1], groups=codes)
    truth = labels.cpu() == 1
    if scores.shape[1] == 2 and truth.any() and not truth.all():
        pair = scores.detach().cpu().double()
        found["roc_auc"] = roc_auc(pair[:, 1] - pair[:, 0], truth)
    return found


def of_ranks(
    ranks: Int[Tensor, " n"],
    predicted: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    groups: Int[Tensor, " n"] | None = None,
) -> dict[str, float]:
    """`classification` from what is left of the scores: cheap enough to be drawn 1,000 times.

    Args:
        ranks, predicted: as `ranks` and `predictions` give them.
        groups: a number from 0 on for each row; a negative one cannot be the worst.

    Returns:
        As `classification`, without roc_auc.

    Raises:
        DataError: no rows, or no group left to be the worst.
    """
    ranks, labels = ranks.cpu(), labels.cpu().long()
    if not len(ranks):
        raise DataError("classification: 0 samples: nothing can be measured")
    table = _table(ranks == 1, predicted.cpu().long(), labels, num_classes)
    occur = table["num"] > 0
    top1, top5 = _share(ranks <= 1), _share(ranks <= 5)
    found = {
        "top1": top1,
        "top5": top5,
        "mean_per_class": float(table["recall"][occur].mean()),
        "macro_f1": float(table["f1"][occur].mean()),
        "mean_top1_top5": (top1 + top5) / 2,
    }
    if groups is not None:
        codes = groups.cpu()
        kept = codes >= 0
        if not kept.any():
            raise DataError(
                f"classification: none of the {len(codes)} samples is in a group that can be the "
                "worst: leave fewer names in worst_without"
            )
        num = torch.bincount(codes[kept])
        for k in (1, 5):
            hits = torch.bincount(codes[kept & (ranks <= k)], minlength=len(num))
            found[f"worst_group_top{k}"] = float((hits.double() / num)[num > 0].min())
    return found


def group_figures(
    scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"], groups: Sequence[str]
) -> dict[str, dict[str, float]]:
    """n, top1 and top5 of each group that occurs, in alphabetical order.

    Raises:
        DataError: as `classification`.
    """
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    _codes(groups, len(labels), ())
    rank, members = ranks(scores, labels), torch.from_numpy(codes)
    return {
        str(name): {"n": len(own), "top1": _share(own <= 1), "top5": _share(own <= 5)}
        for i, name in enumerate(names)
        for own in [rank[members == i]]
    }


def per_class(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, Tensor]:
    """recall, precision, f1 (float64) and num (int64: how often it is the label), each of shape c.

    NaN is what cannot be said: the recall of a class that does not occur, the precision of one
    that is never predicted, the F1 of one that is neither.

    Raises:
        DataError: as `classification`.
    """
    right = ranks(scores, labels) == 1
    return _table(right, predictions(scores, labels), labels.cpu().long(), scores.shape[1])


def confusion(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Int[Tensor, "c c"]:
    """How often class i (row) was taken for class j (column), as `predictions` has it.

    Raises:
        DataError: as `classification`.
    """
    c = scores.shape[1]
    pairs = labels.cpu().long() * c + predictions(scores, labels)
    return torch.bincount(pairs, minlength=c * c).view(c, c)


def ranks(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """1 + the number of other classes that score at least as well as the right one; on the CPU.

    Raises:
        DataError: as `classification`.
    """
    labels = _checked(scores, labels)
    found = [
        (rows >= rows.gather(1, own[:, None])).sum(1).cpu()  # itself included
        for rows, own in _rows(scores, labels)
    ]
    return torch.cat(found)


def predictions(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """What the model says, a tie against it; on the CPU.

    The label where it alone scores best, else the best of the others, of equals the first.

    Raises:
        DataError: as `classification`.
    """
    labels = _checked(scores, labels)
    found = []
    for rows, own in _rows(scores, labels):
        best = rows.gather(1, own[:, None])
        wrong = rows.scatter(1, own[:, None], -torch.inf)
        right = best[:, 0] > wrong.amax(1)
        found.append(torch.where(right, own, wrong.argmax(1)).cpu())
    return torch.cat(found)


# --- any number of labels an image ----------------------------------------------------------------


def multilabel(scores: Float[Tensor, "n c"], truth: Bool[Tensor, "n c"]) -> dict[str, float]:
    """Figures where an image has any number of labels.

    Args:
        scores: compared down each column: how a class's images follow one another. The paper's
            VOC2007 figure takes a softmax over the classes first (openai/CLIP issue 153).

    Returns:
        map and map_11_point, means over the classes with a true image (clip_benchmark counts a
        class without one as 0); top1, how often the best label is true, a tie with a false one
        against the model and an image without a true label as wrong.

    Raises:
        DataError: no rows, no true label at all, shapes that differ, a score that is not finite.
    """
    scores, truth = _checked_truth(scores, truth, 2)
    step = max(1, _BLOCK // len(scores))
    classes = truth.any(0).nonzero()[:, 0]
    curves = (_curve(scores[:, some], truth[:, some]) for some in classes.split(step))
    found = [(_mean_precision(*curve), _eleven_points(*curve)) for curve in curves]
    right = [
        rows.masked_fill(~own, -torch.inf).amax(1) > rows.masked_fill(own, -torch.inf).amax(1)
        for rows, own in _rows(scores, truth)
    ]
    return {
        "map": float(torch.cat([whole for whole, _ in found]).mean()),
        "map_11_point": float(torch.cat([points for _, points in found]).mean()),
        "top1": _share(torch.cat(right)),
    }


def average_precision(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """The mean, over the true ones, of the precision at their score; equal scores stand together.

    Raises:
        DataError: as `multilabel`.
    """
    scores, truth = _checked_truth(scores, truth, 1)
    return float(_mean_precision(*_curve(scores[:, None], truth[:, None])))


def average_precision_11_point(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """The mean over r = 0, 0.1 .. 1 of the largest precision at a recall of at least r.

    As VOC2007 measures it (Everingham et al., IJCV 88, 2010, section 4.2).

    Raises:
        DataError: as `multilabel`.
    """
    scores, truth = _checked_truth(scores, truth, 1)
    return float(_eleven_points(*_curve(scores[:, None], truth[:, None])))


def roc_auc(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """The chance that a true one scores above a false one, an equal pair as half.

    Raises:
        DataError: as `multilabel`; also where nothing is false.
    """
    scores, truth = _checked_truth(scores, truth, 1)
    if truth.all():
        raise DataError(f"roc_auc: all {len(truth)} samples are true: it takes both kinds")
    true, false = scores[truth], scores[~truth].sort().values
    below = (
        torch.searchsorted(false, true).sum() + torch.searchsorted(false, true, right=True).sum()
    )
    return int(below) / (2 * len(true) * len(false))


# --- parts ----------------------------------------------------------------------------------------


def _checked(scores: Tensor, labels: Tensor) -> Tensor:
    """The labels as int64 beside the scores, once both can be measured."""
    if scores.ndim != 2 or labels.ndim != 1 or len(scores) != len(labels) or not scores.numel():
        raise DataError(
            f"scores of shape {tuple(scores.shape)} and labels of shape {tuple(labels.shape)}: "
            "give [n c] scores and n labels, at least one"
        )
    c = scores.shape[1]
    if outside := int(((labels < 0) | (labels >= c)).sum()):
        raise DataError(
            f"{outside} of {len(labels)} labels are none of the {c} classes: they are numbers in "
            f"0..{c - 1}, the columns of the scores"
        )
    _finite(scores)
    return labels.to(scores.device, torch.int64)


def _checked_truth(scores: Tensor, truth: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    if scores.ndim != ndim or scores.shape != truth.shape or not scores.numel():
        shape = "[n c]" if ndim == 2 else "[n]"
        raise DataError(
            f"scores of shape {tuple(scores.shape)} and truth of shape {tuple(truth.shape)}: both "
            f"have the shape {shape}, with at least one row"
        )
    if truth.dtype != torch.bool:
        raise DataError(f"truth is {truth.dtype}: give torch.bool, as `labels == 1` is")
    if not truth.any():
        raise DataError(f"none of the {len(truth)} samples is true: nothing can be found")
    _finite(scores)
    return scores.detach().cpu(), truth.cpu()


def _finite(scores: Tensor) -> None:
    if not scores.is_floating_point():
        raise DataError(f"scores are {scores.dtype}: give floating point numbers")
    step = max(1, _BLOCK // max(1, scores[0].numel()))
    if bad := sum(int((~part.isfinite()).sum()) for part in scores.split(step)):
        raise DataError(
            f"{bad} of {scores.numel()} scores are not finite: the weights or an input are broken"
        )


def _rows(scores: Tensor, labels: Tensor) -> zip[tuple[Tensor, Tensor]]:
    step = max(1, _BLOCK // scores.shape[1])
    return zip(scores.detach().split(step), labels.split(step), strict=True)


def _codes(groups: Sequence[str], n: int, without: Sequence[str]) -> Tensor:
    """A number for each group, -1 for those of `without`."""
    if isinstance(without, str):
        raise DataError(f"worst_without is the text {without!r}: give a list, [{without!r}]")
    if len(groups) != n:
        raise DataError(f"{len(groups)} groups for {n} samples: give each sample one")
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    codes[np.isin(names, np.asarray(without, dtype=str))[codes]] = -1
    return torch.from_numpy(codes)


def _table(right: Tensor, predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    num = torch.bincount(labels, minlength=num_classes)
    said = torch.bincount(predicted, minlength=num_classes)
    hits = torch.bincount(labels[right], minlength=num_classes).double()
    return {
        "recall": hits / num,
        "precision": hits / said,
        "f1": 2 * hits / (num + said),
        "num": num,
    }


def _curve(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each column, best score first: precision (float64) and hits (int64) down to the last of
    the equal scores, and the truth in this order; all [n c]."""
    n, c = scores.shape
    ordered, order = scores.sort(dim=0, descending=True)
    truth = truth.gather(0, order)
    place = torch.arange(n)[:, None].expand(n, c)
    last = torch.ones(n, c, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    end = place.masked_fill(~last, n).flip(0).cummin(0).values.flip(0)
    hits = truth.long().cumsum(0).gather(0, end)
    return hits.double() / (end + 1), hits, truth


def _mean_precision(precision: Tensor, hits: Tensor, truth: Tensor) -> Tensor:
    return (precision * truth).sum(0) / hits[-1]


def _eleven_points(precision: Tensor, hits: Tensor, truth: Tensor) -> Tensor:
    """Recall is compared as a fraction of whole numbers: 0.3 is no float."""
    reached = [precision.where(10 * hits >= r * hits[-1], 0.0).amax(0) for r in range(11)]
    return torch.stack(reached).mean(0)


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)
