"""The fast path: a tower as packed calls, in a reduced precision or fp32, equal up to rounding.

- What it does and leaves out stands in `lower_transformer` and `lower_conv`.
- A tower is lowered only if every module in it is exactly of a type known here and nothing hooks
  into it; anything else (LoRA, hooks, a tower of another package) runs unchanged.
- Packed weights hold for one state of the tower (`Versions`): an optimiser step repacks them.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from diptych.config import PreprocessConfig
from diptych.engine.gate import fit_int8
from diptych.engine.lengths import cut
from diptych.engine.lower_conv import FastEfficientNet, FastResNet
from diptych.engine.lower_transformer import (
    Blocks,
    FastBert,
    FastText,
    FastVision,
    Tower,
    blocks_of,
)
from diptych.engine.versions import Versions
from diptych.model.text import TextTransformer
from diptych.model.transformer import MLP, Attention, AttentionPool, Block
from diptych.model.vision import VisionTransformer
from diptych.preprocess.pipeline import normalise_by, statistics
from diptych.towers.bert import BertBlock, BertEncoder
from diptych.towers.concepts import ConceptHead, Palette
from diptych.towers.efficientnet import ConvNorm, EfficientNet, MBConv, SqueezeExcite
from diptych.towers.resnet import AttentionPool2d, Bottleneck, ModifiedResNet

__all__ = ["Lowered"]

Run: TypeAlias = Callable[[Tensor], Tensor]

_KNOWN = {
    *(VisionTransformer, TextTransformer, ModifiedResNet, Bottleneck, AttentionPool2d),
    *(AttentionPool, Attention, Block, MLP, BertEncoder, BertBlock),
    *(EfficientNet, MBConv, ConvNorm, SqueezeExcite, ConceptHead, Palette, nn.SiLU, nn.ReLU6),
    *(nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.Embedding, nn.AvgPool2d),
    *(nn.Identity, nn.ModuleList, nn.Sequential),
}


def _is_plain(tower: nn.Module) -> bool:
    return all(
        type(m) in _KNOWN
        and not (m.training or m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m))
        for m in tower.modules()
    )


def _folds(run: Run) -> bool:
    """Whether it takes uint8 images as they are."""
    return isinstance(run, FastVision) and run.folds


def _normalised(batch: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
    return normalise_by(batch, *known) if batch.dtype == torch.uint8 else batch


class Lowered:
    """Calls `tower` by its fast path; always returns what `tower(batch)` would, in fp32.

    Args:
        tower: the reference, which stays as it is.
        dtype: of the matrix products: torch.bfloat16, torch.float16 or torch.float32.
        pixels: of an image tower, for batches of uint8 [n 3 H W]: how they are normalised.
        samples: for int8: makes the batch (floats, or ids) that its steps are fitted to. The first
            call then raises ConfigError if the tower does not bear int8.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        dtype: torch.dtype,
        pixels: PreprocessConfig | None = None,
        samples: Callable[[], Tensor] | None = None,
    ):
        self.tower, self.dtype, self.pixels, self.samples = tower, dtype, pixels, samples
        self._lock = threading.Lock()
        self._packed: tuple[Versions, Run] | None = None

    def __call__(self, batch) -> Tensor:
        run, lowered = self._current()
        if lowered and isinstance(batch, Tensor) and batch.device.type != "cpu":
            batch = cut(self.tower, batch)  # on a CPU no row is spent on padding anyway
        if self.pixels is not None and isinstance(batch, Tensor) and not _folds(run):
            batch = _normalised(batch, statistics(self.pixels, batch.device))
        return run(batch)

    def fixed(self) -> Run | None:
        """The run for the weights of this moment, which reads no value on the host and so can be
        captured in a CUDA graph; None: the tower runs as it is.
        """
        run, lowered = self._current()
        if not lowered:
            return None
        if self.pixels is None or _folds(run):
            return run
        known = statistics(self.pixels, next(self.tower.parameters()).device)
        return lambda batch: run(_normalised(batch, known))

    def _current(self) -> tuple[Run, bool]:
        """The run, and whether it is another than the tower."""
        with self._lock:
            if self._packed is None or not self._packed[0].hold():
                now = Versions(self.tower)
                with torch.no_grad():
                    self._packed = (now, self._pack() if _is_plain(self.tower) else self.tower)
            run = self._packed[1]
            return run, run is not self.tower

    def _pack(self) -> Run:
        tower = self.tower
        match tower:
            case VisionTransformer():
                how = {"dtype": self.dtype, "pixels": self.pixels}
                return self._with_blocks(tower, partial(FastVision, tower, **how))
            case TextTransformer() if tower.cfg.pad_id is None:
                return self._with_blocks(tower, partial(FastText, tower))
            case BertEncoder():
                return self._with_blocks(tower, partial(FastBert, tower))
            case EfficientNet():
                return FastEfficientNet(tower)
            case ModifiedResNet() if self.dtype != torch.float32 and self.samples is None:
                return FastResNet(tower, self.dtype)
        return tower

    def _with_blocks(self, tower: Tower, make: Callable[[Blocks], Run]) -> Run:
        if self.samples is None:
            return make(blocks_of(tower, self.dtype))
        return fit_int8(tower, self.samples(), make)

    def __getstate__(self):
        names = ("tower", "dtype", "pixels", "samples")
        return {name: value for name, value in vars(self).items() if name in names}

    def __setstate__(self, state):
        self.__init__(state.pop("tower"), **state)
