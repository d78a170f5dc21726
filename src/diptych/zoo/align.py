"""Hugging Face folders of `align`: EfficientNet and BERT, `config.json` and companions, both ways.

Source: transformers 5, `models/align` and `models/efficientnet`; published: kakaobrain/align-base.
ALIGN: arXiv 2102.05918.

- Strided convolutions pad as for an even side even where it is odd (the stem, of 289 pixels).
- The image vector is the averaged last map, the text vector the first token's, projected. The
  file's tanh pooler has no part in it: it is left out, and a folder that we write is without it.
- The learned temperature divides the logits: our `logit_scale` is -log of it.
"""

import json
import math
from pathlib import Path
from typing import Any

from diptych.config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    PreprocessConfig,
    TokenizerConfig,
)
from diptych.errors import CheckpointError, ConfigError
from diptych.towers.efficientnet import B0, layers, pooled_width
from diptych.zoo.hugging_face import ACTIVATIONS, part_of, sides
from diptych.zoo.settings import Settings, pair, read_json, triple
from diptych.zoo.vocabulary import find_vocabulary

__all__ = [
    "PUBLISHED_PIXELS",
    "default_pixels",
    "read_config",
    "read_preprocess",
    "read_tokenizer",
    "write_config",
    "write_preprocess",
]

_TEXT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
}
_COLUMNS = ("kernel_sizes", "strides", "expand_ratios", "in_channels", "out_channels")
_FIXED = {  # what a tower of ours cannot vary
    "num_channels": 3,
    "depth_divisor": 8,
    "squeeze_expansion_ratio": 0.25,
    "pooling_type": "mean",
    **{name: [row[i] for row in B0] for i, name in enumerate((*_COLUMNS, "num_block_repeats"))},
}
_VISION = {
    **_FIXED,
    "image_size": 600,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depthwise_padding": [],
    "hidden_act": "swish",
    "hidden_dim": 2560,
    "batch_norm_eps": 1e-3,
}
CONTEXT_LENGTH = 64  # what transformers' `AlignProcessor` cuts and pads to


def read_config(data: dict[str, Any], where: str) -> CLIPConfig:
    """A `config.json` as our config.

    Raises:
        ConfigError: a setting that our towers cannot honour.
    """
    text, vision = part_of(data, "text", _TEXT), part_of(data, "vision", _VISION)
    visual, embed_dim = _vision(vision, where), data.get("projection_dim", 640)
    if pooled_width(visual) != embed_dim:
        raise ConfigError(
            f"{where}: text projects to {embed_dim}, images have {pooled_width(visual)} channels."
        )
    return CLIPConfig(embed_dim=embed_dim, visual=visual, text=_text(text, where))


def _vision(vision: dict[str, Any], where: str) -> EfficientNetConfig:
    for key, value in _FIXED.items():
        if vision[key] != value:
            raise ConfigError(f"{where}: {key} = {vision[key]!r} cannot be computed, only {value}.")
    if vision["hidden_act"] not in ("swish", "silu"):
        raise ConfigError(f"{where}: hidden_act = {vision['hidden_act']!r} must be 'swish'.")
    cfg = EfficientNetConfig(
        image_size=pair(vision["image_size"], f"{where}: image_size"),
        width_mult=float(vision["width_coefficient"]),
        depth_mult=float(vision["depth_coefficient"]),
        head_width=None,
        bn_eps=float(vision["batch_norm_eps"]),
        padding="even",
        proj="none",
    )
    table = layers(cfg)
    if listed := [i for i in vision["depthwise_padding"] if i < len(table) and table[i].stride > 1]:
        raise ConfigError(
            f"{where}: depthwise_padding pads the strided block {listed[0]} on both sides, the "
            "others on one: this cannot be computed."
        )
    for i in _stage_starts(cfg):
        if table[i].stride == 1 and table[i].channels_in == table[i].channels:
            raise ConfigError(
                f"{where}: width_coefficient = {cfg.width_mult} makes block {i} as wide as its "
                "input: EfficientNet adds the two there, transformers does not."
            )
    if max(cfg.grid) > vision["hidden_dim"]:
        raise ConfigError(
            f"{where}: hidden_dim = {vision['hidden_dim']} is the side of the window that is "
            f"averaged, and the last map has {max(cfg.grid)}: the mean would not be of all of it."
        )
    return cfg


def _stage_starts(cfg: EfficientNetConfig) -> list[int]:
    """The index of each stage's first block."""
    starts = [0]
    for *_, repeats in B0[:-1]:
        starts.append(starts[-1] + math.ceil(cfg.depth_mult * repeats))
    return starts


def _text(text: dict[str, Any], where: str) -> BertConfig:
    if text["position_embedding_type"] != "absolute":
        raise ConfigError(
            f"{where}: position_embedding_type = {text['position_embedding_type']!r} cannot be "
            "computed, only 'absolute'."
        )
    if text["hidden_act"] not in ACTIVATIONS:
        raise ConfigError(
            f"{where}: hidden_act = {text['hidden_act']!r} cannot be computed; known: "
            f"{list(ACTIVATIONS)}."
        )
    return BertConfig(
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        width=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        mlp_dim=text["intermediate_size"],
        act=ACTIVATIONS[text["hidden_act"]],
        ln_eps=float(text["layer_norm_eps"]),
        type_vocab_size=text["type_vocab_size"],
        pad_id=text["pad_token_id"],
        pool="class",
        proj="linear_bias",
    )


# kakaobrain's `preprocessor_config.json`, as transformers' conversion script writes it
PUBLISHED_PIXELS = {
    "do_center_crop": True,
    "do_normalize": False,
    "include_top": False,
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
}


def default_pixels(config: CLIPConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` of a folder that has none: the published one."""
    return PUBLISHED_PIXELS


def read_preprocess(data: Any, config: CLIPConfig, where: str) -> PreprocessConfig:
    """A `preprocessor_config.json`; absent keys have `EfficientNetImageProcessor`'s defaults.

    Raises:
        ConfigError: what our pixels cannot state.
    """
    cfg = Settings(data, where)
    for key in ("do_resize", "do_rescale"):
        cfg.choice(key, {True: True, None: True}, True)
    size = sides(cfg.take("size", {"height": 346, "width": 346}), where)
    crop = sides(cfg.take("crop_size", {"height": 289, "width": 289}), where)
    mean, std = _statistics(cfg, where)
    common: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "interpolation": cfg.choice("resample", {2: "bilinear", 3: "bicubic"}, 3),
        "resize": "squash",
        "rgb": "before",
        "crop": "floor",
    }
    if not cfg.take("do_center_crop", False) or crop == size:
        return PreprocessConfig(size=size, **common)
    if size[0] != size[1] or size[0] < max(crop):
        raise ConfigError(f"{where}: size {size} and crop_size {crop} cannot be done together.")
    return PreprocessConfig(size=crop, short=size[0], **common)


def _statistics(cfg: Settings, where: str) -> tuple[Any, Any]:
    """(mean, std) of pixels in 0..1 that do what the processor's up to three steps do:
    pixel * factor - offset, then (x - mean) / std, then x / std once more ("include_top").
    """
    scale = 255 * cfg.take("rescale_factor", 1 / 255)
    if not scale > 0:
        raise ConfigError(f"{where}: rescale_factor must be above 0.")
    if abs(scale - round(scale)) < 1e-9:
        scale = round(scale)  # 1 and 2, as 1/255 and 1/127.5 were meant
    offset = float(cfg.take("rescale_offset", False))
    given = cfg.take("image_mean", (0.5, 0.5, 0.5)), cfg.take("image_std", (0.5, 0.5, 0.5))
    mean, std = (
        triple(x, f"{where}: {key}") for x, key in zip(given, ("mean", "std"), strict=True)
    )
    normal, top = cfg.take("do_normalize", True), cfg.take("include_top", True)
    middle = tuple((offset + (m if normal else 0.0)) / scale for m in mean)
    divisors = tuple((s if normal else 1.0) * (s if top else 1.0) / scale for s in std)
    return middle, divisors


def read_tokenizer(config: CLIPConfig, folder: Path) -> tuple[TokenizerConfig, list[str]]:
    """BERT's uncased WordPiece, of 64 ids unless `tokenizer_config.json` says otherwise.

    Raises:
        ConfigError: a tokenizer of another kind.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    wrong = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
    for key, value in wrong.items():
        if settings.get(key, value) != value:
            raise ConfigError(f"{path}: {key} = {settings[key]!r} cannot be done, only {value}.")
    found, kind, notes = find_vocabulary(folder)
    if kind not in ("wordpiece", None):
        raise ConfigError(f"{folder / (found or '')}: ALIGN needs WordPiece, not {kind}.")
    length = settings.get("model_max_length", CONTEXT_LENGTH)
    ids = {"[CLS]": 101, "[SEP]": 102, "[PAD]": 0} if found is None else _ids(folder / found)
    return TokenizerConfig(
        kind="wordpiece",
        context_length=min(length, config.text.context_length),
        file=found or "vocab.txt",
        clean="none",  # what BERT's normaliser does belongs to the vocabulary
        pad_id=ids["[PAD]"],
        bos_id=ids["[CLS]"],
        eos_id=ids["[SEP]"],
    ), notes


def _ids(path: Path) -> dict[str, int]:
    """The ids of the three control tokens in a `vocab.txt` or a `tokenizer.json`."""
    if path.suffix == ".json":
        ids = read_json(path)["model"]["vocab"]  # `find_vocabulary` has looked into it
    else:
        ids = {piece: i for i, piece in enumerate(path.read_text("utf-8").splitlines())}
    if missing := [piece for piece in ("[CLS]", "[SEP]", "[PAD]") if piece not in ids]:
        raise CheckpointError(f"{path}: has no {missing[0]}; it is not BERT's vocabulary.")
    return ids


def write_config(config: CLIPConfig, dtype: str) -> dict[str, Any]:
    """Our config as a `config.json` of transformers.

    Raises:
        ConfigError: names the fields that `align` does not have.
    """
    visual, text = config.visual, config.text
    if not isinstance(text, BertConfig):
        raise ConfigError(
            f"Hugging Face's 'align' has no {type(text).__name__}. Save with format='diptych'."
        )
    needed = {"lite": False, "head_width": None, "padding": "even", "proj": "none"}
    wrong = [
        f"visual.{k} = {getattr(visual, k)!r}" for k, v in needed.items() if getattr(visual, k) != v
    ]
    needed = {"pool": "class", "proj": "linear_bias", "unit": False}
    wrong += [
        f"text.{k} = {getattr(text, k)!r}" for k, v in needed.items() if getattr(text, k) != v
    ]
    if text.pad_id is None:  # transformers masks by the tokenizer's padding
        wrong.append("text.pad_id = None")
    if wrong or config.loss != "softmax":
        raise ConfigError(
            f"Hugging Face's 'align' cannot state {', '.join(wrong) or 'a sigmoid loss'}. "
            "Save with format='diptych'."
        )
    acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    out = {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "dtype": dtype,
        "projection_dim": config.embed_dim,
        "text_config": {
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp_dim,
            "hidden_act": acts[text.act],
            "max_position_embeddings": text.context_length,
            "type_vocab_size": text.type_vocab_size,
            "layer_norm_eps": text.ln_eps,
            "pad_token_id": text.pad_id,
        },
        "vision_config": {
            **_FIXED,
            "image_size": visual.image_size[0],
            "width_coefficient": visual.width_mult,
            "depth_coefficient": visual.depth_mult,
            "depthwise_padding": [],
            "hidden_act": "swish",
            "hidden_dim": max(config.embed_dim, *visual.grid),
            "batch_norm_eps": visual.bn_eps,
        },
    }
    if visual.image_size[0] != visual.image_size[1]:
        out["vision_config"]["image_size"] = list(visual.image_size)
    if read_config(json.loads(json.dumps(out)), "the written config.json") != config:
        raise ConfigError("Hugging Face's 'align' cannot state this model. Use format='diptych'.")
    return out


def write_preprocess(preprocess: PreprocessConfig) -> dict[str, Any]:
    """Our pixels as a `preprocessor_config.json`."""
    if preprocess.resize != "squash":
        raise ConfigError(
            f"ALIGN's image processor cannot state resize={preprocess.resize!r}. "
            "Save with format='diptych'."
        )
    height, width = preprocess.size
    short = preprocess.short
    return {
        "image_processor_type": "EfficientNetImageProcessor",
        "do_resize": True,
        "size": {"height": short or height, "width": short or width},
        "resample": {"bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "do_center_crop": short is not None,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "rescale_offset": False,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "include_top": False,
    }
