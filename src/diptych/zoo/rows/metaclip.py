"""MetaCLIP (arXiv 2309.16671, 2410.17251) and MetaCLIP 2 (arXiv 2507.22062): openly curated data.

The first is OpenAI's towers. The second is of all languages, with XLM-V's vocabulary; Meta has no
other name for it than "worldwide".
"""

from typing import Any

from diptych.config import TokenizerConfig
from diptych.zoo.row import Hub, Row, Url
from diptych.zoo.rows import OPEN_CLIP, build

__all__ = ["ROWS"]

_ADDRESS = "https://dl.fbaipublicfiles.com/MMPT/metaclip/"
_PAPER = "facebookresearch/MetaCLIP README"


def _row(
    name: str,
    repo: str,
    file: str,
    top1: float,
    *,
    top1_source: str = OPEN_CLIP,
    quick_gelu: bool = True,
    **facts: Any,
) -> Row:
    return build(
        name,
        Hub(repo=f"timm/{repo}"),
        Url(url=_ADDRESS + file),
        quick_gelu=quick_gelu,
        top1=top1,
        top1_source=top1_source,
        licence="CC-BY-NC-4.0",
        non_commercial=True,
        **facts,
    )


_XLM_V = TokenizerConfig(
    kind="sentencepiece",
    context_length=77,
    file="tokenizer.json",
    clean="whitespace",
    pad_id=1,
    bos_id=0,
    eos_id=2,
)


def _worldwide(name: str, repo: str, **facts: Any) -> Row:
    source = Hub(
        repo=f"timm/{repo}.metaclip2_worldwide",
        beside=("tokenizer.json",),
        beside_repo="facebook/xlm-v-base",
    )
    return build(
        f"{name}/metaclip2_worldwide",
        source,
        tokenizer=_XLM_V,
        licence="CC-BY-NC-4.0",
        non_commercial=True,
        **facts,
    )


_FIRST = (
    _row("ViT-B-32/metaclip_400m", "vit_base_patch32_clip_224.metaclip_400m", "b32_400m.pt", 65.58),
    _row(
        "ViT-B-32/metaclip_fullcc",
        "vit_base_patch32_clip_224.metaclip_2pt5b",
        "b32_fullcc2.5b.pt",
        67.66,
    ),
    _row("ViT-B-16/metaclip_400m", "vit_base_patch16_clip_224.metaclip_400m", "b16_400m.pt", 70.80),
    _row(
        "ViT-B-16/metaclip_fullcc",
        "vit_base_patch16_clip_224.metaclip_2pt5b",
        "b16_fullcc2.5b.pt",
        72.12,
    ),
    _row(
        "ViT-L-14/metaclip_400m", "vit_large_patch14_clip_224.metaclip_400m", "l14_400m.pt", 76.20
    ),
    _row(
        "ViT-L-14/metaclip_fullcc",
        "vit_large_patch14_clip_224.metaclip_2pt5b",
        "l14_fullcc2.5b.pt",
        79.17,
    ),
    _row(
        "ViT-H-14/metaclip_fullcc",
        "vit_huge_patch14_clip_224.metaclip_2pt5b",
        "h14_fullcc2.5b.pt",
        80.51,
    ),
    _row(
        "ViT-H-14/metaclip_altogether",
        "vit_huge_patch14_clip_224.metaclip_altogether",
        "h14_v1.2_altogether.pt",
        82.0,
        top1_source=_PAPER,
        quick_gelu=False,
        notes=("alone among MetaCLIP's models it has the exact GELU",),
    ),
    _row(
        "ViT-bigG-14/metaclip_fullcc",
        "vit_gigantic_patch14_clip_224.metaclip_2pt5b",
        "G14_fullcc2.5b.pt",
        82.1,
        top1_source=_PAPER,
    ),
)
_QUICK_NOTE = ("alone among MetaCLIP 2's models it has QuickGELU",)
_SQUASH = {"resize": "squash"}
_SECOND = (
    _worldwide(
        "ViT-H-14-worldwide", "vit_huge_patch14_clip_224", quick_gelu=True, notes=_QUICK_NOTE
    ),
    _worldwide("ViT-H-14-worldwide-378", "vit_huge_patch14_clip_378", preprocess=_SQUASH),
    _worldwide("ViT-bigG-14-worldwide", "vit_gigantic_patch14_clip_224"),
    _worldwide("ViT-bigG-14-worldwide-378", "vit_gigantic_patch14_clip_378", preprocess=_SQUASH),
)
ROWS = (*_FIRST, *_SECOND)
