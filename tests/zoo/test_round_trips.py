"""Four layouts: what is written is read back to the bit, and says what it cannot state."""

import json
import os
import stat
from dataclasses import replace

import pytest
import safetensors.torch
import tiny_zoo
import torch

from diptych import zoo
from diptych.config import PreprocessConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo import trunks
from diptych.zoo.settings import differences

CAN = [
    ("vit", "diptych"),
    ("vit", "openai"),
    ("vit", "open_clip"),
    ("vit", "hf"),
    ("resnet", "diptych"),
    ("resnet", "openai"),
    ("resnet", "open_clip"),
    ("gelu", "diptych"),
    ("gelu", "open_clip"),
    ("gelu", "hf"),
    ("siglip", "diptych"),
    ("siglip", "open_clip"),
    ("siglip", "hf"),
    ("clipa", "diptych"),
    ("clipa", "open_clip"),
]


@pytest.fixture(autouse=True)
def _tiny_trunk(monkeypatch):
    monkeypatch.setitem(trunks.TIMM, "vit_tiny_siglip_test", tiny_zoo.MAP)


@pytest.mark.parametrize(("kind", "format"), CAN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip_is_exact(tmp_path, kind, format, dtype):
    given = tiny_zoo.checkpoint(kind, tmp_path / "vocabulary")
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.state_dict.items()}
    given = replace(given, state_dict=half)
    zoo.write(given, tmp_path / "saved", format=format)
    found = zoo.read(tmp_path / "saved")
    assert tiny_zoo.same(found.state_dict, given.state_dict)
    assert (found.config, found.preprocess) == (given.config, given.preprocess)
    assert found.tokenizer == given.tokenizer
    assert found.format == format
    if format != "openai":
        assert (found.licence, found.metadata) == (given.licence, given.metadata)
    if kind == "siglip":
        vocabulary = (found.folder / found.tokenizer.file).read_bytes()
        assert vocabulary == (given.folder / "spiece.model").read_bytes()
    original = replace(given, source=str(tmp_path))
    assert zoo.identify(found, "right") == zoo.identify(original, "right")


@pytest.mark.parametrize(("kind", "format"), [c for c in CAN if c[1] in ("open_clip", "hf")])
def test_a_folder_without_our_sidecar_reads_the_same_model(tmp_path, kind, format):
    given = tiny_zoo.checkpoint(kind, tmp_path / "vocabulary")
    zoo.write(given, tmp_path / "saved", format=format)
    (tmp_path / "saved" / "diptych.json").unlink()
    found = zoo.read(tmp_path / "saved")
    assert tiny_zoo.same(found.state_dict, given.state_dict)
    assert found.preprocess.size == given.preprocess.size
    assert differences(found.config, given.config) == []


def test_an_edited_folder_is_believed_before_the_sidecar(tmp_path):
    given = tiny_zoo.checkpoint("gelu")
    zoo.write(given, tmp_path / "saved", format="open_clip")
    path = tmp_path / "saved" / "open_clip_config.json"
    data = json.loads(path.read_text())
    data["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(data))
    found = zoo.read(tmp_path / "saved")
    assert found.config.visual.act == "quick_gelu"
    assert any("diptych.json is ignored" in note for note in found.notes)


@pytest.mark.parametrize(
    ("kind", "format", "named"),
    [
        ("gelu", "openai", r"visual\.act: 'gelu', not 'quick_gelu'"),
        ("siglip", "openai", "visual.pool: 'map'"),
        ("clipa", "hf", "visual.pool = 'mean'"),
        ("resnet", "hf", "ResNetConfig"),
    ],
)
def test_a_layout_that_cannot_state_a_field_names_it(tmp_path, kind, format, named):
    with pytest.raises(ConfigError, match=named):
        zoo.write(tiny_zoo.checkpoint(kind, tmp_path / "v"), tmp_path / "saved", format=format)
    assert not (tmp_path / "saved").exists()


def test_openai_layout_cannot_state_other_pixels(tmp_path):
    given = replace(
        tiny_zoo.checkpoint("vit"), preprocess=PreprocessConfig(size=(32, 32), resize="squash")
    )
    with pytest.raises(ConfigError, match=r"preprocess\.resize"):
        zoo.write(given, tmp_path / "x.pt", format="openai")


def test_a_model_whose_vocabulary_is_lost_is_not_written(tmp_path):
    given = replace(tiny_zoo.checkpoint("siglip", tmp_path / "v"), folder=None)
    with pytest.raises(CheckpointError, match=r"vocabulary 'spiece\.model'"):
        zoo.write(given, tmp_path / "x", format="diptych")


def test_mode_and_no_traces(tmp_path):
    given = tiny_zoo.checkpoint("vit")
    old = os.umask(0o022)
    try:
        zoo.write(given, tmp_path / "a.safetensors", format="diptych")
        zoo.write(given, tmp_path / "b", format="hf")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "b").iterdir()} == {0o644}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    given = tiny_zoo.checkpoint("vit")
    path = tmp_path / "a.safetensors"
    zoo.write(given, path, format="diptych")
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diptych.zoo.writing.save_file", full)
    with pytest.raises(CheckpointError, match=r"a\.safetensors.*No space left"):
        zoo.write(given, path, format="diptych")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_existing_folder_is_left_alone(tmp_path):
    zoo.write(tiny_zoo.checkpoint("vit"), tmp_path / "m", format="hf")
    with pytest.raises(CheckpointError, match="exists already"):
        zoo.write(tiny_zoo.checkpoint("gelu"), tmp_path / "m", format="hf")
    assert zoo.read(tmp_path / "m").config == tiny_zoo.CONFIGS["vit"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_sharded_folder(tmp_path):
    given = tiny_zoo.checkpoint("vit")
    folder = tmp_path / "m"
    zoo.write(given, folder, format="hf")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        part = {n: tensors[n] for n in names if files[n] == file}
        safetensors.torch.save_file(part, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    (folder / "diptych.json").unlink()
    assert tiny_zoo.same(zoo.read_state_dict(folder), given.state_dict)
    index.write_text(json.dumps({"weight_map": files | {names[0]: "model-1.safetensors"}}))
    with pytest.raises(CheckpointError, match="the index differ"):
        zoo.read(folder)
    index.write_text(json.dumps({"weight_map": {names[0]: "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        zoo.read(folder)


def test_save_takes_an_encoder(tmp_path):
    from types import SimpleNamespace

    from diptych.towers import build

    config = tiny_zoo.CONFIGS["vit"]
    given = tiny_zoo.checkpoint("vit")
    encoder = SimpleNamespace(
        model=build(config),
        config=config,
        preprocess=SimpleNamespace(config=given.preprocess),
        tokenizer_config=given.tokenizer,
        folder=None,
        card={"licence": "MIT", "name": "tiny"},
    )
    zoo.save(encoder, tmp_path / "x.safetensors")
    found = zoo.read(tmp_path / "x.safetensors")
    assert tiny_zoo.same(found.state_dict, dict(encoder.model.state_dict()))
    assert found.licence == "MIT"
    assert found.metadata == encoder.card
