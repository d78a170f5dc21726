"""What a run is: frozen, typed dataclasses that a Python recipe returns. No torch in this file.

- `TrainConfig()` with data alone fine-tunes the embedded model with mild settings; everything else
  is one of these fields. There is no other way to ask for something.
- `changed(config, "optim.lr=5e-4")` is what `--set` does: typed by the field, an unknown key names
  the nearest ones.
- `batch_size` is the global batch: ranks and `micro_batch` cut it up and change no number.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from diptych.config import (
    AugmentConfig,
    CLIPConfig,
    PreprocessConfig,
    TokenizerConfig,
    register,
)
from diptych.data.sources import Source
from diptych.errors import ConfigError, nearest

__all__ = [
    "CheckpointingConfig",
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Source",
    "Stage",
    "TrainConfig",
    "changed",
    "settings_of",
]


def _above(least: float, **values: float | None) -> None:
    for key, value in values.items():
        if value is not None and not value > least:
            raise ConfigError(f"{key}={value}: give a number above {least}")


def _within(least: float, most: float, **values: float | None) -> None:
    for key, value in values.items():
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{key}={value}: give a number from {least} to {most}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on the linear layers whose last name is in `targets`."""

    rank: int = 8
    alpha: float = 16.0  # the product is scaled by alpha / rank
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        _above(0, rank=self.rank, alpha=self.alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What is trained, and from where it starts.

    start: a model with weights (a name, a file, a folder); None: random weights of `build`.
    build: for random weights: a name of the registry, whose pixels and tokens are taken, or "" with
        `clip`, `preprocess` and `tokenizer` given.
    fresh: beginnings of parameter names that start from random weights all the same.
    sigmoid_bias: train a softmax model as a sigmoid one: its logit_bias starts here (SigLIP: -10),
        its logit_scale at ln 10; None: its own loss.
    freeze: beginnings of parameter names that are not trained: ("visual",) is LiT.
    patch_dropout: share of patches left out in training; None: as the model's config says.
    norms: what batch norms do: "train" uses the batch's statistics (a micro-batch and a rank at a
        time) and moves the running ones; "keep" leaves them; "auto" keeps those of a start model.
    checkpointing: recompute the blocks in the backward pass: less memory, a third more time.
    """

    start: str | None = "mini"
    build: str = ""
    clip: CLIPConfig | None = None
    preprocess: PreprocessConfig | None = None
    tokenizer: TokenizerConfig | None = None
    fresh: tuple[str, ...] = ()
    sigmoid_bias: float | None = None
    freeze: tuple[str, ...] = ()
    lora: LoraConfig | None = None
    patch_dropout: float | None = None
    norms: Literal["auto", "train", "keep"] = "auto"
    checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where pairs come from; see `diptych.data`.

    sources: either all have a weight or none has.
    window: so many shards are shuffled together.
    workers: processes that decode; None: as many as this machine has cores to spare, at most 8.
    hash: read each shard once before the run, for its SHA-256. False: only its headers.
    max_bad_fraction: a larger share of pictures that cannot be decoded stops the run.
    """

    sources: tuple[Source, ...] = ()
    window: int = 16
    workers: int | None = None
    hash: bool = True
    max_bad_fraction: float = 0.01
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _above(0, window=self.window)
        _within(0, 1, max_bad_fraction=self.max_bad_fraction)
        _above(-1, workers=self.workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Which loss; `train.losses`.

    kind: "auto" is what the model was made for, softmax or sigmoid.
    precision: of the products of features; sums and exponentials are fp32 in any case.
    groups: pairs with the same caption are positives of each other, not negatives.
    negatives: "global", each pair against the whole batch; nothing else has the right gradient.
    teacher: a model to distil from (its own pixels and tokens must be the student's).
    teacher_weight: of the distillation loss; the contrastive loss has 1 - teacher_weight.
    """

    kind: Literal["auto", "softmax", "sigmoid"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    groups: bool = True
    negatives: Literal["global", "local_no_grad"] = "global"
    teacher: str | None = None
    teacher_weight: float = 1.0

    def __post_init__(self) -> None:
        _within(0, 1, teacher_weight=self.teacher_weight)
        if self.teacher is None and self.teacher_weight != 1:
            raise ConfigError("teacher_weight: there is no teacher. Give loss.teacher as well")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimiser; `train.optim`.

    weight_decay: not for gains, biases, positions, class tokens, scale and bias (1-D tensors).
    visual_lr, text_lr: factors on `lr` for a tower.
    visual_layer_decay, text_layer_decay: the factor from a block to the one below; the last block
        has it once, the embeddings blocks + 1 times, the head never; None: 1.
    clip: largest norm of the gradient; None: not clipped.
    momentum: of "sgd" and "muon"; betas, eps: of the others.
    """

    kind: Literal["adamw", "lamb", "stableadamw", "muon", "sgd"] = "adamw"
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    momentum: float = 0.95
    visual_lr: float = 1.0
    text_lr: float = 1.0
    visual_layer_decay: float | None = None
    text_layer_decay: float | None = None
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        _within(0, math.inf, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum)
        _within(0, math.inf, visual_lr=self.visual_lr, text_lr=self.text_lr)
        _above(0, eps=self.eps, clip=self.clip)
        _within(0, 1, betas_1=self.betas[0], betas_2=self.betas[1])
        decays = {"visual_layer_decay": self.visual_layer_decay}
        _above(0, text_layer_decay=self.text_layer_decay, **decays)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """The learning rate over the run; `train.schedule`.

    kind: cosine to `end`; constant; constant with a cooldown; WSD (arXiv 2404.06395: the last
        `cooldown` share of the run falls as 1 - sqrt).
    warmup: share of the run, or steps if 1 or more.
    cooldown: share of the run, or steps if 1 or more; of constant_cooldown and wsd.
    end: the last learning rate, as a share of the peak.
    """

    kind: Literal["cosine", "constant", "constant_cooldown", "wsd"] = "cosine"
    warmup: float = 0.05
    cooldown: float = 0.2
    end: float = 0.0

    def __post_init__(self) -> None:
        _within(0, math.inf, warmup=self.warmup, cooldown=self.cooldown)
        _within(0, 1, end=self.end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """From a share of the run on: another image size, text length or patch dropout (CLIPA)."""

    start: float
    image_size: int | None = None
    context_length: int | None = None
    patch_dropout: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is measured on the way.

    sources: held-out pairs, for retrieval, geometry and loss.
    classes: held-out images whose caption is the name of their class, for zero-shot accuracy.
    templates: of the prompts: None (the name alone), "photo", or the name of a prompt set.
    every: steps between two evaluations; None: at the end only.
    best: the metric whose best model and checkpoint are kept.
    max_pairs: so many of the held-out pairs are looked at.
    """

    sources: tuple[Source, ...] = ()
    classes: tuple[Source, ...] = ()
    templates: str | None = None
    every: int | None = None
    best: str = "image_to_text_r1"
    max_pairs: int = 5000

    def __post_init__(self) -> None:
        _above(0, every=self.every, max_pairs=self.max_pairs)
        if self.every is not None and not (self.sources or self.classes):
            raise ConfigError(f"every={self.every}: there is nothing to measure on. Give sources")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointingConfig:
    """When the state is saved and what is kept.

    every: steps between two checkpoints; None: by the clock only.
    minutes: time between two checkpoints; None: by steps only.
    keep: the newest so many; the best one is kept beside them.
    nonfinite: what a loss or gradient that is not a number does: "stop", or "skip" the step.
    max_nonfinite: so many skipped steps in a row stop the run.
    """

    every: int | None = None
    minutes: float | None = 10.0
    keep: int = 2
    nonfinite: Literal["stop", "skip"] = "skip"
    max_nonfinite: int = 10

    def __post_init__(self) -> None:
        _above(0, every=self.every, keep=self.keep, max_nonfinite=self.max_nonfinite)
        _within(0, math.inf, minutes=self.minutes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A run.

    batch_size: pairs a step over all ranks.
    micro_batch: pairs that go through the towers at once on a rank; None: all of its share. Fewer
        take less memory and one more forward pass; the gradient is the same.
    steps, epochs: the length of the run, one of the two.
    precision: of the towers (autocast); weights and optimiser stay fp32.
    logit_scale_max: exp(logit_scale) is held in [1, this]; None: not held (SigLIP).
    ema: decay of the mean of the weights, which is then measured and becomes the model; None: none.
    wise_ft: at the end, this share of the trained weights and the rest of the starting ones
        (arXiv 2109.01903); None: the trained ones.
    trim: text is cut to the longest of the batch, where the tower does not look at padding.
    parallel: how several ranks share the work. timeout: seconds until a silent rank ends the run.
    log_every: steps between two lines of metrics.
    """

    name: str = "run"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    stages: tuple[Stage, ...] = ()
    evaluate: EvalConfig = EvalConfig()
    checkpoints: CheckpointingConfig = CheckpointingConfig()
    batch_size: int = 64
    micro_batch: int | None = None
    steps: int | None = None
    epochs: float | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    logit_scale_max: float | None = 100.0
    ema: float | None = None
    wise_ft: float | None = None
    trim: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout: float = 600.0
    log_every: int = 10
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError("steps and epochs: give one of the two. Type: --set epochs=10")
        _above(0, batch_size=self.batch_size, steps=self.steps, epochs=self.epochs)
        _above(0, micro_batch=self.micro_batch, log_every=self.log_every, timeout=self.timeout)
        _within(0, 1, ema=self.ema, wise_ft=self.wise_ft)
        _within(1, math.inf, logit_scale_max=self.logit_scale_max)
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name={self.name!r}: give a plain word, it names the run's folder")
        starts = [stage.start for stage in self.stages]
        if starts != sorted(set(starts)) or any(not 0 <= start < 1 for start in starts):
            raise ConfigError(
                f"stages start at {starts}. Give shares of the run that rise, such as 0.5 and 0.9"
            )


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    """The config with settings such as "optim.lr=5e-4", "evaluate.every=none", "stages=()".

    Values are read as the field asks: text may stand without quotes; a tuple is Python's or
    separated by commas; "none" is None where the field allows it.

    Raises:
        ConfigError: no such field (names the nearest), or a value of the wrong kind.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting!r}: write KEY=VALUE, such as optim.lr=5e-4")
        at = tree
        *parts, last = key.strip().split(".")
        for part in parts:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ConfigError(f"--set {setting!r}: {part!r} was set as a whole before")
        at[last] = text.strip()
    if ("steps" in tree) != ("epochs" in tree):  # the one that is set replaces the other
        tree |= {"epochs": "none"} if "steps" in tree else {"steps": "none"}
    return _changed(config, tree, "")


def settings_of(config: Any, where: str = "") -> list[tuple[str, Any]]:
    """(key, value) of every setting, as `changed` takes them."""
    found: list[tuple[str, Any]] = []
    for each in dataclasses.fields(config):
        value, key = getattr(config, each.name), f"{where}{each.name}"
        found += (
            settings_of(value, f"{key}.") if dataclasses.is_dataclass(value) else [(key, value)]
        )
    return found


def _changed(config: Any, tree: dict[str, Any], where: str) -> Any:
    """All of a section at once, because some fields are only valid together."""
    hints = typing.get_type_hints(type(config))
    new: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(f"there is no setting {where + key!r}. {nearest(key, hints)}")
        if isinstance(value, dict):
            section, kind = getattr(config, key), typing.get_args(hints[key])
            if section is None and kind and dataclasses.is_dataclass(kind[0]):
                try:
                    section = kind[0]()  # model.lora.rank=4 asks for adapters
                except TypeError:  # model.clip has no defaults
                    raise ConfigError(f"{where + key} is set in a recipe, as a whole") from None
            if not dataclasses.is_dataclass(section):
                raise ConfigError(f"{where + key!r} has no settings of its own: it is {section!r}")
            new[key] = _changed(section, value, f"{where}{key}.")
        else:
            new[key] = _parsed(where + key, hints[key], value)
    try:
        return replace(config, **new)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _parsed(where: str, hint: Any, text: str) -> Any:
    """`text` as the type `hint`."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is types.UnionType:
        return None if text.lower() in ("none", "null", "") else _parsed(where, args[0], text)
    if dataclasses.is_dataclass(hint) or dataclasses.is_dataclass(args[0] if args else None):
        if args and args[0] is Source:
            return tuple(Source(path=part) for part in _parts(text))
        raise ConfigError(f"{where} is set in a recipe, or by its own settings: {where}.NAME=...")
    if origin is tuple:
        parts = _parts(text)
        if args[-1] is not Ellipsis and len(parts) != len(args):
            return _wrong(where, f"{len(args)} values", text)
        kinds = [args[0]] * len(parts) if args[-1] is Ellipsis else args
        return tuple(_parsed(where, kind, part) for kind, part in zip(kinds, parts, strict=True))
    if origin is Literal:
        return text if text in args else _wrong(where, f"one of {', '.join(args)}", text)
    if hint is str:
        return text
    if hint is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        found = known.get(text.lower())
        return _wrong(where, "true or false", text) if found is None else found
    try:
        value = ast.literal_eval(text)
        if hint is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e6
        if isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else int):
            return _wrong(where, _NUMBERS[hint], text)
        return hint(value)
    except (ValueError, SyntaxError, TypeError):
        return _wrong(where, _NUMBERS[hint], text)


def _parts(text: str) -> list[str]:
    return [part.strip(" \"'") for part in text.strip("()[] ").split(",") if part.strip()]


_NUMBERS = {int: "a whole number", float: "a number"}


def _wrong(where: str, wanted: str, text: str) -> Any:
    raise ConfigError(f"{where} must be {wanted}, got {text!r}")


for _cls in (LoraConfig, ModelConfig, Source, DataConfig, LossConfig, OptimConfig, ScheduleConfig):
    register(_cls)
for _cls in (Stage, EvalConfig, CheckpointingConfig, TrainConfig):
    register(_cls)
