"""The minimum of logistic regression, the searches of two protocols, few shots, features."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import diptych
from diptych.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.errors import ConfigError, DataError, ImageError
from diptych.eval import fewshot, logistic
from diptych.eval import probe as module
from diptych.eval.fewshot import few_shot, few_shot_split, student, zero_shot_crossing
from diptych.eval.probe import Probe, Split, Tried, features, paper, readme, sweep


def blobs(n: int, c: int = 4, d: int = 6, seed: int = 0, spread: float = 0.9) -> Split:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(c, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % c
    return Split(centres[labels] + spread * torch.randn(n, d, generator=g), 10 + labels)


def objective(x: torch.Tensor, data: Split, C: float) -> torch.Tensor:
    """What is minimised, in plain words: C times the sum of log losses + half the squares."""
    logits = data.features.double() @ x[:, :-1].T + x[:, -1]
    if len(x) == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    codes = data.labels.unique(return_inverse=True)[1]
    return C * F.cross_entropy(logits, codes, reduction="sum") + x[:, :-1].square().sum() / 2


@pytest.mark.parametrize("c", [2, 3, 7])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_the_gradient_vanishes_at_what_is_found(c, C):
    data = blobs(120, c)
    probe = Probe(C, tol=1e-9).fit(*data)
    assert probe.converged_
    assert probe.coef_.shape == (1 if c == 2 else c, 6)
    x = torch.cat([probe.coef_, probe.intercept_[:, None]], 1).requires_grad_()
    objective(x, data, C).backward()
    flat = math.sqrt(1e-15 / min(1, C * 120))  # where float64 sees the loss fall no more
    assert x.grad.abs().max() <= max(1.01e-9, flat) * C * 120
    assert probe.n_iter_ < 500
    assert probe.predict_proba(data.features).sum(1).allclose(torch.ones(120).double())
    assert set(probe.predict(data.features).tolist()) <= set(range(10, 10 + c))


def test_blocks_types_and_starts_do_not_matter(tmp_path, monkeypatch):
    data = blobs(150)
    whole = Probe(tol=1e-9).fit(*data)
    monkeypatch.setattr(logistic, "_BLOCK", 64)
    np.save(tmp_path / "f.npy", data.features.half().numpy())
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    half = Probe(tol=1e-9).fit(mapped, data.labels.numpy())
    other = Probe(tol=1e-9).fit(torch.from_numpy(np.array(mapped)), data.labels)
    assert torch.equal(half.coef_, other.coef_)
    assert torch.allclose(half.coef_, whole.coef_, atol=1e-2)
    again = Probe(tol=1e-9).fit(*data, start=Probe(50.0).fit(*data))
    assert torch.allclose(again.coef_, whole.coef_, atol=1e-6)
    assert Probe(tol=1e-9).fit(*data, start=again).n_iter_ < whole.n_iter_ / 3


def test_score_counts_ties_as_wrong_and_says_when_it_has_not_converged(caplog):
    data = Split(torch.zeros(6, 3), torch.arange(6) % 2)
    probe = Probe().fit(*data)
    assert probe.score(*data) == 0
    assert probe.predict(data.features).tolist() == [0] * 6
    with caplog.at_level(logging.INFO, logger="diptych"):
        probe = Probe(1e6, max_iter=2).fit(*blobs(60))
    assert (probe.converged_, probe.n_iter_) == (False, 2)
    assert "after 2 iterations" in caplog.text


DATA = blobs(12)
NAN = torch.where(torch.arange(12)[:, None] == 3, torch.nan, DATA.features)


@pytest.mark.parametrize(
    ("probe", "rows", "labels", "error", "match"),
    [
        (Probe(0.0), DATA.features, DATA.labels, ConfigError, "C=0.0"),
        (Probe(max_iter=0), DATA.features, DATA.labels, ConfigError, "max_iter=0"),
        (Probe(), NAN, DATA.labels, DataError, "1 of 12 rows"),
        (Probe(), DATA.features, torch.zeros(12).long(), DataError, "12 samples of 1"),
        (Probe(), DATA.features, DATA.labels.float(), DataError, "whole numbers"),
        (Probe(), DATA.features, DATA.labels[1:], DataError, "one for each"),
        (Probe(), DATA.features[0], DATA.labels, DataError, "rows"),
        (Probe(), DATA.features[:0], DATA.labels[:0], DataError, "0 samples of 0"),
    ],
    ids=["C", "max_iter", "nan", "one_class", "float", "count", "shape", "none"],
)
def test_what_cannot_be_fitted(probe, rows, labels, error, match):
    with pytest.raises(error, match=match):
        probe.fit(rows, labels)


def test_what_cannot_be_scored():
    probe = Probe().fit(*DATA)
    with pytest.raises(DataError, match=r"1 classes were not there .* first is 14"):
        probe.score(DATA.features[:2], torch.tensor([10, 14]))
    with pytest.raises(DataError, match="features of 5 numbers"):
        probe.predict(torch.zeros(2, 5))
    with pytest.raises(DataError, match="no samples"):
        probe.score(DATA.features[:0], DATA.labels[:0])


class Scripted:
    """A probe whose accuracy on the validation split is a function of log10 of C."""

    fits: list[float]

    def __init__(self, C, **_):
        self.C, self.converged_ = C, True
        Scripted.fits.append(round(math.log10(C), 6))

    def fit(self, *_, start=None):
        return self

    def score(self, *_):
        return Scripted.curve(math.log10(self.C))


@pytest.mark.parametrize("peak", [-6, -5.125, -0.375, 0, 2.5, 4.25, 6])
def test_the_search_finds_a_peak_of_its_97_values(peak, monkeypatch):
    """log10 lambda = -log10 C lies on steps of 1/8 from -6 to 6."""
    Scripted.fits, Scripted.curve = [], staticmethod(lambda c: -abs(-c - peak))
    monkeypatch.setattr(module, "Probe", Scripted)
    found = sweep(blobs(8), blobs(8))
    assert -math.log10(found.C) == pytest.approx(peak, abs=1e-12)
    assert Scripted.fits[:7] == [-6, -4, -2, 0, 2, 4, 6]  # of C: lambda falls
    assert 11 <= len(Scripted.fits) == len(found.tried) <= 15
    assert len(set(Scripted.fits)) == len(Scripted.fits)
    assert {abs(e * 8) % 1 for e in Scripted.fits} == {0}
    assert max(map(abs, Scripted.fits)) == 6


def test_a_tie_of_the_search_goes_to_the_larger_lambda(monkeypatch):
    Scripted.fits, Scripted.curve = [], staticmethod(lambda c: 0.5)
    monkeypatch.setattr(module, "Probe", Scripted)
    assert sweep(blobs(8), blobs(8)).C == 1e-6
    assert sweep(blobs(8), blobs(8)).tried[0] == Tried(6.0, 0.5, True)
    with pytest.raises(ConfigError, match="per_decade"):
        sweep(blobs(8), blobs(8), per_decade=0)


def test_the_protocols():
    train, validation, test = blobs(80), blobs(40, seed=1), blobs(400, seed=2)
    found = paper(train, validation, test)
    both = Split(*(torch.cat(pair) for pair in zip(train, validation, strict=True)))
    assert found.accuracy == Probe(found.probe.C).fit(*both).score(*test)
    assert found.sweep.C == found.probe.C
    by_hand = {one.log10_lambda: one.accuracy for one in found.sweep.tried}
    assert by_hand[0.0] == Probe(1.0).fit(*train).score(*validation)
    assert max(by_hand.values()) == by_hand[round(-8 * math.log10(found.probe.C)) / 8]
    assert found.interval.low < found.accuracy < found.interval.high
    assert "fitted to 120" in found.protocol
    plain = readme(train, test)
    assert plain.probe.C == 0.316
    assert plain.accuracy == Probe(0.316).fit(*train).score(*test)
    assert plain.sweep is None
    short = paper(train, validation, test, max_iter=3)
    assert "fits ended at 3 iterations" in short.protocol


# --- few shots ------------------------------------------------------------------------------------


def test_few_shots_are_drawn_of_each_class_and_nested():
    labels = torch.tensor([5] * 9 + [2] * 30 + [7] * 12)[
        torch.randperm(51, generator=torch.Generator().manual_seed(0))
    ]
    drawn = {shots: few_shot_split(labels, shots, 1) for shots in (1, 2, 4, 8)}
    for shots, rows in drawn.items():
        assert labels[rows].unique(return_counts=True)[1].tolist() == [shots] * 3
        assert rows.tolist() == sorted(set(rows.tolist()))
    for few, many in itertools.pairwise(drawn.values()):
        assert set(few.tolist()) < set(many.tolist())
    assert not torch.equal(few_shot_split(labels, 4, 2), drawn[4])


def test_few_shots_stay_what_they_are():
    """The very samples: a change of these is a change of every published figure."""
    found = few_shot_split(torch.arange(40) % 4, 2, 1).tolist()
    assert found == few_shot_split(np.arange(40) % 4, 2, 1).tolist()
    assert found == [0, 6, 17, 26, 29, 35, 36, 39]


def test_each_sample_is_drawn_as_often_as_any():
    labels = torch.zeros(20).long()
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[few_shot_split(labels, 5, seed)] += 1
    assert ((counts - 500).abs() < 5 * math.sqrt(2000 * 0.25 * 0.75)).all()


def test_a_class_with_too_few_gives_all(caplog):
    assert few_shot_split(torch.tensor([1, 1, 1, 2]), 2, 0).tolist()[-1] == 3
    assert "1 of 2 classes have fewer than 2" in caplog.text
    with pytest.raises(ConfigError, match="shots=0"):
        few_shot_split(torch.tensor([1]), 0, 0)
    with pytest.raises(DataError, match="whole numbers"):
        few_shot_split(torch.tensor([1.0]), 1, 0)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (lambda c: -abs(c - 3.3), 3 + 19 / 64),  # 4 is best of the seven, then [3, 5] is halved
        (lambda c: 0.5, 5.0),  # ties: the largest of the seven, then the lower end
        (lambda c: c, 7.0),
    ],
    ids=["peak", "flat", "rising"],
)
def test_the_search_of_coop(accuracy, expected, monkeypatch):
    Scripted.fits, Scripted.curve = [], staticmethod(accuracy)
    monkeypatch.setattr(fewshot, "Probe", Scripted)
    probe = fewshot._halved(blobs(8), blobs(8), 1000, 1e-6)
    assert math.log10(probe.C) == pytest.approx(expected, abs=0.03)
    assert Scripted.fits[:7] == [6, 4, 2, 0, -2, -4, -6]


def test_few_shot_probes():
    train, validation, test = blobs(200), blobs(80, seed=1), blobs(200, seed=2)
    found = few_shot(train, validation, test, shots=(1, 4), seeds=(1, 2, 3))
    assert [one.shots for one in found] == [1, 4]
    for one in found:
        assert len(one.accuracies) == len(one.Cs) == 3
        assert one.mean == pytest.approx(np.mean(one.accuracies), abs=1e-12)
        assert one.interval.low < one.mean < one.interval.high
    assert found[0].mean < found[1].mean
    rows = few_shot_split(train.labels, 4, 2)
    few = Probe(found[1].Cs[1]).fit(train.features[rows], train.labels[rows])
    assert found[1].accuracies[1] == few.score(*test)
    as_numpy = [Split(part.features.numpy(), part.labels.numpy()) for part in (train, validation)]
    assert few_shot(*as_numpy, test, shots=(1,), seeds=(1,))[0].interval is None
    with pytest.raises(ConfigError, match="at least one"):
        few_shot(train, validation, test, seeds=())


def test_where_few_shots_equal_zero_shot():
    shots, accuracies = (1, 2, 4, 8), (0.2, 0.4, 0.6, 0.7)
    assert zero_shot_crossing(shots, accuracies, 0.4) == pytest.approx(2)
    assert zero_shot_crossing(shots, accuracies, 0.5) == pytest.approx(2 * 2**0.5)
    assert zero_shot_crossing(shots, accuracies, 0.1) == 1
    assert zero_shot_crossing(shots, accuracies, 0.8) == math.inf
    for bad in ((), (2, 1, 4, 8), (0, 1, 2, 3), (1, 2)):
        with pytest.raises(DataError, match="rising numbers"):
            zero_shot_crossing(bad, accuracies, 0.5)


def test_student_s_interval():
    mean, interval = student([1.0, 2.0, 3.0])
    assert mean == 2
    assert interval.high - 2 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)  # t of 2 degrees
    with pytest.raises(DataError, match="at least 2"):
        student([1.0])


# --- features -------------------------------------------------------------------------------------


def images(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(n)]


def tiny(visual) -> diptych.Encoder:
    text = TextConfig(context_length=77, vocab_size=49408, width=32, layers=1, heads=2, mlp_dim=32)
    return diptych.build(CLIPConfig(embed_dim=16, visual=visual, text=text))


def test_features_before_and_after_the_projection():
    encoder = tiny(
        ViTConfig(image_size=(32, 32), patch_size=16, width=64, layers=2, heads=2, mlp_dim=64)
    )
    some = images(5)
    before, after = features(encoder, some), features(encoder, some, projected=True)
    assert before.vectors.shape == (5, 64)
    assert after.vectors.shape == (5, 16)
    assert before.taken == "before the projection, 64 numbers"
    assert after.taken == "after the projection, 16 numbers"
    with torch.no_grad():
        projected = encoder.model.visual.proj(before.vectors)
    assert torch.allclose(projected, after.vectors, atol=1e-5)
    assert not torch.allclose(after.vectors.norm(dim=1), torch.ones(5), atol=1e-3)
    unit = F.normalize(after.vectors, dim=1)
    assert torch.allclose(unit, torch.from_numpy(encoder.encode_image(some)), atol=2e-2)


def test_a_tower_without_a_projection_says_so():
    encoder = tiny(ResNetConfig(image_size=(32, 32), layers=(1, 1, 1, 1), width=8, heads=4))
    before, after = (features(encoder, images(2), projected=p) for p in (False, True))
    assert torch.equal(before.vectors, after.vectors)
    assert before.taken == "at the end of the tower, which has no projection apart, 16 numbers"


def test_features_of_mini_are_those_before_its_concepts(tmp_path):
    encoder = diptych.load("mini")
    found = features(encoder, images(2))
    assert found.vectors.shape[1] > 1280 > encoder.config.embed_dim
    assert found.taken.startswith("before the projection")
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"a\.png"):
        features(encoder, tmp_path)
    with pytest.raises(DataError, match="no images"):
        features(encoder, [])
