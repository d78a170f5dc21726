"""The arithmetic of a step: by formula, by what torch really runs, and as others published it."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych import towers, zoo
from diptych.config import BertConfig, EfficientNetConfig
from diptych.model.lora import add_lora
from diptych.towers.efficientnet import EfficientNet
from diptych.train.flops import (
    StepFlops,
    TowerFlops,
    Work,
    backward_factor,
    peak_flops,
    step_flops,
    tower_flops,
)

# open_clip's docs/model_profile.csv: GFLOPs of an image, and of a text of 77 tokens (SigLIP: 64)
PUBLISHED = {
    "ViT-B-32/openai": (8.82, 5.96),
    "ViT-B-16/openai": (35.13, 5.96),
    "ViT-L-14/openai": (162.03, 13.30),
    "ViT-B-16-SigLIP/webli": (35.42, 11.02),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_open_clip_published_them(name):
    found = tower_flops(zoo.get(name).config)
    image, text = PUBLISHED[name]
    assert found.visual / 1e9 == pytest.approx(image, rel=1e-3)
    assert found.text / 1e9 == pytest.approx(text, rel=1e-3)


def test_a_pair_with_a_short_text():
    """performance.md: ViT-B/32 with 16 tokens takes 10.0 GFLOP forward, 30 in training."""
    towers_ = tower_flops(zoo.get("ViT-B-32/openai").config, context_length=16)
    step = step_flops(towers_, batch_size=64, embed_dim=512)
    assert step.model / 64 / 1e9 == pytest.approx(30.1, abs=0.1)


def configs(tiny_clip, tiny_resnet):
    bert = BertConfig(context_length=16, vocab_size=64, width=32, layers=2, heads=4, mlp_dim=64)
    net = EfficientNetConfig(image_size=(64, 64), width_mult=0.25, depth_mult=0.5)
    return {
        "vit, text": tiny_clip,
        "resnet, bert": replace(tiny_clip, visual=tiny_resnet, text=bert),
        "efficientnet": replace(tiny_clip, visual=net),
    }


@pytest.mark.parametrize("which", ["vit, text", "resnet, bert", "efficientnet"])
def test_as_torch_counts_them_when_they_run(which, tiny_clip, tiny_resnet):
    """Forward and backward by torch's own counter. Where the picture itself needs no gradient, the
    first convolution saves a third."""
    config = configs(tiny_clip, tiny_resnet)[which]
    model = towers.build(config)
    found = tower_flops(config)
    pixels, ids = torch.randn(4, 3, *config.visual.image_size), torch.randint(1, 60, (4, 16))
    for tower, batch, flops in (
        (model.visual, pixels, found.visual),
        (model.text, ids, found.text),
    ):
        # the CPU's fused attention is not in torch's table
        with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
            out = tower(batch)
        assert forward.get_total_flops() == pytest.approx(4 * flops, rel=0.01)
        if isinstance(tower, EfficientNet):
            continue  # torch's formula takes the gradient of a grouped convolution for a full one
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert backward.get_total_flops() == pytest.approx(4 * 2 * flops, rel=0.15)


def test_smaller_pictures_shorter_texts_dropped_patches(tiny_clip):
    whole = tower_flops(tiny_clip)
    small = tower_flops(tiny_clip, image_size=(16, 16), context_length=8)
    assert small.visual < 0.35 * whole.visual
    assert small.text < 0.55 * whole.text
    dropped = replace(tiny_clip, visual=replace(tiny_clip.visual, patch_dropout=0.5))
    assert tower_flops(dropped).visual < 0.6 * whole.visual
    assert tower_flops(dropped, training=False) == whole


def test_a_step():
    both = TowerFlops(visual=100.0, text=10.0)
    n, d = 8, 4
    loss = 2 * n * n * d
    whole = step_flops(both, batch_size=n, embed_dim=d)
    assert whole == StepFlops(n * 330.0 + 3 * loss, n * 330.0 + 4 * loss)
    assert whole.computed - n * 330 == 8 * n * n * d
    again = step_flops(both, batch_size=n, embed_dim=d, twice=True)
    assert again.model == whole.model
    assert again.computed == n * 440.0 + 4 * loss
    lit = step_flops(both, batch_size=n, embed_dim=d, backward=(0.0, 2.0), twice=True)
    assert lit.model == n * 130.0 + 3 * loss
    assert lit.computed == n * 140.0 + 4 * loss


def test_what_flows_back(tiny_clip):
    model = towers.build(tiny_clip)
    assert backward_factor(model.visual) == 2
    model.visual.requires_grad_(False)
    assert backward_factor(model.visual) == 0
    add_lora(model, rank=1, alpha=1.0, targets=("q_proj",))
    assert 1 < backward_factor(model.text) < 1.05


def test_work_follows_the_shapes_and_the_model(tiny_clip):
    model = towers.build(tiny_clip)
    work = Work(model, tiny_clip, batch_size=8)
    whole = work.step()
    assert whole == work.step(image_size=(32, 32), tokens=16)
    assert work.step(tokens=8).model < whole.model
    assert work.step(image_size=[16, 16]).model < whole.model  # as a record of JSON has it
    model.visual.cfg = replace(model.visual.cfg, patch_dropout=0.5)
    assert work.step().model < whole.model
    model.text.requires_grad_(False)
    assert work.step().model < Work(towers.build(tiny_clip), tiny_clip, batch_size=8).step().model


def test_peak_of_this_machine():
    found, said = peak_flops(torch.device("cpu"), precision="fp32")
    assert found > 1e9
    assert "float32" in said


@pytest.mark.parametrize(
    ("card", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
    ],
)
def test_peaks_of_cards(monkeypatch, card, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert peak_flops(torch.device("cuda"), precision=precision)[0] == peak
