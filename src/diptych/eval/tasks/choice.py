"""Which text fits which picture: Winoground, SugarCrepe, ARO, WinoGAViL. A tie is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diptych.engine.prompts import fill
from diptych.eval import choice as rules
from diptych.eval.tasks.outcome import Figure, Job, Outcome, Worst, mean, share, share_of
from diptych.eval.uncertainty import bootstrap

__all__ = ["choice"]

_HARD = ("10", "12")  # numbers of pictures of the WinoGAViL samples that DataComp quotes


def choice(job: Job) -> Outcome:
    """What the samples are decides the rule.

    One picture and several texts: the first text must win (`pair_accuracy`). Two pictures and two
    texts: Winoground. Several pictures and one text: the pictures in `labels` (WinoGAViL).
    """
    scores = _scores(job)
    shape = {s.shape for s in scores}
    if all(rows == cols == 2 for rows, cols in shape):
        return _winoground(job, torch.stack(scores))
    if all(cols == 1 for _, cols in shape):
        return _associations(job, scores)
    return _pairs(job, scores)


def _scores(job: Job) -> list[torch.Tensor]:
    """Cosines [pictures texts] of each sample."""
    texts = [fill(job.templates[0], text) for s in job.samples for text in s.captions]
    vectors = job.encoder.encode_text(texts, out="torch").cpu().double()
    parts = vectors.split([len(s.captions) for s in job.samples])
    pairs = zip(job.vectors, parts, strict=True)
    return [(pictures.double() @ part.T).float() for pictures, part in pairs]


def _winoground(job: Job, scores: torch.Tensor) -> Outcome:
    found = rules.winoground(scores)
    worst = (~found["group_score"]).nonzero()[:12, 0].tolist()
    return Outcome(
        figures={key: share(hits) for key, hits in found.items()},
        chance=rules.CHANCE[job.row.metric],
        items={"right": found["group_score"].numpy()},
        worst=[Worst(i, " / ".join(job.samples[i].captions)) for i in worst],
    )


def _pairs(job: Job, scores: list[torch.Tensor]) -> Outcome:
    right = torch.cat([rules.one_of(s[:1]) for s in scores])
    figures = {"pair_accuracy": share(right)} | _blind(job)
    groups = np.array([sample.group for sample in job.samples])
    names = np.unique(groups)
    tables = {}
    if len(names) > 1:
        codes = np.unique(groups, return_inverse=True)[1]

        def macro(rows: torch.Tensor) -> float:
            return rules.macro(right[rows], codes[np.asarray(rows)])

        everything = torch.arange(len(right))
        figures["macro_pair_accuracy"] = Figure.of(macro(everything), bootstrap(macro, len(right)))
        tables["groups"] = [
            {"group": name, "num": int((groups == name).sum()), "top1": share(r)._asdict()}
            for name in names.tolist()
            for r in [right.numpy()[groups == name]]
        ]
    worst = (~right).nonzero()[:12, 0].tolist()
    return Outcome(
        figures=figures,
        chance=float(np.mean([1 / len(s.captions) for s in job.samples])),
        tables=tables,
        items={"right": right.numpy()},
        worst=[Worst(i, " / ".join(job.samples[i].captions[:2])) for i in worst],
    )


def _blind(job: Job) -> dict[str, Figure]:
    """The texts without their pictures, by their cosine to the mean of all pictures."""
    centre = torch.cat(job.vectors).double().mean(0)

    def score(texts: Sequence[str]) -> torch.Tensor:
        filled = [fill(job.templates[0], text) for text in texts]
        return job.encoder.encode_text(filled, out="torch").cpu().double() @ centre

    found = rules.blind([sample.captions for sample in job.samples], score)
    key = "blind_pair_accuracy"
    figure = share_of(found[key], len(job.samples))
    how = f"without looking: the text nearest to the mean picture; {figure.how}"
    return {key: figure._replace(how=how)}


def _associations(job: Job, scores: list[torch.Tensor]) -> Outcome:
    found = torch.tensor(
        [
            rules.jaccard(s[:, 0], torch.tensor(sample.labels))
            for s, sample in zip(scores, job.samples, strict=True)
        ],
        dtype=torch.float64,
    )
    worst = found.argsort(stable=True)[:12].tolist()
    figures = {"jaccard": mean(found)}
    hard = torch.tensor([sample.group in _HARD for sample in job.samples])
    if hard.any() and not hard.all():
        figures["jaccard_10_12"] = mean(found[hard])
    return Outcome(
        figures=figures,
        chance=rules.CHANCE["jaccard"],
        items={"right": (found == 1).numpy(), "jaccard": found.numpy()},
        worst=[Worst(i, job.samples[i].captions[0]) for i in worst],
    )
