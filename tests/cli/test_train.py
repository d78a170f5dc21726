"""`diptych train`: recipes, settings, dry runs, and what a person reads when it cannot be."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import diptych

RECIPE = """
from diptych.config import CLIPConfig, PreprocessConfig, TextConfig, TokenizerConfig, ViTConfig
from diptych.train.config import ModelConfig, OptimConfig, TrainConfig, changed

SMALL = {"width": 16, "layers": 1, "heads": 2, "mlp_dim": 32}


def small() -> TrainConfig:
    visual = ViTConfig(image_size=(16, 16), patch_size=8, **SMALL)
    text = TextConfig(context_length=12, vocab_size=49408, **SMALL)
    return TrainConfig(
        name="small",
        model=ModelConfig(
            start=None,
            clip=CLIPConfig(embed_dim=16, visual=visual, text=text),
            preprocess=PreprocessConfig(size=(16, 16)),
            tokenizer=TokenizerConfig(kind="clip_bpe", context_length=12),
        ),
        optim=OptimConfig(lr=1e-2),
        batch_size=4,
        steps=3,
        precision="fp32",
        log_every=1,
    )


def a_number():
    return 3


def of(size) -> TrainConfig:
    return small()


def breaks() -> TrainConfig:
    return 1 / 0


def _hidden() -> TrainConfig:
    return small()
"""


@pytest.fixture
def there(tmp_path, own_cache, monkeypatch):
    """A folder with small.py, and pairs/: eight pictures and their captions.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a recipe's folder comes before it
    monkeypatch.delitem(sys.modules, "small", raising=False)
    (tmp_path / "small.py").write_text(RECIPE)
    write_pairs(tmp_path / "pairs")
    return tmp_path


def write_pairs(folder, num=8):
    folder.mkdir()
    rows = ["image,caption"]
    for i in range(num):
        pixels = np.full((20, 20, 3), 30 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f'{i}.png,"number {i}, grey"')
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")


def test_a_run(run, there):
    ran = run("train", "small.py", "pairs", "--out", "runs/a")
    assert ran.code == 0, ran.err
    assert "3 steps, 12 pairs" in ran.out and "runs/a/report.html" in ran.out
    assert diptych.load("runs/a/model.safetensors").encode_text("grey").shape == (1, 16)
    again = run("train", "small.py", "pairs", "--out", "runs/a", "--json")
    assert again.code == 0 and again.records[0]["steps"] == 3
    other = run("train", "small.py", "pairs", "--out", "runs/a", "--set", "optim.lr=1e-3")
    assert other.code == 2 and "optim.lr was 0.01, is 0.001" in other.err
    assert (
        run("train", "small.py", "pairs").code == 0 and (there / "runs/small/config.json").is_file()
    )


def test_what_was_not_used(run, there):
    """A reason may stand among drops and among flaws; both count."""
    for name in ("gone.png", "pairs"):
        with (there / "pairs/captions.csv").open("a") as file:
            file.write(f"{name},no picture\n")
    (there / "pairs/pairs").mkdir()
    ran = run("train", "small.py", "pairs", "--set", "data.max_bad_fraction=0.5")
    assert ran.code == 0, ran.err
    assert "not used: 1 (no such file)" in ran.out and "not used: 1 (not a file)" in ran.out


def test_a_dry_run(run, there):
    ran = run("train", "small.py", "pairs", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert not (there / "runs").exists()
    plan = ran.records[0]
    assert plan["batch"]["pairs"] == 4 and "pairs" in str(plan["config"]["data.sources"])


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (
            "small.py:nothing",
            "has no 'nothing'. It has: small, breaks. Type: diptych train small.py",
        ),
        ("small.py:a_number", "a_number returns a int"),
        ("small.py:of", "missing 1 required positional argument"),
        ("small.py:breaks", "small.py:36: ZeroDivisionError: division by zero"),
        ("gone.py", "no such recipe"),
        ("bad.py", "bad.py:2: SyntaxError"),
        ("lost.py", "lost.py:1: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_a_recipe_that_is_none(run, there, recipe, told):
    (there / "bad.py").write_text("\ndef bad(:\n")
    (there / "lost.py").write_text("import not_there\n")
    ran = run("train", recipe, "pairs")
    assert ran.code == 2
    assert told in ran.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "give a recipe, data, or both"),
        (("pairs", "small.py"), "a recipe stands first"),
        (("small.py", "pairs", "--model", "mini"), "--set model.start=mini"),
        (("small.py", "nowhere"), "not there"),
        (("small.py",), "no source of pairs"),
        (("small.py", "pairs", "--set", "optim.lrr=1"), "Nearest: lr"),
        (("small.py", "pairs", "--set", "batch_size=9"), "--set batch_size=8"),
        (("small.py", "pairs", "--set", "batch_size=1"), "--set batch_size=2"),
        (("small.py", "pairs", "--set", "steps=x"), "steps must be"),
    ],
)
def test_wrong_use(run, there, args, told):
    ran = run("train", *args)
    assert ran.code == 2
    assert told in ran.err


def test_the_settings(run, there):
    mild = run("train", "--set", "help")
    assert "optim.lr=0.0001" in mild.out and "model.start=mini" in mild.out
    own = run("train", "small.py", "--set", "help")
    assert "optim.lr=0.01\n" in own.out and "model.start=None" in own.out


def test_asked_to_stop(there):
    """SIGTERM: the state is saved, the code says so, and the same command goes on."""
    command = [sys.executable, "-m", "diptych.cli.main", "train", "small.py", "pairs", "--set"]
    with subprocess.Popen([*command, "steps=100000"], stderr=subprocess.PIPE, text=True) as process:
        metrics = there / "runs/small/metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 143, told
    assert "type the same again" in told
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert (there / f"runs/small/checkpoints/step-{max(steps):08}").is_dir()
