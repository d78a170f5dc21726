"""OpenCLIP's own models: LAION, DataComp, CommonPool, YFCC and CC12M.

Papers: arXiv 2212.07143 (scaling laws), 2304.14108 (DataComp).
Names and addresses: open_clip 3.3.0, `pretrained.py`. The names of its release files end in the
first eight digits of their SHA-256.
"""

from typing import Any

from diptych.zoo.row import Golden, Hub, Row, Url
from diptych.zoo.rows import HALF, build

__all__ = ["ROWS"]

_RELEASE = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/"
_README = Golden(
    image=Url(url="https://raw.githubusercontent.com/mlfoundations/open_clip/main/docs/CLIP.png"),
    texts=("a diagram", "a dog", "a cat"),
    probabilities=(1.0, 0.0, 0.0),
    tolerance=1e-2,  # printed as [[1., 0., 0.]]
    source="open_clip, README.md",
)


def _release(name: str, repo: str | None, file: str, top1: float, **facts: Any) -> Row:
    """A file of open_clip's releases, and the copy of it in timm's repositories."""
    sha256 = file.rsplit(".", 1)[0].rsplit("-", 1)[1]
    copy = (Hub(repo=f"timm/{repo}"),) if repo else ()
    return build(name, *copy, Url(url=_RELEASE + file, sha256=sha256), top1=top1, **facts)


def _hub(name: str, repo: str, top1: float, **facts: Any) -> Row:
    return build(name, Hub(repo=f"laion/{repo}"), top1=top1, **facts)


_QUICK = {"quick_gelu": True}
_SAME_FIGURES = (
    "open_clip's table has the same 38 figures for datacomp_s_s13m_b4k and "
    "commonpool_s_image_s13m_b4k, so at least one of the two rows of that table is wrong",
)
_SMALL = {"notes": _SAME_FIGURES}

_EARLY = (
    _release(
        "RN50/yfcc15m",
        "resnet50_clip.yfcc15m",
        "rn50-quickgelu-yfcc15m-455df137.pt",
        32.75,
        **_QUICK,
    ),
    _release(
        "RN50/cc12m", "resnet50_clip.cc12m", "rn50-quickgelu-cc12m-f000538c.pt", 36.47, **_QUICK
    ),
    _release(
        "RN101/yfcc15m",
        "resnet101_clip.yfcc15m",
        "rn101-quickgelu-yfcc15m-3e04b30e.pt",
        34.87,
        **_QUICK,
    ),
    _release(
        "ViT-B-32/laion400m_e31",
        "vit_base_patch32_clip_224.laion400m_e31",
        "vit_b_32-quickgelu-laion400m_e31-d867053b.pt",
        62.94,
        **_QUICK,
    ),
    _release(
        "ViT-B-32/laion400m_e32",
        "vit_base_patch32_clip_224.laion400m_e32",
        "vit_b_32-quickgelu-laion400m_e32-46683a32.pt",
        62.93,
        goldens=(_README,),
        notes=("alone among LAION's models B/32 on LAION-400M has QuickGELU",),
        **_QUICK,
    ),
    _release(
        "ViT-B-32/laion2b_e16",
        "vit_base_patch32_clip_224.laion2b_e16",
        "vit_b_32-laion2b_e16-af8dbd0c.pth",
        65.65,
    ),
    _release(
        "ViT-B-16/laion400m_e31",
        "vit_base_patch16_clip_224.laion400m_e31",
        "vit_b_16-laion400m_e31-00efa78f.pt",
        66.98,
    ),
    _release(
        "ViT-B-16/laion400m_e32",
        "vit_base_patch16_clip_224.laion400m_e32",
        "vit_b_16-laion400m_e32-55e67d44.pt",
        67.05,
    ),
    _release(
        "ViT-B-16-plus-240/laion400m_e31",
        "vit_base_patch16_plus_clip_240.laion400m_e31",
        "vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
        69.04,
    ),
    _release(
        "ViT-B-16-plus-240/laion400m_e32",
        None,
        "vit_b_16_plus_240-laion400m_e32-699c4b84.pt",
        69.19,
        notes=("open_clip 3.3.0 fetches the repository of e31 under this name",),
    ),
    _release(
        "ViT-L-14/laion400m_e31",
        "vit_large_patch14_clip_224.laion400m_e31",
        "vit_l_14-laion400m_e31-69988bb6.pt",
        72.71,
    ),
    _release(
        "ViT-L-14/laion400m_e32",
        "vit_large_patch14_clip_224.laion400m_e32",
        "vit_l_14-laion400m_e32-3d133497.pt",
        72.77,
    ),
)
_LAION_2B = (
    _hub(
        "ViT-B-32/laion2b_s34b_b79k",
        "CLIP-ViT-B-32-laion2B-s34B-b79K",
        66.56,
        goldens=(_README,),
    ),
    _hub("ViT-B-16/laion2b_s34b_b88k", "CLIP-ViT-B-16-laion2B-s34B-b88K", 70.23),
    _hub(
        "ViT-L-14/laion2b_s32b_b82k",
        "CLIP-ViT-L-14-laion2B-s32B-b82K",
        75.25,
        preprocess=HALF,
        notes=("alone among LAION's models it was trained with mean and std 0.5",),
    ),
    _hub("ViT-H-14/laion2b_s32b_b79k", "CLIP-ViT-H-14-laion2B-s32B-b79K", 77.96),
    _hub("ViT-g-14/laion2b_s12b_b42k", "CLIP-ViT-g-14-laion2B-s12B-b42K", 76.63),
    _hub("ViT-g-14/laion2b_s34b_b88k", "CLIP-ViT-g-14-laion2B-s34B-b88K", 78.47),
    _hub("ViT-bigG-14/laion2b_s39b_b160k", "CLIP-ViT-bigG-14-laion2B-39B-b160k", 80.09),
)
_DATACOMP = (
    _hub("ViT-B-32/datacomp_xl_s13b_b90k", "CLIP-ViT-B-32-DataComp.XL-s13B-b90K", 69.17),
    _hub("ViT-B-32-256/datacomp_s34b_b86k", "CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", 72.81),
    _hub("ViT-B-16/datacomp_xl_s13b_b90k", "CLIP-ViT-B-16-DataComp.XL-s13B-b90K", 73.49),
    _hub("ViT-L-14/datacomp_xl_s13b_b90k", "CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 79.21),
    _hub("ViT-B-16/datacomp_l_s1b_b8k", "CLIP-ViT-B-16-DataComp.L-s1B-b8K", 63.10),
    _hub("ViT-B-32/datacomp_m_s128m_b4k", "CLIP-ViT-B-32-DataComp.M-s128M-b4K", 29.72),
    _hub("ViT-B-32/datacomp_s_s13m_b4k", "CLIP-ViT-B-32-DataComp.S-s13M-b4K", 3.92, **_SMALL),
)


def _pool(name: str, repo: str, scale: str, figures: dict[str, float]) -> tuple[Row, ...]:
    """CommonPool at one scale, by filter ("" is none): the baselines of DataComp."""
    tail, size = scale.split("_", 1)
    out = []
    for kind, top1 in figures.items():
        middle, dotted = (f"_{kind}", f".{kind}") if kind else ("", "")
        tag = f"{name}/commonpool_{tail.lower()}{middle}_{size.lower().replace('-', '_')}"
        facts = _SMALL if (tail, kind) == ("S", "image") else {}
        out.append(_hub(tag, f"{repo}-CommonPool.{tail}{dotted}-{size}", top1, **facts))
    return tuple(out)


_COMMONPOOL = (
    *_pool("ViT-L-14", "CLIP-ViT-L-14", "XL_s13B-b90K", {"clip": 76.37, "laion": 75.45, "": 72.29}),
    *_pool(
        "ViT-B-16",
        "CLIP-ViT-B-16",
        "L_s1B-b8K",
        {
            "clip": 57.77,
            "laion": 55.26,
            "image": 57.19,
            "text": 56.05,
            "basic": 51.55,
            "": 45.93,
        },
    ),
    *_pool(
        "ViT-B-32",
        "CLIP-ViT-B-32",
        "M_s128M-b4K",
        {
            "clip": 27.25,
            "laion": 23.04,
            "image": 26.78,
            "text": 25.48,
            "basic": 22.55,
            "": 17.55,
        },
    ),
    *_pool(
        "ViT-B-32",
        "CLIP-ViT-B-32",
        "S_s13M-b4K",
        {"clip": 5.05, "laion": 3.05, "image": 3.92, "text": 4.60, "basic": 3.77, "": 2.70},
    ),
)
ROWS = (*_EARLY, *_LAION_2B, *_DATACOMP, *_COMMONPOOL)
