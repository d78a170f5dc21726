"""The optimiser: parameter groups, six kinds behind one function, and its state by name.

- Weight decay is for matrices that multiply (`*.weight` of two dimensions or more), as in
  open_clip: not for gains, biases, positions, class tokens, probes, scale and bias.
- Layer decay is BEiT's and EVA's (arXiv 2106.08254, 2303.15389): of a stack of d blocks, block i
  (from 0) learns at decay^(d - i), what stands before the blocks at decay^(d + 1), what follows
  them at 1.
- Muon is for the matrices of the blocks alone, scaled so that AdamW's rates hold (arXiv
  2502.16982); the rest of the model is AdamW's.
- AdamW is torch's fused one: on a CPU it takes a quarter of the time of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from diptych.errors import CheckpointError, ConfigError
from diptych.train.config import OptimConfig
from diptych.train.optimisers import Lamb, StableAdamW, Together

__all__ = [
    "build_optimiser",
    "load_state_tensors",
    "parameter_groups",
    "set_lr",
    "state_tensors",
]


def parameter_groups(model: nn.Module, cfg: OptimConfig) -> list[dict[str, Any]]:
    """The trained parameters, by equal settings, in the order of `named_parameters`.

    Returns:
        dicts of params, names (of the parameters, as in the state dict), lr_scale (factor on the
        learning rate), weight_decay, and kind ("muon" or "adamw" under Muon, else `cfg.kind`).

    Raises:
        ConfigError: nothing is trained, or a layer decay for a tower that has no `blocks`.
    """
    groups: dict[tuple, dict[str, Any]] = {}
    depths = {"visual": cfg.visual_layer_decay, "text": cfg.text_layer_decay}
    scales = {"visual": cfg.visual_lr, "text": cfg.text_lr}
    for prefix, tower in model.named_children():
        decay = depths.get(prefix)
        factors = _layer_factors(prefix, tower, 1.0 if decay is None else decay)
        scales |= {f"{prefix}.{n}": scales.get(prefix, 1.0) * f for n, f in factors.items()}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        hidden = p.ndim == 2 and ".blocks." in f".{name}"
        kind = "adamw" if cfg.kind == "muon" and not hidden else cfg.kind
        decayed = p.ndim > 1 and name.rpartition(".")[2] == "weight"
        settings = {
            "lr_scale": scales.get(name, 1.0),
            "weight_decay": cfg.weight_decay if decayed else 0.0,
            "kind": kind,
        }
        # One fused call cannot take sharded and whole tensors together.
        key = (*settings.values(), isinstance(p, DTensor))
        group = groups.setdefault(key, {"params": [], "names": [], **settings})
        group["params"].append(p)
        group["names"].append(name)
    if not groups:
        raise ConfigError(
            "optim: no parameter is trained; all are frozen. Shorten it: --set model.freeze=()"
        )
    return list(groups.values())


def _layer_factors(tower_name: str, tower: nn.Module, decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter of a tower, by its name in the tower."""
    names = [name for name, _ in tower.named_parameters()]
    if decay == 1.0:
        return dict.fromkeys(names, 1.0)
    blocks = dict(tower.named_children()).get("blocks")
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(
            f"optim.{tower_name}_layer_decay={decay}: {type(tower).__name__} has no `blocks`. "
            f"Type --set optim.{tower_name}_layer_decay=None"
        )
    depth, factors, seen = len(blocks), {}, False
    for key in names:  # a module's own parameters come first, then its parts in their order
        part, *rest = key.split(".")
        if part == "blocks":
            seen, factors[key] = True, decay ** (depth - int(rest[0]))
        else:
            factors[key] = 1.0 if seen else decay ** (depth + 1)
    return factors


def build_optimiser(model: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of `cfg` over the trained parameters of `model`; rates as `set_lr(cfg.lr)`.

    Raises:
        ConfigError: as `parameter_groups`.
    """
    groups = parameter_groups(model, cfg)
    adam = {"lr": cfg.lr, "betas": cfg.betas, "eps": cfg.eps}
    match cfg.kind:
        case "adamw":
            optimiser = torch.optim.AdamW(groups, fused=True, **adam)
        case "sgd":
            optimiser = torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum)
        case "lamb":
            optimiser = Lamb(groups, **adam)
        case "stableadamw":
            optimiser = StableAdamW(groups, **adam)
        case "muon":
            optimiser = Together(_muon_parts(groups, cfg, adam))
    set_lr(optimiser, cfg.lr)
    return optimiser


def _muon_parts(groups: list[dict], cfg: OptimConfig, adam: dict) -> list[torch.optim.Optimizer]:
    parts: list[torch.optim.Optimizer] = []
    if matrices := [g for g in groups if g["kind"] == "muon"]:
        how = {"momentum": cfg.momentum, "adjust_lr_fn": "match_rms_adamw"}
        parts.append(torch.optim.Muon(matrices, lr=cfg.lr, **how))
    if rest := [g for g in groups if g["kind"] == "adamw"]:
        parts.append(torch.optim.AdamW(rest, fused=True, **adam))
    return parts


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Each group learns at `lr` times its own `lr_scale`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _named(optimiser: torch.optim.Optimizer) -> dict[str, tuple[nn.Parameter, dict[str, Any]]]:
    groups = optimiser.param_groups
    return {n: (p, g) for g in groups for n, p in zip(g["names"], g["params"], strict=True)}


def state_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers: {"visual.proj.weight/exp_avg": tensor, ".../step": 0-dim}.

    The tensors are the optimiser's own, to be copied before the next step. Sharded ones come whole
    and on the CPU; that is a collective call, so every rank makes it.
    """
    tensors = {}
    for name, (p, _) in _named(optimiser).items():
        for part, value in optimiser.state.get(p, {}).items():
            whole = value.full_tensor().cpu() if isinstance(value, DTensor) else value
            tensors[f"{name}/{part}"] = whole
    return tensors


def load_state_tensors(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give back what `state_tensors` gave, bit for bit; every rank has the same whole tensors.

    Raises:
        CheckpointError: a tensor of no parameter, or of another shape than its parameter.
    """
    named = _named(optimiser)
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        if name not in named:
            raise CheckpointError(
                f"optimiser: its state has {key!r}, but no parameter {name!r} is trained here. "
                "Resume with the config that the run was started with"
            )
        p, group = named[name]
        if value.ndim and value.shape != p.shape:
            raise CheckpointError(
                f"optimiser: {key!r} has the shape {tuple(value.shape)}, the parameter "
                f"{tuple(p.shape)}. Resume with the config that the run was started with"
            )
        # Fused AdamW counts its steps where the parameter is, the others on the CPU.
        where = p.device if value.ndim or p.ndim == 0 or group.get("fused") else "cpu"
        value = value.to(where, copy=True)
        if isinstance(p, DTensor) and value.ndim:
            value = distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
        state.setdefault(p, {})[part] = value
    optimiser.state.clear()
    optimiser.state.update(state)
