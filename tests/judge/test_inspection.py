"""MVTec AD's layout, and areas under curves that are known."""

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.errors import DataError
from diptych.judge.inspection import categories, figures, mask_of, read_mvtec


def image(path, size=(60, 40), value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


@pytest.fixture
def nut(tmp_path):
    folder = tmp_path / "nut"
    for i in range(2):
        image(folder / "train" / "good" / f"{i:03}.png")
        image(folder / "test" / "good" / f"{i:03}.png")
        image(folder / "test" / "bent" / f"{i:03}.png")
        pixels = np.zeros((40, 60), np.uint8)
        pixels[:10, :30] = 255
        path = folder / "ground_truth" / "bent" / f"{i:03}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_a_category(nut):
    found = read_mvtec(nut)
    assert (found.name, len(found.train)) == ("nut", 2)
    assert [(p.damage, p.mask is None) for p in found.test] == [("bent", False)] * 2 + [
        ("good", True)
    ] * 2
    assert categories(nut) == categories(nut.parent) == [nut]
    mask = mask_of(found.test[0])
    assert mask.shape == (40, 60) and int(mask.sum()) == 300
    assert not mask_of(found.test[3]).any()


def break_it(nut, what):
    mask = nut / "ground_truth" / "bent" / "001_mask.png"
    match what:
        case "mask":
            mask.unlink()
        case "picture":
            (nut / "test" / "bent" / "001.png").unlink()
        case "train":
            for path in (nut / "train" / "good").iterdir():
                path.unlink()
        case "good":
            (nut / "test" / "good").rename(nut / "test" / "fine")
        case "damage":
            for part in ("test", "ground_truth"):
                (nut / part / "bent").rename(nut / f"old {part}")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("mask", r"001_mask\.png: is missing"),
        ("picture", r"001_mask\.png: there is no picture"),
        ("train", "good: has no pictures"),
        ("good", "needs good"),
        ("damage", "needs good and one damage"),
    ],
)
def test_layouts_that_would_change_the_figures(nut, what, told):
    break_it(nut, what)
    with pytest.raises(DataError, match=told):
        read_mvtec(nut)


def test_no_category_at_all(tmp_path):
    with pytest.raises(DataError, match="no category"):
        categories(tmp_path)


def test_masks_that_cannot_be(nut):
    piece = read_mvtec(nut).test[0]
    image(piece.mask, size=(61, 40), value=255)
    with pytest.raises(DataError, match="61 x 40, its picture 60 x 40"):
        mask_of(piece)
    image(piece.mask, value=0)
    with pytest.raises(DataError, match="marks nothing"):
        mask_of(piece)


def test_a_thin_scratch_does_not_vanish_from_a_small_mask(nut):
    piece = read_mvtec(nut).test[0]
    image(piece.path, size=(1000, 500))
    pixels = np.zeros((500, 1000), np.uint8)
    pixels[250] = 1
    Image.fromarray(pixels).save(piece.mask)
    mask = mask_of(piece)
    assert mask.shape == (64, 128)
    assert mask.any(1).sum() == 1 and mask[32].all()


def pieces(nut):
    """Eight of each kind: the same files again, which is enough for figures."""
    found = read_mvtec(nut).test
    return [*found[:2], *found[2:]] * 4


def test_figures_of_known_scores(nut):
    test = pieces(nut)
    random = np.random.default_rng(0)
    masks = [mask_of(piece).float() for piece in test]
    perfect = figures([float(m.sum() > 0) for m in masks], masks, test, samples=50)
    assert perfect.image == perfect.pixel == 1
    assert perfect.image_interval[:2] == (1, 1)
    assert perfect.pixel_interval.low == pytest.approx(1)
    wrong = figures([-float(m.sum() > 0) for m in masks], [-m for m in masks], test, samples=50)
    assert wrong.image == wrong.pixel == 0
    maps = [torch.from_numpy(random.random(m.shape)) for m in masks]
    chance = figures(random.random(16).tolist(), maps, test, samples=200)
    assert chance.pixel == pytest.approx(0.5, abs=0.02)
    assert chance.pixel_interval.low < chance.pixel < chance.pixel_interval.high
    assert chance.image_interval.low < chance.image < chance.image_interval.high


def test_a_constant_map_knows_nothing(nut):
    test = pieces(nut)
    same = figures([0.5] * 16, [torch.zeros(4, 4)] * 16, test, samples=20)
    assert same.image == same.pixel == 0.5
    assert same.pixel_interval[:2] == (0.5, 0.5)


def test_what_cannot_be_measured(nut):
    good = [piece for piece in pieces(nut) if piece.mask is None]
    with pytest.raises(DataError, match="0 are damaged"):
        figures([0.0] * len(good), [torch.zeros(4, 4)] * len(good), good)
    with pytest.raises(DataError, match="counts must be equal"):
        figures([0.0], [], pieces(nut))
