"""One step's gradient, whatever number of pieces the batch is cut into: GradCache, made exact.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv
2101.06983. Features of all pieces without gradient; the loss's gradient with respect to them; then
each piece once more, with that gradient.

- Scale and bias get their gradient once, from the loss over the whole batch. (A loss that is
  back-propagated in each piece counts them once a piece: k times too much.)
- What a piece drew at random it draws again: torch's generators are put back, and patch dropout
  depends on the samples' own seeds, so it is the same in any cut and on any rank.
- Batch norms move their running statistics in the first pass only. In training mode they see a
  piece at a time, which no cut can make equal to the whole batch.
- Ranks: see `streamed` for what the gradient of a rank means; `factor` turns the mean that DDP and
  FSDP2 take over ranks into the sum. Only the last piece is communicated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from diptych.model import Features
from diptych.towers.resnet import StatisticsKept

__all__ = ["Piece", "SampleSeeded", "backward", "whole_model"]

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Piece(NamedTuple):
    """A part of a rank's share of the batch: what one forward pass takes."""

    images: Any  # Float[n 3 H W] or Patches
    ids: Tensor  # Int[n s]
    seeds: Tensor  # Int[n]


@runtime_checkable
class SampleSeeded(Protocol):
    """A module whose random choices in training follow the seeds of the samples it is given."""

    sample_seeds: Tensor | None


def backward(
    model: nn.Module,
    pieces: Sequence[Piece],
    loss: Loss,
    *,
    factor: float = 1.0,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Tensor:
    """Add the gradient of `loss` over all pieces to the model's parameters; returns the loss.

    Args:
        model: a `CLIP`, or one wrapped in DDP or FSDP2.
        loss: (image features [n e], text features [n e], log scale, bias) -> the loss, over all
            pieces together.
        factor: on the gradient: the number of ranks, times the scale of fp16 training.
        autocast: the context of the forward passes.
    """
    seeded = [m for m in whole_model(model).modules() if isinstance(m, SampleSeeded)]

    def seed(seeds: Tensor | None) -> None:
        for module in seeded:
            module.sample_seeds = seeds

    def forward(piece: Piece) -> Features:
        seed(piece.seeds)
        with autocast():
            return model(piece.images, piece.ids)

    if len(pieces) == 1:
        made = forward(pieces[0])
        value, grads = _of_features(loss, made)
        _into_towers(made, grads, factor)
        seed(None)
        return value
    states, cached = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state())
            cached.append(forward(piece))
    after = _random_state()
    image, text = (torch.cat([c[side] for c in cached]) for side in (0, 1))
    value, grads = _of_features(loss, cached[0]._replace(image_features=image, text_features=text))
    sizes = [len(piece.ids) for piece in pieces]
    parts = zip(pieces, states, grads[0].split(sizes), grads[1].split(sizes), strict=True)
    with StatisticsKept(whole_model(model)):
        for number, (piece, state, *of_piece) in enumerate(parts, 1):
            last = number == len(pieces)
            _set_random_state(state)
            with _communicating(model, last):
                scalars = grads[2:] if last else []
                _into_towers(forward(piece), [*of_piece, *scalars], factor)
    _set_random_state(after)
    seed(None)
    return value


def whole_model(model: nn.Module) -> Any:
    """The `CLIP` inside a wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _of_features(loss: Loss, made: Features) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for features, scale and bias (if any); towers are not touched."""
    wide = [f if f.dtype == torch.float64 else f.float() for f in made[:2]]
    scalars = [scalar for scalar in made[2:] if scalar is not None]
    leaves = [f.detach().requires_grad_() for f in (*wide, *scalars)]
    value = loss(leaves[0], leaves[1], leaves[2], leaves[3] if len(leaves) == 4 else None)
    return value.detach(), list(torch.autograd.grad(value, leaves))


def _into_towers(made: Features, grads: Sequence[Tensor], factor: float) -> None:
    """Gradients of features and scalars, as many as there are, to the parameters."""
    outputs = [out for out in made if out is not None][: len(grads)]
    pairs = [(out, g) for out, g in zip(outputs, grads, strict=True) if out.requires_grad]
    if pairs:
        grads = [(grad * factor).to(out.dtype) for out, grad in pairs]
        torch.autograd.backward([out for out, _ in pairs], grads)


@contextlib.contextmanager
def _communicating(model: nn.Module, now: bool) -> Iterator[None]:
    """Gradients are summed over ranks in this backward pass, or kept for the one that does."""
    match model:
        case DistributedDataParallel() if not now:
            with model.no_sync():
                yield
        case _:
            for part in model.modules():
                if isinstance(part, FSDPModule):
                    part.set_requires_gradient_sync(now, recurse=False)
            yield


def _random_state() -> tuple[Tensor, Tensor | None]:
    device = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), device


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
