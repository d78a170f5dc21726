"""Batches, patches, and the tensor backend against Pillow."""

import numpy as np
import pytest
import torch
from awkward_files import picture
from PIL import Image

from diptych.config import PreprocessConfig
from diptych.errors import ConfigError, ImageError
from diptych.preprocess import Patches, Preprocess, collate, patchify, tensor_preprocess


def test_collate_stacks():
    images = [torch.full((3, 4, 5), float(i)) for i in range(3)]
    assert torch.equal(collate(images), torch.stack(images))
    with pytest.raises(ImageError, match="different sizes"):
        collate([torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)])
    with pytest.raises(ImageError, match="empty"):
        collate([])
    with pytest.raises(ImageError, match="either of tensors or of patches"):
        collate([torch.zeros(3, 4, 4), patchify(torch.zeros(3, 4, 4), 2)])


def test_collate_of_levels():
    images = [torch.full((3, 4, 5), i, dtype=torch.uint8) for i in range(3)]
    batch = collate(images)
    assert batch.dtype == torch.uint8 and torch.equal(batch, torch.stack(images))
    with pytest.raises(ImageError, match="either of levels"):
        collate([images[0], images[1].float()])


def test_patches():
    image = torch.arange(3 * 4 * 6).view(3, 4, 6).float()
    patches, grid = patchify(image, 2)
    assert grid.tolist() == [2, 3] and patches.shape == (6, 12)
    for row in range(2):
        for column in range(3):
            block = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[3 * row + column], block.permute(1, 2, 0).flatten())
    with pytest.raises(ConfigError, match="whole number of patches"):
        patchify(image, 4)


def test_a_convolution_is_a_linear_of_the_patches():
    conv, image = torch.nn.Conv2d(3, 5, 4, stride=4), torch.randn(3, 8, 12)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    ours = patchify(image, 4)[0] @ weight.T + conv.bias
    assert torch.allclose(ours, conv(image[None])[0].flatten(1).T, atol=1e-5)


def test_collate_pads_patches():
    rows = [patchify(torch.ones(3, 4, 6), 2), patchify(torch.ones(3, 2, 4), 2)]
    batch = collate(rows)
    assert isinstance(batch, Patches)
    assert batch.patches.shape == (2, 6, 12) and batch.grid.tolist() == [[2, 3], [1, 2]]
    assert batch.mask.sum(1).tolist() == [6, 2]
    assert float(batch.patches[1, 2:].abs().max()) == 0


# Levels of 255. Pillow 13 runs rows first for some shapes, and then rounds other numbers.
LARGEST = {"bicubic": 12.0, "bilinear": 2.0}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_tensor_backend(resize, interpolation):
    """60 noisy pictures: at most 2 levels where Pillow, too, resizes the columns first."""
    config = PreprocessConfig(
        size=(96, 96), resize=resize, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    ours, random = Preprocess(config), np.random.default_rng(1)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    whole, floats, columns_first = [], [], []
    for seed in range(60):
        width, height = map(int, random.integers(60, 260, 2))
        array = picture(width, height, seed=seed)
        batch = torch.from_numpy(array).permute(2, 0, 1)[None]
        want = ours(array)
        whole.append(float((tensor_preprocess(batch, config)[0] - want).abs().max()) * 255)
        floats.append(float((tensor_preprocess(batch / 255, config)[0] - want).abs().max()) * 255)
        if resize == "squash":
            first = Image.fromarray(array).resize((96, height), filters[interpolation])
            two = torch.from_numpy(np.array(first.resize((96, 96), filters[interpolation])))
            off = tensor_preprocess(batch, config)[0] - two.permute(2, 0, 1) / 255
            columns_first.append(float(off.abs().max()) * 255)
    assert max(whole) <= LARGEST[interpolation] + 1e-3
    assert max(floats) <= LARGEST[interpolation] + 1e-3
    assert max(columns_first, default=0) <= 2.001


def test_tensor_backend_has_gradients():
    config = PreprocessConfig(size=(16, 16))
    images = torch.rand(2, 3, 40, 30, requires_grad=True)
    tensor_preprocess(images, config).square().sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    for bad in (torch.zeros(3, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4).int()):
        with pytest.raises(ImageError, match="an image batch is"):
            tensor_preprocess(bad, config)
