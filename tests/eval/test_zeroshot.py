"""The cached classifier: the right mean, one text once, and a cache that never lies."""

import logging

import pytest
import torch
import torch.nn.functional as F

from diptych import build
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.engine import Encoder
from diptych.errors import ConfigError
from diptych.eval import zeroshot
from diptych.eval.classes import class_list
from diptych.eval.zeroshot import cache_file, zero_shot_weights
from diptych.zoo.cache import cache_folder

CONFIG = CLIPConfig(
    embed_dim=16,
    visual=ViTConfig(image_size=(32, 32), patch_size=16, width=32, layers=1, heads=2, mlp_dim=64),
    text=TextConfig(context_length=77, vocab_size=49408, width=32, layers=1, heads=2, mlp_dim=64),
)


@pytest.fixture
def encoder(own_cache) -> Encoder:
    return build(CONFIG, seed=0, precision="fp32")


def by_hand(encoder: Encoder, classes, templates) -> torch.Tensor:
    rows = []
    for names in classes:
        texts = [template.replace("{}", name) for template in templates for name in names]
        vectors = encoder.encode_text(texts, out="torch")
        rows.append(F.normalize(F.normalize(vectors, dim=-1).mean(0), dim=-1))
    return torch.stack(rows)


def test_the_mean_is_over_templates_and_names(encoder):
    classes = [("happy", "smiling"), ("sad",), ("surprised", "shocked", "spooked")]
    templates = ["a {} face.", "they look {}."]
    found = zero_shot_weights(encoder, classes, templates)
    torch.testing.assert_close(found, by_hand(encoder, classes, templates), atol=2e-6, rtol=0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


def test_plain_names_are_the_encoders_classifier(encoder):
    names = ["cat", "a much longer name of a thing", "dog", "cat"]
    found = zero_shot_weights(encoder, names, "openai-7")
    expected = encoder.classifier(names, "openai-7", out="torch")
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert found[0].equal(found[3])


def test_a_text_is_encoded_once_and_memory_is_bounded(encoder, monkeypatch):
    asked = []
    encode = Encoder.encode_text
    monkeypatch.setattr(zeroshot, "_AT_ONCE", 3)
    monkeypatch.setattr(
        Encoder,
        "encode_text",
        lambda self, texts, **how: asked.append(list(texts)) or encode(self, texts, **how),
    )
    found = zero_shot_weights(encoder, ["aa", "b", "aa", "cccc", ("b", "aa")], ["{}", "{}!"])
    flat = [text for part in asked for text in part]
    assert len(flat) == len(set(flat)) == 6
    assert flat == sorted(flat, key=len)
    assert max(map(len, asked)) == 3
    assert found[0].equal(found[2])


def test_a_large_classifier_is_kept_and_found_again(encoder, monkeypatch):
    names = [f"thing {i}" for i in range(40)]
    found = zero_shot_weights(encoder, names, "openai-7")
    [file] = (cache_folder() / "classifiers").iterdir()
    monkeypatch.setattr(Encoder, "encode_text", None)  # would fail
    assert zero_shot_weights(encoder, names, "openai-7").equal(found)
    assert file.suffix == ".safetensors"


def test_what_the_cache_depends_on(encoder):
    texts = [["a", "b"], ["c"]]
    paths = {
        cache_file(encoder, texts),
        cache_file(encoder, [["a"], ["b", "c"]]),
        cache_file(encoder, [["c"], ["a", "b"]]),
        cache_file(build(CONFIG, seed=1, precision="fp32"), texts),
        cache_file(build(CONFIG, seed=0, precision="bf16"), texts),
    }
    assert len(paths) == 5
    assert cache_file(build(CONFIG, seed=0, precision="fp32"), texts) in paths


def test_a_model_that_was_trained_on_is_encoded_anew(encoder):
    names = [f"thing {i}" for i in range(300)]
    before = zero_shot_weights(encoder, names)
    with torch.no_grad():
        encoder.model.text.token_embedding.weight.mul_(-1)
    after = zero_shot_weights(encoder, names)
    assert not torch.allclose(before, after)
    assert after.equal(zero_shot_weights(encoder, names, cache=False))


def test_no_file_for_few_texts_or_without_cache(encoder):
    zero_shot_weights(encoder, ["a", "b"])
    zero_shot_weights(encoder, [f"thing {i}" for i in range(300)], cache=False)
    assert not cache_folder().exists()


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_made_anew(encoder, caplog, damage):
    import safetensors.torch

    names = [f"thing {i}" for i in range(300)]
    found = zero_shot_weights(encoder, names)
    [file] = (cache_folder() / "classifiers").iterdir()
    if damage is None:
        safetensors.torch.save_file({"weights": torch.full((300, 16), torch.nan)}, file)
    else:
        file.write_bytes(damage)
    with caplog.at_level(logging.WARNING, "diptych"):
        assert zero_shot_weights(encoder, names).equal(found)
    assert "made anew" in caplog.text
    caplog.clear()
    zero_shot_weights(encoder, names)
    assert not caplog.text


def test_a_cache_that_cannot_be_written_costs_no_result(encoder, caplog):
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "diptych"):
        assert len(zero_shot_weights(encoder, [f"thing {i}" for i in range(300)])) == 300
    assert "is not kept" in caplog.text


@pytest.mark.parametrize("wrong", [[], "cat", [()], [("a", 3)], [3]])
def test_classes_that_are_none(encoder, wrong):
    with pytest.raises(ConfigError, match="class"):
        zero_shot_weights(encoder, wrong)


def test_fer2013_by_its_list(encoder):
    fer = class_list("fer2013").names
    assert zero_shot_weights(encoder, fer, "openai-fer2013").shape == (7, 16)
