"""Exported ONNX files, run by programs that know nothing of us, against the peers' own models.

The peer's weights go into our towers, those into a folder, and ONNX Runtime (and OpenVINO, an
independent runtime) run what lies there on the peer's inputs.
"""

import json

import onnx
import onnxruntime
import openvino
import peers
import pytest
import torch
from report import record
from test_models import HF_IMAGE, HF_TEXT, OPEN_CLIP_PEER, TEXT, TINY, ids_for, rules_of, tiny

from diptych import zoo
from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.engine import Encoder
from diptych.engine.export import export
from diptych.preprocess import Preprocess
from diptych.zoo.hugging_face import read_config as read_hf
from diptych.zoo.keymaps import HF_CLIP, HF_SIGLIP, OPEN_CLIP

BOUND = 2e-6
HF_PEER = "transformers"
RESNET = {"image_size": 96, "layers": [2, 1, 2, 1], "width": 16}
VOCABULARY = {"vocab_size": 49408, "context_length": 77}


def exported(cfg: CLIPConfig, peer, rules, path):
    """A folder of the peer's weights."""
    encoder = Encoder(
        peers.ours(cfg, peer, rules),
        config=cfg,
        preprocess=Preprocess(PreprocessConfig(size=cfg.visual.image_size)),
        tokenizer=TokenizerConfig(kind="clip_bpe", context_length=cfg.text.context_length),
        precision="fp32",
        device="cpu",
    )
    export(encoder, path)
    return path


def onnx_runtime(file, batch: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])


def open_vino(file, batch: torch.Tensor) -> torch.Tensor:
    """In fp32: by itself it takes bfloat16 where the processor has it."""
    how = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", how)
    return torch.from_numpy(compiled([batch.numpy()])[0].copy())


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": open_vino}


def compare(what: str, folder, image, ids, theirs: dict, name: str) -> None:
    facts = json.loads((folder / "diptych.json").read_text("utf-8"))["export"]
    for tower, batch in (("image", image), ("text", ids)):
        file = folder / facts["towers"][tower]["file"]
        onnx.checker.check_model(str(file), full_check=True)
        expected = peers.unit(theirs[tower])
        for runtime, run in RUNTIMES.items():
            found = run(file, batch)
            assert found.shape == expected.shape
            difference = float((found - expected).abs().max())
            record("Exports", f"{what}, {tower}, {runtime}", difference, BOUND, name)


OPEN_CLIP_CASES = {
    "tiny ViT, QuickGELU": (TINY["ViT of 32x64 pixels"][0], {**TEXT, **VOCABULARY}, True),
    "ResNet of few blocks": (RESNET, {**TEXT, **VOCABULARY}, True),
    "CLIPA, tanh GELU": (
        TINY["CLIPA, tanh GELU"][0],
        {**TINY["CLIPA, tanh GELU"][1], "vocab_size": 49408},
        False,
    ),
}


@pytest.mark.parametrize("what", OPEN_CLIP_CASES)
@torch.no_grad()
def test_open_clip(what, tmp_path):
    cfg, peer = tiny(*OPEN_CLIP_CASES[what])
    folder = exported(cfg, peer, rules_of(cfg), tmp_path / "out")
    image, ids = peers.pixels(4, cfg.visual.image_size), ids_for(cfg, 4, pad=0)
    theirs = {"image": peer.encode_image(image), "text": peer.encode_text(ids)}
    compare(what, folder, image, ids, theirs, OPEN_CLIP_PEER)


@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
@torch.no_grad()
def test_transformers(family, tmp_path):
    text = {**HF_TEXT, "vocab_size": 49408, "max_position_embeddings": 77}
    if family == "CLIP":
        peer, rules = peers.hf_clip({**text, "eos_token_id": 2}, HF_IMAGE, 24), HF_CLIP
    else:
        text |= {"projection_size": 48, "bos_token_id": 0, "eos_token_id": 1}
        peer, rules = peers.hf_siglip(text, HF_IMAGE), HF_SIGLIP
    cfg = read_hf(peer.config.to_dict(), "HF")
    folder = exported(cfg, peer, rules, tmp_path / "out")
    image, ids = peers.pixels(4, 32), ids_for(cfg, 4)
    theirs = {
        "image": peer.get_image_features(pixel_values=image).pooler_output,
        "text": peer.get_text_features(input_ids=ids).pooler_output,
    }
    compare(f"tiny {family}", folder, image, ids, theirs, HF_PEER)


@torch.no_grad()
def test_full_size(tmp_path):
    """ViT-B/32 with QuickGELU: its weights lie beside the graph."""
    cfg = zoo.get("ViT-B-32/openai").config
    peer = peers.open_clip_by_name("ViT-B-32", quick_gelu=True)
    folder = exported(cfg, peer, OPEN_CLIP, tmp_path / "out")
    assert (folder / "image.onnx.data").is_file()
    image, ids = peers.pixels(4, 224), ids_for(cfg, 4)
    theirs = {"image": peer.encode_image(image), "text": peer.encode_text(ids)}
    compare("ViT-B-32/openai", folder, image, ids, theirs, OPEN_CLIP_PEER)
