"""Adapters leave a model as it was, learn alone, and fold back into plain layers; weights mix."""

import copy

import pytest
import torch
from torch import nn

from diptych import towers
from diptych.errors import CheckpointError, ConfigError
from diptych.model.lora import LoraLinear, add_lora, interpolate, merged

TARGETS = ("q_proj", "v_proj", "c_fc")


@pytest.fixture
def model(tiny_clip) -> nn.Module:
    return towers.build(tiny_clip).eval()


def features(model, ids, image) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.encode_image(image), model.encode_text(ids)])


def learn_(model) -> None:
    """One step away from the start for everything that is trained."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)


def test_nothing_changes_at_the_start(model, ids):
    image = torch.randn(3, 3, 32, 32)
    before = features(model, ids, image)
    add_lora(model, rank=4, alpha=8.0, targets=TARGETS)
    assert torch.equal(features(model, ids, image), before)


def test_only_adapters_and_scale_are_trained(model, ids):
    add_lora(model, rank=4, alpha=8.0, targets=TARGETS)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {n for n, _ in model.named_parameters() if n.endswith(("down.weight", "up.weight"))}
    assert trained == adapters | {"logit_scale"} and len(adapters) == 2 * 3 * len(TARGETS) * 2
    learn_(model)
    model.encode_text(ids).sum().backward()
    layer = model.text.blocks[0].attn.q_proj
    assert layer.down.weight.grad.abs().max() > 0 and layer.up.weight.grad.abs().max() > 0
    assert layer.base.weight.grad is None


def test_merged_is_a_plain_model(model, ids, tiny_clip):
    image, start = torch.randn(3, 3, 32, 32), copy.deepcopy(model.state_dict())
    add_lora(model, rank=4, alpha=8.0, targets=TARGETS)
    learn_(model)
    adapted = features(model, ids, image)
    before = copy.deepcopy(model.state_dict())
    end = merged(model, model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(end) == list(start)
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    of_targets = {n for n in end if n.endswith("weight") and n.split(".")[-2] in TARGETS}
    assert changed == of_targets | {"logit_scale"}
    plain = towers.build(tiny_clip)
    plain.load_state_dict(end)
    torch.testing.assert_close(features(plain.eval(), ids, image), adapted, atol=1e-6, rtol=0)


def test_the_product_is_the_papers():
    """arXiv 2106.09685, section 4.1: h = W0 x + (alpha / r) B A x, in float64."""
    base = nn.Linear(7, 5, dtype=torch.float64)
    layer = LoraLinear(base, rank=3, alpha=6.0)
    nn.init.normal_(layer.up.weight)
    a, b = layer.down.weight, layer.up.weight
    assert a.shape == (3, 7) and b.shape == (5, 3)
    x = torch.randn(4, 7, dtype=torch.float64)
    expected = x @ (base.weight + 2.0 * b @ a).T + base.bias
    torch.testing.assert_close(layer(x), expected)


def test_no_layer_of_that_name(model):
    with pytest.raises(ConfigError, match="'nope'"):
        add_lora(model, rank=4, alpha=8.0, targets=("nope",))
    assert all(p.requires_grad for p in model.parameters())


def test_between_two_models():
    start, end = ({"w": torch.randn(5), "n": torch.tensor(n)} for n in (1, 2))
    assert torch.equal(interpolate(start, end, 0.0)["w"], start["w"])
    assert torch.equal(interpolate(start, end, 1.0)["w"], end["w"])
    half = interpolate(start, end, 0.5)
    torch.testing.assert_close(half["w"], (start["w"] + end["w"]) / 2)
    assert half["n"] == 2
    with pytest.raises(CheckpointError, match="only one has 'n'"):
        interpolate({"w": start["w"]}, end, 0.5)


def test_a_soup_is_the_mean():
    states = [{"w": torch.randn(50, dtype=torch.float64)} for _ in range(4)]
    soup = states[0]
    for k, state in enumerate(states[1:], 2):
        soup = interpolate(soup, state, 1 / k)
    torch.testing.assert_close(soup["w"], torch.stack([s["w"] for s in states]).mean(0))
