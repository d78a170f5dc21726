"""Google's SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786), trained on WebLI.

Each tag has two homes: Google's in Hugging Face's layout, and timm's in open_clip's. The
vocabularies (32,000, 250,000 and 256,000 rows) are read from the file that comes with the weights.
"""

from dataclasses import replace

from diptych.config import TokenizerConfig
from diptych.zoo.architectures import ARCHITECTURES
from diptych.zoo.row import Golden, Hub, Row, Url
from diptych.zoo.rows import HALF, OPEN_CLIP, build

__all__ = ["ROWS"]

_SENTENCES = TokenizerConfig(
    kind="sentencepiece",
    context_length=64,
    file="spiece.model",
    clean="canonicalize_hf",
    pad_id=1,
    bos_id=None,
    eos_id=1,
)
_GEMMA = replace(_SENTENCES, file="tokenizer.json", clean="lower", pad_id=0)
_PAPER_2 = "arXiv 2502.14786, table 1"
_CATS = Golden(
    image=Url(url="http://images.cocodataset.org/val2017/000000039769.jpg"),
    texts=("a photo of 2 cats", "a photo of 2 dogs"),
    probabilities=(0.31937, 3.2463e-05),
    source="transformers, tests/models/siglip/test_modeling_siglip.py, test_inference",
)
_GELU = "the tanh GELU is that of the training code; timm and open_clip compute the exact one in "
_PUNCTUATION = "text is lower-cased and nothing else; open_clip also strips punctuation"
_378 = (
    "the weights of the 384 tag, whose patches cover 378 of 384 pixels a side: the same grid, but "
    "the image is resized to 378",
)


def _row(
    name: str,
    google: str,
    tokenizer: TokenizerConfig,
    *,
    timm: str | None = None,
    timm_only: bool = False,
    top1: float | None = None,
    top1_source: str = OPEN_CLIP,
    goldens: tuple[Golden, ...] = (),
    notes: tuple[str, ...] = (),
) -> Row:
    beside = (tokenizer.file,)
    homes = (
        Hub(repo=f"google/{google}", weights=("model.safetensors",), beside=beside),
        Hub(repo=f"timm/{timm or name}", beside=beside, beside_repo=f"google/{google}"),
    )
    text = ARCHITECTURES[name].text
    return build(
        f"{name}/webli",
        *homes[timm_only:],
        preprocess={**HALF, "resize": "squash"},
        tokenizer=replace(tokenizer, context_length=text.context_length),
        top1=top1,
        top1_source=top1_source,
        licence="Apache-2.0",
        goldens=goldens,
        notes=notes,
    )


def _v1(name: str, google: str, top1: float | None = None, *notes: str, **home) -> Row:
    notes = (*notes, _GELU + "its text tower and some of its image towers")
    return _row(name, f"siglip-{google}", _SENTENCES, top1=top1, notes=notes, **home)


def _v2(name: str, google: str, top1: float, *notes: str, **home) -> Row:
    notes = (*notes, _PUNCTUATION, _GELU + "some of its image towers")
    return _row(
        name, f"siglip2-{google}", _GEMMA, top1=top1, top1_source=_PAPER_2, notes=notes, **home
    )


ROWS = (
    _v1("ViT-B-16-SigLIP", "base-patch16-224", 76.04, goldens=(_CATS,)),
    _v1("ViT-B-16-SigLIP-256", "base-patch16-256", 76.53),
    _v1("ViT-B-16-SigLIP-i18n-256", "base-patch16-256-multilingual", 75.13),
    _v1("ViT-B-16-SigLIP-384", "base-patch16-384", 78.49),
    _v1("ViT-B-16-SigLIP-512", "base-patch16-512", 79.14),
    _v1("ViT-L-16-SigLIP-256", "large-patch16-256", 80.45),
    _v1("ViT-L-16-SigLIP-384", "large-patch16-384", 82.07),
    _v1("ViT-SO400M-14-SigLIP", "so400m-patch14-224", 82.03, "its text has 16 positions, not 64"),
    _v1(
        "ViT-SO400M-14-SigLIP-378",
        "so400m-patch14-384",
        None,
        *_378,
        timm="ViT-SO400M-14-SigLIP-384",
    ),
    _v1("ViT-SO400M-14-SigLIP-384", "so400m-patch14-384", 83.08),
    _v1(
        "ViT-SO400M-16-SigLIP-i18n-256",
        "so400m-patch16-256-i18n",
        None,
        "alone among SigLIP's it has no projection behind the text tower; timm's layout says so",
        timm_only=True,
    ),
    _v2("ViT-B-32-SigLIP2-256", "base-patch32-256", 74.0),
    _v2("ViT-B-16-SigLIP2", "base-patch16-224", 78.2),
    _v2("ViT-B-16-SigLIP2-256", "base-patch16-256", 79.1),
    _v2("ViT-B-16-SigLIP2-384", "base-patch16-384", 80.6),
    _v2("ViT-B-16-SigLIP2-512", "base-patch16-512", 81.2),
    _v2("ViT-L-16-SigLIP2-256", "large-patch16-256", 82.5),
    _v2("ViT-L-16-SigLIP2-384", "large-patch16-384", 83.1),
    _v2("ViT-L-16-SigLIP2-512", "large-patch16-512", 83.5),
    _v2("ViT-SO400M-14-SigLIP2", "so400m-patch14-224", 83.2),
    _v2("ViT-SO400M-14-SigLIP2-378", "so400m-patch14-384", 84.1, *_378),
    _v2("ViT-SO400M-16-SigLIP2-256", "so400m-patch16-256", 83.4),
    _v2("ViT-SO400M-16-SigLIP2-384", "so400m-patch16-384", 84.1),
    _v2("ViT-SO400M-16-SigLIP2-512", "so400m-patch16-512", 84.3),
    _v2("ViT-gopt-16-SigLIP2-256", "giant-opt-patch16-256", 84.5),
    _v2("ViT-gopt-16-SigLIP2-384", "giant-opt-patch16-384", 85.0),
)
