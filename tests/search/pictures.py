"""Made-up pictures, and the small model that looks at them."""

import numpy as np
from PIL import Image

from diptych.config import CLIPConfig, TextConfig, ViTConfig

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128),
)


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Soft patches of colour: what survives a resize, as a photograph does."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
