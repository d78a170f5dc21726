"""The detector: by hand on a model that sees one colour, and for real on drawn defects."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.errors import ConfigError, DataError, ImageError
from diptych.judge.anomaly import DAMAGED, SOUND, Detector, overlay, state_vectors
from diptych.judge.defects import write_defects


class Redness:
    """An "encoder" whose vector is an angle: how red a picture is on the mean."""

    fingerprint, precision, device = "x", "fp32", torch.device("cpu")
    config = SimpleNamespace(embed_dim=2)
    model = SimpleNamespace(logit_scale=torch.tensor(10.0).log())

    def encode_image(self, images, *, out):
        images = [images] if isinstance(images, Image.Image) else images
        red = torch.tensor([np.asarray(image)[..., 0].mean() / 255 for image in images])
        angle = (red * torch.pi / 2).float()
        return torch.stack([angle.cos(), angle.sin()], 1)

    def encode_text(self, texts, *, out):
        rows = [[0.0, 1.0] if "damage" in text and "without" not in text else [1.0, 0.0]
                for text in texts]  # fmt: skip
        return torch.tensor(rows)


def picture(*, red_at=None):
    pixels = np.zeros((96, 96, 3), np.uint8)
    if red_at is not None:
        x, y = red_at
        pixels[y : y + 16, x : x + 16, 0] = 255
    return Image.fromarray(pixels)


def test_the_distance_to_sound_windows():
    detector = Detector(Redness(), scales=(1 / 3,)).fit([picture()])
    sound, bad = detector.judge(picture()), detector.judge(picture(red_at=(64, 64)))
    assert sound.score == pytest.approx(0, abs=1e-6)
    assert sound.words is None
    # a window of 32 x 32 with all 16 x 16 red pixels is a quarter red: 22.5 degrees away
    corner = (1 - np.cos(np.pi / 8)) / 2
    assert bad.box in [(64, 64, 96, 96), (48, 48, 80, 80), (48, 64, 80, 96), (64, 48, 96, 80)]
    assert float(bad.map.max()) == bad.score == pytest.approx(corner, rel=1e-4)
    assert bad.map[100:106, 100:106].min() > 0 and bad.map[:60, :60].max() < 1e-6


def test_words_alone():
    detector = Detector(Redness(), object="plate", scales=(1 / 2,))
    sound, bad = detector.judge(picture()), detector.judge(picture(red_at=(0, 0)))
    assert sound.score == sound.words < bad.score == bad.words
    assert bad.map[:20, :20].min() > bad.map[-20:, -20:].max()
    assert bad.box == (0, 0, 48, 48)


def test_words_and_pictures_are_halves():
    both = Detector(Redness(), object="plate", scales=(1 / 2,)).fit([picture()])
    silent = Detector(Redness(), scales=(1 / 2,)).fit([picture()])
    bad = picture(red_at=(0, 0))
    assert both.judge(bad).score == pytest.approx(
        (both.judge(bad).words + silent.judge(bad).score) / 2
    )
    assert torch.equal(both.judge(bad).map, silent.judge(bad).map)


def test_more_sound_pictures_never_make_one_more_suspect():
    detector = Detector(Redness(), scales=(1 / 2, 1 / 3))
    bad = detector.look(picture(red_at=(32, 8)))
    one = detector.fit([picture()]).judge(bad)
    two = detector.fit([picture(), picture(red_at=(32, 8))]).judge(bad)
    assert two.score == pytest.approx(0, abs=1e-6) and one.score > 1e-3


def test_states_are_means_over_templates():
    enc = diptych.load("mini", device="cpu", precision="fp32")
    found = state_vectors(enc, "metal nut", templates=["a photo of a {}."])
    for row, states in zip(found, (SOUND, DAMAGED), strict=True):
        texts = [f"a photo of a {state.replace('{}', 'metal nut')}." for state in states]
        mean = enc.encode_text(texts).mean(0)
        assert row.numpy() == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_what_cannot_be_asked(tmp_path):
    with pytest.raises(ConfigError, match="nothing says"):
        Detector(Redness()).judge(picture())
    with pytest.raises(ConfigError, match="no name"):
        Detector(Redness(), object=" ")
    with pytest.raises(ConfigError, match="shares"):
        Detector(Redness(), scales=())
    with pytest.raises(DataError, match="no sound pictures"):
        Detector(Redness()).fit([])
    with pytest.raises(ImageError, match=r"gone\.png"):
        Detector(Redness()).fit([str(tmp_path / "gone.png")])


def test_heat_lies_where_the_map_is_high():
    found = torch.zeros(96, 96)
    found[:48] = 1
    grey = Image.new("RGB", (200, 200), (90, 90, 90))
    heat = np.asarray(overlay(grey, found, low=0, high=1, side=100)).astype(int)
    assert heat.shape == (100, 100, 3)
    assert heat[10, 50, 0] - heat[10, 50, 2] > 100  # red
    assert heat[90, 50].tolist() == [90, 90, 90]
    # of a map that is the same everywhere nothing is hot
    flat = np.asarray(overlay(grey, torch.ones(9, 9), low=1, high=1))
    assert flat[0, 0].tolist() == [90, 90, 90]


def test_a_hole_in_leather_is_found(tmp_path):
    how = {"categories": ["leather"], "num_train": 1, "num_good": 3, "num_each": 3, "size": 128}
    folder = write_defects(tmp_path / "d", **how) / "leather"
    enc = diptych.load("mini", device="cpu", precision="fp32")
    detector = Detector(enc).fit(sorted((folder / "train" / "good").iterdir()))
    scores = {
        damage: [detector.judge(p).score for p in sorted((folder / "test" / damage).iterdir())]
        for damage in ("good", "missing")
    }
    assert max(scores["good"]) < min(scores["missing"])
