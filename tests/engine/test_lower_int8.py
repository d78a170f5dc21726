"""int8 blocks: exact products, errors within the gate, and never a stale or wrapped number."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diptych
from diptych import towers
from diptych.config import BertConfig, TextConfig, ViTConfig
from diptych.engine import gate, lower_int8
from diptych.engine.lower import Lowered
from diptych.engine.lower_int8 import Int8Dense, Steps, has_fast_int8, int8_blocks, watch
from diptych.errors import ConfigError
from diptych.model.transformer import ACTIVATIONS

pytestmark = pytest.mark.skipif(not has_fast_int8(), reason="no int8 products on this CPU")

VIT = ViTConfig(image_size=(32, 32), patch_size=8, width=128, layers=3, heads=4, mlp_dim=256)
TEXT = TextConfig(context_length=20, vocab_size=99, width=128, layers=3, heads=4, mlp_dim=256)
BERT = BertConfig(context_length=20, vocab_size=99, width=128, layers=3, heads=4, mlp_dim=256)
LEAST = 0.998  # of towers so narrow: their sums are short, so errors average out less
TOWERS = {
    "openai": replace(VIT, act="quick_gelu"),
    "siglip": replace(
        VIT, act="gelu_tanh", class_token=False, pre_norm=False, pool="map", patch_bias=True
    ),
    "causal": replace(TEXT, act="quick_gelu"),
    "last": replace(TEXT, pool="last", causal=False, act="gelu_tanh"),
    "bert": BERT,
    "bert class": replace(BERT, pool="class"),
}


class Int8Lowered(Lowered):
    """A tower on the fast path, its blocks in int8 without a gate."""

    fitted_to: torch.Tensor
    whole = True

    def _with_blocks(self, tower, make):
        return make(int8_blocks(tower, watch(tower, self.fitted_to), whole=self.whole))


def lowered(tower, fitted_to, *, whole=True) -> Int8Lowered:
    fast = Int8Lowered(tower, dtype=torch.bfloat16)
    fast.fitted_to, fast.whole = fitted_to, whole
    return fast


def built(cfg) -> nn.Module:
    torch.manual_seed(0)
    tower = towers.build(cfg, 48).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return tower


def batch(cfg, n=12, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(cfg, TextConfig | BertConfig):
        return torch.randn(n, 3, *cfg.image_size, generator=generator)
    ids = torch.randint(8, 98, (n, cfg.context_length), generator=generator)
    for i in range(n):
        end = 3 + i % (cfg.context_length - 3)
        ids[i, end:], ids[i, end] = 0, 98
    return ids


def steps_of(x, weight) -> Steps:
    return Steps.of_channels(x.aminmax(dim=0), weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, "gelu", "gelu_tanh", "quick_gelu"])
@torch.no_grad()
def test_the_product_is_that_of_plain_integers(act, bias):
    torch.manual_seed(0)
    layers = [nn.Linear(96, 40, bias=bias), nn.Linear(96, 24, bias=bias)]
    weight = torch.cat([layer.weight for layer in layers])
    x = torch.randn(30, 96) * torch.rand(96) * 4 + torch.randn(96)
    steps = steps_of(x, weight)
    q = steps.quantise(x)
    scale = 1.702 if act == "quick_gelu" else 1.0
    wide = weight * scale * steps.widen
    scales = (wide.abs().amax(1) / 127)[:, None]
    integers = q.int() - steps.zero
    whole = (wide / scales).round().int()
    y = (integers @ whole.T) * (scales.T * steps.step) + weight @ steps.middle * scale
    y = y / scale
    if bias:
        y = y + torch.cat([layer.bias for layer in layers])
    plain = torch.cat([layer(x) for layer in layers], dim=-1)
    assert (y - plain).abs().max() < 0.05
    y = ACTIVATIONS[act](y) if act else y
    if act:
        out = Steps.of_activation(float(y.max()), 64)
        got = torch.cat(Int8Dense(*layers, steps=steps, act=act, out=out)(q), dim=-1)
        expected = ((y / out.step).round() + out.zero).clamp(0, 255)
        assert got.dtype == torch.uint8
        assert (got.float() - expected).abs().max() <= 1  # a tie may round either way
        assert (got.float() != expected).float().mean() < 0.01
    else:
        got = Int8Dense(*layers, steps=steps)(q)
        assert [part.shape[-1] for part in got] == [40, 24]
        torch.testing.assert_close(torch.cat(got, dim=-1).float(), y, rtol=2**-8, atol=1e-5)
        residual = torch.randn(30, 64)
        expected = residual + y
        found = Int8Dense(*layers, steps=steps).add_(residual, q)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found.data_ptr() == residual.data_ptr()


@torch.no_grad()
def test_quantising_is_half_a_step_off_and_clamps():
    torch.manual_seed(0)
    x, weight = torch.randn(50, 32) * 3 + torch.randn(32), torch.randn(8, 32)
    steps = steps_of(x, weight)

    def back(q):
        return (q.float() - steps.zero) / steps.factor + steps.middle

    assert ((back(steps.quantise(x)) - x) * steps.factor).abs().max() <= 0.501
    far = steps.quantise(torch.full((1, 32), 1e6))
    assert (far == 255).all() and (steps.quantise(torch.full((1, 32), -1e6)) == 0).all()


@torch.no_grad()
def test_a_norm_quantises_as_it_goes():
    torch.manual_seed(0)
    norm = nn.LayerNorm(64)
    norm.weight.uniform_(0.2, 3)
    norm.bias.normal_()
    x = torch.randn(40, 64)
    steps = steps_of(norm(x), torch.randn(16, 64))
    difference = lower_int8._Norm(norm, steps)(x).int() - steps.quantise(norm(x)).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.01


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_close_to_the_tower_on_what_it_was_not_fitted_to(name, whole):
    tower, x = built(TOWERS[name]), batch(TOWERS[name], seed=2)
    fast = lowered(tower, batch(TOWERS[name]), whole=whole)
    assert F.cosine_similarity(fast(x), tower(x)).min() >= LEAST
    assert torch.equal(fast(x), fast(x))


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_alone_as_in_the_batch(name):
    tower, x = built(TOWERS[name]), batch(TOWERS[name])
    fast = lowered(tower, x)
    alone = torch.cat([fast(row[None]) for row in x])
    assert F.cosine_similarity(alone, fast(x)).min() >= gate.FLOOR


@torch.no_grad()
def test_what_stands_after_the_end_is_not_looked_at():
    tower, x = built(TEXT), batch(TEXT)
    with_rubbish = x.clone()
    rows = tower.pooled(x)
    with_rubbish[torch.arange(20) > rows[:, None]] = 5
    for a, b in zip(watch(tower, x), watch(tower, with_rubbish), strict=True):
        torch.testing.assert_close(a.attn, b.attn)
        assert a.top == pytest.approx(b.top, rel=1e-5)


@torch.no_grad()
def test_never_a_stale_vector():
    tower, x = built(VIT), batch(VIT)
    fast = lowered(tower, x)
    before = fast(x)
    tower.blocks[0].mlp.c_fc.weight.mul_(3)
    assert F.cosine_similarity(fast(x), tower(x)).min() >= LEAST
    assert (fast(x) - before).abs().max() > 1e-2


@pytest.mark.slow
@torch.no_grad()
def test_mini_keeps_the_second_layers_in_bf16(caplog):
    enc = diptych.load("mini", precision="fp32")
    tower, ids = enc.model.text, gate.sample_texts(enc.tokenizer)
    caplog.set_level("INFO", logger="diptych")
    run = Lowered(tower, dtype=torch.bfloat16, samples=lambda: ids)
    run(ids[:1])
    assert gate.FLOOR <= gate.worst_cosine(run, tower, ids[1::2]) < 0.99999
    assert "second half of each MLP in bf16" in caplog.text
    whole = lowered(tower, ids[::2])
    assert 0.98 < gate.worst_cosine(whole, tower, ids[1::2]) < gate.FLOOR


def test_a_model_that_fails_is_refused(monkeypatch):
    monkeypatch.setattr(gate, "FLOOR", 1.1)
    ids = batch(TEXT)
    fast = Lowered(built(TEXT), dtype=torch.bfloat16, samples=lambda: ids)
    with pytest.raises(ConfigError, match=r"cosine of 0\.99\d+ .* Type precision='bf16'"):
        fast(ids)


@pytest.mark.slow
def test_the_gate_of_an_encoder():
    encoder = diptych.load("mini", precision="fp32")
    images, texts = gate.sample_images(encoder.preprocess), gate.sample_texts(encoder.tokenizer)
    for run, tower, batch in (
        (encoder.run_image, encoder.model.visual, images),
        (encoder.run_text, encoder.model.text, texts),
    ):
        assert gate.worst_cosine(run, tower, batch) == pytest.approx(1, abs=1e-6)


def test_a_processor_that_saturates_is_found_out(monkeypatch):
    right = Int8Dense.add_
    monkeypatch.setattr(Int8Dense, "add_", lambda *args: right(*args).clamp_max(1e6))
    assert not has_fast_int8.__wrapped__()


def test_a_torch_without_the_products_is_found_out(monkeypatch):
    def gone(*_):
        raise NotImplementedError

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", gone)
    assert not has_fast_int8.__wrapped__()
