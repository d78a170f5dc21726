"""Hugging Face folders of `clip` and `siglip`: `config.json` and its companions, both ways.

Source: transformers 5, `models/{clip,siglip}/configuration_*.py`: a field that a file leaves out
has that class's default, for old files hold only what differs.

- EOS rule: `eos_token_id == 2` pools at the highest id, anything else at its first occurrence.
- Image processors convert to RGB before they resize, and crop at floor((height - crop) / 2).
- Text is cleaned as the folder's own tokenizer does: no ftfy and no HTML entities for CLIP.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config import (
    OPENAI_MEAN,
    OPENAI_STD,
    Activation,
    CLIPConfig,
    PreprocessConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo.settings import Settings, pair, read_json, triple
from diptych.zoo.vocabulary import SIGLIP_PADDING, find_vocabulary, merges

__all__ = [
    "ACTIVATIONS",
    "default_pixels",
    "part_of",
    "read_config",
    "read_preprocess",
    "read_tokenizer",
    "sides",
    "write_config",
    "write_preprocess",
]

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",  # the same formula under its older name
}
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP_TEXT = {
    **_CLIP_TEXT,
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "projection_size": None,
}
_SIGLIP_VISION = {
    **_CLIP_VISION,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}


def read_config(data: Any, where: str) -> CLIPConfig:
    """A `config.json` as our config.

    Raises:
        ConfigError: a model type or a setting that no tower of ours can honour.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: is not a JSON object.")
    match data.get("model_type"):
        case "clip":
            text, vision = part_of(data, "text", _CLIP_TEXT), part_of(data, "vision", _CLIP_VISION)
            return CLIPConfig(
                embed_dim=data.get("projection_dim", 512),
                visual=_vision(vision, where),
                text=_clip_text(text, where),
            )
        case "siglip":
            text, vision = (
                part_of(data, "text", _SIGLIP_TEXT),
                part_of(data, "vision", _SIGLIP_VISION),
            )
            return _siglip(text, vision, where)
        case other:
            raise ConfigError(
                f"{where}: model_type {other!r} cannot be read; known: 'align', 'clip', 'siglip'. "
                "Towers of other kinds come with packages: see diptych.towers.Family."
            )


def part_of(data: dict[str, Any], side: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then `<side>_config`; `<side>_config_dict`, where old files have it, wins whole."""
    given = {k: v for k, v in (data.get(f"{side}_config") or {}).items() if k in defaults}
    older = data.get(f"{side}_config_dict")
    if older is None:
        return {**defaults, **given}
    return {**defaults, **given, **defaults, **{k: v for k, v in older.items() if k in defaults}}


def _act(part: dict[str, Any], where: str) -> Any:
    name = part["hidden_act"]
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"{where}: hidden_act = {name!r} cannot be computed; known: {list(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _common(part: dict[str, Any], where: str) -> dict[str, Any]:
    return {
        "width": part["hidden_size"],
        "layers": part["num_hidden_layers"],
        "heads": part["num_attention_heads"],
        "mlp_dim": part["intermediate_size"],
        "act": _act(part, where),
        "ln_eps": float(part["layer_norm_eps"]),
    }


def _vision(part: dict[str, Any], where: str) -> ViTConfig:
    patch = pair(part["patch_size"], f"{where}: patch_size")
    if part["num_channels"] != 3 or patch[0] != patch[1]:
        raise ConfigError(f"{where}: num_channels and patch_size must be 3 and one number.")
    return ViTConfig(
        image_size=pair(part["image_size"], f"{where}: image_size"),
        patch_size=patch[0],
        **_common(part, where),
    )


def _clip_text(part: dict[str, Any], where: str) -> TextConfig:
    eos = part["eos_token_id"]
    if type(eos) is not int:
        raise ConfigError(f"{where}: eos_token_id = {eos!r} must be one number.")
    return TextConfig(
        context_length=part["max_position_embeddings"],
        vocab_size=part["vocab_size"],
        pool="argmax" if eos == 2 else "eos",
        eos_id=None if eos == 2 else eos,
        **_common(part, where),
    )


def _siglip(text: dict[str, Any], vision: dict[str, Any], where: str) -> CLIPConfig:
    if not vision["vision_use_head"]:
        raise ConfigError(f"{where}: vision_use_head = false: an image tower without a vector.")
    embed_dim = text["projection_size"] or text["hidden_size"]
    if embed_dim != vision["hidden_size"]:
        raise ConfigError(
            f"{where}: text projects to {embed_dim}, images to {vision['hidden_size']}."
        )
    visual = replace(
        _vision(vision, where),
        patch_bias=True,
        class_token=False,
        pre_norm=False,
        pool="map",
        proj="none",
        init="big_vision",
    )
    textual = TextConfig(
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        causal=False,
        pool="last",
        proj="linear_bias",
        init="big_vision",
        **_common(text, where),
    )
    return CLIPConfig(embed_dim=embed_dim, visual=visual, text=textual, loss="sigmoid")


_RESAMPLE = {2: "bilinear", 3: "bicubic", None: "bicubic"}


def default_pixels(config: CLIPConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` of a folder that has none: the family's, at its image size."""
    side = config.visual.image_size[0]
    if config.loss == "sigmoid":
        return {"size": {"height": side, "width": side}}
    return {"size": side, "crop_size": side}


def read_preprocess(data: Any, config: CLIPConfig, where: str) -> PreprocessConfig:
    """A `preprocessor_config.json`; absent keys have the family's image processor's defaults."""
    cfg = Settings(data, where)
    siglip = config.loss == "sigmoid"
    for key in ("do_resize", "do_rescale"):
        cfg.choice(key, {True: True, None: True}, True)
    if abs(cfg.take("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ConfigError(f"{where}: rescale_factor must be 1/255.")
    normal = cfg.take("do_normalize", True)
    half = (0.5, 0.5, 0.5)
    mean = cfg.take("image_mean", half if siglip else OPENAI_MEAN) if normal else (0.0, 0.0, 0.0)
    std = cfg.take("image_std", half if siglip else OPENAI_STD) if normal else (1.0, 1.0, 1.0)
    size = cfg.take("size", {"height": 224, "width": 224} if siglip else {"shortest_edge": 224})
    crops = cfg.take("do_center_crop", not siglip)
    crop = cfg.take("crop_size", 224)
    common: dict[str, Any] = {
        "mean": triple(mean, f"{where}: image_mean"),
        "std": triple(std, f"{where}: image_std"),
        "interpolation": cfg.choice("resample", _RESAMPLE, 3),
        "rgb": "before",
        "crop": "floor",
    }
    square = isinstance(size, dict) and "height" in size
    if square and not crops:
        return PreprocessConfig(size=sides(size, where), resize="squash", **common)
    if square or not crops:
        raise ConfigError(f"{where}: size {size} with do_center_crop {crops} cannot be done.")
    short = size.get("shortest_edge") if isinstance(size, dict) else size
    window = sides(crop, where)
    if type(short) is not int or short < max(window) or window[0] != window[1]:
        raise ConfigError(f"{where}: size {size} and crop_size {crop} cannot be done together.")
    return PreprocessConfig(size=window, short=None if short == window[0] else short, **common)


def sides(size: Any, where: str) -> tuple[int, int]:
    """(height, width) of a processor's "size", a dict or numbers."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    return pair(size, f"{where}: size")


def read_tokenizer(config: CLIPConfig, folder: Path) -> tuple[TokenizerConfig, list[str]]:
    """What the tokenizer files of a folder say; else the family's default, with a note."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    length = config.text.context_length
    if config.loss == "softmax":
        return _clip_tokenizer(pad, length, folder)
    found, kind, notes = find_vocabulary(folder)
    if kind not in ("sentencepiece", None):
        raise ConfigError(f"{folder / (found or '')}: SigLIP needs SentencePiece, not {kind}.")
    pads = {"</s>": 1, "<pad>": 0}
    pad_id = pads.get(str(pad), SIGLIP_PADDING.get(config.text.vocab_size, 1))
    gemma = "Gemma" in str(settings.get("tokenizer_class")) or (
        "tokenizer_class" not in settings and config.text.vocab_size == 256_000
    )
    return TokenizerConfig(
        kind="sentencepiece",
        context_length=length,
        file=found or ("tokenizer.json" if gemma else "spiece.model"),
        clean="lower" if gemma else "canonicalize_hf",
        pad_id=pad_id,
        bos_id=None,
        eos_id=1,
    ), notes


def _clip_tokenizer(
    pad: str | None, length: int, folder: Path
) -> tuple[TokenizerConfig, list[str]]:
    notes: list[str] = []
    theirs = folder / "merges.txt"
    if theirs.is_file():
        lines = [
            x for x in theirs.read_text("utf-8").split("\n") if x and not x.startswith("#version")
        ]
        if lines != merges():
            raise ConfigError(f"{theirs}: is not CLIP's vocabulary. Name the tokenizer yourself.")
    elif not (folder / "tokenizer.json").is_file():
        notes.append("no tokenizer files: took OpenAI's tokens, padding with 0")
        return TokenizerConfig(kind="clip_bpe", context_length=length), notes
    pad_id = {"<|endoftext|>": 49407, "!": 0}.get(pad or "<|endoftext|>")
    if pad_id is None:
        raise ConfigError(f"{folder}: the pad_token {pad!r} is not in CLIP's vocabulary.")
    return TokenizerConfig(
        kind="clip_bpe", context_length=length, clean="transformers", pad_id=pad_id
    ), notes


def write_config(config: CLIPConfig, dtype: str) -> dict[str, Any]:
    """Our config as a `config.json` of transformers.

    Raises:
        ConfigError: names the fields that neither `clip` nor `siglip` has.
    """
    visual, text = config.visual, config.text
    if not isinstance(visual, ViTConfig) or not isinstance(text, TextConfig):
        raise ConfigError(
            f"Hugging Face's CLIP has no {type(visual).__name__} and {type(text).__name__}. "
            "Save with format='open_clip' or 'diptych'."
        )
    siglip = config.loss == "sigmoid"
    fixed = {"positions": "learned", "norm_after_pool": False, "pool": "map" if siglip else "class"}
    fixed |= {"class_token": not siglip, "pre_norm": not siglip, "patch_bias": siglip}
    fixed |= {"proj": "none" if siglip else "linear"}
    wrong = [
        f"visual.{k} = {getattr(visual, k)!r}" for k, v in fixed.items() if getattr(visual, k) != v
    ]
    fixed = {"causal": not siglip, "pad_id": None, "proj": "linear_bias" if siglip else "linear"}
    wrong += [f"text.{k} = {getattr(text, k)!r}" for k, v in fixed.items() if getattr(text, k) != v]
    if text.pool not in (("last",) if siglip else ("argmax", "eos")) or text.eos_id == 2:
        wrong.append(f"text.pool = {text.pool!r} with eos_id = {text.eos_id}")
    if visual.image_size[0] != visual.image_size[1]:
        wrong.append(f"visual.image_size = {visual.image_size}")
    if wrong:
        kind = "siglip" if siglip else "clip"
        raise ConfigError(
            f"Hugging Face's {kind!r} cannot state {', '.join(wrong)}. Save with format='diptych'."
        )
    acts = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
    shared = [
        {
            "hidden_size": part.width,
            "intermediate_size": part.mlp_dim,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
            "hidden_act": acts[part.act],
            "layer_norm_eps": part.ln_eps,
        }
        for part in (text, visual)
    ]
    text_config = shared[0] | {
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
    }
    vision_config = shared[1] | {
        "image_size": visual.image_size[0],
        "patch_size": visual.patch_size,
        "num_channels": 3,
    }
    out: dict[str, Any] = {
        "dtype": dtype,
        "text_config": text_config,
        "vision_config": vision_config,
    }
    if siglip:
        text_config["projection_size"] = config.embed_dim
        return {"architectures": ["SiglipModel"], "model_type": "siglip", **out}
    text_config |= {"projection_dim": config.embed_dim, "eos_token_id": text.eos_id or 2}
    vision_config["projection_dim"] = config.embed_dim
    head = {"architectures": ["CLIPModel"], "model_type": "clip"}
    return {**head, "projection_dim": config.embed_dim, "logit_scale_init_value": 2.6592, **out}


def write_preprocess(preprocess: PreprocessConfig, *, siglip: bool) -> dict[str, Any]:
    """Our pixels as a `preprocessor_config.json`."""
    height, width = preprocess.size
    out: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "resample": {"bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "rescale_factor": 1 / 255,
    }
    match preprocess.resize:
        case "squash" if preprocess.short is None:
            name = "SiglipImageProcessor" if siglip else "CLIPImageProcessor"
            out |= {"image_processor_type": name, "size": {"height": height, "width": width}}
            return out if siglip else out | {"do_center_crop": False}
        case "shortest" if height == width:
            out |= {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True}
            out["size"] = {"shortest_edge": preprocess.short or height}
            return out | {"crop_size": {"height": height, "width": width}}
    raise ConfigError(
        f"Hugging Face's processors cannot state resize={preprocess.resize!r} with the size "
        f"{preprocess.size} and short={preprocess.short}. Save with format='diptych'."
    )


def dump(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
