"""The zero-shot classifier of many classes and templates: encoded once, then kept on the disk.

w_c = norm(mean over templates t and names n of c of norm(E_T(t(n)))): normalised before and after
the mean (openai/CLIP, notebook Prompt_Engineering_for_ImageNet). Of several names a class, which
FER2013 has, the mean goes over all pairs of template and name; OpenAI's own rule is not published.

- All texts of all classes go through the tower together, short ones first, each different text
  once: batches are full and nothing is padded to a long text. Peers encode class after class.
- A classifier belongs to the model's fingerprint, the precision and the exact texts, by which it
  is found again. It is written whole or not at all; a damaged file is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from diptych.engine import Encoder
from diptych.engine.prompts import fill, templates_of
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo.atomic import atomic_write
from diptych.zoo.cache import cache_folder

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["cache_file", "zero_shot_weights"]

log = logging.getLogger("diptych")

_FORMAT = "1"  # of the cached files; a change of what is computed is a new number
_AT_ONCE = 8192  # texts whose vectors are held
_WORTH = 256  # fewer texts are encoded sooner than a file is worth keeping


def zero_shot_weights(
    encoder: Encoder,
    classes: Sequence[str | Sequence[str]],
    templates: str | Sequence[str] | None = None,
    *,
    cache: bool = True,
) -> Float[Tensor, "c e"]:
    """One unit vector a class, on the encoder's device.

    Memory: the texts, `_AT_ONCE` vectors and one float64 row a class.

    Args:
        classes: a name of each, or several: `class_list("fer2013").names`.
        templates: as for `Encoder.classify`.
        cache: keep classifiers of 256 texts or more in the cache folder, and look there first.

    Raises:
        ConfigError: no classes, a class without a name, or templates that cannot be filled.
    """
    names = _names(classes)
    texts = [[fill(t, n) for n in of_class for t in templates_of(templates)] for of_class in names]
    keeps = cache and sum(map(len, texts)) >= _WORTH
    path = cache_file(encoder, texts) if keeps else None
    weights = _read(path, len(texts), encoder.config.embed_dim) if path else None
    if weights is None:
        weights = _encode(encoder, texts)
        if path:
            _keep(path, weights)
    return weights.to(encoder.device)


def cache_file(encoder: Encoder, texts: Sequence[Sequence[str]]) -> Path:
    """Where the classifier of these texts, class by class, is kept."""
    parts = [_FORMAT, encoder.fingerprint, encoder.precision, texts]
    key = hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()
    return cache_folder() / "classifiers" / f"{key}.safetensors"


def _names(classes: Sequence[str | Sequence[str]]) -> list[tuple[str, ...]]:
    if isinstance(classes, str) or not classes:
        raise ConfigError(f"classes must be a list of at least one name, got {classes!r:.60}")
    names = []
    for i, one in enumerate(classes):
        of_class = (one,) if isinstance(one, str) else one
        if (
            not isinstance(of_class, Sequence)
            or not of_class
            or not all(isinstance(name, str) for name in of_class)
        ):
            raise ConfigError(f"class {i} must be a name or a list of names, got {one!r:.60}")
        names.append(tuple(of_class))
    return names


def _encode(encoder: Encoder, texts: Sequence[Sequence[str]]) -> Tensor:
    sums = torch.zeros(len(texts), encoder.config.embed_dim, dtype=torch.float64)
    where: dict[str, list[int]] = {}
    for i, of_class in enumerate(texts):
        for text in of_class:
            where.setdefault(text, []).append(i)
    for part in _parts(sorted(where, key=len)):
        vectors = encoder.encode_text(part, out="torch").double().cpu()
        own = [(row, i) for row, text in enumerate(part) for i in where[text]]
        rows, owners = (torch.tensor(column) for column in zip(*own, strict=True))
        sums.index_add_(0, owners, vectors[rows])
    return F.normalize(sums, dim=-1).float()  # the mean's length does not matter


def _parts(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _AT_ONCE):
        yield texts[start : start + _AT_ONCE]


def _read(path: Path, num: int, width: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        found = safetensors.torch.load_file(path)["weights"]
    except (OSError, SafetensorError, KeyError) as error:
        log.warning("%s: is damaged (%s) and is made anew", path, error)
        return None
    if found.shape != (num, width) or found.dtype != torch.float32 or not found.isfinite().all():
        log.warning("%s: is not the classifier it should be and is made anew", path)
        return None
    return found


def _keep(path: Path, weights: Tensor) -> None:
    def fill_in(part: Path) -> None:
        safetensors.torch.save_file({"weights": weights.contiguous()}, part)

    try:
        atomic_write(path, fill_in)
    except CheckpointError as error:  # a cache that cannot be written costs time, not the result
        log.warning("the classifier is not kept: %s", error)
