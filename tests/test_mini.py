"""The embedded model, as it ships: real weights, real photographs, no network, no special case."""

import ast
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import diptych
from diptych import zoo
from diptych.cli.common import DEFAULT_MODEL

ASSETS = Path(str(resources.files("diptych").joinpath("assets")))
SAMPLES = json.loads((ASSETS / "samples" / "samples.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def enc():
    return diptych.load("mini", device="cpu")


@pytest.fixture(scope="module")
def vectors(enc):
    return enc.encode_image([ASSETS / "samples" / row["file"] for row in SAMPLES])


def test_the_file_is_small_and_the_one_of_the_registry():
    path = ASSETS / "mini.safetensors"
    assert path.stat().st_size <= 32e6
    assert zoo.sha256_of(path) == zoo.get("mini").sources[0].sha256


def test_the_file_says_what_the_row_says():
    found, row = zoo.read(ASSETS / "mini.safetensors"), zoo.get("mini")
    assert (found.config, found.preprocess, found.tokenizer) == (
        row.config,
        row.preprocess,
        row.tokenizer,
    )
    assert found.licence == row.licence == "Apache-2.0"
    assert any("ImageNet" in part or "efficientnet" in part for part in found.metadata["parts"])


def test_it_is_the_default_and_an_encoder_like_any_other(enc):
    assert DEFAULT_MODEL == "mini"
    assert type(enc).__name__ == "Encoder" and repr(enc).startswith("Encoder(mini")
    assert len(enc.fingerprint) == 64
    for path in (ASSETS.parent).rglob("*.py"):  # the name stands in no condition
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare | ast.match_case):
                assert "'mini'" not in ast.unparse(node), f"{path}: {ast.unparse(node)}"


def test_photographs_are_found_by_their_captions(enc, vectors):
    """A floor far above chance (1 of 28), so that another machine's rounding does not matter."""
    texts = enc.encode_text([row["caption"] for row in SAMPLES])
    first = (texts @ vectors.T).argmax(1) == np.arange(len(SAMPLES))
    assert first.mean() >= 0.6, [
        r["caption"] for r, ok in zip(SAMPLES, first, strict=True) if not ok
    ]


def test_probabilities_mean_something(enc):
    labels = ["a cat", "a bee", "a castle", "a guitar"]
    for file, label in (("cat", 0), ("bee", 1), ("castle", 2), ("guitar", 3)):
        path = ASSETS / "samples" / f"{file}.jpg"
        (pairs,) = enc.classify(path, labels)
        assert pairs[0][0] == labels[label] and 0.5 < pairs[0][1] <= 1
        assert sum(p for _, p in pairs) == pytest.approx(1, abs=1e-5)


def test_a_colour_word_moves_the_right_picture(enc):
    from PIL import Image

    red, blue = (Image.new("RGB", (300, 200), c) for c in ("#d01010", "#1040d0"))
    scores = enc.similarity([red, blue], ["a red picture", "a blue picture"])
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]


def test_a_vector_does_not_depend_on_its_batch(enc, vectors):
    alone = enc.encode_image(ASSETS / "samples" / SAMPLES[3]["file"])[0]
    assert abs(1 - alone @ vectors[3]) < 1e-5
    texts = ["a cat", "a very long sentence about nothing in particular " * 5]
    together = enc.encode_text(texts)
    for text, row in zip(texts, together, strict=True):
        assert abs(1 - enc.encode_text(text)[0] @ row) < 1e-5


def test_long_and_odd_texts_are_vectors_too(enc):
    texts = ["", " ", "🦊", "ｃａｔ", "[SEP] [MASK]", "word " * 1000, "x" * 100_000]
    rows = enc.encode_text(texts)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_it_can_be_saved_and_loaded_again(tmp_path, enc):
    diptych.zoo.save(enc, tmp_path / "copy.safetensors")
    copy = diptych.load(tmp_path / "copy.safetensors", device="cpu")
    assert copy.fingerprint == enc.fingerprint
    np.testing.assert_array_equal(copy.encode_text("a dog"), enc.encode_text("a dog"))


def test_it_needs_neither_network_nor_home(tmp_path):
    """A process whose sockets fail and whose cache is new."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "import diptych\n"
        "print(diptych.load('mini').encode_text('a cat').shape)\n"
    )
    env = {"DIPTYCH_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "none"), "PATH": ""}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "(1, 384)"


def test_the_card_and_the_notice_name_every_part():
    root = Path(__file__).parents[1]
    card, notice = ((root / n).read_text("utf-8") for n in ("docs/models/mini.md", "NOTICE"))
    assert "mini.safetensors" in notice
    for part in zoo.read(ASSETS / "mini.safetensors").metadata["parts"]:
        name, use = part.split()[0], part.split("): ")[1]
        assert not use.startswith("test") and name in card, part
