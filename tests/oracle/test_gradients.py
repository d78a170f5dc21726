"""The gradient of a step over ranks and pieces, against open_clip's loss over the single big batch.

open_clip's loss functions are right in one process; what its trainer makes of them over several
ranks and with accumulation is in docs/explanation/exact-training.md.
"""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from report import record

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import test_accumulate
import tiny
import worlds

N = 32
WORLDS, PIECES = (1, 2, 4), (1, 2, 8)
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-6}


def theirs(loss: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """open_clip's loss over all of the batch at once, and plain autograd."""
    from open_clip import loss as peer  # not at the top: the ranks are processes without it

    model, piece = tiny.model(loss, dtype), tiny.batch(N, dtype)
    model.visual.sample_seeds = piece.seeds
    f = model(piece.images, piece.ids)
    made = f.image_features, f.text_features, f.logit_scale.exp()
    if loss == "softmax":
        value = peer.ClipLoss()(*made)
    else:
        value = peer.SigLipLoss()(*made, f.logit_bias)
    value.backward()
    return {"loss": value.detach(), **test_accumulate.gradients(model)}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("world", WORLDS)
def test_gradients(loss, world):
    for dtype, bound in BOUNDS.items():
        expected = theirs(loss, dtype)
        job = (test_accumulate.in_all_pieces, loss, dtype, PIECES, N, None)
        ranks = [job[0](*job[1:])] if world == 1 else worlds.run(world, *job)
        for num, rank in itertools.product(PIECES, ranks):
            what = f"{loss}, {world} ranks x {num} pieces, {str(dtype).removeprefix('torch.')}"
            got = rank[PIECES.index(num)]
            error = test_accumulate.furthest(got, expected)
            record("Exact gradients", what, error, bound, "open_clip_torch")


def test_the_gradient_of_a_wrong_loss_would_be_seen():
    """What open_clip's accumulation does: the whole loss once a piece, so scalars k times."""
    expected = theirs("softmax", torch.float64)
    wrong = expected | {"logit_scale": 2 * expected["logit_scale"]}
    assert test_accumulate.furthest(wrong, expected) > 0.5
