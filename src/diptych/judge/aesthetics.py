"""How people like a picture: a linear map on its vector, LAION's two heads or one's own.

Sources: LAION-AI/aesthetic-predictor (V1: one linear layer) and
christophschuhmann/improved-aesthetic-predictor (V2: five linear layers with dropout and no
activation between them), both on unit vectors of OpenAI's models.

- Linear layers in a row are one linear layer, so V2 is folded into a vector and a number: the same
  scores, 1,000 times less arithmetic. Its variant with ReLU is another function and is refused.
- A head says something about the vectors of the model that it was trained on and nothing about
  those of another, also where the sizes agree: a head refuses a model that is not its own.
- No head is part of this package: `HEADS` says where they are published, `fetch_head` gets one.
- `fit_head` makes a head of one's own from rated pictures: ridge regression in closed form.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych import zoo
from diptych.engine import Encoder
from diptych.errors import CheckpointError, ConfigError, DataError, nearest
from diptych.judge.correlation import Correlation, correlation
from diptych.zoo.atomic import atomic_write
from diptych.zoo.fetch import fetch_url
from diptych.zoo.row import Url
from diptych.zoo.tensors import read_tensors

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "HEADS",
    "FittedHead",
    "Head",
    "KnownHead",
    "aesthetic_scores",
    "check_head",
    "fetch_head",
    "fit_head",
    "fold",
    "open_head",
    "read_head",
    "save_head",
]

log = logging.getLogger("diptych")

_V1 = {"weight", "bias"}
_V2 = {f"layers.{i}.{kind}" for i in (0, 2, 4, 6, 7) for kind in ("weight", "bias")}
_RELU = {f"layers.{i}.{kind}" for i in (0, 3, 6, 9, 11) for kind in ("weight", "bias")}


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownHead:
    """A published head.

    Attributes:
        layers: linear layers in a row. embed_dim: numbers of the vectors it takes.
        models: those that it was trained on, as `diptych.load` names them.
    """

    url: str
    layers: int
    embed_dim: int
    models: tuple[str, ...]
    licence: str
    trained_on: str


_V1_AT = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/"
_V2_AT = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
_SAC = "Simulacra Aesthetic Captions: ratings of 1 to 10 of generated pictures"
_L14 = KnownHead(
    url=f"{_V1_AT}sa_0_4_vit_l_14_linear.pth",
    layers=1,
    embed_dim=768,
    models=("ViT-L-14/openai", "hf:openai/clip-vit-large-patch14"),
    licence="MIT",
    trained_on=_SAC,
)

HEADS: Mapping[str, KnownHead] = {
    "laion-v1-l14": _L14,
    "laion-v1-b32": replace(
        _L14,
        url=f"{_V1_AT}sa_0_4_vit_b_32_linear.pth",
        embed_dim=512,
        models=("ViT-B-32/openai", "hf:openai/clip-vit-base-patch32"),
    ),
    "laion-v1-b16": replace(
        _L14,
        url=f"{_V1_AT}sa_0_4_vit_b_16_linear.pth",
        embed_dim=512,
        models=("ViT-B-16/openai", "hf:openai/clip-vit-base-patch16"),
    ),
    "laion-v2-l14": replace(
        _L14,
        url=f"{_V2_AT}sac%2Blogos%2Bava1-l14-linearMSE.pth",
        layers=5,
        licence="Apache-2.0",
        trained_on=f"{_SAC}; rated logos; AVA: ratings of 1 to 10 of photographs",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """score = weight . vector + bias, on unit vectors.

    Attributes:
        weight: float64 [e]. bias: float.
        models: the names of the models it was trained on, any of them; () if nobody says.
        fingerprint: of the encoder it was fitted on, where we fitted it; it decides alone then.
        name: what it is called.
    """

    weight: Float[Tensor, " e"] = field(repr=False)
    bias: float
    models: tuple[str, ...] = ()
    fingerprint: str | None = None
    name: str = "a head"


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A head that was fitted, and how well it does on pictures it has not seen.

    Attributes:
        ridge: the penalty that was chosen, by leaving each of the fitted pictures out once.
        num: pictures it was fitted on. held_out: agreement on the others.
    """

    head: Head
    ridge: float
    num: int
    held_out: Correlation


def open_head(name: str | Path, *, offline: bool | None = None) -> Head:
    """A head by a name of `HEADS`, or from a file; see `fetch_head` and `read_head`."""
    if isinstance(name, str) and name in HEADS:
        return fetch_head(name, offline=offline)
    path = Path(name)
    if isinstance(name, str) and path.name == name and not path.suffix and not path.exists():
        raise ConfigError(
            f"no head {name!r}. {nearest(name, HEADS)} Known: {', '.join(HEADS)}; or give a file."
        )
    return read_head(path)


def fetch_head(name: str, *, sha256: str | None = None, offline: bool | None = None) -> Head:
    """A published head, from our cache or from its publisher.

    Args:
        sha256: what the file must have; the publishers state none, so none is checked by itself.

    Raises:
        ConfigError: no such head. ModelNotFoundError: offline and not here; says what to fetch.
        DownloadError: it cannot be fetched. CheckpointError: it is something else.
    """
    if name not in HEADS:
        raise ConfigError(f"no head {name!r}. {nearest(name, HEADS)} Known: {', '.join(HEADS)}.")
    row = HEADS[name]
    folder = zoo.cache_folder() / "heads"
    path = fetch_url(Url(url=row.url, sha256=sha256), folder, offline=offline)
    return replace(read_head(path), models=row.models, name=name)


def read_head(path: str | Path) -> Head:
    """A head from a file: one of the published ones, or of `save_head`; no code of it is run.

    The file of a published head does not say which model it belongs to; its size leaves those of
    `HEADS` with vectors of that size.

    Raises:
        CheckpointError: a file that is no such head. ModelNotFoundError: no such file.
    """
    path = Path(path)
    found = read_tensors(path)
    weight, bias = fold(found.state_dict, path)
    if "diptych_head" in found.metadata:
        about = _about(found.metadata["diptych_head"], path)
        return Head(weight=weight, bias=bias, name=path.name, **about)
    shape = (len(found.state_dict) // 2, len(weight))
    rows = [row for row in HEADS.values() if (row.layers, row.embed_dim) == shape]
    models = tuple(model for row in rows for model in row.models)
    return Head(weight=weight, bias=bias, models=models, name=path.name)


def fold(
    state_dict: Mapping[str, Tensor], path: str | Path = "head"
) -> tuple[Float[Tensor, " e"], float]:
    """(weight float64 [e], bias) of linear layers in a row: W_k (... (W_1 x + b_1) ...) + b_k.

    Raises:
        CheckpointError: other keys, or shapes that do not follow one another.
    """
    keys = set(state_dict)
    if keys == _RELU:
        raise CheckpointError(
            f"{path}: is the variant of V2 with ReLU between its layers, which is no linear map. "
            "Take sac+logos+ava1-l14-linearMSE.pth."
        )
    if keys not in (_V1, _V2):
        raise CheckpointError(
            f"{path}: holds {', '.join(sorted(keys)[:6])}: no aesthetics head. Known are a linear "
            "layer (weight, bias), and layers.0, 2, 4, 6, 7 of improved-aesthetic-predictor."
        )
    names = [""] if keys == _V1 else [f"layers.{i}." for i in (0, 2, 4, 6, 7)]
    weight: Tensor | None = None
    bias = torch.zeros(1, dtype=torch.float64)
    for name in names:
        w, b = (state_dict[f"{name}{kind}"].double() for kind in ("weight", "bias"))
        fits = w.ndim == 2 and b.shape == w.shape[:1]
        fits = fits and bool(w.isfinite().all() & b.isfinite().all())
        if not fits or (weight is not None and w.shape[1] != weight.shape[0]):
            raise CheckpointError(
                f"{path}: {name}weight {list(w.shape)} and {name}bias {list(b.shape)} do not "
                "follow what stands before them, or are not finite. Fetch the file again."
            )
        weight, bias = (w, b) if weight is None else (w @ weight, w @ bias + b)
    assert weight is not None
    if weight.shape[0] != 1:
        raise CheckpointError(f"{path}: gives {weight.shape[0]} numbers a picture, not one.")
    return weight[0], float(bias[0])


def check_head(head: Head, encoder: Encoder, *, any_model: bool = False) -> None:
    """Whether the head may judge vectors of this encoder.

    Args:
        any_model: a model of the right size that is not the head's own is a warning, no error.

    Raises:
        ConfigError: vectors of another size; or another model, or nobody knows.
    """
    embed_dim, model = encoder.config.embed_dim, str(encoder.card.get("name", "a model"))
    owners = " or ".join(head.models) or "an unknown model"
    if len(head.weight) != embed_dim:
        raise ConfigError(
            f"{head.name}: takes vectors of {len(head.weight)} numbers (of {owners}), {model} "
            f"makes {embed_dim}. Type --model with the head's own, or fit a head for {model}."
        )
    if head.fingerprint is not None:
        same = head.fingerprint == encoder.fingerprint
    else:
        same = model in head.models
    if same:
        return
    message = (
        f"{head.name}: was trained on vectors of {owners}; those of {model} have another meaning, "
        "and its scores of them say nothing."
    )
    if not any_model:
        raise ConfigError(
            f"{message} Type --model with the head's own, or --any-model if this file is the same "
            "model under another name."
        )
    log.warning("%s", message)


def aesthetic_scores(head: Head, vectors: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
    """The scores of unit vectors, float64 [n], on the scale of the head's ratings."""
    return vectors.double() @ head.weight.to(vectors.device) + head.bias


def save_head(head: Head, path: str | Path) -> None:
    """Write a head as safetensors, whole or not at all, with what it belongs to."""
    about = {"models": head.models, "fingerprint": head.fingerprint}
    tensors = {
        "weight": head.weight[None].contiguous().cpu(),
        "bias": torch.tensor([head.bias], dtype=torch.float64),
    }
    metadata = {"diptych_head": json.dumps(about)}
    atomic_write(Path(path), lambda part: save_file(tensors, part, metadata=metadata))


def _about(text: str, path: Path) -> dict:
    try:
        about = json.loads(text)
        return {
            "models": tuple(str(name) for name in about["models"]),
            "fingerprint": None if about["fingerprint"] is None else str(about["fingerprint"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: what it says of its model is damaged ({error}).") from None


def fit_head(
    vectors: Float[Tensor, "n e"],
    ratings: Float[Tensor, " n"],
    *,
    encoder: Encoder | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    samples: int = 1000,
) -> FittedHead:
    """A head of one's own: ridge regression of ratings on unit vectors, in closed form.

    w = (X'X + ridge I)^-1 X'y with X and y centred; the ridge is that of 25 from 1e-6 to 1e6 times
    the mean variance whose error is smallest when each picture is left out once (Allen's PRESS,
    Technometrics 16, 1974). The held-out pictures have no part in either.

    Args:
        encoder: whose vectors these are; the head will take no others.
        held_out: the share that it is measured on.
        samples: of the bootstrap around the agreement; 0: no interval.

    Raises:
        DataError: fewer than 20 rated pictures, ratings that are all the same, or not finite.
    """
    x, y = vectors.double().cpu(), torch.as_tensor(ratings, dtype=torch.float64).cpu()
    n = len(y)
    if x.ndim != 2 or len(x) != n or n < 20 or not bool(x.isfinite().all() & y.isfinite().all()):
        raise DataError(
            f"{list(x.shape)} vectors and {n} ratings: a head needs at least 20 pictures with a "
            "finite rating each."
        )
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out must be between 0 and 1, got {held_out}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    num_held = min(max(round(held_out * n), 3), n - 10)
    test, fit = order[:num_held], order[num_held:]
    if float(y[fit].std()) == 0 or float(y[test].std()) == 0:
        raise DataError(f"the {n} ratings are (almost) all the same: there is nothing to learn.")
    weight, bias, ridge = _ridge(x[fit], y[fit])
    head = Head(
        weight=weight,
        bias=bias,
        models=(str(encoder.card.get("name", "a model")),) if encoder else (),
        fingerprint=encoder.fingerprint if encoder else None,
    )
    agreement = correlation(aesthetic_scores(head, x[test]), y[test], samples=samples, seed=seed)
    return FittedHead(head=head, ridge=ridge, num=len(fit), held_out=agreement)


def _ridge(x: Float[Tensor, "n e"], y: Float[Tensor, " n"]) -> tuple[Tensor, float, float]:
    mean, level = x.mean(0), y.mean()
    u, s, vh = torch.linalg.svd(x - mean, full_matrices=False)
    along, left = u.T @ (y - level), y - level
    best: tuple[float, float, Tensor] | None = None
    for ridge in (float((s**2).mean()) * torch.logspace(-6, 6, 25, dtype=torch.float64)).tolist():
        shrink = s**2 / (s**2 + ridge)
        leverage = (u**2) @ shrink + 1 / len(y)
        press = float((((left - u @ (shrink * along)) / (1 - leverage)) ** 2).mean())
        if best is None or press < best[0]:
            best = press, ridge, vh.T @ (s / (s**2 + ridge) * along)
    assert best is not None
    _, ridge, weight = best
    return weight, float(level - weight @ mean), ridge
