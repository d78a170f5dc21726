"""The faster modules mean the same: outputs, gradients, names; and they stay out of the way."""

import copy
import platform

import pytest
import torch
from torch import nn

from diptych import towers
from diptych.model.transformer import Attention, quick_gelu
from diptych.train import fast

BF16 = torch.bfloat16


@pytest.fixture
def models(tiny_clip) -> tuple[nn.Module, nn.Module]:
    plain = towers.build(tiny_clip)
    quick = copy.deepcopy(plain)
    fast.quicken(quick)
    assert [m for m in quick.modules() if isinstance(m, Attention) and type(m) is not Attention]
    return plain, quick


def gradients(model, image, ids, dtype=None) -> torch.Tensor:
    """All gradients of a toy loss, as one vector in float64."""
    model = copy.deepcopy(model)
    enabled = dtype is not None
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=enabled):
        features = model(image, ids)
    weights = torch.linspace(-1, 1, features.image_features.numel(), dtype=image.dtype)
    weights = weights.view_as(features.image_features)
    ((features.image_features - 0.5 * features.text_features).square() * weights).sum().backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_same_in_float64(models, ids):
    image = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    plain, quick = (model.double() for model in models)
    for a, b in zip(plain(image, ids), quick(image, ids), strict=True):
        assert a is b is None or torch.allclose(a, b, atol=1e-14)
    assert distance(gradients(quick, image, ids), gradients(plain, image, ids)) <= 1e-13


def test_bf16_is_no_farther_from_the_truth(tiny_clip):
    errors = []
    for seed in range(8):  # one alone says nothing: +-20 % either way
        torch.manual_seed(seed)
        plain, ids = towers.build(tiny_clip), torch.randint(1, 62, (8, 16))
        ids[:, 9], image = 63, torch.randn(8, 3, 32, 32)
        truth = gradients(copy.deepcopy(plain).double(), image.double(), ids)
        quick = copy.deepcopy(plain)
        fast.quicken(quick)
        errors.append([distance(gradients(m, image, ids, BF16), truth) for m in (plain, quick)])
    plain, quick = torch.tensor(errors).mean(0)
    assert 0 < quick <= 1.1 * plain, errors


def test_masks_and_cross_attention():
    """A padding mask, and one query for many tokens (the MAP head)."""
    plain = Attention(16, 2)
    quick = copy.deepcopy(plain)
    fast.quicken(nn.ModuleList([quick]))
    x, mask = torch.randn(2, 5, 16), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[0, ..., 3:] = False
    for query in (x, x[:, :1]):
        with torch.autocast("cpu", torch.bfloat16):
            y, z = plain(query, x, mask), quick(query, x, mask)
        assert y.dtype == z.dtype == torch.bfloat16
        torch.testing.assert_close(y, z, atol=1e-2, rtol=0)
        torch.testing.assert_close(plain(query, x, mask), quick(query, x, mask))


def test_fp32_attention_is_the_plain_one(models):
    plain, quick = (model.visual.blocks[0].attn for model in models)
    x = torch.randn(2, 5, 32)
    assert torch.equal(plain(x, x), quick(x, x))


def test_names_copies_and_checkpointing_stay(models, ids):
    plain, quick = models
    assert list(plain.state_dict()) == list(quick.state_dict())
    image = torch.randn(3, 3, 32, 32)
    expected = gradients(quick, image, ids, BF16)
    quick.visual.checkpointing = quick.text.checkpointing = True
    assert torch.equal(gradients(quick, image, ids, BF16), expected)


def test_quick_gelu():
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64, requires_grad=True)
    (a,) = torch.autograd.grad(quick_gelu(x).sum(), x)
    (b,) = torch.autograd.grad(fast._quick_gelu(x).sum(), x)
    torch.testing.assert_close(fast._quick_gelu(x), quick_gelu(x), atol=1e-15, rtol=1e-13)
    torch.testing.assert_close(a, b, atol=1e-15, rtol=1e-12)


def test_memory_is_kept_where_there_is_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert fast.keep_memory() is False
