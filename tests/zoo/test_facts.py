"""What is computed of a model without running it, against arithmetic and a real run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_zoo
import torch

from diptych import zoo
from diptych.config import PreprocessConfig, TokenizerConfig
from diptych.zoo.facts import Counts, gflops, peak_memory, walk

TINY = zoo.Row(
    name="tiny/vit",
    config=tiny_zoo.CONFIGS["vit"],
    preprocess=PreprocessConfig(size=(32, 32)),
    tokenizer=TokenizerConfig(kind="clip_bpe", context_length=16),
    sources=(),
)


def test_operations_are_those_of_the_formula():
    """2 per multiply-add: patches, then per block 12 d^2 s + 2 d s^2, then the projection."""
    config = tiny_zoo.CONFIGS["vit"]
    d, embed_dim, patches, layers = 64, config.embed_dim, 16, 2
    s = patches + 1
    image = 2 * patches * d * 3 * 8 * 8 + layers * 2 * (12 * d * d * s + 2 * d * s * s)
    image += 2 * d * embed_dim
    t = 16
    text = layers * 2 * (12 * d * d * t + 2 * d * t * t) + 2 * d * embed_dim
    work = gflops(TINY)
    assert work["image"] * 1e9 == pytest.approx(image)
    assert work["text"] * 1e9 == pytest.approx(text)


def test_what_lives_at_once_is_counted():
    counts = Counts()
    with counts:
        a = torch.empty(100, device="meta")  # 400 bytes
        b = a * 2  # 800
        c = b.view(10, 10).T  # no new memory
        del a
        d = torch.cat([b, b])  # 1,200: a is gone
        del b, c
        e = d + 1  # 1,600: d, e; b and its view are gone
    assert counts.bytes == 1600
    assert counts.peak == 1600
    del d, e
    assert counts.bytes == 0


def test_memory_grows_with_the_batch_and_holds_the_weights():
    one, many = (peak_memory(TINY, n) for n in (1, 65))
    weights = sum(4 * x.numel() for x in tiny_zoo.weights(TINY.config).values())
    assert weights < one < many
    assert (many - weights) / (one - weights) == pytest.approx(65, rel=0.01)


MEASURE = """
import json, pathlib, sys, torch
from diptych import towers, zoo

name, side = sys.argv[1:]
row = zoo.get(name)
model = towers.outline(row.config).eval().to_empty(device="cpu")
for x in model.state_dict().values():
    x.zero_()
tower = model.visual if side == "image" else model.text
batch = torch.randn(32, 3, *row.preprocess.size)
if side == "text":
    batch = torch.randint(1, 100, (32, row.tokenizer.context_length))

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(key))

with torch.no_grad():
    tower(batch[:1])  # kernels are set up
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    tower(batch)
    print(json.dumps([status("VmHWM") - before, batch.nbytes]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("ViT-B-32/openai", "image"),
        ("ViT-B-32/openai", "text"),
        ("RN50/openai", "image"),
        ("ViT-B-16-SigLIP/webli", "image"),
        ("ViT-L-14/openai", "image"),
    ],
)
def test_the_computed_peak_beside_a_measured_one(name, side):
    row = zoo.get(name)
    command = [sys.executable, "-c", MEASURE, name, side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, given = json.loads(done.stdout)
    counts = walk(row, 32)[side]
    ratio = measured / (counts.peak - given)
    print(f"{name}, {side}: measured {measured / 1e6:.0f} MB beside the weights, x {ratio:.2f}")
    assert 0.9 < ratio < 2.5
