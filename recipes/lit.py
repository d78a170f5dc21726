"""LiT (arXiv 2111.07991): the image tower is locked, the text tower learns to speak of it.

    diptych train recipes/lit.py my-shards --out runs/lit
    diptych train recipes/lit.py:scratch my-shards --out runs/lit
    diptych train recipes/lit.py:siglip my-shards --out runs/lit

Hardware: 2 CPU cores for thousands of pairs and `mini`; one GPU for SigLIP. The image tower costs
its forward pass only. Cost: minutes to hours. Expected: depends on the pairs; not run here.

- Locked means evaluation mode too: no dropout, and the statistics of batch norms stay.
- Batch 512, 5,000 steps, decay 1e-2, 3 % warm-up, clip 1 are those of big_vision's example
  (`configs/proj/image_text/siglip_lit_coco.py`); `scratch` has its rate of 1e-3, its text tower
  from random weights and its bias of -2.71 as well. Not from there: its flip and RandAugment
  (captions say "left"), and in `lit` the rate of 1e-4, for a text tower that starts from weights.
"""

from dataclasses import replace

from diptych.train.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig

__all__ = ["lit", "scratch", "siglip"]


def lit() -> TrainConfig:
    """`mini` and its softmax loss."""
    return TrainConfig(
        name="lit",
        model=ModelConfig(start="mini", freeze=("visual",)),
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, clip=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup=0.03),
        batch_size=512,
        micro_batch=64,
        steps=5_000,
    )


def scratch() -> TrainConfig:
    """`mini`'s image tower, a text tower that knows nothing yet, and the sigmoid loss."""
    locked = lit()
    model = replace(locked.model, fresh=("text",), sigmoid_bias=-2.71)
    optim = replace(locked.optim, lr=1e-3)
    return replace(locked, name="lit-scratch", model=model, optim=optim, logit_scale_max=None)


def siglip() -> TrainConfig:
    """A SigLIP model and its sigmoid loss, whose scale is not held."""
    return replace(
        lit(),
        name="lit-siglip",
        model=ModelConfig(start="ViT-B-16-SigLIP/webli", freeze=("visual",)),
        logit_scale_max=None,
    )
