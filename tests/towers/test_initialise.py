"""Starting values: the statistics of openai/CLIP's and big_vision's formulas."""

from dataclasses import replace

import pytest
import torch

from diptych import towers
from diptych.config import ResNetConfig, TextConfig, ViTConfig
from diptych.towers.initialise import sincos2d

WIDTH, LAYERS, MLP = 256, 2, 1024
SIZE = {"width": WIDTH, "layers": LAYERS, "heads": 4, "mlp_dim": MLP}
TEXT = TextConfig(context_length=77, vocab_size=2000, **SIZE)
VIT = ViTConfig(image_size=(128, 128), patch_size=16, **SIZE)
SIGLIP = replace(
    VIT, class_token=False, pool="map", pre_norm=False, patch_bias=True, init="big_vision"
)


def is_normal(tensor, std):
    assert tensor.std().item() == pytest.approx(std, rel=0.03)
    assert abs(tensor.mean().item()) < 0.05 * std
    assert tensor.abs().max() > 2 * std  # tails: a uniform one ends at 1.73


def is_uniform(tensor, bound):
    assert 0.98 * bound < tensor.abs().max() <= bound * (1 + 1e-6)
    assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def linears(attn):
    return attn.q_proj, attn.k_proj, attn.v_proj


def test_openai_text():
    tower = towers.build(TEXT, 128)
    is_normal(tower.token_embedding.weight, 0.02)
    is_normal(tower.positional_embedding, 0.01)
    is_normal(tower.proj.weight, WIDTH**-0.5)
    for block in tower.blocks:
        for linear in linears(block.attn):
            is_normal(linear.weight, WIDTH**-0.5)
            assert not linear.bias.any()
        is_normal(block.attn.out_proj.weight, WIDTH**-0.5 * (2 * LAYERS) ** -0.5)
        is_normal(block.mlp.c_proj.weight, WIDTH**-0.5 * (2 * LAYERS) ** -0.5)
        is_normal(block.mlp.c_fc.weight, (2 * WIDTH) ** -0.5)
        assert not block.attn.out_proj.bias.any()


def test_openai_vision_keeps_what_multihead_attention_does():
    tower = towers.build(VIT, 128)
    is_normal(tower.positional_embedding, WIDTH**-0.5)
    assert tower.class_embedding.std().item() == pytest.approx(WIDTH**-0.5, rel=0.15)
    is_normal(tower.proj.weight, WIDTH**-0.5)
    for block in tower.blocks:
        for linear in linears(block.attn):
            is_uniform(linear.weight, (6 / (4 * WIDTH)) ** 0.5)  # Xavier over [3d d]
            assert not linear.bias.any()
        is_uniform(block.attn.out_proj.weight, WIDTH**-0.5)
        is_uniform(block.mlp.c_fc.weight, WIDTH**-0.5)
        assert not block.attn.out_proj.bias.any()


def test_openai_resnet():
    cfg = ResNetConfig(image_size=(64, 64), layers=(1, 2, 1, 1), width=16, heads=8)
    tower = towers.build(cfg, 128)
    attn = tower.attn_pool.attn
    for linear in (*linears(attn), attn.out_proj):
        is_normal(linear.weight, 512**-0.5)
    is_normal(tower.attn_pool.positional_embedding, 512**-0.5)
    bottlenecks = [b for stage in tower.blocks for b in stage]
    assert len(bottlenecks) == 5
    for bottleneck in bottlenecks:
        assert not bottleneck.bn3.weight.any()
        assert bottleneck.bn1.weight.eq(1).all()
        assert bottleneck.bn2.weight.eq(1).all()
    assert tower.bn3.weight.eq(1).all()  # of the stem, not of a bottleneck


@pytest.mark.parametrize("side", ["vision", "text"])
def test_big_vision(side):
    if side == "vision":
        tower = towers.build(SIGLIP, 128)
        pool = tower.attn_pool
        bound = (6 / (1 + WIDTH)) ** 0.5
        assert 0.9 * bound < pool.probe.abs().max() <= bound
        parts = [*tower.blocks, pool]
        is_normal(tower.patch_embed.weight, (3 * 16 * 16) ** -0.5)
        assert not tower.patch_embed.bias.any()
        is_normal(tower.positional_embedding, WIDTH**-0.5)
    else:
        text = replace(TEXT, init="big_vision", causal=False, pool="last", proj="linear_bias")
        tower = towers.build(text, 128)
        parts = list(tower.blocks)
        is_normal(tower.positional_embedding, WIDTH**-0.5)
        is_normal(tower.token_embedding.weight, WIDTH**-0.5)
        assert not tower.proj.bias.any()
    for part in parts:
        for linear in (*linears(part.attn), part.attn.out_proj):
            is_uniform(linear.weight, (6 / (2 * WIDTH)) ** 0.5)
            assert not linear.bias.any()
        for linear in (part.mlp.c_fc, part.mlp.c_proj):
            is_uniform(linear.weight, (6 / (WIDTH + MLP)) ** 0.5)
            assert 0 < linear.bias.abs().max() < 1e-5


def test_sincos2d_is_mae_s():
    """Equal to get_2d_sincos_pos_embed of facebookresearch/mae, written out for one position."""
    positions = sincos2d(16, (3, 5))
    assert positions.shape == (15, 16)
    y, x = 2, 4
    omega = [10000 ** -(i / 4) for i in range(4)]
    expected = [
        *(torch.sin(torch.tensor(x * o)) for o in omega),
        *(torch.cos(torch.tensor(x * o)) for o in omega),
        *(torch.sin(torch.tensor(y * o)) for o in omega),
        *(torch.cos(torch.tensor(y * o)) for o in omega),
    ]
    assert torch.allclose(positions[y * 5 + x], torch.stack(expected), atol=1e-6)
    cfg = replace(VIT, positions="sincos2d", pool="mean", norm_after_pool=True)
    tower = towers.build(cfg, 128)
    assert torch.equal(tower.positional_embedding[1:], sincos2d(WIDTH, cfg.grid))
    assert not tower.positional_embedding[0].any()
    assert not tower.positional_embedding.requires_grad
    assert "positional_embedding" in tower.state_dict()
