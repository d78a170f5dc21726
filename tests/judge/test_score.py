"""CLIP scores by hand, long captions, failures, and what the figure is called."""

import math

import numpy as np
import pytest
import torch

import diptych
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.errors import ConfigError, DataError
from diptych.judge.long_text import text_windows
from diptych.judge.pairs import Pair
from diptych.judge.score import Failed, Rule, Tally, clip_score, score_pairs

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128),
)
LONG = " ".join(f"Sentence number {i} says that a dog runs over the grass." for i in range(20))


def balance_(enc, pictures, texts) -> None:
    """Cosines of both signs: random towers leave all images on one side of all texts."""
    words = enc.encode_text(texts, out="torch").mean(0)
    words = words / words.norm()
    with torch.no_grad():
        weight = enc.model.visual.proj.weight  # e w
        weight -= words[:, None] * (words @ weight)
        if clip_score(enc, pictures, texts, convention="torchmetrics").values.mean() < 0:
            weight.neg_()


@pytest.fixture(scope="module")
def enc(pictures):
    enc = diptych.build(TINY, seed=3, precision="fp32")
    balance_(enc, pictures, [f"A photo depicts {text}" for text in TEXTS])
    return enc


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(5)]


TEXTS = ["a dog", "a cat on a chair", "seven boats", "x", "the sea at night"]


def cosines(enc, pictures, texts, prefix="A photo depicts "):
    images = enc.encode_image(pictures).astype(np.float64)
    words = enc.encode_text([prefix + text for text in texts]).astype(np.float64)
    return (images * words).sum(1)


def test_the_original_convention_by_hand(enc, pictures):
    found = clip_score(enc, pictures, TEXTS)
    expected = 2.5 * cosines(enc, pictures, TEXTS).clip(0)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert 0 < (expected > 0.01).sum() < 5
    assert found.score == pytest.approx(expected.mean(), abs=1e-6)
    assert found.interval.low <= found.score <= found.interval.high
    assert (found.prefix, found.num, found.num_cut, found.errors) == ("A photo depicts ", 5, 0, ())


def test_negative_cosines_are_clamped_each_here_and_together_there(enc, pictures):
    plain = cosines(enc, pictures, TEXTS, prefix="")
    theirs = clip_score(enc, pictures, TEXTS, convention="torchmetrics")
    np.testing.assert_allclose(theirs.values, 100 * plain, atol=1e-4)
    assert theirs.score == pytest.approx(max(100 * plain.mean(), 0), abs=1e-4)
    rule = Rule(convention="torchmetrics")
    assert (rule.of_cosine(-0.2), rule.prefix) == (-20.0, "")
    assert Rule().of_cosine(-0.2) == 0 and Rule().of_cosine(0.4) == 1.0
    tally = Tally(enc, rule)
    for i, value in enumerate((-30.0, 10.0)):
        tally.values.append(value)
        tally.groups.append(i)
    assert tally.scores().score == 0.0


def harmonic(a, b):
    return 2 * a * b / (a + b) if a and b else 0.0


@pytest.mark.parametrize("clip", [False, True])
def test_references(enc, pictures, clip):
    references = [["a puppy", "an animal"], ["furniture"], ["ships"], ["y"], "waves"]
    found = clip_score(enc, pictures, TEXTS, references=references, clip_references=clip)
    own = 2.5 * cosines(enc, pictures, TEXTS).clip(0)
    best = []
    for text, right in zip(TEXTS, references, strict=True):
        right = [right] if isinstance(right, str) else right
        rows = enc.encode_text([f"A photo depicts {t}" for t in (text, *right)]).astype(float)
        best.append(max(rows[1:] @ rows[0]))
    expected = [harmonic(a, max(b, 0) if clip else b) for a, b in zip(own, best, strict=True)]
    np.testing.assert_allclose(found.reference_values, expected, atol=1e-6)
    assert found.reference_score == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_figure_is_called_clipscore_for_its_own_model_alone():
    assert Rule().title("ViT-B-32/openai") == "CLIPScore"
    assert Rule().title("mini") == "CLIP score of mini"
    assert "windows" in Rule(long="windows").title("ViT-B-32/openai")
    other = Rule(convention="torchmetrics").title("ViT-B-32/openai")
    assert other == "CLIP score of ViT-B-32/openai as torchmetrics has it"


def test_a_long_caption_is_cut_and_counted(enc, pictures):
    found = clip_score(enc, pictures[:2], [LONG, "short"])
    assert (found.num_cut, found.num_windowed) == (1, 0)
    expected = 2.5 * cosines(enc, pictures[:2], [LONG, "short"]).clip(0)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


def test_a_long_caption_in_windows(enc, pictures):
    found = clip_score(enc, pictures[:2], [LONG, "short"], long="windows")
    assert (found.num_cut, found.num_windowed) == (0, 1)
    parts = text_windows(enc.tokenizer, LONG, prefix="A photo depicts ")
    texts = [text for text, _ in parts]
    image = enc.encode_image(pictures[0])[0].astype(float)
    each = 2.5 * (enc.encode_text(texts).astype(float) @ image).clip(0)
    weights = np.array([weight for _, weight in parts])
    assert found.values[0] == pytest.approx((each * weights).sum() / weights.sum(), abs=1e-6)
    short = clip_score(enc, pictures[1], ["short"])
    assert found.values[1] == pytest.approx(short.values[0], abs=1e-6)


def test_windows_hold_every_word_and_fit(enc):
    tokenizer = enc.tokenizer
    parts = text_windows(tokenizer, LONG, prefix="A photo depicts ")
    assert len(parts) > 1
    assert all(tokenizer.count(text) <= 77 for text, _ in parts)
    assert " ".join(t.removeprefix("A photo depicts ") for t, _ in parts) == LONG
    words = " ".join(["word"] * 200)  # one sentence without an end
    parts = text_windows(tokenizer, words)
    assert " ".join(text for text, _ in parts) == words
    assert sum(weight for _, weight in parts) == 200
    assert text_windows(tokenizer, "", prefix="") == [("", 1.0)]


def test_a_word_longer_than_the_context_is_cut_and_counted(enc, pictures):
    found = clip_score(enc, pictures[0], ["qx" * 400], long="windows")
    assert found.num_cut == 1


def test_a_picture_that_cannot_be_read_is_named(enc, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    images = [pictures[0], str(tmp_path / "bad.jpg"), pictures[1]]
    found = clip_score(enc, images, TEXTS[:3])
    assert [math.isnan(v) for v in found.values] == [False, True, False]
    (failed,) = found.errors
    assert "bad.jpg" in str(failed.error)
    assert found.num == 2 and found.score == pytest.approx(np.nanmean(found.values))


def test_no_pair_has_no_figure(enc, tmp_path):
    found = clip_score(enc, [str(tmp_path / "none.jpg")], ["a"])
    assert found.score is None and found.interval is None and len(found.errors) == 1


def test_several_captions_of_a_picture_are_one_cluster(enc, pictures):
    pairs = [Pair(key=str(i), image=p, captions=("a", "b", "c")) for i, p in enumerate(pictures)]
    scored = list(score_pairs(enc, pairs, rule=Rule()))
    assert [one.group for one in scored] == [i for i in range(5) for _ in range(3)]
    assert [one.caption for one in scored[:3]] == ["a", "b", "c"]


def test_order_and_memory_of_a_long_stream(enc, pictures):
    """Pairs are taken as they are needed, and come back in their order."""
    taken = []

    def endless():
        i = 0
        while True:
            taken.append(i)
            bad = i % 7 == 3
            yield Pair(key=str(i), image=b"bad" if bad else pictures[i % 5], captions=("a",))
            i += 1

    found = []
    for one in score_pairs(enc, endless(), rule=Rule()):
        found.append(one)
        if len(found) == 300:
            break
    assert [one.key for one in found] == [str(i) for i in range(300)]
    assert all(isinstance(one, Failed) == (int(one.key) % 7 == 3) for one in found)
    assert len(taken) < 300 + 20 * enc.batch_size


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"texts": ["a"]}, DataError, "5 images and 1 texts"),
        ({"convention": "x"}, ConfigError, "convention must be"),
        ({"long": "x"}, ConfigError, "long must be"),
        ({"references": [["a"]] * 5, "convention": "torchmetrics"}, ConfigError, "no references"),
        ({"references": [["a"]] * 4}, DataError, "4 references"),
        ({"references": [["a"], [], ["a"], ["a"], ["a"]]}, DataError, "image 1: has no reference"),
    ],
)
def test_bad_input(enc, pictures, change, error, says):
    texts = change.pop("texts", TEXTS)
    with pytest.raises(error, match=says):
        clip_score(enc, pictures, texts, **change)


def test_the_normal_interval_is_the_drawn_one(enc, monkeypatch):
    tally = Tally(enc, Rule())
    rng = np.random.default_rng(1)
    for group in range(400):
        level = rng.normal()
        for _ in range(3):
            tally.values.append(float(level + rng.normal() / 4))
            tally.groups.append(group)
    drawn = tally.scores().interval
    monkeypatch.setattr("diptych.judge.score.MOST_DRAWN", 100)
    normal = tally.scores().interval
    assert normal.method == "normal, clusters"
    assert normal.low == pytest.approx(drawn.low, abs=0.02)
    assert normal.high == pytest.approx(drawn.high, abs=0.02)
    assert torch.tensor(tally.values).mean() == pytest.approx((normal.low + normal.high) / 2)
