"""Copies of every kind between two folders, and what they do to an accuracy."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import diptych
from diptych.errors import ConfigError, DataError
from diptych.eval import overlap as module
from diptych.eval.overlap import overlap, with_and_without


@pytest.fixture(scope="module")
def encoder():
    return diptych.load("mini", mode="original")


def picture(seed: int) -> Image.Image:
    """Smooth blobs: no two seeds are alike."""
    noise = np.random.default_rng(seed).uniform(0, 255, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    train, evaluation = tmp_path_factory.mktemp("train"), tmp_path_factory.mktemp("evaluation")
    for seed in range(8):
        picture(seed).save(train / f"{seed}.png")
    (evaluation / "0.png").write_bytes((train / "0.png").read_bytes())
    picture(1).save(evaluation / "1.bmp")  # another format, the same pixels
    blurred = picture(2).filter(ImageFilter.GaussianBlur(1)).resize((200, 150))
    blurred.save(evaluation / "2.jpg", quality=60)
    picture(99).save(evaluation / "99.png")
    (evaluation / "broken.png").write_bytes(b"no picture")
    return train, evaluation


@pytest.mark.parametrize("at_once", [3, 2048])
def test_each_reason(encoder, folders, monkeypatch, at_once):
    monkeypatch.setattr(module, "_TRAIN", at_once)
    monkeypatch.setattr(encoder, "batch_size", 3)
    train, evaluation = folders
    read = []
    found = overlap(encoder, train, evaluation, progress=read.append)
    reasons = {
        one.evaluation.split("/")[-1]: (one.matches[0].train.split("/")[-1], one.matches[0].reason)
        for one in found.found
    }
    assert reasons == {
        "0.png": ("0.png", "same bytes"),
        "1.bmp": ("1.png", "same pixels"),
        "2.jpg": ("2.png", "nearly the same"),
    }
    assert [one.num_matches for one in found.found] == [1, 1, 1]
    assert found.found[0].matches[0].cosine == pytest.approx(1, abs=1e-6)
    assert found.found[0].matches[0].bits == 0
    assert 0.8 <= found.found[2].matches[0].cosine < 1
    assert (found.num_train, found.num_evaluation, found.share) == (8, 4, 3 / 4)
    ((key, reason),) = found.unused_train + found.unused_evaluation
    assert key.endswith("broken.png")
    assert "broken.png" in reason
    assert read[-1] == 13


def test_only_copies(encoder, folders):
    train, evaluation = folders
    found = overlap(encoder, train, evaluation, cosine=1.0, bits=0)
    assert [one.matches[0].reason for one in found.found] == ["same bytes", "same pixels"]


def test_many_copies_are_counted_and_ten_are_kept(encoder):
    copies = [picture(5)] * 30 + [picture(6)]
    found = overlap(encoder, copies, [picture(7), picture(5)])
    (one,) = found.found
    assert one.evaluation == 1
    assert one.num_matches == 30
    assert [match.train for match in one.matches] == list(range(10))
    assert {match.reason for match in one.matches} == {"same pixels"}


def test_other_values_under_the_same_numbers_are_no_copy():
    """A palette, a turn and an alpha channel are part of what is seen."""
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert module._digest(grey) == module._digest(grey.convert("RGB"))
    red = grey.convert("P")
    red.putpalette([value for i in range(256) for value in (i, 0, 0)])
    assert module._digest(red) != module._digest(grey)
    clear = grey.convert("RGBA")
    clear.putalpha(7)
    assert module._digest(clear) != module._digest(grey)
    turned = grey.copy()
    turned.getexif()[0x0112] = 6
    assert module._digest(turned) != module._digest(grey)


def test_nothing_to_compare(encoder, folders, tmp_path):
    train, evaluation = folders
    with pytest.raises(DataError, match="no training picture could be read, 1 failed"):
        overlap(encoder, [evaluation / "broken.png"], evaluation)
    with pytest.raises(DataError, match="no evaluation picture"):
        overlap(encoder, train, tmp_path)
    with pytest.raises(ConfigError, match="bits=65"):
        overlap(encoder, train, evaluation, bits=65)


def test_with_and_without():
    """100 samples: 60 of 80 clean ones right, 18 of 20 known ones."""
    right = torch.tensor([True] * 60 + [False] * 20 + [True] * 18 + [False] * 2)
    inside = torch.tensor([False] * 80 + [True] * 20)
    found = with_and_without(right, inside)
    assert (found.everything, found.clean, found.overlap) == (0.78, 0.75, 0.9)
    assert found.gain == pytest.approx(0.03, abs=1e-15)
    tail = sum(math.comb(20, k) * 0.75**k * 0.25 ** (20 - k) for k in (18, 19, 20))
    assert found.p == pytest.approx(tail, abs=1e-12)
    low, high, how = found.intervals["overlap"]
    assert low < 0.9 < high
    assert "99.5 %" in how
    assert (found.num_clean, found.num_overlap) == (80, 20)


@pytest.mark.parametrize("inside", [False, True])
def test_with_or_without_all(inside):
    found = with_and_without(torch.tensor([True, False]), torch.tensor([inside, inside]))
    assert found.p == 1
    assert math.isnan(found.clean if inside else found.overlap)
    assert ("clean" in found.intervals) != inside


def test_marks_of_another_number():
    with pytest.raises(DataError, match="one of each"):
        with_and_without(torch.tensor([True]), torch.tensor([True, False]))
    with pytest.raises(DataError, match="one of each"):
        with_and_without(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool))
