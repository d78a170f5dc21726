"""Class lists: counts and orders of their publishers, masks, and a classifier narrowed to them."""

import hashlib

import pytest
import torch

from diptych.errors import ConfigError, DataError
from diptych.eval.classes import CLASS_LISTS, class_list, restrict

COUNTS = {
    "imagenet": 1000,
    "imagenet-a": 200,
    "imagenet-r": 200,
    "imagenet-o": 200,
    "objectnet": 113,
    "birdsnap": 500,
    "cifar10": 10,
    "cifar100": 100,
    "clevr-counts": 8,
    "caltech101": 102,
    "country211": 211,
    "dtd": 47,
    "eurosat": 10,
    "fgvc-aircraft": 100,
    "fer2013": 7,
    "flowers102": 102,
    "food101": 101,
    "gtsrb": 43,
    "hateful-memes": 2,
    "kitti": 4,
    "kinetics700": 700,
    "mnist": 10,
    "oxford-pets": 37,
    "voc2007": 20,
    "pcam": 2,
    "resisc45": 45,
    "rendered-sst2": 2,
    "stl10": 10,
    "sun397": 397,
    "stanford-cars": 196,
    "ucf101": 101,
}


def test_counts():
    assert {name: len(class_list(name).names) for name in COUNTS} == COUNTS


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_a_list_is_what_its_hash_says(name):
    found = class_list(name)
    text = "\n".join("\t".join(names) for names in found.names)
    assert hashlib.sha256(text.encode()).hexdigest() == found.sha256
    assert found.name == name
    assert found.source
    assert found.licence
    assert all(names for names in found.names)
    assert len(found.ids) in (0, len(found.names))
    assert len(set(found.ids)) == len(found.ids)
    assert len(found.rows) in (0, len(found.names))


def test_orders_that_are_easily_got_wrong():
    def first(name: str) -> list[str]:
        return [names[0] for names in class_list(name).names]

    assert first("clevr-counts") == ["10", "3", "4", "5", "6", "7", "8", "9"]
    assert first("rendered-sst2") == ["negative", "positive"]
    assert class_list("fer2013").names[5] == ("surprised", "shocked", "spooked")
    assert first("eurosat")[0] == "forest"
    assert first("clip-benchmark-eurosat")[0] == "annual crop land"
    assert first("clip-benchmark-fer2013")[4] == "neutral"
    assert first("caltech101")[30] == "head of a  crocodile"  # as published
    assert first("imagenet")[:2] == ["tench", "goldfish"]


@pytest.mark.parametrize(
    "name", ["birdsnap", "food101", "kinetics700", "dtd", "ucf101", "resisc45"]
)
def test_lists_that_are_sorted_and_have_no_name_twice(name):
    names = [n[0] for n in class_list(name).names]
    assert len(set(names)) == len(names)
    if name == "birdsnap":  # hyphens of the folders are blanks here, and stand after letters
        names = [n.split()[0] for n in names]
    if name in ("birdsnap", "dtd", "food101", "resisc45"):
        assert names == sorted(names)


def test_masks_name_classes_of_imagenet():
    imagenet = class_list("imagenet")
    assert imagenet.ids == tuple(sorted(imagenet.ids))
    for name in ("imagenet-a", "imagenet-r", "imagenet-o"):
        found = class_list(name)
        rows = [row for (row,) in found.rows]
        assert rows == sorted(set(rows))
        assert tuple(imagenet.ids[row] for row in rows) == found.ids
        assert tuple(imagenet.names[row] for row in rows) == found.names
    objectnet = class_list("objectnet")
    assert objectnet.ids == tuple(sorted(objectnet.ids))
    taken = [row for rows in objectnet.rows for row in rows]
    assert len(set(taken)) == len(taken) == 125
    bicycle = objectnet.names.index(("bicycle",))
    assert [imagenet.ids[row] for row in objectnet.rows[bicycle]] == ["n02835271", "n03792782"]
    assert objectnet.ids[objectnet.names.index(("bath towel",))] == "full_sized_towel"


def test_restrict_takes_the_best_of_each_classs_rows():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.5], [-1.0, -2.0, -3.0, -4.0]])
    found = restrict(scores, [(3,), (0, 2), (1, 0, 3)])
    assert found.tolist() == [
        pytest.approx([0.5, 0.3, 0.9]),
        pytest.approx([-4.0, -1.0, -1.0]),
    ]


@pytest.mark.parametrize("rows", [[], [()], [(4,)], [(-1,)]])
def test_restrict_refuses_rows_that_are_not_there(rows):
    with pytest.raises(DataError, match="restrict"):
        restrict(torch.zeros(2, 4), rows)


def test_an_unknown_list_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no class list 'food10'.*food101"):
        class_list("food10")


def test_the_rows_of_sets_have_lists_and_prompts():
    from diptych.engine.prompts import TEMPLATE_SETS
    from diptych.eval.sets import SETS

    for row in SETS.values():
        assert row.templates is None or row.templates in TEMPLATE_SETS, row.name
        assert row.classes is None or row.classes in CLASS_LISTS, row.name
        if row.classes and row.num_classes:
            assert len(class_list(row.classes).names) == row.num_classes, row.name
