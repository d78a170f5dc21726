"""Zero-shot classification: accuracy, calibration, "none of these", and what labels do to it.

- Scores are cosines with the ensemble's unit vectors; a tie counts against the model.
- Probabilities are the model's own (`Encoder.probabilities`); those of a sigmoid model, which
  judges each label alone, are divided by their sum where a distribution is needed.
- What is fitted (temperature, conformal sets, rejection) is fitted on one half of the samples and
  measured on the other. The hash of a sample's key says which, so it is the same for every model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import DataError
from diptych.eval import metrics
from diptych.eval.calibration import (
    Temperature,
    calibration,
    calibration_multilabel,
    reliability,
)
from diptych.eval.conformal import Conformal, Rejection
from diptych.eval.tasks.outcome import Figure, Job, Outcome, Worst, mean, share, share_of
from diptych.eval.uncertainty import bootstrap
from diptych.eval.zeroshot import zero_shot_weights

__all__ = ["classification", "halves", "number_of_labels", "scores_of"]

_ROWS = 1024
_LEAST = 100  # samples of a half that anything is fitted on
_PICTURE = 60  # classes of which a confusion picture can still be read
_COVERAGE, _PRECISION = 0.9, 0.9
_WORDINGS = {"as they are": None, "photo": "photo"}


def scores_of(vectors: Tensor, weights: Tensor) -> Tensor:
    """Cosines [n c] as `eval.retrieval` defines them: float64 products rounded once to float32."""
    wide = weights.double().T
    return torch.cat([(v.double() @ wide).float() for v in vectors.split(_ROWS)])


def classification(job: Job) -> Outcome:
    """The figures of a set whose samples have one label each."""
    labels = torch.tensor([sample.labels[0] for sample in job.samples])
    weights = _weights(job, job.templates)
    scores = scores_of(job.vectors, weights)
    ranks, predicted = metrics.ranks(scores, labels), metrics.predictions(scores, labels)
    shares = _shares(job, weights)
    groups = [sample.group for sample in job.samples]
    figures = _figures(job, scores, labels, ranks, predicted, groups)
    figures |= _calibrated(shares, labels)
    tables: dict[str, Any] = {
        "per_class": _per_class(job, scores, labels),
        "confusions": _confusions(job, predicted, labels),
        "reliability": [list(b) for b in reliability(shares, labels)],
        "number_of_labels": number_of_labels(ranks, len(weights)),
        "wording": _wording(job, labels),
        "held_out": _held_out(job, shares, labels),
        "groups": _by_group(scores, labels, groups),
    }
    top = shares.amax(1)
    return Outcome(
        figures=figures,
        chance=_chance(job, labels),
        tables={key: table for key, table in tables.items() if table},
        items={
            "label": labels.numpy(),
            "predicted": predicted.numpy(),
            "rank": ranks.numpy(),
            "probability": top.float().numpy(),
            "right": (ranks == 1).numpy(),
        },
        worst=_worst(job, labels, ranks, predicted, top),
    )


def _weights(job: Job, templates: Sequence[str] | str | None) -> Tensor:
    return zero_shot_weights(job.encoder, job.names, templates).float().cpu()


def _shares(job: Job, weights: Tensor) -> Tensor:
    """Probabilities [n c] in float64 whose rows sum to 1."""
    encoder = job.encoder
    with torch.no_grad():
        vectors, classes = job.vectors.to(encoder.device), weights.to(encoder.device)
        logits = encoder.model.logits(vectors, classes).cpu().double()
    if encoder.config.loss == "sigmoid":  # by their logarithms: all of them may be as good as 0
        logits = F.logsigmoid(logits)
    return logits.softmax(1)


def _figures(
    job: Job,
    scores: Tensor,
    labels: Tensor,
    ranks: Tensor,
    predicted: Tensor,
    groups: Sequence[str],
) -> dict[str, Figure]:
    """Shares have Wilson's interval, the others a bootstrap over samples."""
    num = scores.shape[1]
    names, codes = np.unique(groups, return_inverse=True)
    codes[np.isin(names, job.row.worst_without)[codes]] = -1
    codes = torch.from_numpy(codes)

    def of(rows: Tensor) -> dict[str, float]:
        return metrics.of_ranks(
            ranks[rows],
            predicted[rows],
            labels[rows],
            num_classes=num,
            groups=codes[rows] if len(names) > 1 else None,
        )

    figures = {"top1": share(ranks == 1), "top5": share(ranks <= 5)}
    for key, value in of(torch.arange(len(labels))).items():
        if key not in figures:
            interval = bootstrap(lambda rows, key=key: of(rows)[key], len(labels))
            figures[key] = Figure.of(value, interval)
    if num == 2 and 0 < int(labels.sum()) < len(labels):
        margin, truth = scores[:, 1] - scores[:, 0], labels == 1
        interval = bootstrap(lambda rows: metrics.roc_auc(margin[rows], truth[rows]), len(labels))
        figures["roc_auc"] = Figure.of(metrics.roc_auc(margin, truth), interval)
    return figures


def _calibrated(shares: Tensor, labels: Tensor) -> dict[str, Figure]:
    """Calibration errors and scores of the probabilities, with a bootstrap over samples.

    Samples that are drawn again leave larger errors than there are (each bin is further off), so
    the interval of an error is as wide as theirs and stands around the figure itself.
    """
    top, own = shares.topk(min(2, shares.shape[1])).values, shares.gather(1, labels[:, None])[:, 0]
    sure = top[:, :1]
    right = own[:, None].eq(sure) & top.eq(sure).sum(1, keepdim=True).eq(1)  # a tie is wrong
    each = {
        "brier": shares.square().sum(1) - 2 * own + 1,
        "nll": -own.clamp(min=2.0**-149).log(),
    }
    found = {}
    for key, value in calibration(shares, labels).items():
        if key in each:
            found[key] = mean(each[key])._replace(value=value)
            continue
        # whether the first label is right, judged alone: the same errors without the other labels
        interval = bootstrap(
            lambda rows, key=key: calibration_multilabel(sure[rows], right[rows])[key], len(own)
        )
        half = (interval.high - interval.low) / 2
        how = f"as wide as the {interval.method}, around the figure"
        found[key] = Figure(value, max(value - half, 0.0), value + half, how)
    return found


def _chance(job: Job, labels: Tensor) -> float | None:
    """What a guess among the classes reaches in the headline, each class alike."""
    num = len(job.names)
    match job.row.metric:
        case "top1" | "mean_per_class":
            return 1 / num
        case "top5":
            return min(5 / num, 1.0)
        case "mean_top1_top5":
            return (1 / num + min(5 / num, 1.0)) / 2
        case "roc_auc":
            return 0.5
    return None


# --- tables ---------------------------------------------------------------------------------------


def _per_class(job: Job, scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    found = metrics.per_class(scores, labels)
    return [
        {"class": name[0], **{key: _number(values[i]) for key, values in found.items()}}
        for i, name in enumerate(job.names)
        if int(found["num"][i])
    ]


def _number(value: Any) -> float | int | None:
    value = value.item()
    return value if isinstance(value, int) or math.isfinite(value) else None


def _confusions(job: Job, predicted: Tensor, labels: Tensor) -> dict[str, Any]:
    """The 20 commonest mistakes, and the whole matrix of a set with few classes."""
    num = len(job.names)
    counts = torch.bincount(labels * num + predicted, minlength=num * num).view(num, num)
    wrong = counts.clone().fill_diagonal_(0).flatten()
    best = wrong.topk(min(20, num * num))
    common = [
        {"label": job.names[i // num][0], "taken_for": job.names[i % num][0], "num": n}
        for i, n in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if n
    ]
    return {"common": common, "matrix": counts.tolist() if num <= _PICTURE else None}


def number_of_labels(ranks: Tensor, num: int) -> list[list[float]]:
    """[k, accuracy] if each picture had its right label among k - 1 of the others.

    Not drawn but exact: of num - 1 wrong labels rank - 1 score at least as well, and none of these
    is among the k - 1 with probability C(num - rank, k - 1) / C(num - 1, k - 1).
    """
    sizes = [k for k in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if k < num] + [num]
    right = torch.arange(1, num + 1, dtype=torch.float64)
    counts = torch.bincount(ranks, minlength=num + 1)[1:].double()

    def ln_choose(n: Tensor, k: int) -> Tensor:
        n = n.clamp(min=k)
        return torch.lgamma(n + 1) - torch.lgamma(n - k + 1) - math.lgamma(k + 1)

    found = []
    for k in sizes:
        clear = (ln_choose(num - right, k - 1) - ln_choose(right.new_tensor(num - 1), k - 1)).exp()
        clear[num - right < k - 1] = 0.0
        found.append([k, float((clear * counts).sum() / counts.sum())])
    return found


def _wording(job: Job, labels: Tensor) -> list[dict[str, Any]]:
    """The same pictures and labels with other sentences around the labels."""
    ways: dict[str, Any] = {job.row.templates or "of the data": job.templates} | _WORDINGS
    found, seen = [], set()
    for way, templates in ways.items():
        weights = _weights(job, templates)
        if (key := weights.numpy().tobytes()) in seen:
            continue
        seen.add(key)
        right = metrics.ranks(scores_of(job.vectors, weights), labels) == 1
        error = calibration(_shares(job, weights), labels)["ece"]
        found.append({"templates": way, "top1": share(right)._asdict(), "ece": error})
    return found


def halves(keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows to measure on, by the last bit of each key's SHA-256."""
    odd = torch.tensor([hashlib.sha256(key.encode()).digest()[-1] & 1 for key in keys]).bool()
    return (~odd).nonzero()[:, 0], odd.nonzero()[:, 0]


def _held_out(job: Job, shares: Tensor, labels: Tensor) -> dict[str, Any]:
    """Temperature, conformal sets and rejection, fitted on one half, measured on the other."""
    fit, test = halves([sample.key for sample in job.samples])
    if min(len(fit), len(test)) < _LEAST:
        return {}
    logits = shares.clamp(min=1e-300).log()
    scaled = Temperature().fit(logits[fit], labels[fit])
    after = scaled.predict_proba(logits[test])
    sets = Conformal(coverage=_COVERAGE).fit(shares[fit], labels[fit])
    chosen = sets.predict_sets(shares[test])
    covered = chosen.gather(1, labels[test, None])[:, 0]
    found: dict[str, Any] = {
        "fitted_on": len(fit),
        "measured_on": len(test),
        "temperature": float(scaled.temperature_),
        "ece_before": calibration(shares[test], labels[test])["ece"],
        "ece_after": calibration(after, labels[test])["ece"],
        "conformal": {
            "promised": _COVERAGE,
            "coverage": share(covered)._asdict(),
            "mean_size": float(chosen.sum(1).double().mean()),
        },
    }
    try:
        reject = Rejection(precision=_PRECISION).fit(shares[fit], labels[fit])
    except DataError as error:  # no threshold keeps the promise: that is a finding
        found["rejection"] = {"promised": _PRECISION, "why_not": str(error)}
        return found
    kept = reject.predict(shares[test]) >= 0
    right = shares[test].argmax(1)[kept] == labels[test][kept]
    found["rejection"] = {
        "promised": _PRECISION,
        "answered": share(kept)._asdict(),
        "precision": share(right)._asdict() if len(right) else None,
    }
    return found


def _by_group(scores: Tensor, labels: Tensor, groups: Sequence[str]) -> list[dict[str, Any]]:
    if len(set(groups)) < 2:
        return []
    return [
        {"group": name, "num": n, "top1": share_of(found["top1"], n)._asdict()}
        for name, found in metrics.group_figures(scores, labels, groups).items()
        for n in [int(found["n"])]
    ]


def _worst(job: Job, labels: Tensor, ranks: Tensor, predicted: Tensor, top: Tensor) -> list[Worst]:
    """Wrong, and surest of it."""
    wrong = (ranks > 1).nonzero()[:, 0]
    order = wrong[top[wrong].argsort(descending=True, stable=True)][:12]
    return [
        Worst(i, f"{job.names[label][0]}, taken for {job.names[taken][0]} ({sure:.0%})")
        for i, label, taken, sure in zip(
            order.tolist(),
            labels[order].tolist(),
            predicted[order].tolist(),
            top[order].tolist(),
            strict=True,
        )
    ]
