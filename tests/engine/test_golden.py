"""A row, a host and a publisher's output, all made up here: reproduced, differing, not reached."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import diptych
from diptych import zoo
from diptych.cli.main import cli
from diptych.config import CLIPConfig, PreprocessConfig, TextConfig, TokenizerConfig, ViTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from faulty_server import Served, Server

CONFIG = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128),
)
TEXTS = ("a diagram", "a dog", "a cat")


@pytest.fixture
def world(own_cache, tmp_path, monkeypatch):
    """`diptych models check tiny/tag` on a connected machine; (server, row)."""
    monkeypatch.delenv("DIPTYCH_OFFLINE")
    built = diptych.build(CONFIG, seed=3, mode="original", precision="fp32")
    path = tmp_path / "weights.pt"
    torch.save(
        zoo.keymaps.restore(built.model.state_dict(), zoo.keymaps.OPENAI)
        | {"logit_scale": torch.tensor(1.0)},
        path,
    )
    # a JPEG that lies on its side: `original` mode, as the publisher, does not turn it
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).resize((300, 200)).save(picture, "JPEG", exif=exif)
    golden_encoder = diptych.load(path, config=CONFIG, mode="original", precision="fp32")
    ranked = golden_encoder.classify(Image.open(picture), TEXTS)[0]
    golden = zoo.Golden(
        image=zoo.Url(url="https://weights.example.org/CLIP.jpg"),
        texts=TEXTS,
        probabilities=tuple(dict(ranked)[text] for text in TEXTS),
        source="a README of nobody",
    )
    row = zoo.Row(
        name="tiny/tag",
        config=CONFIG,
        preprocess=PreprocessConfig(size=(32, 32)),
        tokenizer=TokenizerConfig(kind="clip_bpe", context_length=77),
        sources=(
            zoo.Url(
                url="https://weights.example.org/tiny/weights.pt", sha256=zoo.sha256_of(path)[:8]
            ),
        ),
        goldens=(golden,),
    )
    monkeypatch.setitem(zoo.registry.rows(), "tiny/tag", row)
    with Server() as server:
        monkeypatch.setenv("DIPTYCH_MIRROR", server.url)
        server.files["/weights.example.org/tiny/weights.pt"] = Served(path.read_bytes())
        server.files["/weights.example.org/CLIP.jpg"] = Served(picture.getvalue())
        yield server, row


def check(*options):
    return CliRunner().invoke(cli, ["models", "check", "tiny/tag", *options], prog_name="diptych")


def test_it_downloads_hashes_and_reproduces(world):
    server, _ = world
    done = check()
    assert done.exit_code == 0, done.output
    assert "REPRODUCES a README of nobody: largest difference 0" in done.stdout
    assert "(as published)" in done.stdout
    assert f"{server.url}/weights.example.org/tiny/weights.pt" in done.stdout
    assert len(server.bodies()) == 2
    again = check("--json")
    assert len(server.bodies()) == 2  # nothing is fetched twice
    assert '"differs": false' in again.stdout


def test_what_differs_says_by_how_much(world, monkeypatch):
    _, row = world
    first, second, third = row.goldens[0].probabilities
    wrong = replace(row.goldens[0], probabilities=(first - 0.25, second + 0.25, third))
    monkeypatch.setitem(zoo.registry.rows(), "tiny/tag", replace(row, goldens=(wrong,)))
    done = check()
    assert done.exit_code == 1
    assert "DIFFERS BY 0.2500 from a README of nobody, where 0.002 is allowed" in done.stdout
    assert f"{first:.6f}" in done.stdout


def test_a_wrong_activation_shows(world, monkeypatch):
    """What a golden is for: the same weights under another tag's arithmetic."""
    _, row = world
    quick = zoo.architectures.with_act(CONFIG, "quick_gelu")
    monkeypatch.setitem(zoo.registry.rows(), "tiny/tag", replace(row, config=quick))
    strict = replace(row.goldens[0], tolerance=1e-6)
    monkeypatch.setitem(
        zoo.registry.rows(), "tiny/tag", replace(row, config=quick, goldens=(strict,))
    )
    done = check()
    assert done.exit_code == 1
    assert "DIFFERS BY" in done.stdout


def test_a_picture_that_is_not_reached_is_said(world):
    server, _ = world
    del server.files["/weights.example.org/CLIP.jpg"]
    done = check()
    assert done.exit_code == 0
    assert "NOT COMPARED with a README of nobody" in done.stdout
    assert "404" in done.stdout


def test_offline_it_compares_what_is_here(world):
    done = check("--offline")
    assert done.exit_code == 2
    assert "diptych models download tiny/tag" in done.stderr
    diptych.load("tiny/tag")
    done = check("--offline")
    assert done.exit_code == 0
    assert "NOT COMPARED" in done.stdout
    check()
    assert "REPRODUCES" in check("--offline").stdout


def test_openais_figures_are_those_of_its_readme():
    golden = zoo.get("ViT-B-32/openai").goldens[0]
    assert golden.probabilities == (0.9927937, 0.00421068, 0.00299572)
    assert golden.texts == TEXTS
    assert golden.tolerance == 2e-3
    assert golden.image.url.endswith("openai/CLIP/main/CLIP.png")
