"""What a run is fed: what can be known to go wrong is refused before the first step."""

from dataclasses import replace

import pytest
from miniature import config, pictures

from diptych.errors import ConfigError
from diptych.train import train
from diptych.train.config import Stage


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("batch_size=25", "more than the 24 pairs of the data. Type: --set batch_size=24"),
        ("batch_size=1", "nothing is learnt. Type: --set batch_size=2"),
    ],
)
def test_batches_that_cannot_be(tmp_path, own_cache, setting, told):
    with pytest.raises(ConfigError, match=told):
        train(config(pictures(tmp_path / "data"), setting, "micro_batch=none"), tmp_path / "run")


def test_one_pair_is_enough_for_a_sigmoid_loss(tmp_path, own_cache):
    """It says of the pair that it is one, so there is something to learn."""
    run = config(pictures(tmp_path / "data"), "batch_size=1", "model.sigmoid_bias=-10", "steps=1")
    assert train(run, tmp_path / "run")["last"]["loss"] > 1


def test_a_stage_with_more_text_than_the_model_takes(tmp_path, own_cache):
    """It would end the run in the middle."""
    run = config(pictures(tmp_path / "data"))
    run = replace(run, stages=(Stage(start=0.5, context_length=13),))
    with pytest.raises(ConfigError, match="the model takes 12 tokens"):
        train(run, tmp_path / "run")


def test_epochs(tmp_path, own_cache):
    """24 pairs in batches of 8: an epoch is 3 steps."""
    data = pictures(tmp_path / "data")
    for epochs, steps in ((1, 3), (0.5, 2), (0.01, 1)):
        found = train(config(data, f"epochs={epochs}"), tmp_path / str(epochs))
        assert found["steps"] == steps
    assert found["last"]["epoch"] == pytest.approx(1 / 3)
