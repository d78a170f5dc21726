"""What we write, its publishers load; what they write, we read: transformers, open_clip, openai.

Tiny random models; the peer's own `from_pretrained` or `create_model` reads the folder, and both
sides compute the same vectors.
"""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

import tiny_zoo
from report import record

from diptych import zoo
from diptych.config import PreprocessConfig, TokenizerConfig
from diptych.towers import build
from diptych.zoo import trunks
from diptych.zoo.vocabulary import clip_vocabulary, merges

SECTION = "Formats"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def inputs(config, *, eos=None):
    """Two images and two texts; the highest id, or `eos`, stands once in each text."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, *config.visual.image_size, generator=generator)
    ids = torch.randint(3, 90, (2, config.text.context_length), generator=generator)
    ids[0, 5] = ids[1, 9] = 98 if eos is None else eos
    return image, ids


@torch.no_grad()
def ours(checkpoint, image, ids):
    model = build(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict, assign=True)
    model.eval()
    return model.visual(image), model.text(ids)


def compare(what, mine, theirs, bound, peer):
    for side, a, b in zip(("image", "text"), mine, theirs, strict=True):
        unit = [torch.nn.functional.normalize(x.float(), dim=-1) for x in (a, b)]
        worst = (unit[0] - unit[1]).abs().max().item()
        record(SECTION, f"{what}, {side}", worst, bound, peer)
        assert worst <= bound


# --- Hugging Face -----------------------------------------------------------------------------


@torch.no_grad()
def hf_vectors(folder, image, ids):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    found = (
        model.get_image_features(pixel_values=image),
        model.get_text_features(input_ids=ids),
    )
    return [x if isinstance(x, torch.Tensor) else x.pooler_output for x in found]


@pytest.mark.parametrize("kind", ["vit", "gelu", "siglip"])
def test_transformers_loads_our_folder(tmp_path, kind):
    given = tiny_zoo.checkpoint(kind, tmp_path / "v")
    zoo.write(given, tmp_path / "m", format="hf")
    image, ids = inputs(given.config)
    theirs = hf_vectors(tmp_path / "m", image, ids)
    compare(
        f"folder written for Hugging Face, {kind}",
        ours(given, image, ids),
        theirs,
        1e-6,
        "transformers",
    )


@pytest.mark.parametrize("kind", ["clip, argmax", "clip, first eos", "clip, gelu", "siglip"])
def test_we_read_what_transformers_writes(tmp_path, kind):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    if kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    else:
        text["eos_token_id"] = 2 if kind == "clip, argmax" else 7
        if kind == "clip, gelu":
            text["hidden_act"], vision["hidden_act"] = "gelu", "gelu"
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    model.eval().save_pretrained(tmp_path)
    found = zoo.read(tmp_path)
    assert found.format == "hf"
    image, ids = inputs(found.config, eos=98 if kind in ("clip, argmax", "siglip") else 7)
    theirs = hf_vectors(tmp_path, image, ids)
    compare(f"folder written by it, {kind}", ours(found, image, ids), theirs, 1e-6, "transformers")


@pytest.mark.parametrize(
    "preprocess",
    [
        PreprocessConfig(size=(32, 32)),
        PreprocessConfig(size=(32, 32), short=40),
        PreprocessConfig(size=(32, 32), resize="squash", interpolation="bilinear"),
    ],
    ids=["shortest", "short", "squash"],
)
def test_transformers_reads_our_pixels_as_we_read_theirs(tmp_path, preprocess):
    from transformers import AutoImageProcessor

    given = replace(tiny_zoo.checkpoint("vit"), preprocess=preprocess)
    zoo.write(given, tmp_path / "m", format="hf")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "m", use_fast=False)
    processor.save_pretrained(tmp_path / "again")
    data = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    read = zoo.hugging_face.read_preprocess(data, given.config, "x")
    assert read == replace(preprocess, rgb="before", crop="floor")


def test_transformers_tokenizer_from_our_folder(tmp_path):
    from transformers import CLIPTokenizer

    given = tiny_zoo.checkpoint("vit")
    given = replace(
        given,
        tokenizer=TokenizerConfig(kind="clip_bpe", context_length=16, pad_id=49407),
    )
    zoo.write(given, tmp_path / "m", format="hf")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "m", local_files_only=True)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    padded = tokenizer("it's a dog's life!!!", padding="max_length", max_length=16).input_ids
    assert padded[:9] == [49406, 585, 568, 320, 1929, 568, 970, 995, 49407]
    assert padded[9:] == [49407] * 7
    assert len(tokenizer) == 49408
    differing = tokenizer.get_vocab().items() ^ clip_vocabulary().items()
    what = "vocabulary written for it, differing entries"
    record(SECTION, what, len(differing), 0.0, "transformers")
    assert not differing
    assert zoo.read(tmp_path / "m").tokenizer == given.tokenizer
    tokenizer.save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "config.json").write_text((tmp_path / "m" / "config.json").read_text())
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "again" / "model.safetensors").write_bytes(weights)
    its_own = replace(given.tokenizer, clean="transformers")  # nothing says otherwise any more
    assert zoo.read(tmp_path / "again").tokenizer == its_own


# --- open_clip --------------------------------------------------------------------------------


@torch.no_grad()
def open_clip_model(folder):
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").eval()


@pytest.mark.parametrize("kind", ["vit", "gelu", "resnet", "clipa"])
def test_open_clip_loads_our_folder(tmp_path, kind):
    given = tiny_zoo.checkpoint(kind)
    zoo.write(given, tmp_path / "m", format="open_clip")
    model = open_clip_model(tmp_path / "m")
    image, ids = inputs(given.config)
    with torch.no_grad():
        theirs = model.encode_image(image), model.encode_text(ids)
    compare(
        f"folder written for open_clip, {kind}",
        ours(given, image, ids),
        theirs,
        1e-6,
        "open_clip_torch",
    )


def test_open_clip_loads_our_siglip(tmp_path, monkeypatch):
    """With a tiny timm model of our own; timm computes the exact GELU, so ours does here too."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    def vit_tiny_siglip_test(pretrained=False, pretrained_cfg=None, cache_dir=None, **kwargs):
        kwargs.pop("pretrained_cfg_overlay", None)
        return VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=64,
            depth=2,
            num_heads=2,
            class_token=False,
            **kwargs,
        )

    vit_tiny_siglip_test.__module__ = "timm.models.vision_transformer"
    registry = sys.modules["timm.models._registry"]
    monkeypatch.setitem(registry._model_entrypoints, "vit_tiny_siglip_test", vit_tiny_siglip_test)
    assert timm.is_model("vit_tiny_siglip_test")
    monkeypatch.setitem(trunks.TIMM, "vit_tiny_siglip_test", tiny_zoo.MAP)
    given = tiny_zoo.checkpoint("siglip", tmp_path / "v")
    zoo.write(given, tmp_path / "m", format="open_clip")
    model = open_clip_model(tmp_path / "m")
    image, ids = inputs(given.config)
    with torch.no_grad():
        theirs = model.encode_image(image), model.encode_text(ids)
    exact = replace(given.config, visual=replace(given.config.visual, act="gelu"))
    mine = ours(replace(given, config=exact), image, ids)
    compare(
        "folder written for open_clip, siglip, images with its exact GELU",
        mine,
        theirs,
        1e-6,
        "open_clip_torch",
    )


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_we_read_what_open_clip_writes(tmp_path, suffix):
    from open_clip.model import CLIP

    vision = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "head_width": 8,
        "layers": 2,
    }
    text = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
    model = CLIP(24, vision, text, quick_gelu=True).eval()
    cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    if suffix == "pt":
        data = {"epoch": 1, "name": "x", "state_dict": model.state_dict(), "optimizer": {}}
        torch.save(data, tmp_path / "open_clip_pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    found = zoo.read(tmp_path)
    image, ids = inputs(found.config)
    with torch.no_grad():
        theirs = model.encode_image(image), model.encode_text(ids)
    compare(f"its weights ({suffix})", ours(found, image, ids), theirs, 1e-6, "open_clip_torch")


def configs():
    import open_clip

    folder = Path(open_clip.__file__).parent / "model_configs"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_every_config_of_open_clip_is_read_or_refused_by_name():
    """Sizes of what we read: parameters as open_clip's own model has, on the meta device."""
    from open_clip.model import CLIP, CustomTextCLIP

    from diptych.errors import ConfigError

    read, compared, refused, wrong = 0, 0, 0, []
    for name, cfg in configs().items():
        try:
            config, _ = zoo.open_clip.read_config(cfg, name)
        except ConfigError as error:
            assert "asks for something" in str(error)
            refused += 1
            continue
        read += 1
        if "timm_model_name" in cfg["vision_cfg"]:
            continue  # timm builds on the processor: gigabytes
        compared += 1
        cfg = dict(cfg)
        kind = CustomTextCLIP if cfg.pop("custom_text", False) else CLIP
        with torch.device("meta"):
            theirs = kind(**cfg)
            mine = build(config)
        counts = [sum(p.numel() for p in m.parameters()) for m in (mine, theirs)]
        if counts[0] != counts[1]:
            wrong.append((name, *counts))
    print(f"{read} read, {compared} of them compared in size, {refused} refused by name")
    what = f"number of parameters, {compared} of its configs: those that differ"
    record(SECTION, what, len(wrong), 0.0, "open_clip_torch")
    assert not wrong
    assert compared >= 30, (read, compared, refused)


def test_our_vocabulary_is_open_clips():
    import open_clip

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    assert merges() == lines[1 : 49152 - 256 - 2 + 1]
    theirs = open_clip.SimpleTokenizer().encoder
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert {special.get(k, k): v for k, v in theirs.items()} == clip_vocabulary()


def test_open_clip_loads_our_openai_file(tmp_path):
    """The plain state dict, as openai/CLIP's and open_clip's `build_model` take it.

    It halves the weights, so they are numbers that a half holds.
    """
    import open_clip.openai  # noqa: F401
    from open_clip.model import build_model_from_openai_state_dict

    given = tiny_zoo.checkpoint("vit")
    rounded = {k: v.half().float() for k, v in given.state_dict.items()}
    given = replace(given, state_dict=rounded)
    zoo.write(given, tmp_path / "m.pt", format="openai")
    data = torch.load(tmp_path / "m.pt", weights_only=True)
    model = build_model_from_openai_state_dict(data, cast_dtype=torch.float32).float().eval()
    image, ids = inputs(given.config)
    with torch.no_grad():
        theirs = model.encode_image(image), model.encode_text(ids)
    compare(
        "file written for openai/CLIP", ours(given, image, ids), theirs, 1e-6, "open_clip_torch"
    )
