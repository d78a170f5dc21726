"""The how-to pages run: their blocks in order, in one folder, with a photo in it.

The models of the list that the pages name are stood in for by tiny ones of the same pixels and
tokens, which a web server on this machine gives as the hub would; it is reached as a mirror.
"""

import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save

import diptych
from diptych import config, towers, zoo
from diptych.cli.main import cli

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

from faulty_server import COMMIT, Served, Server  # noqa: E402

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
SAMPLES = ROOT / "src" / "diptych" / "assets" / "samples"
FLAT = ROOT / "tests" / "plugin" / "flat" / "flat_tower" / "__init__.py"
LAION, OPENAI = "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32/openai"


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def tiny(row: zoo.Row) -> zoo.Row:
    """The row with small towers; everything else is its own but the hash."""
    visual = replace(row.config.visual, width=64, layers=2, heads=1, mlp_dim=256)
    text = replace(row.config.text, width=64, layers=2, heads=1, mlp_dim=256)
    sources = tuple(replace(source, sha256=None) for source in row.sources)
    small = replace(row.config, embed_dim=48, visual=visual, text=text)
    return replace(row, config=small, sources=sources, goldens=())


@pytest.fixture
def world(own_cache, tmp_path, monkeypatch):
    monkeypatch.delenv("DIPTYCH_OFFLINE")
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (folder / "photos").mkdir()
    for name in ("cat", "dog", "dogs", "mountains"):
        shutil.copy(SAMPLES / f"{name}.jpg", folder / "photos")
    shutil.copy(SAMPLES / "dog.jpg", folder / "photos" / "a.jpg")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240)).save("photo.jpg")
    Image.fromarray(pixels[::-1]).resize((320, 240)).save("CLIP.png")
    with Server() as server:
        monkeypatch.setenv("DIPTYCH_MIRROR", server.url)
        for name in (LAION, OPENAI):
            row = tiny(zoo.get(name))
            monkeypatch.setitem(zoo.registry.rows(), name, row)
            weights = towers.build(row.config).state_dict()
            theirs = zoo.keymaps.restore(weights, zoo.keymaps.OPENAI)
            match row.sources[0]:
                case zoo.Hub(repo=repo, weights=(file, *_)):
                    path, content = f"/{repo}/resolve/main/{file}", save(theirs)
                case zoo.Url(url=url):
                    path = "/" + url.removeprefix("https://")
                    torch.save(theirs, tmp_path / "x.pt")
                    content = (tmp_path / "x.pt").read_bytes()
            server.files[path] = Served(content, linked=True, commit=COMMIT)
        yield folder
    if towers.families.cache_info().currsize and "flat_tower" in sys.modules:
        towers.families.cache_clear()
        zoo.registry.rows.cache_clear()
        config._CLASSES.pop("FlatConfig", None)
        sys.modules.pop("flat_tower")


def _marked(page: Path):
    """These take half a minute and more."""
    slow = page.stem in ("evaluate-a-model", "export", "find-defects", "keep-a-model-warm")
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if slow else [])


def run_console(line: str, monkeypatch) -> None:
    command, *arguments = shlex.split(line)
    if command == "export":
        name, _, value = arguments[0].partition("=")
        monkeypatch.setenv(name, value)
        return
    assert command == "diptych", line
    done = CliRunner().invoke(cli, arguments, prog_name="diptych")
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"


def install(toml: str, monkeypatch) -> None:
    """What `pip install .` does as far as entry points go."""
    project = tomllib.loads(toml)["project"]
    info = Path(f"{project['name'].replace('-', '_')}-{project['version']}.dist-info")
    info.mkdir()
    facts = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(facts)
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(Path.cwd())
    towers.families.cache_clear()
    zoo.registry.rows.cache_clear()


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES])
def test_a_page_runs(page, world, monkeypatch):
    names: dict = {}
    for kind, text in blocks(page):
        first, _, rest = text.partition("\n")
        file = re.fullmatch(r"# (\S+\.(?:py|toml))", first)
        if file:
            path = Path(file[1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(rest)
        if kind == "toml":
            install(rest, monkeypatch)
        elif kind == "python" and not file:
            exec(compile(text, str(page), "exec"), names)
        elif kind == "console":
            for line in text.splitlines():
                if line.startswith("$ "):
                    run_console(line[2:], monkeypatch)


def test_the_package_on_the_page_is_the_one_that_is_tested():
    (shown,) = (t for k, t in blocks(ROOT / "docs/how-to/add-a-model.md") if "class FlatTower" in t)
    assert shown.partition("\n")[2] == FLAT.read_text("utf-8")


def test_every_block_is_of_a_kind_that_runs():
    kinds = {kind for page in PAGES for kind, _ in blocks(page)}
    assert kinds <= {"python", "console", "toml", "text"}
    assert len(PAGES) >= 4
    assert diptych.__version__
