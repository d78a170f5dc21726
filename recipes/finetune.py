r"""Fine-tune a model on your own pictures with captions, mildly enough that it forgets little.

    diptych train recipes/finetune.py my-photos --out runs/mine
    diptych train recipes/finetune.py:lora my-photos --out runs/mine
    diptych train recipes/finetune.py my-photos --out runs/mine --set model.start=ViT-B-32/openai \
        --set optim.lr=1e-5

Hardware: 2 CPU cores for a few hundred pictures and `mini`; a GPU for ViT-B/32 and up. Cost:
minutes. Expected, measured once with `finetune` on 200 photographs of food (IFCT): of these 17.5 %
find their name first among the 200 (before: 8.5), of 200 others, with other names, 9.0 % (7.5), of
68 photographs of GCompris 57.4 % (60.3). At a rate of 3e-5: 11.0, 7.5, 60.3.

- The rate is 1e-4, three times through, for `mini`; a model that was trained on much more wants
  1e-5. The statistics of batch norms stay as they are. At the end the weights are the mean of the
  old and the new ones (WiSE-FT, arXiv 2109.01903).
- `finetune` trains everything but the word table; `lora` adapters of 0.3 % of the size of `mini`,
  and of its text tower alone, because its image tower has no attention.
"""

from dataclasses import replace

from diptych.train.config import LoraConfig, ModelConfig, TrainConfig
from diptych.train.mild import settings

__all__ = ["finetune", "lora"]


def finetune() -> TrainConfig:
    """All weights but the word table: 3 epochs, 1e-4, half of the change kept."""
    return settings()


def lora() -> TrainConfig:
    """Low-rank adapters on queries and values, with the larger rate they need."""
    mild = finetune()
    return replace(
        mild,
        name="finetune-lora",
        model=ModelConfig(start="mini", lora=LoraConfig(rank=8, alpha=16.0)),
        optim=replace(mild.optim, lr=2e-4, weight_decay=0.0),
    )
