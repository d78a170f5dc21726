"""Published recipes as data: what made the models of the zoo, in the fields of our own configs.

    python recipes/published.py                                      # the table
    diptych train recipes/published.py:laion2b_vit_b32 "shards/{00000..60000}.tar" --dry-run

Nobody here has run one of them: each needs its publisher's data and hundreds of accelerators.
Every docstring says where its numbers come from; "from memory" is a number that was not looked up
again. "Expected" is zero-shot top-1 on ImageNet, as the zoo's row of the tag has it.

- The batch is the whole batch. Our loss is exact at any number of ranks, which is what the
  publishers' `local_loss` with `gather_with_grad` computes; equal captions count as negatives.
- Not the same: OpenAI's random square crop, half-precision Adam statistics and stochastic rounding
  (its rows crop as open_clip does and keep fp32); open_clip's and big_vision's order of the data.
"""

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace

from diptych import zoo
from diptych.config import AugmentConfig
from diptych.train.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    Stage,
    TrainConfig,
)

__all__ = ["RECIPES", "facts", "table"]

_CLIP = TrainConfig(
    model=ModelConfig(start=None),
    loss=LossConfig(groups=False),
    optim=OptimConfig(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, clip=None),
    schedule=ScheduleConfig(kind="cosine", warmup=2000),
    batch_size=32_768,
    steps=1,  # each recipe has its own
    precision="fp16",
    log_every=100,
)
_RESIZED = DataConfig(augment=AugmentConfig(scale=None))  # the model's own resize, nothing random


def _run(base: TrainConfig, tag: str, samples: float, **changes: object) -> TrainConfig:
    """`base` for a tag of the zoo and so many pairs; `lr` and `betas` are the optimiser's."""
    optim = {name: changes.pop(name) for name in ("lr", "betas") if name in changes}
    run = replace(base, **changes)
    return replace(
        run,
        name=tag.replace("/", "-"),
        model=replace(run.model, build=tag),
        optim=replace(run.optim, **optim),
        steps=round(samples / run.batch_size),
    )


def openai_vit_b32() -> TrainConfig:
    """OpenAI CLIP, ViT-B/32.

    Source: arXiv 2103.00020, tables 18 and 19, from memory; open_clip's defaults for ViT agree.
    Hardware: not stated for this model.
    Cost: not stated.
    Expected: 63.32 (ViT-B-32/openai)
    """
    return _run(_CLIP, "ViT-B-32/openai", 32 * 400e6)


def openai_vit_l14() -> TrainConfig:
    """OpenAI CLIP, ViT-L/14 at 224 pixels; one more epoch at 336 with 2e-5 gave ViT-L/14@336.

    Source: arXiv 2103.00020, tables 18 and 19, from memory.
    Hardware: 256 V100 for 12 days (section 2.5, from memory).
    Cost: 73,700 V100-hours, from that.
    Expected: 75.54 (ViT-L-14/openai)
    """
    return _run(_CLIP, "ViT-L-14/openai", 32 * 400e6, lr=4e-4)


def laion2b_vit_b32() -> TrainConfig:
    """OpenCLIP ViT-B/32 on LAION-2B.

    Source: LAION-AI/scaling-laws-openclip, trained_models_info.csv, row "B-32 2B 34B lr-1e-3
    bs-79k"; decay and betas are open_clip's defaults.
    Hardware: 824 A100, 96 pairs on each, 187,872 pairs/s.
    Cost: 42,300 A100-hours, from that rate.
    Expected: 66.56 (ViT-B-32/laion2b_s34b_b79k)
    """
    samples = 256 * 135_646_078
    return _run(
        _CLIP,
        "ViT-B-32/laion2b_s34b_b79k",
        samples,
        batch_size=79_104,
        lr=1e-3,
        precision="bf16",
    )


def laion2b_vit_h14() -> TrainConfig:
    """OpenCLIP ViT-H/14 on LAION-2B; "s32b" of its name is 34.7 B in the table.

    Source: LAION-AI/scaling-laws-openclip, trained_models_info.csv, row laion2b_s32b_b79k; decay
    and betas are open_clip's defaults.
    Hardware: 824 A100, 96 pairs on each, 34,608 pairs/s, checkpointing from memory.
    Cost: 229,700 A100-hours, from that rate.
    Expected: 77.96 (ViT-H-14/laion2b_s32b_b79k)
    """
    return _run(
        _CLIP,
        "ViT-H-14/laion2b_s32b_b79k",
        256 * 135_646_078,
        batch_size=79_104,
        precision="bf16",
        model=ModelConfig(start=None, checkpointing=True),
    )


_DATACOMP = replace(_CLIP, schedule=ScheduleConfig(kind="cosine", warmup=500))


def datacomp_small() -> TrainConfig:
    """DataComp, small: ViT-B/32, the pool filtered by the best method of the paper.

    Source: mlfoundations/datacomp, scale_configs.py; decay is open_clip's default.
    Hardware: A100s.
    Cost: 4 A100-hours (arXiv 2304.14108, table 1, from memory).
    Expected: 3.92 (ViT-B-32/datacomp_s_s13m_b4k)
    """
    return _run(_DATACOMP, "ViT-B-32/datacomp_s_s13m_b4k", 12.8e6, batch_size=4096)


def datacomp_medium() -> TrainConfig:
    """DataComp, medium: ViT-B/32.

    Source: mlfoundations/datacomp, scale_configs.py.
    Hardware: A100s.
    Cost: 40 A100-hours (arXiv 2304.14108, table 1, from memory).
    Expected: 29.72 (ViT-B-32/datacomp_m_s128m_b4k)
    """
    return _run(_DATACOMP, "ViT-B-32/datacomp_m_s128m_b4k", 128e6, batch_size=4096)


def datacomp_large() -> TrainConfig:
    """DataComp, large: ViT-B/16.

    Source: mlfoundations/datacomp, scale_configs.py.
    Hardware: A100s.
    Cost: 960 A100-hours (arXiv 2304.14108, table 1, from memory).
    Expected: 63.10 (ViT-B-16/datacomp_l_s1b_b8k)
    """
    return _run(_DATACOMP, "ViT-B-16/datacomp_l_s1b_b8k", 1.28e9, batch_size=8192)


def datacomp_xlarge() -> TrainConfig:
    """DataComp, xlarge: ViT-L/14 on DataComp-1B.

    Source: mlfoundations/datacomp, scale_configs.py.
    Hardware: A100s.
    Cost: 81,920 A100-hours (arXiv 2304.14108, table 1, from memory).
    Expected: 79.21 (ViT-L-14/datacomp_xl_s13b_b90k)
    """
    return _run(
        _DATACOMP,
        "ViT-L-14/datacomp_xl_s13b_b90k",
        12.8e9,
        batch_size=90_112,
        lr=1e-3,
        betas=(0.9, 0.95),
        schedule=ScheduleConfig(kind="cosine", warmup=10_000),
    )


_SIGLIP = replace(
    _CLIP,
    data=_RESIZED,
    optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-4, clip=1.0),
    schedule=ScheduleConfig(kind="cosine", warmup=20_000),
    precision="bf16",
    logit_scale_max=None,
)


def siglip_vit_b16() -> TrainConfig:
    """SigLIP, ViT-B/16 at 224 pixels on WebLI, English.

    Source: arXiv 2303.15343: the loss, t' = ln 10, b = -10, 64 tokens, images resized and nothing
    else; learning rate, decay, betas, warm-up, epsilon and clipping from memory; 45 B pairs as
    the released models.
    Hardware: 16 TPUv4 chips for three days, by the model card on the hub.
    Cost: 1,152 TPUv4-chip-hours, from that: too few for 45 B pairs even at the chip's peak.
    Expected: 76.04 (ViT-B-16-SigLIP/webli)
    """
    return _run(_SIGLIP, "ViT-B-16-SigLIP/webli", 45e9)


def siglip2_vit_b16() -> TrainConfig:
    """SigLIP 2, ViT-B/16 at 256 pixels: its contrastive part only, which will not give the number.

    Left out: the LocCa decoder (captions, boxes; the same weight as the sigmoid loss from the
    start), self-distillation (SILC, TIPS) and masked prediction in the last 20 %, the change of
    resolution at 95 %, and for B the active curation by a larger teacher.

    Source: arXiv 2502.14786; rate, decay, clipping from memory; 40 B pairs, 90 % English.
    Hardware: up to 2,048 TPUv5e chips.
    Cost: not stated.
    Expected: 79.10 (ViT-B-16-SigLIP2-256/webli)
    """
    return _run(_SIGLIP, "ViT-B-16-SigLIP2-256/webli", 40e9)


_CLIPA = replace(
    _CLIP,
    data=DataConfig(augment=AugmentConfig(scale=(0.4, 1.0), jitter=0.4, grey=0.2)),
    optim=OptimConfig(lr=2.048e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2, clip=None),
    precision="bf16",
)


def clipa_h14() -> TrainConfig:
    """CLIPA-v2 H/14, stage 1 of 3: 84 pixels and 8 tokens.

    Left out: the syntax mask, which picks the 8 words by their kind (here: the first 8 tokens);
    bfloat16 first moments.

    Source: UCSC-VLAA/CLIPA, clipa_jax/configs/model_h/84_8_pre_training.py; epsilon and the share
    of grey pictures from memory.
    Hardware: TPU; the publisher's estimate is for 8 A100 of 80 GB.
    Cost: 8,640 A100-hours for the three stages, $13,616.
    Expected: 81.52 (ViT-H-14-CLIPA/datacomp1b), after stage 2
    """
    return _run(
        _CLIPA,
        "ViT-H-14-CLIPA/datacomp1b",
        10_000 * 1_281_167,
        batch_size=65_536,
        stages=(Stage(start=0.0, image_size=84, context_length=8),),
        schedule=ScheduleConfig(kind="cosine", warmup=3200),
    )


def clipa_h14_224() -> TrainConfig:
    """CLIPA-v2 H/14, stage 2 of 3: 224 pixels, 32 tokens; give --set model.start=STAGE_1.

    Source: UCSC-VLAA/CLIPA, clipa_jax/configs/model_h/unmask_tuning_224_scheduleX4.py.
    Hardware: as stage 1.
    Cost: within the three stages.
    Expected: 81.52 (ViT-H-14-CLIPA/datacomp1b)
    """
    return _run(
        _CLIPA,
        "ViT-H-14-CLIPA/datacomp1b",
        512e6,
        batch_size=32_768,
        lr=5.12e-5,
        model=ModelConfig(start=None, patch_dropout=0.3),
        schedule=ScheduleConfig(kind="cosine", warmup=800),
    )


def clipa_h14_336() -> TrainConfig:
    """CLIPA-v2 H/14, stage 3 of 3: 336 pixels; give --set model.start=STAGE_2.

    Source: UCSC-VLAA/CLIPA, clipa_jax/configs/model_h/unmask_tuning_336_scheduleX1.py.
    Hardware: as stage 1.
    Cost: within the three stages.
    Expected: 81.80 (ViT-H-14-CLIPA-336/datacomp1b)
    """
    return _run(
        _CLIPA,
        "ViT-H-14-CLIPA-336/datacomp1b",
        131_072_000,
        batch_size=16_384,
        lr=6.4e-6,
        model=ModelConfig(start=None, patch_dropout=0.4),
        schedule=ScheduleConfig(kind="cosine", warmup=1600),
    )


def clipa_h14_one_run() -> TrainConfig:
    """The idea of CLIPA-v2 in one run: its three sizes by `stages`, one batch, one cosine.

    Ours, for those who start from nothing; never run. The shares are those of the pairs seen.

    Source: the three above, batch and rate of the first.
    Hardware: not known.
    Cost: not known.
    Expected: not known
    """
    total = 10_000 * 1_281_167 + 512e6 + 131_072_000
    at_224, at_336 = 10_000 * 1_281_167 / total, 1 - 131_072_000 / total
    run = _run(_CLIPA, "ViT-H-14-CLIPA/datacomp1b", total, batch_size=65_536)
    return replace(
        run,
        schedule=ScheduleConfig(kind="cosine", warmup=3200),
        stages=(
            Stage(start=0.0, image_size=84, context_length=8),
            Stage(start=at_224, image_size=224, context_length=32, patch_dropout=0.3),
            Stage(start=at_336, image_size=336, context_length=32, patch_dropout=0.4),
        ),
    )


def metaclip_vit_b32() -> TrainConfig:
    """MetaCLIP v1, ViT-B/32 on 400 M pairs.

    Source: facebookresearch/MetaCLIP, run_configs_400m.py, and its defaults for a ViT.
    Hardware: 64 GPUs (16 nodes of 4), 512 pairs on each.
    Cost: not stated.
    Expected: 65.58 (ViT-B-32/metaclip_400m)
    """
    return _run(_CLIP, "ViT-B-32/metaclip_400m", 32 * 400e6)


def metaclip_vit_l14() -> TrainConfig:
    """MetaCLIP v1, ViT-L/14 on 400 M pairs.

    Source: facebookresearch/MetaCLIP, run_configs_400m.py.
    Hardware: 128 GPUs (16 nodes of 8), 256 pairs on each.
    Cost: not stated.
    Expected: 76.20 (ViT-L-14/metaclip_400m)
    """
    checkpointed = ModelConfig(start=None, checkpointing=True)
    return _run(_CLIP, "ViT-L-14/metaclip_400m", 32 * 400e6, lr=4e-4, model=checkpointed)


RECIPES: tuple[Callable[[], TrainConfig], ...] = (
    openai_vit_b32,
    openai_vit_l14,
    laion2b_vit_b32,
    laion2b_vit_h14,
    datacomp_small,
    datacomp_medium,
    datacomp_large,
    datacomp_xlarge,
    siglip_vit_b16,
    siglip2_vit_b16,
    clipa_h14,
    clipa_h14_224,
    clipa_h14_336,
    clipa_h14_one_run,
    metaclip_vit_b32,
    metaclip_vit_l14,
)


def facts(recipe: Callable[[], TrainConfig]) -> dict[str, str]:
    """Source, hardware, cost and expected number, as the docstring states them."""
    found = re.findall(r"^(Source|Hardware|Cost|Expected): ((?:.+\n?)+?)(?=^\w+: |\Z)",
                       inspect.getdoc(recipe) or "", re.MULTILINE)  # fmt: skip
    return {name.lower(): " ".join(text.split()) for name, text in found}


def tag(config: TrainConfig) -> zoo.Row:
    """The row of the zoo whose architecture, pixels and tokens a recipe takes."""
    return zoo.get(config.model.build)


def table() -> str:
    """All recipes, one a line, in Markdown."""
    head = ("recipe", "batch", "peak lr", "decay", "betas", "warm-up", "steps", "pairs", "images",
            "expected", "hardware", "cost")  # fmt: skip
    rows = [head, tuple("-" * len(name) for name in head)]
    for recipe in RECIPES:
        run, said = recipe(), facts(recipe)
        rows.append(
            (
                recipe.__name__,
                f"{run.batch_size:,}",
                f"{run.optim.lr:g}",
                f"{run.optim.weight_decay:g}",
                "/".join(f"{beta:g}" for beta in run.optim.betas),
                f"{run.schedule.warmup:g}",
                f"{run.steps:,}",
                f"{run.steps * run.batch_size / 1e9:.4g} B",
                ", ".join(str(size) for size in _sizes(run)),
                said["expected"].split(" (")[0],
                said["hardware"],
                said["cost"],
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _sizes(run: TrainConfig) -> list[int]:
    own = tag(run).config.visual.image_size[0]
    return [stage.image_size or own for stage in run.stages] or [own]


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
