"""The README's blocks run, in order, in one folder, offline, with a photo in it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240)).save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(pixels[:, i:]).save(tmp_path / "photos" / f"{i}.png")
    rows = "".join(f"{i}.png,number {i} of four\n" for i in range(4))
    (tmp_path / "photos" / "captions.csv").write_text(f"image,caption\n{rows}", "utf-8")
    return tmp_path


def run(command, folder):
    env = os.environ | {"DIPTYCH_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    env["XDG_DATA_HOME"] = str(folder / ".data")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_blocks_run(folder):
    run(
        [sys.executable, "-c", "\n".join(text for kind, text in BLOCKS if kind == "python")], folder
    )
    commands = [
        line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()
    ]
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "diptych"
        assert run([sys.executable, "-m", "diptych.cli.main", *arguments], folder) or (
            "--out" in arguments
        )


def test_every_block_is_of_a_kind_that_is_run_or_is_the_installation():
    assert {kind for kind, _ in BLOCKS} == {"python", "console", "sh"}
    (installation,) = (text for kind, text in BLOCKS if kind == "sh")
    assert "pip install" in installation
