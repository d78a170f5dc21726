"""The text side of zero-shot classification: Diptych's classifier against open_clip's builder.

    scripts/bench zero_shot_text [--classes 100] [--rounds 3] [--threads 2] [--variants NAME ...]
                                 [--arch ViT-B-32]

A model with random weights, the very same tensors in both, in one run. ImageNet's names and
OpenAI's 80 templates. Each builder makes all class vectors from strings: tokenising, the text
tower, normalising, the mean; nothing is read from a cache but where it says so. The builders take
turns and the best of the rounds counts, after one that warms up (a single round has none).
CPU is the processor time of all threads, which other work on the machine disturbs less than the
clock. "difference" is the largest of any component of a class vector to open_clip's.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diptych import zoo
from diptych.engine import Encoder
from diptych.engine.prompts import TEMPLATE_SETS
from diptych.eval.classes import class_list
from diptych.eval.zeroshot import zero_shot_weights
from diptych.preprocess import Preprocess
from diptych.zoo.keymaps import OPEN_CLIP
from diptych.zoo.open_clip import read_config

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from peers import open_clip, open_clip_by_name, ours

Build = Callable[[], Tensor]
KEPT = "Diptych bf16, kept"


def builders(arch: str, names: list[str], templates: tuple[str, ...]) -> dict[str, Build]:
    """variant -> all class vectors [c e] in one call."""
    row = zoo.get("ViT-B-32/openai")  # its pixels and tokens
    cfg = open_clip().get_model_config(arch) | {"quick_gelu": True}
    config, _ = read_config(cfg, arch)
    peer = open_clip_by_name(arch, quick_gelu=True)
    model = ours(config, peer, OPEN_CLIP)
    tokenizer = open_clip().get_tokenizer(arch)

    def theirs() -> Tensor:
        with torch.no_grad():
            build = open_clip().build_zero_shot_classifier
            return build(peer, tokenizer, names, templates, num_classes_per_batch=10).T

    def mine(precision: str, *, cache: bool) -> Build:
        encoder = Encoder(
            model,
            config=config,
            preprocess=Preprocess(row.preprocess),
            tokenizer=row.tokenizer,
            precision=precision,
        )
        return lambda: zero_shot_weights(encoder, names, templates, cache=cache)

    return {
        "open_clip fp32": theirs,
        "Diptych fp32": mine("fp32", cache=False),
        "Diptych bf16": mine("bf16", cache=False),
        KEPT: mine("bf16", cache=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arch", default="ViT-B-32", help="an architecture of open_clip")
    parser.add_argument("--variants", nargs="*", help="all of them, if none is named")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = [name for (name,) in class_list("imagenet").names][: args.classes]
    templates = TEMPLATE_SETS["openai-80"]
    num = len(names) * len(templates)
    print(f"{args.arch}, torch {torch.__version__}, {args.threads} threads")
    print(f"{len(names)} classes x {len(templates)} templates = {num:,} texts")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DIPTYCH_CACHE"] = cache
        calls = builders(args.arch, names, templates)
        if args.variants:
            calls = {name: calls[name] for name in args.variants}
        best = dict.fromkeys(calls, (float("inf"), float("inf")))  # CPU, clock
        found: dict[str, Tensor] = {}
        if KEPT in calls:
            calls[KEPT]()  # the file is written here, and read below
        for round_ in range(args.rounds + (args.rounds > 1)):
            for name, call in calls.items():
                start, busy = time.perf_counter(), time.process_time()
                found[name] = call()
                taken = (time.process_time() - busy, time.perf_counter() - start)
                if round_ or args.rounds == 1:
                    best[name] = min(best[name], taken)
    first = next(iter(best))
    for name, (busy, seconds) in best.items():
        line = f"  {name:<20} {seconds:9.3f} s  CPU {busy:9.3f} s {num / seconds:11,.0f} texts/s"
        line += f"  {best[first][1] / seconds:9.1f}x, CPU {best[first][0] / busy:9.1f}x"
        if name != first:
            line += f"  difference {float((found[name] - found[first]).abs().max()):.1e}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
