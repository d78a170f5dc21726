"""Training: one loop, the exact gradient of the global batch, and a state that nothing takes away.

    from diptych.train import TrainConfig, train
    train(TrainConfig(data=DataConfig(sources=(Source(path="captions.csv"),)), epochs=5), "run")

Where the next one goes:

- A loss: its readable form in `model.loss`, its derivative of a tile in `streamed`, a kind in
  `config.LossConfig`, its case in `losses.build_loss`.
- An optimiser or a schedule: a kind in `config`, its case in `optim` or `schedule`.
- A setting: a field in `config`; `--set`, the saved config and the dry run know it from there.
- A form of pairs: `data.lists` or `data.sources`. A metric: `eval`.

Nothing heavy is imported until one of these names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.config import AugmentConfig
    from diptych.data.sources import Source
    from diptych.train.config import (
        CheckpointingConfig,
        DataConfig,
        EvalConfig,
        LoraConfig,
        LossConfig,
        ModelConfig,
        OptimConfig,
        ScheduleConfig,
        Stage,
        TrainConfig,
        changed,
    )
    from diptych.train.loop import Stopped, train

_CONFIG = (
    *("CheckpointingConfig", "DataConfig", "EvalConfig", "LoraConfig", "LossConfig", "ModelConfig"),
    *("OptimConfig", "ScheduleConfig", "Stage", "TrainConfig", "changed"),
)
_WHERE = dict.fromkeys(_CONFIG, "diptych.train.config") | {
    "AugmentConfig": "diptych.config",
    "Source": "diptych.data.sources",
    "Stopped": "diptych.train.loop",
    "train": "diptych.train.loop",
}

__all__ = [
    "AugmentConfig",
    "CheckpointingConfig",
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ScheduleConfig",
    "Source",
    "Stage",
    "Stopped",
    "TrainConfig",
    "changed",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'diptych.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
