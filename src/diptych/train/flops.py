"""How much arithmetic a training step is, and how much of the device's peak it reaches.

- A multiply-add counts as two operations, products and convolutions only, as in open_clip's
  `docs/model_profile.csv`: towers are walked through on the meta device, so nothing is run.
- Backward is twice the forward pass where all is trained: once for the gradients of activations,
  once for those of weights. The first alone flows through LoRA's frozen weights; neither through a
  frozen tower.
- Utilisation counts what the mathematics needs, not what is computed twice to save memory (MFU of
  PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from diptych.config import CLIPConfig
from diptych.model import CLIP, VisionTransformer
from diptych.towers import build, on_meta
from diptych.zoo.facts import Counts, Fused

__all__ = [
    "StepFlops",
    "TowerFlops",
    "Work",
    "backward_factor",
    "peak_flops",
    "step_flops",
    "tower_flops",
]

# Dense peaks in FLOP/s by what the driver calls the card, first match: the makers' data sheets.
# bf16 and fp16 are the same; fp32 is without TF32, as torch runs it.
PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H100 NVL": {"bf16": 835e12, "fp32": 60e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
}


@dataclass(frozen=True)
class TowerFlops:
    """Operations of one forward pass for one image and one text."""

    visual: float
    text: float


@dataclass(frozen=True)
class StepFlops:
    """Operations of one step over all ranks.

    model: forward, backward and loss; the numerator of utilisation. computed: with what is run a
    second time.
    """

    model: float
    computed: float


def tower_flops(
    config: CLIPConfig,
    *,
    image_size: tuple[int, int] | None = None,
    context_length: int | None = None,
    training: bool = True,
) -> TowerFlops:
    """One image and one text through the towers of `config`.

    Args:
        image_size: height and width in pixels; None: the config's.
        context_length: tokens, for instance of the longest caption of a batch that is cut to it;
            None: the config's.
        training: with patch dropout.
    """
    size = image_size or config.visual.image_size
    length = context_length or config.text.context_length
    return TowerFlops(
        visual=_count(config.visual, config.embed_dim, (3, size[0], size[1]), training),
        text=_count(config.text, config.embed_dim, (length,), training),
    )


@cache
def _count(tower_config: Any, embed_dim: int, shape: tuple[int, ...], training: bool) -> float:
    """For one input of this shape: pixels [3 H W] or ids [s]."""
    with on_meta():
        tower = build(tower_config, embed_dim).requires_grad_(False).train(training)
        dtype = torch.float32 if len(shape) == 3 else torch.long
        batch = torch.zeros(2, *shape, dtype=dtype)
    counts = Counts()
    with torch.no_grad(), counts, Fused(counts):
        tower(batch)
    return counts.flops / len(batch)


def backward_factor(tower: nn.Module) -> float:
    """Backward operations for each forward one: 0 if frozen, 2 if trained, between with adapters.

    By the share of the parameters that is trained. Where the first blocks alone are frozen it is a
    little too large, for no gradient flows below the first trained one.
    """
    trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    return 1 + trained / sum(p.numel() for p in tower.parameters()) if trained else 0.0


def step_flops(
    towers: TowerFlops,
    *,
    batch_size: int,
    embed_dim: int,
    backward: tuple[float, float] = (2.0, 2.0),
    twice: bool = False,
) -> StepFlops:
    """A step over the global batch.

    Args:
        batch_size: N, pairs over all ranks; each rank does its share of the result.
        embed_dim: D of the loss, which takes 8 N^2 D in all: the product, once more in the
            backward pass, and two for the gradients.
        backward: `backward_factor` of the visual and the text tower.
        twice: the forward pass runs twice: checkpointing, or accumulation (GradCache).
    """
    sides = ((towers.visual, backward[0]), (towers.text, backward[1]))
    forward_and_back = sum(flops * (1 + factor) for flops, factor in sides)
    product = 2.0 * batch_size * batch_size * embed_dim
    model = batch_size * forward_and_back + 3 * product
    again = batch_size * sum(flops for flops, factor in sides if twice and factor)
    return StepFlops(model, model + again + product)


def peak_flops(device: torch.device, *, precision: str = "bf16") -> tuple[float, str]:
    """FLOP/s that the device could reach at best, and where the figure is from.

    Of a card in `PEAKS` its data sheet; of anything else the best of one second of products of
    2048 x 2048 matrices, on as many threads as torch uses.

    Args:
        precision: "fp32", or "bf16" or "fp16".
    """
    if device.type == "cuda":
        card = torch.cuda.get_device_name(device)
        for part, peaks in PEAKS.items():
            if part in card:
                kind = "fp32" if precision == "fp32" else "bf16"
                return peaks[kind], f"data sheet of {part}, {kind}, dense"
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    n = 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in "ab")
    best, end = float("inf"), time.perf_counter() + 1.0
    while time.perf_counter() < end:
        start = time.perf_counter()
        # the sum is read, so that a device that answers at once has to finish
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - start)
    kind = str(dtype).removeprefix("torch.")
    return 2 * n**3 / best, f"best of one second of {n} x {n} products in {kind}"


class Work:
    """Arithmetic of a run's steps, whose shapes may change on the way.

    Args:
        model: the model that is trained, not wrapped, with what is frozen and adapted.
        config: of that model.
        batch_size: pairs of a step over all ranks.
        twice: the forward pass runs twice: checkpointing, or accumulation.
    """

    def __init__(self, model: CLIP, config: CLIPConfig, *, batch_size: int, twice: bool = False):
        self._model, self._config = model, config
        self._batch_size, self._twice = batch_size, twice

    def step(
        self, *, image_size: tuple[int, int] | None = None, tokens: int | None = None
    ) -> StepFlops:
        """A step whose images and texts have this size; None: the config's."""
        config, visual = self._config, self._model.visual
        if isinstance(visual, VisionTransformer):
            config = replace(config, visual=visual.cfg)  # a stage changes its patch dropout
        size = None if image_size is None else (image_size[0], image_size[1])
        return step_flops(
            tower_flops(config, image_size=size, context_length=tokens),
            batch_size=self._batch_size,
            embed_dim=config.embed_dim,
            backward=(backward_factor(visual), backward_factor(self._model.text)),
            twice=self._twice,
        )
