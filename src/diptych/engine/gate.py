"""Whether a fast path is near enough to fp32, measured on the photos and captions of the package.

- Steps of int8 are fitted to every other sample and judged on the ones between: what a path was
  fitted to says nothing about it.
- Costs what the fp32 tower takes for the samples, once for each set of weights.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.engine.lower_int8 import int8_blocks, watch
from diptych.engine.lower_transformer import Tower
from diptych.errors import ConfigError
from diptych.preprocess import collate
from diptych.tokenizer import Tokenizer

__all__ = ["FLOOR", "fit_int8", "sample_images", "sample_texts", "worst_cosine"]

log = logging.getLogger("diptych")

FLOOR = 0.999  # the least cosine of int8 to fp32
Run = Callable[[Any], Tensor]


def sample_images(prepare: Callable[[str], Tensor], most: int | None = None) -> Any:
    """The package's photos, or the first of them, as one batch. `prepare`: path -> pixels."""
    from diptych.engine.demo import samples  # which imports the encoder, which imports this

    return collate([prepare(photo.path) for photo in samples()[0][:most]])


def sample_texts(tokenizer: Tokenizer) -> Tensor:
    """Ids [n s] of the photos' captions and of the questions asked of them."""
    from diptych.engine.demo import samples

    photos, queries = samples()
    return tokenizer.tokenize([p.caption for p in photos] + [q.text for q in queries]).ids


@torch.no_grad()
def worst_cosine(run: Run, tower: Run, batch: Any) -> float:
    """The least cosine of `run`'s rows to those of the fp32 `tower`."""
    pair = (F.normalize(f(batch).double(), dim=-1) for f in (run, tower))
    return float((next(pair) * next(pair)).sum(-1).min())


@torch.no_grad()
def fit_int8(tower: Tower, samples: Tensor, make: Callable[[list], Run]) -> Run:
    """The fast path `make(blocks)` with as much int8 as keeps a cosine of `FLOOR` to fp32.

    Args:
        tower: the fp32 reference.
        samples: pixels or ids, of which every other one is only judged.
        make: from blocks in the form of `int8_blocks` to the whole tower.

    Raises:
        ConfigError: too far from fp32 even with the second layers of the MLPs in bf16.
    """
    held, reaches = samples[1::2], watch(tower, samples[::2])
    exact = tower(held)
    found = -1.0
    for whole in (True, False):
        run = make(int8_blocks(tower, reaches, whole=whole))
        found = worst_cosine(run, lambda _: exact, held)
        if found >= FLOOR:
            how = "int8" if whole else "int8 with the second half of each MLP in bf16"
            log.info("%s runs in %s: cosine %.5f to fp32", type(tower).__name__, how, found)
            return run
    raise ConfigError(
        f"precision 'int8': this model's {type(tower).__name__} keeps only a cosine of {found:.5f} "
        f"to fp32 on the sample data, and {FLOOR} is the least. Type precision='bf16'."
    )
