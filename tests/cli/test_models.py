"""`diptych models`: list, show, check, convert, export."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

import diptych
from diptych.cli.main import cli


def test_list_and_show(run):
    ran = run("models", "list", "*/openai", "--json")
    assert ran.code == 0
    assert {r["name"] for r in ran.records} >= {"RN50/openai", "ViT-B-32/openai"}
    assert re.search(r"ViT-B-32/openai +151\.3 +224 +63\.32 %", run("models", "list").out)
    assert "non-commercial" in run("models", "list", "*/metaclip_400m").out
    ran = run("models", "show", "ViT-B-32/openai")
    assert ran.code == 0
    for text in ("151,277,313", "MIT", "quick_gelu", "40d365715913c9da98579312b702a82c"):
        assert text in ran.out
    assert run("models", "show", "ViT-B-32/openai", "--json").records[0]["embed_dim"] == 512


def test_show_computes_and_warns(run):
    ran = run("models", "show", "ViT-L-14/metaclip_400m")
    for text in ("image=162.03, text=13.3", "fp32=1,710 MB, bf16=855 MB", "computed", "CC-BY-NC"):
        assert text in ran.out
    assert "forbids or restricts commercial use" in ran.err


def test_a_pattern_or_name_that_fits_nothing(run):
    assert "no model fits" in run("models", "list", "zzz").err
    ran = run("models", "show", "ViT-B32")
    assert ran.code == 2
    assert "Nearest: ViT-B-32/" in ran.err


def test_check(run, model):
    ran = run("models", "check", model)
    assert ran.code == 0
    assert diptych.load(model).fingerprint in ran.out
    (record,) = run("models", "check", model, "--json").records
    assert record["format"] == "diptych"
    cosines = [float(v) for k, v in record.items() if "cosine" in k]
    assert len(cosines) == 2
    assert min(cosines) >= 0.999


@pytest.mark.parametrize("layout", ["diptych", "open_clip", "hf"])
def test_convert_keeps_every_bit(run, model, tmp_path, layout):
    out = tmp_path / "out.safetensors" if layout == "diptych" else tmp_path / "out"
    assert run("models", "convert", model, out, "--format", layout).code == 0
    before, after = diptych.load(model), diptych.load(out)
    for key, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[key]), key
    a, b = (enc.encode_text("a cat") for enc in (before, after))
    np.testing.assert_allclose(a, b, atol=1e-6)  # where weights lie in memory moves the last bit


def test_what_a_layout_cannot_state_is_refused(run, model, tmp_path):
    ran = run("models", "convert", model, tmp_path / "out.pt", "--format", "openai")
    assert ran.code == 2
    assert "gelu" in ran.err
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_here_say_where_they_are(run, tmp_path, monkeypatch):
    for name in ("DIPTYCH_CACHE", "HF_HUB_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    ran = run("models", "check", "ViT-B-32/openai")
    assert ran.code == 2
    for text in ("openaipublic", str(tmp_path), "40d365715913c9da"):
        assert text in ran.err


def test_nan_weights_are_refused(run, model, tmp_path):
    with safe_open(model, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["visual.proj.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors", metadata)
    ran = run("models", "check", tmp_path / "nan.safetensors")
    assert ran.code == 2
    assert "visual.proj.weight" in ran.err


def test_the_card_of_a_file(run, tmp_path):
    path = tmp_path / "tiny.safetensors"
    diptych.zoo.save(diptych.load("mini"), path)
    (shown,) = run("models", "show", str(path), "--json").records
    assert shown["licence"] == "Apache-2.0"
    assert shown["parameters"] > 1e6


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The image tower of `model` as a folder of `diptych models export`, and what it printed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path_factory.mktemp("exported") / "out"
    arguments = ["models", "export", model, str(out), "--tower", "image", "--json"]
    ran = CliRunner().invoke(cli, arguments, prog_name="diptych")
    assert ran.exit_code == 0, ran.output
    return out, json.loads(ran.stdout)


@pytest.mark.slow
def test_export(exported):
    out, record = exported
    assert sorted(record["files"]) == ["image.onnx", "reference.safetensors"]
    assert {file.name for file in out.iterdir()} == {"diptych.json", *record["files"]}
    assert [p["what"] for p in record["parity"]] == ["8 rows", "1 row"]
    assert all(p["max_abs"] <= 2e-6 for p in record["parity"])


@pytest.mark.slow
def test_check_of_an_exported_folder(run, exported, model, tmp_path):
    out, _ = exported
    ran = run("models", "check", out)
    assert ran.code == 0
    assert "image, 2 rows" in ran.out and "all as they should be" in ran.out
    (found,) = run("models", "check", out, "--model", model, "--json").records
    assert found["differs"] is False
    assert found["fingerprint"] == diptych.load(model).fingerprint
    assert "image, 8 rows" in found
    other = tmp_path / "other.safetensors"
    diptych.zoo.save(diptych.build(diptych.load(model).config, seed=5), other)
    ran = run("models", "check", out, "--model", other)
    assert ran.code == 1
    assert "DIFFERS" in ran.out and "another model" in ran.out


def test_check_of_a_checkpoint_takes_no_model(run, model):
    ran = run("models", "check", model, "--model", model)
    assert ran.code == 2
    assert "is no exported folder" in ran.err


def test_export_names_the_extra_that_is_missing(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ran = run("models", "export", model, tmp_path / "out")
    assert ran.code == 2
    assert "pip install 'diptych[export]'" in ran.err
    assert not (tmp_path / "out").exists()
