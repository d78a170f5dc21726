"""The embedded model: docs/models/mini.md."""

from diptych.config import (
    BertConfig,
    CLIPConfig,
    ConceptsConfig,
    EfficientNetConfig,
    PaletteConfig,
    PreprocessConfig,
    TokenizerConfig,
)
from diptych.zoo.row import Asset, Row

__all__ = ["ROWS"]

_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3  # (pixel - 127) / 128
_CONFIG = CLIPConfig(
    embed_dim=384,
    visual=EfficientNetConfig(
        image_size=(260, 260),
        width_mult=1.1,
        depth_mult=1.2,
        lite=True,
        proj="concepts",
        concepts=ConceptsConfig(
            temperature=1.4, top=20, palette=PaletteConfig(mean=_MEAN, std=_STD)
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
ROWS = (
    Row(
        name="mini",
        config=_CONFIG,
        preprocess=PreprocessConfig(size=(260, 260), resize="squash", mean=_MEAN, std=_STD),
        tokenizer=TokenizerConfig(
            kind="wordpiece",
            context_length=256,
            file="vocab.txt",
            clean="none",
            pad_id=0,
            bos_id=101,
            eos_id=102,
        ),
        sources=(
            Asset(
                file="mini.safetensors",
                sha256="c13236bc3f3aa47883fba3429ecb7a821cdcdf545e13b6417aad4cc3b858a4d4",
            ),
        ),
        licence="Apache-2.0",
        notes=(
            "two pretrained towers joined by class names (ConSE), not trained on pairs: weaker "
            "than any published CLIP; docs/models/mini.md has the figures",
            "made by recipes/mini.py from EfficientNet-Lite2 (ImageNet-1k) and all-MiniLM-L6-v2",
        ),
    ),
)
