"""Pictures and their captions: retrieval both ways, with every caption, and by language."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from diptych.engine.prompts import fill
from diptych.eval import retrieval as ranking
from diptych.eval.tasks.outcome import Figure, Job, Outcome, Worst, mean, plain, share
from diptych.eval.uncertainty import bootstrap

__all__ = ["retrieval"]

_KS = (1, 5, 10)
_FEW = 10  # pictures, of which a language is not counted in the mean
_WAYS = ("image_to_text", "text_to_image")
_OF_LANGUAGES = ("image_to_text_r1", "text_to_image_r1", "mean_r1")


def retrieval(job: Job) -> Outcome:
    """R@1, R@5, R@10, ranks and mAP. A sample's group is the language of its captions.

    With several languages every language is searched alone, its own pictures and captions, and the
    figures of the set are the means over those with ten pictures or more.
    """
    languages = sorted({sample.group for sample in job.samples})
    if len(languages) > 1:
        return _by_language(job, languages)
    ranks = _ranks(job, list(range(len(job.samples))))
    (image_ranks, text_ranks), owner = ranks.of, ranks.owner
    figures = _figures(ranks)
    hits, n = image_ranks == 1, len(job.samples)
    return Outcome(
        figures=figures,
        chance=1 / n if job.row.metric.endswith("_r1") else None,
        items={
            "right": hits.numpy(),
            "rank": image_ranks.numpy(),
            "text_right": (text_ranks == 1).numpy(),
            "text_owner": owner.numpy(),
        },
        worst=[
            Worst(i, f"“{job.samples[i].captions[0]}” is at rank {image_ranks[i]:,}")
            for i in image_ranks.argsort(descending=True, stable=True)[:12].tolist()
            if image_ranks[i] > 1
        ],
    )


class _Ranks(NamedTuple):
    """Ranks of the best caption of each picture, and of the picture of each caption (`owner`)."""

    of: tuple[torch.Tensor, torch.Tensor]
    owner: torch.Tensor
    whole: dict[str, float]  # `eval.retrieval.retrieval`


def _ranks(job: Job, rows: list[int]) -> _Ranks:
    captions = [job.samples[i].captions for i in rows]
    owner = torch.tensor([i for i, some in enumerate(captions) for _ in some])
    texts = [fill(job.templates[0], text) for some in captions for text in some]
    vectors = job.encoder.encode_text(texts, out="torch").float().cpu()
    given = (job.vectors[rows], vectors, owner)
    return _Ranks(ranking.ranks(*given), owner, ranking.retrieval(*given))


def _figures(ranks: _Ranks) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    several = len(ranks.of[1]) > len(ranks.of[0])
    clusters = (None, ranks.owner.numpy() if several else None)
    for way, own, groups in zip(_WAYS, ranks.of, clusters, strict=True):
        for k in _KS:
            hits = own <= k
            found[f"{way}_r{k}"] = share(hits) if groups is None else mean(hits, clusters=groups)
        for key in ("median_rank", "map"):
            found[f"{way}_{key}"] = plain(ranks.whole[f"{way}_{key}"], "no interval")
    found["mean_r1"] = _mean_r1(ranks)
    return found


def _mean_r1(ranks: _Ranks) -> Figure:
    """Half the sum of both directions; whole pictures are drawn again, with their captions."""
    hits, of_text = (own.eq(1).double() for own in ranks.of)
    sums = torch.zeros_like(hits).index_add_(0, ranks.owner, of_text)
    nums = torch.bincount(ranks.owner, minlength=len(hits)).double()

    def half(rows: torch.Tensor) -> float:
        return float(hits[rows].mean() + sums[rows].sum() / nums[rows].sum()) / 2

    everything = torch.arange(len(hits))
    return Figure.of(half(everything), bootstrap(half, len(hits)))


def _by_language(job: Job, languages: list[str]) -> Outcome:
    table: list[dict[str, Any]] = []
    right = np.zeros(len(job.samples), dtype=bool)
    for language in languages:
        rows = [i for i, sample in enumerate(job.samples) if sample.group == language]
        ranks = _ranks(job, rows)
        right[rows] = (ranks.of[0] == 1).numpy()
        figures = _figures(ranks)
        shown = {key: figures[key]._asdict() for key in _OF_LANGUAGES}
        table.append({"language": language, "num": len(rows), "chance": 1 / len(rows)} | shown)
    # one of a few pictures is found by luck: it is in the table, not in the mean
    spoken = [line for line in table if line["num"] >= _FEW] or table
    # the languages share their pictures: as wide as if all of them erred together
    how = f"mean over {len(spoken)} languages, of the ends too"
    if len(spoken) < len(table):
        how += f"; {len(table) - len(spoken)} with fewer than {_FEW} pictures are left out"

    def of(key: str, end: str) -> float:
        return float(np.mean([line[key][end] for line in spoken]))

    return Outcome(
        figures={
            key: Figure(of(key, "value"), of(key, "low"), of(key, "high"), how)
            for key in _OF_LANGUAGES
        },
        chance=float(np.mean([line["chance"] for line in spoken])),
        tables={"languages": table},
        items={"right": right},
    )
