"""BERT's encoder: padding reaches nothing, pooling, embeddings, sizes."""

from dataclasses import replace

import pytest
import torch

from diptych import towers
from diptych.config import BertConfig, from_dict, to_dict
from diptych.errors import ConfigError

TINY = BertConfig(context_length=16, vocab_size=64, width=32, layers=3, heads=4, mlp_dim=64)
MINILM = BertConfig(
    context_length=512, vocab_size=30522, width=384, layers=6, heads=12, mlp_dim=1536, proj="none"
)


def tower_of(cfg=TINY):
    torch.manual_seed(0)
    tower = towers.build(cfg, 24).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return tower


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        tower = towers.build(MINILM, 384)
    pooler = 384 * 384 + 384  # the tanh pooler, which no feature uses
    assert sum(p.numel() for p in tower.parameters()) == 22_713_216 - pooler


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_padding_reaches_no_vector(ids, pool):
    tower = tower_of(replace(TINY, pool=pool))
    whole = tower(ids)
    for row, vector in zip(ids, whole, strict=True):
        alone = tower(row[row != 0][None])[0]
        assert (alone - vector).norm() < 2e-6 * vector.norm()  # a longer product adds up otherwise


def test_without_a_padding_id_every_token_counts(ids):
    tower, other = tower_of(replace(TINY, pad_id=None)), tower_of()
    assert tower.hidden(ids).mask is None
    assert (tower(ids) - other(ids)).abs().max() > 1e-2
    assert torch.allclose(tower(ids[2:]), other(ids[2:]), atol=2e-6)  # this text has no padding


def test_the_mean_is_over_real_tokens(ids):
    tower = tower_of()
    hidden = tower.hidden(ids)
    expected = [t[i != 0].mean(0) for t, i in zip(hidden.tokens[-1], ids, strict=True)]
    pooled = tower.pool(hidden.tokens[-1], hidden)
    assert torch.allclose(pooled, torch.stack(expected), atol=1e-6)


def test_embeddings_replace_the_tokens_and_ids_keep_the_mask(ids):
    tower = tower_of()
    assert torch.equal(tower(ids, embeddings=tower.embed(ids)), tower(ids))
    changed = torch.where((ids == 0)[..., None], 7.0, tower.embed(ids))
    assert torch.allclose(tower(ids, embeddings=changed), tower(ids), atol=2e-6)


def test_only_the_first_token_type_counts(ids):
    tower = tower_of()
    before = tower(ids)
    with torch.no_grad():
        tower.type_embedding[1] += 1
    assert torch.equal(tower(ids), before)
    with torch.no_grad():
        tower.type_embedding[0, :16] += 1
    assert (tower(ids) - before).abs().max() > 1e-3


def test_a_checkpointed_step_is_the_same_step(ids):
    gradients = []
    for checkpointing in (False, True):
        tower = tower_of().train()
        tower.checkpointing = checkpointing
        tower(ids).square().sum().backward()
        gradients.append(tower.blocks[0].attn.q_proj.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_starting_values_are_those_of_the_original():
    tower = towers.build(replace(MINILM, proj="linear_bias"), 128)
    for weight in (tower.token_embedding.weight, tower.blocks[0].mlp.c_fc.weight):
        assert weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.02 * 0.87962566, rel=0.03)
    assert tower.proj.weight.std().item() == pytest.approx(384**-0.5, rel=0.03)
    assert not tower.proj.bias.any()
    assert not tower.blocks[0].attn.out_proj.bias.any()


def test_the_config_round_trips_and_refuses_nonsense():
    cfg = replace(TINY, pad_id=None, pool="class", proj="none")
    assert from_dict(to_dict(cfg)) == cfg
    with pytest.raises(ConfigError, match="not a multiple of heads"):
        replace(TINY, heads=5)
