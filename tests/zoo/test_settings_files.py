"""Publishers' JSON: defaults of absent keys, and no key that is overlooked."""

import json
from dataclasses import replace

import pytest
import tiny_zoo

from diptych import zoo
from diptych.config import PreprocessConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo import hugging_face, open_clip, open_clip_config
from diptych.zoo.trunks import TIMM

B32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}
SIGLIP2 = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 256000,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 768,
        "heads": 12,
        "layers": 12,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-06},
        "act_kwargs": {"approximate": "tanh"},
    },
}


def read(cfg):
    return open_clip.read_config(cfg, "x")[0]


def test_open_clip_configs_are_the_registry_s():
    assert read(B32) == zoo.get("ViT-B-32/laion2b_s34b_b79k").config
    assert read({**B32, "quick_gelu": True}) == zoo.get("ViT-B-32/openai").config
    siglip = zoo.get("ViT-B-16-SigLIP2/webli").config
    assert read(SIGLIP2).visual == siglip.visual
    assert replace(read(SIGLIP2).text, init="big_vision") == siglip.text


@pytest.mark.parametrize(
    ("side", "key", "value"),
    [
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "ls_init_value", 1e-5),
        ("vision_cfg", "pool_type", "none"),
        ("vision_cfg", "qk_norm", True),
        ("vision_cfg", "timm_model_name", "convnext_base"),
        ("vision_cfg", "never_seen", 1),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "embed_cls", True),
        ("text_cfg", "act_kwargs", {"approximate": "sigmoid"}),
        ("text_cfg", "norm_kwargs", {"elementwise_affine": False}),
        ("text_cfg", "proj_type", "mlp"),
    ],
)
def test_a_key_we_cannot_honour_is_named(side, key, value):
    cfg = {**B32, side: {**B32[side], key: value}}
    with pytest.raises(ConfigError, match=f"{side}.*{key} = "):
        read(cfg)


@pytest.mark.parametrize("key", ["multimodal_cfg", "audio_cfg", "genlip_cfg"])
def test_other_kinds_of_models_are_named(key):
    with pytest.raises(ConfigError, match=key):
        read({**B32, key: {}})


def test_widths_of_heads():
    cfg = {**B32, "vision_cfg": {**B32["vision_cfg"], "width": 1280, "head_width": 80}}
    assert read(cfg).visual.heads == 16
    big = {**cfg["vision_cfg"], "width": 1664, "head_width": 104, "mlp_ratio": 4.9231}
    assert read({**B32, "vision_cfg": big}).visual.mlp_dim == 8192


def test_so400m_trunk_and_text_agree():
    assert TIMM["vit_so400m_patch14_siglip_224"].mlp_dim == int(1152 * 3.7362) == 4304


@pytest.mark.parametrize("kind", ["vit", "resnet", "gelu", "clipa"])
def test_what_we_write_we_read(kind):
    given = tiny_zoo.checkpoint(kind)
    data = json.loads(open_clip_config.dump(given.config, given.preprocess, given.tokenizer))
    assert read(data["model_cfg"]) == given.config
    assert open_clip.read_preprocess(data["preprocess_cfg"], given.config, "x") == given.preprocess


def test_hugging_face_defaults():
    old = hugging_face.read_config({"model_type": "clip"}, "x")
    assert old.text == replace(zoo.get("ViT-B-32/openai").config.text, pool="eos", eos_id=49407)
    assert old.visual == zoo.get("ViT-B-32/openai").config.visual
    eos = {"model_type": "clip", "text_config": {"eos_token_id": 2}}
    assert hugging_face.read_config(eos, "x") == zoo.get("ViT-B-32/openai").config
    assert (
        hugging_face.read_config({"model_type": "siglip"}, "x")
        == zoo.get("ViT-B-16-SigLIP/webli").config
    )


def test_older_sections_win_whole():
    data = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 99, "num_attention_heads": 3},
        "text_config_dict": {"hidden_size": 768, "eos_token_id": 2},
    }
    text = hugging_face.read_config(data, "x").text
    assert (text.width, text.heads) == (768, 8)  # heads: the default, not text_config's


@pytest.mark.parametrize("kind", ["siglip2", "metaclip_2", "chinese_clip", None])
def test_other_model_types(kind):
    with pytest.raises(ConfigError, match=f"model_type {kind!r} cannot be read"):
        hugging_face.read_config({"model_type": kind}, "x")


CLIP = tiny_zoo.CONFIGS["vit"]
SIGLIP = tiny_zoo.CONFIGS["siglip"]
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("data", "config", "expected"),
    [
        ({}, CLIP, PreprocessConfig(size=(224, 224), rgb="before", crop="floor")),
        (
            {"size": 224, "crop_size": 224, "resample": 3, "do_center_crop": True},
            CLIP,
            PreprocessConfig(size=(224, 224), rgb="before", crop="floor"),
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            CLIP,
            PreprocessConfig(size=(224, 224), short=256, rgb="before", crop="floor"),
        ),
        (
            {"size": {"height": 384, "width": 384}, "resample": 2},
            SIGLIP,
            PreprocessConfig(
                size=(384, 384),
                mean=HALF,
                std=HALF,
                resize="squash",
                interpolation="bilinear",
                rgb="before",
                crop="floor",
            ),
        ),
    ],
    ids=["defaults", "old", "short", "siglip"],
)
def test_image_processors(data, config, expected):
    assert hugging_face.read_preprocess(data, config, "x") == expected


@pytest.mark.parametrize(
    "data",
    [{"rescale_factor": 1.0}, {"resample": 0}, {"do_resize": False}, {"size": {"longest_edge": 9}}],
)
def test_image_processors_that_we_cannot_follow(data):
    with pytest.raises(ConfigError, match=next(iter(data))):
        hugging_face.read_preprocess(data, CLIP, "x")


def test_a_folder_without_its_companions_says_so(tmp_path):
    zoo.write(tiny_zoo.checkpoint("vit"), tmp_path / "m", format="hf")
    for path in (tmp_path / "m").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    found = zoo.read(tmp_path / "m")
    assert found.preprocess.size == (32, 32)
    assert any("no preprocessor_config.json" in note for note in found.notes)
    assert any("no tokenizer files" in note for note in found.notes)


def test_damaged_settings(tmp_path):
    zoo.write(tiny_zoo.checkpoint("vit"), tmp_path / "m", format="hf")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is no JSON"):
        zoo.read(tmp_path / "m")
