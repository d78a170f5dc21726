"""What is trained: frozen parts, adapters, modes, precision, and whose weights they are."""

import miniature
import pytest
import torch
from miniature import CLIP, MODEL, config, of_model
from torch import nn

import diptych
from diptych.config import BertConfig, ResNetConfig, TextConfig
from diptych.errors import ConfigError
from diptych.train.config import LoraConfig, ModelConfig
from diptych.train.parts import (
    can_trim,
    distribute,
    drop_patches,
    precision_of,
    prepare,
    set_modes,
    start_encoder,
)
from diptych.train.world import World

RUN = config("nothing")
CPU = torch.device("cpu")


def prepared(**changes):
    run = of_model(RUN, **changes)
    model = start_encoder(run).model
    prepare(model, run)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_random_weights_hang_on_the_seed():
    first, again, other = (
        start_encoder(miniature.replace(RUN, seed=seed)).model.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["visual.proj.weight"], other["visual.proj.weight"])


def test_weights_of_a_file_are_copies(tmp_path):
    path = tmp_path / "tiny.safetensors"
    diptych.zoo.save(start_encoder(RUN), path)
    before = path.read_bytes()
    run = of_model(RUN, start=str(path), clip=None, preprocess=None, tokenizer=None)
    model = start_encoder(run).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == before
    assert diptych.load(path, device="cpu").model.visual.proj.weight.any()


def test_weights_and_random_weights_at_once():
    with pytest.raises(ConfigError, match=r"model\.clip asks for random ones"):
        start_encoder(of_model(RUN, start="mini"))
    with pytest.raises(ConfigError, match=r"model\.fresh: all weights are random"):
        start_encoder(of_model(RUN, fresh=("text",)))


def test_neither_weights_nor_a_config():
    with pytest.raises(ConfigError, match=r"give start= \(weights\), or build="):
        start_encoder(of_model(RUN, clip=None))


@pytest.mark.parametrize("freeze", [("visual",), ("text",), ("visual.blocks.0", "logit_scale")])
def test_what_is_frozen_is_not_trained_and_the_rest_is(freeze):
    model = prepared(freeze=freeze)
    for name, parameter in model.named_parameters():
        frozen = any(name == start or name.startswith(f"{start}.") for start in freeze)
        assert parameter.requires_grad != frozen


def test_a_frozen_part_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match=r"nothing is named 'visual\.block'\. Nearest: visual"):
        prepared(freeze=("visual.block",))
    with pytest.raises(ConfigError, match="nothing is named 'visua'"):  # no beginning of a word
        prepared(freeze=("visua",))


def test_adapters_alone_are_trained_and_start_as_the_model():
    plain, model = start_encoder(RUN).model, prepared(lora=LoraConfig(rank=2))
    names = trained(model)
    assert names and all(".down." in n or ".up." in n or n.startswith("logit") for n in names)
    set_modes(model.eval(), MODEL)
    picture, ids = torch.randn(2, 3, 16, 16), torch.ones(2, 12, dtype=torch.long)
    ours, theirs = model.eval()(picture, ids), plain.eval()(picture, ids)
    assert torch.equal(ours.image_features, theirs.image_features)
    assert torch.equal(ours.text_features, theirs.text_features)


def test_adapters_do_not_move_the_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prepared(lora=LoraConfig())
    assert torch.equal(torch.rand(1), expected)


def test_a_frozen_tower_is_in_evaluation_mode():
    model = prepared(freeze=("visual",), patch_dropout=0.5)
    set_modes(model, MODEL)
    assert not model.visual.training and model.text.training and model.training
    picture = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.visual(picture), model.visual(picture))


@pytest.mark.parametrize(
    ("norms", "start", "moving"),
    [("auto", None, True), ("auto", "x", False), ("train", "x", True), ("keep", None, False)],
)
def test_batch_norms(norms, start, moving):
    visual = ResNetConfig(image_size=(32, 32), layers=(1, 1, 1, 1), width=8, heads=4)
    model = prepared(
        clip=miniature.replace(CLIP, visual=visual),
        preprocess=miniature.PreprocessConfig(size=(32, 32)),
        patch_dropout=None,
    )
    set_modes(model, ModelConfig(norms=norms, start=start))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    model.visual(torch.randn(2, 3, 32, 32))
    assert torch.equal(norm.running_mean, before) != moving
    with pytest.raises(ConfigError, match="has no patches to drop"):
        drop_patches(model, 0.5)


def test_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = prepared(checkpointing=checkpointing, patch_dropout=None)
        assert model.visual.checkpointing == model.text.checkpointing == checkpointing
        torch.manual_seed(0)
        made = model.train()(torch.randn(2, 3, 16, 16), torch.ones(2, 12, dtype=torch.long))
        made.image_features[0, 0].backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_one_rank_needs_no_wrapper():
    model = start_encoder(RUN).model
    assert distribute(model, RUN, World()) is model


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision_is_what_was_asked_for(precision, dtype):
    assert precision_of(miniature.replace(RUN, precision=precision), CPU) == dtype


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_where_the_hardware_multiplies_it(monkeypatch, fast):
    monkeypatch.setattr("diptych.train.parts.has_fast_bf16", lambda: fast)
    wanted = torch.bfloat16 if fast else torch.float32
    assert precision_of(miniature.replace(RUN, precision="auto"), CPU) == wanted


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True),
        ({"causal": False}, False),
        ({"pool": "last"}, False),
    ],
)
def test_only_text_whose_padding_is_not_seen_may_be_cut(changes, can):
    """Compared with the tower itself, where it may."""
    text = miniature.replace(CLIP.text, **changes)
    assert isinstance(text, TextConfig)
    assert can_trim(text) == can
    if can:
        model = diptych.build(miniature.replace(CLIP, text=text), seed=0, device="cpu").model.text
        ids = torch.tensor([[49406, 5, 7, 49407] + [0] * 8])
        torch.testing.assert_close(model(ids[:, :4]), model(ids), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pad_id", [None, 0])
def test_bert_may_be_cut_if_it_knows_its_padding(pad_id):
    bert = BertConfig(
        vocab_size=64, width=16, layers=1, heads=2, mlp_dim=32, context_length=12, pad_id=pad_id
    )
    assert can_trim(bert) == (pad_id is not None)
    assert not can_trim(CLIP.visual)  # and nothing else may


def test_fresh_weights_and_a_sigmoid_head(tmp_path):
    path = tmp_path / "tiny.safetensors"
    diptych.zoo.save(start_encoder(RUN), path)
    plain = {"start": str(path), "clip": None, "preprocess": None, "tokenizer": None}
    before = start_encoder(of_model(RUN, **plain))
    run = of_model(miniature.replace(RUN, seed=5), **plain, fresh=("text",), sigmoid_bias=-2.71)
    encoder = start_encoder(run)
    was, now = before.model.state_dict(), encoder.model.state_dict()
    assert all(torch.equal(was[k], now[k]) for k in was if k.startswith("visual."))
    assert not torch.equal(was["text.token_embedding.weight"], now["text.token_embedding.weight"])
    assert encoder.config.loss == "sigmoid"
    assert float(now["logit_bias"]) == pytest.approx(-2.71)
    assert float(now["logit_scale"].exp()) == pytest.approx(10)
    with pytest.raises(ConfigError, match=r"model\.fresh: nothing is named 'txt'"):
        start_encoder(of_model(RUN, **plain, fresh=("txt",)))
