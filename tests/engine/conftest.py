"""A small encoder with CLIP's real vocabulary, and photographs made of noise."""

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.config import CLIPConfig, TextConfig, ViTConfig

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(
        image_size=(32, 32),
        patch_size=8,
        width=64,
        layers=3,
        heads=4,
        mlp_dim=128,
        act="quick_gelu",
    ),
    text=TextConfig(
        context_length=77,
        vocab_size=49408,
        width=64,
        layers=3,
        heads=4,
        mlp_dim=128,
        act="quick_gelu",
    ),
)


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def enc(tiny):
    return diptych.build(tiny, seed=1, precision="fp32")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 40 pictures, one broken file, one text file and a folder below."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir()
    for i in range(40):
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(small).resize((60 + i, 50), Image.Resampling.BICUBIC)
        picture.save(folder / ("sub" if i % 10 == 9 else ".") / f"{i:02}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "notes.txt").write_text("not a picture either")
    return folder
