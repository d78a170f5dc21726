"""OpenAI's archives: read without running them, equal to what torch.jit.load gives."""

import pytest
import tiny_zoo
import torch
from torch import nn

from diptych import zoo
from diptych.errors import CheckpointError
from diptych.zoo import keymaps
from diptych.zoo.torchscript import read_torchscript


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).half())
        self.register_buffer("running", torch.arange(3))
        self.attn_mask = torch.ones(2, 2)  # a plain attribute, in no state dict

    def forward(self, x):
        return x @ self.weight.float().T + 1


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Part(), Part()
        self.transposed = nn.Parameter(torch.randn(5, 3).T)
        base = torch.randn(20)
        self.register_buffer("window", base[4:10].view(2, 3))
        self.register_buffer("wide", torch.randn(2).double())
        self.register_buffer("empty", torch.empty(0, 3))
        self.input_resolution = 32
        self.names = ["a", "b"]
        self.scale = 0.5

    def forward(self, x):
        return self.first(x) + self.second(x) * self.scale


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_equal_to_torch_jit_load(tmp_path, how):
    module = Whole()
    path = tmp_path / "m.pt"
    scripted = (
        torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(1, 4))
    )
    torch.jit.save(scripted, path)
    ours, theirs = read_torchscript(path), torch.jit.load(path).state_dict()
    assert tiny_zoo.same(ours.state_dict, dict(theirs))
    assert all(ours.state_dict[k].stride() == theirs[k].stride() for k in theirs)
    assert "attn_mask" not in str(ours.state_dict.keys())
    if how == "script":
        assert ours.attributes["input_resolution"] == 32


class Tree(nn.Module):
    """A module whose state dict has any dotted names: OpenAI's file without OpenAI's code."""

    def __init__(self, tensors):
        super().__init__()
        below = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = tensor
            elif tensor.is_floating_point():
                self.register_parameter(head, nn.Parameter(tensor))
            else:
                self.register_buffer(head, tensor)
        for name, part in below.items():
            self.add_module(name, Tree(part))

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("scalars", ["buffers", "attributes"])
def test_a_tiny_openai_archive(tmp_path, kind, scalars):
    given = tiny_zoo.checkpoint(kind)
    table = keymaps.OPENAI if kind == "vit" else keymaps.OPENAI_RESNET
    half = {k: v.half() if v.ndim > 1 else v for k, v in given.state_dict.items()}
    tree = Tree(keymaps.restore(half, table))
    side = given.config.visual.image_size[0]
    for name, n in (("input_resolution", side), ("context_length", 16), ("vocab_size", 99)):
        if scalars == "buffers":
            tree.register_buffer(name, torch.tensor(n))
        else:
            setattr(tree, name, n)
    path = tmp_path / "model.bin"  # recognised by content
    torch.jit.save(torch.jit.script(tree), path)
    found = zoo.read(path)
    assert found.format == "openai"
    assert found.config == given.config
    assert found.preprocess == given.preprocess
    assert tiny_zoo.same(found.state_dict, half)


def test_scalars_that_deny_the_shapes(tmp_path):
    path = tmp_path / "m.pt"
    zoo.write(tiny_zoo.checkpoint("vit"), path, format="openai")
    data = torch.load(path, weights_only=True)
    data["input_resolution"] = torch.tensor(224)
    torch.save(data, path)
    with pytest.raises(CheckpointError, match=r"says .*'input_resolution': 224"):
        zoo.read(path)


def test_without_the_scalars_nothing_is_inferred(tmp_path):
    path = tmp_path / "m.pt"
    zoo.write(tiny_zoo.checkpoint("vit"), path, format="openai")
    data = torch.load(path, weights_only=True)
    del data["vocab_size"]
    torch.save(data, path)
    with pytest.raises(CheckpointError, match="Pass config="):
        zoo.read(path)
