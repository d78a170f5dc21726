"""What a model makes of held-out pairs, measured by all ranks together: the same for any number.

- Every caption of an image counts in retrieval. The loss is over all pairs (an image and its first
  caption) at once, so it does not depend on a batch size; chance is the logarithm of their number.
- Zero-shot: where sources of classes are given, a caption is the name of its image's class.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.data.index import Index, Unreadable
from diptych.data.order import hashed
from diptych.data.pairs import Pairs
from diptych.engine import Encoder
from diptych.engine.prompts import fill, templates_of
from diptych.engine.stream import num_threads
from diptych.errors import ConfigError, DataError, ImageError
from diptych.eval.geometry import geometry
from diptych.eval.retrieval import retrieval, zero_shot
from diptych.model import CLIP
from diptych.preprocess import Preprocess, collate
from diptych.train.config import EvalConfig
from diptych.train.world import World

__all__ = ["check_best", "evaluate", "evaluate_classes"]

log = logging.getLogger("diptych")

_BATCH = 64

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def check_best(cfg: EvalConfig) -> None:
    """Refuse, before hours of training, a `best` that the evaluations will not have.

    Raises:
        ConfigError: names what they will have.
    """
    one, own = torch.eye(2), torch.arange(2)  # measures nothing: the names alone are wanted
    found: list[str] = []
    if cfg.sources:
        found += [*retrieval(one, one, own), *geometry(one, one, own), "held_out_loss"]
    if cfg.classes:
        found += [f"zero_shot_{key}" for key in zero_shot(one, own, one)]
    measured = [key for key in found if "num_" not in key]
    if measured and cfg.best not in measured:
        raise ConfigError(
            f"evaluate.best={cfg.best!r} is not measured. There is: {', '.join(measured)}. "
            f"Type: --set evaluate.best={measured[0]}"
        )


def evaluate(
    model: CLIP,
    encoder: Encoder,
    pairs: Pairs,
    cfg: EvalConfig,
    *,
    world: World,
    autocast: Callable,
    loss: Callable[[Tensor], Loss],
) -> dict[str, float]:
    """Retrieval, geometry and loss of held-out pairs; every rank calls it and gets the same.

    Args:
        model: in evaluation mode. encoder: its pixels and tokens.
        loss: groups [n] -> the run's loss.
    """
    image, text, owner = _vectors(model, encoder, pairs, cfg.max_pairs, world, autocast)
    share = {"rank": world.rank, "world": world.size, "reduce": world.sum}
    found = retrieval(image, text, owner, **share) | geometry(image, text, owner)
    first = torch.cat([owner.new_ones(1), owner.diff()]).bool()  # an image's first caption
    n = len(image) // world.size * world.size
    if not n:  # fewer images than ranks
        return found
    mine = slice(world.rank * n // world.size, (world.rank + 1) * n // world.size)
    groups = torch.arange(len(image), device=image.device)
    with torch.no_grad():
        own = loss(groups[:n][mine])
        scalars = (model.logit_scale.detach(), model.logit_bias)
        value = own(image[:n][mine], text[first][:n][mine], *scalars)
    found |= {"held_out_loss": float(value), "held_out_chance": math.log(n)}
    return found


def evaluate_classes(
    model: CLIP,
    encoder: Encoder,
    pairs: Pairs,
    cfg: EvalConfig,
    *,
    world: World,
    autocast: Callable,
) -> dict[str, float]:
    """Zero-shot accuracy: the classes are the distinct captions of `pairs`."""
    rows, pixels = _rows(pairs, cfg.max_pairs), encoder.preprocess
    names = sorted({index.caption(row, 0) for index, row in rows})
    image, kept = _encode_images(model, rows, pixels, world, autocast)
    templates = templates_of(cfg.templates)
    prompts = [fill(template, label) for label in names for template in templates]
    vectors = _encode_texts(model, encoder, prompts, world, autocast)
    classifier = torch.nn.functional.normalize(
        vectors.unflatten(0, (len(names), -1)).mean(1), dim=-1
    )
    labels = [names.index(rows[i][0].caption(rows[i][1], 0)) for i in kept]
    share = {"rank": world.rank, "world": world.size, "reduce": world.sum}
    found = zero_shot(image, torch.tensor(labels, device=image.device), classifier, **share)
    return {f"zero_shot_{key}": value for key, value in found.items()}


def _vectors(
    model: CLIP, encoder: Encoder, pairs: Pairs, most: int, world: World, autocast: Callable
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows of images, of all their captions, and the image of each caption."""
    rows = _rows(pairs, most)
    image, kept = _encode_images(model, rows, encoder.preprocess, world, autocast)
    captions = [rows[i][0].captions(rows[i][1]) for i in kept]
    owner = [i for i, texts in enumerate(captions) for _ in texts]
    texts = [text for some in captions for text in some]
    vectors = _encode_texts(model, encoder, texts, world, autocast)
    return image, vectors, torch.tensor(owner, device=image.device)


def _rows(pairs: Pairs, most: int) -> list[tuple[Index, int]]:
    """All pairs, or `most` of them drawn once and for all."""
    found = [(index, row) for part in pairs.indexes for index in part for row in range(index.size)]
    if len(found) > most:
        chosen = np.sort(np.argsort(hashed(0, np.arange(len(found))), kind="stable")[:most])
        found = [found[i] for i in chosen]
    return found


def _encode_images(
    model: CLIP, rows: list[tuple[Index, int]], pixels: Preprocess, world: World, autocast: Callable
) -> tuple[Tensor, list[int]]:
    """Unit rows of those images that can be decoded, and which they are."""

    def one(row: tuple[Index, int]) -> Tensor | None:
        try:
            return pixels(row[0].image(row[1]), name=row[0].name(row[1]))
        except (Unreadable, ImageError):
            return None

    with ThreadPoolExecutor(num_threads()) as pool:

        def make(part: list[int]) -> tuple[Any, list[int]]:
            made = zip(part, pool.map(one, [rows[i] for i in part]), strict=True)
            good = {i: image for i, image in made if image is not None}
            # ranks run in step, so there is a batch in any case
            return collate(list(good.values()) or [torch.zeros(3, *pixels.config.size)]), list(good)

        found: dict[int, Tensor] = {}
        for part in _parts(len(rows), world):
            batch, good = make(part)
            with torch.no_grad(), autocast():
                vectors = model.encode_image(batch.to(world.device)).float().cpu()
            found |= dict(zip(good, vectors[: len(good)], strict=True))
    return _together(found, world)


def _encode_texts(
    model: CLIP, encoder: Encoder, texts: list[str], world: World, autocast: Callable
) -> Tensor:
    found: dict[int, Tensor] = {}
    for part in _parts(len(texts), world):
        ids = encoder.tokenizer.tokenize([texts[i] for i in part], truncate="silent").ids
        with torch.no_grad(), autocast():
            vectors = model.encode_text(ids.to(world.device)).float().cpu()
        found |= dict(zip(part, vectors, strict=True))
    return _together(found, world)[0]


def _parts(n: int, world: World) -> list[list[int]]:
    """This rank's numbers in batches, as many on each rank: sharded towers run in step."""
    most = -(-n // world.size)
    mine = [min(i, n - 1) for i in range(world.rank * most, (world.rank + 1) * most)]
    return [mine[i : i + _BATCH] for i in range(0, most, _BATCH)]


def _together(found: dict[int, Tensor], world: World) -> tuple[Tensor, list[int]]:
    """All ranks' rows in order, on the device."""
    everything: dict[int, Any] = {}
    for part in world.gather(found):
        everything |= part
    kept = sorted(everything)
    if not kept:
        raise DataError(
            "none of the held-out pictures can be decoded. Look with: diptych doctor data PATH"
        )
    return torch.stack([everything[i] for i in kept]).to(world.device), kept
