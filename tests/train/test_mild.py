"""Fine-tuning without a recipe: whatever the number of pairs, few are left out of an epoch."""

import pytest
from miniature import pictures

from diptych.errors import DataError
from diptych.train.mild import mild, settings


@pytest.mark.parametrize("num", [2, 31, 33, 40, 63, 65])
def test_steps_share_the_pairs_evenly(tmp_path, own_cache, num):
    size = mild([str(pictures(tmp_path / "data", num))]).batch_size
    assert size <= settings().batch_size
    assert num % size < num / size  # less than one pair a step is left out


def test_another_model_is_treated_more_gently(tmp_path, own_cache):
    data = str(pictures(tmp_path / "data", 3))
    other = mild([data], model="ViT-B-32/openai")
    assert other.model.start == "ViT-B-32/openai"
    assert other.optim.lr < mild([data]).optim.lr


def test_no_pairs(tmp_path, own_cache):
    with pytest.raises(DataError, match="not there"):
        mild([str(tmp_path / "nowhere")])
