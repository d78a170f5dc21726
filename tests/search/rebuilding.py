"""Builds a derived file again and again, to be killed: python rebuilding.py KIND FOLDER."""

import sys
from pathlib import Path

import numpy as np

from diptych.search.matrix import Matrix

N, E = 3000, 32


def contents(turn: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and rows of one build: another number of rows each time, all from the turn."""
    rng = np.random.default_rng(turn)
    n = N + turn % 7 * 100
    return np.arange(n) * 2 + turn, rng.standard_normal((n, E)).astype(np.float16)


def build(folder: Path, turn: int) -> Matrix:
    ids, rows = contents(turn)
    blocks = [(ids[i : i + 700], rows[i : i + 700]) for i in range(0, len(ids), 700)]
    return Matrix.build(folder, blocks, embed_dim=E, meta={"turn": turn})


def approximate(folder: Path, turn: int) -> None:
    from diptych.search.approximate import Approximate

    matrix = build(folder / "matrix", turn % 2)
    queries = contents(99)[1][:50].astype(np.float32)
    Approximate.build(folder / "index", matrix, queries=queries)


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    for turn in range(100_000):
        if kind == "matrix":
            build(folder, turn)
        else:
            approximate(folder, turn)
        print(turn, flush=True)


if __name__ == "__main__":
    main()
