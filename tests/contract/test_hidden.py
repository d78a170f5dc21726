"""Hidden states and attention: the same contract for every tower."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diptych import towers
from diptych.config import BertConfig, EfficientNetConfig, TextConfig
from diptych.model.transformer import AttentionPool

EMBED_DIM = 24
TOWERS = (
    *("vit", "vit_map", "vit_clipa", "resnet", "efficientnet", "efficientnet_lite"),
    *("text", "text_siglip", "text_pad", "bert", "bert_class"),
)
EFFICIENTNET = EfficientNetConfig(
    image_size=(64, 64), width_mult=0.25, depth_mult=0.1, head_width=40
)
BERT = BertConfig(context_length=16, vocab_size=64, width=32, layers=3, heads=4, mlp_dim=64)


@pytest.fixture(params=TOWERS)
def tower_and_batch(request, tiny_vit, tiny_text, tiny_resnet, ids):
    image = torch.randn(2, 3, 64, 64)
    match request.param:
        case "vit":
            cfg, batch = tiny_vit, image
        case "vit_map":
            siglip = {"class_token": False, "pool": "map", "pre_norm": False, "proj": "none"}
            cfg = replace(tiny_vit, **siglip, width=EMBED_DIM, mlp_dim=48, init="big_vision")
            batch = image
        case "vit_clipa":
            clipa = {"pool": "mean", "norm_after_pool": True, "positions": "sincos2d"}
            cfg, batch = replace(tiny_vit, **clipa, pre_norm=False), image
        case "text":
            cfg, batch = tiny_text, ids
        case "text_siglip":
            cfg, batch = replace(tiny_text, causal=False, pool="last", proj="linear_bias"), ids
        case "text_pad":
            cfg, batch = replace(tiny_text, pad_id=0, pool="eos", eos_id=63), ids
        case "resnet":
            cfg, batch = tiny_resnet, image
        case "efficientnet":
            cfg, batch = EFFICIENTNET, image
        case "efficientnet_lite":
            cfg, batch = replace(EFFICIENTNET, lite=True), image
        case "bert":
            cfg, batch = BERT, ids
        case "bert_class":
            cfg, batch = replace(BERT, pool="class", proj="linear_bias"), ids
    return towers.build(cfg, EMBED_DIM).eval(), batch


def test_forward_is_composed_of_the_public_parts(tower_and_batch):
    tower, batch = tower_and_batch
    depth = len(tower.blocks)
    for layer in (-1, depth):
        hidden = tower.hidden(batch, layers=(layer,))
        vector = tower.project(tower.pool(tower.final_norm(hidden.tokens[layer]), hidden))
        assert torch.equal(vector, tower(batch))
        assert vector.shape == (len(batch), EMBED_DIM)


def test_keys_are_as_asked_and_states_are_the_blocks_own(tower_and_batch):
    tower, batch = tower_and_batch
    depth, inputs, outputs = len(tower.blocks), {}, {}
    for i, block in enumerate(tower.blocks, start=1):
        block.register_forward_pre_hook(lambda _, args, i=i: inputs.update({i: args[0]}))
        block.register_forward_hook(lambda _, args, out, i=i: outputs.update({i: out}))
    layers = (-1, 0, 2, -depth, depth)
    hidden = tower.hidden(batch, layers=layers)
    assert list(hidden.tokens) == list(layers)
    assert hidden.attention == {}
    as_tokens = (lambda x: x.flatten(2).mT) if inputs[1].ndim == 4 else (lambda x: x)
    assert torch.equal(hidden.tokens[0], as_tokens(inputs[1]))
    for layer in layers:
        if layer:
            expected = as_tokens(outputs[layer if layer > 0 else depth + 1 + layer])
            assert torch.equal(hidden.tokens[layer], expected)


def test_no_layer_asked_means_no_block_run(tower_and_batch):
    tower, batch = tower_and_batch
    hidden = tower.hidden(batch, layers=(), attention=())
    assert hidden.tokens == hidden.attention == {}


@pytest.mark.parametrize("asked", [{"layers": (9,)}, {"layers": (-9,)}, {"attention": (0,)}])
def test_a_layer_that_is_not_there_is_an_index_error(tower_and_batch, asked):
    tower, batch = tower_and_batch
    with pytest.raises(IndexError, match="layers"):
        tower.hidden(batch, **asked)


def test_attention_is_what_the_block_uses(tower_and_batch):
    tower, batch = tower_and_batch
    last = len(tower.blocks)
    if isinstance(tower.cfg, EfficientNetConfig):
        with pytest.raises(IndexError, match="a convolutional network has none"):
            tower.hidden(batch, attention=(last,))
        return
    hidden = tower.hidden(batch, layers=(last - 1, last), attention=(last, -1))
    weights = hidden.attention[last]
    assert torch.equal(weights, hidden.attention[-1])
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-6)

    x, post_norm = hidden.tokens[last - 1], isinstance(tower.cfg, BertConfig)
    if "attn" in dict(tower.blocks[-1].named_children()):
        block = tower.blocks[-1]
        x, attn = x if post_norm else block.ln_1(x), block.attn
        residual, expected = hidden.tokens[last - 1], hidden.tokens[last]
    else:  # a ResNet attends in its pool only
        attn, residual, expected = tower.attn_pool.attn, None, tower(batch)
        x = tower.attn_pool.embed(hidden.tokens[last], hidden.grid)
    values = attn.v_proj(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # n h s k
    y = attn.out_proj((weights @ values).transpose(1, 2).flatten(2))
    if residual is None:
        y = y[:, 0]
    elif post_norm:
        y = tower.blocks[-1].ln_1(residual + y)
        y = tower.blocks[-1].ln_2(y + tower.blocks[-1].mlp(y))
    else:
        y = residual + y
        y = y + tower.blocks[-1].mlp(tower.blocks[-1].ln_2(y))
    assert torch.allclose(y, expected, atol=1e-5)


def test_masks_are_respected(tower_and_batch):
    tower, batch = tower_and_batch
    if batch.ndim != 2:
        return
    weights = tower.hidden(batch, attention=(1,)).attention[1]
    allowed = torch.ones(16, 16, dtype=torch.bool)
    if isinstance(tower.cfg, TextConfig) and tower.cfg.causal:
        allowed = allowed.tril()
    if tower.cfg.pad_id is not None:
        allowed = allowed & (batch != 0)[:, None, None]
    assert weights.masked_select(~allowed).abs().sum() == 0
    assert (weights.masked_select(allowed) > 0).all()


def test_prefix_and_grid_name_the_patches(tower_and_batch):
    tower, batch = tower_and_batch
    hidden = tower.hidden(batch)
    if hidden.grid is not None:
        rows, columns = hidden.grid
        assert hidden.tokens[-1].shape[1] == hidden.prefix + rows * columns
    elif tower.cfg.pool == "mean":
        assert hidden.pooled is None
        assert torch.equal(hidden.mask, batch != 0)
    else:
        assert hidden.pooled.shape == (len(batch),)


def test_attention_pool_ignores_masked_tokens(tiny_vit):
    pool = AttentionPool(tiny_vit)
    torch.nn.init.normal_(pool.probe)
    x, mask = torch.randn(2, 5, 32), torch.tensor([[True] * 3 + [False] * 2] * 2)
    padded = F.pad(x[:, :3], (0, 0, 0, 2), value=7.0)
    assert torch.allclose(pool(padded, mask), pool(x[:, :3]), atol=1e-6)
