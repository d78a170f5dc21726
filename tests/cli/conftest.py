"""A small model on disk, a folder of pictures, and a way to run verbs."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import diptych
from diptych.cli.main import cli
from diptych.config import CLIPConfig, TextConfig, ViTConfig

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128),
)


@pytest.fixture(autouse=True)
def _no_collection_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("DIPTYCH_RESIDENT", "0")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    diptych.zoo.save(diptych.build(TINY), path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.jpg", "b.png", "c, with a comma.png")):
        picture = np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(picture).save(folder / name)
    return folder


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run():
    def run(*args, stdin=None) -> Ran:
        result = CliRunner().invoke(cli, [str(a) for a in args], input=stdin, prog_name="diptych")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run
