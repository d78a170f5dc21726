"""Scores by hand, verdicts, and thresholds whose promises are kept on fresh draws."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import diptych
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.errors import ConfigError, DataError
from diptych.judge.images import Item, encode_items
from diptych.judge.labelled import read_labelled
from diptych.judge.masked import with_and_without_text
from diptych.judge.moderate import (
    Answer,
    accept_threshold,
    check_policy,
    fit,
    halves,
    joined,
    measure,
    policy_scores,
    reject_threshold,
    sentences,
    verdicts,
)
from diptych.judge.policy import Label, Policy

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=1, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=1, heads=4, mlp_dim=128),
)
ANIMAL = Label(name="animal", yes=("a dog", "a cat"), no=("a house",), accept=1.0, reject=-1.0)
POLICY = Policy(labels=(ANIMAL, Label(name="food", yes=("bread",), no=("a house", "a dog"))))


@pytest.fixture(scope="module")
def enc():
    return diptych.build(TINY, precision="fp32")


def drawn(n, seed):
    """Scores of a label that half of them have: a cut that is 90 % right lies where 40 % are."""
    rng = torch.Generator().manual_seed(seed)
    right = torch.rand(n, generator=rng) < 0.5
    scores = torch.randn(n, generator=rng, dtype=torch.float64) + 2.0 * right
    return scores, right


def test_scores_by_hand(enc):
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    vectors = enc.encode_image(image, out="torch")
    found = policy_scores(sentences(enc, POLICY), vectors)
    scale = float(enc.model.logit_scale.detach().exp())
    x = vectors.numpy()[0].astype(float)
    dog, cat, house, bread = scale * enc.encode_text(["a dog", "a cat", "a house", "bread"]) @ x
    assert found[0, 0] == pytest.approx(
        math.log((math.exp(dog) + math.exp(cat)) / 2) - house, abs=1e-5
    )
    assert found[0, 1] == pytest.approx(
        bread - math.log((math.exp(dog) + math.exp(house)) / 2), abs=1e-5
    )


def test_verdicts():
    scores = torch.tensor([[1.0, 0.1], [0.99, -0.1], [-1.0, 0.0], [-1.01, 9.0]])
    said = [[answer.verdict for answer in row] for row in verdicts(POLICY, scores)]
    assert said == [["yes", "yes"], ["unsure", "no"], ["unsure", "no"], ["no", "yes"]]
    never = Policy(labels=(Label(name="a", yes=("x",), no=("y",), reject=0.0),))
    assert verdicts(never, torch.tensor([[99.0]]))[0][0].verdict == "unsure"


def test_a_label_for_which_nothing_could_be_promised_is_never_guessed(enc):
    scores, right = drawn(20, seed=1)
    policy = Policy(labels=(Label(name="a", yes=("x",), no=("y",)),))
    found = fit(policy, enc, scores[:, None], right[:, None].double())
    assert not found.policy.labels[0].has_thresholds
    assert verdicts(found.policy, torch.tensor([[99.0]]))[0][0].verdict == "unsure"
    assert found.reports[0].unsure == found.reports[0].num


def test_views_that_differ_are_unsure():
    yes, no = Answer("a", "yes", 2.0), Answer("a", "no", -2.0)
    assert joined([[yes]]) == [yes]
    assert joined([[yes], [no]]) == [Answer("a", "unsure", -2.0)]
    assert joined([[yes], [yes._replace(score=1.5)]]) == [Answer("a", "yes", 1.5)]


def test_the_promise_of_precision_is_kept():
    """Over 300 draws of 400 examples; the truth is known here."""
    everything, right = drawn(400_000, seed=99)
    broken = set_ = 0
    for seed in range(300):
        cut = accept_threshold(*drawn(400, seed), precision=0.9, confidence=0.9)
        if cut is not None:
            set_ += 1
            broken += float(right[everything >= cut].double().mean()) < 0.9
    assert set_ > 200
    assert broken / 300 <= 0.1


def test_the_promise_of_recall_is_kept_and_used():
    everything, right = drawn(400_000, seed=98)
    missed = []
    for seed in range(300):
        scores, true = drawn(400, seed)
        cut = reject_threshold(scores[true], recall=0.9, confidence=0.9)
        missed.append(float((everything[right] < cut).double().mean()))
    assert np.mean(np.array(missed) > 0.1) <= 0.1 + 0.05  # 300 draws of a chance of 10 %
    assert np.mean(missed) > 0.05  # what is allowed is made use of


def test_what_cannot_be_shown_is_not_promised():
    scores, right = torch.arange(28.0, dtype=torch.float64), torch.ones(28, dtype=torch.bool)
    assert accept_threshold(scores, right, precision=0.9) is None  # 29 hits of 29 would show it
    scores, right = torch.arange(60.0, dtype=torch.float64), torch.ones(60, dtype=torch.bool)
    assert accept_threshold(scores, right, precision=0.9) == 0.0
    assert accept_threshold(scores, ~right, precision=0.9) is None
    assert reject_threshold(scores[:20], recall=0.9) is None  # 29 true ones are needed
    assert reject_threshold(scores[:28], recall=0.9) is None
    assert reject_threshold(scores[:29], recall=0.9) == 0.0


def test_equal_scores_are_not_parted():
    scores = torch.zeros(200, dtype=torch.float64)
    right = torch.arange(200) < 180
    assert accept_threshold(scores, right, precision=0.95) is None
    assert accept_threshold(scores, right, precision=0.8) == 0.0


def test_fit_measures_on_the_other_half(enc):
    scores, right = drawn(2000, seed=1)
    other, wrong = drawn(2000, seed=2)
    truth = torch.stack([right, wrong], 1).double()
    truth[:500, 1] = math.nan
    found = fit(POLICY, enc, torch.stack([scores, other], 1), truth)
    animal, food = found.reports
    assert abs(animal.num - 1000) <= 1 and abs(food.num - 750) <= 1
    assert animal.yes + animal.unsure + animal.no == animal.num
    assert animal.precision > 0.86 and animal.recall > 0.86
    low, high, _ = animal.precision_interval
    assert low < animal.precision < high
    label = found.policy.labels[0]
    assert label.reject < label.accept and label.yes == ANIMAL.yes
    fitted = found.policy.fitted
    assert (fitted.fingerprint, fitted.mask_text) == (enc.fingerprint, False)
    first, second = halves(right, seed=0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(2000))
    assert measure(label, scores[second], right[second]) == animal


def test_thresholds_belong_to_a_model_and_a_way_to_look(enc):
    scores, right = drawn(400, seed=1)
    policy = Policy(labels=(ANIMAL,))
    found = fit(policy, enc, scores[:, None], right[:, None].double(), mask_text=True).policy
    check_policy(found, enc, mask_text=True)
    with pytest.raises(ConfigError, match="set with --mask-text"):
        check_policy(found, enc, mask_text=False)
    other = diptych.build(TINY, seed=5, precision="fp32")
    with pytest.raises(ConfigError, match="fingerprint"):
        check_policy(found, other, mask_text=True)
    check_policy(policy, other, mask_text=True)


def test_bad_examples(enc):
    policy = Policy(labels=(ANIMAL,))
    with pytest.raises(DataError, match="1 of 9 examples have it"):
        fit(policy, enc, torch.randn(9, 1), (torch.arange(9) == 0)[:, None].double())
    with pytest.raises(DataError, match="one each"):
        fit(policy, enc, torch.randn(9, 2), torch.ones(9, 2))
    with pytest.raises(ConfigError, match="precision must be"):
        fit(policy, enc, torch.randn(9, 1), torch.ones(9, 1), precision=1.0)


def test_a_picture_with_text_has_two_views(enc):
    plain = Image.new("RGB", (300, 200), (90, 120, 160))
    words = plain.copy()
    font = ImageFont.load_default(40)
    ImageDraw.Draw(words).text((20, 60), "library", font=font, fill="white")
    items = [Item(key="a", image=plain), Item(key="b", image=words), Item(key="c", image=b"bad")]
    a, b, c = encode_items(enc, items, views=with_and_without_text)
    assert len(a.vectors) == 1 and len(b.vectors) == 2 and len(c.vectors) == 0
    assert float(b.vectors[1] @ a.vectors[0]) > float(b.vectors[0] @ a.vectors[0])


def labelled(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    return list(read_labelled(tmp_path / "x.csv", ["animal", "food"]))


def test_labelled_pictures(tmp_path):
    found = labelled(tmp_path, "path,labels\na.jpg,animal; food\nb.jpg,\n")
    assert [x.truth for x in found] == [(1, 1), (0, 0)]
    assert found[0].image == tmp_path / "a.jpg"
    found = labelled(tmp_path, "path,animal,food\na.jpg,1,no\nb.jpg,,true\n")
    assert found[0].truth == (1, 0)
    assert math.isnan(found[1].truth[0]) and found[1].truth[1] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "path,labels\na.jpg,animals\n",
            "x.csv:2: there is no label 'animals', or not one alone. Near",
        ),
        ("path,animal\na.jpg,1\n", "x.csv:2: has columns for animal but none for 'food'"),
        ("path,animal,food\na.jpg,maybe,1\n", "has 'maybe'"),
        ("path,what\na.jpg,1\n", "no labels in path, what"),
        ("path,labels\na.jpg,\na.jpg,food\n", "x.csv:3: a.jpg stands in"),
        ("labels\nfood\n", "no path in it"),
    ],
)
def test_bad_lists(tmp_path, text, says):
    with pytest.raises(DataError) as caught:
        labelled(tmp_path, text)
    assert says in str(caught.value)
