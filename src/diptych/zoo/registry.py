"""What exists in the world: one row for each published checkpoint we know.

- A row is data: adding a tag adds a row. Architectures derive from three bases with `replace`.
- Activation, epsilon, pixels and tokens belong to the tag, not to the architecture. Where peers
  differ, arithmetic and the cleaning of SigLIP 2 text follow the original training code.
- Metrics are ImageNet-1k zero-shot top-1 in percent, from open_clip's `docs/openclip_results.csv`
  (80 templates; with open_clip's activations and resizing).
"""

import fnmatch
from dataclasses import replace
from functools import cache
from typing import Any

from diptych.config import (
    BertConfig,
    CLIPConfig,
    ConceptsConfig,
    EfficientNetConfig,
    PaletteConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.errors import ModelNotFoundError, nearest
from diptych.zoo.row import Asset, Hub, Row, Url
from diptych.zoo.trunks import TIMM
from diptych.zoo.vocabulary import wordpiece

__all__ = ["Asset", "Hub", "Row", "Url", "get", "list_models", "rows"]

RESULTS = "open_clip docs/openclip_results.csv"


# --- architectures ----------------------------------------------------------------------------

_VIT_B_32 = ViTConfig(
    image_size=(224, 224),
    patch_size=32,
    width=768,
    layers=12,
    heads=12,
    mlp_dim=3072,
)
_VIT_B_16 = replace(_VIT_B_32, patch_size=16)
_VIT_L_14 = replace(_VIT_B_32, patch_size=14, width=1024, layers=24, heads=16, mlp_dim=4096)
_VIT_L_14_336 = replace(_VIT_L_14, image_size=(336, 336))
_VIT_H_14 = replace(_VIT_L_14, width=1280, layers=32, heads=16, mlp_dim=5120)  # 80 wide
_VIT_BIGG_14 = replace(_VIT_L_14, width=1664, layers=48, heads=16, mlp_dim=8192)  # 104 wide
_VIT_L_14_CLIPA = replace(
    _VIT_L_14,
    act="gelu_tanh",
    pre_norm=False,
    positions="sincos2d",
    pool="mean",
    norm_after_pool=True,
    init="big_vision",
)

_RN50 = ResNetConfig(image_size=(224, 224), layers=(3, 4, 6, 3), width=64, heads=32)
_RN101 = replace(_RN50, layers=(3, 4, 23, 3))
_RN50X4 = replace(_RN50, image_size=(288, 288), layers=(4, 6, 10, 6), width=80, heads=40)
_RN50X16 = replace(_RN50, image_size=(384, 384), layers=(6, 8, 18, 8), width=96, heads=48)
_RN50X64 = replace(_RN50, image_size=(448, 448), layers=(3, 15, 36, 10), width=128, heads=64)

_TEXT_512 = TextConfig(
    context_length=77, vocab_size=49408, width=512, layers=12, heads=8, mlp_dim=2048
)
_TEXT_640 = replace(_TEXT_512, width=640, heads=10, mlp_dim=2560)
_TEXT_768 = replace(_TEXT_512, width=768, heads=12, mlp_dim=3072)
_TEXT_1024 = replace(_TEXT_512, width=1024, heads=16, mlp_dim=4096)
_TEXT_1024_24 = replace(_TEXT_1024, layers=24)
_TEXT_1280_32 = replace(_TEXT_512, width=1280, layers=32, heads=20, mlp_dim=5120)
_TEXT_SIGLIP = replace(
    _TEXT_768,
    context_length=64,
    vocab_size=32000,
    act="gelu_tanh",
    ln_eps=1e-6,
    causal=False,
    pool="last",
    proj="linear_bias",
    init="big_vision",
)
_TEXT_CLIPA = replace(
    _TEXT_SIGLIP,
    context_length=32,
    ln_eps=1e-5,
    proj="linear",
)


def _pair(embed_dim: int, visual: ViTConfig | ResNetConfig, text: TextConfig) -> CLIPConfig:
    return CLIPConfig(embed_dim=embed_dim, visual=visual, text=text)


def _quick(config: CLIPConfig) -> CLIPConfig:
    """The same with QuickGELU; a ResNet has no activation of its own to change."""
    visual = config.visual
    if isinstance(visual, ViTConfig):
        visual = replace(visual, act="quick_gelu")
    return replace(config, visual=visual, text=replace(config.text, act="quick_gelu"))


_B_32 = _pair(512, _VIT_B_32, _TEXT_512)
_B_16 = _pair(512, _VIT_B_16, _TEXT_512)
_L_14 = _pair(768, _VIT_L_14, _TEXT_768)
_H_14 = _pair(1024, _VIT_H_14, _TEXT_1024_24)
_BIGG_14 = _pair(1280, _VIT_BIGG_14, _TEXT_1280_32)
_SIGLIP_B_16 = CLIPConfig(
    embed_dim=768, visual=TIMM["vit_base_patch16_siglip_224"], text=_TEXT_SIGLIP, loss="sigmoid"
)
_SIGLIP2_B_16 = replace(_SIGLIP_B_16, text=replace(_TEXT_SIGLIP, vocab_size=256_000))

_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # (pixel - 127) / 128
_MINI = CLIPConfig(
    embed_dim=384,
    visual=EfficientNetConfig(
        image_size=(260, 260),
        width_mult=1.1,
        depth_mult=1.2,
        lite=True,
        proj="concepts",
        concepts=ConceptsConfig(
            temperature=1.4, top=20, palette=PaletteConfig(mean=_LITE_MEAN, std=_LITE_STD)
        ),
    ),
    text=BertConfig(
        context_length=256,
        vocab_size=30522,
        width=384,
        layers=6,
        heads=12,
        mlp_dim=1536,
        unit=True,
        proj="linear_bias",
    ),
)

_BPE = TokenizerConfig(kind="clip_bpe", context_length=77)
_C4 = TokenizerConfig(
    kind="sentencepiece",
    context_length=64,
    file="spiece.model",
    clean="canonicalize_hf",
    pad_id=1,
    bos_id=None,
    eos_id=1,
)
_GEMMA = replace(_C4, file="tokenizer.json", clean="lower", pad_id=0)
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_224 = PreprocessConfig(size=(224, 224))


# --- rows -------------------------------------------------------------------------------------


def _openai(name: str, config: CLIPConfig, file: str, sha256: str, top1: float) -> Row:
    return Row(
        name=f"{name}/openai",
        config=_quick(config),
        preprocess=PreprocessConfig(size=config.visual.image_size),
        tokenizer=_BPE,
        source=Url(url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"),
        sha256=sha256,
        metrics={"imagenet1k_zero_shot": top1},
        metrics_source=RESULTS,
    )


def _laion(
    name: str,
    config: CLIPConfig,
    repo: str,
    top1: float,
    preprocess: PreprocessConfig = _224,
    notes: tuple[str, ...] = (),
) -> Row:
    return Row(
        name=name,
        config=config,
        preprocess=preprocess,
        tokenizer=_BPE,
        source=Hub(repo=repo),
        metrics={"imagenet1k_zero_shot": top1},
        metrics_source=RESULTS,
        notes=notes,
    )


_OPENAI = (
    _openai(
        "RN50",
        _pair(1024, _RN50, _TEXT_512),
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        59.82,
    ),
    _openai(
        "RN101",
        _pair(512, _RN101, _TEXT_512),
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        62.28,
    ),
    _openai(
        "RN50x4",
        _pair(640, _RN50X4, _TEXT_640),
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        66.27,
    ),
    _openai(
        "RN50x16",
        _pair(768, _RN50X16, _TEXT_768),
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        70.72,
    ),
    _openai(
        "RN50x64",
        _pair(1024, _RN50X64, _TEXT_1024),
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        73.91,
    ),
    _openai(
        "ViT-B-32",
        _B_32,
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        63.32,
    ),
    _openai(
        "ViT-B-16",
        _B_16,
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        68.34,
    ),
    _openai(
        "ViT-L-14",
        _L_14,
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        75.54,
    ),
    _openai(
        "ViT-L-14-336",
        replace(_L_14, visual=_VIT_L_14_336),
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        76.56,
    ),
)
_EMBEDDED = (
    Row(
        name="mini",
        config=_MINI,
        preprocess=PreprocessConfig(
            size=(260, 260), resize="squash", mean=_LITE_MEAN, std=_LITE_STD
        ),
        tokenizer=TokenizerConfig(
            kind="wordpiece",
            context_length=256,
            file="vocab.txt",
            clean="none",
            pad_id=0,
            bos_id=101,
            eos_id=102,
        ),
        source=Asset(file="mini.safetensors"),
        sha256="c13236bc3f3aa47883fba3429ecb7a821cdcdf545e13b6417aad4cc3b858a4d4",
        licence="Apache-2.0",
        notes=(
            "two pretrained towers joined by class names (ConSE), not trained on pairs: weaker "
            "than any published CLIP; docs/models/mini.md has the figures",
            "made by recipes/mini.py from EfficientNet-Lite2 (ImageNet-1k) and all-MiniLM-L6-v2",
        ),
    ),
)
_OPEN_CLIP = (
    _laion("ViT-B-32/laion2b_s34b_b79k", _B_32, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 66.56),
    _laion(
        "ViT-L-14/laion2b_s32b_b82k",
        _L_14,
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        75.25,
        preprocess=replace(_224, **_HALF),
        notes=("alone among LAION's models it was trained with mean and std 0.5",),
    ),
    _laion("ViT-H-14/laion2b_s32b_b79k", _H_14, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 77.96),
    _laion(
        "ViT-bigG-14/laion2b_s39b_b160k",
        _BIGG_14,
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        80.09,
    ),
    _laion(
        "ViT-L-14/datacomp_xl_s13b_b90k",
        _L_14,
        "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        79.21,
    ),
    Row(
        name="ViT-L-14-CLIPA/datacomp1b",
        config=_pair(768, _VIT_L_14_CLIPA, _TEXT_CLIPA),
        preprocess=PreprocessConfig(
            size=(224, 224), interpolation="bilinear", resize="squash", **_IMAGENET
        ),
        tokenizer=wordpiece(32, "vocab.txt", strip_sep=True),
        source=Hub(repo="UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B"),
        licence="Apache-2.0",
        notes=(
            "the tanh GELU is that of the training code; open_clip computes the exact one",
            "epsilon is 1e-5 as in open_clip; the training code has 1e-6",
            "bert-base-uncased's vocab.txt must lie beside the weights to encode text",
        ),
    ),
)
_SIGLIP = (
    Row(
        name="ViT-B-16-SigLIP/webli",
        config=_SIGLIP_B_16,
        preprocess=PreprocessConfig(size=(224, 224), resize="squash", **_HALF),
        tokenizer=_C4,
        source=Hub(
            repo="google/siglip-base-patch16-224",
            weights=("model.safetensors",),
            beside=("spiece.model",),
        ),
        licence="Apache-2.0",
        metrics={"imagenet1k_zero_shot": 76.04},
        metrics_source=RESULTS,
    ),
    Row(
        name="ViT-B-16-SigLIP2/webli",
        config=_SIGLIP2_B_16,
        preprocess=PreprocessConfig(size=(224, 224), resize="squash", **_HALF),
        tokenizer=_GEMMA,
        source=Hub(
            repo="google/siglip2-base-patch16-224",
            weights=("model.safetensors",),
            beside=("tokenizer.json",),
        ),
        licence="Apache-2.0",
        notes=("text is lower-cased and nothing else; open_clip also strips punctuation",),
    ),
)

_ALIGN = (
    Row(
        name="align/coyo700m",
        config=CLIPConfig(
            embed_dim=640,
            visual=EfficientNetConfig(
                image_size=(289, 289),
                width_mult=2.0,
                depth_mult=3.1,  # B7
                head_width=None,
                padding="even",
                proj="none",
            ),
            text=BertConfig(
                context_length=512,
                vocab_size=30522,
                width=768,
                layers=12,
                heads=12,
                mlp_dim=3072,
                pool="class",
                proj="linear_bias",
            ),
        ),
        preprocess=PreprocessConfig(
            size=(289, 289),
            short=346,
            resize="squash",
            interpolation="bilinear",
            rgb="before",
            crop="floor",
            **_HALF,
        ),
        tokenizer=replace(wordpiece(64, "vocab.txt", strip_sep=False), clean="none"),
        source=Hub(
            repo="kakaobrain/align-base",
            weights=("model.safetensors", "pytorch_model.bin"),
            beside=("vocab.txt",),
        ),
        licence="Apache-2.0",
        notes=(
            "sizes, pixels and tokens are those of transformers' conversion script, "
            "models/align/convert_align_tf_to_hf.py; the list of files was not looked up",
            "the licence is that of kakaobrain/coyo-align-b7-base, which was converted",
        ),
    ),
)


@cache
def rows() -> dict[str, Row]:
    """All rows by name."""
    found = (*_EMBEDDED, *_OPENAI, *_OPEN_CLIP, *_SIGLIP, *_ALIGN)
    assert len({row.name for row in found}) == len(found)
    return {row.name: row for row in found}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the rows that match a shell pattern, in the registry's order."""
    return [name for name in rows() if fnmatch.fnmatchcase(name, pattern)]


def get(name: str) -> Row:
    """The row of a name.

    Raises:
        ModelNotFoundError: no such row; names the three nearest and the command that lists all.
    """
    if name not in rows():
        raise ModelNotFoundError(
            f"no model is named {name!r}. {nearest(name, rows())} All of them: diptych models list"
        )
    return rows()[name]
