"""Low-rank adapters on linear layers, folded back when done; means of weights.

LoRA: Hu et al., arXiv 2106.09685. WiSE-FT: Wortsman et al., arXiv 2109.01903; soups: 2203.05482.
"""

from __future__ import annotations

from torch import Tensor, nn

from diptych.errors import CheckpointError, ConfigError


class LoraLinear(nn.Module):
    """base(x) + alpha / rank * up(down(x)); `base` is frozen and `up` starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.down = nn.Linear(base.in_features, rank, bias=False).to(base.weight)
        self.up = nn.Linear(rank, base.out_features, bias=False).to(base.weight)
        nn.init.zeros_(self.up.weight)  # torch's own start of `down` is that of the paper's code

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))


def add_lora(model: nn.Module, *, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Adapters on the linear layers named so; of all modules of `model` only they are trained."""
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not (chosen := [name for name in linear if name.rpartition(".")[2] in targets]):
        raise ConfigError(f"lora: no linear layer is named {targets}: targets=('q_proj', 'v_proj')")
    for child in model.children():  # its own scale and bias stay trained
        child.requires_grad_(False)
    for name in chosen:
        model.set_submodule(name, LoraLinear(linear[name], rank, alpha))


def merged(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of `model` with the adapters folded into their layers: that of the plain model."""
    plain = dict(tensors)
    for name, m in model.named_modules():
        if isinstance(m, LoraLinear):
            up, down = (plain.pop(f"{name}.{side}.weight") for side in ("up", "down"))
            plain[f"{name}.base.weight"] = plain[f"{name}.base.weight"] + m.scale * (up @ down)
    return {key.replace(".base.", "."): tensor for key, tensor in plain.items()}


def interpolate(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict:
    """(1 - alpha) * start + alpha * end; a soup takes in its k-th model with alpha = 1 / k."""
    if odd := start.keys() ^ end.keys():
        raise CheckpointError(f"interpolate: only one has {min(odd)!r}. Give weights of one model")
    return {k: start[k].lerp(v, alpha) if v.is_floating_point() else v for k, v in end.items()}
