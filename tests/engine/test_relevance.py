"""The cut-off: its formula, what it must not do, and the real model."""

import math
from importlib import resources

import numpy as np
import pytest

import diptych
from diptych.engine import relevance as module
from diptych.engine.relevance import FEWEST, STRICTNESS, Relevance, background_texts
from diptych.errors import ConfigError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class World:
    """Pictures and words of 40 things in 256 dimensions, with a gap between them as in CLIP."""

    def __init__(self, seed=0, noise=1.0):
        rng = np.random.default_rng(seed)
        self.things = unit(rng.standard_normal((40, 256)))
        self.gap = unit(rng.standard_normal((2, 256)))
        self.rng, self.noise = rng, noise

    def pictures(self, things):
        rest = self.noise * unit(self.rng.standard_normal((len(things), 256)))
        return unit(self.things[things] + rest + 1.5 * self.gap[0])

    def words(self, things):
        rest = 0.5 * unit(self.rng.standard_normal((len(things), 256)))
        return self._leaning(self.things[things] + rest)

    def background(self):
        return self._leaning(unit(self.rng.standard_normal((80, 256))))

    def _leaning(self, meanings):
        """Each text leans towards all pictures or away from them, as much as it happens to."""
        leaning = 0.3 * self.rng.standard_normal((len(meanings), 1)) * self.gap[0]
        return unit(meanings + 1.5 * self.gap[1] + leaning)


def found(usual, pictures, query, **more):
    scores = pictures @ query
    return np.flatnonzero(scores >= usual.threshold(scores, **more))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_there_is_found_and_what_is_not_is_not(seed):
    world = World(seed, noise=0.7)
    there = np.repeat(np.arange(30), 10)
    pictures = world.pictures(there)
    usual = Relevance.fit(pictures, world.background())
    hits = [found(usual, pictures, query) for query in world.words(np.arange(40))]
    assert sum((there[hits[k]] == k).sum() for k in range(30)) > 0.95 * 300
    assert sum((there[hits[k]] != k).sum() for k in range(30)) < 0.4 * 300
    assert sum(len(hits[k]) > 0 for k in range(30, 40)) <= 1


def test_no_fixed_cosine_could_do_that():
    """The world of the test above is one where the leanings of words mix the scores."""
    world = World(noise=0.7)
    there = np.repeat(np.arange(30), 10)
    scores = world.words(np.arange(40)) @ world.pictures(there).T
    right = [scores[k, there == k].max() for k in range(30)]
    assert min(right) < scores[30:].max()


def test_a_collection_of_one_kind_is_found_when_asked_for_it():
    """The z-score of a query among its own scores finds nothing here: all are alike."""
    world = World(noise=0.6)
    pictures = world.pictures(np.zeros(200, int))
    usual = Relevance.fit(pictures, world.background())
    query = world.words(np.array([0]))[0]
    assert len(found(usual, pictures, query)) > 150
    assert not len(found(usual, pictures, query, kind="image"))
    assert not len(found(usual, pictures, world.words(np.array([7]))[0]))


def test_the_formula():
    scores = np.concatenate([np.full(50, 0.2), np.full(49, 0.1), [0.9]]).astype(np.float32)
    distance = 0.03 * math.sqrt(2 * math.log(100))
    usual = Relevance(centre=0.2, limit=0.1, spread=0.03)
    # the median is 0.2, within the limit; 0.9 is above the bar, so fainter ones are shown too
    assert usual.threshold(scores) == pytest.approx(0.2 + 0.7 * distance)
    assert usual.threshold(scores, best=0.25) == pytest.approx(0.2 + distance)
    assert usual.threshold(scores[:99]) == pytest.approx(0.2 + 0.03 * math.sqrt(2 * math.log(99)))
    assert usual.threshold(scores, strictness=0.25) == pytest.approx(0.2 + 0.35 * distance)
    far = Relevance(centre=0.0, limit=0.1, spread=0.03)
    assert far.threshold(scores, best=0) == pytest.approx(0.1 + distance)
    far = Relevance(centre=0.5, limit=0.1, spread=0.03)
    assert far.threshold(scores, best=0) == pytest.approx(0.4 + distance)


def test_pictures_are_judged_by_their_own_scores():
    scores = np.random.default_rng(0).normal(0.6, 0.05, 10_000).astype(np.float32)
    scores[17] = 1
    usual = Relevance(centre=0.1, limit=0.01, spread=0.001)
    expected = 0.6 + 0.05 * math.sqrt(2 * math.log(10_000))
    assert usual.threshold(scores, kind="image", best=0.6) == pytest.approx(expected, abs=0.005)


def test_unrelated_numbers_seldom_pass():
    """Of n normal numbers the largest is above sqrt(2 ln n) in less than a quarter of the cases."""
    rng = np.random.default_rng(0)
    usual = Relevance(centre=0, limit=1, spread=1)
    passed = []
    for n in (30, 300, 3000):
        draws = rng.standard_normal((400, n)).astype(np.float32)
        passed.append(np.mean([(d >= usual.threshold(d)).any() for d in draws]))
    assert all(0.02 < share < 0.25 for share in passed)


def test_random_weights_find_nothing(tmp_path):
    """Towers without any training: whatever is asked, no picture stands out."""
    rng = np.random.default_rng(1)
    pictures = unit(0.05 * rng.standard_normal((300, 64)) + rng.standard_normal(64))
    texts = unit(0.05 * rng.standard_normal((260, 64)) + rng.standard_normal(64))
    usual = Relevance.fit(pictures, texts[:160])
    assert np.mean([len(found(usual, pictures, q)) > 0 for q in texts[160:]]) < 0.3


def test_strictness():
    world = World()
    pictures = world.pictures(np.repeat(np.arange(20), 5))
    usual = Relevance.fit(pictures, world.background())
    query = world.words(np.array([3]))[0]
    counts = [len(found(usual, pictures, query, strictness=x / 10)) for x in range(11)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 100
    assert counts[10] < counts[2]
    assert 0 < STRICTNESS < 1
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"from 0 \(show everything\) to 1"):
            usual.threshold(pictures @ query, strictness=wrong)
    with pytest.raises(ConfigError, match="'text' or 'image'"):
        usual.threshold(pictures @ query, kind="words")


def test_few_pictures_are_all_shown():
    usual = Relevance(centre=0, limit=0.1, spread=0.01)
    scores = np.zeros(FEWEST, np.float32)
    assert usual.threshold(scores) > 0
    assert usual.threshold(scores[1:]) == -1
    scores[3] = -np.inf  # a picture that failed is none
    assert usual.threshold(scores) == -1


def test_failed_pictures_count_for_nothing():
    world = World()
    pictures = world.pictures(np.repeat(np.arange(20), 5))
    background = world.background()
    broken = np.concatenate([pictures, np.full((50, 256), np.nan, np.float32)])
    assert Relevance.fit(broken, background) == Relevance.fit(pictures, background)
    scores = pictures @ pictures[0]
    more = np.concatenate([scores, [np.nan, -np.inf]]).astype(np.float32)
    usual = Relevance.fit(pictures, background)
    assert usual.threshold(more) == usual.threshold(scores)


def test_a_sample_of_a_large_collection_says_the_same(monkeypatch):
    world = World()
    pictures = world.pictures(world.rng.integers(0, 40, 3000)).astype(np.float16)
    background = world.background()
    whole = Relevance.fit(pictures, background)
    monkeypatch.setattr(module, "_SAMPLE", 500)
    some = Relevance.fit(pictures, background)
    assert some.centre == pytest.approx(whole.centre, abs=0.1 * whole.spread)
    assert some.spread == pytest.approx(whole.spread, rel=0.05)


def test_what_does_not_fit():
    rows = unit(np.eye(8))
    for vectors, background in ((rows, rows[:, :4]), (rows[0], rows), (rows, rows[0])):
        with pytest.raises(ConfigError, match="not rows of one space"):
            Relevance.fit(vectors, background)
    for vectors, background in (
        (rows[:0], rows),
        (rows, rows[:1]),
        (np.full_like(rows, np.nan), rows),
    ):
        with pytest.raises(ConfigError, match="too few to say"):
            Relevance.fit(vectors, background)


def test_general_words():
    texts = background_texts()
    assert len(texts) == len(set(texts)) == 160
    assert {"horse", "a photo of a dog.", "house", "coffee", "a photo of a grass."} < set(texts)
    assert sum(text.startswith("a photo of a ") for text in texts) == 80
    assert all(text == text.strip().lower() and text for text in texts)


@pytest.fixture(scope="module")
def samples():
    enc = diptych.load("mini", device="cpu", precision="fp32")
    folder = resources.files("diptych").joinpath("assets", "samples")
    paths = sorted(str(p) for p in folder.iterdir() if p.name.endswith(".jpg"))
    images = enc.encode_image(paths)
    usual = Relevance.fit(images.astype(np.float16), enc.encode_text(background_texts()))

    def ask(text):
        scores = images @ enc.encode_text(text)[0]
        hits = np.flatnonzero(scores >= usual.threshold(scores))
        return {paths[i].replace("\\", "/").rsplit("/", 1)[1] for i in hits}

    return ask


def test_the_sample_photographs(samples):
    assert {"dog.jpg", "dogs.jpg"} <= samples("a dog")
    assert "cat.jpg" in samples("a kitten playing")
    assert "coffee.jpg" in samples("a hot drink")
    assert len(samples("a hot drink")) < 4
    assert "guitar.jpg" in samples("a musical instrument")
    for nothing in ("a spreadsheet", "asdfghjkl", "an invoice", "a christmas tree", "a pizza"):
        assert samples(nothing) == set(), nothing
