"""What a model is: frozen, typed, serialisable dataclasses. No torch in this file.

- A tower's config is a class of its own, and `towers.build` dispatches on that class.
- Activation, epsilon, pooling, pixels and tokens are data of the checkpoint's tag, written into
  every file we save; nothing is guessed from a name.
- `to_dict` / `from_dict` are exact inverses; an unknown key or a wrong value is an error.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from diptych.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Activation",
    "AugmentConfig",
    "BertConfig",
    "CLIPConfig",
    "ConceptsConfig",
    "EfficientNetConfig",
    "PaletteConfig",
    "Patches",
    "PreprocessConfig",
    "ResNetConfig",
    "TextConfig",
    "TokenizerConfig",
    "ViTConfig",
    "from_dict",
    "register",
    "to_dict",
]

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Size = tuple[int, int]  # height, width in pixels

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """A vision transformer (arXiv 2010.11929) with the fields in which CLIP's families differ."""

    image_size: Size
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    act: Activation = "gelu"
    ln_eps: float = 1e-5
    patch_bias: bool = False
    class_token: bool = True
    pre_norm: bool = True  # LayerNorm before the first block (OpenAI CLIP)
    positions: Literal["learned", "sincos2d"] = "learned"  # sincos2d: fixed, but stored (CLIPA)
    pool: Literal["class", "mean", "map"] = "class"  # map: one learned probe attends (SigLIP)
    norm_after_pool: bool = False  # CLIPA: mean of the patch tokens, then LayerNorm
    proj: Literal["linear", "none"] = "linear"
    patch_dropout: float = 0.0  # share of patches left out of each image in training
    init: Literal["openai", "big_vision"] = "openai"

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)
        if min(self.image_size) < self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is below patch_size {self.patch_size}")
        if self.pool == "class" and not self.class_token:
            raise ConfigError("pool='class' needs class_token=True")
        if not 0 <= self.patch_dropout < 1:
            raise ConfigError(f"patch_dropout must lie in [0, 1), got {self.patch_dropout}")

    @property
    def grid(self) -> Size:
        """Rows and columns of patches at `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetConfig:
    """OpenAI's modified ResNet: three-conv stem, anti-aliased strides, attention pooling."""

    image_size: Size
    layers: tuple[int, int, int, int]  # bottlenecks per stage
    width: int  # channels after the stem; the last stage has 32 x width
    heads: int  # of the attention pool

    def __post_init__(self) -> None:
        _check_heads(32 * self.width, self.heads)
        if min(self.image_size) < 32:
            raise ConfigError(f"image_size {self.image_size} is below the stride, 32")

    @property
    def grid(self) -> Size:
        """Rows and columns of the last feature map at `image_size`."""
        return self.image_size[0] // 32, self.image_size[1] // 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A text transformer: CLIP's causal one, or SigLIP's and CLIPA's bidirectional ones."""

    context_length: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    act: Activation = "gelu"
    ln_eps: float = 1e-5
    causal: bool = True
    pad_id: int | None = None  # None: padding is attended to, as in every published CLIP and SigLIP
    pool: Literal["argmax", "eos", "last", "first"] = "argmax"  # argmax: EOT is the highest id
    eos_id: int | None = None  # for pool="eos": its first occurrence
    proj: Literal["linear", "linear_bias", "none"] = "linear"
    init: Literal["openai", "big_vision"] = "openai"

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)
        if (self.pool == "eos") != (self.eos_id is not None):
            raise ConfigError("pool='eos' and eos_id go together: give both or neither")


@dataclass(frozen=True, kw_only=True, slots=True)
class PaletteConfig:
    """How the colours of a picture are counted: `towers.concepts.Palette`.

    mean, std: of the pixels as the tower gets them. spread: how far a colour reaches, in units of
    CIE L*a*b*. centre: how far the middle reaches, in half sides. chroma: how much more a pixel
    counts for a unit of chroma. white: what a white pixel counts.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    spread: float = 12.0
    centre: float = 0.5
    chroma: float = 0.02
    white: float = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptsConfig:
    """From class probabilities to the text space (ConSE, arXiv 1312.5650): `towers.concepts`."""

    num_classes: int = 1000
    temperature: float = 1.0  # the logits are divided by it
    top: int = 20  # likeliest classes that count
    palette: PaletteConfig | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top <= self.num_classes:
            raise ConfigError(f"top must lie in 1..{self.num_classes}, got {self.top}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientNetConfig:
    """EfficientNet (arXiv 1905.11946), as in ALIGN (arXiv 2102.05918), and its Lite variants.

    `width_mult` and `depth_mult` scale the table of B0; `towers.efficientnet.layers` writes it out.
    """

    image_size: Size
    width_mult: float = 1.0
    depth_mult: float = 1.0
    lite: bool = False  # ReLU6, no squeeze-and-excitation; stem, first and last stage not scaled
    head_width: int | None = 1280  # of the last 1x1 convolution; None: there is none (ALIGN)
    bn_eps: float = 1e-3
    # Of the strided convolutions. same: TensorFlow's, which depends on whether a side is odd or
    # even; even: what "same" is for an even side, whatever the side (transformers' ALIGN).
    padding: Literal["same", "even"] = "same"
    proj: Literal["linear", "none", "concepts"] = "linear"
    concepts: ConceptsConfig | None = None  # for proj="concepts"

    def __post_init__(self) -> None:
        if min(self.image_size) < 32:
            raise ConfigError(f"image_size {self.image_size} is below the stride, 32")
        if min(self.width_mult, self.depth_mult) <= 0:
            raise ConfigError(
                f"width_mult and depth_mult must be above 0, got {self.width_mult} and "
                f"{self.depth_mult}"
            )
        if (self.proj == "concepts") != (self.concepts is not None):
            raise ConfigError("proj='concepts' and concepts= go together: give both or neither")

    @property
    def grid(self) -> Size:
        """Rows and columns of the last feature map at `image_size`."""
        height, width = self.image_size
        for _ in range(5):  # strides of 2; "same" rounds up, "even" down
            up = self.padding == "same"
            height, width = (height + up) // 2, (width + up) // 2
        return height, width


@dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig:
    """BERT's encoder (arXiv 1810.04805): post-norm, bidirectional, padding never attended to."""

    context_length: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    act: Activation = "gelu"
    ln_eps: float = 1e-12
    type_vocab_size: int = 2  # rows of a table of which only row 0 is used: one text at a time
    pad_id: int | None = 0
    pool: Literal["mean", "class"] = "mean"  # mean: of the real tokens; class: the first token
    proj: Literal["none", "linear", "linear_bias"] = "linear"
    unit: bool = False  # the pooled vector is brought to unit length before `proj`

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPConfig:
    """Two towers and what joins them. `visual` may be of any class known to `towers`."""

    embed_dim: int
    visual: Any  # ViTConfig | ResNetConfig | EfficientNetConfig | a registered class
    text: Any  # TextConfig | BertConfig | a registered class
    loss: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: the model has a `logit_bias`


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """From an image to pixels, in the order of the file that is distributed with the weights."""

    size: Size
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    # Of a size that is not square, "shortest" in open_clip is always bicubic: write what happens.
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    # shortest: short side to size, then centre crop; squash: both sides; longest: then pad
    # If larger than size, then centre crop. shortest: of the short side (DINOv2); squash: of both
    # sides (ALIGN).
    short: int | None = None
    rgb: Literal["after", "before"] = "after"  # than resizing (mode="original"); peers differ
    # before: Hugging Face, which also lays alpha over white; after: open_clip, which drops alpha
    crop: Literal["round", "floor"] = "round"  # of an odd margin: torchvision rounds, HF floors
    fill: tuple[int, int, int] = (255, 255, 255)  # background under alpha (mode="right")
    pad: int = 0  # "longest": grey level of the padding, open_clip's fill_color

    def __post_init__(self) -> None:
        if self.short is not None and (self.resize == "longest" or self.short < max(self.size)):
            raise ConfigError(
                f"short={self.short} needs resize='shortest' or 'squash' and at least the larger "
                f"of {self.size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What happens to an image in training beside `PreprocessConfig`: `preprocess.augment`.

    scale: the share of the area that a random crop keeps; None: the model's own resize and crop.
    ratio: of the crop's width to its height.
    flip: probability of a mirror image. It makes "left" mean right: 0 unless no text says so.
    jitter: largest factor on brightness, contrast and saturation is 1 + this (CLIPA: 0.4).
    grey: probability of a picture without colours.
    """

    scale: tuple[float, float] | None = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale must rise within (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio must rise and be above 0, got {self.ratio}")
        for what, value in (("flip", self.flip), ("grey", self.grey)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{what} is a probability, got {value}")


class Patches(NamedTuple):
    """A batch of images of different sizes, cut into patches (NaFlex, arXiv 2502.14786).

    Made by `preprocess.collate`, opened by the tower: a NaFlex tower takes it in place of
    Float[n 3 H W].
    """

    patches: "Tensor"  # Float[n s p], p = (row, column, channel) of a patch; padding is 0
    mask: "Tensor"  # Bool[n s], True where there is a patch
    grid: "Tensor"  # Int[n 2], rows and columns of patches


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """From a text to token ids. `file` is "clip" (in the package) or a file beside the weights.

    Layout of a row: `bos_id` (None: none), the text's ids, `eos_id` (None: none), then `pad_id`.
    The end is sticky: a text that is cut keeps it. SigLIP: bos None, eos 1, pad 1 (v1) or 0
    (SigLIP 2); CLIPA: bos 101, eos 0, pad 0, because its `[SEP]` is replaced by the padding.
    """

    kind: Literal["clip_bpe", "sentencepiece", "wordpiece"]
    context_length: int
    file: str = "clip"
    clean: Literal[
        "openai",  # ftfy, HTML entities, white space, lower case: OpenAI and open_clip
        "transformers",  # its CLIP: NFC, white space, lower case; neither ftfy nor entities
        "whitespace",  # ftfy, HTML entities, white space: CLIPA as open_clip reads it
        "lower",  # lower case and nothing else: SigLIP 2's training code
        "canonicalize",  # big_vision's: "_" to space, no punctuation, lower case, white space
        "canonicalize_hf",  # transformers' SigLIP: the same, but "_" is removed: "sea_waves"
        "canonicalize_open_clip",  # open_clip's SigLIP and SigLIP 2: ftfy, entities, big_vision's
        "none",
    ] = "openai"
    pad_id: int = 0
    bos_id: int | None = 49406
    eos_id: int | None = 49407

    def __post_init__(self) -> None:
        control = (self.bos_id is not None) + (self.eos_id is not None)
        if self.context_length <= control:
            raise ConfigError(
                f"context_length {self.context_length} leaves no room for text beside {control} "
                "control ids"
            )
        if (self.file == "clip") and self.kind != "clip_bpe":
            raise ConfigError(f"kind={self.kind!r} needs file=, the vocabulary beside the weights")


_CLASSES: dict[str, type] = {}


def register(cls: type) -> type:
    """Make a config class known to `from_dict` under its class name; returns the class."""
    if not (dataclasses.is_dataclass(cls) and isinstance(cls, type)):
        raise ConfigError(f"{cls!r} is not a dataclass: decorate it with @dataclass(frozen=True)")
    known = _CLASSES.setdefault(cls.__name__, cls)
    if known is not cls:
        raise ConfigError(f"two config classes are named {cls.__name__!r}; rename one")
    return cls


for _cls in (ViTConfig, ResNetConfig, EfficientNetConfig, ConceptsConfig, PaletteConfig):
    register(_cls)
for _cls in (TextConfig, BertConfig, CLIPConfig, PreprocessConfig, TokenizerConfig):
    register(_cls)
register(AugmentConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dict; the key "type" holds the class name."""
    out: dict[str, Any] = {"type": type(config).__name__}
    for field in dataclasses.fields(config):
        out[field.name] = _plain(getattr(config, field.name))
    return out


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def from_dict(data: Mapping[str, Any]) -> Any:
    """The config that `to_dict` wrote.

    Raises:
        ConfigError: unknown type or key, missing key, or a value of the wrong kind; names it.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("type"), str):
        raise ConfigError(f"a config is a dict with a 'type', got {data!r:.80}")
    name = data["type"]
    if name not in _CLASSES:
        raise ConfigError(
            f"unknown config type {name!r}. {nearest(name, _CLASSES)} "
            "Install the package that registers it, or correct the name."
        )
    cls = _CLASSES[name]
    hints = typing.get_type_hints(cls)
    if unknown := sorted(data.keys() - hints.keys() - {"type"}):
        raise ConfigError(f"{name}: unknown key {unknown[0]!r}. {nearest(unknown[0], hints)}")
    no_default = dataclasses.MISSING
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is no_default and f.default_factory is no_default
    }
    if missing := sorted(required - data.keys()):
        raise ConfigError(f"{name}: missing key {missing[0]!r}")
    given = {k: _value(f"{name}.{k}", hints[k], v) for k, v in data.items() if k != "type"}
    return cls(**given)


def _value(where: str, hint: Any, value: Any) -> Any:
    """`value`, read from JSON, as the type `hint` asks for."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if hint is Any:
        return from_dict(value)
    if dataclasses.is_dataclass(hint):
        value = from_dict(value)  # the class is compared below
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is types.UnionType:  # X | None
        return None if value is None else _value(where, args[0], value)
    if origin is tuple:
        if args[-1] is Ellipsis and isinstance(value, list | tuple):
            args = (args[0],) * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(args):
            raise ConfigError(f"{where} must be a list of {len(args)}, got {value!r}")
        return tuple(_value(where, a, v) for a, v in zip(args, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"width {width} is not a multiple of heads {heads}")
