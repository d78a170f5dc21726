"""From a run's config to the model that is trained: weights, what is frozen, how ranks share it.

- Weights that are trained are copies: a checkpoint that lies memory-mapped is never written to.
- A tower that is frozen whole stays in evaluation mode: no patch dropout, no batch statistics.
- Sharded towers (FSDP2) have their blocks and themselves as units; scale and bias, which cannot be
  cut, stay whole on each rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from diptych.config import BertConfig, TextConfig, ViTConfig
from diptych.engine import Encoder, build, load
from diptych.engine.device import has_fast_bf16
from diptych.errors import ConfigError, nearest
from diptych.model import CLIP
from diptych.model.lora import add_lora
from diptych.train.config import ModelConfig, TrainConfig
from diptych.train.world import World

__all__ = [
    "can_trim",
    "distribute",
    "drop_patches",
    "like",
    "precision_of",
    "prepare",
    "set_modes",
    "start_encoder",
]


def start_encoder(cfg: TrainConfig) -> Encoder:
    """The model that the run starts from, on the CPU, with its own copy of the weights.

    Raises:
        ConfigError: neither a model to start from nor one to build, or both.
    """
    given = cfg.model
    built = {"build": given.build, "clip": given.clip}
    built |= {"preprocess": given.preprocess, "tokenizer": given.tokenizer}
    random = [name for name, value in built.items() if value]
    if given.start is not None and random:
        raise ConfigError(
            f"model.start={given.start!r} has weights, pixels and tokens of its own, "
            f"model.{random[0]} asks for random ones. Type: --set model.start=none"
        )
    if given.start is None and given.fresh:
        raise ConfigError("model.fresh: all weights are random. Type: --set model.fresh=()")
    if given.start is not None:
        encoder = load(given.start, device="cpu", precision="fp32")
    elif given.clip is not None or given.build:
        encoder = build(
            given.clip or given.build,
            cfg.seed,
            device="cpu",
            precision="fp32",
            preprocess=given.preprocess,
            tokenizer=given.tokenizer,
        )
    else:
        raise ConfigError(
            "model: give start= (weights), or build= or clip= (random weights). "
            "Type: --set model.start=mini"
        )
    for tensor in (*encoder.model.parameters(), *encoder.model.buffers()):
        tensor.data = tensor.data.clone()
    if given.fresh:
        _make_fresh(encoder, cfg)
    if given.sigmoid_bias is not None:
        encoder.config = replace(encoder.config, loss="sigmoid")
        model = encoder.model
        model.logit_bias = nn.Parameter(torch.tensor(given.sigmoid_bias))
        model.logit_scale.data.fill_(math.log(10))
    return encoder


def _make_fresh(encoder: Encoder, cfg: TrainConfig) -> None:
    """Random weights, of the run's seed, for what `model.fresh` names."""
    random = build(
        encoder.config,
        cfg.seed,
        device="cpu",
        precision="fp32",
        preprocess=encoder.preprocess.config,
        tokenizer=encoder.tokenizer_config,
    ).model.state_dict()
    for key in _chosen([*random], cfg.model.fresh, what="fresh"):
        encoder.model.state_dict()[key].copy_(random[key])


def _chosen(names: Sequence[str], starts: Sequence[str], *, what: str) -> list[str]:
    """The names that begin so, part by part.

    Raises:
        ConfigError: a beginning that no name has.
    """
    found: list[str] = []
    for start in starts:
        chosen = [n for n in names if n == start or n.startswith(f"{start}.")]
        if not chosen:
            parts = {n.rsplit(".", i)[0] for n in names for i in range(n.count(".") + 1)}
            raise ConfigError(f"model.{what}: nothing is named {start!r}. {nearest(start, parts)}")
        found += chosen
    return found


def prepare(model: CLIP, cfg: TrainConfig) -> None:
    """Freeze, adapt and set what the config says, in place."""
    given = cfg.model
    names = [name for name, _ in model.named_parameters()]
    _chosen(names, given.freeze, what="freeze")  # adapters rename some below
    if given.lora is not None:
        lora = given.lora
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            add_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    for name, parameter in model.named_parameters():
        if any(name == start or name.startswith(f"{start}.") for start in given.freeze):
            parameter.requires_grad_(False)
    if given.patch_dropout is not None:
        drop_patches(model, given.patch_dropout)
    if given.checkpointing:
        towers: tuple[Any, ...] = (model.visual, model.text)
        for tower in towers:
            tower.checkpointing = True
    if given.compile:
        model.visual.compile()
        model.text.compile()


def drop_patches(model: CLIP, rate: float) -> None:
    """Set the share of patches that the image tower leaves out in training.

    Raises:
        ConfigError: a tower without patch dropout.
    """
    tower: Any = model.visual
    if not isinstance(tower.cfg, ViTConfig):
        raise ConfigError(
            f"patch_dropout: {type(tower).__name__} has no patches to drop. Leave it at None."
        )
    tower.cfg = replace(tower.cfg, patch_dropout=rate)


def set_modes(model: nn.Module, given: ModelConfig) -> None:
    """Training mode, but for frozen towers and for batch norms that keep their statistics."""
    model.train()
    keep = given.norms == "keep" or (given.norms == "auto" and given.start is not None)
    for tower in model.children():
        if not any(p.requires_grad for p in tower.parameters()):
            tower.eval()
    for part in model.modules():
        if keep and isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def distribute(model: CLIP, cfg: TrainConfig, world: World) -> nn.Module:
    """The model on this rank's device, wrapped as `cfg.parallel` says if there are several."""
    model = model.to(world.device)
    if world.size == 1:
        return model
    match cfg.parallel:
        case "ddp":
            devices = [world.device] if world.device.type == "cuda" else None
            return DistributedDataParallel(model, device_ids=devices)
        case "fsdp":
            mesh = init_device_mesh(world.device.type, (world.size,))
            for tower in (model.visual, model.text):
                for block in tower.get_submodule("blocks").children():
                    fully_shard(block, mesh=mesh)
                fully_shard(tower, mesh=mesh)
            return model


def like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, cut as `parameter` is."""
    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return whole


def precision_of(cfg: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of the towers' products; "auto" is bf16 where the hardware multiplies it."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_fast_bf16()
    match cfg.precision:
        case "auto":
            return torch.bfloat16 if fast and device.type != "mps" else torch.float32
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16


def can_trim(text: Any) -> bool:
    """Whether a text tower gives the same vector for a text without the padding behind it."""
    match text:
        case TextConfig():
            return text.causal and text.pool in ("argmax", "eos", "first")
        case BertConfig():
            return text.pad_id is not None
    return False
