"""The contrastive losses tile by tile: memory linear in the batch, exact over any processes.

The meaning is that of `diptych.model.loss`. b rows on this rank, n = world x b pairs, k hard
negatives on this rank, m = n + world x k columns, e embed_dim.

- **What comes back.** The value is the loss of the global batch, the same on all ranks. Gradients
  of features are exactly those of that loss. Gradients of `scale` and `bias` are this rank's share:
  the sum over ranks is the gradient. So the gradients of parameters are to be summed over ranks;
  DDP averages them: multiply by the world size.
- Every rank must call with the same number of rows, and all with or all without gradients.
- Rows of features are unit vectors. This is not checked; the result is still right without it.
- Each rank holds its images and the texts of all. A first pass over tiles of logits finds the
  log-sum-exp of rows (complete) and of columns (combined over ranks: n numbers); a second makes
  the tiles again and with them the gradients: 4 products of n x n x e in all, the fewest possible
  without keeping n x n. The gradients are made in the forward; the backward only scales them.
- float64 stays float64, everything else is computed in float32. `precision="bf16"` rounds the
  factors of the products to bfloat16; sums stay float32. Sums of sums are float64, which MPS lacks.
- No gradient of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError, TrainError
from diptych.train.streamed_tiles import (
    Derivative,
    Operands,
    Positives,
    Precision,
    Ranks,
    Softmax,
    derivatives,
    fused,
    gradients,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["check_negatives", "distillation_loss", "sigmoid_loss", "softmax_loss"]


def check_negatives(mode: str, world: int) -> None:
    """Refuse, for more than one rank, negatives whose gradients stay on their own rank.

    Raises: ConfigError.
    """
    if mode not in ("global", "local_no_grad"):
        raise ConfigError(f"negatives={mode!r} is not known. Type: negatives='global'")
    if mode == "local_no_grad" and world > 1:
        raise ConfigError(
            f"negatives='local_no_grad' on {world} ranks trains towards something else: features "
            "of other ranks count as negatives, their gradients are dropped, and what is left of "
            "the towers' gradient was measured on 2 ranks at 0.53 of its length and at cosine "
            "0.951 to the true one. Type: negatives='global'"
        )


def softmax_loss(
    image: Float[Tensor, "b e"],
    text: Float[Tensor, "b e"],
    scale: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " b"] | None = None,
    negatives: Float[Tensor, "k e"] | None = None,
    precision: Precision = "fp32",
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """`model.loss.softmax_loss` of the batches of all ranks together.

    Args:
        image, text: this rank's rows. scale: exp(logit_scale).
        groups: equal numbers on any ranks are positives of each other.
        negatives: hard-negative texts of this rank, the same number on each; columns for all.
        precision: of the factors in products.
        process_group: the ranks that share the batch; None: all, or one process alone.

    Raises: TrainError.
    """
    job = Job(_softmax, precision, Ranks(process_group), groups)
    return _run(job, image, text, negatives, scale, None)


def sigmoid_loss(
    image: Float[Tensor, "b e"],
    text: Float[Tensor, "b e"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " b"] | None = None,
    negatives: Float[Tensor, "k e"] | None = None,
    precision: Precision = "fp32",
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """`model.loss.sigmoid_loss` of the batches of all ranks together; as `softmax_loss` above."""
    job = Job(_sigmoid, precision, Ranks(process_group), groups)
    return _run(job, image, text, negatives, scale, bias)


def distillation_loss(
    image: Float[Tensor, "b e"],
    text: Float[Tensor, "b e"],
    scale: Float[Tensor, ""],
    teacher_image: Float[Tensor, "b t"],
    teacher_text: Float[Tensor, "b t"],
    teacher_scale: Float[Tensor, ""],
    *,
    precision: Precision = "fp32",
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """`model.loss.distillation_loss` of the batches of all ranks; the teacher gets no gradient."""
    teacher = (teacher_image.detach(), teacher_text.detach(), teacher_scale.detach())
    job = Job(_distillation, precision, Ranks(process_group), None, teacher)
    return _run(job, image, text, None, scale, None)


@dataclass(frozen=True, slots=True)
class Job:
    """What stands beside the tensors that get a gradient."""

    loss: Callable[..., Result]
    precision: Precision
    ranks: Ranks
    groups: Tensor | None
    teacher: tuple[Tensor, Tensor, Tensor] | None = None


@dataclass(slots=True)
class Result:
    """A loss, and its gradients if they were asked for."""

    value: Tensor
    rows: Tensor | None = None  # b e
    columns: Tensor | None = None  # m e, of this rank's rows alone
    scale: Tensor | None = None
    bias: Tensor | None = None


def _run(job: Job, image, text, negatives, scale, bias) -> Tensor:
    _check(job, image, text, negatives)
    inputs = (image, text, negatives, scale, bias)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _Streamed.apply(job, wanted, *inputs)


class _Streamed(torch.autograd.Function):
    """Gradients are made in the forward and kept, so that nothing is computed twice."""

    @staticmethod
    def forward(ctx, job, wanted, image, text, negatives, scale, bias):
        inputs = (image, text, negatives, scale, bias)
        with torch.autocast(image.device.type, enabled=False):
            value, gradients = _global(job, wanted, *inputs)
        if wanted:
            gradients = [
                None if g is None or x is None else g.to(x.dtype)
                for g, x in zip(gradients, inputs, strict=True)
            ]
            ctx.save_for_backward(*gradients)
        return value.to(scale.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_outputs):  # pyrefly: ignore[bad-override] (ctx is any object)
        scaled = (None if g is None else g * grad_outputs[0].to(g.dtype) for g in ctx.saved_tensors)
        return None, None, *scaled


def _global(job: Job, wanted: bool, image, text, negatives, scale, bias):
    """The loss of all ranks, and what each of the five inputs gets of its gradient."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    rows, texts = image.to(dtype), job.ranks.gather(text.to(dtype))
    n = len(texts)
    columns = (
        texts if negatives is None else torch.cat([texts, job.ranks.gather(negatives.to(dtype))])
    )
    operands = Operands(
        rows, columns, scale.to(dtype), first=job.ranks.rank * len(rows), precision=job.precision
    )
    out = job.loss(job, operands, None if bias is None else bias.to(dtype), wanted)
    if not wanted:
        return out.value, ()
    d_text = d_negatives = None
    if out.columns is not None:
        d_text = job.ranks.scatter(out.columns[:n])
        d_negatives = None if negatives is None else job.ranks.scatter(out.columns[n:])
    return out.value, (out.rows, d_text, d_negatives, out.scale, out.bias)


# --- the three losses -------------------------------------------------------------------------


def _softmax(job: Job, operands: Operands, _bias: None, wanted: bool) -> Result:
    positives = Positives(job.ranks, operands, job.groups, shared=True)
    softmax, n = Softmax(job.ranks, operands, positives.n), positives.n
    value = softmax.value(softmax.row_lse.sum(dtype=torch.float64) - 2 * positives.logits())
    if not wanted:
        return Result(value)

    if fused(operands):
        from diptych.train import streamed_triton

        tiles = streamed_triton.derivatives(operands, softmax, positives)
    else:

        def derivative(tile: Tensor, r: slice, c: slice) -> Tensor:
            return positives.subtract_(softmax.probabilities_(tile, r, c), r, c, times=2)

        tiles = derivatives(operands, derivative)
    return Result(value, *gradients(operands, tiles, 1 / (2 * n)))


def _sigmoid(job: Job, operands: Operands, bias: Tensor, wanted: bool) -> Result:
    positives = Positives(job.ranks, operands, job.groups, shared=False)
    n = positives.n
    value, d_bias = torch.zeros(2, dtype=torch.float64, device=bias.device)

    def derivative(tile: Tensor, r: slice, c: slice) -> Tensor:
        # -log sigmoid(-x) everywhere, and x less for the positives.
        value.add_(F.softplus(tile.add_(bias), threshold=40).sum())
        if wanted:
            positives.subtract_(tile.sigmoid_(), r, c)
            d_bias.add_(tile.sum())
        return tile

    derived = _walk(operands, derivative, 1 / n, wanted)
    value = job.ranks.sum((value - positives.logits() - bias * positives.number) / n)
    return Result(value, *derived, bias=d_bias / n)


def _distillation(job: Job, operands: Operands, _bias: None, wanted: bool) -> Result:
    assert job.teacher is not None
    image, text, scale = (x.to(operands.rows.dtype) for x in job.teacher)
    taught = Operands(
        image, job.ranks.gather(text), scale, first=operands.first, precision=job.precision
    )
    n = job.ranks.world * len(image)
    softmax, teacher = Softmax(job.ranks, operands, n), Softmax(job.ranks, taught, n)
    cross = torch.zeros((), dtype=torch.float64, device=image.device)

    def derivative(tile: Tensor, r: slice, c: slice) -> Tensor:
        target = teacher.probabilities_(taught.row(r)[1](c), r, c)
        cross.add_((target * tile).sum())
        return softmax.probabilities_(tile, r, c).sub_(target)

    derived = _walk(operands, derivative, 1 / (2 * n), wanted)
    return Result(softmax.value(softmax.row_lse.sum(dtype=torch.float64) - cross), *derived)


def _walk(operands: Operands, derivative: Derivative, factor: float, wanted: bool):
    """The gradients if they are wanted; otherwise only shows each tile to `derivative`."""
    tiles = derivatives(operands, derivative)
    if wanted:
        return gradients(operands, tiles, factor)
    for _ in tiles:
        pass
    return ()


def _check(job: Job, image: Tensor, text: Tensor, negatives: Tensor | None) -> None:
    """Raises TrainError for what would hang, or give another loss than was asked for."""
    if job.precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={job.precision!r} is not known. Type: precision='fp32'")
    if image.shape != text.shape:
        raise TrainError(
            f"the loss got image features {tuple(image.shape)} and text features "
            f"{tuple(text.shape)}. Give one text per image; more texts: negatives="
        )
    tensors = (image, text, negatives, job.groups, *(job.teacher or ()))
    places = {str(x.device) for x in tensors if x is not None and x.ndim}
    if len(places) > 1:
        raise TrainError(f"the loss got tensors on {sorted(places)}. Move all to {image.device}")
    if job.ranks.world > 1:
        k = -1 if negatives is None else len(negatives)
        mine = torch.tensor([len(image), k, job.groups is not None], device=image.device)
        counts = job.ranks.gather(mine[None]).tolist()
        if any(row != counts[0] for row in counts):
            raise TrainError(
                "the ranks give the loss batches of different form, (rows, hard negatives or -1, "
                f"with groups) = {counts}. Give each rank the same: drop_last=True in the loader"
            )
