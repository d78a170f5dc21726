"""open_clip's folders, written: our configs to `open_clip_config.json` and its key tables.

A field that open_clip has no word for is refused by name; see `open_clip` for the source.
"""

import json
import math
from dataclasses import replace
from typing import Any

from diptych.config import (
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.errors import ConfigError
from diptych.zoo import keymaps
from diptych.zoo.keymaps import Rule
from diptych.zoo.open_clip import CLEAN
from diptych.zoo.trunks import TIMM

__all__ = ["dump", "model_cfg", "preprocess_cfg", "rules_for"]


def model_cfg(config: CLIPConfig, tokenizer: TokenizerConfig) -> dict[str, Any]:
    """Our config as open_clip states it.

    Raises:
        ConfigError: names the field that open_clip has no word for.
    """
    visual, text = config.visual, config.text
    if not isinstance(visual, ViTConfig | ResNetConfig) or not isinstance(text, TextConfig):
        raise ConfigError(
            f"open_clip cannot state {type(visual).__name__} and {type(text).__name__}. "
            "Save with format='diptych'."
        )
    quick = [x.act == "quick_gelu" for x in (visual, text) if not isinstance(x, ResNetConfig)]
    if len(set(quick)) > 1:
        _cannot("visual.act and text.act: one is quick_gelu and one is not", "one flag for both")
    out: dict[str, Any] = {"embed_dim": config.embed_dim}
    if isinstance(visual, ViTConfig) and visual.pool == "map":
        out |= {"custom_text": True, "vision_cfg": _timm_cfg(visual)}
    else:
        out["vision_cfg"] = _vision_cfg(visual)
    if text.proj == "linear_bias":
        out["custom_text"] = True
    if quick[0]:
        out["quick_gelu"] = True
    if config.loss == "sigmoid":
        out["init_logit_bias"] = -10
    out["text_cfg"] = _text_cfg(text, tokenizer)
    return out


def _cannot(field: str, why: str) -> None:
    raise ConfigError(f"open_clip cannot state {field} ({why}). Save with format='diptych'.")


def _ratio(mlp_dim: int, width: int) -> float:
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _extras(cfg: ViTConfig | TextConfig) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if cfg.mlp_dim != 4 * cfg.width:
        out["mlp_ratio"] = _ratio(cfg.mlp_dim, cfg.width)
    if cfg.act == "gelu_tanh":
        out["act_kwargs"] = {"approximate": "tanh"}
    if cfg.ln_eps != 1e-5:
        out["norm_kwargs"] = {"eps": cfg.ln_eps}
    return out


def _size(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _timm_cfg(visual: ViTConfig) -> dict[str, Any]:
    wanted = replace(visual, proj="none", patch_dropout=0.0, init="big_vision", act="gelu_tanh")
    names = [name for name, cfg in TIMM.items() if cfg == wanted]
    if not names or visual.act == "quick_gelu":
        _cannot("visual: no timm model has these sizes", "it names SigLIP towers, and has no sizes")
    return {
        "image_size": _size(visual.image_size),
        "timm_model_name": names[0],
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": visual.proj,
        **({"patch_dropout": visual.patch_dropout} if visual.patch_dropout else {}),
    }


def _vision_cfg(visual: ViTConfig | ResNetConfig) -> dict[str, Any]:
    out: dict[str, Any] = {"image_size": _size(visual.image_size), "width": visual.width}
    if isinstance(visual, ResNetConfig):
        if (32 * visual.width) % visual.heads:
            _cannot(f"visual.heads = {visual.heads}", "it states the width of a head")
        head_width = 32 * visual.width // visual.heads
        return out | {"layers": list(visual.layers), "patch_size": None, "head_width": head_width}
    for field, needed in (("patch_bias", False), ("class_token", True), ("proj", "linear")):
        if getattr(visual, field) != needed:
            _cannot(f"visual.{field} = {getattr(visual, field)!r}", "of a tower of its own")
    out |= {"layers": visual.layers, "patch_size": visual.patch_size}
    out |= {"head_width": visual.width // visual.heads, **_extras(visual)}
    if visual.patch_dropout:
        out["patch_dropout"] = visual.patch_dropout
    if not visual.pre_norm:
        out["no_ln_pre"] = True
    if visual.pool == "mean":
        out["pool_type"] = "avg"
    if visual.norm_after_pool:
        out["final_ln_after_pool"] = True
    if visual.positions == "sincos2d":
        out["pos_embed_type"] = "sin_cos_2d"
    return out


def _text_cfg(text: TextConfig, tokenizer: TokenizerConfig) -> dict[str, Any]:
    if text.pad_id is not None:
        _cannot(f"text.pad_id = {text.pad_id}", "its text towers attend to padding")
    out: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_extras(text),
    }
    if not text.causal:
        out["no_causal_mask"] = True
    if text.pool != "argmax":
        out["pool_type"] = text.pool
    if text.pool == "eos":
        out["eos_id"] = text.eos_id
    if text.proj == "linear_bias":
        out["proj_bias"] = True
    if text.proj == "none":
        out["proj_type"] = "none"
    names = {ours: theirs for theirs, ours in CLEAN.items()}
    names |= {"canonicalize": "canonicalize", "canonicalize_hf": "canonicalize", "lower": "lower"}
    if tokenizer.kind != "clip_bpe":
        out["hf_tokenizer_name"] = "."  # any name: a local folder's own files are taken
        out["tokenizer_kwargs"] = {"clean": names[tokenizer.clean]}
    if tokenizer.kind == "wordpiece" and tokenizer.eos_id == tokenizer.pad_id:
        out["tokenizer_kwargs"]["strip_sep_token"] = True
    return out


def preprocess_cfg(preprocess: PreprocessConfig) -> dict[str, Any]:
    """Our pixels as open_clip states them."""
    if preprocess.short is not None:
        _cannot(f"preprocess.short = {preprocess.short}", "it resizes to the crop's own size")
    return {
        "size": _size(preprocess.size),
        "mode": "RGB",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize,
        "fill_color": preprocess.pad,
    }


def rules_for(config: CLIPConfig) -> tuple[Rule, ...]:
    """The key table with which open_clip's class for this config writes its tensors."""
    text, scalars = keymaps.OPENAI_TEXT, keymaps.SCALARS
    timm = isinstance(config.visual, ViTConfig) and config.visual.pool == "map"
    if config.text.proj == "linear_bias":
        text = keymaps.CUSTOM_TEXT_LINEAR
    elif timm:
        text = keymaps.CUSTOM_TEXT
    if timm:
        return (*keymaps.TIMM_TRUNK, *text, *scalars)
    if isinstance(config.visual, ResNetConfig):
        return (*keymaps.OPENAI_RN, *text, *scalars)
    return (*keymaps.OPENAI_VIT, *text, *scalars)


def dump(config: CLIPConfig, preprocess: PreprocessConfig, tokenizer: TokenizerConfig) -> str:
    """The text of `open_clip_config.json`."""
    data = {"model_cfg": model_cfg(config, tokenizer), "preprocess_cfg": preprocess_cfg(preprocess)}
    return json.dumps(data, indent=2) + "\n"
