"""Milliseconds a query, memory and recall of exact and approximate search, peers in the same run.

    scripts/bench searching [--rows 1000000] [--dim 512] [--threads 2] [--repeats 7]

The rows and queries are synthetic: images around a common mean and 3,000 centres, texts on the
other side of a gap. The variants take turns, in both directions, and the median of the rounds
counts; each round asks other queries. Before each there is a pause, in which the threads of the
variant before it go to sleep. Recall is of the 10 best of a product in float64; "equal":
the very rows and float32 scores of it, for all texts and images. GB: what is searched.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

K, BATCH = 10, 64
PAUSE = 0.3  # seconds before each timing: threads of the variant before it still spin
Answer = tuple[np.ndarray, np.ndarray]  # scores, rows [q k]
Search = Callable[[np.ndarray], Answer]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class World:
    """Where images and texts come from."""

    def __init__(self, dim: int):
        self.rng, self.dim = np.random.default_rng(0), dim
        self.mean, self.gap = unit(self.rng.standard_normal((2, dim)))
        self.basis = np.linalg.qr(self.rng.standard_normal((dim, 96)))[0].T
        self.weights = np.arange(1, 97) ** -0.5
        self.centres = unit(self.wide(3000))
        self.share = np.arange(1, 3001) ** -0.8
        self.share /= self.share.sum()

    def wide(self, n: int) -> np.ndarray:
        return (self.rng.standard_normal((n, 96)) * self.weights) @ self.basis

    def noise(self, n: int) -> np.ndarray:
        return self.rng.standard_normal((n, self.dim), np.float32) / np.sqrt(self.dim)

    def images(self, n: int) -> np.ndarray:
        centre = self.centres[self.rng.choice(3000, n, p=self.share)]
        spread = 0.3 * self.wide(n) / np.linalg.norm(self.weights)
        rows = 0.7 * self.mean + 0.55 * centre + spread + 0.25 * self.noise(n)
        return unit(rows).astype(np.float32)

    def texts(self, n: int) -> np.ndarray:
        centre = self.centres[self.rng.integers(0, 3000, n)]
        rows = 0.75 * self.gap + 0.15 * self.mean + 0.35 * centre + 0.45 * self.noise(n)
        return unit(rows).astype(np.float32)


def truth(rows: np.ndarray, queries: np.ndarray) -> Answer:
    """The 10 best by a product in float64, rounded once; ties to the lower row."""
    wide = queries.astype(np.float64)
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), 20_000):
        block = (wide @ rows[start : start + 20_000].astype(np.float64).T).astype(np.float32)
        index = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
        scores, found = np.concatenate([scores, block], 1), np.concatenate([found, index], 1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        scores, found = (np.take_along_axis(a, best, 1) for a in (scores, found))
    return scores, found


def by_numpy(rows: np.ndarray) -> Search:
    def search(queries: np.ndarray) -> Answer:
        scores = queries @ rows.T
        some = np.argpartition(scores, -K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
        found = np.take_along_axis(some, order, 1)
        return np.take_along_axis(scores, found, 1), found

    return search


def by_faiss(rows: np.ndarray, kind: str) -> Search:
    import faiss

    index = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(rows[:10_000])
    index.add(rows)
    return lambda queries: index.search(queries, K)


def by_usearch(rows: np.ndarray, dtype: type, threads: int) -> Search:
    from usearch.index import MetricKind, search

    def convert(some: np.ndarray) -> np.ndarray:
        return np.rint(some * 127).astype(np.int8) if dtype is np.int8 else some.astype(dtype)

    held = convert(rows)

    def find(queries: np.ndarray) -> Answer:
        found = search(held, convert(queries), K, MetricKind.IP, exact=True, threads=threads)
        return 1 - found.distances.reshape(-1, K), found.keys.astype(np.int64).reshape(-1, K)

    return find


def variants(rows: np.ndarray, folder: Path, texts: np.ndarray, threads: int) -> Iterator:
    """(name, GB, search): one after the other, so that each is built when it is asked for."""
    from diptych.search.approximate import Approximate
    from diptych.search.matrix import Matrix

    n, e = rows.shape
    starts = range(0, n, 5000)
    blocks = ((np.arange(s, min(s + 5000, n)), rows[s : s + 5000]) for s in starts)
    start = time.perf_counter()
    Matrix.build(folder / "matrix", blocks, embed_dim=e, meta={})
    built = time.perf_counter()
    matrix = Matrix.open(folder / "matrix")
    opened = time.perf_counter()
    matrix.verify()  # so that no checksum is compared while others are timed
    print(f"matrix: built in {built - start:.1f} s, opened in {opened - built:.2f} s,", end=" ")
    print(f"all rows verified in {time.perf_counter() - opened:.2f} s")
    yield "Diptych exact (int8, then fp16)", 3 * n * e, lambda q: matrix.topk(q, K)
    start = time.perf_counter()
    index = Approximate.build(folder / "index", matrix, queries=texts)
    print(f"approximate: built in {time.perf_counter() - start:.1f} s; {index.facts}")
    yield "Diptych approximate (IVF,SQ8)", 3 * n * e, lambda q: index.topk(q, K)
    wide = rows.astype(np.float32)
    yield "numpy float32", 4 * n * e, by_numpy(wide)
    yield "faiss Flat", 4 * n * e, by_faiss(wide, "Flat")
    yield "faiss SQfp16", 2 * n * e, by_faiss(wide, "SQfp16")
    yield "usearch exact f16", 2 * n * e, by_usearch(wide, np.float16, threads)
    yield "usearch exact i8", n * e, by_usearch(wide, np.int8, threads)


def measure(searches: dict[str, Search], texts: np.ndarray, repeats: int) -> dict[tuple, float]:
    """(name, number of queries) -> median milliseconds a query."""
    times: dict[tuple, list[float]] = {}
    for round_ in range(repeats + 1):  # the first warms up
        names = list(searches) if round_ % 2 else list(searches)[::-1]
        for number in (1, BATCH):
            queries = np.roll(texts, -7 * round_, axis=0)[:number].copy()
            for name in names:
                time.sleep(PAUSE)
                start = time.perf_counter()
                searches[name](queries)
                took = 1e3 * (time.perf_counter() - start) / number
                if round_:
                    times.setdefault((name, number), []).append(took)
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(args.threads):  # numpy reads it when it is imported
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import faiss
    import torch
    import usearch

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    versions = f"torch {torch.__version__}, faiss {faiss.__version__}"
    print(
        f"{args.rows:,} x {args.dim}, {args.threads} threads; numpy {np.__version__}, {versions},"
    )
    print(f"usearch {usearch.__version__}; load of the machine before: {os.getloadavg()[0]:.1f}")
    world = World(args.dim)
    tuning, texts, images = world.texts(500), world.texts(BATCH * 2), world.images(BATCH)
    rows = np.empty((args.rows, args.dim), np.float16)
    for start in range(0, args.rows, 50_000):
        rows[start : start + 50_000] = world.images(min(50_000, args.rows - start))
    asked = {"text": texts[:BATCH], "image": images}
    right = {kind: truth(rows, queries) for kind, queries in asked.items()}
    with tempfile.TemporaryDirectory() as folder:
        made = list(variants(rows, Path(folder), tuning, args.threads))
        times = measure({name: search for name, _, search in made}, texts, args.repeats)
        print(f"\n{'':<32} {'1 query':>8} {'of 64':>8} {'GB':>6} {'recall@10':>13}  equal")
        print(f"{'':<32} {'ms':>8} {'ms each':>8} {'':>6} {'text / image':>13}")
        for name, size, search in made:
            recall, equal = [], True
            for kind, queries in asked.items():
                scores, found = search(queries)
                pairs = zip(found.tolist(), right[kind][1].tolist(), strict=True)
                recall.append(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))
                equal = equal and np.array_equal(found, right[kind][1])
                equal = equal and np.array_equal(np.asarray(scores), right[kind][0])
            one, many = times[name, 1], times[name, BATCH]
            print(
                f"{name:<32} {one:8.2f} {many:8.2f} {size / 1e9:6.2f} "
                f"{recall[0]:6.3f} /{recall[1]:6.3f}  {'yes' if equal else 'no'}"
            )
    print(f"\nload of the machine after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
