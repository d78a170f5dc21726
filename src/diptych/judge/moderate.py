"""What a policy says of pictures: scores, verdicts, and thresholds that keep what they promise.

    score(label) = log sum_y exp(t cos(x, y)) / Y  -  log sum_n exp(t cos(x, n)) / N

over the Y `yes` and the N `no` sentences of the label, t the model's own exp(logit_scale): the
log-odds of "one of the first describes the picture" against "one of the second", which do not
change when a sentence is written twice. Ours; a bias of the logits cancels.

- `accept` is the lowest of several cuts at which the precision of "yes" is shown to be at least the
  target: fixed-sequence tests from several starts with exact binomial p-values (Angelopoulos et
  al., Learn then Test, arXiv 2110.01052, section 2). Where none can be shown there is none, and
  nothing is accepted.
- `reject` is an order statistic of the scores of the pictures that have the label: at most the
  share 1 - recall of them is below it, with the stated confidence (Wilks' tolerance limit, 1941).
- Both promises are for pictures like the examples: as hard, and with as many of each label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from diptych.engine import Encoder
from diptych.errors import ConfigError, DataError
from diptych.eval.binomial import Interval, clopper_pearson
from diptych.eval.thresholds import covering_threshold, precise_threshold
from diptych.judge.policy import Fitted, Label, Policy

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "Answer",
    "Fit",
    "LabelReport",
    "Sentences",
    "Verdict",
    "accept_threshold",
    "check_policy",
    "fit",
    "halves",
    "joined",
    "measure",
    "policy_scores",
    "reject_threshold",
    "sentences",
    "verdicts",
]

Verdict = Literal["yes", "no", "unsure"]


class Answer(NamedTuple):
    """What a policy says of one picture and one label."""

    label: str
    verdict: Verdict
    score: float


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """The vectors of a policy: `vectors` [s e], and for each label which rows are yes and no."""

    vectors: Float[Tensor, "s e"] = field(repr=False)
    rows: tuple[tuple[list[int], list[int]], ...] = field(repr=False)
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelReport:
    """How a label does on pictures that its thresholds were not set on.

    Attributes:
        num, positives: pictures whose truth is known, and those that have the label.
        yes, unsure, no: verdicts, counted.
        precision: of "yes", None if there is none. recall: share of the positives that are not
            "no"; found: share of them that are "yes". Each with its 95 % interval.
    """

    label: str
    num: int
    positives: int
    yes: int
    unsure: int
    no: int
    precision: float | None
    precision_interval: Interval | None
    recall: float | None
    recall_interval: Interval | None
    found: float | None
    found_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A policy with thresholds. reports: on the half of the examples that they were not set on."""

    policy: Policy
    reports: tuple[LabelReport, ...]


def sentences(encoder: Encoder, policy: Policy) -> Sentences:
    """The vectors of all sentences of a policy, each encoded once."""
    texts = dict.fromkeys(s for label in policy.labels for s in (*label.yes, *label.no))
    place = {text: row for row, text in enumerate(texts)}
    return Sentences(
        vectors=encoder.encode_text(list(texts), out="torch").double(),
        rows=tuple(
            ([place[s] for s in label.yes], [place[s] for s in label.no]) for label in policy.labels
        ),
        scale=float(encoder.model.logit_scale.detach().double().exp()),
    )


def policy_scores(found: Sentences, image_vectors: Float[Tensor, "n e"]) -> Float[Tensor, "n l"]:
    """The score of each label of each picture, float64; image vectors are unit rows."""
    logits = found.scale * image_vectors.double() @ found.vectors.T
    columns = [
        (logits[:, yes].logsumexp(1) - math.log(len(yes)))
        - (logits[:, no].logsumexp(1) - math.log(len(no)))
        for yes, no in found.rows
    ]
    return torch.stack(columns, 1)


def verdicts(policy: Policy, scores: Float[Tensor, "n l"]) -> list[list[Answer]]:
    """What the thresholds make of scores, for each picture in the order of the labels.

    In a policy that was never fitted, a label without thresholds is "yes" where its score is
    positive: an unmeasured guess, which `Label.has_thresholds` tells apart.
    """
    guess = policy.fitted is None
    return [
        [
            Answer(label.name, _verdict(label, score, guess=guess), score)
            for label, score in zip(policy.labels, row, strict=True)
        ]
        for row in scores.tolist()
    ]


def _verdict(label: Label, score: float, *, guess: bool = False) -> Verdict:
    if guess and not label.has_thresholds:
        return "yes" if score > 0 else "no"
    if label.accept is not None and score >= label.accept:
        return "yes"
    return "no" if label.reject is not None and score < label.reject else "unsure"


def joined(views: Sequence[Sequence[Answer]]) -> list[Answer]:
    """One answer a label from those of a picture's views, the last of which gives the score.

    Where views differ (a word printed on the picture decides), the verdict is "unsure".
    """
    return [
        answers[-1]
        if len({answer.verdict for answer in answers}) == 1
        else answers[-1]._replace(verdict="unsure")
        for answers in zip(*views, strict=True)
    ]


def check_policy(policy: Policy, encoder: Encoder, *, mask_text: bool) -> None:
    """Whether the thresholds of a policy belong to this encoder and this way to look.

    Raises:
        ConfigError: they were set with another model, or with printed text where it is masked now.
    """
    fitted = policy.fitted
    if fitted is None:
        return
    if fitted.fingerprint != encoder.fingerprint:
        raise ConfigError(
            f"the thresholds of this policy were set with {fitted.model} (fingerprint "
            f"{fitted.fingerprint[:12]}), not with {encoder.card.get('name', 'this model')} "
            f"({encoder.fingerprint[:12]}): scores of two models differ. Type --model "
            f"{fitted.model}, or diptych moderate fit with the model you want."
        )
    if fitted.mask_text != mask_text:
        how = "with" if fitted.mask_text else "without"
        raise ConfigError(
            f"the thresholds of this policy were set {how} --mask-text. Type it the same way, or "
            "diptych moderate fit again."
        )


def fit(
    policy: Policy,
    encoder: Encoder,
    scores: Float[Tensor, "n l"],
    truth: Float[Tensor, "n l"],
    *,
    precision: float = 0.9,
    recall: float = 0.9,
    confidence: float = 0.95,
    mask_text: bool = False,
    seed: int = 0,
) -> Fit:
    """Thresholds from one half of labelled examples, and what they are worth on the other.

    Args:
        truth: 1 where a picture has the label, 0 where not, NaN where nobody knows.
        precision: of "yes", at least. recall: at most 1 - recall of the true ones are "no".
        confidence: with which each promise holds, over the draw of the examples.
        seed: of the halves.

    Raises:
        DataError: shapes that differ, or a label without an example of both kinds.
    """
    if scores.shape != truth.shape or scores.shape[1] != len(policy.labels):
        raise DataError(f"{list(scores.shape)} scores, {list(truth.shape)} truths: one each.")
    for name, value in (("precision", precision), ("recall", recall), ("confidence", confidence)):
        if not 0.5 <= value < 1:
            raise ConfigError(f"{name} must be at least 0.5 and below 1, got {value:g}")
    scores, truth = scores.double().cpu(), truth.double().cpu()
    labels, reports = [], []
    for i, label in enumerate(policy.labels):
        known = ~truth[:, i].isnan()
        values, right = scores[known, i], truth[known, i] > 0.5
        if not 2 <= int(right.sum()) <= len(right) - 2:
            raise DataError(
                f"label {label.name!r}: {int(right.sum())} of {len(right)} examples have it. Give "
                "at least 2 that have it and 2 that do not; a promise of 0.9 needs 60 or more."
            )
        first, second = halves(right, seed=seed)
        accept = accept_threshold(
            values[first], right[first], precision=precision, confidence=confidence
        )
        reject = reject_threshold(values[first][right[first]], recall=recall, confidence=confidence)
        if accept is not None and reject is not None:
            reject = min(accept, reject)  # lower only keeps more of the true ones
        labels.append(replace(label, accept=accept, reject=reject))
        reports.append(measure(labels[-1], values[second], right[second]))
    fitted = Fitted(
        model=str(encoder.card.get("name", "a model")),
        fingerprint=encoder.fingerprint,
        mask_text=mask_text,
        precision=precision,
        recall=recall,
        confidence=confidence,
    )
    return Fit(policy=replace(policy, labels=tuple(labels), fitted=fitted), reports=tuple(reports))


def halves(right: Bool[Tensor, " n"], *, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of two halves, drawn; each has half of the true ones and half of the others."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for kind in (right, ~right):
        rows = kind.nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        first.append(rows[: (len(rows) + 1) // 2])
        second.append(rows[(len(rows) + 1) // 2 :])
    return torch.cat(first), torch.cat(second)


def accept_threshold(
    scores: Float[Tensor, " n"],
    right: Bool[Tensor, " n"],
    *,
    precision: float,
    confidence: float = 0.95,
) -> float | None:
    """The lowest score from which on the precision is shown to be `precision`; None: none is."""
    try:
        above = precise_threshold(scores, right, precision=precision, confidence=confidence)
    except DataError:
        return None
    return float(scores[scores > above].min())


def reject_threshold(
    scores: Float[Tensor, " p"], *, recall: float, confidence: float = 0.95
) -> float | None:
    """The highest score below which at most 1 - recall of the true ones fall; None: too few.

    scores: of pictures that have the label.
    """
    try:
        above = covering_threshold(scores, recall, confidence=confidence)
    except DataError:
        return None
    return math.nextafter(above, math.inf)


def measure(label: Label, scores: Float[Tensor, " n"], right: Bool[Tensor, " n"]) -> LabelReport:
    """How the label's thresholds do on these pictures."""
    said = [_verdict(label, score) for score in scores.tolist()]
    true = right.tolist()
    yes, no = said.count("yes"), said.count("no")
    hits = sum(s == "yes" and t for s, t in zip(said, true, strict=True))
    kept = sum(s != "no" and t for s, t in zip(said, true, strict=True))
    positives = sum(true)

    def share(part: int, whole: int) -> tuple[float | None, Interval | None]:
        return (part / whole, clopper_pearson(part, whole)) if whole else (None, None)

    (exact, exact_in), (recall, recall_in), (found, found_in) = (
        share(hits, yes),
        share(kept, positives),
        share(hits, positives),
    )
    return LabelReport(
        label=label.name,
        num=len(said),
        positives=positives,
        yes=yes,
        unsure=len(said) - yes - no,
        no=no,
        precision=exact,
        precision_interval=exact_in,
        recall=recall,
        recall_interval=recall_in,
        found=found,
        found_interval=found_in,
    )
