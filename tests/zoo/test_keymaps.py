"""Each table, read forwards and backwards, gives the same tensors; unknown keys are named."""

import pytest
import tiny_zoo
import torch

from diptych.errors import CheckpointError
from diptych.zoo import keymaps, open_clip_config
from diptych.zoo.keymaps import Rule, rename, restore

ROUND_TRIPS = [
    ("vit", keymaps.OPENAI, keymaps.OPENAI),
    ("vit", keymaps.OPENAI, keymaps.OPEN_CLIP),
    ("vit", keymaps.HF_CLIP, keymaps.HF_CLIP),
    ("gelu", keymaps.HF_CLIP, keymaps.HF_CLIP),
    ("resnet", keymaps.OPENAI_RESNET, keymaps.OPEN_CLIP_RESNET),
    ("siglip", keymaps.HF_SIGLIP, keymaps.HF_SIGLIP),
    ("siglip", open_clip_config.rules_for(tiny_zoo.CONFIGS["siglip"]), keymaps.OPEN_CLIP),
    ("clipa", keymaps.OPENAI, keymaps.OPEN_CLIP),
]


@pytest.mark.parametrize(("kind", "writing", "reading"), ROUND_TRIPS)
def test_each_table_is_its_own_inverse(kind, writing, reading):
    ours = tiny_zoo.weights(tiny_zoo.CONFIGS[kind])
    theirs = restore(ours, writing)
    assert tiny_zoo.same(rename(theirs, reading, source="file"), ours)


def test_published_spellings():
    theirs = restore(tiny_zoo.weights(tiny_zoo.CONFIGS["siglip"]), keymaps.HF_SIGLIP)
    assert theirs["vision_model.head.attention.in_proj_weight"].shape == (192, 64)
    assert theirs["logit_scale"].shape == theirs["logit_bias"].shape == (1,)
    theirs = restore(tiny_zoo.weights(tiny_zoo.CONFIGS["vit"]), keymaps.HF_CLIP)
    assert "vision_model.pre_layrnorm.weight" in theirs
    theirs = restore(tiny_zoo.weights(tiny_zoo.CONFIGS["vit"]), keymaps.OPENAI)
    assert theirs["visual.proj"].shape == (64, 48)
    assert theirs["transformer.resblocks.1.attn.in_proj_weight"].shape == (192, 64)


def test_unknown_key_names_file_key_and_fix():
    with pytest.raises(CheckpointError, match=r"a\.pt: no rule for key 'visual\.foo'.*rules="):
        rename({"visual.foo": torch.zeros(1)}, keymaps.OPENAI, source="a.pt")


def test_two_keys_for_one_tensor_are_refused():
    both = {"text_projection": torch.zeros(2, 2), "text.text_projection": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"both hold 'text\.proj\.weight'"):
        rename(both, keymaps.OPEN_CLIP, source="a.pt")


@pytest.mark.parametrize(
    ("key", "shape"), [("text_projection", (3,)), ("logit_scale", (2,)), ("visual.proj", (1, 2, 3))]
)
def test_a_shape_that_the_rule_cannot_take(key, shape):
    with pytest.raises(CheckpointError, match="cannot take"):
        rename({key: torch.zeros(shape)}, keymaps.OPENAI, source="a.pt")


def test_stray_position_ids_and_masks_are_dropped():
    stray = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
    assert rename({k: torch.zeros(1, 5) for k in stray}, keymaps.HF_CLIP, source="x") == {}
    assert rename({"attn_mask": torch.zeros(2, 2)}, keymaps.OPENAI, source="x") == {}


def test_restore_names_a_tensor_without_a_place():
    with pytest.raises(CheckpointError, match=r"no name for the tensor 'visual\.extra'"):
        restore({"visual.extra": torch.zeros(1)}, keymaps.OPENAI)


def test_every_rule_has_an_inverse_that_undoes_it():
    tables = [t for name, t in vars(keymaps).items() if name.isupper() and isinstance(t, tuple)]
    rules = {rule for table in tables for rule in table if isinstance(rule, Rule)}
    assert len(rules) > 50
    for rule in rules:
        inverse = keymaps.invert(rule)
        assert (inverse is None) == (rule.op == "drop")
