"""Time and memory of retrieval over vectors that lie in files, and whether its ranks are exact.

    python benchmarks/retrieval_large.py [--images 100000] [--captions 5] [--dim 512]
        [--dtype float16|float32] [--noise 4.5] [--sample 200]

Images are random unit rows; a caption is its image plus `noise` times a random unit row, normalised
(a large noise: rows that have nothing to do with each other, which is slowest, as more pairs are
nearly equal and are computed in float64). They are written to a temporary folder and mapped. The
ranks of `sample` images and texts are counted again in float64, one by one, in another process, so
that its memory does not count. The peak is that of the process that measures, with the mapped files
in it. Set OPENBLAS_NUM_THREADS=1 where other programs run.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BLOCK = 10_000


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((n, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder: Path, args: argparse.Namespace) -> None:
    """images.npy [n e] and texts.npy [n * captions, e]; text j belongs to image j // captions."""
    rng = np.random.default_rng(0)
    shapes = {"images": args.images, "texts": args.images * args.captions}
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=args.dtype, shape=(n, args.dim)
        )
        for name, n in shapes.items()
    }
    for start in range(0, args.images, BLOCK):
        images = unit(rng, min(BLOCK, args.images - start), args.dim)
        files["images"][start : start + len(images)] = images
        texts = np.repeat(images, args.captions, axis=0)
        texts += args.noise * unit(rng, len(texts), args.dim)
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        first = start * args.captions
        files["texts"][first : first + len(texts)] = texts
    for file in files.values():
        file.flush()


def counted(folder: Path, captions: int, images: list[int], texts: list[int]) -> tuple:
    """Ranks of some images and texts by their definition: float64, rounded once to float32."""
    all_images, all_texts = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "texts")
    )
    owner = np.arange(len(all_texts)) // captions

    def scores(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        parts = [
            np.einsum("ij,j->i", rows[i : i + BLOCK].astype(np.float64), query.astype(np.float64))
            for i in range(0, len(rows), BLOCK)
        ]
        return np.concatenate(parts).astype(np.float32)

    by_image = []
    for i in images:
        row = scores(all_images[i], all_texts)
        by_image.append(1 + int((row[owner != i] >= row[owner == i].max()).sum()))
    by_text = []
    for t in texts:
        row = scores(all_texts[t], all_images)
        better = row >= row[owner[t]]
        by_text.append(int(better.sum()))  # itself included
    return by_image, by_text


def measure(folder: Path, captions: int) -> dict:
    """Ranks, seconds and the peak of memory, in a process of its own."""
    import torch

    from diptych.eval.retrieval import ranks

    images, texts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "texts"))
    owner = torch.arange(len(texts)) // captions
    before = peak()
    start, busy = time.perf_counter(), time.process_time()
    by_image, by_text = (found.numpy() for found in ranks(images, texts, owner))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    figures = {"by_image": by_image, "by_text": by_text, "seconds": seconds, "busy": busy}
    return figures | {"before": before, "peak": peak()}


def peak() -> float:
    """GB: the largest resident set of this process so far, mapped files included."""
    status = Path("/proc/self/status")  # ru_maxrss would count the process that started this one
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def alone(function, *args):
    """The result of a call in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--noise", type=float, default=4.5)
    parser.add_argument("--sample", type=int, default=200)
    args = parser.parse_args()
    print("$ python", " ".join(["benchmarks/retrieval_large.py", *sys.argv[1:]]))
    print(f"{multiprocessing.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(write, folder, args)
        found = alone(measure, folder, args.captions)
        n, m = args.images, args.images * args.captions
        rng = np.random.default_rng(1)
        images = sorted(rng.choice(n, min(args.sample, n), replace=False).tolist())
        texts = sorted(rng.choice(m, min(args.sample, m), replace=False).tolist())
        by_image, by_text = alone(counted, folder, args.captions, images, texts)
    seconds = found["seconds"]
    print(f"{n:,} images x {m:,} texts x {args.dim}, {args.dtype}, noise {args.noise}")
    speed = 2 * n * m * args.dim / seconds / 1e9
    print(f"time            {seconds:.0f} s ({found['busy']:.0f} s of cores), {speed:.0f} GFLOP/s")
    print(f"load            {os.getloadavg()[2]:.1f} running, mean of the last 15 minutes")
    print(f"peak memory     {found['peak']:.2f} GB ({found['before']:.2f} GB before it began)")
    wrong = int((found["by_image"][images] != by_image).sum())
    wrong += int((found["by_text"][texts] != by_text).sum())
    print(f"ranks           {len(images) + len(texts)} counted again in float64, {wrong} differ")
    for way, rank in (("image to text", found["by_image"]), ("text to image", found["by_text"])):
        shares = ", ".join(f"R@{k} {100 * (rank <= k).mean():.1f} %" for k in (1, 5, 10))
        print(f"{way}   {shares}, median rank {np.median(rank):.0f}")


if __name__ == "__main__":
    main()
