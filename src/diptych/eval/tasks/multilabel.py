"""Pictures with any number of labels: average precision, per class and over all."""

from __future__ import annotations

import torch

from diptych.eval import metrics
from diptych.eval.tasks.classification import scores_of
from diptych.eval.tasks.outcome import Figure, Job, Outcome, Worst
from diptych.eval.uncertainty import bootstrap
from diptych.eval.zeroshot import zero_shot_weights

__all__ = ["multilabel"]


def multilabel(job: Job) -> Outcome:
    """mAP and its kin. The paper's 11-point mAP is taken after a softmax over the classes."""
    truth = torch.zeros(len(job.samples), len(job.names), dtype=torch.bool)
    for row, sample in enumerate(job.samples):
        truth[row, list(sample.labels)] = True
    weights = zero_shot_weights(job.encoder, job.names, job.templates).float().cpu()
    scores = scores_of(job.vectors, weights)
    device = job.encoder.device
    ranked = job.encoder.probabilities(job.vectors.to(device), weights.to(device)).cpu()
    # a softmax changes the order of pictures within a class, which a cosine's scale does not
    found = metrics.multilabel(scores, truth)
    found["map_11_point"] = metrics.multilabel(ranked, truth)["map_11_point"]
    figures = {}
    for key, value in found.items():
        of = ranked if key == "map_11_point" else scores
        interval = bootstrap(
            lambda rows, key=key, of=of: metrics.multilabel(of[rows], truth[rows])[key],
            len(truth),
            samples=200,
        )
        figures[key] = Figure.of(value, interval)
    per_class = [
        {
            "class": name[0],
            "num": int(truth[:, i].sum()),
            "average_precision": metrics.average_precision(scores[:, i], truth[:, i]),
        }
        for i, name in enumerate(job.names)
        if truth[:, i].any()
    ]
    best = scores.argmax(1)
    right = truth.gather(1, best[:, None])[:, 0]
    wrong = (~right).nonzero()[:, 0]
    order = wrong[scores.amax(1)[wrong].argsort(descending=True, stable=True)][:12]
    return Outcome(
        figures=figures,
        chance=float(truth.double().mean(0)[truth.any(0)].mean()),
        tables={"per_class": per_class},
        items={"right": right.numpy(), "predicted": best.numpy()},
        worst=[
            Worst(i, f"{_called(job, truth[i])}, taken for {job.names[int(best[i])][0]}")
            for i in order.tolist()
        ],
    )


def _called(job: Job, truth: torch.Tensor) -> str:
    return ", ".join(job.names[i][0] for i in truth.nonzero()[:, 0].tolist()) or "nothing"
