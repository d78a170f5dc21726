"""Alignment, uniformity and the gap: by hand, and by the code printed in the paper."""

import math

import torch
import torch.nn.functional as F

from diptych.eval.geometry import alignment, geometry, modality_gap, pair_cosine, uniformity


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def lunif(x, t=2):
    """Wang and Isola, figure 5: the loss as they print it."""
    return torch.pdist(x.double(), p=2).pow(2).mul(-t).exp().mean().log()


def test_uniformity_is_the_paper_s():
    for n, t in ((2, 2.0), (700, 2.0), (1200, 0.5)):
        x = unit(n, 5)
        assert math.isclose(uniformity(x, t=t), float(lunif(x, t)), abs_tol=1e-9)


def test_uniformity_of_many_is_that_of_a_fixed_draw():
    x = unit(8400, 4)
    assert uniformity(x) == uniformity(x)
    assert abs(uniformity(x) - float(lunif(x))) < 0.01


def test_ends_of_the_scale():
    same = unit(1, 8).expand(10, -1)
    assert abs(uniformity(same)) < 1e-12
    assert math.isnan(uniformity(same[:1]))
    assert abs(alignment(same, -same) - 4) < 1e-5
    assert abs(modality_gap(same, -same) - 2) < 1e-6
    mean, std = pair_cosine(same, -same)
    assert abs(mean + 1) < 1e-6
    assert abs(std) < 1e-6


def test_all_of_it_over_captions():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = geometry(images, texts, torch.tensor([0, 1, 1]))
    assert math.isclose(found["pair_cosine_mean"], 2.8 / 3, rel_tol=1e-6)
    assert math.isclose(found["alignment"], 2 - 2 * 2.8 / 3, rel_tol=1e-6)
    assert math.isclose(found["uniformity_image"], -4)  # one pair, at a right angle
    gap = math.dist((0.5, 0.5), (1.6 / 3, 1.8 / 3))
    assert math.isclose(found["modality_gap"], gap, rel_tol=1e-6)
