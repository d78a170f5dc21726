"""Tiny models of each family, with random weights that leave nothing at zero or one."""

from dataclasses import replace

import torch

from diptych.config import (
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.towers import build
from diptych.zoo import Checkpoint

TEXT = TextConfig(
    context_length=16,
    vocab_size=99,
    width=64,
    layers=2,
    heads=1,
    mlp_dim=256,
    act="quick_gelu",
)
VIT = ViTConfig(
    image_size=(32, 32), patch_size=8, width=64, layers=2, heads=1, mlp_dim=256, act="quick_gelu"
)
RESNET = ResNetConfig(image_size=(64, 64), layers=(1, 2, 1, 1), width=8, heads=4)
MAP = replace(
    VIT,
    heads=2,
    act="gelu_tanh",
    ln_eps=1e-6,
    patch_bias=True,
    class_token=False,
    pre_norm=False,
    pool="map",
    proj="none",
    init="big_vision",
)
SIGLIP_TEXT = replace(
    TEXT,
    act="gelu_tanh",
    ln_eps=1e-6,
    causal=False,
    pool="last",
    proj="linear_bias",
    init="big_vision",
)
CLIPA_VIT = replace(
    VIT,
    heads=2,
    act="gelu_tanh",
    pre_norm=False,
    positions="sincos2d",
    pool="mean",
    norm_after_pool=True,
)
CLIPA_TEXT = replace(TEXT, act="gelu_tanh", causal=False, pool="last")
CONFIGS = {
    "vit": CLIPConfig(embed_dim=48, visual=VIT, text=TEXT),
    "resnet": CLIPConfig(embed_dim=48, visual=RESNET, text=TEXT),
    "gelu": CLIPConfig(
        embed_dim=48,
        visual=replace(VIT, heads=4, mlp_dim=100, act="gelu"),
        text=replace(TEXT, heads=4, act="gelu", pool="eos", eos_id=98),
    ),
    "siglip": CLIPConfig(embed_dim=64, visual=MAP, text=SIGLIP_TEXT, loss="sigmoid"),
    "clipa": CLIPConfig(embed_dim=48, visual=CLIPA_VIT, text=CLIPA_TEXT),
}
SENTENCES = TokenizerConfig(
    kind="sentencepiece",
    context_length=16,
    file="spiece.model",
    clean="canonicalize_hf",
    pad_id=1,
    bos_id=None,
    eos_id=1,
)


def weights(config: CLIPConfig) -> dict[str, torch.Tensor]:
    """A state dict filled with seeded noise; batch-norm variances stay positive."""
    generator = torch.Generator().manual_seed(0)
    out = {}
    for key, value in build(config).state_dict().items():
        if not value.is_floating_point():
            out[key] = value
            continue
        noise = torch.randn(value.shape, generator=generator) * 0.1
        out[key] = noise.abs() + 0.5 if key.endswith("running_var") else noise
    return out


def checkpoint(kind: str, folder=None) -> Checkpoint:
    """A whole checkpoint; SigLIP's needs a folder, into which a stand-in vocabulary is put."""
    config = CONFIGS[kind]
    tokenizer = TokenizerConfig(kind="clip_bpe", context_length=16)
    preprocess = PreprocessConfig(size=config.visual.image_size)
    if kind == "siglip":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spiece.model").write_bytes(b"a stand-in for a vocabulary \0\1\2")
        tokenizer = SENTENCES
        half = (0.5, 0.5, 0.5)
        preprocess = PreprocessConfig(size=(32, 32), resize="squash", mean=half, std=half)
    return Checkpoint(
        state_dict=weights(config),
        config=config,
        preprocess=preprocess,
        tokenizer=tokenizer,
        folder=folder,
        licence="MIT",
        metadata={"name": "tiny", "data_manifest": "ab" * 32},
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Same keys, dtypes and bits."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )
