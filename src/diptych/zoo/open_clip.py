"""open_clip's folders, read: `open_clip_config.json` to our configs.

Source: mlfoundations/open_clip 3.3.0, `model.py` (CLIPVisionCfg, CLIPTextCfg) and `transform.py`.

- Every key is honoured, known to say nothing, or refused by name.
- A SigLIP image tower is stated as the name of a timm model, and `trunks.TIMM` says what it means.
  timm computes it with the exact GELU; the weights were trained with the tanh form (big_vision),
  which is what we compute, in both towers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config import (
    OPENAI_MEAN,
    OPENAI_STD,
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.zoo.settings import Settings, pair, triple
from diptych.zoo.trunks import TIMM
from diptych.zoo.vocabulary import SIGLIP_PADDING, find_vocabulary, wordpiece

__all__ = ["CLEAN", "WEIGHT_FILES", "read_config", "read_preprocess", "read_tokenizer"]

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)

# Keys whose other values we have no tower for; and keys that act in training alone, or whose
# effect the tensors already hold.
_VISION_NEUTRAL = {
    "ls_init_value": None,
    "attentional_pool": False,
    "output_tokens": False,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "timm_model_name": None,
}
_VISION_IGNORED = ("attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained")
_TIMM_IGNORED = (*_VISION_IGNORED, "timm_drop", "timm_drop_path", "timm_proj_bias")
_TEXT_NEUTRAL = {
    **{k: v for k, v in _VISION_NEUTRAL.items() if not k.startswith(("timm", "attentional"))},
    "embed_cls": False,
    "hf_model_name": None,
    "tokenizer_mode": None,
}
# The norm before or after the choice of one token is the same norm.
_TEXT_IGNORED = ("pad_id", "bos_id", "final_ln_after_pool", "hf_model_pretrained")
_TEXT_IGNORED = (*_TEXT_IGNORED, "hf_proj_type", "hf_pooler_type")


def read_config(data: Any, where: str) -> tuple[CLIPConfig, list[str]]:
    """A `model_cfg` as our config, and notes on what was decided.

    Raises:
        ConfigError: names the key and value that no tower of ours can honour.
        CheckpointError: malformed or incomplete settings.
    """
    cfg = Settings(data, f"{where}: model_cfg")
    quick_gelu = bool(cfg.take("quick_gelu", False))
    vision = Settings(cfg.require("vision_cfg"), f"{where}: vision_cfg")
    text = Settings(cfg.require("text_cfg"), f"{where}: text_cfg")
    embed_dim = cfg.require("embed_dim")
    loss = "softmax" if cfg.take("init_logit_bias") is None else "sigmoid"
    notes: list[str] = []
    name = vision.take("timm_model_name")
    if name is not None:
        visual = _timm(vision, name)
    else:
        visual = _vision(vision, quick_gelu=quick_gelu)
    textual = _text(text, quick_gelu=quick_gelu)
    if name is not None and textual.act == "gelu":
        textual = replace(textual, act="gelu_tanh", init="big_vision")
        notes.append(
            "SigLIP: both towers compute the tanh GELU, as in training; open_clip does not"
        )
    cfg.done({}, ("custom_text", "init_logit_scale", "nonscalar_logit_scale"))
    return CLIPConfig(embed_dim=embed_dim, visual=visual, text=textual, loss=loss), notes


def _act(cfg: Settings, *, quick_gelu: bool) -> Any:
    kwargs = cfg.take("act_kwargs") or {}
    if quick_gelu and not kwargs:
        return "quick_gelu"
    kind = kwargs.get("approximate", "none")
    if quick_gelu or kwargs.keys() - {"approximate"} or kind not in ("none", "tanh"):
        cfg.refuse("act_kwargs", kwargs)
    return "gelu_tanh" if kind == "tanh" else "gelu"


def _eps(cfg: Settings) -> float:
    kwargs = cfg.take("norm_kwargs") or {}
    if kwargs.keys() - {"eps"}:
        cfg.refuse("norm_kwargs", kwargs)
    return float(kwargs.get("eps", 1e-5))


def _vision(cfg: Settings, *, quick_gelu: bool) -> ViTConfig | ResNetConfig:
    layers, width = cfg.take("layers", 12), cfg.take("width", 768)
    image_size = pair(cfg.take("image_size", 224), f"{cfg.where}.image_size")
    head_width = cfg.take("head_width", 64)
    if isinstance(layers, list):
        for key in ("mlp_ratio", "patch_size", "pool_type"):  # a ResNet has none of these
            cfg.take(key)
        cfg.done(_VISION_NEUTRAL, (*_VISION_IGNORED, "timm_pool", "timm_proj"))
        stages: Any = tuple(layers)
        return ResNetConfig(
            image_size=image_size, layers=stages, width=width, heads=width * 32 // head_width
        )
    patch = pair(cfg.take("patch_size", 16), f"{cfg.where}.patch_size")
    if patch[0] != patch[1]:
        cfg.refuse("patch_size", list(patch))
    visual = ViTConfig(
        image_size=image_size,
        patch_size=patch[0],
        width=width,
        layers=layers,
        heads=width // head_width,
        mlp_dim=int(width * cfg.take("mlp_ratio", 4.0)),
        act=_act(cfg, quick_gelu=quick_gelu),
        ln_eps=_eps(cfg),
        pre_norm=not cfg.take("no_ln_pre", False),
        pool=cfg.choice("pool_type", {"tok": "class", "avg": "mean"}, "tok"),
        norm_after_pool=bool(cfg.take("final_ln_after_pool", False)),
        positions=cfg.choice(
            "pos_embed_type", {"learnable": "learned", "sin_cos_2d": "sincos2d"}, "learnable"
        ),
        patch_dropout=float(cfg.take("patch_dropout", 0.0)),
    )
    cfg.done(_VISION_NEUTRAL, (*_TIMM_IGNORED, "timm_pool", "timm_proj"))
    return visual


def _timm(cfg: Settings, name: str) -> ViTConfig:
    if name not in TIMM:
        cfg.refuse("timm_model_name", name)
    cfg.choice("timm_pool", {"map": "map"}, "avg")
    proj = cfg.choice("timm_proj", {"none": "none", "": "none", "linear": "linear"}, "linear")
    image_size = pair(cfg.take("image_size", 224), f"{cfg.where}.image_size")
    if image_size != TIMM[name].image_size:
        cfg.refuse("image_size", list(image_size))
    for key in ("layers", "width", "patch_size", "head_width", "mlp_ratio"):
        cfg.take(key)  # "a valid model name overrides layers, width, patch_size"
    rate = float(cfg.take("patch_dropout", 0.0))
    cfg.done(_VISION_NEUTRAL, _TIMM_IGNORED)
    return replace(TIMM[name], proj=proj, patch_dropout=rate)


def _text(cfg: Settings, *, quick_gelu: bool) -> TextConfig:
    width = cfg.take("width", 512)
    pools = {p: p for p in ("argmax", "eos", "last", "first")}
    pool = cfg.choice("pool_type", pools, "argmax")
    eos_id = cfg.take("eos_id", 2)
    bias = cfg.take("proj_bias", False)
    projections = {"linear": "linear_bias" if bias else "linear", "none": "none"}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        cfg.take(key)  # `read_tokenizer` reads them
    text = TextConfig(
        context_length=cfg.take("context_length", 77),
        vocab_size=cfg.take("vocab_size", 49408),
        width=width,
        layers=cfg.take("layers", 12),
        heads=cfg.take("heads", 8),
        mlp_dim=int(width * cfg.take("mlp_ratio", 4.0)),
        act=_act(cfg, quick_gelu=quick_gelu),
        ln_eps=_eps(cfg),
        causal=not cfg.take("no_causal_mask", False),
        pool=pool,
        eos_id=eos_id if pool == "eos" else None,
        proj=cfg.choice("proj_type", projections, "linear"),
    )
    cfg.done(_TEXT_NEUTRAL, _TEXT_IGNORED)
    return text


def read_preprocess(data: Any, config: CLIPConfig, where: str) -> PreprocessConfig:
    """A `preprocess_cfg`; keys that are absent have open_clip's defaults."""
    cfg = Settings(data, f"{where}: preprocess_cfg")
    cfg.choice("mode", {"RGB": "RGB"}, "RGB")
    fill = cfg.take("fill_color", 0)
    preprocess = PreprocessConfig(
        size=pair(cfg.take("size", list(config.visual.image_size)), f"{where}: size"),
        mean=triple(cfg.take("mean") or OPENAI_MEAN, f"{where}: mean"),
        std=triple(cfg.take("std") or OPENAI_STD, f"{where}: std"),
        interpolation=cfg.choice(
            "interpolation", {"bicubic": "bicubic", "bilinear": "bilinear"}, "bicubic"
        ),
        resize=cfg.choice(
            "resize_mode", {m: m for m in ("shortest", "squash", "longest")}, "shortest"
        ),
        pad=fill,
    )
    cfg.done({"num_channels": 3})
    return preprocess


# open_clip's names of cleaning functions; each begins with ftfy and HTML entities.
CLEAN = {"lower": "openai", "whitespace": "whitespace", "canonicalize": "canonicalize_open_clip"}


def read_tokenizer(
    text_cfg: dict[str, Any], config: CLIPConfig, folder: Path | None, where: str
) -> tuple[TokenizerConfig, list[str]]:
    """The tokenizer that open_clip would take for this `text_cfg`."""
    kwargs = Settings(text_cfg.get("tokenizer_kwargs") or {}, f"{where}: tokenizer_kwargs")
    length = config.text.context_length
    if not text_cfg.get("hf_tokenizer_name"):
        clean = kwargs.choice("clean", CLEAN, "lower")
        kwargs.done({})
        return TokenizerConfig(kind="clip_bpe", context_length=length, clean=clean), []
    clean = kwargs.choice("clean", CLEAN, "whitespace")
    strip_sep = bool(kwargs.take("strip_sep_token", False))
    kwargs.done({})
    found, kind, notes = find_vocabulary(folder)
    if kind == "wordpiece" or (kind is None and strip_sep):
        tokenizer = wordpiece(length, found or "vocab.txt", strip_sep=strip_sep)
        return replace(tokenizer, clean=clean), notes
    pad = SIGLIP_PADDING.get(config.text.vocab_size, 1)
    return TokenizerConfig(
        kind="sentencepiece",
        context_length=length,
        file=found or "tokenizer.json",
        clean=clean,
        pad_id=pad,
        bos_id=None,
        eos_id=1,
    ), notes
