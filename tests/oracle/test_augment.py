"""Random crops and colours: torchvision's, from the same state of the generator."""

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from diptych.preprocess.augment import crop_box, jitter


def test_crops_and_colours_are_torchvisions():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (44, 60, 3), np.uint8))
    scale, ratio = (0.2, 0.9), (3 / 4, 4 / 3)
    theirs = transforms.ColorJitter(0.4, 0.4, 0.4)
    for seed in range(200):
        torch.manual_seed(seed)
        top, left, h, w = transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio))
        expected = np.asarray(theirs(image))
        torch.manual_seed(seed)
        assert crop_box(*image.size, scale=scale, ratio=ratio) == (left, top, w, h)
        assert np.array_equal(np.asarray(jitter(image, 0.4)), expected)
