"""Every figure by hand, by counting one by one, and with ties, which are never a hit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import DataError
from diptych.eval import metrics as module
from diptych.eval.metrics import (
    average_precision,
    average_precision_11_point,
    classification,
    confusion,
    group_figures,
    multilabel,
    of_ranks,
    per_class,
    predictions,
    ranks,
    roc_auc,
)

SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.0],  # label 0: right
        [0.6, 0.3, 0.1],  # label 0: right
        [0.2, 0.7, 0.1],  # label 0: taken for 1
        [0.5, 0.4, 0.1],  # label 1: taken for 0
    ]
)
LABELS = torch.tensor([0, 0, 0, 1])


def drawn(n: int, c: int, seed: int = 0, steps: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with many ties, and labels."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(steps, (n, c), generator=g) / steps, torch.randint(c, (n,), generator=g)


def test_classification_by_hand():
    found = classification(SCORES, LABELS)
    assert found["top1"] == 0.5
    assert found["top5"] == 1
    assert found["mean_top1_top5"] == 0.75
    assert found["mean_per_class"] == pytest.approx((2 / 3 + 0) / 2)  # class 2 does not occur
    assert found["macro_f1"] == pytest.approx((2 * 2 / (3 + 3) + 0) / 2)
    assert set(found) == {"top1", "top5", "mean_per_class", "macro_f1", "mean_top1_top5"}


def test_per_class_and_confusion_by_hand():
    found = per_class(SCORES, LABELS)
    assert found["num"].tolist() == [3, 1, 0]
    assert found["recall"][:2].tolist() == [2 / 3, 0]
    assert found["precision"][:2].tolist() == [2 / 3, 0]
    assert all(math.isnan(found[key][2]) for key in ("recall", "precision", "f1"))
    assert confusion(SCORES, LABELS).tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_a_tie_is_not_a_hit_in_any_figure():
    same, labels = torch.zeros(6, 3), torch.arange(6) % 3
    found = classification(same, labels)
    assert found["top1"] == found["mean_per_class"] == found["macro_f1"] == 0
    assert ranks(same, labels).tolist() == [3] * 6
    assert confusion(same, labels).diagonal().sum() == 0
    assert predictions(same, labels).tolist() == [1, 0, 0, 1, 0, 0]
    assert multilabel(same, labels[:, None] == torch.arange(3))["top1"] == 0


def test_one_class_is_always_right():
    found = classification(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    assert found["top1"] == found["macro_f1"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_as_counted_one_by_one(n, c, seed):
    scores, labels = drawn(n, c, seed)
    found, rows = ranks(scores, labels).tolist(), scores.tolist()
    for row, label, rank in zip(rows, labels.tolist(), found, strict=True):
        assert rank == 1 + sum(s >= row[label] for j, s in enumerate(row) if j != label)
    said = predictions(scores, labels)
    assert ((said == labels) == (torch.tensor(found) == 1)).all()
    assert confusion(scores, labels).sum() == n
    measured, table = classification(scores, labels), per_class(scores, labels)
    assert measured["mean_per_class"] == pytest.approx(float(table["recall"].nanmean()))
    assert measured["top1"] == sum(r == 1 for r in found) / n
    assert measured == {**measured, **of_ranks(ranks(scores, labels), said, labels, num_classes=c)}


def test_blocks_change_nothing(monkeypatch):
    scores, labels = drawn(60, 7)
    truth = torch.rand(60, 7) < 0.3
    whole = classification(scores, labels), multilabel(scores, truth)
    monkeypatch.setattr(module, "_BLOCK", 50)
    assert (classification(scores, labels), multilabel(scores, truth)) == whole


def test_float32_scores_compare_as_float32():
    """Two numbers that only float64 tells apart tie once they are float32."""
    scores = torch.tensor([[0.1, 0.1 + 1e-12]], dtype=torch.float64)
    label = torch.tensor([1])
    assert classification(scores, label)["top1"] == 1
    assert classification(scores.float(), label)["top1"] == 0


def test_roc_auc_of_two_classes_is_of_the_margin():
    scores = torch.tensor([[0.1, 0.2], [0.4, 0.1], [0.3, 0.3], [0.0, 0.9]])
    labels = torch.tensor([1, 0, 0, 1])  # margins 0.1, -0.3, 0, 0.9
    assert classification(scores, labels)["roc_auc"] == 1
    # margins 0.1 and 0.9 are false now, of -0.3 and 0: nothing above them
    assert classification(scores, 1 - labels)["roc_auc"] == 0
    assert "roc_auc" not in classification(scores, torch.zeros(4, dtype=torch.int64))


# --- groups ---------------------------------------------------------------------------------------


def test_worst_group_by_hand():
    groups = ["asia", "asia", "other", "europe"]  # accuracies 1, 0, 0
    found = classification(SCORES, LABELS, groups=["asia", "asia", "asia", "europe"])
    assert (found["worst_group_top1"], found["worst_group_top5"]) == (0, 1)
    found = classification(SCORES, LABELS, groups=groups, worst_without=["other", "europe"])
    assert found["worst_group_top1"] == 1
    assert group_figures(SCORES, LABELS, groups) == {
        "asia": {"n": 2, "top1": 1, "top5": 1},
        "europe": {"n": 1, "top1": 0, "top5": 1},
        "other": {"n": 1, "top1": 0, "top5": 1},
    }


def test_groups_that_cannot_be():
    with pytest.raises(DataError, match="3 groups for 4 samples"):
        classification(SCORES, LABELS, groups=["a"] * 3)
    with pytest.raises(DataError, match="3 groups for 4 samples"):
        group_figures(SCORES, LABELS, ["a"] * 3)
    with pytest.raises(DataError, match="none of the 4 samples"):
        classification(SCORES, LABELS, groups=["Other"] * 4, worst_without=["Other"])
    with pytest.raises(DataError, match=r"\['Other'\]"):
        classification(SCORES, LABELS, groups=["a"] * 4, worst_without="Other")


# --- average precision ----------------------------------------------------------------------------


def test_average_precision_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    truth = torch.tensor([True, False, True, False, True])
    assert average_precision(scores, truth) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # recall 0..0.3 -> 1; 0.4..0.6 -> 2/3; 0.7..1 -> 3/5
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11
    assert average_precision_11_point(scores, truth) == pytest.approx(expected)


def test_equal_scores_stand_together():
    """Whatever their order, the precision of all is that of the last."""
    scores = torch.tensor([0.5, 0.5, 0.5, 0.1])
    for truth in ([True, False, False, False], [False, False, True, False]):
        assert average_precision(scores, torch.tensor(truth)) == pytest.approx(1 / 3)
        assert average_precision_11_point(scores, torch.tensor(truth)) == pytest.approx(1 / 3)


def test_eleven_points_compare_whole_numbers():
    """With 3 of 10 found the recall 0.3 is reached, though 0.3 is no float."""
    truth = torch.tensor([True] * 3 + [False] * 7 + [True] * 7)
    scores = torch.arange(17, 0, -1).float()
    precision = [1.0] * 4 + [max((3 + j) / (10 + j) for j in range(r - 3, 8)) for r in range(4, 11)]
    assert average_precision_11_point(scores, truth) == pytest.approx(sum(precision) / 11)


def test_multilabel_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.6], [0.3, 0.7, 0.1]])
    truth = torch.tensor([[True, False, False], [False, True, False], [True, False, False]])
    found = multilabel(scores, truth)
    assert found["map"] == pytest.approx((1 + 1) / 2)  # class 2 has no image
    assert found["map_11_point"] == pytest.approx(1)
    assert found["top1"] == pytest.approx(2 / 3)


def test_multilabel_of_images_with_no_label_or_all():
    scores = torch.rand(2, 3)
    truth = torch.tensor([[True, True, True], [False, False, False]])
    assert multilabel(scores, truth)["top1"] == 0.5


def test_roc_auc_by_hand():
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    truth = torch.tensor([False, False, True, True])
    assert roc_auc(scores, truth) == 0.75
    assert roc_auc(torch.ones(4), truth) == 0.5
    assert roc_auc(-scores, truth) == 0.25


# --- what cannot be measured ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(3, 3), torch.tensor([0, 1]), "n labels"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "1 of 2 labels"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "1 of 2 labels"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "1 of 2 scores"),
        (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), "1 of 2 scores"),
        (torch.zeros(1, 2, dtype=torch.int64), torch.tensor([0]), "floating"),
    ],
)
def test_what_is_no_classification(scores, labels, told):
    for metric in (classification, ranks, predictions, confusion, per_class):
        with pytest.raises(DataError, match=told):
            metric(scores, labels)


def test_what_is_no_truth():
    scores, truth = torch.rand(4), torch.tensor([True, False, True, False])
    for metric in (average_precision, average_precision_11_point, roc_auc):
        with pytest.raises(DataError, match="none of the 4"):
            metric(scores, torch.zeros(4, dtype=torch.bool))
        with pytest.raises(DataError, match=r"torch\.bool"):
            metric(scores, truth.long())
        with pytest.raises(DataError, match="shape"):
            metric(scores, truth[:3])
        with pytest.raises(DataError, match="not finite"):
            metric(scores / 0, truth)
    with pytest.raises(DataError, match="both kinds"):
        roc_auc(scores, torch.ones(4, dtype=torch.bool))
    with pytest.raises(DataError, match="shape"):
        multilabel(scores, truth)
    with pytest.raises(DataError, match="0 samples"):
        nothing = torch.zeros(0, dtype=torch.int64)
        of_ranks(nothing, nothing, nothing, num_classes=3)


def test_no_copy_of_all_scores_is_made():
    """The largest tensor that is made has no more than a block of numbers."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out._base is None and "view" not in str(func):
                new = out.data_ptr() not in {scores.data_ptr(), truth.data_ptr()}
                largest = max(largest, out.numel() if new else 0)
            return out

    scores, labels = torch.rand(1000, 60), torch.randint(60, (1000,))
    truth = torch.rand(1000, 60) < 0.1
    module_block = module._BLOCK
    try:
        module._BLOCK = 4000
        with Largest():
            classification(scores, labels)
            multilabel(scores, truth)
    finally:
        module._BLOCK = module_block
    assert 1000 <= largest <= 5000
