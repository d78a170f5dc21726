"""Published figures: what is known, and what a measured one is said to be."""

from types import SimpleNamespace

import pytest

from diptych import zoo
from diptych.errors import DataError
from diptych.eval.published import (
    Published,
    compare_with_published,
    published,
    reproduces,
    verdicts,
)
from diptych.eval.sets import SETS

ONE = Published(
    set="imagenet",
    metric="top1",
    value=63.32,
    digits=2,
    name="open_clip's csv",
    source="a table",
    protocol="datacomp-38",
    size=50_000,
)


def test_a_figure_that_is_reproduced():
    told = compare_with_published(0.63392, 50_000, ONE)
    assert told == "reproduces 63.32 (open_clip's csv, +-0.1)"


def test_a_figure_that_is_not():
    told = compare_with_published(0.62, 50_000, ONE)
    assert told.startswith("differs by -1.32 from 63.32 (open_clip's csv), outside +-0.1")
    assert "61.57 to 62.42" in told  # Wilson: 62 +- 1.96 * sqrt(.62 * .38 / 50000)


@pytest.mark.parametrize(
    ("value", "n", "digits", "expected"),
    [
        (63.42, 50_000, 2, True),
        (63.424, 50_000, 2, True),  # half of the last printed digit
        (63.43, 50_000, 2, False),
        (63.46, 50_000, 1, True),
        (63.60, 49_960, 2, False),
        (63.60, 49_900, 2, None),  # 100 pictures are missing: not the same set
        (63.60, 1_000, 2, None),
    ],
)
def test_tolerance_and_size(value, n, digits, expected):
    one = Published(**{f: getattr(ONE, f) for f in ONE.__slots__} | {"digits": digits})
    assert reproduces(value / 100, n, one) is expected


def test_a_small_set_has_a_wider_tolerance():
    [one, *_] = published("ViT-B-32/openai", "dtd")
    assert one.size == 1_880
    assert reproduces(0.4436 + 0.003, 1_880, one)
    assert not reproduces(0.4436 + 0.0032, 1_880, one)


def test_another_number_of_samples_is_told():
    told = compare_with_published(0.6332, 5_000, ONE)
    assert told == (
        "not compared with 63.32 (open_clip's csv): that is of 50,000 samples, this of 5,000"
    )


@pytest.mark.parametrize(
    ("value", "n"), [(63.32, 50_000), (-0.1, 10), (float("nan"), 10), (0.5, 0)]
)
def test_what_is_no_share_is_refused(value, n):
    with pytest.raises(DataError, match="share in"):
        compare_with_published(value, n, ONE)


def test_weak_anchors_and_figures_that_nobody_reproduces_are_marked():
    assert all(p.weak for p in published("ViT-L-14/openai", "kitti"))
    assert all(p.weak for p in published("ViT-L-14/openai", "pcam"))
    assert not any(p.weak for p in published("ViT-L-14/openai", "food101"))
    [paper] = [p for p in published("ViT-L-14-336/openai", "mnist") if p.name == "the paper"]
    assert paper.value == 88.3
    assert "does not reproduce" in compare_with_published(0.7916, 10_000, paper)


def test_the_anchor_table():
    """A column of facts that were looked up one by one."""
    first = {
        name: published("ViT-L-14-336/openai", name)[0].value
        for name in ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "objectnet", "sun397")
    }
    assert first == {
        "imagenet": 76.56,
        "imagenet-v2": 70.89,
        "imagenet-a": 77.48,
        "imagenet-r": 89.05,
        "objectnet": 71.83,
        "sun397": 68.65,
    }
    by_metric = {p.metric: p.value for p in published("ViT-B-32/openai", "coco")}
    assert by_metric["image_to_text_r1"] == 50.12
    assert by_metric["text_to_image_r10"] == 66.87
    assert by_metric["mean_r1"] == pytest.approx((50.12 + 30.44) / 2)


def test_the_mean_of_the_38_is_the_published_average():
    """Averages of the table, recomputed of the rows that are here: none is mistyped."""
    averages = {"RN50x64": 60.61, "ViT-B-32": 52.45, "ViT-B-16": 56.26, "ViT-L-14": 61.73,
                "ViT-L-14-336": 62.84}  # fmt: skip
    headline = {"winogavil": "jaccard_10_12", "coco": "mean_r1", "flickr30k": "mean_r1"}
    for model, average in averages.items():
        values = [
            p.value
            for name in SETS
            for p in published(f"{model}/openai", name)
            if p.name == "open_clip's csv" and p.metric == headline.get(name, p.metric)
        ]
        assert len(values) == 38
        assert sum(values) / 38 == pytest.approx(average, abs=0.011)


def test_names_are_those_of_the_zoo_and_of_the_sets():
    from diptych.eval import published as module

    for model, name in module._read():
        assert model in zoo.list_models(), model
        assert name in SETS, name


def test_the_zoos_own_figure_stands_in_where_no_table_has_the_model():
    [one] = published("ViT-B-16/laion2b_s34b_b88k", "imagenet")
    assert one.value == zoo.get("ViT-B-16/laion2b_s34b_b88k").metrics["imagenet1k_zero_shot"]
    values = [p.value for p in published("ViT-B-32/openai", "imagenet")]
    assert len(values) == len(set(values))
    assert published("mini", "imagenet") == published("nobody/knows", "imagenet") == ()


def test_verdicts_of_what_was_measured():
    figures = {"top1": SimpleNamespace(value=0.6332), "top5": SimpleNamespace(value=0.9)}
    found = verdicts("ViT-B-32/openai", SETS["imagenet"], figures, 50_000)
    assert [v["reproduces"] for v in found] == [True, True, True]
    assert found[0]["published"] == 63.32
    assert found[0]["verdict"].startswith("reproduces 63.32")
    assert verdicts("ViT-B-32/openai (random weights)", SETS["imagenet"], figures, 50_000) == []
    part = verdicts("ViT-B-32/openai", SETS["imagenet"], figures, 100)
    assert not any(v["reproduces"] for v in part if "50,000" in v["verdict"])
