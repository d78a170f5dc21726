"""Weights in 8 bits: what is written, what is read, and what is refused."""

import pytest
import tiny_zoo
import torch
from safetensors.torch import load_file

import diptych
from diptych import zoo
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo.int8 import SCALE, dequantise, quantise, rows


def test_a_weight_is_off_by_at_most_half_a_scale():
    weight = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0))
    whole, scale = rows(weight)
    assert whole.dtype == torch.int8 and scale.shape == (40,)
    assert whole.abs().flatten(1).amax(1).eq(127).all()
    back = whole.float() * scale[:, None, None]
    assert (back - weight).abs().flatten(1).amax(1).le(scale * 0.5001).all()


def test_a_row_of_zeros_stays_zero_and_a_second_time_changes_nothing():
    state = {"w": torch.cat([torch.zeros(1, 4), torch.randn(2, 4)]), "b": torch.randn(3)}
    once = dequantise(quantise(state, ["w"]), "x")
    twice = dequantise(quantise(once, ["w"]), "x")
    assert once["w"][0].eq(0).all() and once["b"] is state["b"]
    torch.testing.assert_close(twice["w"], once["w"], rtol=1e-6, atol=0)


@pytest.fixture
def tiny():
    return tiny_zoo.checkpoint("vit")


def test_a_file_in_8_bits_is_read_as_float32(tmp_path, tiny):
    names = [k for k, v in tiny.state_dict.items() if v.ndim == 2]
    zoo.write(tiny, tmp_path / "m.safetensors", format="diptych", int8=names)
    stored = load_file(tmp_path / "m.safetensors")
    assert all(stored[n].dtype == torch.int8 and n + SCALE in stored for n in names)
    found = zoo.read(tmp_path / "m.safetensors").state_dict
    assert found.keys() == tiny.state_dict.keys()
    for name in names:
        assert found[name].dtype == torch.float32
        error = (found[name] - tiny.state_dict[name]).abs()
        assert (error <= stored[name + SCALE][:, None] * 0.5001).all()
    diptych.load(tmp_path / "m.safetensors")  # whole and usable


def test_other_layouts_refuse_8_bits(tmp_path, tiny):
    with pytest.raises(ConfigError, match="8-bit"):
        zoo.write(tiny, tmp_path / "m.pt", format="openai", int8=["text.proj.weight"])


@pytest.mark.parametrize("damage", ["no scale", "no numbers", "another length", "not int8"])
def test_damaged_pairs_are_named(tmp_path, tiny, damage):
    name = "text.token_embedding.weight"
    path = tmp_path / "m.safetensors"
    zoo.write(tiny, path, format="diptych", int8=[name])
    tensors = load_file(path)
    match damage:
        case "no scale":
            del tensors[name + SCALE]
        case "no numbers":
            del tensors[name]
        case "another length":
            tensors[name + SCALE] = tensors[name + SCALE][:-1]
        case "not int8":
            tensors[name] = tensors[name].float()
    with pytest.raises(CheckpointError, match="damaged"):
        dequantise(tensors, str(path))


def test_the_same_model_gives_the_same_bytes(tmp_path, tiny):
    for name in "abcdefgh":  # safetensors alone writes its metadata in any order
        zoo.write(tiny, tmp_path / name, format="diptych")
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1
