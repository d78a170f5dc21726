"""`towers.build`: sizes of the published architectures, scalars, seeds, errors."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from diptych import towers
from diptych.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.errors import ConfigError


def vit(side, patch, width, layers, heads, mlp_dim=None, **more):
    size = {"width": width, "layers": layers, "heads": heads, "mlp_dim": mlp_dim or 4 * width}
    return ViTConfig(image_size=(side, side), patch_size=patch, **size, **more)


def text(width, heads, layers=12, **more):
    size = {"width": width, "layers": layers, "heads": heads, "mlp_dim": 4 * width}
    return TextConfig(**{"context_length": 77, "vocab_size": 49408, **size, **more})


def resnet(side, layers, width):
    return ResNetConfig(image_size=(side, side), layers=layers, width=width, heads=width // 2)


# model: embed_dim, visual, text, parameters (all, visual, text), keys of the original state dict
OPENAI = {
    "RN50": (1024, resnet(224, (3, 4, 6, 3), 64), text(512, 8), 102007137, 38316896, 63690240, 489),
    "RN101": (
        *(512, resnet(224, (3, 4, 23, 3), 64), text(512, 8)),
        *(119688033, 56259936, 63428096, 795),
    ),
    "RN50x4": (
        *(640, resnet(288, (4, 6, 10, 6), 80), text(640, 10)),
        *(178300601, 87137080, 91163520, 669),
    ),
    "RN50x16": (
        *(768, resnet(384, (6, 8, 18, 8), 96), text(768, 12)),
        *(290979217, 167328912, 123650304, 921),
    ),
    "RN50x64": (
        *(1024, resnet(448, (3, 15, 36, 10), 128), text(1024, 16)),
        *(623258305, 420380352, 202877952, 1353),
    ),
    "ViT-B/32": (
        *(512, vit(224, 32, 768, 12, 12), text(512, 8)),
        *(151277313, 87849216, 63428096, 302),
    ),
    "ViT-B/16": (
        *(512, vit(224, 16, 768, 12, 12), text(512, 8)),
        *(149620737, 86192640, 63428096, 302),
    ),
    "ViT-L/14": (
        *(768, vit(224, 14, 1024, 24, 16), text(768, 12)),
        *(427616513, 303966208, 123650304, 446),
    ),
    "ViT-L/14@336px": (
        *(768, vit(336, 14, 1024, 24, 16), text(768, 12)),
        *(427944193, 304293888, 123650304, 446),
    ),
}
SIGLIP_TEXT = {"causal": False, "pool": "last", "proj": "linear_bias"}
OTHERS = {  # in millions, as published
    "SigLIP B/16": (
        CLIPConfig(
            embed_dim=768,
            visual=vit(
                *(224, 16, 768, 12, 12),
                **{"class_token": False, "pool": "map", "pre_norm": False},
                **{"patch_bias": True, "proj": "none"},
            ),
            text=text(768, 12, context_length=64, vocab_size=32000, **SIGLIP_TEXT),
            loss="sigmoid",
        ),
        203.2,
    ),
    "ViT-H/14": (
        CLIPConfig(embed_dim=1024, visual=vit(224, 14, 1280, 32, 16), text=text(1024, 16, 24)),
        986.1,
    ),
    "ViT-bigG/14": (
        CLIPConfig(
            embed_dim=1280, visual=vit(224, 14, 1664, 48, 16, 8192), text=text(1280, 20, 32)
        ),
        2539.6,
    ),
}


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", OPENAI)
def test_openai_sizes(name):
    embed_dim, visual, text_cfg, total, in_visual, in_text, num_keys = OPENAI[name]
    with torch.device("meta"):
        model = towers.build(CLIPConfig(embed_dim=embed_dim, visual=visual, text=text_cfg))
    assert (size(model), size(model.visual), size(model.text)) == (total, in_visual, in_text)
    fused = [m for m in model.modules() if type(m).__name__ == "Block"]
    assert len(model.state_dict()) - 4 * len(fused) == num_keys  # theirs has q, k, v in one


@pytest.mark.parametrize("name", OTHERS)
def test_other_sizes(name):
    cfg, millions = OTHERS[name]
    with torch.device("meta"):
        model = towers.build(cfg)
    assert round(size(model) / 1e6, 1) == millions


def test_scalars(tiny_clip):
    softmax = towers.build(tiny_clip)
    assert softmax.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert softmax.logit_bias is None
    sigmoid = towers.build(replace(tiny_clip, loss="sigmoid"))
    assert sigmoid.logit_scale.item() == pytest.approx(math.log(10))
    assert sigmoid.logit_bias.item() == -10
    assert sigmoid.state_dict().keys() - softmax.state_dict().keys() == {"logit_bias"}


def test_a_seed_decides_every_value(tiny_clip):
    def state(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in towers.build(tiny_clip).parameters()])

    assert torch.equal(state(1), state(1))
    assert not torch.equal(state(1), state(2))


def test_a_tower_alone_wants_embed_dim(tiny_vit):
    with pytest.raises(ConfigError, match="embed_dim="):
        towers.build(tiny_vit)
    assert towers.build(tiny_vit, 8)(torch.randn(1, 3, 32, 32)).shape == (1, 8)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activation_is_data(tiny_vit, act):
    x = torch.linspace(-3, 3, 7)
    got = towers.build(replace(tiny_vit, act=act), 8).blocks[0].mlp.act(x)
    match act:
        case "quick_gelu":
            expected = x * torch.sigmoid(1.702 * x)
        case "gelu":
            expected = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        case "gelu_tanh":
            expected = 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert torch.allclose(got, expected, atol=1e-6)


def test_an_outline_imports_no_compiler():
    code = (
        "import sys; from diptych import towers, zoo; towers.outline(zoo.get('mini').config); "
        "sys.exit(any(name in sys.modules for name in ('sympy', 'torch._dynamo')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
