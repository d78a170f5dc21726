"""Images and texts a second through the towers: Diptych's paths against open_clip's, one run.

    scripts/bench encoding [NAME ...] [--device cpu|cuda] [--batch 32] [--threads 1]

Random weights; prepared pixels and token ids, so nothing but the towers is timed. The variants
take turns and the best of five rounds of each counts. "difference" is 1 - cosine to the fp32
reference of the same weights, the worst of the batch; "alone" the same of batch 1 to the batch.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import diptych
from diptych.engine import Encoder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from peers import open_clip_by_name, pixels

CAPTION = "A young man sitting near the wooden table watching {} birds on a busy street."
Call = Callable[[], Tensor]


def best_seconds(calls: dict[str, Call], device: torch.device, rounds: int = 5) -> dict[str, float]:
    """The fastest of `rounds`; the variants take turns, so a slow moment hits them all."""
    best = dict.fromkeys(calls, float("inf"))
    for round_ in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def difference(a: Tensor, b: Tensor) -> float:
    return float((1 - F.cosine_similarity(a.double(), b.double())).max().clamp_min(0))


def variants(encoder: Encoder, name: str, image: Tensor, ids: Tensor) -> dict[str, dict[str, Call]]:
    """side -> variant -> one run of the batch. `encoder` runs in bf16; its fp32 twin shares it."""
    fp32 = Encoder(
        encoder.model,
        config=encoder.config,
        preprocess=encoder.preprocess,
        tokenizer=encoder.tokenizer_config,
        device=encoder.device,
        precision="fp32",
    )
    quick = encoder.config.text.act == "quick_gelu"
    arch = name.split("/")[0]
    peer = open_clip_by_name(arch, quick_gelu=quick).to(encoder.device).eval()
    half = open_clip_by_name(arch, quick_gelu=quick).to(encoder.device).eval().bfloat16()
    return {
        "images": {
            "open_clip fp32": lambda: peer.encode_image(image),
            "open_clip bf16": lambda: half.encode_image(image.bfloat16()),
            "Diptych fp32": lambda: fp32.run_image(image),
            "Diptych bf16": lambda: encoder.run_image(image),
        },
        "texts": {
            "open_clip fp32": lambda: peer.encode_text(ids),
            "open_clip bf16": lambda: half.encode_text(ids),
            "Diptych fp32": lambda: fp32.run_text(ids),
            "Diptych bf16": lambda: encoder.run_text(ids),
        },
    }


@torch.no_grad()
def measure(name: str, device: str, batch: int) -> None:
    encoder = diptych.build(name, device=device, precision="bf16")
    image = pixels(batch, encoder.preprocess.config.size).to(encoder.device)
    texts = [CAPTION.format(i) for i in range(batch)]
    ids = encoder.tokenizer(texts).to(encoder.device)
    calls = variants(encoder, name, image, ids)
    reference = {
        "images": encoder.model.encode_image(image),
        "texts": encoder.model.encode_text(ids),
    }
    run = {"images": (encoder.run_image, image), "texts": (encoder.run_text, ids)}
    for side, of_side in calls.items():
        seconds = best_seconds(of_side, encoder.device)
        slowest = seconds["open_clip fp32"]
        encode, whole = run[side]
        alone = torch.cat([encode(row[None]) for row in whole[:4]])
        print(f"\n{name}, {side}, batch {batch}, {encoder.device}")
        for variant, value in seconds.items():
            line = f"  {variant:<16} {batch / value:9.1f}/s  {slowest / value:5.2f}x"
            if variant.startswith("Diptych"):
                line += f"  difference {difference(of_side[variant](), reference[side]):.1e}"
            if variant == "Diptych bf16":
                line += f"  alone {difference(alone, encode(whole)[:4]):.1e}"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["ViT-B-32/openai"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads")
    for name in args.names:
        measure(name, args.device, args.batch)


if __name__ == "__main__":
    main()
