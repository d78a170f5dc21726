"""Run by test_losses.py, TRITON_INTERPRET=1: the kernels of the loss against the readable one.

The variable must be there before Triton is imported for the first time, so this is a process of
its own. Prints the largest difference of values and gradients, each relative to its largest number.
"""

import itertools

import torch
import torch.nn.functional as F

from diptych.model import loss as reference
from diptych.train import streamed, streamed_tiles, streamed_triton


def with_gradients(room, tensors, groups, dtype) -> list[torch.Tensor]:
    image, text, scale, *negatives = (x.to(dtype).requires_grad_() for x in tensors)
    value = room.softmax_loss(
        image, text, scale, groups=groups, negatives=negatives[0] if negatives else None
    )
    return [value.detach(), *torch.autograd.grad(value, [image, text, scale, *negatives])]


def main() -> None:
    # Small blocks and tiles, none of which divides a size below; the CPU stands for the GPU.
    streamed_triton.BLOCK_R = streamed_triton.BLOCK_C = streamed_triton.BLOCK_E = 16
    streamed_tiles.ROWS, streamed_tiles.COLUMNS = 24, 40
    streamed.fused = streamed_tiles.fused = lambda operands: True
    torch.manual_seed(0)
    n, e, worst = 45, 20, 0.0
    for scale, grouped, hard in itertools.product((1.0, 100.0), (False, True), (False, True)):
        rows = [F.normalize(torch.randn(k, e).double(), dim=1) for k in (n, n, 7)]
        tensors = [*rows[:2], torch.tensor(scale), *(rows[2:] if hard else [])]
        groups = torch.randint(30, (n,)) if grouped else None
        ours = with_gradients(streamed, tensors, groups, torch.float32)
        theirs = with_gradients(reference, tensors, groups, torch.float64)
        for a, b in zip(ours, theirs, strict=True):
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    print(worst)


main()
