"""Gradients: the same for any number of pieces and ranks, and those of the reference loss."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))
import tiny
import worlds

from diptych.model.loss import sigmoid_loss, softmax_loss
from diptych.train.accumulate import backward
from diptych.train.config import LossConfig
from diptych.train.losses import build_loss

N = 16
GROUPS = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7, 8, 1, 10, 11, 12, 13, 0, 15])  # equal captions
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-6}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def single_big_batch(loss: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Plain autograd through the towers and the readable loss, everything at once."""
    model, piece = tiny.model(loss, dtype), tiny.batch(N, dtype)
    model.visual.sample_seeds = piece.seeds
    f = model(piece.images, piece.ids)
    scale = f.logit_scale.exp()
    if loss == "softmax":
        value = softmax_loss(f.image_features, f.text_features, scale, groups=GROUPS)
    else:
        value = sigmoid_loss(f.image_features, f.text_features, scale, f.logit_bias, groups=GROUPS)
    value.backward()
    return {"loss": value.detach(), **gradients(model)}


def in_pieces(
    loss: str, dtype: torch.dtype, num: int, n: int = N, groups: torch.Tensor | None = GROUPS
) -> dict[str, torch.Tensor]:
    """This rank's share of the batch in `num` pieces."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = tiny.model(loss, dtype)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    mine = slice(rank * n // world, (rank + 1) * n // world)
    piece = tiny.rows(tiny.batch(n, dtype), mine.start, mine.stop)
    groups = None if groups is None else groups[mine]
    told = build_loss(LossConfig(), tiny.config(loss))(groups, None)
    value = backward(wrapped, tiny.cut(piece, num), told, factor=world)
    return {"loss": value, **gradients(model)}


def in_all_pieces(
    loss: str,
    dtype: torch.dtype,
    nums: tuple[int, ...] = (1, 2, 4),
    n: int = N,
    groups: torch.Tensor | None = GROUPS,
) -> list[dict[str, torch.Tensor]]:
    return [in_pieces(loss, dtype, num, n, groups) for num in nums]


def furthest(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """|got - expected| / |expected| of each tower's gradient, the scalars' and the loss; the worst.

    A tower at a time: the gradient of a key's bias is 0 (softmax does not see it), so that of
    single tensors can be all rounding.
    """
    assert got.keys() == expected.keys()
    parts = itertools.groupby(sorted(expected), lambda name: name.split(".")[0])
    found = []
    for _, names in parts:
        ours, theirs = zip(*((got[n].flatten(), expected[n].flatten()) for n in names), strict=True)
        difference = torch.cat(ours).double() - torch.cat(theirs).double()
        found.append(float(difference.norm() / torch.cat(theirs).double().norm()))
    assert len(found) >= 4  # loss, logit_scale, text, visual
    return max(found)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num", [1, 2, 8])
def test_pieces_give_the_gradient_of_the_whole(loss, dtype, num):
    expected = single_big_batch(loss, dtype)
    assert {"logit_scale", "visual.patch_embed.weight", "text.token_embedding.weight"} < {*expected}
    assert furthest(in_pieces(loss, dtype, num), expected) <= CLOSE[dtype]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_ranks_give_the_gradient_of_the_whole(loss, world):
    for dtype, close in CLOSE.items():
        expected = single_big_batch(loss, dtype)
        for found in itertools.chain.from_iterable(worlds.run(world, in_all_pieces, loss, dtype)):
            assert furthest(found, expected) <= close


def test_what_is_drawn_is_drawn_again():
    """A tower with torch's own dropout: the second pass must draw as the first did."""

    class Dropping(nn.Module):
        def __init__(self, tower):
            super().__init__()
            self.tower, self.dropout = tower, nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(self.tower(x))

    def both(num: int, replay: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model = tiny.model(patch_dropout=0.0)
        model.text = Dropping(model.text)
        seen = []
        model.text.dropout.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
        torch.manual_seed(3)
        told = build_loss(LossConfig(), tiny.config())(None, None)
        backward(model, tiny.cut(tiny.batch(N), num), told)
        return torch.cat(seen[:num]), torch.cat(seen[num:])

    first, second = both(4, True)
    assert torch.equal(first, second)


def test_the_generator_goes_on_as_after_one_pass():
    told = build_loss(LossConfig(), tiny.config())(None, None)
    model = tiny.model()
    before = torch.get_rng_state()
    backward(model, tiny.cut(tiny.batch(N), 4), told)
    assert torch.get_rng_state().equal(before)  # patches are dropped by the samples' seeds


def test_batch_norms_count_once():
    from diptych import towers
    from diptych.config import CLIPConfig, ResNetConfig

    torch.manual_seed(0)
    cfg = CLIPConfig(
        embed_dim=24,
        visual=ResNetConfig(image_size=(32, 32), layers=(1, 1, 1, 1), width=8, heads=4),
        text=tiny.config().text,
    )
    model = towers.build(cfg).double().train()
    told = build_loss(LossConfig(), cfg)(None, None)
    backward(model, tiny.cut(tiny.batch(N), 4), told)
    counts = [int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counts and set(counts) == {4}  # one a piece, not two


def test_a_frozen_tower_gets_no_gradient():
    model = tiny.model()
    model.visual.requires_grad_(False)
    told = build_loss(LossConfig(), tiny.config())(None, None)
    backward(model, tiny.cut(tiny.batch(N), 2), told)
    expected = single_big_batch("softmax", torch.float64)
    assert not any(p.grad is not None for p in model.visual.parameters())
    assert model.logit_scale.grad is not None and expected
