"""What a person sees before a run: sizes, work, memory, time, cost, and whether its start is right.

- Memory is an estimate: weights, gradients and optimiser by counting; activations by measuring two
  small batches and scaling the difference linearly. Kernels' work space and what an allocator holds
  back are not in it.
- Cost and energy are arithmetic on factors that are named beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config import CLIPConfig
from diptych.model import CLIP
from diptych.train.checks import gradient_error, gradient_warnings, initial_loss
from diptych.train.config import TrainConfig, settings_of
from diptych.train.flops import StepFlops
from diptych.train.sinks import duration
from diptych.zoo.facts import Counts

__all__ = [
    "Facts",
    "activation_bytes",
    "cost",
    "differences",
    "dry_run",
    "memory",
    "parameters",
    "plan_text",
]

# numbers for each trained parameter; of Muon's matrices one is not used
_OPTIMISER = {"adamw": 2, "lamb": 2, "stableadamw": 2, "muon": 2, "sgd": 1}
_WATTS = {"cuda": (700.0, "a GPU at the 700 W of an H100 SXM"), "cpu": (100.0, "a CPU at 100 W")}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a run before it starts; what is None is left out of the plan.

    model: as it is trained, on its device, not wrapped. clip: its config.
    images, ids: a batch of at least two pairs as the towers take them, of the first stage.
    steps: of the run. world: ranks. autocast: a context for each forward pass.
    flops: of a step over all ranks. peak: FLOP/s of one device, and where the figure is from.
    loss: of the first batch, over `loss_pairs` pairs, before any step.
    gradients: leaves the gradient of one small batch in `.grad`, gone through in pieces of so many
        pairs; None: all at once.
    seconds_per_step: measured on real data. waiting: the share of it that was spent on data.
    cut: texts of the batch that were longer than the context, of how many.
    data: facts of the data (samples, dropped by reason, duplicates, epochs ...).
    """

    model: CLIP
    clip: CLIPConfig
    images: Any
    ids: Tensor
    steps: int
    world: int = 1
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    flops: StepFlops | None = None
    peak: tuple[float, str] | None = None
    loss: float | None = None
    loss_pairs: int | None = None
    gradients: Callable[[int | None], None] | None = None
    seconds_per_step: float | None = None
    waiting: float | None = None
    cut: tuple[int, int] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def dry_run(
    config: TrainConfig, facts: Facts, *, price: float | None = None, watts: float | None = None
) -> dict[str, Any]:
    """The plan of a run, as names and JSON-ready values; `plan_text` makes it readable.

    Args:
        price: of a GPU-hour, in any currency. watts: of a GPU and its share of the machine.
    """
    plan: dict[str, Any] = {
        "config": differences(config),
        "parameters": parameters(facts.model),
        "batch": _batch(config, facts),
        "memory": memory(config, facts),
    }
    warnings: list[str] = []
    if facts.flops is not None:
        plan["work"] = _work(facts, facts.flops)
    if facts.seconds_per_step is not None:
        plan["time"] = _time_of(config, facts, facts.seconds_per_step, price, watts)
    if facts.loss is not None:
        plan["first loss"], told = initial_loss(
            facts.loss,
            pairs=facts.loss_pairs or config.batch_size,
            batch_size=config.batch_size,
            random=config.model.start is None,
            softmax=facts.clip.loss == "softmax",
            spread=float(facts.model.logit_scale.detach().exp()) ** 2 / (2 * facts.clip.embed_dim),
        )
        warnings += told
    if facts.gradients is not None:
        found = gradient_error(facts.model, facts.gradients, piece=max(1, len(facts.ids) // 4))
        plan["gradient"] = found
        warnings += gradient_warnings(found, precision=config.precision)
    if facts.data:
        plan["data"] = dict(facts.data)
    return plan | {"warnings": warnings}


def differences(config: TrainConfig) -> dict[str, Any]:
    """The settings that are not the defaults, by the keys that `--set` takes."""
    length = {"steps": config.steps, "epochs": config.epochs}
    plain = dict(settings_of(TrainConfig(**length)))
    return {k: v for k, v in settings_of(config) if k in length or plain.get(k, _NONE) != v}


_NONE = object()


def parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Trained and frozen parameters of each tower, and of what joins them ("scalars")."""
    found: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0] if "." in name else "scalars"
        counts = found.setdefault(part, {"trained": 0, "frozen": 0})
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return found


def _at_once(config: TrainConfig, world: int) -> int:
    """Pairs that go through the towers together on a rank."""
    mine = config.batch_size // world
    return min(config.micro_batch or mine, mine)


def _batch(config: TrainConfig, facts: Facts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pairs": config.batch_size,
        "ranks": facts.world,
        "pairs at once": _at_once(config, facts.world),
        "an image": " x ".join(map(str, _pixels(facts.images).shape[1:])),
        "a text": f"{facts.ids.shape[1]} tokens",
    }
    if facts.cut is not None:
        found["texts cut"] = "{} of {}".format(*facts.cut)
    return found


# --- memory ---


def memory(config: TrainConfig, facts: Facts) -> dict[str, int]:
    """Bytes on one rank: an estimate, see above."""
    trained = sum(p.numel() for p in facts.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in facts.model.parameters())
    shared = facts.world if config.parallel == "fsdp" else 1
    mine = config.batch_size // facts.world
    fixed, each = activation_bytes(facts.model, facts.images, facts.ids, autocast=facts.autocast)
    pixels = _pixels(facts.images)
    found = {
        "weights": 4 * every // shared,
        "gradients": 4 * trained // shared,
        "optimiser": 4 * _OPTIMISER[config.optim.kind] * trained // shared,
        "mean of the weights": 4 * trained // shared if config.ema is not None else 0,
        "buckets of DDP": 4 * trained if facts.world > 1 and shared == 1 else 0,
        "pixels and ids": mine * (pixels[0].nbytes + facts.ids[0].nbytes),
        "activations": round(fixed + each * _at_once(config, facts.world)),
        # both sides of the global batch and their gradients
        "features": 4 * 4 * config.batch_size * facts.clip.embed_dim,
    }
    found = {what: size for what, size in found.items() if size}
    return found | {"in all": sum(found.values())}


def activation_bytes(
    model: CLIP,
    images: Any,
    ids: Tensor,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> tuple[float, float]:
    """What a forward pass leaves for the backward one: (bytes at any size, bytes for each pair).

    Measured over half of the batch and all of it, without the weights and the batch.
    """
    half, n = len(ids) // 2, len(ids)
    sizes = [_alive(model, images, ids, rows, autocast) for rows in (half, n)]
    each = (sizes[1] - sizes[0]) / (n - half)
    return max(0.0, sizes[0] - each * half), each


def _alive(model: CLIP, images: Any, ids: Tensor, rows: int, autocast: Callable) -> int:
    batch = (
        images[:rows] if isinstance(images, Tensor) else type(images)(*(x[:rows] for x in images))
    )
    state = torch.random.get_rng_state()
    counts = Counts()
    with torch.enable_grad(), counts, autocast():
        features = model(batch, ids[:rows])
        alive = counts.bytes
    torch.random.set_rng_state(state)
    del features
    return alive


def _pixels(images: Any) -> Tensor:
    return images if isinstance(images, Tensor) else images[0]


# --- work, time, cost ---


def _work(facts: Facts, flops: StepFlops) -> dict[str, Any]:
    found: dict[str, Any] = {
        "FLOPs a step": flops.model,
        "computed a step": flops.computed,
        "FLOPs of the run": flops.model * facts.steps,
    }
    if facts.peak is not None:
        found["peak"] = facts.peak[0]
        found["peak is"] = facts.peak[1]
        found["shortest step"] = flops.computed / facts.peak[0] / facts.world
    return found


def _time_of(
    config: TrainConfig, facts: Facts, seconds: float, price: float | None, watts: float | None
) -> dict[str, Any]:
    device = next(facts.model.parameters()).device.type
    factors: dict[str, Any] = {"price": price, "watts": watts, "device": device}
    found = cost(seconds, facts.steps, world=facts.world, **factors)
    found["pairs/s"] = config.batch_size / seconds
    if facts.waiting is not None:
        found["waiting for data"] = facts.waiting
    if facts.flops is not None and facts.peak is not None:
        found["utilisation"] = facts.flops.model / seconds / facts.world / facts.peak[0]
    return found


def cost(
    seconds_per_step: float,
    steps: int,
    *,
    world: int = 1,
    price: float | None = None,
    watts: float | None = None,
    device: str = "cuda",
) -> dict[str, Any]:
    """Time, device-hours, kWh and, with a price, money; "assumed" names the factors.

    price: of a device-hour. watts: of one device.
    """
    seconds = seconds_per_step * steps
    hours = seconds / 3600 * world
    assumed = [f"every step as long as those measured, {world} at work all the time"]
    if watts is None:
        watts, said = _WATTS.get(device, _WATTS["cpu"])
        assumed.append(said)
    else:
        assumed.append(f"{watts:g} W each")
    found = {
        "seconds a step": seconds_per_step,
        "seconds": seconds,
        "device-hours": hours,
        "kWh": hours * watts / 1000,
    }
    if price is not None:
        found["cost"] = hours * price
        assumed.append(f"{price:g} an hour each")
    return found | {"assumed": "; ".join(assumed)}


# --- for people ---


def plan_text(plan: Mapping[str, Any], *, config: TrainConfig | None = None) -> str:
    """The plan as lines of text.

    config: all of its settings are shown; None: those that are not the defaults.
    """
    settings = dict(settings_of(config)) if config is not None else plan["config"]
    parts = [_section("config", {k: repr(v) for k, v in settings.items()})]
    counts = {
        part: f"{c['trained']:,} trained, {c['frozen']:,} frozen"
        for part, c in plan["parameters"].items()
    }
    parts.append(_section("parameters", counts))
    parts.append(_section("batch", plan["batch"]))
    sizes = {what: _bytes(size) for what, size in plan["memory"].items()}
    parts.append(_section("memory of a rank (an estimate)", sizes))
    for name, how in (("work", _flops), ("time", _time), ("first loss", None), ("gradient", None)):
        if name in plan:
            shown = {k: how(k, v) if how else _plain(v) for k, v in plan[name].items()}
            parts.append(_section(name, shown))
    if "data" in plan:
        parts.append(_section("data", {k: _plain(v) for k, v in plan["data"].items()}))
    parts += [f"Warning: {text}" for text in plan["warnings"]]
    return "\n".join(parts) + "\n"


def _section(title: str, lines: Mapping[str, Any]) -> str:
    wide = max((len(key) for key in lines), default=0)
    return "\n".join([title, *(f"  {key:<{wide}}  {value}" for key, value in lines.items()), ""])


def _bytes(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if value and abs(value) < 1e-3 else f"{value:,.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _flops(key: str, value: Any) -> str:
    if key == "shortest step":
        return f"{value:.3g} s, at the peak"
    if isinstance(value, str):
        return value
    for size, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.2f} {name}FLOP{'/s' if key == 'peak' else ''}"
    return f"{value:,.0f}"


def _time(key: str, value: Any) -> str:
    if key == "seconds":
        return f"{duration(value)} (hours:minutes:seconds)"
    if key in ("utilisation", "waiting for data"):
        return f"{value:.1%}"
    return _plain(value)
