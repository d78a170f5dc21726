"""Nothing a file holds is run, and every broken file is an error that names it and the fix."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace

import pytest
import safetensors.torch
import tiny_zoo
import torch

from diptych import zoo
from diptych.errors import CheckpointError, ConfigError, ModelNotFoundError, UnsafeFileError


class Evil:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def legacy(data, path):
    torch.save(data, path, _use_new_zipfile_serialization=False)


def raw(data, path):
    path.write_bytes(pickle.dumps(data))


def archive(data, path, *, name="data.pkl", also=None):
    """Looks like TorchScript, with a pickle of ours inside."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", also if also is not None else pickle.dumps(data, protocol=2))
        file.writestr("m/constants.pkl", pickle.dumps(data, protocol=2))
        file.writestr("m/code/__torch__.py", "class M(Module):\n  __parameters__ = []\n")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("writer", [torch.save, legacy, raw, archive])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, writer, nested):
    path = tmp_path / "model.pt"
    evil = Evil(tmp_path / "PWNED")
    writer({"state_dict": {"a": torch.ones(1), "b": evil}} if nested else evil, path)
    says = r"model\.pt.*(mkdir|_load_from_bytes|_rebuild_tensor_v2).*Nothing was run"
    with pytest.raises(UnsafeFileError, match=says):
        zoo.read(path, config=tiny_zoo.CONFIGS["vit"])
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("where", ["pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_a_folder_is_no_way_around(tmp_path, where):
    given = tiny_zoo.checkpoint("vit")
    folder = tmp_path / "m"
    zoo.write(given, folder, format="open_clip" if where.startswith("open") else "hf")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"a": Evil(tmp_path / "PWNED")}, folder / where)
    with pytest.raises(UnsafeFileError, match="mkdir"):
        zoo.read(folder)
    assert not (tmp_path / "PWNED").exists()


HOSTILE = {
    "eval": b"cbuiltins\neval\n(V1\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(V1\nV2\ntR.",
    "torch function": b"ctorch\nload\n(V1\ntR.",
    "submodule by dots": b"\x80\x04\x8c\x05torch\x8c\x0aserialized\x93.",
    "deep": b"(" * 10000 + b".",
    "no object": b"K\x01.",
    "huge memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "call a class": b"c__torch__\nM\n(K\x01tR.",
    "state on a function": b"ctorch._utils\n_rebuild_tensor_v2\n}(V__code__\nK\x01ub.",
    "attribute on a class": b"c__torch__\nM\n(}(V__reduce__\nK\x01udtb.",
    "state is no dict": b"c__torch__\nM\n)\x81K\x01b.",
    "no state": b"c__torch__\nM\n)\x81.",
    "bad storage": b"(V1\nV2\ntQ.",
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_malformed_archives_are_checkpoint_errors(tmp_path, payload):
    archive(None, tmp_path / "x.pt", also=payload)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        zoo.read(tmp_path / "x.pt", config=tiny_zoo.CONFIGS["vit"])


def test_a_cycle_in_an_archive_ends(tmp_path):
    cycle = b"c__torch__\nM\n)\x81q\x00}(Va\nh\x00ub."  # a module that holds itself
    archive(None, tmp_path / "x.pt", also=cycle)
    with pytest.raises(CheckpointError, match="malformed"):
        zoo.read(tmp_path / "x.pt")


@pytest.mark.parametrize("offset", [b"K\x01", b"J\xff\xff\xff\xff"], ids=["after", "before"])
def test_tensor_outside_its_record(tmp_path, offset):
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x02tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + b"(K\x02t(K\x01tI00\n)tR"
    path = tmp_path / "x.pt"
    archive(None, path, also=b"c__torch__\nM\n)\x81}(Va\n" + tensor + b"ub.")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("m/data/0", struct.pack("<2f", 1, 2))
    with pytest.raises(CheckpointError, match=r"past its record|malformed sizes"):
        zoo.read(path)


JUNK = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html><body>404", "web page"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + b"\0" * 40, "JPEG image"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "text": (b"hello, I am no model at all", "neither"),
    "header too long": (struct.pack("<Q", 1 << 40) + b"{", "claims"),
    "not json": (struct.pack("<Q", 9) + b"{nonsense" + b"\0" * 9, "no JSON"),
    "cut zip": (b"PK\3\4" + b"\0" * 100, "damaged"),
    "deep json": (struct.pack("<Q", 200_001) + b'{"a":' + b"[" * 199_996, "no JSON|damaged"),
}


@pytest.mark.parametrize(("data", "says"), JUNK.values(), ids=JUNK.keys())
def test_junk_named_safetensors(tmp_path, data, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*({says})"):
        zoo.read(path, config=tiny_zoo.CONFIGS["vit"])


def test_duplicate_key_in_a_header(tmp_path):
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="names 'a' twice"):
        zoo.read(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("format", ["diptych", "openai"])
def test_truncated_files(tmp_path, format, share):
    path = tmp_path / "m.pt"
    zoo.write(tiny_zoo.checkpoint("vit"), path, format=format)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        zoo.read(path)


def test_no_model_here(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        zoo.read(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="holds no model"):
        zoo.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        zoo.read(tmp_path)


def _mutated(change):
    given = tiny_zoo.checkpoint("vit")
    tensors = dict(given.state_dict)
    change(tensors)
    return given, tensors


STRICT = {
    "missing": (lambda t: t.pop("visual.proj.weight"), r"visual\.proj\.weight: missing"),
    "extra": (lambda t: t.update({"foo": torch.ones(1)}), r"foo"),
    "shape": (
        lambda t: t.update({"text.positional_embedding": torch.ones(10, 64)}),
        r"text\.positional_embedding: the config asks for \[16, 64\], the file has \[10, 64\]",
    ),
}


@pytest.mark.parametrize(("change", "says"), STRICT.values(), ids=STRICT.keys())
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_strict_both_ways(tmp_path, change, says, suffix):
    given, tensors = _mutated(change)
    path = tmp_path / f"x.{suffix}"
    save = torch.save if suffix == "pt" else safetensors.torch.save_file
    save(tensors, path)
    with pytest.raises(CheckpointError, match=says):
        zoo.read(path, config=given.config)


def test_many_differences_are_cut_to_ten():
    config = tiny_zoo.CONFIGS["vit"]
    with pytest.raises(CheckpointError, match=r"and \d+ more") as error:
        zoo.check_shapes({}, config, source="x")
    assert str(error.value).count("missing") == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, value):
    given, tensors = _mutated(lambda t: t["visual.ln_post.bias"].fill_(value))
    broken = replace(given, state_dict=tensors, source="x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: NaN or infinity in visual\.ln_post\.bias"):
        zoo.check_finite(broken)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        zoo.write(broken, tmp_path / "x.safetensors", format="diptych")


def test_a_config_that_contradicts_the_file(tmp_path):
    zoo.write(tiny_zoo.checkpoint("vit"), tmp_path / "x.safetensors", format="diptych")
    other = replace(tiny_zoo.CONFIGS["vit"], visual=replace(tiny_zoo.VIT, act="gelu"))
    with pytest.raises(ConfigError, match=r"visual\.act: 'gelu', not 'quick_gelu'"):
        zoo.read(tmp_path / "x.safetensors", config=other)


def test_training_checkpoint_and_wrappers_are_unwrapped(tmp_path):
    given = tiny_zoo.checkpoint("gelu")
    wrapped = OrderedDict((f"module._orig_mod.{k}", v) for k, v in given.state_dict.items())
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"a": [1]}}, tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match="Pass config="):
        zoo.read(tmp_path / "e.pt")
    found = zoo.read(tmp_path / "e.pt", config=given.config)
    assert tiny_zoo.same(found.state_dict, given.state_dict)
    assert found.notes


def test_a_later_format_version(tmp_path):
    path = tmp_path / "x.safetensors"
    zoo.write(tiny_zoo.checkpoint("vit"), path, format="diptych")
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["diptych"])
    header["format_version"] = 2
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"diptych": json.dumps(header)})
    with pytest.raises(CheckpointError, match="format version 2"):
        zoo.read(path)


def test_a_vocabulary_may_not_leave_the_cache(tmp_path):
    given = tiny_zoo.checkpoint("siglip", tmp_path / "v")
    path = tmp_path / "x.safetensors"
    zoo.write(given, path, format="diptych")
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()["diptych"].replace("spiece.model", "../../spiece.model")
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, {"diptych": header})
    with pytest.raises(CheckpointError, match="plain name"):
        zoo.read(path)


def test_random_bytes_never_crash(tmp_path):
    stream = io.BytesIO()
    torch.save({"a": torch.ones(3)}, stream)
    data = bytearray(stream.getvalue())
    path = tmp_path / "x.pt"
    generator = torch.Generator().manual_seed(1)
    for place in torch.randint(len(data), (60,), generator=generator).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        with pytest.raises((CheckpointError, ModelNotFoundError)):
            zoo.read(path, config=tiny_zoo.CONFIGS["vit"])
