"""The `open_clip` look-alike without its peer: names, options, wrong uses, both model classes."""

import inspect
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from torch import nn

import diptych
from diptych import zoo
from diptych.compat import open_clip
from diptych.compat.open_clip.names import config_of, rows_of
from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.errors import CheckpointError, ConfigError, ModelNotFoundError
from diptych.zoo.keymaps import restore
from diptych.zoo.open_clip_config import rules_for

LAION = "laion2b_s34b_b79k"


@pytest.fixture(autouse=True)
def files(monkeypatch) -> dict[str, Path]:
    return small.put_rows(monkeypatch)


def vectors(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().encode_image(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, tag",
    [("ViT-B-32", "openai"), ("ViT-B/32", "OpenAI"), ("ViT-B-32-quickgelu", "openai")],
)
def test_spellings_of_one_row(name, tag):
    """With and without "-quickgelu" it is the activation that the weights were trained with."""
    model = open_clip.create_model(name, pretrained=tag)
    assert type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    enc = diptych.load("ViT-B-32/openai", precision="fp32", device="cpu")
    with torch.no_grad():
        theirs = model.encode_text(open_clip.tokenize(["a cat"]), normalize=True).numpy()
    assert np.abs(theirs - enc.encode_text(["a cat"])).max() < 2e-6


def test_lists():
    assert ("ViT-B-32", "openai") in open_clip.list_pretrained()
    assert "ViT-B-32-quickgelu:openai" in open_clip.list_pretrained(as_str=True)
    assert ("ViT-B-32-quickgelu", LAION) not in open_clip.list_pretrained()
    assert open_clip.list_models() == sorted(set(open_clip.list_models()))
    assert LAION in open_clip.list_pretrained_tags_by_model("ViT-B-32")
    assert open_clip.list_pretrained_tags_by_model("nothing") == []
    assert "RN50" in open_clip.list_openai_models()
    assert open_clip.get_model_config("ViT-B-32")["text_cfg"]["width"] == 64
    assert open_clip.get_model_config("nothing") is None


def test_every_architecture_can_be_stated_or_laid_out():
    from diptych.compat.weights import lay_out

    for name in open_clip.list_models():
        towers = lay_out(config_of(name), batch_first=True)
        config = rows_of(name)[0].config
        assert towers.custom == (config.text.proj == "linear_bias" or config.loss == "sigmoid"), (
            name
        )


def test_wrong_names():
    with pytest.raises(ModelNotFoundError, match=r"ViT-B-3.*open_clip\.list_models"):
        open_clip.create_model("ViT-B-3")
    with pytest.raises(ModelNotFoundError, match="openai"):
        open_clip.create_model("ViT-B-32", pretrained="openai2")
    with pytest.raises(ConfigError, match="leave out pretrained"):
        open_clip.create_model("hf-hub:org/name", pretrained="openai")
    with pytest.raises(ModelNotFoundError):
        open_clip.create_model_from_pretrained("ViT-B-32")


# --- options ------------------------------------------------------------------------------------


def test_random_weights_are_open_clips_default():
    model, train, val = open_clip.create_model_and_transforms("ViT-B-32")
    assert model.training
    assert isinstance(model.transformer.resblocks[0].mlp.gelu, nn.GELU)
    quick = open_clip.create_model("ViT-B-32", force_quick_gelu=True)
    assert type(quick.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert abs(model.logit_scale.exp().item() - 1 / 0.07) < 1e-4
    photo = Image.new("RGB", (100, 80), (200, 10, 60))
    assert train(photo).shape == val(photo).shape == (3, 64, 64)


def test_a_path_is_what_the_file_says(files, tmp_path):
    by_tag = vectors(open_clip.create_model("ViT-B-32", "openai"))
    by_path = open_clip.create_model("ViT-B-32", pretrained=str(files["ViT-B-32/openai"]))
    assert torch.equal(vectors(by_path), by_tag)  # QuickGELU, which the name does not say
    torch.save(by_path.state_dict(), tmp_path / "bare.pt")
    bare = open_clip.create_model("ViT-B-32-quickgelu", pretrained=str(tmp_path / "bare.pt"))
    assert torch.equal(vectors(bare), by_tag)
    gelu = open_clip.create_model("ViT-B-32", pretrained=str(tmp_path / "bare.pt"))
    assert not torch.equal(vectors(gelu), by_tag)
    with pytest.raises(CheckpointError):
        open_clip.create_model("RN50", pretrained=str(files["ViT-B-32/openai"]))


@pytest.mark.parametrize(
    "option, named",
    [
        ({"jit": True}, "jit"),
        ({"force_context_length": 32}, "force_context_length"),
        ({"pretrained_image": True}, "pretrained_image"),
        ({"pretrained_text": False}, "pretrained_text"),
        ({"pretrained_image_path": "x.pt"}, "pretrained_image_path"),
        ({"weights_only": False}, "weights_only"),
        ({"precision": "int8"}, "int8"),
        ({"image_interpolation": "nearest"}, "interpolation"),
        ({"aug_cfg": {"color_jitter": 0.4}}, "color_jitter"),
        ({"force_preprocess_cfg": {"colour": 1}}, "colour"),
        ({"nonscalar_logit_scale": True}, "nonscalar_logit_scale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_honoured_is_refused(option, named):
    with pytest.raises(ConfigError, match=named):
        open_clip.create_model_and_transforms("ViT-B-32", **option)


def test_force_quick_gelu_must_be_true():
    assert open_clip.create_model("ViT-B-32", "openai", force_quick_gelu=True)
    with pytest.raises(ConfigError, match="not trained with QuickGELU"):
        open_clip.create_model("ViT-B-32", LAION, force_quick_gelu=True)


def test_pixels_are_the_tags_and_can_be_changed():
    model, preprocess = open_clip.create_model_from_pretrained(
        "ViT-B-32", LAION, image_mean=(0.5, 0.5, 0.5), image_resize_mode="squash"
    )
    assert model.visual.image_mean == preprocess.config.mean == (0.5, 0.5, 0.5)
    assert model.visual.image_std == open_clip.OPENAI_DATASET_STD
    assert open_clip.get_model_preprocess_cfg(model)["resize_mode"] == "squash"
    assert model.visual.image_size == preprocess.config.size == (64, 64)


def test_force_image_size():
    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32", LAION, force_image_size=96
    )
    assert model.visual.grid_size == (6, 6)
    image = preprocess(Image.new("RGB", (100, 100)))
    assert image.shape == (3, 96, 96)
    assert model.eval().encode_image(image[None]).shape == (1, 48)
    with pytest.raises(ConfigError, match="force_image_size"):
        open_clip.create_model("RN50", "openai", force_image_size=96)


@pytest.mark.parametrize("name, tag", [("ViT-B-32", LAION), ("ViT-B-16-SigLIP", "webli")])
def test_patch_dropout_acts_in_training_alone(name, tag, siglip):
    model = open_clip.create_model(name, tag, force_patch_dropout=0.5)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model.encode_image(image), model.encode_image(image))
        model.eval()
        assert torch.equal(model.encode_image(image), model.encode_image(image))


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_precision(precision):
    model = open_clip.create_model("ViT-B-32", LAION, precision=precision)
    dtype = open_clip.get_input_dtype(precision)
    assert dtype == model.visual.conv1.weight.dtype == torch.bfloat16
    norm = torch.float32 if precision == "bf16" else dtype
    assert model.ln_final.weight.dtype == norm
    with torch.no_grad():
        features = model.eval().encode_image(torch.ones(1, 3, 64, 64, dtype=dtype), normalize=True)
        exact = vectors(open_clip.create_model("ViT-B-32", LAION))
        assert model.encode_text(open_clip.tokenize("a cat")).dtype == dtype
    assert features.dtype == dtype and exact.dtype == torch.float32


# --- models -------------------------------------------------------------------------------------


def test_outputs():
    model = open_clip.create_model("ViT-B-32", LAION).eval()
    image, ids = torch.randn(2, 3, 64, 64), open_clip.tokenize(["a", "b"])
    with torch.no_grad():
        features, texts, scale = model(image, ids)
        assert model(image=image)[1] is None and model(text=ids)[0] is None
        logits, transposed = model.get_logits(image, ids)
        named = open_clip.create_model("ViT-B-32", LAION, output_dict=True).eval()(image, ids)
    assert torch.allclose(logits, scale * features @ texts.T) and torch.equal(logits.T, transposed)
    assert torch.allclose(features.norm(dim=-1), torch.ones(2))
    assert torch.equal(named["image_features"], features)
    assert named.keys() == {"image_features", "text_features", "logit_scale"}
    assert torch.equal(model.attn_mask, torch.full((77, 77), -torch.inf).triu(1))


def test_checkpointing_changes_no_gradient():
    image, ids = torch.randn(2, 3, 64, 64), open_clip.tokenize(["a", "b"])
    found = []
    for enable in (False, True):
        model = open_clip.create_model("ViT-B-32", LAION)
        model.set_grad_checkpointing(enable)
        model.get_logits(image, ids)[0].sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(found[0], found[1])


def test_frozen_statistics_stay():
    model = open_clip.create_model("RN50", "openai")
    model.lock_image_tower(freeze_bn_stats=True)
    model.train()
    before = model.visual.bn1.running_mean.clone()
    model.encode_image(torch.randn(2, 3, 64, 64))
    assert torch.equal(model.visual.bn1.running_mean, before)
    assert not any(p.requires_grad for p in model.visual.parameters())
    assert model.transformer.resblocks[0].ln_1.weight.requires_grad


def test_the_tokens_of_the_last_layer():
    model = open_clip.create_model("ViT-B-32", LAION).eval()
    model.visual.output_tokens = True
    pooled, tokens = model.visual(torch.randn(2, 3, 64, 64))
    assert pooled.shape == (2, 48) and tokens.shape == (2, 16, 64)


def test_force_custom_text():
    model = open_clip.create_model("ViT-B-32", LAION, force_custom_text=True).eval()
    assert isinstance(model, open_clip.CustomTextCLIP)
    assert "text.transformer.resblocks.0.ln_1.weight" in model.state_dict()
    ids = open_clip.tokenize(["a", "b c"])
    with torch.no_grad():
        plain = open_clip.create_model("ViT-B-32", LAION).eval().encode_text(ids)
        assert torch.equal(model.encode_text(ids), plain)


# --- SigLIP: another tree, another tokenizer ----------------------------------------------------


@pytest.fixture
def siglip(monkeypatch, tmp_path) -> CLIPConfig:
    """A small SigLIP under a published name, with a small vocabulary beside it."""
    name = "ViT-B-16-SigLIP/webli"
    row = zoo.get(name)
    visual = replace(
        row.config.visual, image_size=(64, 64), width=64, layers=2, heads=2, mlp_dim=128
    )
    text = replace(row.config.text, width=64, layers=2, heads=2, mlp_dim=128)
    config = replace(row.config, embed_dim=64, visual=visual, text=text)
    pixels = replace(row.preprocess, size=(64, 64))
    sources = (zoo.Hub(repo="nobody/nothing", weights=("model.safetensors",)),)
    row = replace(row, config=config, preprocess=pixels, sources=sources)
    monkeypatch.setitem(zoo.registry.rows(), name, row)
    folder = zoo.cache.folder_for(row, zoo.cache_folder())
    folder.mkdir(parents=True)
    torch.save(restore(small.noise(config), rules_for(config)), folder / "model.safetensors")
    return config


def test_siglip(siglip):
    model = open_clip.create_model("ViT-B-16-SigLIP", "webli").eval()
    assert isinstance(model, open_clip.CustomTextCLIP)
    assert model.state_dict().keys() == restore(small.noise(siglip), rules_for(siglip)).keys()
    assert model.logit_bias is not None and len(model(None, torch.ones(1, 64).long())) == 4
    enc = diptych.load("ViT-B-16-SigLIP/webli", precision="fp32", device="cpu")
    image, ids = torch.randn(2, 3, 64, 64), torch.randint(1, 32000, (2, 64))
    with torch.no_grad():
        for ours, theirs in (
            (enc.model.encode_image(image), model.encode_image(image, normalize=True)),
            (enc.model.encode_text(ids), model.encode_text(ids, normalize=True)),
        ):
            assert (ours - theirs).abs().max() < 2e-6
        tanh = model.encode_text(ids)
        open_clip.exact_gelu_(model)
        assert 0 < (model.encode_text(ids) - tanh).abs().max() < 0.1
    assert model.no_weight_decay() == {"text.positional_embedding"}


def test_siglip_locks_and_checkpoints(siglip):
    model = open_clip.create_model("ViT-B-16-SigLIP", "webli")
    model.set_grad_checkpointing()
    model.lock_image_tower()
    model.lock_text_tower(unlocked_layers=1)
    image, ids = torch.randn(2, 3, 64, 64), torch.randint(1, 32000, (2, 64))
    model.get_logits(image, ids)[0].sum().backward()
    trained = {k for k, p in model.named_parameters() if p.grad is not None}
    expected = {"text.text_projection.weight", "text.text_projection.bias"}
    assert trained == expected | {"logit_scale", "logit_bias"}
    with pytest.raises(ConfigError, match="requires_grad"):
        model.lock_image_tower(unlocked_groups=1)


def test_siglip_tokenizer_lies_beside_the_weights(siglip):
    with pytest.raises(CheckpointError, match=r"spiece\.model"):
        open_clip.get_tokenizer("ViT-B-16-SigLIP")
    folder = zoo.find(zoo.get("ViT-B-16-SigLIP/webli")).parent
    (folder / "spiece.model").write_bytes(b"read when it is first used")
    tokenizer = open_clip.get_tokenizer("ViT-B-16-SigLIP", context_length=32)
    assert tokenizer.context_length == tokenizer.tokenizer.config.context_length == 32
    assert tokenizer.tokenizer.config.clean == "canonicalize_open_clip"


def test_any_model_of_the_registry():
    """What open_clip has no class for keeps Diptych's towers behind open_clip's methods."""
    from diptych.compat.open_clip.model import CustomTextCLIP
    from diptych.compat.weights import fill, lay_out

    checkpoint = zoo.open_model("mini")
    towers = lay_out(checkpoint.config, batch_first=True)
    model = fill(CustomTextCLIP(checkpoint.config, towers), checkpoint.state_dict, towers).eval()
    enc = diptych.load("mini", precision="fp32", device="cpu")
    with torch.no_grad():
        ours = model.encode_text(enc.tokenizer(["a cat"]), normalize=True).numpy()
    assert np.abs(ours - enc.encode_text(["a cat"])).max() < 2e-6
    assert model.visual.image_size == (260, 260) and model.visual.output_dim == 384
    model.set_grad_checkpointing()
    model.lock_text_tower()
    assert not any(p.requires_grad for p in model.text.parameters())


# --- tokens and training pixels -----------------------------------------------------------------


def test_tokenizer():
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=6)
    assert tokenizer("a cat").tolist() == [[49406, 320, 2368, 49407, 0, 0]]
    assert tokenizer(["cat " * 20], context_length=4).tolist() == [[49406, 2368, 2368, 49407]]
    assert tokenizer("a cat").dtype == torch.int64
    assert open_clip.get_tokenizer().context_length == 77
    assert tokenizer.decode([320, 49407]) == "a <end_of_text>"
    assert open_clip.decode(tokenizer("a cat")[0, :3]) == "<start_of_text>a cat "
    assert (tokenizer("<end_of_text> a", context_length=20) == 49407).sum() == 1
    with pytest.raises(ModelNotFoundError):
        open_clip.get_tokenizer("ViT-B-3")


def test_file_tokenizer_keeps_the_end(tmp_path):
    words = ["[PAD]", "[UNK]", "cat", "a", *(f"w{i}" for i in range(97)), "[CLS]", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = TokenizerConfig(
        kind="wordpiece",
        context_length=5,
        file="vocab.txt",
        clean="whitespace",
        pad_id=0,
        bos_id=101,
        eos_id=102,
    )
    from diptych.compat.open_clip.tokenizer import FileTokenizer
    from diptych.tokenizer import build

    tokenizer = FileTokenizer(build(config, tmp_path))
    assert tokenizer(["a cat", "cat a cat a"]).tolist() == [
        [101, 3, 2, 102, 0],
        [101, 2, 3, 2, 102],
    ]
    assert tokenizer("a cat", context_length=3).tolist() == [[101, 3, 102]]


def test_zero_shot_classifier(capsys):
    model = open_clip.create_model("ViT-B-32", LAION).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    names, templates = ["cat", "dog", "bee"], ["a {}.", "the {}"]
    build = open_clip.build_zero_shot_classifier
    whole = build(model, tokenizer, names, templates, num_classes_per_batch=None)
    parts = build(model, tokenizer, names, templates, num_classes_per_batch=2, use_tqdm=True)
    calls = build(model, tokenizer, names, [lambda c: f"a {c}.", lambda c: f"the {c}"])
    assert whole.shape == (48, 3)
    assert torch.allclose(whole, parts, atol=1e-6) and torch.allclose(whole, calls, atol=1e-6)
    enc = diptych.load(f"ViT-B-32/{LAION}", precision="fp32", device="cpu")
    assert np.abs(enc.classifier(names, templates) - whole.T.numpy()).max() < 2e-6


def test_training_transform():
    transform = open_clip.image_transform(32, is_train=True, aug_cfg={"scale": (0.2, 0.6)})
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    again = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(3)
    first = transform(photo)
    second = transform(photo)
    torch.manual_seed(3)
    assert torch.equal(again(photo), first) and not torch.equal(first, second)
    assert "scale=(0.2, 0.6)" in repr(transform)
    strip = transform(Image.new("L", (900, 3)))  # no crop fits: the centre
    assert strip.shape == (3, 32, 32)
    square = open_clip.image_transform(
        32, is_train=True, aug_cfg=open_clip.AugmentationCfg(scale=(0.5, 0.5), ratio=(1, 1))
    )
    assert square.crop_box(100, 100)[2:] == (71, 71)


def test_signatures_begin_as_the_peers_do():
    for function in (open_clip.create_model, open_clip.create_model_and_transforms):
        assert list(inspect.signature(function).parameters)[:2] == ["model_name", "pretrained"]
    assert open_clip.image_transform(48, is_train=False).config == PreprocessConfig(size=(48, 48))
