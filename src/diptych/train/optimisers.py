"""Optimisers that torch does not have: LAMB, StableAdamW, and several as one.

- Both are AdamW with another step length per tensor; `_direction` is what they share.
- LAMB: You et al., arXiv 1904.00962, with bias correction; tensors without weight decay are not
  adapted, as in NVIDIA's and timm's. The gradient is not clipped here: the loop does it.
- StableAdamW: Wortsman et al., arXiv 2304.13013, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Lamb", "StableAdamW", "Together"]

_Step = tuple[Tensor, Tensor, dict[str, Any], Tensor, Tensor]


def _direction(optimiser: Optimizer) -> Iterator[_Step]:
    """(parameter, gradient, group, Adam's update, debiased second moment) where there is one."""
    for group in optimiser.param_groups:
        (beta1, beta2), eps = group["betas"], group["eps"]
        for p in group["params"]:
            if (grad := p.grad) is None:
                continue
            state = optimiser.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            step = float(state["step"])
            state["exp_avg"].lerp_(grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            second = state["exp_avg_sq"] / (1 - beta2**step)
            update = state["exp_avg"] / (1 - beta1**step) / (second.sqrt() + eps)
            yield p, grad, group, update, second


class Lamb(Optimizer):
    """The update has the length of the tensor times the learning rate, whatever the gradient's."""

    def __init__(self, params, *, lr: float, betas: tuple[float, float], eps: float):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyrefly: ignore
        assert closure is None
        for p, _, group, update, _ in _direction(self):
            if decay := group["weight_decay"]:
                update.add_(p, alpha=decay)
                ratio = p.norm() / update.norm()
                # Either may be 0: the ratio is then 0, infinite or not a number.
                update *= torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0)
            p.add_(update, alpha=-group["lr"])


class StableAdamW(Optimizer):
    """AdamW; the learning rate of a tensor falls where its second moment lags behind."""

    def __init__(self, params, *, lr: float, betas: tuple[float, float], eps: float):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyrefly: ignore
        assert closure is None
        for p, grad, group, update, second in _direction(self):
            rms = (grad.square() / second.clamp(min=group["eps"] ** 2)).mean().sqrt()
            lr = group["lr"] / rms.clamp(min=1.0)
            p.sub_(lr * update.add_(p, alpha=group["weight_decay"]))


class Together(Optimizer):
    """Several optimisers as one: their groups and their state, in their order."""

    def __init__(self, parts: list[Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.state, part.param_groups = self.state, self.param_groups[start:end]
            start = end

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # which makes new dicts
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyrefly: ignore
        assert closure is None
        for part in self.parts:
            part.step()
