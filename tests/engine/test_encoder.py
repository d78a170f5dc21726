"""The promises of `Encoder`: unit rows in order, errors named, nothing depends on the batch."""

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.errors import ConfigError, ImageError, TextTooLongError

CAPTIONS = ["a photo of a cat", "dog", "a very long walk on the beach with my friends at night"]


def files(photos):
    return sorted(photos.rglob("*.png"))


def test_rows_are_unit_float32_and_in_order(enc, photos):
    paths = files(photos)
    rows = enc.encode_image(paths)
    assert rows.shape == (40, 24)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows[7], enc.encode_image(paths[7])[0], atol=2e-6)


def test_a_path_a_picture_an_array_and_bytes_are_the_same(enc, photos):
    path = files(photos)[0]
    picture = Image.open(path)
    same = enc.encode_image([path, str(path), picture, np.array(picture), path.read_bytes()])
    assert np.ptp(same, axis=0).max() <= 2e-6


def test_equal_to_the_model_on_prepared_pixels(enc, photos):
    paths = files(photos)[:5]
    pixels = torch.stack([enc.preprocess(path) for path in paths])
    with torch.no_grad():
        expected = enc.model.encode_image(pixels)
    np.testing.assert_allclose(enc.encode_image(paths), expected, atol=2e-6)


def test_texts_equal_the_model_at_full_length(enc):
    with torch.no_grad():
        expected = enc.model.encode_text(enc.tokenizer(CAPTIONS))
    np.testing.assert_allclose(enc.encode_text(CAPTIONS), expected, atol=3e-6)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-6), ("bf16", 2e-2)])
def test_a_vector_does_not_depend_on_its_batch(tiny, photos, precision, bound):
    enc = diptych.build(tiny, precision=precision)
    paths = files(photos)
    order = np.random.default_rng(0).permutation(len(paths))
    whole = enc.encode_image([paths[i] for i in order])
    alone = np.concatenate([enc.encode_image(path) for path in paths])
    assert np.abs(whole - alone[order]).max() <= bound
    assert (whole * alone[order]).sum(1).min() >= 0.9999
    texts = [f"{'very ' * (i % 30)}big dog {i}" for i in range(64)]
    shuffled = np.random.default_rng(1).permutation(64)
    whole = enc.encode_text([texts[i] for i in shuffled])
    alone = np.concatenate([enc.encode_text(text) for text in texts])
    assert np.abs(whole - alone[shuffled]).max() <= bound
    assert (whole * alone[shuffled]).sum(1).min() >= 0.9999


def test_an_error_names_the_file(enc, photos):
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        enc.encode_image([*files(photos), photos / "broken.jpg"])
    with pytest.raises(ImageError, match="image 1"):
        enc.encode_image([np.zeros((4, 4, 3), np.uint8), b"nothing"])


def test_nan_keeps_rows_aligned_and_warns_with_the_count(enc, photos, caplog):
    paths = files(photos)[:3]
    with caplog.at_level(logging.WARNING, "diptych"):
        rows = enc.encode_image([paths[0], photos / "broken.jpg", paths[1]], on_error="nan")
    assert np.isnan(rows[1]).all()
    np.testing.assert_allclose(rows[[0, 2]], enc.encode_image(paths[:2]), atol=2e-6)
    assert "1 of 3 images" in caplog.text


def test_empty_inputs_have_no_rows(enc):
    assert enc.encode_image([]).shape == (0, 24)
    assert enc.encode_text([]).shape == (0, 24)


def test_out_torch_can_be_trained_on(enc, photos):
    rows = enc.encode_image(files(photos)[:2], out="torch")
    head = torch.nn.Linear(24, 2)
    head(rows).sum().backward()
    assert head.weight.grad.shape == (2, 24)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.encode_image(torch.zeros(1, 3, 32, 32)), "enc.model.encode_image"),
        (lambda e: e.encode_image(3), "cannot take images from a int"),
        (lambda e: e.encode_image("x.png", on_error="skip"), "on_error"),
        (lambda e: e.encode_text(3), "not int"),
        (lambda e: e.encode_text("x", out="list"), "out must be"),
        (lambda e: e.classifier([]), "at least one"),
        (lambda e: e.classifier("cat"), "list of at least one"),
        (lambda e: e.classifier(["cat"], "phot"), "Nearest: photo"),
        (lambda e: e.classifier(["cat"], ["no place"]), "no '{}'"),
        (lambda e: e.classifier(["cat"], []), "empty list"),
    ],
)
def test_wrong_use_is_told_with_the_fix(enc, call, message):
    with pytest.raises(diptych.errors.DiptychError, match=message):
        call(enc)


def test_a_folder_is_for_stream(enc, photos):
    with pytest.raises(ImageError, match="stream"):
        enc.encode_image(photos)


def test_texts_too_long_are_refused_on_request(enc):
    with pytest.raises(TextTooLongError):
        enc.encode_text("word " * 200, truncate="error")


def test_classify_sorts_and_sums_to_one(enc, photos):
    paths = files(photos)[:3]
    rows = enc.classify(paths, ["a cat", "a dog", "a {brace}"], templates="photo")
    assert [len(row) for row in rows] == [3, 3, 3]
    for row in rows:
        scores = [score for _, score in row]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert rows._repr_html_().count("<img") == 3


def test_classify_is_softmax_of_scaled_cosines(enc, photos):
    path, labels = files(photos)[0], ["a cat", "a dog"]
    cosines = enc.similarity(path, ["a photo of a cat.", "a photo of a dog."])[0]
    logits = cosines.astype(np.float64) * np.exp(enc.model.logit_scale.item())
    expected = np.exp(logits) / np.exp(logits).sum()
    found = dict(enc.classify(path, ["cat", "dog"], templates="photo")[0])
    assert [found["cat"], found["dog"]] == pytest.approx(expected, abs=1e-5)
    assert labels  # labels without templates are taken as they are
    plain = dict(enc.classify(path, ["a photo of a cat.", "a photo of a dog."])[0])
    assert list(plain.values()) == pytest.approx(sorted(expected)[::-1], abs=1e-5)


def test_sigmoid_models_judge_each_label_alone(tiny, photos):
    from dataclasses import replace

    enc = diptych.build(replace(tiny, loss="sigmoid"), precision="fp32")
    row = dict(enc.classify(files(photos)[0], ["a cat", "a dog"])[0])
    cosines = enc.similarity(files(photos)[0], ["a cat", "a dog"])[0]
    expected = 1 / (1 + np.exp(-(10 * cosines - 10)))
    assert [row["a cat"], row["a dog"]] == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_is_the_mean_of_unit_vectors(enc):
    templates = ["a photo of a {}.", "art of the {}."]
    rows = enc.encode_text(["a photo of a cat.", "art of the cat."])
    mean = rows.mean(0)
    found = enc.classifier(["cat"], templates)[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=3e-6)


def test_threads_share_an_encoder(enc, photos):
    paths = files(photos)
    expected = enc.encode_image(paths)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: enc.encode_image(paths), range(8)):
            np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_pickle_keeps_everything(enc, photos):
    again = pickle.loads(pickle.dumps(enc))
    path = files(photos)[0]
    np.testing.assert_array_equal(again.encode_image(path), enc.encode_image(path))
    np.testing.assert_array_equal(again.encode_text("a cat"), enc.encode_text("a cat"))
    assert again.fingerprint == enc.fingerprint


def test_fingerprint_follows_weights_pixels_and_mode(tiny):
    enc = diptych.build(tiny, seed=3)
    before = enc.fingerprint
    assert before == diptych.build(tiny, seed=3, precision="fp32").fingerprint
    assert before != diptych.build(tiny, seed=4).fingerprint
    assert before != diptych.build(tiny, seed=3, mode="original").fingerprint
    with torch.no_grad():
        enc.model.logit_scale += 0.1
    assert enc.fingerprint != before


def test_seeds_repeat_and_leave_torch_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b = diptych.build(tiny, seed=0), diptych.build(tiny, seed=0)
    assert torch.equal(torch.rand(1), expected)
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)
    assert "random weights" in repr(a)


def test_a_tokenizer_of_another_model_is_refused(tiny):
    from dataclasses import replace

    from diptych.config import TokenizerConfig

    small = replace(tiny, text=replace(tiny.text, vocab_size=100))
    enc = diptych.build(small, tokenizer=TokenizerConfig(kind="clip_bpe", context_length=77))
    with pytest.raises(ConfigError, match="49408 ids, the text tower 100"):
        enc.encode_text("a cat")
    with pytest.raises(ConfigError, match="positions"):
        diptych.build(tiny, tokenizer=TokenizerConfig(kind="clip_bpe", context_length=78))


def test_an_unusable_device_or_precision_is_refused(tiny):
    with pytest.raises(ConfigError, match="nonsense"):
        diptych.build(tiny, device="nonsense")
    with pytest.raises(ConfigError, match="fp64"):
        diptych.build(tiny, precision="fp64")


def test_auto_takes_bf16_only_where_it_is_fast_and_borne(tiny, monkeypatch):
    from dataclasses import replace

    from diptych.config import ResNetConfig
    from diptych.engine import device

    resnet = ResNetConfig(image_size=(64, 64), layers=(1, 1, 1, 1), width=8, heads=4)
    with_resnet = replace(tiny, visual=resnet)
    for fast in (True, False):
        monkeypatch.setattr(device, "has_fast_bf16", lambda fast=fast: fast)
        assert diptych.build(tiny, device="cpu").precision == ("bf16" if fast else "fp32")
        assert diptych.build(with_resnet, device="cpu").precision == "fp32"
    assert diptych.build(with_resnet, precision="bf16").precision == "bf16"
