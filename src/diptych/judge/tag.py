"""Tags: which labels of a vocabulary hold for each picture, each by a threshold of its own.

A label holds where the cosine of picture and label reaches the label's threshold. That is

- the one written in the vocabulary;
- or the one that fits examples best (`fit_thresholds`);
- or, with neither, `level + spreads * spread`, by what is usual (`engine.relevance`): `level` is
  the median of the label's cosines over the pictures at hand, held within what is usual for general
  words, and `spread` says how much cosines vary around their levels.

A label that holds implies its parents, and a parent scores at least what its best child scores.
Labels can be added at any time: nothing here looks at a picture, only at its vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from diptych.engine.relevance import Relevance
from diptych.errors import ConfigError, DataError
from diptych.eval.thresholds import precise_threshold
from diptych.eval.zeroshot import zero_shot_weights
from diptych.judge.vocabulary import Label, Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from diptych.engine import Encoder

__all__ = [
    "SPREADS",
    "Fitted",
    "Tag",
    "alt_text",
    "closed",
    "fit_thresholds",
    "label_vectors",
    "raised",
    "tags",
    "thresholds",
    "with_thresholds",
]

# The best mean F1 of the half of the packaged photographs that is for tuning:
# benchmarks/results/tagging.txt.
SPREADS = 3.3


class Tag(NamedTuple):
    """A label that holds for a picture."""

    label: Label
    score: float  # the cosine of the label, or of a better one below it
    margin: float  # of that cosine above that label's threshold, at least 0


def label_vectors(
    encoder: Encoder, vocabulary: Vocabulary, templates: str | Sequence[str] | None = None
) -> Float[np.ndarray, "l e"]:
    """One unit vector a label: the mean over its words and templates, normalised.

    Args:
        templates: as for `Encoder.classifier`.
    """
    words = [(label.name, *label.synonyms) for label in vocabulary.labels]
    return zero_shot_weights(encoder, words, templates).cpu().numpy()


def thresholds(
    vocabulary: Vocabulary,
    cosines: Float[np.ndarray, "n l"] | None,
    usual: Relevance | None,
    *,
    spreads: float = SPREADS,
) -> Float[np.ndarray, " l"]:
    """The cosine from which each label holds: its own, else by what is usual.

    Args:
        cosines: of a sample of the pictures; None where each label has its own threshold.
        usual: of the same pictures; None likewise.
        spreads: how far above the level, in spreads.

    Raises:
        ConfigError: a label has no threshold and nothing says what is usual.
    """
    own = np.array([math.nan if x.threshold is None else x.threshold for x in vocabulary.labels])
    if not np.isnan(own).any():
        return own
    if cosines is None or usual is None or not len(cosines):
        missing = next(str(x) for x in vocabulary.labels if x.threshold is None)
        raise ConfigError(
            f"the label {missing!r} has no threshold, and there are no pictures to say what is "
            "usual. Write one into the vocabulary, as in: dog = 0.25"
        )
    low, high = usual.centre - usual.limit, usual.centre + usual.limit
    levels = np.clip(np.median(cosines, axis=0), low, high)
    return np.where(np.isnan(own), levels + spreads * usual.spread, own)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """Thresholds that fit examples.

    Attributes:
        thresholds: NaN where the examples cannot say: `left` names why.
        precision, recall: on the examples themselves, so they flatter; NaN likewise.
        left: label position -> why it has no threshold from the examples.
    """

    thresholds: Float[np.ndarray, " l"]
    precision: Float[np.ndarray, " l"]
    recall: Float[np.ndarray, " l"]
    left: dict[int, str]


def fit_thresholds(
    cosines: Float[np.ndarray, "n l"],
    truth: Bool[np.ndarray, "n l"],
    *,
    precision: float | None = None,
    confidence: float = 0.95,
) -> Fitted:
    """For each label the threshold with the best F1, or the lowest that is precise enough.

    A threshold lies half-way between two cosines; of equally good ones the highest is taken.

    Args:
        truth: whether the label holds for the picture; parents included (`closed`).
        precision: then the examples must prove it (`eval.thresholds.precise_threshold`).
        confidence: with which it then holds.

    Raises:
        DataError: shapes that differ, no examples, or cosines that are not finite.
        ConfigError: a precision or confidence outside 0 to 1.
    """
    if cosines.shape != truth.shape or cosines.ndim != 2 or not len(cosines):
        raise DataError(
            f"cosines {list(cosines.shape)} and truth {list(truth.shape)} must be the same "
            "[examples, labels], with at least one example"
        )
    if not np.isfinite(cosines).all():
        raise DataError(f"{int((~np.isfinite(cosines)).sum())} cosines are not finite")
    for name, value in (("precision", precision), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {value}")
    found = np.full((3, cosines.shape[1]), math.nan)
    left: dict[int, str] = {}
    for i, (column, right) in enumerate(zip(cosines.T, truth.T, strict=True)):
        if not right.any():
            left[i] = "no example has it"
            continue
        order = np.argsort(-column, kind="stable")
        ordered, hits = column[order], np.cumsum(right[order])
        # the last of equal cosines: a cut falls between different ones
        ends = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))
        if precision is None:
            count = int(ends[_best_f1(hits, ends, int(right.sum()))]) + 1
        else:
            given = torch.from_numpy(column.astype(np.float64)), torch.from_numpy(right)
            try:
                above = precise_threshold(*given, precision=precision, confidence=confidence)
            except DataError:
                left[i] = f"the examples do not prove a precision of {precision:g}"
                continue
            count = int((column > above).sum())
        below = ordered[count] if count < len(ordered) else ordered[count - 1]
        cut = (float(ordered[count - 1]) + float(below)) / 2
        found[:, i] = cut, hits[count - 1] / count, hits[count - 1] / right.sum()
    return Fitted(thresholds=found[0], precision=found[1], recall=found[2], left=left)


def _best_f1(hits: np.ndarray, ends: np.ndarray, positives: int) -> int:
    f1 = 2 * hits[ends] / (ends + 1 + positives)
    return int(f1.argmax())  # the first of equal ones: the highest cut


def with_thresholds(vocabulary: Vocabulary, found: Float[np.ndarray, " l"]) -> Vocabulary:
    """The vocabulary with these thresholds; where one is NaN the label keeps what it has."""
    pairs = zip(vocabulary.labels, found.tolist(), strict=True)
    return Vocabulary(
        labels=tuple(x if math.isnan(t) else replace(x, threshold=t) for x, t in pairs)
    )


def raised(values: Float[np.ndarray, "n l"], vocabulary: Vocabulary) -> Float[np.ndarray, "n l"]:
    """Each label's value, or that of the best label below it."""
    best = values.copy()
    for child, parent in reversed(list(enumerate(vocabulary.parents))):
        if parent is not None:
            best[:, parent] = np.maximum(best[:, parent], best[:, child])
    return best


def closed(truth: Bool[np.ndarray, "n l"], vocabulary: Vocabulary) -> Bool[np.ndarray, "n l"]:
    """What holds, and all that it implies."""
    return raised(truth, vocabulary)


Level = int | Literal["all", "lowest"]


def tags(
    cosines: Float[np.ndarray, "n l"],
    cuts: Float[np.ndarray, " l"],
    vocabulary: Vocabulary,
    *,
    level: Level = "all",
    top: int | None = None,
) -> list[list[Tag]]:
    """The labels that hold for each picture, the largest margin first.

    Args:
        cuts: of `thresholds`.
        level: "all": with all that is implied; "lowest": without what a label below it says more
            exactly; 1, 2, ...: only labels of that level, 1 at the top.
        top: at most so many of a picture.

    Raises:
        ConfigError: a level or number below 1.
    """
    if (isinstance(level, int) and level < 1) or (top is not None and top < 1):
        raise ConfigError(f"level and top must be at least 1, got level {level} and top {top}")
    scores, margins = raised(cosines, vocabulary), raised(cosines - cuts, vocabulary)
    holds = margins >= 0
    shown = holds.copy()
    match level:
        case "all":
            pass
        case "lowest":
            for child, parent in enumerate(vocabulary.parents):
                if parent is not None:
                    shown[:, parent] &= ~holds[:, child]
        case int():
            shown &= np.array([len(x.path) == level for x in vocabulary.labels])
    rows = []
    for one, score, margin in zip(shown, scores.tolist(), margins.tolist(), strict=True):
        found = [
            Tag(vocabulary.labels[i], score[i], margin[i]) for i in np.flatnonzero(one).tolist()
        ]
        # at equal margins, as of a parent that a child lifted, the more exact word stands first
        found.sort(key=lambda tag: (-tag.margin, -len(tag.label.path)))
        rows.append(found[:top])
    return rows


def alt_text(found: Sequence[Tag]) -> str:
    """ "a photo: dog, grass": the words put in a row. It is no caption: a model of this family
    compares a picture with words, and writes none. Nothing is said of who does what, or where.
    """
    if not found:
        return "a photo"
    return "a photo: " + ", ".join(dict.fromkeys(tag.label.name for tag in found))
