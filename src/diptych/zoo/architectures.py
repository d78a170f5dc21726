"""The architectures that rows share: each derives from a base, and none repeats a block.

Source: openai/CLIP `clip/model.py`, open_clip `model_configs/*.json`, big_vision and CLIPA configs.

- Names are open_clip's, without its "-quickgelu" twins: the activation is the tag's (`with_act`).
- Heads are not width / 64: H is 80 wide, g 88, bigG 104, So400m 72, g-opt 96.
- Arithmetic follows the original training code: tanh GELU in SigLIP and CLIPA, where open_clip and
  timm compute the exact one.
"""

from dataclasses import replace
from typing import Any, Literal

from diptych.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.zoo.trunks import TIMM

__all__ = ["ARCHITECTURES", "with_act"]


# --- image towers -----------------------------------------------------------------------------

_B_32 = ViTConfig(
    image_size=(224, 224), patch_size=32, width=768, layers=12, heads=12, mlp_dim=3072
)
_B_16 = replace(_B_32, patch_size=16)
_B_16_PLUS_240 = replace(_B_16, image_size=(240, 240), width=896, heads=14, mlp_dim=3584)
_L_14 = replace(_B_32, patch_size=14, width=1024, layers=24, heads=16, mlp_dim=4096)
_H_14 = replace(_L_14, width=1280, layers=32, mlp_dim=5120)
_G_14 = replace(_L_14, width=1408, layers=40, mlp_dim=6144)
_BIGG_14 = replace(_L_14, width=1664, layers=48, mlp_dim=8192)

_RN50 = ResNetConfig(image_size=(224, 224), layers=(3, 4, 6, 3), width=64, heads=32)
_RN101 = replace(_RN50, layers=(3, 4, 23, 3))
_RN50X4 = replace(_RN50, image_size=(288, 288), layers=(4, 6, 10, 6), width=80, heads=40)
_RN50X16 = replace(_RN50, image_size=(384, 384), layers=(6, 8, 18, 8), width=96, heads=48)
_RN50X64 = replace(_RN50, image_size=(448, 448), layers=(3, 15, 36, 10), width=128, heads=64)


def _sized(visual: ViTConfig, side: int) -> ViTConfig:
    return replace(visual, image_size=(side, side))


# --- text towers ------------------------------------------------------------------------------

_TEXT_512 = TextConfig(
    context_length=77, vocab_size=49408, width=512, layers=12, heads=8, mlp_dim=2048
)
_TEXT_640 = replace(_TEXT_512, width=640, heads=10, mlp_dim=2560)
_TEXT_768 = replace(_TEXT_512, width=768, heads=12, mlp_dim=3072)
_TEXT_1024 = replace(_TEXT_512, width=1024, heads=16, mlp_dim=4096)
_TEXT_1024_24 = replace(_TEXT_1024, layers=24)
_TEXT_1280_32 = replace(_TEXT_512, width=1280, layers=32, heads=20, mlp_dim=5120)


def _siglip_text(text: TextConfig, vocab_size: int, context_length: int = 64) -> TextConfig:
    return replace(
        text,
        context_length=context_length,
        vocab_size=vocab_size,
        act="gelu_tanh",
        ln_eps=1e-6,
        causal=False,
        pool="last",
        proj="linear_bias",
        init="big_vision",
    )


_TEXT_SO = replace(_TEXT_512, width=1152, layers=27, heads=16, mlp_dim=4304)
_C4, _MC4, _GEMMA = 32_000, 250_000, 256_000  # rows of the three vocabularies


def _worldwide(text: TextConfig) -> TextConfig:
    """MetaCLIP 2: XLM-V's vocabulary, whose end of text is not the highest id."""
    return replace(text, vocab_size=901_629, pool="eos", eos_id=2)


# --- pairs ------------------------------------------------------------------------------------


def _pair(embed_dim: int, visual: ViTConfig | ResNetConfig, text: TextConfig) -> CLIPConfig:
    return CLIPConfig(embed_dim=embed_dim, visual=visual, text=text)


def with_act(config: CLIPConfig, act: Literal["gelu", "quick_gelu"]) -> CLIPConfig:
    """The same with the exact GELU or QuickGELU, in the towers that have one of the two."""
    sides: dict[str, Any] = {"visual": config.visual, "text": config.text}
    for name, side in sides.items():
        if isinstance(side, ViTConfig | TextConfig) and side.act != "gelu_tanh":
            sides[name] = replace(side, act=act)
    return replace(config, **sides)


def _siglip(trunk: str, text: TextConfig, vocab_size: int, context_length: int = 64) -> CLIPConfig:
    visual = TIMM[trunk]
    return CLIPConfig(
        embed_dim=visual.width,
        visual=visual,
        text=_siglip_text(text, vocab_size, context_length),
        loss="sigmoid",
    )


def _clipa(embed_dim: int, visual: ViTConfig, text: TextConfig) -> CLIPConfig:
    """Epsilon is 1e-5, as in open_clip's files; the training code has 1e-6."""
    visual = replace(
        visual,
        act="gelu_tanh",
        pre_norm=False,
        positions="sincos2d",
        pool="mean",
        norm_after_pool=True,
        init="big_vision",
    )
    text = replace(_siglip_text(text, _C4, 32), ln_eps=1e-5, proj="linear")
    return _pair(embed_dim, visual, text)


_I18N_SO = _siglip("vit_so400m_patch16_siglip_256", _TEXT_SO, _MC4)

ARCHITECTURES: dict[str, CLIPConfig] = {
    "RN50": _pair(1024, _RN50, _TEXT_512),
    "RN101": _pair(512, _RN101, _TEXT_512),
    "RN50x4": _pair(640, _RN50X4, _TEXT_640),
    "RN50x16": _pair(768, _RN50X16, _TEXT_768),
    "RN50x64": _pair(1024, _RN50X64, _TEXT_1024),
    "ViT-B-32": _pair(512, _B_32, _TEXT_512),
    "ViT-B-32-256": _pair(512, _sized(_B_32, 256), _TEXT_512),
    "ViT-B-16": _pair(512, _B_16, _TEXT_512),
    "ViT-B-16-plus-240": _pair(640, _B_16_PLUS_240, _TEXT_640),
    "ViT-L-14": _pair(768, _L_14, _TEXT_768),
    "ViT-L-14-336": _pair(768, _sized(_L_14, 336), _TEXT_768),
    "ViT-H-14": _pair(1024, _H_14, _TEXT_1024_24),
    "ViT-H-14-378": _pair(1024, _sized(_H_14, 378), _TEXT_1024_24),
    "ViT-g-14": _pair(1024, _G_14, _TEXT_1024_24),
    "ViT-bigG-14": _pair(1280, _BIGG_14, _TEXT_1280_32),
    "ViT-H-14-worldwide": _pair(1024, _H_14, _worldwide(_TEXT_1024_24)),
    "ViT-H-14-worldwide-378": _pair(1024, _sized(_H_14, 378), _worldwide(_TEXT_1024_24)),
    "ViT-bigG-14-worldwide": _pair(1280, _BIGG_14, _worldwide(_TEXT_1280_32)),
    "ViT-bigG-14-worldwide-378": _pair(1280, _sized(_BIGG_14, 378), _worldwide(_TEXT_1280_32)),
    "ViT-B-16-SigLIP": _siglip("vit_base_patch16_siglip_224", _TEXT_768, _C4),
    "ViT-B-16-SigLIP-256": _siglip("vit_base_patch16_siglip_256", _TEXT_768, _C4),
    "ViT-B-16-SigLIP-i18n-256": _siglip("vit_base_patch16_siglip_256", _TEXT_768, _MC4),
    "ViT-B-16-SigLIP-384": _siglip("vit_base_patch16_siglip_384", _TEXT_768, _C4),
    "ViT-B-16-SigLIP-512": _siglip("vit_base_patch16_siglip_512", _TEXT_768, _C4),
    "ViT-L-16-SigLIP-256": _siglip("vit_large_patch16_siglip_256", _TEXT_1024_24, _C4),
    "ViT-L-16-SigLIP-384": _siglip("vit_large_patch16_siglip_384", _TEXT_1024_24, _C4),
    "ViT-SO400M-14-SigLIP": _siglip("vit_so400m_patch14_siglip_224", _TEXT_SO, _C4, 16),
    "ViT-SO400M-14-SigLIP-378": _siglip("vit_so400m_patch14_siglip_378", _TEXT_SO, _C4),
    "ViT-SO400M-14-SigLIP-384": _siglip("vit_so400m_patch14_siglip_384", _TEXT_SO, _C4),
    # The only one without a projection behind its text tower.
    "ViT-SO400M-16-SigLIP-i18n-256": replace(_I18N_SO, text=replace(_I18N_SO.text, proj="none")),
    "ViT-B-32-SigLIP2-256": _siglip("vit_base_patch32_siglip_256", _TEXT_768, _GEMMA),
    "ViT-B-16-SigLIP2": _siglip("vit_base_patch16_siglip_224", _TEXT_768, _GEMMA),
    "ViT-B-16-SigLIP2-256": _siglip("vit_base_patch16_siglip_256", _TEXT_768, _GEMMA),
    "ViT-B-16-SigLIP2-384": _siglip("vit_base_patch16_siglip_384", _TEXT_768, _GEMMA),
    "ViT-B-16-SigLIP2-512": _siglip("vit_base_patch16_siglip_512", _TEXT_768, _GEMMA),
    "ViT-L-16-SigLIP2-256": _siglip("vit_large_patch16_siglip_256", _TEXT_1024_24, _GEMMA),
    "ViT-L-16-SigLIP2-384": _siglip("vit_large_patch16_siglip_384", _TEXT_1024_24, _GEMMA),
    "ViT-L-16-SigLIP2-512": _siglip("vit_large_patch16_siglip_512", _TEXT_1024_24, _GEMMA),
    "ViT-SO400M-14-SigLIP2": _siglip("vit_so400m_patch14_siglip_224", _TEXT_SO, _GEMMA),
    "ViT-SO400M-14-SigLIP2-378": _siglip("vit_so400m_patch14_siglip_378", _TEXT_SO, _GEMMA),
    "ViT-SO400M-16-SigLIP2-256": _siglip("vit_so400m_patch16_siglip_256", _TEXT_SO, _GEMMA),
    "ViT-SO400M-16-SigLIP2-384": _siglip("vit_so400m_patch16_siglip_384", _TEXT_SO, _GEMMA),
    "ViT-SO400M-16-SigLIP2-512": _siglip("vit_so400m_patch16_siglip_512", _TEXT_SO, _GEMMA),
    # The giant image tower goes with the text tower of So400m.
    "ViT-gopt-16-SigLIP2-256": _siglip("vit_giantopt_patch16_siglip_256", _TEXT_SO, _GEMMA),
    "ViT-gopt-16-SigLIP2-384": _siglip("vit_giantopt_patch16_siglip_384", _TEXT_SO, _GEMMA),
    "ViT-L-14-CLIPA": _clipa(768, _L_14, _TEXT_768),
    "ViT-L-14-CLIPA-336": _clipa(768, _sized(_L_14, 336), _TEXT_768),
    "ViT-H-14-CLIPA": _clipa(1024, _H_14, _TEXT_1024_24),
    "ViT-H-14-CLIPA-336": _clipa(1024, _sized(_H_14, 336), _TEXT_1024_24),
    "ViT-bigG-14-CLIPA": _clipa(1280, _BIGG_14, _TEXT_1280_32),
    "ViT-bigG-14-CLIPA-336": _clipa(1280, _sized(_BIGG_14, 336), _TEXT_1280_32),
}
