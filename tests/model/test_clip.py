"""CLIP as a whole: unit rows, logits, checkpointing, plain modules."""

import copy
import io
from dataclasses import replace

import pytest
import torch

from diptych import towers


@pytest.fixture
def batch(ids):
    return torch.randn(3, 3, 32, 32), ids


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_features_are_unit_rows_and_scalars_are_raw(tiny_clip, batch, loss):
    model = towers.build(replace(tiny_clip, loss=loss))
    out = model(*batch)
    for features in out[:2]:
        assert torch.allclose(features.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert out.logit_scale is model.logit_scale
    assert out.logit_bias is model.logit_bias
    assert torch.equal(model.encode_image(batch[0]), out.image_features)
    assert torch.equal(model.encode_text(batch[1]), out.text_features)
    logits = model.logits(out.image_features, out.text_features)
    expected = out.image_features @ out.text_features.T * model.logit_scale.exp()
    if loss == "sigmoid":
        expected = expected - 10
    assert torch.allclose(logits, expected, atol=1e-5)


def gradients(model, batch):
    out = model(*batch)
    loss = (model.logits(out.image_features, out.text_features) ** 2).sum()
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("visual", ["vit", "resnet"])
def test_checkpointing_gives_the_same_bits(tiny_clip, tiny_resnet, ids, visual):
    cfg = replace(tiny_clip, visual=tiny_resnet) if visual == "resnet" else tiny_clip
    batch = torch.randn(3, 3, *cfg.visual.image_size), ids
    plain = towers.build(cfg)
    saving = copy.deepcopy(plain)
    saving.visual.checkpointing = saving.text.checkpointing = True
    expected, got = gradients(plain, batch), gradients(saving, batch)
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name
    # recomputing must not count a batch twice
    for (name, a), (_, b) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_checkpointing_keeps_less(tiny_clip, batch):
    def saved(checkpointing):
        model = towers.build(tiny_clip)
        model.visual.checkpointing = model.text.checkpointing = checkpointing
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            model(*batch)
        return sum(sizes)

    assert saved(True) < saved(False) / 2


def test_weights_pass_through_the_usual_tools(tiny_clip, batch):
    model = towers.build(tiny_clip).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        empty = towers.build(tiny_clip)
    empty.load_state_dict(torch.load(file, weights_only=True), assign=True)
    for a, b in zip(model(*batch)[:2], empty.eval()(*batch)[:2], strict=True):
        assert torch.equal(a, b)
    half = copy.deepcopy(model).bfloat16()
    out = half(batch[0].bfloat16(), batch[1])
    assert out.image_features.dtype == torch.bfloat16
