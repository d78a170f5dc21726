"""Pixels against open_clip (torchvision) and transformers: not one bit may differ.

Two ways are asked for by name and are a few levels off, on the photographs in the package.
"""

import io
import sys
import warnings
from dataclasses import replace
from functools import cache
from importlib.resources import files as resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "preprocess"))

from awkward_files import awkward, picture
from report import record

from diptych.config import PreprocessConfig
from diptych.preprocess import Preprocess, open_image, patchify, tensor_preprocess

CASES = [(r, i) for r in ("shortest", "squash", "longest") for i in ("bicubic", "bilinear")]


def sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Widths and heights: below, at and above the crop, odd margins, long strips."""
    random = np.random.default_rng(seed)
    edge = [(1, 1), (1, 7), (64, 64), (64, 65), (65, 64), (63, 64), (200, 64), (64, 201), (9, 300)]
    return edge + [tuple(map(int, random.integers(1, 400, 2))) for _ in range(count - len(edge))]


@cache
def photos() -> list[Image.Image]:
    modes = ("RGB", "RGB", "RGB", "L", "RGBA", "LA", "P", "CMYK", "1")
    return [
        Image.fromarray(picture(w, h, seed=i)).convert(modes[i % len(modes)])
        for i, (w, h) in enumerate(sizes(200))
    ]


def shapes_of(resize: str) -> list[Image.Image]:
    """For "longest" open_clip computes a side of 0 for strips, and Pillow raises."""
    return [p for p in photos() if resize != "longest" or max(p.size) < 60 * min(p.size)]


@cache
def files() -> dict[str, Image.Image]:
    return {name: open_image(data, name=name) for name, data in awkward().items()}


def worst(ours: Preprocess, peer, images) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(float((ours(image) - peer(image)).abs().max()) for image in images)


def open_clip(config: PreprocessConfig):
    from open_clip.transform import image_transform

    square = config.size[0] == config.size[1]
    return image_transform(
        config.size[0] if square else config.size,
        is_train=False,
        mean=config.mean,
        std=config.std,
        resize_mode=config.resize,
        interpolation=config.interpolation,
        fill_color=config.pad,
    )


@pytest.mark.parametrize(("resize", "interpolation"), CASES)
@pytest.mark.parametrize("images", ["200 sizes", "awkward files"])
def test_open_clip_bits(resize, interpolation, images):
    config = PreprocessConfig(size=(64, 64), resize=resize, interpolation=interpolation, pad=7)
    given = shapes_of(resize) if images == "200 sizes" else files().values()
    found = worst(Preprocess(config, "original"), open_clip(config), given)
    record("Pixels", f"{resize} {interpolation}, {images}", found, 0.0, "open_clip_torch")
    assert found == 0


@pytest.mark.parametrize("size", [(48, 80), (81, 47)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_open_clip_bits_of_sizes_that_are_not_square(resize, size):
    config = PreprocessConfig(size=size, resize=resize)
    found = worst(Preprocess(config, "original"), open_clip(config), shapes_of(resize))
    record("Pixels", f"{resize} {size[0]}x{size[1]}", found, 0.0, "open_clip_torch")
    assert found == 0


@pytest.mark.parametrize("size", [224, 384])
def test_right_is_open_clip_for_plain_files(size):
    config = PreprocessConfig(size=(size, size))
    plain = [photo for photo in photos()[:120] if photo.mode in ("RGB", "L")]
    found = worst(Preprocess(config, "right"), open_clip(config), plain)
    record("Pixels", f"mode=right, plain files at {size}", found, 0.0, "open_clip_torch")
    assert found == 0


def hugging_face(config: PreprocessConfig):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    height, width = config.size
    common = {
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "resample": {"bicubic": 3, "bilinear": 2}[config.interpolation],
    }
    if config.resize == "squash":
        peer = SiglipImageProcessorPil(size={"height": height, "width": width}, **common)
    else:
        short = {"shortest_edge": config.short or height}
        crop = {"height": height, "width": width}
        peer = CLIPImageProcessorPil(size=short, crop_size=crop, **common)
    return lambda image: torch.from_numpy(peer(image)["pixel_values"][0])


HF = PreprocessConfig(size=(64, 64), rgb="before", crop="floor")


@pytest.mark.parametrize("images", ["200 sizes", "awkward files"])
@pytest.mark.parametrize(
    "config",
    [
        HF,
        replace(HF, interpolation="bilinear"),
        replace(HF, resize="squash"),
        replace(HF, resize="squash", interpolation="bilinear"),
        replace(HF, short=75),
        replace(HF, short=64, size=(48, 61)),
    ],
    ids=["clip", "clip-bilinear", "siglip", "siglip-bilinear", "short-75", "not-square"],
)
def test_transformers_bits(config, images):
    given = photos() if images == "200 sizes" else files().values()
    found = worst(Preprocess(config, "original"), hugging_face(config), given)
    what = f"{config.resize} {config.interpolation} {config.size} {config.short}, {images}"
    record("Pixels", what, found, 0.0, "transformers")
    assert found == 0


def test_patches_of_siglip2():
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    image = torch.from_numpy(picture(48, 80)).permute(2, 0, 1).float()
    ours, grid = patchify(image, 16)
    assert np.array_equal(ours, convert_image_to_patches(image.numpy(), 16))
    assert grid.tolist() == [5, 3]


def test_tensor_backend_against_open_clip():
    config = PreprocessConfig(size=(224, 224))
    peer, levels = open_clip(config), 0.0
    for seed, (width, height) in enumerate(sizes(69, seed=3)[9:]):
        array = picture(width + 100, height + 100, seed=seed)
        batch = torch.from_numpy(array).permute(2, 0, 1)[None]
        off = (tensor_preprocess(batch, config)[0] - peer(Image.fromarray(array))).abs()
        std = torch.tensor(config.std).view(3, 1, 1)
        levels = max(levels, float((off * std).max()) * 255)
    record(
        "Pixels",
        "tensor backend, 60 noisy pictures, levels of 255",
        levels,
        12.0,
        "open_clip_torch",
    )
    assert levels <= 12


def samples(*, side: int | None = None, step: int = 1) -> list[bytes]:
    """The photographs in the package as JPEG files; with the grain of a camera at a short side."""
    found = []
    folder = resources("diptych") / "assets" / "samples"
    paths = sorted(path for path in map(Path, map(str, folder.iterdir())) if path.suffix == ".jpg")
    for path in paths[::step]:
        data = path.read_bytes()
        if side is not None:
            photo = Image.open(io.BytesIO(data)).convert("RGB")
            larger = side / min(photo.size)
            photo = photo.resize([round(larger * x) for x in photo.size], Image.Resampling.BICUBIC)
            array = np.asarray(photo)
            grain = np.random.default_rng(0).normal(0, 2.5, array.shape).round()
            file = io.BytesIO()
            grainy = Image.fromarray((array + grain).clip(0, 255).astype(np.uint8))
            grainy.save(file, "JPEG", quality=90)
            data = file.getvalue()
        found.append(data)
    return found


def levels(config: PreprocessConfig, pixels, images: list[bytes]) -> list[torch.Tensor]:
    """Per image, how far from open_clip's pixels, in levels of 255."""
    ours, peer = Preprocess(config, "original", pixels=pixels), open_clip(config)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))
    offs = []
    for data in images:
        want = ((peer(Image.open(io.BytesIO(data))) * std + mean) * 255).round()
        offs.append((ours.uint8(data).float() - want).abs())
    return offs


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_near_is_one_level_off(resize, interpolation):
    config = PreprocessConfig(size=(224, 224), resize=resize, interpolation=interpolation)
    off = torch.stack(levels(config, "near", samples()))
    mean, most, two = float(off.mean()), float(off.max()), float((off > 1).double().mean())
    what = f'pixels="near", {resize} {interpolation}, photographs, levels of 255'
    record("Pixels", f"{what}, mean", mean, 0.01, "open_clip_torch")
    record("Pixels", f"{what}, share of values 2 off", two, 5e-6, "open_clip_torch")
    assert mean <= 0.01 and most <= 2 and two <= 5e-6


@pytest.mark.parametrize("side", [1344, 1500, 3000])
def test_fast_is_a_few_levels_off(side):
    """The resize is left 3, 3.3 and 3.3 times of what it needs: the least, and 12 megapixels."""
    images = samples(side=side, step=9 if side > 2000 else 3)
    off = levels(PreprocessConfig(size=(224, 224)), "fast", images)
    mean, worst = float(torch.stack(off).mean()), max(float(one.mean()) for one in off)
    most = max(float(one.max()) for one in off)
    what = f'pixels="fast", photographs of {side} rows or columns, levels of 255'
    record("Pixels", f"{what}, mean", mean, 0.25, "open_clip_torch")
    record("Pixels", f"{what}, mean of the worst photograph", worst, 0.4, "open_clip_torch")
    record("Pixels", f"{what}, most", most, 6.0, "open_clip_torch")
    assert mean <= 0.25 and worst <= 0.4 and most <= 6
