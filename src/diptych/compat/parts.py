"""The module tree that openai/CLIP and open_clip share: their names around torch's own layers.

Hooks, `isinstance` checks, adapters and prompt learners reach into it, so that it is theirs to the
name: `resblocks[i].attn` is an `nn.MultiheadAttention`, `mlp.gelu` a module one can replace.

- openai/CLIP runs its blocks on [s n d] with the causal mask inside them; open_clip on [n s d] and
  hands the mask down. `batch_first` says which.
- Nothing is initialised here: `weights` fills every tensor.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.config import Activation, ResNetConfig, TextConfig, ViTConfig
from diptych.model.transformer import quick_gelu
from diptych.model.vision import drop_patches
from diptych.towers import resnet

__all__ = [
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "TextTransformer",
    "Transformer",
    "VisionTransformer",
    "activation",
    "adopt",
    "freeze",
    "lock_text",
    "text_features",
]


class LayerNorm(nn.LayerNorm):
    """Computes in the precision of its own weights (float32 beside fp16 layers), returns x's."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), with which OpenAI's weights were trained."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def activation(act: Activation) -> nn.Module:
    """The activation as a module of its own, which a person can replace."""
    match act:
        case "quick_gelu":
            return QuickGELU()
        case "gelu":
            return nn.GELU()
        case "gelu_tanh":
            return nn.GELU(approximate="tanh")


class ResidualAttentionBlock(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x)). `attn_mask` of a call goes before the block's."""

    attn_mask: Tensor | None

    def __init__(self, cfg: ViTConfig | TextConfig, mask: Tensor | None, *, batch_first: bool):
        super().__init__()
        self.ln_1 = LayerNorm(cfg.width, cfg.ln_eps)
        self.attn = nn.MultiheadAttention(cfg.width, cfg.heads, batch_first=batch_first)
        self.ln_2 = LayerNorm(cfg.width, cfg.ln_eps)
        layers = OrderedDict[str, nn.Module](c_fc=nn.Linear(cfg.width, cfg.mlp_dim))
        layers["gelu"] = activation(cfg.act)
        layers["c_proj"] = nn.Linear(cfg.mlp_dim, cfg.width)
        self.mlp = nn.Sequential(layers)
        self.register_buffer("attn_mask", mask, persistent=False)

    def attention(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is None and self.attn_mask is not None:
            s = x.shape[0]  # blocks that hold a mask run on [s n d]
            attn_mask = self.attn_mask[:s, :s]
        mask = None if attn_mask is None else attn_mask.to(x.dtype)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.ln_1(x), attn_mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The stack of blocks: [n s d] -> [n s d], or [s n d] -> [s n d]."""

    def __init__(
        self, cfg: ViTConfig | TextConfig, mask: Tensor | None = None, *, batch_first: bool
    ):
        super().__init__()
        self.width, self.layers = cfg.width, cfg.layers
        self.batch_first = batch_first
        self.grad_checkpointing = False
        blocks = (
            ResidualAttentionBlock(cfg, mask, batch_first=batch_first) for _ in range(cfg.layers)
        )
        self.resblocks = nn.Sequential(*blocks)

    def get_cast_dtype(self) -> torch.dtype:
        return self.resblocks[0].mlp[0].weight.dtype  # pyrefly: ignore (a block)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            if self.grad_checkpointing:
                x = checkpoint(block, x, attn_mask, use_reentrant=False)
            else:
                x = block(x, attn_mask)
        return x


class VisionTransformer(nn.Module):
    """Pixels [n 3 H W] -> [n e]; with `output_tokens`, also the patches' states [n s d]."""

    def __init__(self, cfg: ViTConfig, embed_dim: int, *, batch_first: bool):
        super().__init__()
        width, p = cfg.width, cfg.patch_size
        self.cfg = cfg
        self.input_resolution = cfg.image_size[0]  # openai/CLIP's name; the next are open_clip's
        self.image_size, self.patch_size, self.grid_size = cfg.image_size, (p, p), cfg.grid
        self.output_dim = embed_dim
        self.output_tokens = False
        self.conv1 = nn.Conv2d(3, width, p, stride=p, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        positions = torch.empty(1 + cfg.grid[0] * cfg.grid[1], width)
        self.positional_embedding = nn.Parameter(positions, cfg.positions == "learned")
        self.ln_pre = LayerNorm(width, cfg.ln_eps) if cfg.pre_norm else nn.Identity()
        self.transformer = Transformer(cfg, batch_first=batch_first)
        self.ln_post = LayerNorm(width, cfg.ln_eps)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, x: Tensor):
        x = self.conv1(x).flatten(2).transpose(1, 2)  # n (y x) d
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        if self.training and self.cfg.patch_dropout:
            x = drop_patches(x, 1, self.cfg.patch_dropout)
        x = self.ln_pre(x)
        if self.transformer.batch_first:
            x = self.transformer(x)
        else:
            x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        pooled, tokens = self._pool(x)
        if self.proj is not None:  # people set it to None, for features before the projection
            pooled = pooled @ self.proj
        return (pooled, tokens) if self.output_tokens else pooled

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.cfg.norm_after_pool:
            x = self.ln_post(x)
        tokens = x[:, 1:]
        pooled = x[:, 0] if self.cfg.pool == "class" else tokens.mean(1)
        return self.ln_post(pooled) if self.cfg.norm_after_pool else pooled, tokens

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze all but the last groups: stem, each block (the last with ln_post), projection."""
        *blocks, last = self.transformer.resblocks
        stem = [self.conv1, self.class_embedding, self.positional_embedding, self.ln_pre]
        freeze([stem, *([b] for b in blocks), [last, self.ln_post], [self.proj]], unlocked_groups)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"positional_embedding", "class_embedding"}


class AttentionPool2d(nn.Module):
    """Attention whose query is the mean of all positions: [n c y x] -> [n e]."""

    def __init__(self, cfg: ResNetConfig, embed_dim: int):
        super().__init__()
        channels = 32 * cfg.width
        self.positional_embedding = nn.Parameter(
            torch.empty(1 + cfg.grid[0] * cfg.grid[1], channels)
        )
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        self.num_heads = cfg.heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)  # (y x) n c
        x = torch.cat([x.mean(0, keepdim=True), x])
        x = x + self.positional_embedding[:, None].to(x.dtype)
        biases = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        pooled, _ = F.multi_head_attention_forward(
            x[:1],
            x,
            x,
            embed_dim_to_check=x.shape[-1],
            num_heads=self.num_heads,
            in_proj_weight=None,
            in_proj_bias=biases,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return pooled[0]


class ModifiedResNet(nn.Module):
    """OpenAI's ResNet: pixels [n 3 H W] -> [n e]; our own layers under the peers' names."""

    def __init__(self, cfg: ResNetConfig, embed_dim: int):
        super().__init__()
        ours = resnet.ModifiedResNet(cfg, embed_dim)
        self.cfg = cfg
        self.input_resolution = self.image_size = cfg.image_size[0]
        self.output_dim = embed_dim
        self.conv1, self.bn1 = ours.conv1, ours.bn1
        self.conv2, self.bn2 = ours.conv2, ours.bn2
        self.conv3, self.bn3 = ours.conv3, ours.bn3
        self.avgpool = nn.AvgPool2d(2)
        for i, stage in enumerate(ours.blocks):
            self.add_module(f"layer{i + 1}", stage)
        self.attnpool = AttentionPool2d(cfg, embed_dim)
        self._frozen_statistics = False

    def stem(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.avgpool(F.relu(self.bn3(self.conv3(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # pyrefly: ignore (a Sequential)
        return self.attnpool(x)

    def train(self, mode: bool = True):
        super().train(mode)
        if self._frozen_statistics:
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d | nn.SyncBatchNorm):
                    part.eval()
        return self

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze everything; `freeze_bn_stats` keeps the batch norms in evaluation mode."""
        assert unlocked_groups == 0, "a ResNet is locked as a whole, here and in open_clip"
        freeze([[self]], 0)
        self._frozen_statistics = freeze_bn_stats
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Nothing is recomputed in a ResNet, as in open_clip."""

    def no_weight_decay(self) -> set[str]:
        return set()


class TextTransformer(nn.Module):
    """Token ids [n s] -> [n e]. Both peers' `CLIP` hold its parts at their top level: `adopt`."""

    attn_mask: Tensor | None

    def __init__(self, cfg: TextConfig, embed_dim: int, *, batch_first: bool):
        super().__init__()
        s = cfg.context_length
        self.cfg = cfg
        self.context_length, self.vocab_size = s, cfg.vocab_size
        # On the CPU also while the rest is laid out on the meta device: it is in no state dict.
        mask = torch.full((s, s), -torch.inf, device="cpu").triu_(1) if cfg.causal else None
        inside = None if batch_first else mask
        self.token_embedding = nn.Embedding(cfg.vocab_size, cfg.width)
        self.positional_embedding = nn.Parameter(torch.empty(s, cfg.width))
        self.transformer = Transformer(cfg, inside, batch_first=batch_first)
        self.ln_final = LayerNorm(cfg.width, cfg.ln_eps)
        self.text_projection: nn.Linear | nn.Parameter | None = None
        match cfg.proj:
            case "linear":
                self.text_projection = nn.Parameter(torch.empty(cfg.width, embed_dim))
            case "linear_bias":
                self.text_projection = nn.Linear(cfg.width, embed_dim)
        self.register_buffer("attn_mask", mask if batch_first else None, persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        return text_features(self, text, self.cfg)

    def lock(self, unlocked_layers: int = 0) -> None:
        """Freeze all but the last groups: embeddings, each block (the last with ln_final), proj."""
        lock_text(self, unlocked_layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"positional_embedding"}


def adopt(owner, text: nn.Module) -> None:
    """Make the parts of `text`, a `TextTransformer`, those of `owner`, under the same names."""
    assert isinstance(text, TextTransformer)
    owner.context_length, owner.vocab_size = text.context_length, text.vocab_size
    owner.text_cfg = text.cfg
    owner.transformer = text.transformer
    owner.token_embedding = text.token_embedding
    owner.positional_embedding = text.positional_embedding
    owner.ln_final = text.ln_final
    owner.text_projection = text.text_projection
    owner.register_buffer("attn_mask", text.attn_mask, persistent=False)


def text_features(parts, text: Tensor, cfg: TextConfig) -> Tensor:
    """[n e] of ids [n s], not normalised; `parts` is a `TextTransformer` or has adopted one."""
    s = text.shape[1]
    x = parts.token_embedding(text).to(parts.transformer.get_cast_dtype())
    x = x + parts.positional_embedding[:s].to(x.dtype)
    if parts.transformer.batch_first:
        mask = None if parts.attn_mask is None else parts.attn_mask[:s, :s]
        x = parts.transformer(x, attn_mask=mask)
    else:
        x = parts.transformer(x.transpose(0, 1)).transpose(0, 1)
    x = parts.ln_final(x)
    match cfg.pool:
        case "argmax":
            at = text.argmax(-1)  # EOT is the highest id
        case "eos":
            at = text.eq(cfg.eos_id).int().argmax(-1)  # pyrefly: ignore (the config checks)
        case "last":
            at = torch.full_like(text[:, 0], s - 1)
        case "first":
            at = torch.zeros_like(text[:, 0])
    x = x[torch.arange(x.shape[0], device=x.device), at.long()]
    projection = parts.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def lock_text(parts, unlocked_layers: int) -> None:
    """open_clip's `lock_text_tower`, for a `TextTransformer` or what has adopted one."""
    *blocks, last = parts.transformer.resblocks
    groups = [
        [parts.token_embedding, parts.positional_embedding],
        *([block] for block in blocks),
        [last, parts.ln_final],
    ]
    if parts.text_projection is not None:
        groups.append([parts.text_projection])
    freeze(groups, unlocked_layers)


def freeze(groups: list[list], unlocked: int) -> None:
    """No gradient for all but the last `unlocked` groups of modules and parameters."""
    for i, group in enumerate(groups):
        for part in group:
            parameters = part.parameters() if isinstance(part, nn.Module) else [part]
            for parameter in parameters:
                parameter.requires_grad = i >= len(groups) - unlocked
