"""Which config class is built by what: the built-in towers and those that other packages register.

A package adds a tower with one entry point in the group "diptych.towers" that names a `Family`.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any, overload

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from diptych.config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
    register,
)
from diptych.errors import ConfigError
from diptych.model import CLIP, TextTransformer, VisionTransformer
from diptych.towers.bert import BertEncoder
from diptych.towers.efficientnet import EfficientNet
from diptych.towers.initialise import initialise_
from diptych.towers.resnet import ModifiedResNet

__all__ = ["Family", "build", "families", "on_meta", "outline"]

ENTRY_POINT_GROUP = "diptych.towers"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of tower.

    config: the dataclass that describes it; saved files name it by its class name.
    build: (config, embed_dim) -> a module that keeps the tower contract.
    rules: `zoo.keymaps.Rule` rows that read the publisher's tensor names, tried before the
        built-in ones; empty if checkpoints use our names.
    """

    config: type
    build: Callable[[Any, int], nn.Module]
    rules: Sequence[Any] = ()


def _initialised(tower: type[nn.Module]) -> Callable[[Any, int], nn.Module]:
    def build(cfg: Any, embed_dim: int) -> nn.Module:
        module = tower(cfg, embed_dim)
        initialise_(module)
        return module

    return build


_BUILT_IN = (
    Family(config=ViTConfig, build=_initialised(VisionTransformer)),
    Family(config=ResNetConfig, build=_initialised(ModifiedResNet)),
    Family(config=EfficientNetConfig, build=_initialised(EfficientNet)),
    Family(config=TextConfig, build=_initialised(TextTransformer)),
    Family(config=BertConfig, build=_initialised(BertEncoder)),
)


@functools.cache
def families() -> dict[type, Family]:
    """All known families by config class; reads the entry points on the first call."""
    found = list(_BUILT_IN)
    found += [entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)]
    return {register(family.config): family for family in found}


@overload
def build(cfg: CLIPConfig) -> CLIP: ...
@overload
def build(cfg: Any, embed_dim: int | None = None) -> nn.Module: ...
def build(cfg: Any, embed_dim: int | None = None) -> nn.Module:
    """A `CLIP` for a `CLIPConfig`, else the tower of that config's class; original random weights.

    Raises:
        ConfigError: no family has that config class, or a tower without `embed_dim`.
    """
    if isinstance(cfg, CLIPConfig):
        visual, text = (build(side, cfg.embed_dim) for side in (cfg.visual, cfg.text))
        match cfg.loss:
            case "softmax":
                return CLIP(visual, text, logit_scale=math.log(1 / 0.07))
            case "sigmoid":
                return CLIP(visual, text, logit_scale=math.log(10), logit_bias=-10.0)
    family = families().get(type(cfg))
    if family is None:
        known = ", ".join(cls.__name__ for cls in families())
        raise ConfigError(
            f"no tower is registered for {type(cfg).__name__}; known: {known}. "
            f"Register a Family with the entry point group {ENTRY_POINT_GROUP!r}."
        )
    if embed_dim is None:
        raise ConfigError("a single tower needs embed_dim=")
    return family.build(cfg, embed_dim)


class _NoInit(TorchFunctionMode):
    """Leaves out `torch.nn.init` and random numbers: on the meta device they only import the
    compiler, for 3 s, and sympy, for half a second.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """What is built inside has every name and shape, no memory and no values."""
    with torch.device("meta"), _NoInit():
        yield


def outline(cfg: CLIPConfig) -> CLIP:
    """The model on the meta device: every name and shape, no memory, no values."""
    with on_meta():
        return build(cfg)
