"""The text transformer: length, padding, pools, learned context."""

from dataclasses import replace

import pytest
import torch

from diptych import towers


@pytest.fixture
def text(tiny_text):
    return towers.build(tiny_text, 24).eval()


def test_real_length_equals_full_length(text, ids):
    for row in ids:
        real = row[: int(row.argmax()) + 1][None]
        assert (text(real) - text(row[None])).abs().max() <= 3e-6


def test_what_stands_after_eot_changes_nothing(text, ids):
    other = ids.clone()
    other[0, 5:] = torch.randint(1, 62, (11,))
    assert not torch.equal(other, ids)
    assert torch.equal(text(other), text(ids))


def test_a_bidirectional_tower_sees_its_padding(tiny_text, ids):
    text = towers.build(replace(tiny_text, causal=False), 24)
    other = ids.clone()
    other[0, 5:] = 7
    assert (text(other)[0] - text(ids)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_pad_id_hides_padding(tiny_text, ids, causal):
    cfg = replace(tiny_text, causal=causal, pad_id=0)
    text = towers.build(cfg, 24).eval()
    hidden = text.hidden(ids)
    assert torch.equal(hidden.mask, ids != 0)
    for row in ids:
        real = row[row != 0][None]
        assert (text(real) - text(row[None])).abs().max() <= 3e-6


def test_pools(tiny_text, ids):
    where = {
        "argmax": [4, 8, 15],
        "eos": [4, 8, 15],
        "last": [15, 15, 15],
        "first": [0, 0, 0],
    }
    for pool, expected in where.items():
        cfg = replace(tiny_text, pool=pool, eos_id=63 if pool == "eos" else None)
        assert towers.build(cfg, 24).pooled(ids).tolist() == expected
    # the first end counts, though a higher id comes later
    cfg = replace(tiny_text, pool="eos", eos_id=2)
    assert towers.build(cfg, 24).pooled(torch.tensor([[62, 9, 2, 63, 2]])).tolist() == [2]


def test_embeddings_stand_in_for_ids(text, ids):
    assert torch.equal(text(ids, embeddings=text.embed(ids)), text(ids))


def test_gradient_reaches_the_learned_context_only(text, ids):
    """CoOp (arXiv 2109.01134): vectors after the start token, the ids only place EOT."""
    for parameter in text.parameters():
        parameter.requires_grad_(False)
    tokens = text.embed(ids)
    context = tokens[:, 1:4].clone().requires_grad_()
    spliced = torch.cat([tokens[:, :1], context, tokens[:, 4:]], dim=1)
    out = text(ids, embeddings=spliced)
    assert torch.equal(out, text(ids))

    out.sum().backward()
    assert context.grad.abs().sum(dim=(1, 2)).gt(0).all()
    assert all(parameter.grad is None for parameter in text.parameters())
