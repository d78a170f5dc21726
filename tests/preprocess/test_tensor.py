"""Pixels to uint8 on the device: against Pillow on photographs, and pictures of mixed sizes."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Preprocess, tensor_preprocess
from diptych.preprocess.pipeline import normalise_batch
from diptych.preprocess.tensor import resize_all, tensor_resize

SAMPLES = files("diptych") / "assets" / "samples"
CONFIG = PreprocessConfig(size=(64, 64))


@pytest.fixture(scope="module")
def samples() -> list[np.ndarray]:
    """The photographs in the package as uint8 [H W 3]."""
    paths = sorted(p for p in SAMPLES.iterdir() if p.name.endswith(".jpg"))
    return [np.array(Image.open(str(path)).convert("RGB")) for path in paths[:12]]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_photographs_are_those_of_pillow(samples, interpolation):
    config = PreprocessConfig(size=(224, 224), interpolation=interpolation)
    pillow = Preprocess(config)
    for photo in samples:
        want = tensor(np.array(pillow.resize(photo)))
        off = (tensor_resize(tensor(photo)[None], config)[0].int() - want.int()).abs()
        assert int(off.max()) <= 2
        assert float((off == 0).float().mean()) >= 0.98


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_uint8_is_what_is_normalised(resize):
    config = PreprocessConfig(size=(48, 40), resize=resize, pad=114)
    images = torch.stack([noise(70, 90, seed=i) for i in range(3)])
    whole = tensor_resize(images, config)
    assert whole.dtype == torch.uint8 and whole.shape == (3, 3, 48, 40)
    difference = normalise_batch(whole, config) - tensor_preprocess(images, config)
    assert difference.abs().max() <= 1e-6


def test_mixed_sizes_keep_their_order():
    sizes = [(80, 100), (64, 64), (80, 100), (100, 80), (64, 64), (7, 300)]
    images = [noise(*size, seed=i) for i, size in enumerate(sizes)]
    together = resize_all(images, CONFIG)
    assert together.shape == (6, 3, 64, 64)
    for row, image in zip(together, images, strict=True):
        assert torch.equal(row, tensor_resize(image[None], CONFIG)[0])


def test_equal_sizes_run_together(monkeypatch):
    from diptych.preprocess import tensor as module

    batches = []
    whole = module.tensor_resize
    monkeypatch.setattr(
        module, "tensor_resize", lambda x, config: batches.append(len(x)) or whole(x, config)
    )
    module.resize_all([noise(80, 100), noise(70, 70), noise(80, 100)], CONFIG)
    assert batches == [2, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: tensor_resize(torch.zeros(1, 3, 8, 8), CONFIG),
        lambda: tensor_resize(torch.zeros(3, 8, 8, dtype=torch.uint8), CONFIG),
        lambda: resize_all([], CONFIG),
        lambda: resize_all([torch.zeros(1, 8, 8, dtype=torch.uint8)], CONFIG),
    ],
    ids=["float", "no batch", "nothing", "grey"],
)
def test_what_is_no_picture_is_an_error(call):
    with pytest.raises(ImageError):
        call()
