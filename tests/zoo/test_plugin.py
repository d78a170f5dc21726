"""A package of somebody else adds a tower, a key table and a row, by entry points alone."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import diptych
from diptych import config, towers, zoo
from diptych.errors import ConfigError

PLUGIN = Path(__file__).parents[1] / "plugin" / "flat"


def forget():
    towers.families.cache_clear()
    zoo.registry.rows.cache_clear()


@pytest.fixture
def flat(monkeypatch):
    monkeypatch.syspath_prepend(PLUGIN)
    forget()
    yield
    forget()
    config._CLASSES.pop("FlatConfig", None)
    sys.modules.pop("flat_tower", None)


def published(tmp_path) -> dict[str, torch.Tensor]:
    """The file of the package's own publisher, where a download would have put it."""
    weights = towers.build(zoo.get("flat/demo").config).state_dict()
    theirs = {
        "flat.norm.weight": weights.pop("visual.norm.weight") + 0.5,
        "flat.norm.bias": weights.pop("visual.norm.bias") + 0.1,
        "flat.head.weight": weights.pop("visual.proj.weight"),
        "flat.head.bias": weights.pop("visual.proj.bias"),
    }
    text = {k: v for k, v in weights.items() if k.startswith("text.") or k == "logit_scale"}
    theirs |= zoo.keymaps.restore(text, (*zoo.keymaps.OPENAI_TEXT, *zoo.keymaps.SCALARS))
    path = tmp_path / "cache" / "models" / "flat--demo" / "flat-demo.pt"
    path.parent.mkdir(parents=True)
    torch.save(theirs, path)
    return theirs


def test_the_row_is_listed_loaded_and_runs(flat, tmp_path):
    assert zoo.list_models()[-1] == "flat/demo"
    assert zoo.list_models("flat/*") == ["flat/demo"]
    theirs = published(tmp_path)
    encoder = diptych.load("flat/demo", offline=True)
    assert torch.equal(encoder.model.visual.proj.weight, theirs["flat.head.weight"])
    assert torch.equal(encoder.model.visual.norm.weight, theirs["flat.norm.weight"])
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)]
    vectors = encoder.encode_image(pictures)
    assert vectors.shape == (3, 24)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert encoder.encode_text("a cat").shape == (1, 24)
    facts = zoo.describe(zoo.get("flat/demo"))
    assert facts["peak_memory_bytes"]["batch 32"] > facts["weights_bytes"]["fp32"] > 0
    # what was saved names the class, and the package brings it
    zoo.save(encoder, tmp_path / "x.safetensors")
    assert diptych.load(tmp_path / "x.safetensors").fingerprint == encoder.fingerprint


def test_a_taken_name_is_refused(flat, monkeypatch):
    import flat_tower

    monkeypatch.setattr(flat_tower, "ROWS", [replace(flat_tower.ROWS[0], name="mini")])
    with pytest.raises(ConfigError, match=r"flat_tower:ROWS: the name 'mini' is taken.*flat-tower"):
        zoo.list_models()


def test_what_is_no_row_is_refused(flat, monkeypatch):
    import flat_tower

    monkeypatch.setattr(flat_tower, "ROWS", ["ViT-B-32"])
    with pytest.raises(ConfigError, match=r"flat_tower:ROWS: is no zoo\.Row but a str"):
        zoo.list_models()


def test_a_package_that_is_broken_costs_its_rows_and_no_others(flat, monkeypatch, caplog):
    import flat_tower

    monkeypatch.delattr(flat_tower, "ROWS")
    assert "mini" in zoo.list_models()
    assert "flat/demo" not in zoo.list_models()
    assert "the rows of flat_tower:ROWS are left out" in caplog.text
