"""Choices by hand; ties are wrong; what chance reaches."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import DataError
from diptych.eval.choice import (
    CHANCE,
    associations,
    blind,
    choice,
    jaccard,
    macro,
    one_of,
    pair_accuracy,
    winoground,
)


def test_winoground_by_hand():
    scores = torch.tensor(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # both
            [[0.9, 0.8], [0.1, 0.2]],  # text alone: the second text likes the first picture more
            [[0.3, 0.1], [0.9, 0.8]],  # neither
            [[0.3, 0.4], [0.1, 0.9]],  # image alone
            [[0.5, 0.5], [0.1, 0.9]],  # a tie: text is wrong, image right
        ]
    )
    found = winoground(scores)
    assert found["text_score"].tolist() == [True, True, False, False, False]
    assert found["image_score"].tolist() == [True, False, False, True, True]
    assert found["group_score"].tolist() == [True, False, False, False, False]


def test_what_chance_reaches():
    draw = torch.rand(40000, 2, 2, generator=torch.Generator().manual_seed(0))
    for key, hits in winoground(draw).items():
        assert float(hits.double().mean()) == pytest.approx(CHANCE[key], abs=0.01)
    assert not torch.stack(list(winoground(torch.ones(9, 2, 2)).values())).any()


def test_pairs_and_their_groups():
    right, wrong = torch.tensor([1.0, 0.5, 0.2, 0.9]), torch.tensor([0.5, 0.5, 0.1, 0.1])
    found = pair_accuracy(right, wrong, groups=["left of", "left of", "left of", "on"])
    assert found == {"pair_accuracy": 3 / 4, "macro_pair_accuracy": (2 / 3 + 1) / 2}
    assert pair_accuracy(right, wrong) == {"pair_accuracy": 3 / 4}
    assert macro(torch.tensor([True, False]), torch.tensor([4, 9])) == 1 / 2


def test_one_of_five():
    scores = torch.tensor([[3.0, 1, 2, 0, 2.9], [3, 3, 0, 0, 0], [1, 0, 0, 0, 2]])
    assert one_of(scores).tolist() == [True, False, False]
    draw = torch.rand(20000, 5, generator=torch.Generator().manual_seed(0))
    reached = float(one_of(draw).double().mean())
    assert reached == pytest.approx(CHANCE["order_accuracy"], abs=0.01)


def test_jaccard_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.1, 0.7, 0.2])
    assert jaccard(scores, torch.tensor([0, 1])) == 1
    assert jaccard(scores, torch.tensor([0, 2])) == 1 / 3
    assert jaccard(scores, torch.tensor([2, 4])) == 0
    assert jaccard(torch.ones(5), torch.tensor([0, 1])) == 0  # ties
    assert jaccard(torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0, 1])) == 1 / 3  # a tie at the end
    found = associations([scores, scores[:3]], [torch.tensor([0, 2]), torch.tensor([0])])
    assert found == {"jaccard": (1 / 3 + 1) / 2}


@given(st.data())
def test_jaccard_is_that_of_sets(data):
    k = data.draw(st.integers(1, 9))
    scores = data.draw(st.permutations(range(k)))
    right = data.draw(st.sets(st.integers(0, k - 1), min_size=1))
    taken = set(sorted(range(k), key=lambda i: -scores[i])[: len(right)])
    found = jaccard(torch.tensor(scores).double(), torch.tensor(sorted(right)))
    assert found == len(taken & right) / len(taken | right)


def test_from_vectors():
    texts = F.normalize(torch.randn(50, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert set(choice(texts, texts).values()) == {1.0}
    assert list(choice(texts, texts)) == ["text_score", "image_score", "group_score"]
    assert choice(texts[:, :1], texts) == {"pair_accuracy": 1.0}
    assert choice(texts[:, 1:], texts, groups=["a"] * 50)["macro_pair_accuracy"] == 0
    same = texts[:, :1].expand(-1, 2, -1)
    assert choice(texts[:, :1], same) == {"pair_accuracy": 0}  # equal texts tie
    assert choice(texts[:, :1], torch.cat([texts, same], 1)) == {"pair_accuracy": 0}


def test_blind_sees_how_captions_read():
    captions = [
        ["a dog on a mat", "a mat on on a dog a"],
        ["a cat", "a cat cat"],
        ["long one", "x"],
    ]
    found = blind(captions, lambda texts: torch.tensor([-float(len(t)) for t in texts]))
    assert found == {"blind_pair_accuracy": 2 / 3}
    with pytest.raises(DataError, match="at least one wrong"):
        blind([["a"]], lambda texts: torch.zeros(len(texts)))


_WRONG = (
    lambda: winoground(torch.zeros(0, 2, 2)),
    lambda: winoground(torch.zeros(3, 2, 3)),
    lambda: winoground(torch.full((1, 2, 2), math.nan)),
    lambda: pair_accuracy(torch.ones(2), torch.ones(3)),
    lambda: pair_accuracy(torch.ones(2), torch.ones(2), groups=["a"]),
    lambda: one_of(torch.ones(2, 1)),
    lambda: jaccard(torch.ones(3), torch.tensor([])),
    lambda: jaccard(torch.ones(3), torch.tensor([3])),
    lambda: jaccard(torch.ones(3), torch.tensor([1, 1])),
    lambda: associations([torch.ones(3)], []),
    lambda: choice(torch.ones(2, 3, 4), torch.ones(2, 2, 4)),
    lambda: choice(torch.ones(2, 4), torch.ones(2, 2, 4)),
)


@pytest.mark.parametrize("call", _WRONG, ids=[str(i) for i in range(len(_WRONG))])
def test_what_cannot_be_measured(call):
    with pytest.raises(DataError):
        call()
