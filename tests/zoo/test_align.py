"""ALIGN's folders: settings read, written and refused; keys there and back; the temperature."""

import json
import math
from dataclasses import replace

import pytest
import tiny_zoo
import torch

import diptych
from diptych import zoo
from diptych.config import BertConfig, CLIPConfig, EfficientNetConfig, PreprocessConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo import align, keymaps
from diptych.zoo.keymaps import rename, restore

VISUAL = EfficientNetConfig(
    image_size=(64, 64),
    width_mult=0.5,
    depth_mult=0.4,
    head_width=None,
    padding="even",
    proj="none",
)
TEXT = BertConfig(
    context_length=16,
    vocab_size=12,
    width=32,
    layers=2,
    heads=2,
    mlp_dim=48,
    pool="class",
    proj="linear_bias",
)
TINY = CLIPConfig(embed_dim=160, visual=VISUAL, text=TEXT)
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "red", "dog", "photo", "of", "!")


def read(text=None, vision=None, **more):
    config = {"model_type": "align", "text_config": text or {}, "vision_config": vision or {}}
    return align.read_config({**config, **more}, "x")


def pixels(**settings):
    return align.read_preprocess(settings, TINY, "x")


def checkpoint(folder):
    (folder / "vocab.txt").write_text("\n".join(PIECES), "utf-8")
    weights = tiny_zoo.weights(TINY)
    weights["logit_scale"] = torch.tensor(2.6593)
    return zoo.Checkpoint(
        state_dict=weights,
        config=TINY,
        preprocess=PreprocessConfig(size=(64, 64), resize="squash", rgb="before", crop="floor"),
        tokenizer=align.read_tokenizer(TINY, folder)[0],
        folder=folder,
        licence="Apache-2.0",
    )


def test_absent_keys_have_the_published_architecture():
    config = read(vision={"image_size": 289, "hidden_dim": 640})
    assert config == zoo.get("align/coyo700m").config
    assert config.embed_dim == 640
    assert config.visual.grid == (9, 9)
    assert (config.text.layers, config.text.context_length) == (12, 512)
    model = diptych.towers.outline(config)
    assert len(model.visual.blocks) == 55  # B7
    assert sum(p.numel() for p in model.text.parameters()) == 109_482_240 - 590_592 + 640 * 769


def test_the_written_config_is_the_one_that_was_read():
    written = json.loads(json.dumps(align.write_config(TINY, "float32")))
    assert align.read_config(written, "x") == TINY
    assert written["vision_config"]["hidden_dim"] == 160


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"strides": [1, 2, 2, 2, 2, 2, 1]}, r"strides = \[1, 2, 2, 2, 2, 2, 1\] cannot be"),
        ({"pooling_type": "max"}, "pooling_type = 'max'"),
        ({"squeeze_expansion_ratio": 0.5}, "squeeze_expansion_ratio = 0.5"),
        ({"hidden_act": "relu"}, "must be 'swish'"),
        ({"depthwise_padding": [4]}, "the strided block 4"),
        ({"hidden_dim": 8, "image_size": 300}, "the last map has 9"),
        ({"width_coefficient": 0.25}, "makes block 0 as wide as its input"),
        ({"width_coefficient": 1.0}, "text projects to 640, images have 320"),
    ],
)
def test_what_our_tower_cannot_compute_is_refused(vision, message):
    with pytest.raises(ConfigError, match=message):
        read(vision=vision)


def test_padding_that_changes_nothing_is_read():
    assert read(vision={"depthwise_padding": [0, 1]}) == read()  # blocks without a stride


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ],
)
def test_what_our_text_tower_cannot_compute_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text=text)


@pytest.mark.parametrize(
    "change",
    [
        {"visual": replace(VISUAL, padding="same")},
        {"visual": replace(VISUAL, lite=True)},
        {"text": replace(TEXT, pool="mean")},
        {"text": replace(TEXT, pad_id=None)},
        {"text": replace(TEXT, unit=True)},
        {"loss": "sigmoid"},
        {"text": tiny_zoo.TEXT},
    ],
)
def test_what_align_cannot_state_is_refused(change):
    with pytest.raises(ConfigError, match=r"Save with format='diptych'"):
        align.write_config(replace(TINY, **change), "float32")


def test_the_processor_s_three_steps_become_a_mean_and_a_deviation():
    plain = pixels()  # normalised by (0.5, 0.5), then divided by 0.5 again
    assert plain.size == (346, 346) and plain.resize == "squash"
    assert plain.mean == (0.5,) * 3 and plain.std == (0.25,) * 3
    assert plain.interpolation == "bicubic"
    square = {"size": {"height": 289, "width": 289}}
    published = pixels(**{**align.PUBLISHED_PIXELS, **square})
    assert published.size == (289, 289) and published.interpolation == "bilinear"
    assert published.mean == published.std == (0.5,) * 3
    cropped = pixels(**align.PUBLISHED_PIXELS)
    assert cropped == zoo.get("align/coyo700m").preprocess
    assert pixels(**align.write_preprocess(cropped)) == cropped
    unscaled = pixels(rescale_factor=1.0, do_normalize=False, include_top=False)
    assert unscaled.mean == (0.0,) * 3 and unscaled.std == pytest.approx((1 / 255,) * 3)


def test_written_pixels_are_read_again():
    config = PreprocessConfig(
        size=(64, 64), resize="squash", rgb="before", crop="floor", mean=(0.1, 0.2, 0.3)
    )
    assert pixels(**align.write_preprocess(config)) == config
    with pytest.raises(ConfigError, match="resize='shortest'"):
        align.write_preprocess(replace(config, resize="shortest"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_rescale": False}, "do_rescale"),
        ({"resample": 0}, "resample"),
        ({"rescale_factor": 0}, "above 0"),
        ({"do_center_crop": True, "size": {"height": 9, "width": 9}}, "done together"),
    ],
)
def test_pixels_that_cannot_be_stated_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        pixels(**settings)


def test_the_tokenizer_of_a_folder(tmp_path):
    tokenizer, notes = align.read_tokenizer(read(), tmp_path)
    assert tokenizer == zoo.get("align/coyo700m").tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (101, 102, 0)
    assert tokenizer.context_length == 64 and "no tokenizer file" in notes[0]
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES), "utf-8")
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"model_max_length": 9}', "utf-8")
    tokenizer, notes = align.read_tokenizer(read(), tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 3, 0)
    assert tokenizer.context_length == 9 and notes == []
    settings.write_text('{"do_lower_case": false}', "utf-8")
    with pytest.raises(ConfigError, match="do_lower_case = False"):
        align.read_tokenizer(read(), tmp_path)
    settings.unlink()
    (tmp_path / "vocab.txt").write_text("a\nb", "utf-8")
    with pytest.raises(CheckpointError, match=r"has no \[CLS\]"):
        align.read_tokenizer(read(), tmp_path)


def test_keys_there_and_back():
    ours = tiny_zoo.weights(TINY)
    theirs = restore(ours, keymaps.HF_ALIGN)
    assert "vision_model.encoder.blocks.3.depthwise_conv.depthwise_norm.running_var" in theirs
    assert "text_model.encoder.layer.1.attention.output.LayerNorm.bias" in theirs
    again = rename(theirs, keymaps.HF_ALIGN, source="file")
    assert torch.allclose(again.pop("logit_scale"), ours.pop("logit_scale"), atol=5e-7)
    assert tiny_zoo.same(again, ours)


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.01, 30.0])
def test_the_temperature_divides_the_logits(temperature):
    theirs = {"temperature": torch.tensor(temperature)}
    ours = rename(theirs, keymaps.HF_ALIGN, source="file")
    assert ours["logit_scale"].item() == pytest.approx(-math.log(temperature), abs=1e-6)
    back = restore(ours, keymaps.HF_ALIGN)["temperature"]
    assert back.item() == pytest.approx(temperature, rel=5e-7)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_one_is_refused(temperature):
    theirs = {"temperature": torch.tensor(temperature)}
    with pytest.raises(CheckpointError, match="neg_log"):
        rename(theirs, keymaps.HF_ALIGN, source="file")


def test_the_tables_of_single_towers_read_what_they_name():
    head = replace(VISUAL, lite=True, head_width=48)
    model = tiny_zoo.weights(replace(TINY, visual=head))
    visual = {k: v for k, v in model.items() if k.startswith("visual.")}
    visual["visual.proj.classifier.weight"] = torch.randn(5, 48)
    theirs = restore(visual, keymaps.EFFICIENTNET_LITE)
    assert "_fc.weight" in theirs and "_blocks.1._expand_conv.weight" in theirs
    assert tiny_zoo.same(rename(theirs, keymaps.EFFICIENTNET_LITE, source="file"), visual)
    text = {k: v for k, v in model.items() if k.startswith("text.") and ".proj." not in k}
    theirs = restore(text, keymaps.BERT)
    assert "encoder.layer.0.attention.self.query.weight" in theirs
    theirs["pooler.dense.weight"] = torch.zeros(2, 2)  # dropped
    assert tiny_zoo.same(rename(theirs, keymaps.BERT, source="file"), text)


def test_a_folder_that_we_write_is_read_again(tmp_path):
    found = checkpoint(tmp_path)
    zoo.write(found, tmp_path / "hf", format="hf")
    (tmp_path / "hf" / "diptych.json").unlink(missing_ok=True)  # without our own notes
    again = zoo.read(tmp_path / "hf")
    assert again.config == found.config and again.preprocess == found.preprocess
    assert again.tokenizer == found.tokenizer
    assert again.state_dict.keys() == found.state_dict.keys()
    encoder = diptych.load(tmp_path / "hf", device="cpu")
    assert encoder.encode_text(["a cat", "red dogs!"]).shape == (2, 160)
    assert encoder.precision == "fp32"  # an EfficientNet bears nothing else
