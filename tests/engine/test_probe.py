"""Which precision "auto" takes: what was measured, remembered, and on processors with less."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from diptych import zoo
from diptych.engine import device, probe
from diptych.errors import ConfigError

SCRIPT = """
import sys
import torch
import torch.nn.functional as F
import diptych
from diptych.preprocess import collate

for name in ("ViT-B-32/openai", "mini"):
    enc = diptych.load("mini") if name == "mini" else diptych.build(name, seed=0)
    photos = sys.argv[1:]
    texts = ["a dog", "two boats on a lake in the evening", "snow"]
    pixels = collate([enc.preprocess(photo) for photo in photos])
    ids = enc.tokenizer(texts)
    with torch.no_grad():
        for found, exact in (
            (enc.encode_image(photos, out="torch"), enc.model.encode_image(pixels)),
            (enc.encode_text(texts, out="torch"), enc.model.encode_text(ids)),
        ):
            difference = (found - exact).abs().max().item()
            cosine = F.cosine_similarity(found.double(), exact.double()).min().item()
            print(name, enc.precision, difference, cosine)
"""
LESS = [
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    probe._gain.cache_clear()
    yield tmp_path
    probe._gain.cache_clear()


def test_the_gain_is_measured_once(folder, monkeypatch):
    first = probe.bf16_gain()
    assert first >= 0
    assert list(json.loads((folder / "probe.json").read_text()).values()) == [first]
    monkeypatch.setattr(probe, "_measure", lambda: 1 / 0)
    probe._gain.cache_clear()  # another process
    assert probe.bf16_gain() == first


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": "b"}', "\x00"])
def test_a_file_that_is_not_ours_is_measured_over(folder, monkeypatch, text):
    (folder / "probe.json").write_text(text)
    monkeypatch.setattr(probe, "_measure", lambda: 3.456)
    assert probe.bf16_gain() == 3.46
    assert list(json.loads((folder / "probe.json").read_text()).values()) == [3.46]


def test_another_limit_of_instructions_is_another_machine(folder, monkeypatch):
    monkeypatch.setattr(probe, "_measure", lambda: 5.0)
    assert probe.bf16_gain() == 5.0
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(probe, "_measure", lambda: 0.0)
    probe._gain.cache_clear()
    assert probe.bf16_gain() == 0.0
    assert len(json.loads((folder / "probe.json").read_text())) == 2


@pytest.mark.parametrize(("gain", "precision"), [(8.0, "bf16"), (1.2, "fp32"), (0.0, "fp32")])
def test_auto_takes_what_is_faster(monkeypatch, gain, precision):
    monkeypatch.setattr(device.torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(device, "bf16_gain", lambda: gain)
    cpu = device.torch.device("cpu")
    vit, resnet = (zoo.get(name).config for name in ("ViT-B-32/openai", "RN50/openai"))
    assert device.pick_precision("auto", cpu, vit) == precision
    assert device.pick_precision("auto", cpu, resnet) == "fp32"
    assert device.pick_precision("bf16", cpu, resnet) == "bf16"  # where it is asked for


def test_a_precision_that_is_not_to_be_had(monkeypatch):
    cpu, config = device.torch.device("cpu"), zoo.get("ViT-B-32/openai").config
    with pytest.raises(ConfigError, match="must be 'auto', 'fp32'"):
        device.pick_precision("fp8", cpu, config)
    monkeypatch.setattr(device, "has_fast_int8", lambda: False)
    with pytest.raises(ConfigError, match="VNNI"):
        device.pick_precision("int8", cpu, config)


@pytest.mark.slow
@pytest.mark.parametrize("limit", LESS, ids=lambda limit: "-".join(limit.values()))
def test_processors_with_less_run_in_fp32_and_right(limit, folder):
    env = os.environ | limit
    photos = sorted(Path(str(resources.files("diptych") / "assets" / "samples")).glob("*.jpg"))[:3]
    command = [sys.executable, "-c", SCRIPT, *map(str, photos)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4
    for _, precision, difference, _ in lines:
        assert precision == "fp32"
        assert float(difference) <= 2e-6
