"""Retrieval, choices and accuracy against scikit-learn, clip_benchmark, torchmetrics and scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from report import record
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    label_ranking_average_precision_score,
    top_k_accuracy_score,
)

from diptych.eval.choice import winoground
from diptych.eval.geometry import modality_gap, pair_cosine, uniformity
from diptych.eval.overlap import with_and_without
from diptych.eval.retrieval import ranks, retrieval, zero_shot
from diptych.eval.uncertainty import wilson

SECTION = "Retrieval and choice"


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pairs(n: int, captions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, own = unit(n, 64, seed=0), torch.arange(n).repeat_interleave(captions)
    noise = unit(n * captions, 64, seed=1)
    return images, F.normalize(images[own] + 2.2 * noise, dim=-1), own


def test_one_caption_an_image_is_top_k_accuracy():
    images, texts, own = pairs(400, 1)
    found = retrieval(images, texts, own)
    scores = (images @ texts.T).numpy()
    for k in (1, 5, 10):
        for way, table in (("image_to_text", scores), ("text_to_image", scores.T)):
            theirs = top_k_accuracy_score(own, table, k=k, labels=own)
            assert found[f"{way}_r{k}"] == pytest.approx(theirs, abs=1e-12)
            assert 0.1 < theirs < 1


def recall_at_k(scores: torch.Tensor, right: torch.Tensor, k: int) -> float:
    """The rule of the Karpathy split, as papers state it: is any right one among the first k?"""
    first = scores.topk(k, dim=1).indices
    return float((right.gather(1, first).sum(1) > 0).double().mean())


def test_five_captions_an_image():
    images, texts, own = pairs(300, 5)
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(2))
    texts, own = texts[order], own[order]
    found = retrieval(images, texts, own)
    scores, right = images @ texts.T, own[None] == torch.arange(300)[:, None]
    for k in (1, 5, 10):
        there = pytest.approx(recall_at_k(scores, right, k), abs=1e-12)
        back = pytest.approx(recall_at_k(scores.T, right.T, k), abs=1e-12)
        assert found[f"image_to_text_r{k}"] == there
        assert found[f"text_to_image_r{k}"] == back


@pytest.mark.parametrize("captions", [1, 5])
def test_recall_of_clip_benchmark(captions):
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    peer = "clip-benchmark"
    images, texts, own = pairs(300, captions)
    found = retrieval(images, texts, own)
    scores, right = texts @ images.T, own[:, None] == torch.arange(300)
    for k in (1, 5, 10):
        for way, s, r in (("text_to_image", scores, right), ("image_to_text", scores.T, right.T)):
            theirs = (batchify(recall_at_k, s, r, 64, "cpu", k=k) > 0).double().mean()
            difference = abs(found[f"{way}_r{k}"] - float(theirs))
            record(SECTION, f"R@1, R@5, R@10, {captions} captions", difference, 1e-12, peer)
            assert k > 1 or 0.1 < theirs < 1


def test_average_precision_and_recall_of_torchmetrics():
    from torchmetrics.retrieval import RetrievalMAP, RetrievalRecall

    images, texts, own = pairs(120, 5)
    found = retrieval(images, texts, own)
    scores, right = images @ texts.T, own[None] == torch.arange(120)[:, None]
    for way, s, r in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        query = torch.arange(len(s))[:, None].expand_as(s)
        theirs = RetrievalMAP()(s.flatten(), r.flatten(), indexes=query.flatten())
        difference = abs(found[f"{way}_map"] - float(theirs))
        record(SECTION, "mAP", difference, 1e-6, "torchmetrics")
        peer = label_ranking_average_precision_score(r.numpy(), s.double().numpy())
        record(SECTION, "mAP", abs(found[f"{way}_map"] - peer), 1e-12, "scikit-learn")
    recall = RetrievalRecall(top_k=5)
    args = (scores.T.flatten(), right.T.flatten())
    theirs = recall(*args, indexes=torch.arange(600)[:, None].expand(600, 120).flatten())
    difference = abs(found["text_to_image_r5"] - float(theirs))
    record(SECTION, "R@5, one right image a text", difference, 1e-6, "torchmetrics")


def test_ranks_as_numpy_sorts_them():
    images, texts, own = pairs(700, 4)
    by_image, by_text = ranks(images, texts, own)
    scores = (images.double() @ texts.double().T).float().numpy()
    right = scores[own.numpy(), np.arange(2800)]
    theirs = 1 + (scores > right).sum(0)
    record(
        SECTION, "ranks of 2,800 texts that differ", (by_text.numpy() != theirs).sum(), 0, "numpy"
    )
    best = np.where(own.numpy() == np.arange(700)[:, None], scores, -9).max(1, keepdims=True)
    wrong = own.numpy() != np.arange(700)[:, None]
    theirs = 1 + ((scores > best) & wrong).sum(1)
    record(
        SECTION, "ranks of 700 images that differ", (by_image.numpy() != theirs).sum(), 0, "numpy"
    )


def test_winoground_as_clip_benchmark_counts_it():
    """Its image_caption_selection: argmax over texts and over pictures, both samples right."""
    scores = torch.rand(1000, 2, 2, generator=torch.Generator().manual_seed(0))
    found, own = winoground(scores), torch.arange(2)
    text = (scores.argmax(2) == own).all(1)
    image = (scores.argmax(1) == own).all(1)
    theirs = {"text_score": text, "image_score": image, "group_score": text & image}
    for key, hits in theirs.items():
        differ = float((hits != found[key]).sum())
        record(SECTION, "Winoground: samples that differ", differ, 0, "argmax, as clip-benchmark")


def test_overlap_s_binomial_test():
    rng = np.random.default_rng(0)
    for n, inside, share in ((200, 20, 0.7), (5000, 300, 0.9), (50, 3, 0.2)):
        right, marks = rng.random(n) < share, np.arange(n) < inside
        found = with_and_without(torch.from_numpy(right), torch.from_numpy(marks))
        hits = int(right[:inside].sum())
        test = binomtest(hits, inside, float(right[inside:].mean()), alternative="greater")
        record(SECTION, "overlap: one-sided binomial p", abs(found.p - test.pvalue), 1e-9, "scipy")
        exact = binomtest(hits, inside).proportion_ci(0.995)
        for end, peer in zip(found.intervals["overlap"][:2], (exact.low, exact.high), strict=True):
            record(SECTION, "overlap: 99.5 % Clopper-Pearson ends", abs(end - peer), 1e-9, "scipy")


def test_ranks_of_open_clip_s_trainer():
    """`get_clip_metrics` of open_clip_train: the position of the right one in a sorted row."""
    images, texts, own = pairs(400, 1)
    found = retrieval(images, texts, own)
    logits = images @ texts.T
    for way, table in (("image_to_text", logits), ("text_to_image", logits.T)):
        ranking = torch.argsort(table, descending=True)
        ranks = torch.where(ranking == own.view(-1, 1))[1].numpy() + 1
        assert found[f"{way}_mean_rank"] == pytest.approx(ranks.mean(), abs=1e-12)
        assert found[f"{way}_median_rank"] == np.median(ranks)


def test_zero_shot_is_accuracy():
    classes, labels = unit(20, 64, seed=0), (20 * torch.linspace(0, 0.999, 1000) ** 2).long()
    images = F.normalize(classes[labels] + 2.5 * unit(1000, 64, seed=1), dim=-1)
    found = zero_shot(images, labels, classes)
    scores = (images @ classes.T).numpy()
    for k in (1, 5):
        theirs = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(20))
        assert found[f"top{k}"] == pytest.approx(theirs, abs=1e-12)
    theirs = balanced_accuracy_score(labels, scores.argmax(1))
    assert found["mean_per_class"] == pytest.approx(theirs, abs=1e-12)
    assert abs(found["mean_per_class"] - found["top1"]) > 1e-3  # the classes are not balanced


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 7), (15, 50), (333, 1000), (1000, 1000)])
def test_wilson_is_scipy_s(hits, n):
    theirs = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def test_geometry():
    a, b = unit(500, 16, seed=0), unit(500, 16, seed=1)
    paper = torch.pdist(a.double()).pow(2).mul(-2).exp().mean().log()
    assert uniformity(a) == pytest.approx(float(paper), abs=1e-9)
    gap = np.linalg.norm(a.double().numpy().mean(0) - b.double().numpy().mean(0))
    assert modality_gap(a, b) == pytest.approx(gap, abs=1e-12)
    cosines = F.cosine_similarity(a.double(), b.double()).numpy()
    assert pair_cosine(a, b) == pytest.approx((cosines.mean(), cosines.std()), abs=1e-7)
