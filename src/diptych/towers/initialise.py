"""The original starting values of each tower: those of the code that trained the first of its kind.

- openai: `CLIP.initialize_parameters` for text and ResNet; the vision transformer keeps what
  `nn.MultiheadAttention` and `nn.Linear` do by themselves.
- big_vision (SigLIP, CLIPA): `models/vit.py` and `text_transformer.py`; Xavier, MLP biases of 1e-6.
- EfficientNet: tensorflow/tpu, `efficientnet_model.py`; BERT: google-research/bert, `modeling.py`;
  the projection of both as openai/CLIP's.
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.text import TextTransformer
from diptych.model.transformer import MLP, Attention, AttentionPool, Block
from diptych.model.vision import VisionTransformer
from diptych.towers.bert import BertEncoder
from diptych.towers.efficientnet import EfficientNet
from diptych.towers.resnet import Bottleneck, ModifiedResNet

__all__ = ["initialise_", "sincos2d"]

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def initialise_(tower: nn.Module) -> None:
    """Give a built-in tower the starting values that its config names."""
    match tower:
        case VisionTransformer():
            _vision(tower)
        case TextTransformer():
            _text(tower)
        case ModifiedResNet():
            _resnet(tower)
        case EfficientNet():
            _efficientnet(tower)
        case BertEncoder():
            _bert(tower)


def _vision(tower: VisionTransformer) -> None:
    cfg, std = tower.cfg, tower.cfg.width**-0.5
    if cfg.positions == "sincos2d":
        positions = F.pad(sincos2d(cfg.width, cfg.grid), (0, 0, int(cfg.class_token), 0))
        tower.positional_embedding.copy_(positions)
    else:
        nn.init.normal_(tower.positional_embedding, std=std)
    if tower.class_embedding is not None:
        zeros = cfg.init == "big_vision"
        nn.init.normal_(tower.class_embedding, std=0.0 if zeros else std)
    if isinstance(tower.proj, nn.Linear):
        nn.init.normal_(tower.proj.weight, std=std)
    if isinstance(tower.attn_pool, AttentionPool):
        nn.init.normal_(tower.attn_pool.probe, std=std)  # big_vision: below
    match cfg.init:
        case "openai":
            bound = (6 / (4 * cfg.width)) ** 0.5  # Xavier over the fused [3d d] matrix
            for block in _each(tower, Block):
                for linear in _qkv(block.attn):
                    nn.init.uniform_(linear.weight, -bound, bound)
                _zero_biases(block.attn)
        case "big_vision":
            _lecun(tower.patch_embed)
            _big_vision(tower)


def _text(tower: TextTransformer) -> None:
    cfg, std = tower.cfg, tower.cfg.width**-0.5
    if isinstance(tower.proj, nn.Linear):
        nn.init.normal_(tower.proj.weight, std=std)
        if tower.proj.bias is not None:
            nn.init.zeros_(tower.proj.bias)
    match cfg.init:
        case "openai":
            nn.init.normal_(tower.token_embedding.weight, std=0.02)
            nn.init.normal_(tower.positional_embedding, std=0.01)
            proj_std = std * (2 * cfg.layers) ** -0.5
            for block in _each(tower, Block):
                for linear in _qkv(block.attn):
                    nn.init.normal_(linear.weight, std=std)
                nn.init.normal_(block.attn.out_proj.weight, std=proj_std)
                nn.init.normal_(block.mlp.c_fc.weight, std=(2 * cfg.width) ** -0.5)
                nn.init.normal_(block.mlp.c_proj.weight, std=proj_std)
                _zero_biases(block.attn)
        case "big_vision":
            nn.init.normal_(tower.token_embedding.weight, std=std)
            nn.init.normal_(tower.positional_embedding, std=std)
            _big_vision(tower)


def _resnet(tower: ModifiedResNet) -> None:
    std = tower.attn_pool.positional_embedding.shape[1] ** -0.5
    nn.init.normal_(tower.attn_pool.positional_embedding, std=std)
    attn = tower.attn_pool.attn
    for linear in (*_qkv(attn), attn.out_proj):
        nn.init.normal_(linear.weight, std=std)
    for bottleneck in _each(tower, Bottleneck):
        nn.init.zeros_(bottleneck.bn3.weight)


def _efficientnet(tower: EfficientNet) -> None:
    for conv in _each(tower, nn.Conv2d):
        fan_out = conv.weight[0, 0].numel() * conv.out_channels // conv.groups
        nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    _projection(tower.proj)


def _bert(tower: BertEncoder) -> None:
    tables = [tower.positional_embedding, tower.type_embedding, tower.token_embedding.weight]
    for linear in _each(tower, nn.Linear):
        tables.append(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    for table in tables:
        nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)
    _projection(tower.proj)


def _projection(proj: nn.Module) -> None:
    if isinstance(proj, nn.Linear):
        nn.init.normal_(proj.weight, std=proj.in_features**-0.5)


def _big_vision(tower: nn.Module) -> None:
    for part in tower.modules():
        match part:
            case Attention():
                for linear in (*_qkv(part), part.out_proj):
                    nn.init.xavier_uniform_(linear.weight)
                _zero_biases(part)
            case MLP():
                for linear in (part.c_fc, part.c_proj):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.normal_(linear.bias, std=1e-6)
            case AttentionPool():
                bound = (6 / (1 + part.probe.shape[-1])) ** 0.5  # flax's fans of [1 1 d]: 1 and d
                nn.init.uniform_(part.probe, -bound, bound)


def _lecun(conv: nn.Conv2d) -> None:
    """flax's default for convolutions: normal, cut at two deviations, variance 1 / fan-in."""
    fan_in = conv.weight[0].numel()
    std = fan_in**-0.5 / 0.87962566  # the deviation of a unit normal cut at two
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _each(tower: nn.Module, kind: type[M]) -> Iterator[M]:
    return (part for part in tower.modules() if isinstance(part, kind))


def _qkv(attn: Attention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attn.q_proj, attn.k_proj, attn.v_proj


def _zero_biases(attn: Attention) -> None:
    for linear in (*_qkv(attn), attn.out_proj):
        nn.init.zeros_(linear.bias)


def sincos2d(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions [(y x) d] of MAE (arXiv 2111.06377): half the width columns, half rows."""
    omega = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(g) for g in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()
