"""The embedded model: size, loading, images and texts a second, against its own parts' first homes.

    scripts/bench mini [--threads 1]

Images: the packaged samples, from files on the disk, and prepared pixels through the tower alone.
Texts: captions through tokenizer and tower, and ids through the tower alone. Peers in the same run:
efficientnet-lite-pytorch (eager, as published) and transformers' BertModel. The variants take turns
and the best of five rounds of each counts; loading is timed in processes of their own.
"""

import argparse
import statistics
import subprocess
import sys
from importlib import resources
from pathlib import Path

import torch

import diptych

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from encoding import best_seconds
from peers import torchvision_stub, transformers

BATCH = 32
CAPTION = "a photo of {} on a table beside the window, taken in the afternoon"
START = """
import time; start = time.perf_counter()
import torch; imported = time.perf_counter()
import diptych; encoder = diptych.load("mini"); loaded = time.perf_counter()
encoder.encode_text("a cat"); first = time.perf_counter()
print(imported - start, loaded - imported, first - loaded)
"""


def peers():
    """(EfficientNet-Lite2, MiniLM) as their packages make them, random weights."""
    from efficientnet_lite_pytorch import EfficientNet

    hf = transformers()
    config = hf.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return EfficientNet.from_name("efficientnet-lite2").eval(), hf.BertModel(config).eval()


def main() -> None:
    torchvision_stub()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    encoder = diptych.load("mini", device="cpu")
    lite, bert = peers()
    folder = Path(str(resources.files("diptych").joinpath("assets")))
    samples = sorted((folder / "samples").glob("*.jpg"))
    texts = [CAPTION.format(path.stem) for path in samples][:28]
    pixels = torch.randn(BATCH, 3, 260, 260)
    ids = encoder.tokenizer(texts)
    real = ids[:, : int((ids != 0).sum(1).max())]
    with torch.no_grad():
        seconds = best_seconds(
            {
                "images, from files": lambda: encoder.encode_image(samples),
                "images, tower": lambda: encoder.run_image(pixels),
                "images, efficientnet-lite-pytorch": lambda: lite(pixels),
                "texts, from strings": lambda: encoder.encode_text(texts),
                "texts, tower": lambda: encoder.run_text(ids),
                "texts, transformers, cut to length": lambda: bert(real, (real != 0).long()),
            },
            encoder.device,
        )
    counts = {"images, from files": len(samples)}
    size = (folder / "mini.safetensors").stat().st_size
    threads_ = f"{threads} thread" + "s" * (threads > 1)
    print(f"mini.safetensors: {size / 1e6:.1f} MB, precision {encoder.precision}, {threads_}")
    for name, value in seconds.items():
        count = counts.get(name, BATCH if name.startswith("images") else len(texts))
        print(f"{name:38} {count / value:8.1f} a second")
    for side, peer in (("images", "efficientnet-lite-pytorch"), ("texts", "transformers")):
        other = next(s for n, s in seconds.items() if peer in n)
        print(f"{side}: {other / seconds[f'{side}, tower']:.2f} times {peer}, towers alone")
    runs = [
        [float(x) for x in subprocess.check_output([sys.executable, "-c", START]).split()]
        for _ in range(5)
    ]
    middle = [statistics.median(column) for column in zip(*runs, strict=True)]
    print("import torch {:.2f} s, load mini {:.2f} s, first text {:.2f} s".format(*middle))


if __name__ == "__main__":
    main()
