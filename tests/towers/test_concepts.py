"""The ConSE head and the palette, against formulas and colours that are plain to see."""

import colorsys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diptych.config import ConceptsConfig, EfficientNetConfig, PaletteConfig, from_dict, to_dict
from diptych.errors import ConfigError
from diptych.towers import build
from diptych.towers.concepts import COLOURS, ConceptHead, Palette, to_lab

PALETTE = PaletteConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CONFIG = EfficientNetConfig(
    image_size=(64, 64),
    width_mult=0.1,
    lite=True,
    head_width=16,
    proj="concepts",
    concepts=ConceptsConfig(num_classes=7, temperature=1.5, top=3, palette=PALETTE),
)


def test_lab_of_colours_in_tables():
    """CIE L*a*b* under D65 as printed in any table of sRGB's corners."""
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18]]
    known.append([32.30, 79.19, -107.86])
    torch.testing.assert_close(to_lab(rgb), torch.tensor(known), atol=0.05, rtol=0)


def solid(*rgb: float) -> torch.Tensor:
    return (torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 64, 64) - 0.5) / 0.5


@pytest.mark.parametrize("name", COLOURS)
def test_a_plain_sheet_has_its_colour(name):
    point = COLOURS[name][0]
    rgb = [int(point[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    shares = Palette(PALETTE, 4).shares(solid(*rgb))
    assert list(COLOURS)[int(shares.argmax())] == name
    torch.testing.assert_close(shares.sum(-1), torch.ones(1))


def test_the_middle_counts_more_and_a_white_ground_less():
    image = solid(0.9, 0.1, 0.1).clone()
    image[:, :, 16:48, 16:48] = solid(0.1, 0.2, 0.9)[:, :, :32, :32]
    shares = dict(zip(COLOURS, Palette(PALETTE, 4).shares(image)[0].tolist(), strict=True))
    assert shares["blue"] > 0.45 > 0.25  # a quarter of the area
    image = solid(1, 1, 1).clone()
    image[:, :, 24:40, 24:40] = solid(0.1, 0.2, 0.9)[:, :, :16, :16]
    shares = dict(zip(COLOURS, Palette(PALETTE, 4).shares(image)[0].tolist(), strict=True))
    assert shares["blue"] > shares["white"]


def test_a_greyscale_gradient_is_no_colour():
    for hue in (0.0, 0.3, 0.6):
        grey = solid(*colorsys.hsv_to_rgb(hue, 0.0, 0.5))
        assert list(COLOURS)[int(Palette(PALETTE, 4).shares(grey).argmax())] == "gray"


def test_the_head_is_the_mean_of_the_likeliest_classes():
    torch.manual_seed(0)
    head = ConceptHead(replace(CONFIG.concepts, palette=None), 16, 5)
    x = torch.randn(4, 16)
    logits = x @ head.classifier.weight.T + head.classifier.bias
    expected = torch.zeros(4, 5)
    for n, row in enumerate((logits / 1.5).softmax(-1)):
        for k in row.argsort(descending=True)[:3]:
            expected[n] += row[k] * head.concepts[k]
    torch.testing.assert_close(head(x), F.normalize(expected, dim=-1))


def test_colours_are_added_behind_the_features():
    tower = build(CONFIG, 5).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = tower(image)
        tower.proj.palette.vectors.copy_(torch.randn(len(COLOURS), 5))
        tower.proj.palette.usual.fill_(0.1)
        shares = tower.proj.palette.shares(image)
        moved = tower(image)
    expected = plain + (shares.sqrt() - 0.1) @ tower.proj.palette.vectors
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(plain.norm(dim=-1), torch.ones(2))


def test_the_config_survives_json_and_says_what_is_wrong():
    assert from_dict(to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="concepts"):
        replace(CONFIG, proj="linear")
    with pytest.raises(ConfigError, match="concepts"):
        replace(CONFIG, concepts=None)
    with pytest.raises(ConfigError, match="top"):
        ConceptsConfig(num_classes=10, top=11)
    with pytest.raises(ConfigError, match="temperature"):
        ConceptsConfig(temperature=0.0)
