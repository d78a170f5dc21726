"""The recipes' own arithmetic: statistics, splits, captions, the head's training. No packages."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import drawings
import mini
import mini_figures as figures
import mini_head as head
import packages
import photographs
import wordnet

from diptych import zoo


def test_wilson_interval():
    """Brown, Cai and DasGupta 2001: 50 of 96."""
    assert figures.wilson(50, 96) == "52.1 [42, 62]"
    assert figures.wilson(0, 10).startswith("0.0 [0, 28]")


def test_mcnemar_is_the_exact_binomial():
    one = torch.tensor([1] * 9 + [0] + [1] * 20).bool()
    two = torch.tensor([0] * 9 + [1] + [1] * 20).bool()
    assert figures.mcnemar(one, two) == pytest.approx(2 * (1 + 10) / 2**10)
    assert figures.mcnemar(one, one) == 1


def test_sign_flips_see_a_difference_and_no_difference():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(60, generator=generator)
    assert figures.sign_flips(noise + 0.5, noise) < 0.001
    assert figures.sign_flips(noise, noise[torch.randperm(60, generator=generator)]) > 0.1


def test_average_precision():
    scores, relevant = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0])
    assert figures.average_precision(scores, relevant) == pytest.approx((1 + 2 / 3) / 2)


def test_calibration_error():
    sure = torch.full((100,), 0.8)
    right = torch.arange(100) < 80
    assert figures.calibration_error(sure, right) == pytest.approx(0, abs=1e-6)
    assert figures.calibration_error(sure, right & (torch.arange(100) < 50)) == pytest.approx(0.3)


def test_the_scale_is_found_again():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(4000, 10, generator=generator) * 0.6
    right = torch.multinomial((12 * cosines).softmax(1), 1, generator=generator)[:, 0]
    assert math.exp(head.fit_scale([(cosines, right)])) == pytest.approx(12, rel=0.05)


def test_the_split_is_fixed_and_about_half():
    assert [photographs.is_reported(x) for x in ("giraffe", "hammer", "owl")] == [True, False, True]
    labels = [f"label {i}" for i in range(1000)]
    assert 450 < sum(map(photographs.is_reported, labels)) < 550


def test_forty_nouns():
    assert len(photographs.NOUNS) == len(set(photographs.NOUNS)) == 40


@pytest.mark.parametrize(
    ("stem", "words"), [("screwDriver2", "screw driver"), ("red_panda", "red panda")]
)
def test_names_of_files(stem, words):
    assert photographs._words(stem) == words


def test_captions():
    assert photographs._label("A peacock (a male peafowl).") == "peacock"
    assert drawings._caption("Frog_mascot 12", {"frog", "mascot"}) == "frog mascot"
    assert drawings._caption("tuxqwe", {"frog"}) is None
    assert drawings.colour_word("a red flower") == "red"
    assert drawings.colour_word("red") is None and drawings.colour_word("red and blue car") is None


def test_wordnet_file(tmp_path):
    folder = tmp_path / "wordnet-base/usr/share/wordnet"
    folder.mkdir(parents=True)
    lines = [
        "  1 a licence",
        '00000001 03 n 01 entity 0 000 | that which is; "it is"',
        "00000002 03 n 02 dog 0 wild_dog 0 001 @ 00000001 n 0000 | an animal",
    ]
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    nouns = wordnet.read(tmp_path)
    assert nouns["00000002"] == wordnet.Noun(("dog", "wild dog"), "an animal", ("00000001",))
    assert nouns["00000001"].gloss == "that which is"
    assert wordnet.ancestors(nouns, "00000002") == {"00000001": 1}
    assert [wordnet.depth(nouns, offset) for offset in nouns] == [0, 1]


def test_a_correction_is_learned_and_is_the_same_twice():
    generator = torch.Generator().manual_seed(0)
    k, e, d, n = 30, 16, 24, 200

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    concepts, below = head.unit(rand(k, e)), torch.rand(k, 5, generator=generator) < 0.3
    below[0] = False  # a class with no general noun above it
    classifier = rand(k, d), torch.zeros(k)
    views = rand(2, n, d).relu()
    p = (views[0] @ classifier[0].T).softmax(-1)
    wanted = head.unit(rand(k, e))  # what the classes would have to mean
    captions = head.unit(p @ wanted)

    def learned(steps: int) -> torch.Tensor:
        general = head.Hypernyms(concepts[:5], below)
        sizes = {"num_drawn": 64, "num_made": 16, "top": 10, "penalty": 0.01, "steps": steps}
        parts = (concepts, concepts, general, classifier, views, captions, torch.arange(n))
        return head.learn(*parts, seed=0, **sizes)

    def cosine(correction: torch.Tensor) -> float:
        return float((head.unit(p @ (concepts + correction)) * captions).sum(1).mean())

    correction = learned(200)
    assert torch.equal(correction, learned(200))
    assert cosine(correction) > cosine(torch.zeros_like(correction)) + 0.1


def test_what_is_stored_how():
    config = zoo.get("mini").config
    shapes = zoo.checkpoint.expected_shapes(config)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    whole, half = set(mini.in_int8(state)), mini.in_half(state)
    assert not whole & half
    size = sum(t.numel() * (1 if k in whole else 2 if k in half else 4) for k, t in state.items())
    assert size < 31e6
    assert "visual.proj.concepts" in half and "text.token_embedding.weight" in whole


def test_a_package_must_be_the_one_that_was_used(tmp_path):
    package = packages.PACKAGES[0]
    with pytest.raises(ValueError, match="missing"):
        packages.check(tmp_path, package)
    (tmp_path / package.file).write_bytes(b"another")
    with pytest.raises(ValueError, match="SHA-256"):
        packages.check(tmp_path, package)
