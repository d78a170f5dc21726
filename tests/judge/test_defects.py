"""Generated defects: the same each time, in the layout, with masks of what changed."""

import numpy as np
import pytest
from PIL import Image

from diptych.errors import ConfigError
from diptych.judge.defects import CATEGORIES, DAMAGES, write_defects
from diptych.judge.inspection import read_mvtec


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "defects"
    return write_defects(folder, num_train=2, num_good=2, num_each=2, size=64)


def test_every_category_is_in_the_layout(written):
    for name in CATEGORIES:
        found = read_mvtec(written / name)
        assert (found.name, len(found.train)) == (name, 2)
        assert len(found.test) == 2 + 2 * len(DAMAGES)


def test_masks_mark_something_and_not_everything(written):
    masks = sorted(written.rglob("*_mask.png"))
    assert len(masks) == len(CATEGORIES) * len(DAMAGES) * 2
    for mask in masks:
        share = (np.asarray(Image.open(mask)) > 0).mean()
        assert 0 < share < 0.25, mask


def test_the_same_seed_draws_the_same(written, tmp_path):
    how = {"categories": ["washer"], "num_train": 2, "num_good": 2, "num_each": 2, "size": 64}
    same, other = (write_defects(tmp_path / str(s), seed=s, **how) for s in (0, 1))
    files = sorted(p.relative_to(same) for p in same.rglob("*.png"))
    for file in files:
        assert (same / file).read_bytes() == (written / file).read_bytes()
    assert any((same / f).read_bytes() != (other / f).read_bytes() for f in files)


def test_pictures_of_one_kind_differ(written):
    files = sorted((written / "leather").glob("*/good/*.png"))
    assert len({p.read_bytes() for p in files}) == len(files)


def test_what_cannot_be_written(tmp_path, written):
    with pytest.raises(ConfigError, match="exists already"):
        write_defects(written)
    with pytest.raises(ConfigError, match=r"Nearest: .*washer"):
        write_defects(tmp_path / "a", categories=["waser"])
    with pytest.raises(ConfigError, match="at least 1"):
        write_defects(tmp_path / "a", num_good=0)
    assert not list(tmp_path.iterdir())
