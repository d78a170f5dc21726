"""The linear probe under its two protocols: that of CLIP's paper and the example of its README.

- `paper`: features before the projection; lambda by a search over 97 values, 8 a decade, from 1e-6
  to 1e6, on a validation split; fitted again to training and validation samples; tested once
  (arXiv 2103.00020, appendix A.3, which calls them 96).
- `readme`: features after the projection, C = 0.316, no search. Neither has unit rows.
- Few shots, as in CoOp: `eval.fewshot`. The solver: `eval.logistic`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diptych.engine.encoder import Encoder
from diptych.engine.stream import decode, num_threads, sources
from diptych.errors import ConfigError, DataError
from diptych.eval.logistic import Probe
from diptych.eval.uncertainty import Interval, wilson
from diptych.preprocess import collate

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "README_C",
    "Extracted",
    "Probe",
    "Probed",
    "Split",
    "Sweep",
    "Tried",
    "features",
    "paper",
    "readme",
    "sweep",
]

README_C = 0.316
_EXPONENTS = (6, 4, 2, 0, -2, -4, -6)  # of the first seven values of lambda


# --- features -------------------------------------------------------------------------------------


class Extracted(NamedTuple):
    """Features float32 [n, d] on the host, and where in the tower they were taken."""

    vectors: Float[Tensor, "n d"]
    taken: str


def features(encoder: Encoder, images: Any, *, projected: bool = False) -> Extracted:
    """What the image tower makes of images, before its projection or after it; not unit rows.

    In the model's float32. Towers whose last step is no projection of its own (CLIP's ResNets,
    whose attention pool projects; ViTs with proj="none") give the same for both, and say so.

    Args:
        images: as for `Encoder.encode_image`.
        projected: True: the tower's output, as `model.encode_image` of openai/CLIP returns it.

    Raises:
        ImageError: an image that cannot be read; names it.
        DataError: no images.
    """
    tower: Any = encoder.model.visual
    found, own = [], False
    with torch.no_grad():
        for batch in _prepared(encoder, images):
            batch = batch.to(encoder.device) if isinstance(batch, Tensor) else batch
            hidden = tower.hidden(batch)
            pooled = tower.pool(tower.final_norm(hidden.tokens[-1]), hidden)
            out = tower.project(pooled)
            own = out is not pooled
            found.append((out if projected else pooled).float().cpu())
    if not found:
        raise DataError("features: there are no images")
    vectors = torch.cat(found)
    where = f"{'after' if projected else 'before'} the projection"
    if not own:
        where = "at the end of the tower, which has no projection apart"
    return Extracted(vectors, f"{where}, {vectors.shape[1]} numbers")


def _prepared(encoder: Encoder, images: Any) -> Any:
    """Batches of pixels, decoded in threads beside the model."""
    items, pixels = sources(images), []
    window = 2 * encoder.batch_size
    for done in decode(items, encoder.preprocess, threads=num_threads(), window=window):
        if done.error is not None:
            raise done.error
        pixels.append(done.pixels)
        if len(pixels) == encoder.batch_size:
            yield collate(pixels)
            pixels = []
    if pixels:
        yield collate(pixels)


# --- the search of the paper ----------------------------------------------------------------------


class Split(NamedTuple):
    """Features [n, d] and labels [n] of some samples, as `Probe.fit` takes them."""

    features: Any
    labels: Any


class Tried(NamedTuple):
    """One value of a search: log10 of lambda, accuracy on the validation split, did it converge."""

    log10_lambda: float
    accuracy: float
    converged: bool


class Sweep(NamedTuple):
    """What a search found, and every value that it tried, in that order."""

    C: float
    tried: tuple[Tried, ...]


def sweep(
    train: Split,
    validation: Split,
    *,
    per_decade: int = 8,
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> Sweep:
    """The C = 1 / lambda that does best on the validation split, after 11 to 15 fits.

    Seven values of lambda from 1e-6 to 1e6; then the best and its neighbours at half the distance,
    until there are `per_decade` values a decade. A tie goes to the larger lambda. Each fit starts
    where the nearest one ended, and ends at its own minimum.

    Args:
        per_decade: a power of two; the step between neighbours.

    Raises:
        ConfigError: per_decade below 1. DataError: as `Probe.fit` and `Probe.score`.
    """
    if per_decade < 1:
        raise ConfigError(f"per_decade={per_decade}: at least 1; the paper has 8")
    fitted: dict[float, Probe] = {}
    tried: dict[float, Tried] = {}

    def accuracy(exponent: float) -> float:
        if exponent not in tried:
            near = min(fitted, key=lambda other: abs(other - exponent), default=None)
            probe = Probe(10**-exponent, max_iter=max_iter, tol=tol)
            probe.fit(*train, start=None if near is None else fitted[near])
            fitted[exponent] = probe
            score = probe.score(*validation)
            tried[exponent] = Tried(exponent, score, probe.converged_)
        return tried[exponent].accuracy

    best, step = float(max(_EXPONENTS, key=accuracy)), 2.0
    while step > 1 / per_decade:
        step /= 2
        beside = (best + step, best, best - step)  # the first of equals counts
        best = max((e for e in beside if abs(e) <= _EXPONENTS[0]), key=accuracy)
    return Sweep(10**-best, tuple(tried.values()))


class Probed(NamedTuple):
    """A probe and what it reached on the test split.

    Attributes:
        accuracy: share in [0, 1]; ties are wrong. interval: Wilson's, 95 %.
        protocol: in words, for a report.
        sweep: None where C was given.
    """

    probe: Probe
    accuracy: float
    interval: Interval
    protocol: str
    sweep: Sweep | None


def paper(
    train: Split, validation: Split, test: Split, *, max_iter: int = 1000, tol: float = 1e-6
) -> Probed:
    """The protocol of CLIP's paper; the features are those of `features(encoder, images)`.

    Raises:
        DataError: as `Probe.fit` and `Probe.score`; splits whose features differ in width.
    """
    found = sweep(train, validation, max_iter=max_iter, tol=tol)
    both = Split(*(torch.cat([_host(a), _host(b)]) for a, b in zip(train, validation, strict=True)))
    probe = Probe(found.C, max_iter=max_iter, tol=tol).fit(*both)
    unsure = sum(not one.converged for one in found.tried)
    how = (
        f"linear probe of the paper: C = {found.C:.4g} by {len(found.tried)} fits on "
        f"{len(validation.labels):,} validation samples, fitted to {len(both.labels):,}"
    )
    if unsure or not probe.converged_:
        total = len(found.tried) + 1
        how += f"; {unsure + (not probe.converged_)} of {total} fits ended at {max_iter} iterations"
    return _tested(probe, test, how, found)


def readme(train: Split, test: Split, *, max_iter: int = 1000, tol: float = 1e-6) -> Probed:
    """The example of openai/CLIP's README, for `features(encoder, images, projected=True)`."""
    probe = Probe(README_C, max_iter=max_iter, tol=tol).fit(*train)
    how = f"linear probe of the README: C = {README_C}, fitted to {len(train.labels):,} samples"
    return _tested(probe, test, how, None)


def _tested(probe: Probe, test: Split, protocol: str, found: Sweep | None) -> Probed:
    accuracy, n = probe.score(*test), len(test.labels)
    interval = Interval(*wilson(accuracy, n), f"Wilson 95 %, n = {n:,}")
    return Probed(probe, accuracy, interval, protocol, found)


def _host(part: Any) -> Tensor:
    return torch.as_tensor(part).detach().cpu()
