"""Fine-tuning that does little harm to a good model: what is done without a recipe.

- For `mini` the rate was measured (recipes/finetune.py); another model, which was trained on much
  more, gets a tenth of it.
- The word table stays: a few hundred captions say nothing of most words. So do the statistics of
  batch norms. At the end the weights are the mean of old and new (WiSE-FT, arXiv 2109.01903).
"""

from collections.abc import Sequence
from dataclasses import replace

from diptych.data.pairs import Pairs
from diptych.data.sources import Source
from diptych.train.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from diptych.zoo.cache import cache_folder

__all__ = ["mild", "settings"]

BAD = 0.1  # of few photographs a hundredth is soon reached


def settings(model: str | None = None) -> TrainConfig:
    """Three epochs from `model`, by default `mini`; without data."""
    return TrainConfig(
        name="finetune",
        model=ModelConfig(start=model or "mini", freeze=("text.token_embedding",)),
        data=DataConfig(max_bad_fraction=BAD),
        optim=OptimConfig(lr=1e-4 if model is None else 1e-5, weight_decay=0.1),
        schedule=ScheduleConfig(kind="cosine", warmup=0.1),
        batch_size=32,
        epochs=3,
        wise_ft=0.5,
        log_every=1,
    )


def mild(sources: Sequence[str], *, model: str | None = None) -> TrainConfig:
    """`settings` for these sources, whose pairs are shared evenly among the steps of an epoch.

    Raises:
        DataError: sources without pairs.
    """
    given = tuple(Source(path=path) for path in sources)
    pairs = Pairs.open(given, folder=cache_folder() / "pairs", max_bad_fraction=BAD)
    config = settings(model)
    data = replace(config.data, sources=given)
    steps = -(-pairs.size // config.batch_size)
    return replace(config, data=data, batch_size=pairs.size // steps)
