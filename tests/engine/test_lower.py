"""The fast path equals the tower, and is never taken, nor stale, where it should not be."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych import towers
from diptych.config import (
    BertConfig,
    ConceptsConfig,
    EfficientNetConfig,
    PaletteConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from diptych.engine import lower_transformer
from diptych.engine.lower import Lowered
from diptych.preprocess.pipeline import normalise_batch

VIT = ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=3, heads=4, mlp_dim=160)
TEXT = TextConfig(context_length=20, vocab_size=99, width=64, layers=3, heads=4, mlp_dim=128)
NET = EfficientNetConfig(image_size=(66, 75), width_mult=0.5, depth_mult=0.4, head_width=48)
HALF = PaletteConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BERT = BertConfig(context_length=20, vocab_size=99, width=64, layers=3, heads=4, mlp_dim=128)
TOWERS = {
    "openai": replace(VIT, act="quick_gelu"),
    "laion": VIT,
    "siglip": replace(
        VIT, act="gelu_tanh", class_token=False, pre_norm=False, pool="map", patch_bias=True
    ),
    "clipa": replace(VIT, pool="mean", norm_after_pool=True, pre_norm=False, positions="sincos2d"),
    "mean": replace(VIT, pool="mean"),
    "wide": replace(VIT, image_size=(32, 48)),
    "resnet": ResNetConfig(image_size=(64, 64), layers=(1, 2, 1, 1), width=16, heads=4),
    "efficientnet": NET,
    "lite": replace(NET, lite=True, padding="even"),
    "concepts": replace(
        NET,
        lite=True,
        proj="concepts",
        concepts=ConceptsConfig(num_classes=30, top=5, palette=HALF),
    ),
    "align": replace(NET, image_size=(289, 289), head_width=None, padding="even", proj="none"),
    "causal": replace(TEXT, act="quick_gelu"),
    "eos": replace(TEXT, pool="eos", eos_id=7),
    "first": replace(TEXT, pool="first", causal=False),
    "last": replace(TEXT, pool="last", causal=False, act="gelu_tanh", proj="linear_bias"),
    "masked": replace(TEXT, pad_id=0, pool="first", causal=False),
    "bert": BERT,
    "bert quick": replace(BERT, act="quick_gelu", proj="linear_bias", unit=True),
    "bert class": replace(BERT, pool="class", act="gelu_tanh"),
    "bert unmasked": replace(BERT, pad_id=None, proj="none"),
}


def noisy(cfg) -> nn.Module:
    """A tower whose every parameter matters: biases, gains and statistics are not 0 or 1."""
    torch.manual_seed(0)
    tower = towers.build(cfg, 24).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, buffer in tower.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return tower


def batch(cfg, n=6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(cfg, TextConfig | BertConfig):
        ids = torch.randint(8, 98, (n, cfg.context_length), generator=generator)
        for i in range(n):
            ids[i, 3 + 2 * i :] = 0
            ids[i, 3 + 2 * i] = 7 if cfg.pool == "eos" else 98
        return ids
    return torch.randn(n, 3, *cfg.image_size, generator=generator)


def lowered(tower, dtype=torch.float32) -> Lowered:
    return Lowered(tower, dtype=dtype)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_fp32_equals_the_tower(name):
    tower, x = noisy(TOWERS[name]), batch(TOWERS[name])
    difference = F.normalize(lowered(tower)(x), dim=-1) - F.normalize(tower(x), dim=-1)
    assert difference.abs().max() <= 2e-6


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_bf16_is_close_to_the_tower(name):
    tower, x = noisy(TOWERS[name]), batch(TOWERS[name])
    fast = lowered(tower, torch.bfloat16)(x)
    assert fast.dtype == torch.float32
    assert F.cosine_similarity(fast.double(), tower(x).double()).min() >= 0.9998


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["openai", "causal", "bert", "resnet"])
@torch.no_grad()
def test_a_cpu_without_such_products_rounds_and_multiplies_in_fp32(name, dtype, monkeypatch):
    for has in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, has, lambda: False)
    tower = noisy(TOWERS[name])
    reference, got = tower(batch(TOWERS[name])), lowered(tower, dtype)(batch(TOWERS[name]))
    assert F.cosine_similarity(got, reference).min() > 0.999
    rounded = (got - reference).abs().max() > 1e-4
    assert rounded == (name != "resnet")  # its convolutions stay in fp32 whole


@torch.no_grad()
def test_another_resolution_takes_resized_positions():
    tower, x = noisy(VIT), torch.randn(2, 3, 48, 64)
    assert (lowered(tower)(x) - tower(x)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.blocks[0].mlp.c_fc.weight.mul_(1.5),
        lambda t: setattr(t.blocks[1].attn, "q_proj", nn.Linear(64, 64)),
        lambda t: setattr(t.proj, "weight", nn.Parameter(torch.randn(24, 64))),
        lambda t: setattr(t.blocks[0].ln_1.weight, "data", torch.randn(64)),
        lambda t: t.load_state_dict({k: v * 1.1 for k, v in t.state_dict().items()}, assign=True),
    ],
    ids=["in place", "module", "parameter", "data", "load_state_dict"],
)
@torch.no_grad()
def test_never_a_stale_vector(change, dtype):
    tower, x = noisy(VIT), batch(VIT)
    fast = lowered(tower, dtype)
    before = fast(x)
    change(tower)
    after = fast(x)
    assert F.cosine_similarity(after, tower(x)).min() >= 0.9998
    assert (after - before).abs().max() > 1e-2


def test_an_optimiser_step_is_seen():
    tower, x = noisy(VIT), batch(VIT)
    fast = lowered(tower, torch.bfloat16)
    with torch.no_grad():
        fast(x)
    optimiser = torch.optim.AdamW(tower.parameters(), lr=0.05)
    tower(x).square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert F.cosine_similarity(fast(x), tower(x)).min() >= 0.9998


class Adapter(nn.Module):
    """What LoRA does to a layer: another type in its place."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x) + x.mean(-1, keepdim=True)


class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def hook(module, args, output):
    return output * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t.blocks[0].mlp, "c_fc", Adapter(t.blocks[0].mlp.c_fc)),
        lambda t: setattr(t.blocks[0].mlp, "c_proj", Subclass(160, 64)),
        lambda t: t.blocks[1].register_forward_hook(hook),
        lambda t: t.ln_post.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
        lambda t: setattr(t.blocks[2], "forward", lambda x, mask=None: x),
        lambda t: torch.nn.utils.parametrizations.weight_norm(t.blocks[0].mlp.c_fc),
        lambda t: torch.nn.utils.parametrize.register_parametrization(
            t.proj, "weight", nn.Softplus()
        ),
    ],
    ids=["adapter", "subclass", "hook", "pre-hook", "patched", "weight norm", "parametrised"],
)
@torch.no_grad()
def test_what_is_not_known_runs_unchanged(change):
    tower, x = noisy(VIT), batch(VIT)
    change(tower)
    assert torch.equal(lowered(tower, torch.bfloat16)(x), tower(x))


@torch.no_grad()
def test_a_tower_in_training_mode_runs_unchanged():
    tower, x = noisy(VIT).train(), batch(VIT)
    assert torch.equal(lowered(tower, torch.bfloat16)(x), tower(x))


@torch.no_grad()
def test_padding_of_bert_costs_and_changes_nothing():
    tower, ids = noisy(BERT), batch(BERT, n=3)  # 4 to 8 real ids of 20
    fast = lowered(tower)
    assert torch.equal(fast(ids), fast(ids[:, :8]))
    scattered = ids.clone()
    scattered[0, 1] = 0  # padding may stand anywhere
    assert (fast(scattered) - tower(scattered)).abs().max() <= 2e-6
    rows = []
    hook = tower.embed
    tower.embed = lambda ids: rows.append(ids.numel()) or hook(ids)
    fast(ids)
    assert rows == [int((ids != 0).sum())]


@pytest.mark.parametrize("name", ["efficientnet", "bert"])
@torch.no_grad()
def test_changed_weights_and_adapters_of_the_other_towers_are_seen(name):
    tower, x = noisy(TOWERS[name]), batch(TOWERS[name])
    fast = lowered(tower)
    before = fast(x)
    tower.blocks[0].get_parameter(
        "depthwise.bn.weight" if name == "efficientnet" else "mlp.c_fc.weight"
    ).mul_(1.5)
    assert (fast(x) - before).abs().max() > 1e-3
    assert (fast(x) - tower(x)).abs().max() <= 1e-5
    if name == "efficientnet":  # a statistic is no parameter, but it counts as well
        tower.blocks[0].depthwise.bn.running_mean.add_(0.5)
        assert (fast(x) - tower(x)).abs().max() <= 1e-5
    tower.proj = Adapter(tower.proj)
    assert torch.equal(fast(x), tower(x))


@torch.no_grad()
def test_an_efficientnet_runs_in_float32_whatever_is_asked():
    tower, x = noisy(NET), batch(NET)
    assert torch.equal(lowered(tower, torch.bfloat16)(x), lowered(tower)(x))


@torch.no_grad()
def test_many_images_are_cut_and_joined_in_order():
    tower, x = noisy(NET), torch.randn(70, 3, 66, 75)
    assert len(lowered(tower)(x)) == 70
    assert (lowered(tower)(x) - tower(x)).abs().max() <= 1e-5


PIXELS = PreprocessConfig(size=(32, 32), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


@pytest.mark.parametrize("name", ["openai", "siglip", "resnet", "efficientnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_uint8_is_normalised_inside(name, dtype):
    tower, cfg = noisy(TOWERS[name]), TOWERS[name]
    levels = torch.randint(0, 256, (5, 3, *cfg.image_size), dtype=torch.uint8)
    floats = normalise_batch(levels, PIXELS)
    fast = Lowered(tower, dtype=dtype, pixels=PIXELS)
    if dtype == torch.float32:
        assert torch.equal(fast(levels), fast(floats))
    else:
        assert F.cosine_similarity(fast(levels).double(), tower(floats).double()).min() >= 0.9998


@torch.no_grad()
def test_uint8_reaches_a_tower_that_is_not_lowered():
    tower = noisy(VIT)
    tower.blocks[1].register_forward_hook(hook)
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    fast = Lowered(tower, dtype=torch.bfloat16, pixels=PIXELS)
    assert torch.equal(fast(levels), tower(normalise_batch(levels, PIXELS)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_images_that_run_in_parts_keep_their_order(dtype, monkeypatch):
    tower, x = noisy(VIT), torch.randn(7, 3, 32, 32)
    fast = lowered(tower, dtype)
    whole = fast(x)
    monkeypatch.setattr(lower_transformer, "_ROWS_AT_ONCE", 2 * 16)
    assert F.cosine_similarity(fast(x).double(), whole.double()).min() >= 0.99999


@pytest.mark.parametrize("name", ["causal", "eos", "bert", "bert class"])
@torch.no_grad()
def test_no_row_is_spent_on_padding_and_order_is_kept(name):
    tower, ids = noisy(TOWERS[name]), batch(TOWERS[name])
    ids = ids[[3, 0, 5, 1, 1, 4, 2]]
    rows = []
    hook = tower.embed
    tower.embed = lambda ids: rows.append(ids.numel()) or hook(ids)
    fast = lowered(tower)(ids)
    ends = (ids != 0).sum() if name.startswith("bert") else (tower.pooled(ids) + 1).sum()
    assert rows == [int(ends)]
    assert (F.normalize(fast, dim=-1) - F.normalize(tower(ids), dim=-1)).abs().max() <= 2e-6


@torch.no_grad()
def test_a_text_of_bert_that_begins_with_padding():
    tower, ids = noisy(TOWERS["bert class"]), batch(BERT)
    ids[2, 0] = 0
    assert (lowered(tower)(ids) - tower(ids)).abs().max() <= 1e-5


@torch.no_grad()
def test_what_stands_after_eot_changes_nothing():
    tower, ids = noisy(TEXT), batch(TEXT)
    fast, other = lowered(tower), ids.clone()
    other[0, 5:] = 11
    assert torch.equal(fast(ids[:1]), fast(other[:1]))


@torch.no_grad()
def test_a_copy_packs_for_itself():
    tower, x = noisy(VIT), batch(VIT)
    fast = lowered(tower, torch.bfloat16)
    fast(x)
    copied = copy.deepcopy(fast)
    copied.tower.proj.weight.mul_(-1)
    assert F.cosine_similarity(copied(x), -fast(x)).min() >= 0.9999
