"""One training step of ViT-B/32 on a CPU: Diptych's against open_clip's, pairs a second.

    scripts/bench train_step [--batch 64] [--threads 1] [--rounds 3] [--precision bf16|fp32]

Random weights, prepared pixels, captions of 10 to 18 tokens as COCO's. Everything from the pixels
to the changed weights is timed. The variants take turns; the best of the rounds counts.

- open_clip: its model, its ClipLoss, torch's AdamW as its trainer makes it, its clamp of the scale;
  it always runs 77 positions.
- Diptych, plain: as below, without `train.fast.quicken`.
- Diptych: what `diptych train` does in a step: text cut to the longest of the batch, the streamed
  loss, fused AdamW, the gradient clipped.

"CPU" counts seconds of the processor, which other work on the machine disturbs less. Freed memory
is kept (`train.fast.keep_memory`) for all of them, since that holds for a whole process.
"""

import argparse
import math
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import diptych
from diptych.train.accumulate import Piece, backward
from diptych.train.config import OptimConfig
from diptych.train.fast import keep_memory, quicken
from diptych.train.optim import build_optimiser
from diptych.train.streamed import softmax_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from peers import open_clip, open_clip_by_name, pixels

CAPTION = "a young man sitting near the wooden table watching two birds on a busy street today"
OPTIM = OptimConfig(lr=5e-4)
Step = Callable[[], float]


def captions(n: int) -> list[str]:
    """8 to 16 words, 10 to 18 tokens with start and end."""
    return [" ".join(CAPTION.split()[: 8 + i % 9]) for i in range(n)]


def ours(batch: int, autocast, fast: bool) -> tuple[Step, Tensor, Tensor]:
    encoder = diptych.build("ViT-B-32/openai")
    model = encoder.model.train()
    if fast:
        quicken(model)
    image, ids = pixels(batch, 224), encoder.tokenizer(captions(batch))
    trimmed = ids[:, : int(ids.argmax(-1).max()) + 1]
    optimiser = build_optimiser(model, OPTIM)
    piece = Piece(image, trimmed, torch.arange(batch))

    def loss(image: Tensor, text: Tensor, scale: Tensor, _bias: Tensor | None) -> Tensor:
        return softmax_loss(image, text, scale.exp())

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        value = backward(model, [piece], loss, autocast=autocast)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return value.item()

    return step, image, ids


def theirs(image: Tensor, ids: Tensor, autocast) -> Step:
    model = open_clip_by_name("ViT-B-32", quick_gelu=True).train()
    criterion = open_clip().ClipLoss()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps)

    def step() -> float:
        optimiser.zero_grad()
        with autocast():
            features = model(image, ids)
            value = criterion(*features)
        value.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return value.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    kept = keep_memory()
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=args.precision == "bf16")
    plain, image, ids = ours(args.batch, autocast, fast=False)
    quick, *_ = ours(args.batch, autocast, fast=True)
    steps = {
        "open_clip": theirs(image, ids, autocast),
        "Diptych, plain": plain,
        "Diptych": quick,
    }
    print(
        f"torch {torch.__version__}, {args.precision}, batch {args.batch}, {args.threads} threads"
    )
    wall, cpu = (dict.fromkeys(steps, math.inf) for _ in "ab")
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter(), time.process_time()
            losses[name].append(step())
            if len(losses[name]) > 1:  # the first makes the optimiser's state
                wall[name] = min(wall[name], time.perf_counter() - start[0])
                cpu[name] = min(cpu[name], time.process_time() - start[1])
    for name, values in losses.items():
        print(
            f"  {name:<16} {args.batch / wall[name]:6.2f} pairs/s  "
            f"{args.batch / cpu[name]:6.2f} a CPU second  {cpu['open_clip'] / cpu[name]:5.2f}x  "
            f"loss {values[0]:.3f} to {values[-1]:.3f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  memory kept: {kept}; peak of all {peak:.1f} GiB; ln N {math.log(args.batch):.3f}")


if __name__ == "__main__":
    main()
