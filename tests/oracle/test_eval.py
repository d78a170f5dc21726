"""Retrieval, accuracy and intervals against scikit-learn, torch and scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from diptych.eval.geometry import modality_gap, pair_cosine, uniformity
from diptych.eval.retrieval import retrieval, wilson, zero_shot


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
