"""From class probabilities to a vector in the text space: a classifier as an image tower.

ConSE: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings",
arXiv 1312.5650. A picture is the mean of the text vectors of its likeliest classes, each weighted
with its probability; it needs no pairs of pictures and texts.

- The palette does the same for 11 colours, whose "classifier" is a histogram of the pixels: the
  classes of a photograph say "flower", hardly ever "red". Colour names: Berlin and Kay 1969.
- Letters: k classes, t of them kept, c colours, r reference points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import ConceptsConfig, PaletteConfig

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["COLOURS", "ConceptHead", "Palette"]

# The 11 basic colour terms, each with the sRGB points that stand for it.
COLOURS = {
    "black": ("000000", "202020"),
    "white": ("ffffff", "f0f0f0"),
    "gray": ("808080", "a8a8a8", "585858", "c8c8c8"),
    "red": ("e00000", "a00000", "ff4030"),
    "orange": ("ff8000", "e06000", "f07820"),
    "yellow": ("ffe000", "e8c800", "fff080", "e0b020", "d8a800", "ffd84a"),
    "green": ("008000", "40c040", "90d050", "205020", "607030"),
    "blue": ("0000e0", "2060c0", "60a0f0", "101060", "a0d0ff", "00a0c0"),
    "purple": ("800080", "6030a0", "b070d0"),
    "pink": ("ff80c0", "ffc0d0", "e05090"),
    "brown": ("804020", "603010", "a07040", "c8a078"),
}
_POINTS = [point for points in COLOURS.values() for point in points]
_SIDE = 32  # rows and columns of the thumbnail whose colours are counted


def to_lab(rgb: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """sRGB in 0..1 to CIE L*a*b* under D65 (IEC 61966-2-1, CIE 15)."""
    low = rgb <= 0.04045
    linear = torch.where(low, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    matrix = rgb.new_tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / rgb.new_tensor([0.95047, 1.0, 1.08883])
    cube = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = cube.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


class Palette(nn.Module):
    """How much of each of the 11 colours a picture has, and what that means in the text space.

    Attributes:
        usual: [c], the square root of the share of each colour in an average picture.
        vectors: [c e], what is added to the image vector for more of a colour than usual.
    """

    def __init__(self, cfg: PaletteConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.usual = nn.Parameter(torch.zeros(len(COLOURS)))
        self.vectors = nn.Parameter(torch.zeros(len(COLOURS), embed_dim))

    def shares(self, image: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c"]:
        """Share of each colour, summing to 1. The middle counts more, as do vivid colours; white
        counts less, because cut-outs and drawings stand on it.
        """
        mean, std = image.new_tensor(self.cfg.mean), image.new_tensor(self.cfg.std)
        small = F.adaptive_avg_pool2d(image, _SIDE).permute(0, 2, 3, 1)  # n y x 3
        lab = to_lab((small * std + mean).clamp(0, 1))
        points = [[int(point[i : i + 2], 16) / 255 for i in (0, 2, 4)] for point in _POINTS]
        owner = [i for i, same in enumerate(COLOURS.values()) for _ in same]
        near = (lab[..., None, :] - to_lab(image.new_tensor(points))).square().sum(-1)  # n y x r
        near = (-near / (2 * self.cfg.spread**2)).softmax(-1)
        shares = near @ torch.eye(len(COLOURS), dtype=near.dtype, device=near.device)[owner]
        axis = torch.linspace(-1, 1, _SIDE, device=image.device, dtype=lab.dtype)
        middle = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * self.cfg.centre**2))
        chroma = lab[..., 1:].square().sum(-1).sqrt()
        weight = middle * (0.2 + self.cfg.chroma * chroma)
        ground = (lab[..., 0] > 96) & (chroma < 4)
        weight = torch.where(ground, weight * self.cfg.white, weight)
        total = (shares * weight[..., None]).sum((1, 2))
        return total / total.sum(-1, keepdim=True)

    def forward(self, shares: Float[Tensor, "n c"]) -> Float[Tensor, "n e"]:
        return (shares.sqrt() - self.usual) @ self.vectors


class ConceptHead(nn.Module):
    """Features -> class probabilities -> the weighted mean of the classes' vectors, unit length.

    Attributes:
        classifier: features to the logits of k classes.
        concepts: [k e], the vector of each class in the text space.
    """

    def __init__(self, cfg: ConceptsConfig, width: int, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.width = width  # of the features; what comes behind them are shares of colours
        self.classifier = nn.Linear(width, cfg.num_classes)
        self.concepts = nn.Parameter(torch.randn(cfg.num_classes, embed_dim))
        self.palette = None if cfg.palette is None else Palette(cfg.palette, embed_dim)

    def probabilities(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Of the classes, at the config's temperature; only the `top` likeliest are kept."""
        p = (self.classifier(features) / self.cfg.temperature).softmax(-1)
        least = p.topk(self.cfg.top, dim=-1).values[:, -1:]
        return torch.where(p >= least, p, 0)

    def forward(self, pooled: Float[Tensor, "n D"]) -> Float[Tensor, "n e"]:
        features, shares = pooled[:, : self.width], pooled[:, self.width :]
        x = F.normalize(self.probabilities(features) @ self.concepts, dim=-1)
        return x if self.palette is None else x + self.palette(shares)
