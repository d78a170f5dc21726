"""ALIGN (arXiv 2102.05918) as Kakao Brain trained it anew, on COYO-700M."""

from dataclasses import replace

from diptych.config import BertConfig, CLIPConfig, EfficientNetConfig, PreprocessConfig
from diptych.zoo.row import Hub, Row
from diptych.zoo.rows import HALF
from diptych.zoo.vocabulary import wordpiece

__all__ = ["ROWS"]

ROWS = (
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
            **HALF,
        ),
        tokenizer=replace(wordpiece(64, "vocab.txt", strip_sep=False), clean="none"),
        sources=(
            Hub(
                repo="kakaobrain/align-base",
                weights=("model.safetensors", "pytorch_model.bin"),
                beside=("vocab.txt",),
            ),
        ),
        licence="Apache-2.0",
        notes=(
            "sizes, pixels and tokens are those of transformers' conversion script, "
            "models/align/convert_align_tf_to_hf.py; the list of files was not looked up",
            "the licence is that of kakaobrain/coyo-align-b7-base, which was converted",
        ),
    ),
)
