"""EfficientNet: published sizes, the padding rules, the head, training."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diptych import towers
from diptych.config import EfficientNetConfig, from_dict, to_dict
from diptych.errors import ConfigError
from diptych.towers.efficientnet import ConvNorm, layers, pooled_width, scaled

B0 = EfficientNetConfig(image_size=(224, 224))
TINY = EfficientNetConfig(image_size=(64, 64), width_mult=0.5, depth_mult=0.4, head_width=40)


def num_parameters(cfg: EfficientNetConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in towers.build(replace(cfg, proj="none"), 1).parameters())


@pytest.mark.parametrize(
    ("cfg", "published", "blocks"),
    [  # less the classifier of 1000 classes: 1281 or 1409 or 2561 thousand parameters
        (B0, 5_288_548 - 1_281_000, 16),
        (replace(B0, width_mult=1.1, depth_mult=1.2, head_width=1408), 9_109_994 - 1_409_000, 23),
        (replace(B0, width_mult=2.0, depth_mult=3.1, head_width=2560), 66_347_960 - 2_561_000, 55),
        (replace(B0, lite=True), 4_652_008 - 1_281_000, 16),
        (replace(B0, lite=True, width_mult=1.1, depth_mult=1.2), 6_092_072 - 1_281_000, 21),
    ],
    ids=["B0", "B2", "B7", "Lite0", "Lite2"],
)
def test_sizes_are_the_published_ones(cfg, published, blocks):
    assert num_parameters(cfg) == published
    assert len(layers(cfg)) == blocks


def test_channels_are_rounded_to_8_and_never_by_more_than_a_tenth():
    assert [scaled(32, m) for m in (0.1, 1.0, 1.1, 1.4)] == [8, 32, 32, 48]
    assert scaled(320, 1.1) == 352
    assert scaled(24, 0.5) == 16  # 12 would round down to 8, a third less


def test_lite_keeps_stem_and_both_ends():
    table = layers(replace(B0, lite=True, width_mult=1.4, depth_mult=1.8))
    assert table[0].channels_in == 32
    assert [layer.channels for layer in table].count(table[0].channels) == 1
    assert [layer.channels for layer in table].count(table[-1].channels) == 1


@pytest.mark.parametrize("side", [32, 33, 65, 289, 600])
@pytest.mark.parametrize("padding", ["same", "even"])
def test_the_grid_of_the_config_is_what_comes_out(side, padding):
    cfg = replace(TINY, image_size=(side, 64), padding=padding)
    hidden = towers.build(cfg, 8).eval().hidden(torch.randn(1, 3, side, 64), layers=())
    assert hidden.grid == cfg.grid


@pytest.mark.parametrize(
    ("padding", "side", "expected"),
    [("same", 10, (0, 1)), ("same", 11, (1, 1)), ("even", 10, (0, 1)), ("even", 11, (0, 1))],
)
def test_the_odd_pixel_of_padding_goes_behind(padding, side, expected):
    conv = ConvNorm(replace(TINY, padding=padding), 3, 4, 3, stride=2)
    assert conv.padding(side, 20) == (0, 1, *expected)
    assert conv.padding(20, side) == (*expected, 0, 1)


def test_the_two_rules_differ_on_an_odd_side_only():
    torch.manual_seed(0)
    same = towers.build(TINY, 8).eval()
    even = towers.build(replace(TINY, padding="even"), 8).eval()
    even.load_state_dict(same.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(same(image), even(image))
    image = torch.randn(1, 3, 65, 64)
    assert same.stem(image).shape[2:] == (33, 32)
    assert even.stem(image).shape[2:] == (32, 32)


def test_the_head_sees_one_position_at_a_time():
    tower = towers.build(TINY, 8).eval()
    hidden = tower.hidden(torch.randn(2, 3, 64, 64))
    whole = tower.final_norm(hidden.tokens[-1])
    assert torch.allclose(tower.final_norm(hidden.tokens[-1][:, 1:2]), whole[:, 1:2], atol=1e-6)
    assert whole.shape == (2, 4, 40)


def test_without_head_and_projection_the_last_map_is_averaged():
    cfg = replace(TINY, head_width=None, proj="none")
    tower = towers.build(cfg, pooled_width(cfg)).eval()
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(tower(image), tower.hidden(image).tokens[-1].mean(1))
    assert tower(image).shape == (2, 160)


def test_a_checkpointed_step_is_the_same_step():
    steps = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        tower = towers.build(TINY, 8).train()
        tower.checkpointing = checkpointing
        tower(torch.randn(2, 3, 64, 64)).square().sum().backward()
        gradient = tower.stem.conv.weight.grad
        steps.append((gradient, {k: v.clone() for k, v in tower.named_buffers()}))
    assert torch.allclose(steps[0][0], steps[1][0], atol=1e-6)
    assert all(torch.equal(v, steps[1][1][k]) for k, v in steps[0][1].items())


def test_lite_has_relu6_and_no_gate():
    tower = towers.build(replace(TINY, lite=True), 8)
    kinds = {type(m).__name__ for m in tower.modules()}
    assert "ReLU6" in kinds
    assert not kinds & {"SiLU", "SqueezeExcite"}


def test_starting_values_are_those_of_the_original():
    tower = towers.build(B0, 512)
    wide = tower.blocks[-1].project.conv.weight  # [320 1152 1 1]
    assert wide.std().item() == pytest.approx((2 / 320) ** 0.5, rel=0.03)
    depthwise = tower.blocks[-1].depthwise.conv.weight  # [1152 1 3 3]
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert tower.proj.weight.std().item() == pytest.approx(1280**-0.5, rel=0.03)
    assert not tower.blocks[-1].squeeze.reduce.bias.any()


def test_the_config_round_trips_and_refuses_nonsense():
    cfg = replace(TINY, lite=True, padding="even", head_width=None)
    assert from_dict(to_dict(cfg)) == cfg
    with pytest.raises(ConfigError, match="below the stride"):
        replace(TINY, image_size=(31, 64))
    with pytest.raises(ConfigError, match="above 0"):
        replace(TINY, depth_mult=0.0)


def test_squeeze_and_excitation_gates_by_the_mean():
    block = towers.build(TINY, 8).eval().blocks[1].squeeze
    x = torch.randn(2, block.reduce.in_channels, 4, 6)
    gate = block.expand(F.silu(block.reduce(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
    assert torch.allclose(block(x), gate * x, atol=1e-6)
