"""Whether a run starts right: the first loss beside chance, the gradient of pieces, the scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["gradient_error", "gradient_warnings", "initial_loss"]

LOSS_OFF = 0.05  # share of ln N by which a random model's first loss may be off
# largest relative error of the gradient of pieces; "auto" may be bf16
ERRORS = {"fp32": 1e-4, "auto": 5e-2, "bf16": 5e-2, "fp16": 5e-2}


def initial_loss(
    loss: float, *, pairs: int, batch_size: int, random: bool, softmax: bool, spread: float = 0.0
) -> tuple[dict[str, Any], list[str]]:
    """The loss before the first step beside chance, which is ln N for softmax.

    Args:
        pairs: that the loss was measured over. batch_size: N of the run.
        random: the weights are random, so the loss should be near chance.
        softmax: sigmoid has no such figure: its loss depends on the bias.
        spread: half the variance of a random model's logits at most, exp(logit_scale)^2 / (2 D) in
            D dimensions: the mean of exp is above exp of the mean by so much. Measured: 0.12 to
            0.13 of 0.20 for a ViT-B/32, 0.02 for an RN50; much in a space of few dimensions.

    Returns:
        the figures, and warnings.
    """
    found: dict[str, Any] = {"measured": loss, "over pairs": pairs}
    if not math.isfinite(loss):
        return found, ["the first loss is not a number: look at the pixels and the weights"]
    if not softmax:
        return found, []
    found["ln of that"] = chance = math.log(pairs)
    if pairs != batch_size:
        found[f"ln {batch_size}, of the run"] = math.log(batch_size)
    if random and not (1 - LOSS_OFF) * chance <= loss <= (1 + LOSS_OFF) * chance + spread:
        told = (
            f"the first loss is {loss:.4f}; random weights should give ln {pairs} = {chance:.4f} "
            f"within 5 % and {spread:.2f} above: the batch, its negatives or the logit scale are "
            "not what they should be"
        )
        return found, [told]
    if not random and loss > chance * (1 + LOSS_OFF):
        told = (
            f"the first loss, {loss:.4f}, is worse than chance, ln {pairs} = {chance:.4f}: do the "
            "pixels and tokens belong to these weights, and the texts to their images?"
        )
        return found, [told]
    return found, []


def gradient_error(
    model: nn.Module, gradients: Callable[[int | None], None], *, piece: int
) -> dict[str, Any]:
    """How far the gradient of pieces is from that of the batch as a whole.

    Leaves the model without gradients.

    Args:
        gradients: leaves the gradient of one small batch in `.grad`, gone through in pieces of so
            many pairs; None: all at once.

    Returns:
        "relative error" |g - g'| / |g'| over all parameters; of single ones, |g - g'| / (|g'| +
        0.001 of all), the "worst" and its name, and that of "logit_scale" (NaN if it is frozen).
    """
    found = []
    for size in (None, piece):
        model.zero_grad(set_to_none=True)
        gradients(size)
        named = model.named_parameters()
        found.append({k: p.grad.cpu().double() for k, p in named if p.grad is not None})
    model.zero_grad(set_to_none=True)
    whole, cut = found
    apart = {k: float((cut[k] - g).norm()) for k, g in whole.items()}
    sizes = {k: float(g.norm()) for k, g in whole.items()}
    total = math.hypot(*sizes.values())
    # a gradient that is zero but for rounding (of a key's bias) has nothing to be off from
    each = {k: apart[k] / (sizes[k] + 1e-3 * total) if total else 0.0 for k in whole}
    worst = max(each, key=each.__getitem__)
    return {
        "pieces of": piece,
        "relative error": math.hypot(*apart.values()) / total if total else math.nan,
        "worst": each[worst],
        "worst parameter": worst,
        "logit_scale": each.get("logit_scale", math.nan),
    }


def gradient_warnings(found: Mapping[str, Any], *, precision: str) -> list[str]:
    """What `gradient_error` found that is more than rounding in `TrainConfig.precision`."""
    error, most = found["relative error"], ERRORS[precision]
    if error <= most:
        return []
    return [
        f"the gradient of pieces is off by {error:.1e} from that of the whole batch (at most "
        f"{most:.0e} in {precision}), most in {found['worst parameter']}: batch norm sees pieces, "
        "or a part of the model draws random numbers of its own"
    ]
