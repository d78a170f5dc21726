"""Captions tokenised in a second by one core: Diptych, open_clip, transformers, tokenizers.

    scripts/bench tokenizing

All peers run in this process on the same captions; the best of five rounds counts. Ids are compared
first. `tokenizers` hands over lists of ids, the others a padded tensor. Below: hostile texts.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1"}

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from peers import torchvision_stub  # noqa: E402

from diptych.config import TokenizerConfig  # noqa: E402
from diptych.tokenizer import build  # noqa: E402


def captions(count: int) -> list[str]:
    """Plain English captions of eleven words, as in COCO."""
    rng = random.Random(0)
    who = "man woman boy girl dog cat horse bird child person surfer chef player group couple crowd"
    what = (
        "sitting standing riding holding eating watching walking playing sleeping jumping waiting"
    )
    on = "on near behind under with beside above inside against along"
    look = "red blue small large old young white black wooden green bright empty busy snowy dirty"
    thing = (
        "table bench street beach kitchen bicycle skateboard umbrella train pizza field building"
    )
    lists = [line.split() for line in (look, who, what, on, look, thing, on, thing)]
    made = []
    for _ in range(count):
        a, b, c, d, e, f, g, h = map(rng.choice, lists)
        made.append(f"A {a} {b} {c} {d} the {e} {f} {g} a {h}.")
    return made


def peers(texts: list[str]) -> dict[str, Callable[[], list[list[int]]]]:
    """Name -> one round over `texts`, with what that peer hands over: a padded tensor, or ids."""
    torchvision_stub()
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    vocab = dict(simple.encoder)
    vocab["<|startoftext|>"] = vocab.pop("<start_of_text>")
    vocab["<|endoftext|>"] = vocab.pop("<end_of_text>")
    fast = CLIPTokenizer(vocab=vocab, merges=list(simple.bpe_ranks))
    options = {"padding": "max_length", "truncation": True, "max_length": 77}
    return {
        "open_clip SimpleTokenizer": lambda: simple(texts),
        "transformers CLIPTokenizer": lambda: fast(texts, **options, return_tensors="pt").input_ids,
        "tokenizers, encode_batch_fast": lambda: [
            row.ids for row in fast.backend_tokenizer.encode_batch_fast(texts)
        ],
    }


def seconds(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    texts = captions(4000)
    clip = build(TokenizerConfig(kind="clip_bpe", context_length=77))
    expected = clip(texts)
    mean = clip.tokenize(texts).lengths.double().mean()
    others = peers(texts)
    for name, call in others.items():
        for row, theirs in zip(expected.tolist(), call(), strict=True):
            end = row.index(49407) + 1
            assert list(theirs[:end]) == row[:end], name
    ours = seconds(lambda: clip(texts), 5)
    print(f"{len(texts)} captions of {mean:.1f} ids on average, one core, ids equal\n")
    print("| tokenizer | captions/s | Diptych is |\n|---|---|---|")
    print(f"| Diptych | {len(texts) / ours:,.0f} | |")
    for name, call in others.items():
        took = seconds(call, 3)
        print(f"| {name} | {len(texts) / took:,.0f} | {took / ours:.1f} x |")
    fresh = captions(200_000)[4000:]
    print(f"\n196,000 new captions: {len(fresh) / seconds(lambda: clip(fresh), 1):,.0f} captions/s")
    logging.disable()
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))
    print(f"one word of 1 MB: a row in {seconds(lambda: clip(word), 2):.2f} s CPU, ", end="")
    print(f"all of its ids in {seconds(lambda: clip.encode(word), 1):.2f} s")
    many = "a photo of a cat " * 600_000
    print(f"10 MB of words: a row in {seconds(lambda: clip(many), 2):.3f} s, ", end="")
    print(f"all ids in {seconds(lambda: clip.encode(many), 1):.2f} s")
    print(f"one caption: {1e6 * seconds(lambda: clip(texts[0]), 50):.0f} us")


if __name__ == "__main__":
    main()
