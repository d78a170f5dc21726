"""The `clip` look-alike without its peer: names, errors, modes, and what scripts take apart."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from torch import nn

import diptych
from diptych import zoo
from diptych.compat import clip
from diptych.errors import CheckpointError, ConfigError, ModelNotFoundError, TextError


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "small.pt"
    zoo.write(small.checkpoint(small.OPENAI_VIT), path, format="openai")
    return path


@pytest.fixture
def model(weights):
    return clip.load(weights, device="cpu")[0]


def test_the_usual_imports_are_one_module():
    import diptych.compat.clip as package
    from diptych.compat.clip import clip as inner
    from diptych.compat.clip.simple_tokenizer import SimpleTokenizer as _Tokenizer

    assert package is clip is diptych.compat.clip
    assert inner.load is clip.load and inner.build_model is clip.model.build_model
    assert len(_Tokenizer().encoder) == 49408
    assert clip._MODELS["ViT-B/32"].endswith("/ViT-B-32.pt")
    assert len(clip.available_models()) == 9


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B-32/openai", "RN50"])
def test_names(name, monkeypatch):
    small.put_rows(monkeypatch)
    model, preprocess = clip.load(name, "cpu")
    assert not model.training and model.dtype == torch.float32
    assert model.visual.input_resolution == 64
    assert preprocess(Image.new("L", (90, 50))).shape == (3, 64, 64)


def test_a_file_by_its_path_and_a_folder(weights, tmp_path, monkeypatch):
    zoo.write(small.checkpoint(small.LAION), tmp_path / "folder", format="hf")
    monkeypatch.chdir(tmp_path)
    for path in (str(weights), weights, "folder"):
        assert clip.load(path, device="cpu")[0].context_length == 77
    with pytest.raises(ModelNotFoundError, match="ViT-B/33"):
        clip.load("ViT-B/33")
    with pytest.raises(ConfigError, match="run the code"):
        clip.load(weights, jit=True)


def test_a_model_that_openai_never_had():
    """`mini`: an EfficientNet and BERT, from the package itself."""
    model, preprocess = clip.load("mini", device="cpu")
    enc = diptych.load("mini", precision="fp32", mode="original", device="cpu")
    photo = Image.fromarray(np.arange(90 * 60 * 3, dtype=np.uint8).reshape(90, 60, 3))
    ids = enc.tokenizer(["a cat", "a red boat"])
    with torch.no_grad():
        logits, transposed = model(preprocess(photo)[None], ids)
        vectors = nn.functional.normalize(model.encode_text(ids), dim=-1)
    assert torch.equal(logits.T, transposed)
    assert np.abs(vectors.numpy() - enc.encode_text(["a cat", "a red boat"])).max() < 2e-6
    scale = model.logit_scale.exp().item()
    cosines = enc.similarity(photo, ["a cat", "a red boat"])
    assert np.abs(logits.numpy() / scale - cosines).max() < 2e-6


def test_features_are_not_normalised(model):
    with torch.no_grad():
        rows = model.encode_image(torch.randn(2, 3, 64, 64))
        texts = model.encode_text(clip.tokenize(["a", "b"]))
    for features in (rows, texts):
        assert (features.norm(dim=-1) - 1).abs().min() > 0.01


def test_the_state_dict_goes_there_and_back(model, weights):
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in model.state_dict()
    again = clip.build_model(model.state_dict())
    kept = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not torch.equal(model.visual.proj, kept.visual.proj)
    model.load_state_dict(again.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64)
        assert torch.equal(model.encode_image(image), kept.encode_image(image))
    with pytest.raises(CheckpointError, match="positional_embedding"):
        clip.build_model({"visual.proj": torch.zeros(2, 2)})


def test_training_changes_the_file_of_nobody(weights):
    before = weights.read_bytes()
    model, _ = clip.load(weights, device="cpu")
    image, ids = torch.randn(2, 3, 64, 64), clip.tokenize(["a", "b"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    first = nn.functional.cross_entropy(model.train()(image, ids)[0], torch.arange(2))
    first.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    second = nn.functional.cross_entropy(model(image, ids)[0], torch.arange(2))
    assert second < first
    assert weights.read_bytes() == before


def test_the_tree_can_be_taken_apart(model):
    """Hooks fire, a replaced activation counts, the projection may go."""
    seen = []
    block = model.visual.transformer.resblocks[-1]
    assert isinstance(block.attn, nn.MultiheadAttention)
    block.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first = model.encode_image(image)
        assert seen == [(17, 2, 64)]  # s n d
        block.mlp.gelu = nn.Identity()
        assert not torch.allclose(model.encode_image(image), first)
        model.visual.proj = None
        assert model.encode_image(image).shape == (2, 64)


def test_fp16_on_request(model):
    clip.model.convert_weights(model)
    assert model.dtype == torch.float16
    assert model.ln_final.weight.dtype == model.logit_scale.dtype == torch.float32
    assert model.text_projection.dtype == torch.float16


def test_tokens():
    ids = clip.tokenize(["a cat", ""], context_length=8)
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[49406, 320, 2368, 49407, 0, 0, 0, 0], [49406, 49407, *6 * [0]]]
    cut = clip.tokenize("cat " * 100, context_length=4, truncate=True)
    assert cut.tolist() == [[49406, 2368, 2368, 49407]]
    with pytest.raises(RuntimeError, match=r"^Input cat cat cat is too long for context length 4$"):
        clip.tokenize("cat cat cat", context_length=4)
    with pytest.raises(TextError):
        clip.tokenize([1])


def test_a_text_cannot_end_itself():
    ids = clip.tokenize("a cat <|endoftext|> and a dog")[0]
    assert (ids == 49407).sum() == 1
    assert ids.argmax() == (ids != 0).sum() - 1


def test_simple_tokenizer():
    tokenizer = clip.simple_tokenizer.SimpleTokenizer()
    assert tokenizer.encode("a photo of a") == [320, 1125, 539, 320]
    assert tokenizer.encoder["cat</w>"] == 2368 and tokenizer.decoder[2368] == "cat</w>"
    assert tokenizer.encoder["<|endoftext|>"] == 49407
    assert tokenizer.decode([49406, 320, 2368]) == "<|startoftext|>a cat "


def test_preprocess_travels(weights):
    _, preprocess = clip.load(weights, device="cpu")
    again = pickle.loads(pickle.dumps(preprocess))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    assert torch.equal(again(photo), preprocess(photo))
    assert "size=(64, 64)" in repr(preprocess) and "original" in repr(preprocess)


def test_download_finds_what_is_here(monkeypatch, tmp_path):
    files = small.put_rows(monkeypatch)
    assert clip._download(clip._MODELS["RN50"]) == str(files["RN50/openai"])
    with pytest.raises(ModelNotFoundError, match="none of OpenAI's"):
        clip._download("https://example.com/model.pt", str(tmp_path))
