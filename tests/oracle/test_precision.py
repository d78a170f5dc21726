"""The fast path of the encoder: bfloat16 against float32, and one input alone against many.

Whole inputs through the public calls: pixels from 8-bit arrays, ids from sentences. Weights are
those of `peers.disturb_`.
"""

import random

import numpy as np
import peers
import pytest
import torch
import torch.nn.functional as F
from report import record

import diptych
from diptych.engine.device import has_fast_bf16
from diptych.model import CLIP
from diptych.preprocess import collate

needs_bf16 = pytest.mark.skipif(
    not has_fast_bf16(), reason="this processor does not multiply bfloat16"
)

OURS = "diptych, float32"
MODELS = {  # images of 200 inputs; the others are texts
    "ViT-B-32/openai": 100,
    "ViT-B-32/laion2b_s34b_b79k": 100,
    "ViT-B-16/openai": 100,
    "ViT-L-14/openai": 60,
    "ViT-H-14/laion2b_s32b_b79k": 32,
    "ViT-B-16-SigLIP/webli": 100,
}
RESNETS = ("RN50/openai", "RN101/openai", "RN50x4/openai")
TEXT = (
    "a photo of the old red bicycle beside two cats under heavy rain at night in Lisbon, painted "
    "by children; seven small boats, bread and coffee on wooden tables, bright clouds over snow"
)


def arrays(n: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """n different 8-bit images [H W 3]."""
    return [(x * 255).round().byte().permute(1, 2, 0).numpy() for x in peers.photos(n, size, seed)]


def sentences(n: int, seed: int = 0) -> list[str]:
    """n different texts of 1 to 60 words."""
    choose, words = random.Random(seed), TEXT.split()
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[" ".join(choose.choices(words, k=choose.randint(1, 1 + len(texts) % 60)))] = None
    return list(texts)


def encoder(name: str, precision: str) -> diptych.Encoder:
    enc = diptych.build(name, seed=0, device="cpu", precision=precision)
    peers.disturb_(enc.model)
    return enc


def text_ids(enc: diptych.Encoder, texts: list[str]) -> torch.Tensor:
    """SigLIP's vocabulary is not in the package: its ids are random, of the same lengths."""
    if enc.tokenizer_config.kind == "clip_bpe":
        return enc.tokenizer.tokenize(texts).ids
    return peers.siglip_ids(len(texts), enc.config.text.context_length, enc.config.text.vocab_size)


def encode_texts(enc: diptych.Encoder, texts: list[str]) -> torch.Tensor:
    if enc.tokenizer_config.kind == "clip_bpe":
        return enc.encode_text(texts, out="torch")
    return torch.cat([enc.run_text(ids) for ids in text_ids(enc, texts).split(64)])


@torch.no_grad()
def reference(model, encode, batch: torch.Tensor) -> torch.Tensor:
    return torch.cat([encode(model, part) for part in batch.split(16)])


def farness(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest 1 - cosine of two sets of rows, in double precision."""
    return float(1 - F.cosine_similarity(a.double(), b.double()).min())


def spread(rows: torch.Tensor) -> float:
    """The mean 1 - cosine between different inputs: small if the test were too easy."""
    n = len(rows)
    return float(1 - ((rows @ rows.T).sum() - n) / (n * (n - 1)))


def compare_images(enc: diptych.Encoder, name: str, num: int) -> torch.Tensor:
    """Records bfloat16 against float32 over `num` images; returns the float32 rows."""
    images = arrays(num, enc.config.visual.image_size)
    pixels = collate([enc.preprocess(image) for image in images])
    exact = reference(enc.model, CLIP.encode_image, pixels)
    value = farness(enc.encode_image(images, out="torch"), exact)
    record("Precision", f"{name}, {num} images, bfloat16", value, 1e-4, OURS)
    return exact


def compare_texts(enc: diptych.Encoder, name: str, num: int) -> torch.Tensor:
    texts = sentences(num)
    exact = reference(enc.model, CLIP.encode_text, text_ids(enc, texts))
    value = farness(encode_texts(enc, texts), exact)
    record("Precision", f"{name}, {num} texts, bfloat16", value, 1e-4, OURS)
    return exact


@needs_bf16
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16(name):
    enc = encoder(name, "bf16")
    rows = [compare_images(enc, name, MODELS[name]), compare_texts(enc, name, 200 - MODELS[name])]
    for side in rows:
        print(f"{name}: mean 1 - cosine between different inputs {spread(side):.3f}")
        assert spread(side) > 0.01


@needs_bf16
@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_takes_bfloat16_only_on_request(name):
    """Weights exist for which a ResNet magnifies any rounding (docs/log.md), so "auto" is float32.
    With those of `peers.disturb_`, which keep activations in size, the bound holds on request.
    """
    assert diptych.build(name, device="cpu").precision == "fp32"
    enc = encoder(name, "bf16")
    for side in (compare_images(enc, f"{name} on request", 50), compare_texts(enc, name, 150)):
        assert spread(side) > 0.01


@pytest.mark.parametrize("name", ["RN50/openai", "ViT-B-32/openai", "ViT-B-16-SigLIP/webli"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_a_vector_does_not_depend_on_its_batch(name, precision):
    enc = encoder(name, precision)
    images, texts = arrays(64, enc.config.visual.image_size), sentences(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    some, alone = order[:16], order[-8:]
    pixels = collate([enc.preprocess(image) for image in images])
    ids = text_ids(enc, texts)
    for side, run, batch in (("images", enc.run_image, pixels), ("texts", enc.run_text, ids)):
        whole, shuffled = run(batch), run(batch[some])
        single = torch.cat([run(batch[i : i + 1]) for i in alone])
        if precision == "fp32":
            value = max(
                float((whole[some] - shuffled).abs().max()),
                float((whole[alone] - single).abs().max()),
            )
            record("Batches", f"{name}, {side}, float32", value, 2e-6, "diptych, alone")
        else:
            value = max(farness(whole[some], shuffled), farness(whole[alone], single))
            record("Batches", f"{name}, {side}, bfloat16", value, 1e-4, "diptych, alone")


def test_lists_keep_their_order():
    """Texts run sorted by length, images in batches: rows come back where they belong."""
    enc = encoder("ViT-B-32/openai", "fp32")
    enc.batch_size = 5
    images, texts = arrays(12, (224, 224)), sentences(12)
    for side, encode, inputs in (
        ("images", enc.encode_image, images),
        ("texts", enc.encode_text, texts),
    ):
        alone = np.concatenate([encode([x]) for x in inputs])
        value = float(np.abs(encode(inputs) - alone).max())
        what = f"ViT-B-32/openai, list of 12 {side} in batches of 5, float32"
        record("Batches", what, value, 2e-6, "diptych, alone")
