"""Tags from cosines: hand-computed thresholds, hierarchy, levels; fitted thresholds."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diptych
from diptych.errors import ConfigError, DataError
from diptych.judge.tag import (
    alt_text,
    closed,
    fit_thresholds,
    label_vectors,
    raised,
    tags,
    thresholds,
    with_thresholds,
)
from diptych.judge.vocabulary import Label, Vocabulary, from_names

WORDS = Vocabulary(
    labels=(
        Label(name="animal"),
        Label(name="dog", parents=("animal",)),
        Label(name="poodle", parents=("animal", "dog")),
        Label(name="grass"),
    )
)
USUAL = SimpleNamespace(centre=0.1, limit=0.05, spread=0.02)


def test_a_threshold_stands_so_many_spreads_above_the_level():
    words = from_names(["a", "b", "c"])
    cosines = np.array([[0.1, 0.5, -0.9], [0.12, 0.6, -0.8], [0.3, 0.4, -0.7]])
    found = thresholds(words, cosines, USUAL, spreads=2)
    # the medians are 0.12, 0.5 and -0.8; the latter two are held within 0.05 and 0.15
    assert found == pytest.approx([0.16, 0.19, 0.09])


def test_a_threshold_of_its_own_goes_first():
    words = Vocabulary(labels=(Label(name="a", threshold=0.4), Label(name="b")))
    assert thresholds(words, np.zeros((1, 2)), USUAL, spreads=0) == pytest.approx([0.4, 0.05])
    own = Vocabulary(labels=(Label(name="a", threshold=-1.0),))
    assert thresholds(own, None, None).tolist() == [-1]
    with pytest.raises(ConfigError, match="'b' has no threshold"):
        thresholds(words, None, None)


def test_a_child_lifts_its_parents():
    values = np.array([[0.1, 0.2, 0.9, 0.3], [0.5, 0.4, 0.1, 0.0]])
    assert raised(values, WORDS).tolist() == [[0.9, 0.9, 0.9, 0.3], [0.5, 0.4, 0.1, 0.0]]
    truth = np.array([[False, False, True, False]])
    assert closed(truth, WORDS).tolist() == [[True, True, True, False]]


CUTS = np.array([0.5, 0.5, 0.5, 0.2])
COSINES = np.array([[0.1, 0.2, 0.6, 0.25], [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])


def names(rows):
    return [[tag.label.name for tag in row] for row in rows]


def test_tags_of_each_level():
    found = tags(COSINES, CUTS, WORDS)
    assert names(found) == [["poodle", "dog", "animal", "grass"], ["animal"], []]
    assert found[0][2].score == pytest.approx(0.6)
    assert found[0][3].margin == pytest.approx(0.05)
    assert names(tags(COSINES, CUTS, WORDS, level="lowest"))[:2] == [
        ["poodle", "grass"],
        ["animal"],
    ]
    assert names(tags(COSINES, CUTS, WORDS, level=1))[:2] == [["animal", "grass"], ["animal"]]
    assert names(tags(COSINES, CUTS, WORDS, level=2))[:2] == [["dog"], []]
    assert names(tags(COSINES, CUTS, WORDS, top=1)) == [["poodle"], ["animal"], []]


def test_a_cosine_at_its_threshold_holds():
    assert names(tags(np.array([[0.5]]), np.array([0.5]), from_names(["a"]))) == [["a"]]


@pytest.mark.parametrize("wrong", [{"level": 0}, {"top": 0}])
def test_levels_and_numbers_below_one(wrong):
    with pytest.raises(ConfigError, match="at least 1"):
        tags(COSINES, CUTS, WORDS, **wrong)


def test_words_in_a_row():
    assert alt_text(tags(COSINES, CUTS, WORDS, level="lowest")[0]) == "a photo: poodle, grass"
    assert alt_text([]) == "a photo"


def test_the_best_f1():
    """Right at ranks 1, 2, 4: F1 of the cuts is 1/2, 4/5, 2/3, 6/7, 3/4."""
    cosines = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    truth = np.array([[True], [True], [False], [True], [False]])
    found = fit_thresholds(cosines, truth)
    assert found.thresholds[0] == pytest.approx(0.55)
    assert (found.precision[0], found.recall[0]) == (pytest.approx(0.75), 1)


def test_equal_cosines_are_not_cut_apart():
    cosines = np.array([[0.9], [0.9], [0.1]])
    truth = np.array([[True], [False], [False]])
    found = fit_thresholds(cosines, truth)
    assert found.thresholds[0] == pytest.approx(0.5)
    assert found.precision[0] == 0.5


def test_a_label_without_examples_is_named_and_keeps_what_it_has():
    words = Vocabulary(labels=(Label(name="a"), Label(name="b", threshold=0.3)))
    found = fit_thresholds(np.array([[0.9, 0.9], [0.1, 0.8]]), np.array([[1, 0], [0, 0]], bool))
    assert found.left == {1: "no example has it"}
    assert np.isnan(found.precision[1])
    fitted = with_thresholds(words, found.thresholds)
    assert [label.threshold for label in fitted.labels] == [pytest.approx(0.5), 0.3]


def test_a_precision_must_be_proved():
    """29 right ones prove 0.9 at 95 % (0.9^29 = 0.047), 28 do not (0.052).

    Of 120, the numbers 120, 96, 77, 62 and 50 are looked at, each with a fifth of the doubt: the
    first 50 are right (0.9^50 = 0.005), of the first 62 two are wrong.
    """
    for right, wrong, proved in ((29, 0, 29), (28, 0, 0), (60, 60, 50)):
        cosines = np.linspace(0.9, 0.5, right + wrong)[:, None]
        truth = (np.arange(right + wrong) < right)[:, None]
        found = fit_thresholds(cosines, truth, precision=0.9)
        assert (not found.left) == bool(proved)
        if proved:
            assert (cosines[:, 0] >= found.thresholds[0]).sum() == proved
            assert found.precision[0] == 1
        else:
            assert "do not prove" in found.left[0]


def test_the_promised_precision_holds_on_other_pictures():
    """Of 200 labels whose threshold was proved on 300 examples, at most some 5 % fall short."""
    random = np.random.default_rng(0)

    def world(n):
        truth = random.random((n, 200)) < 0.4
        return truth * 0.12 + random.normal(0, 0.06, (n, 200)), truth

    cosines, truth = world(300)
    found = fit_thresholds(cosines, truth, precision=0.8)
    proved = [i for i in range(200) if i not in found.left]
    assert len(proved) > 150
    cosines, truth = world(20_000)
    said = cosines >= found.thresholds
    precision = (said & truth).sum(0)[proved] / said.sum(0)[proved]
    assert (precision < 0.8).mean() <= 0.08


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_no_other_cut_has_a_better_f1(seed, n):
    random = np.random.default_rng(seed)
    cosines = random.integers(0, 6, (n, 1)) / 10
    truth = random.random((n, 1)) < 0.5
    found = fit_thresholds(cosines, truth)
    if found.left:
        assert not truth.any()
        return

    def f1(cut):
        said = cosines >= cut
        return 2 * (said & truth).sum() / (said.sum() + truth.sum())

    assert f1(found.thresholds[0]) == pytest.approx(max(f1(x) for x in cosines.ravel()))


def test_examples_that_cannot_be_fitted():
    with pytest.raises(DataError, match="must be the same"):
        fit_thresholds(np.zeros((2, 1)), np.zeros((1, 1), bool))
    with pytest.raises(DataError, match="not finite"):
        fit_thresholds(np.full((1, 1), np.nan), np.ones((1, 1), bool))
    with pytest.raises(ConfigError, match="precision must lie"):
        fit_thresholds(np.ones((1, 1)), np.ones((1, 1), bool), precision=1.0)


def test_a_label_s_vector_is_the_mean_over_its_words():
    enc = diptych.load("mini", device="cpu", precision="fp32")
    words = Vocabulary(labels=(Label(name="dog", synonyms=("puppy",)), Label(name="grass")))
    found = label_vectors(enc, words, ["a photo of {}"])
    mean = enc.encode_text(["a photo of dog", "a photo of puppy"]).mean(0)
    assert found[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert found[1] == pytest.approx(enc.encode_text("a photo of grass")[0], abs=1e-5)
