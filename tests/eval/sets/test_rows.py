"""The rows: names that exist, suites that are whole, sets that are made the same each time."""

import hashlib
import re

import numpy as np
import pytest
from PIL import Image

from diptych.engine.prompts import TEMPLATE_SETS
from diptych.errors import ConfigError, DataError
from diptych.eval.classes import CLASS_LISTS, class_list
from diptych.eval.sets import SETS, SUITES, find, read

METRICS = {
    "classification": {
        *("top1", "mean_per_class", "roc_auc", "mean_top1_top5", "macro_f1"),
        *("worst_group_top1", "worst_group_top5"),
    },
    "multilabel": {"map_11_point"},
    "retrieval": {"mean_r1"},
    "choice": {"group_score", "macro_pair_accuracy", "jaccard"},
}
MADE = [row for row in SETS.values() if row.make is not None]


@pytest.mark.parametrize("row", SETS.values(), ids=lambda row: row.name)
def test_a_row_is_whole(row):
    assert re.fullmatch(r"[a-z0-9-]+", row.name) and row.title and row.suites and row.source
    assert row.metric in METRICS[row.task]
    assert row.templates is None or row.templates in TEMPLATE_SETS
    assert row.licence
    if row.classes is not None:
        assert row.classes in CLASS_LISTS
        assert row.num_classes == len(class_list(row.classes).names)


def test_suites_have_the_published_numbers():
    assert len(find(["paper"])) == 27
    assert len(find(["datacomp"])) == 38
    assert len(find(["vtab+"])) == 36  # 35, and VOC 2007 with several labels
    assert {"imagenet-shifts", "retrieval", "packaged"} <= set(SUITES)


def test_find():
    assert [row.name for row in find(["mnist", "imagenet-?", "mnist"])] == [
        *("mnist", "imagenet-a", "imagenet-r", "imagenet-o"),
    ]
    with pytest.raises(ConfigError, match=r"no set or suite 'fod101'\. Nearest: food101"):
        find(["fod101"])
    with pytest.raises(ConfigError, match="no set given"):
        find([])


def test_a_set_needs_its_folder():
    with pytest.raises(DataError, match=r"food101: needs its data.*--data FOLDER"):
        read(SETS["food101"], None)


def test_a_packaged_set_says_how_it_is_made(tmp_path):
    with pytest.raises(DataError, match=r"no such folder\. Make it: python recipes/evaluation\.py"):
        read(SETS["tuxpaint"], tmp_path / "tuxpaint")


@pytest.mark.parametrize("row", MADE, ids=lambda row: row.name)
def test_what_makes_itself(row):
    found = read(row, None)
    assert len(found.samples) == row.size and not found.unused
    assert len({sample.key for sample in found.samples}) == row.size
    if row.task == "classification":
        assert len(found.classes) == row.num_classes
        labels = [sample.labels[0] for sample in found.samples]
        assert set(labels) == set(range(row.num_classes))
    else:
        assert all(text for sample in found.samples for text in sample.captions)


def pixels(sample) -> bytes:
    image = sample.open()
    image = image if isinstance(image, Image.Image) else Image.open(image)
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).digest()


@pytest.mark.parametrize("row", MADE, ids=lambda row: row.name)
def test_the_same_each_time_and_all_different(row):
    samples = read(row, None).samples[:: 1 if row.task == "classification" else 2]
    chosen = samples[::7]
    once = [pixels(sample) for sample in chosen]
    assert once == [pixels(sample) for sample in chosen]
    assert len(set(once)) == len(chosen)


def test_shapes_have_their_colour():
    """The commonest colour beside the ground is that of the label."""
    from diptych.eval.sets.drawn import COLOURS

    found = read(SETS["shapes"], None)
    for sample in found.samples[::5]:
        image = sample.open()
        ground = image.getpixel((0, 0))
        counts = sorted(image.getcolors(1 << 16), reverse=True)
        shown = next(colour for _, colour in counts if colour != ground)
        name = min(
            COLOURS, key=lambda c: sum(abs(a - b) for a, b in zip(COLOURS[c], shown, strict=True))
        )
        assert found.classes[sample.labels[0]].split()[1] == name


def test_dots_are_as_many_as_the_label_says():
    """Counted as connected regions of what is not ground."""
    found = read(SETS["counting"], None)
    for sample in found.samples[::9]:
        image = np.asarray(sample.open()).astype(int)
        dark = np.abs(image - image[0, 0]).sum(-1) > 60
        assert regions(dark) == sample.labels[0] + 1


def regions(dark: np.ndarray) -> int:
    left, count = {tuple(at) for at in np.argwhere(dark).tolist()}, 0
    while left:
        count, edge = count + 1, [left.pop()]
        while edge:
            y, x = edge.pop()
            for at in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if at in left:
                    left.remove(at)
                    edge.append(at)
    return count


def test_swaps_have_the_same_words():
    for sample in read(SETS["shapes-swap"], None).samples:
        right, wrong = (
            [w for w in text.split() if w not in ("a", "an")] for text in sample.captions
        )
        assert sorted(right) == sorted(wrong) and right != wrong
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", " ".join(sample.captions))


def test_printed_text_is_inside_the_picture():
    for name in ("rendered-words", "rendered-reviews", "rendered-digits"):
        for sample in read(SETS[name], None).samples[::11]:
            image = np.asarray(sample.open().convert("L")).astype(int)
            ink = np.argwhere(image < image[0, 0] - 60)
            assert ink.min() > 2 and ink.max() < image.shape[0] - 3
