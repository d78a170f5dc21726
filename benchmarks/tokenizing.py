"""Captions tokenised in a second by one core: Diptych, open_clip, transformers, tokenizers.

    scripts/bench tokenizing [--count 200000]

Two sets: captions drawn by a Zipf law from the 32,849 whole words of CLIP's vocabulary, with
compounds and numbers, each twentieth not plain ASCII; and plain ones of a hundred words, as in
COCO. "cold" is a new tokenizer's first pass over the set, "warm" its next one. All run in this
process by batches of 1,000, take turns every 10,000 captions, and their CPU time counts. Rows that
differ from open_clip's are counted. `tokenizers` hands over lists of ids, the others padded rows.
Below: hostile texts.
"""

import argparse
import importlib.util
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1"}

import numpy as np
import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))
sys.path.insert(0, str(Path(__file__).parent))

from peers import torchvision_stub  # noqa: E402
from tokenizing_texts import captions  # noqa: E402

from diptych.config import TokenizerConfig  # noqa: E402
from diptych.tokenizer import base, bpe, build  # noqa: E402

Batch = Callable[[list[str]], object]
BATCH, TURN = 1000, 10_000
REFERENCE = "open_clip SimpleTokenizer"


def plain(count: int) -> list[str]:
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


def tokenizers() -> dict[str, Batch]:
    """Name -> a new tokenizer's call for one batch, with what it hands over."""
    torchvision_stub()
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    vocab = dict(simple.encoder)
    vocab["<|startoftext|>"] = vocab.pop("<start_of_text>")
    vocab["<|endoftext|>"] = vocab.pop("<end_of_text>")
    merges = list(simple.bpe_ranks)
    hf, rust = (CLIPTokenizer(vocab=vocab, merges=merges) for _ in range(2))
    options = {"padding": "max_length", "truncation": True, "max_length": 77}
    base._read.cache_clear()
    bpe._words.cache_clear()
    found: dict[str, Batch] = {
        "Diptych": build(TokenizerConfig(kind="clip_bpe", context_length=77)),
        REFERENCE: simple,
        "transformers CLIPTokenizer": lambda texts: (
            hf(texts, **options, return_tensors="pt").input_ids
        ),
        "tokenizers, encode_batch_fast": lambda texts: [
            row.ids for row in rust.backend_tokenizer.encode_batch_fast(texts)
        ],
    }
    if importlib.util.find_spec("instant_clip_tokenizer"):
        from instant_clip_tokenizer import Tokenizer

        found["instant-clip-tokenizer"] = Tokenizer().tokenize_batch
    else:
        print("left out: instant-clip-tokenizer is not installed")
    return found


def rows(ids: object) -> np.ndarray:
    """What a tokenizer hands over -> int64 [n, 77], zeros after the end."""
    if isinstance(ids, list):
        padded = np.zeros((len(ids), 77), np.int64)
        for row, found in zip(padded, ids, strict=True):
            found = found if len(found) <= 77 else [*found[:76], 49407]
            row[: len(found)] = found
        return padded
    padded = np.asarray(ids).astype(np.int64)
    padded[np.cumsum(padded == 49407, axis=1) - (padded == 49407) > 0] = 0  # other padding
    return padded


def compare(texts: list[str]) -> None:
    """Print a table of one set, cold and warm."""
    calls = tokenizers()
    calls["Diptych"]("é")  # the vocabulary and ftfy are read here, as the peers' were above
    differ = dict.fromkeys(calls, 0)
    took = {name: [0.0, 0.0] for name in calls}
    for pass_ in (0, 1):
        for start in range(0, len(texts), TURN):
            made = {}
            turn = texts[start : start + TURN]
            for name, call in calls.items():
                begun = time.process_time()
                made[name] = [call(turn[at : at + BATCH]) for at in range(0, len(turn), BATCH)]
                took[name][pass_] += time.process_time() - begun
            if pass_ == 0:
                expected = np.concatenate(list(map(rows, made[REFERENCE])))
                for name, found in made.items():
                    unlike = np.concatenate(list(map(rows, found))) != expected
                    differ[name] += int(unlike.any(1).sum())
    print("| tokenizer | cold /s | warm /s | Diptych is, cold | warm | rows that differ |")
    print("|---|---|---|---|---|---|")
    for name, (cold, warm) in took.items():
        ratio = [mine / its for mine, its in zip((cold, warm), took["Diptych"], strict=True)]
        print(
            f"| {name} | {len(texts) / cold:,.0f} | {len(texts) / warm:,.0f} "
            f"| {ratio[0]:.1f} x | {ratio[1]:.1f} x | {differ[name]:,} |"
        )


def seconds(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def hostile() -> None:
    clip = build(TokenizerConfig(kind="clip_bpe", context_length=77))
    logging.disable()
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))
    print(f"\none word of 1 MB: a row in {seconds(lambda: clip(word), 2):.2f} s CPU, ", end="")
    print(f"all of its ids in {seconds(lambda: clip.encode(word), 1):.2f} s")
    many = "a photo of a cat " * 600_000
    print(f"10 MB of words: a row in {seconds(lambda: clip(many), 2):.3f} s, ", end="")
    print(f"all ids in {seconds(lambda: clip.encode(many), 1):.2f} s")
    print(f"one caption: {1e6 * seconds(lambda: clip('a photo of a cat'), 50):.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200_000)
    count = parser.parse_args().count
    names = ("open_clip_torch", "transformers", "tokenizers", "ftfy")
    print(f"Python {sys.version.split()[0]}, {', '.join(f'{n} {version(n)}' for n in names)}")
    drawn = captions(count)
    assert len(set(drawn)) > 0.999 * count
    foreign = sum(not text.isascii() or "&" in text for text in drawn) / count
    chunks = len({chunk for text in drawn for chunk in text.lower().split()})
    print(f"\n{count:,} captions, {100 * foreign:.1f} % not plain ASCII, {chunks:,} chunks\n")
    compare(drawn)
    print("\n4,000 plain captions of a hundred words\n")
    compare(plain(4000))
    hostile()


if __name__ == "__main__":
    main()
