"""The vision transformer: patches, positions, pools, patch dropout."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diptych import towers
from diptych.model.vision import drop_patches, resize_positions


def test_patches_run_row_by_row_after_the_class_token(tiny_vit):
    tower = towers.build(replace(tiny_vit, pre_norm=False), 24)
    image = torch.randn(1, 3, 32, 32)
    tokens = tower.hidden(image, layers=(0,)).tokens[0]
    assert torch.equal(tokens[0, 0], tower.class_embedding + tower.positional_embedding[0])
    patch = image[:, :, 8:16, 24:32]  # row 1, column 3
    expected = tower.patch_embed(patch).flatten() + tower.positional_embedding[1 + 1 * 4 + 3]
    assert torch.allclose(tokens[0, 1 + 1 * 4 + 3], expected, atol=1e-6)


def test_native_positions_are_untouched():
    positions = torch.randn(1 + 16, 8)
    assert resize_positions(positions, 1, (4, 4), (4, 4)) is positions


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2))
def test_resized_positions(rows, columns, prefix):
    positions = torch.randn(prefix + 12, 5)
    out = resize_positions(positions, prefix, (3, 4), (rows, columns))
    assert out.shape == (prefix + rows * columns, 5)
    assert torch.equal(out[:prefix], positions[:prefix])
    # a constant field stays constant, whatever the grid
    flat = resize_positions(torch.ones(prefix + 12, 5), prefix, (3, 4), (rows, columns))
    assert torch.allclose(flat, torch.ones_like(flat), atol=1e-6)


def test_positions_are_resized_as_pictures():
    field = torch.linspace(0, 1, 6)[:, None].expand(6, 4).reshape(-1, 1)  # grows with the row
    out = resize_positions(field, 0, (6, 4), (3, 8)).reshape(3, 8)
    assert out[0, 0] < out[1, 0] < out[2, 0]
    assert torch.allclose(out, out[:, :1].expand(3, 8), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 48), (40, 8), (37, 33)])
def test_any_resolution_and_aspect(tiny_vit, size):
    tower = towers.build(tiny_vit, 24)
    hidden = tower.hidden(torch.randn(2, 3, *size))
    assert hidden.grid == (size[0] // 8, size[1] // 8)
    assert hidden.tokens[-1].shape == (2, 1 + hidden.grid[0] * hidden.grid[1], 32)


@pytest.mark.parametrize("class_token", [True, False])
def test_mean_pool_leaves_the_class_token_out(tiny_vit, class_token):
    cfg = replace(tiny_vit, class_token=class_token, pool="mean", norm_after_pool=True)
    tower = towers.build(cfg, 24)
    image = torch.randn(2, 3, 32, 32)
    tokens = tower.hidden(image).tokens[-1]
    expected = tower.proj(tower.ln_post(tokens[:, int(class_token) :].mean(1)))
    assert torch.equal(tower(image), expected)


def test_map_pool_is_an_attention_whose_query_is_learned(tiny_vit):
    cfg = replace(tiny_vit, class_token=False, pool="map", pre_norm=False, init="big_vision")
    tower = towers.build(cfg, 24)
    image = torch.randn(2, 3, 32, 32)
    pool, x = tower.attn_pool, tower.ln_post(tower.hidden(image).tokens[-1])
    original = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    attn = pool.attn
    fused = [torch.cat([getattr(attn, p).weight for p in ("q_proj", "k_proj", "v_proj")])]
    fused += [torch.cat([getattr(attn, p).bias for p in ("q_proj", "k_proj", "v_proj")])]
    with torch.no_grad():
        original.in_proj_weight.copy_(fused[0])
        original.in_proj_bias.copy_(fused[1])
        original.out_proj.load_state_dict(attn.out_proj.state_dict())
    y = original(pool.probe.expand(2, -1, -1), x, x)[0][:, 0]
    y = y + pool.mlp(F.layer_norm(y, (32,), pool.ln.weight, pool.ln.bias, pool.ln.eps))
    assert torch.allclose(tower(image), tower.proj(y), atol=1e-6)


def test_patch_dropout_is_for_training_only_and_keeps_the_class_token(tiny_vit):
    tower = towers.build(replace(tiny_vit, patch_dropout=0.5, pre_norm=False), 24)
    image = torch.randn(2, 3, 32, 32)
    full = tower.eval().embed(image)
    assert full.shape[1] == 17
    assert torch.equal(tower(image), tower(image))
    kept = tower.train().embed(image)
    assert kept.shape[1] == 1 + 8
    assert torch.equal(kept[:, 0], full[:, 0])
    for some, every in zip(kept[:, 1:], full[:, 1:], strict=True):
        matches = (some[:, None] == every[None]).all(-1)  # kept x patches
        assert matches.sum() == 8
        assert matches.any(0).sum() == 8  # eight different ones
    assert not torch.equal(kept, tower.embed(image))


@given(st.integers(1, 20), st.floats(0.0, 0.99), st.integers(0, 1))
def test_the_share_of_kept_patches(num_patches, rate, prefix):
    x = torch.randn(2, prefix + num_patches, 3)
    kept = drop_patches(x, prefix, rate)
    assert kept.shape[1] == prefix + max(1, int(num_patches * (1 - rate)))
