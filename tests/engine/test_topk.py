"""Top-k: numpy's argsort is the oracle; ties, blocks, NaN and what does not fit."""

import numpy as np
import pytest

from diptych.engine import topk as module
from diptych.engine.topk import TopK, topk
from diptych.errors import ConfigError


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def oracle(vectors, queries, k):
    """A stable sort of the scores in float64, rounded as ours are."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    scores = scores.astype(np.float32)
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, indices, 1), indices


def same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("n", "q", "e", "k"),
    [(1, 1, 4, 1), (7, 3, 5, 20), (1000, 17, 64, 10), (20_000, 3, 384, 100), (300, 5, 512, 300)],
)
def test_equal_to_argsort(n, q, e, k):
    rng = np.random.default_rng(n)
    vectors, queries = unit(rng, n, e), unit(rng, q, e)
    same(topk(vectors, queries, k), oracle(vectors, queries, k))


@pytest.mark.parametrize(("rows", "queries", "pairs"), [(1, 1, 1), (7, 2, 3), (64, 100, 5)])
def test_blocks_of_any_size_give_the_same_bits(monkeypatch, rows, queries, pairs):
    rng = np.random.default_rng(0)
    vectors, asked = unit(rng, 200, 33), unit(rng, 5, 33)
    expected = topk(vectors, asked, 9)
    for name, value in (("_ROWS", rows), ("_QUERIES", queries), ("_PAIRS", pairs)):
        monkeypatch.setattr(module, name, value)
    same(topk(vectors, asked, 9), expected)


def test_a_tie_goes_to_the_lower_index_wherever_the_copies_lie():
    """BLAS sums the rows at the edge of a matrix in another order: 16-row blocks and a rest."""
    rng = np.random.default_rng(1)
    few, queries = unit(rng, 3, 129), unit(rng, 4, 129)
    vectors = few[rng.integers(0, 3, 8192 + 5003)]
    scores, indices = topk(vectors, queries, 6000)
    same((scores, indices), oracle(vectors, queries, 6000))
    assert all(len(set(row)) <= 3 for row in scores.tolist())


def test_almost_equal_vectors_are_told_apart():
    """Closer to each other than a float32 product's rounding."""
    rng = np.random.default_rng(2)
    base = unit(rng, 1, 384)
    vectors = base + np.float32(2e-7) * rng.standard_normal((5000, 384)).astype(np.float32)
    same(topk(vectors, base, 50), oracle(vectors, base, 50))


def test_a_stream_of_blocks():
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng, 500, 24), unit(rng, 2, 24)
    best = TopK(queries, 10)
    for part in np.array_split(vectors, [0, 1, 33, 33, 400]):
        best.add(part)
    assert best.num_vectors == 500
    same((best.scores, best.indices), oracle(vectors, queries, 10))


def test_half_precision_and_scores_that_are_no_cosines():
    rng = np.random.default_rng(4)
    vectors = (100 * rng.standard_normal((900, 48))).astype(np.float16)
    queries = 7 * rng.standard_normal((3, 48)).astype(np.float32)
    same(topk(vectors, queries, 12), oracle(vectors, queries, 12))


def test_rows_of_nan_come_last():
    vectors = unit(np.random.default_rng(5), 6, 8)
    vectors[[0, 3]] = np.nan
    scores, indices = topk(vectors, vectors[[1]], 6)
    assert indices[0, 0] == 1
    assert indices[0, 4:].tolist() == [0, 3]
    assert np.isneginf(scores[0, 4:]).all()
    assert np.isfinite(scores[0, :4]).all()


def test_nothing_to_compare():
    rng = np.random.default_rng(6)
    scores, indices = topk(unit(rng, 0, 8), unit(rng, 2, 8), 3)
    assert scores.shape == indices.shape == (2, 0)
    scores, indices = topk(unit(rng, 5, 8), unit(rng, 0, 8), 3)
    assert scores.shape[0] == indices.shape[0] == 0


def test_what_does_not_fit():
    rng = np.random.default_rng(7)
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        topk(unit(rng, 5, 8), unit(rng, 2, 8), 0)
    with pytest.raises(ConfigError, match="not of one space"):
        topk(unit(rng, 5, 8), unit(rng, 2, 9), 3)
    with pytest.raises(ConfigError, match="must be rows"):
        topk(unit(rng, 5, 8), unit(rng, 8), 3)
    with pytest.raises(ConfigError, match="hold NaN"):
        topk(unit(rng, 5, 8), np.full((1, 8), np.nan, np.float32), 3)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e30, 3e38])
def test_queries_of_any_length(size):
    """Sums beyond float32 made NaN of a row, and those below its normal numbers hid a tie."""
    rng = np.random.default_rng(6)
    vectors = rng.uniform(-60_000, 60_000, (9000, 24)).astype(np.float16)
    if size < 1:
        vectors = (vectors / 60_000).astype(np.float16)
    queries = (unit(rng, 3, 24) * size).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = oracle(vectors, queries, 20)
    same(topk(vectors, queries, 20), expected)
