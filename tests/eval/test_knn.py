"""Neighbours by hand, ties, leaving one out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.errors import ConfigError, DataError
from diptych.eval.knn import KNN

TRAIN = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
LABELS = torch.tensor([7, 7, 3, 9])


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_votes_by_hand():
    query = torch.tensor([[0.6, 0.8]])  # cosines 0.6, 0.96, 0.8, -0.6
    knn = KNN(3).fit(TRAIN, LABELS)
    assert knn.classes_.tolist() == [3, 7, 9]
    e = [math.exp((c - 0.96) / 0.07) for c in (0.6, 0.96, 0.8)]
    expected = torch.tensor([[e[2], e[0] + e[1], 0]], dtype=torch.float64)
    assert torch.allclose(knn.decision_function(query), expected, atol=1e-6)
    assert knn.predict(query).tolist() == [7]
    shares = expected / expected.sum()
    assert torch.allclose(knn.predict_proba(query), shares, atol=1e-6)
    counted = KNN(3, votes="counted").fit(TRAIN, LABELS)
    assert counted.decision_function(query).tolist() == [[1, 2, 0]]


def test_a_tie_of_votes_is_wrong_and_named_by_the_lowest_label():
    query = torch.tensor([[0.0, 1.0]])  # the nearest: 3 (cosine 1), then 7 (0.6)
    knn = KNN(2, votes="counted").fit(TRAIN, LABELS)
    assert knn.predict(query).tolist() == [3]
    assert knn.score(query, torch.tensor([3])) == 0
    assert KNN(2).fit(TRAIN, LABELS).score(query, torch.tensor([3])) == 1


def test_of_equal_cosines_the_earlier_is_nearer():
    copies = torch.tensor([[1.0, 0.0]] * 4)
    for labels, first in (([5, 4, 4, 4], 5), ([4, 5, 5, 5], 4)):
        assert KNN(1).fit(copies, torch.tensor(labels)).predict(copies[:1]).tolist() == [first]


def test_leaving_one_out_is_fitting_without_it():
    vectors, labels = unit(60, 8), torch.arange(60) % 4
    vectors[10] = vectors[50] = vectors[3]  # copies: their own neighbours
    for votes in ("weighted", "counted"):
        knn = KNN(5, votes=votes).fit(vectors, labels)
        found = knn.leave_one_out()
        for i in range(60):
            rest = torch.arange(60) != i
            one = KNN(5, votes=votes).fit(vectors[rest], labels[rest])
            assert torch.equal(found[[i]], one.decision_function(vectors[[i]]))
    many = KNN(2, votes="counted").fit(unit(1, 4).expand(9, -1).contiguous(), torch.arange(9) % 2)
    assert many.leave_one_out().sum(1).tolist() == [2] * 9  # itself is not among the first three
    assert KNN(1).fit(vectors, labels).score_leave_one_out() < 1
    assert KNN(1).fit(vectors, labels).score(vectors, labels) < 1  # copies of other labels
    assert KNN(1).fit(vectors[11:50], labels[11:50]).score(vectors[11:50], labels[11:50]) == 1


def test_memory_mapped_and_narrow_vectors(tmp_path):
    vectors, labels = unit(100, 16), torch.arange(100) % 5
    np.save(tmp_path / "v.npy", vectors.half().numpy())
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    found = KNN().fit(mapped, labels.numpy())
    other = KNN().fit(vectors.half(), labels)
    assert torch.equal(found.leave_one_out(), other.leave_one_out())
    assert found.decision_function(vectors.bfloat16()).shape == (100, 5)


@pytest.mark.parametrize(
    ("knn", "vectors", "labels", "error", "match"),
    [
        (KNN(0), TRAIN, LABELS, ConfigError, "k=0"),
        (KNN(1, temperature=0), TRAIN, LABELS, ConfigError, "temperature=0"),
        (KNN(1, votes="best"), TRAIN, LABELS, ConfigError, "votes"),
        (KNN(5), TRAIN, LABELS, DataError, "4 training vectors and k = 5"),
        (KNN(1), 2 * TRAIN, LABELS, DataError, "4 of 4 rows are no unit vectors"),
        (KNN(1), TRAIN * torch.tensor(math.nan), LABELS, DataError, "not finite"),
        (KNN(1), TRAIN, LABELS[:3], DataError, "one for each"),
        (KNN(1), TRAIN, LABELS.float(), DataError, "whole numbers"),
        (KNN(1), TRAIN[0], LABELS, DataError, "rows"),
    ],
    ids=["k", "temperature", "votes", "few", "long", "nan", "count", "float", "shape"],
)
def test_what_cannot_be(knn, vectors, labels, error, match):
    with pytest.raises(error, match=match):
        knn.fit(vectors, labels)


def test_what_cannot_be_scored():
    knn = KNN(4).fit(TRAIN, LABELS)
    with pytest.raises(DataError, match="first is 8"):
        knn.score(TRAIN[:2], torch.tensor([7, 8]))
    with pytest.raises(DataError, match="no samples"):
        knn.score(TRAIN[:0], LABELS[:0])
    with pytest.raises(DataError, match="smaller k"):
        knn.leave_one_out()
