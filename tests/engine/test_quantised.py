"""The int8 scan: equal to a stable sort in float64, whatever the rows; its bounds hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.engine import int8
from diptych.engine import quantised as module
from diptych.engine.quantised import Quantised
from diptych.engine.topk import topk
from diptych.errors import ConfigError


@pytest.fixture(autouse=True, params=["kernel", "plain"])
def _product(request, monkeypatch):
    """Every test runs with torch's product and with numpy's."""
    if request.param == "plain":
        monkeypatch.setattr(int8, "_has_kernel", lambda width: False)


@pytest.fixture
def small_blocks(monkeypatch):
    """Thousands of rows are many blocks, stripes and settlements then."""
    for name, value in (
        ("BLOCK", 512),
        ("_TILE", 64),
        ("_SCORES", 512),
        ("_PAIRS", 300),
        ("_MANY", 20),
    ):
        monkeypatch.setattr(module, name, value)


def oracle(vectors, queries, k, where=None):
    """A stable sort of the scores in float64, rounded once to float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.einsum("qe,ne->qn", queries.astype(np.float64), vectors.astype(np.float64))
        scores = scores.astype(np.float32)
    scores[np.isnan(scores)] = -np.inf
    rows = np.arange(len(vectors)) if where is None else np.flatnonzero(where)
    order = np.argsort(-scores[:, rows], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows[order], 1), rows[order]


def same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)


def clip_like(rng, n, e, *, outliers=2):
    """Unit rows as a tower gives them: about a common mean, with a few large dimensions."""
    rows = rng.standard_normal((n, e)) + 1.5 * rng.standard_normal(e)
    rows[:, :outliers] *= 12
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "q", "e", "k"),
    [
        (1, 1, 4, 1),
        (9000, 1, 512, 10),
        (40_000, 3, 64, 1),
        (70_001, 9, 48, 100),
        (20_000, 300, 16, 5),
    ],
)
def test_equal_to_a_sort(n, q, e, k):
    rng = np.random.default_rng(n)
    vectors = clip_like(rng, n, e).astype(np.float16)
    queries = clip_like(rng, q, e)
    same(Quantised.of(vectors).topk(queries, k), oracle(vectors, queries, k))


def awkward(kind, rng, n, e):  # noqa: C901  a list of kinds
    """Rows that an approximate scan could get wrong."""
    rows = clip_like(rng, n, e)
    match kind:
        case "all equal":
            rows[:] = rows[0]
        case "zero":
            rows[:] = 0
        case "some zero":
            rows[rng.random(n) < 0.5] = 0
        case "copies":
            rows = rows[rng.integers(0, min(20, n), n)]
        case "near ties":  # the last bit of one number, or of none
            rows = np.repeat(rows[:1], n, 0).astype(np.float16).view(np.uint16)
            rows[np.arange(n), rng.integers(0, e, n)] ^= rng.integers(0, 2, n, np.uint16)
            rows = rows.view(np.float16)
        case "one-hot":
            rows = np.eye(e)[rng.integers(0, e, n)]
        case "nan":
            rows[rng.random(n) < 0.3] = np.nan
            rows[rng.random(n) < 0.001, 0] = np.inf
            rows[rng.random(n) < 0.001, 1] = -np.inf
        case "all nan":
            rows[:] = np.nan
        case "huge":
            rows = rng.uniform(-65504, 65504, (n, e))
        case "tiny":
            rows = rng.integers(-9, 10, (n, e)) * 2.0**-24  # below the normal float16
        case "one huge row":
            rows[rng.integers(0, n, 5)] *= 30000
        case "lengths":
            rows *= 2.0 ** rng.integers(-10, 10, (n, 1))
        case "one dimension":
            rows[:, 1:] = 0
    return rows.astype(np.float16)


KINDS = [
    *("all equal", "zero", "some zero", "copies", "near ties", "one-hot", "nan", "all nan"),
    *("huge", "tiny", "one huge row", "lengths", "one dimension"),
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_awkward_rows(kind, k):
    rng = np.random.default_rng(k)
    vectors = awkward(kind, rng, 3000, 24)
    queries = np.concatenate(
        [clip_like(rng, 4, 24), vectors[:3].astype(np.float32), np.eye(24)[:2]]
    )
    queries = queries[np.isfinite(queries).all(1)].astype(np.float32)
    index = Quantised.of(vectors)
    same(index.topk(queries, k), oracle(vectors, queries, k))
    where = rng.random(3000) < 0.4
    same(index.topk(queries, k, where=where), oracle(vectors, queries, k, where))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_queries_of_any_length(size):
    """A score may be infinite in float32, or 0: then many tie."""
    rng = np.random.default_rng(3)
    vectors = awkward("huge" if size > 1 else "lengths", rng, 3000, 24)
    queries = (clip_like(rng, 3, 24, outliers=0) * size / 2).astype(np.float32)
    for k in (1, 50, 3000):  # the last by `engine.topk`
        same(Quantised.of(vectors).topk(queries, k), oracle(vectors, queries, k))


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_rows(data):
    n = data.draw(st.integers(1, 2000))
    e, q, k = (
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(0, 5)),
        data.draw(st.integers(1, 60)),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kind = data.draw(st.sampled_from(["plain", *(KINDS if e > 1 else ["zero"])]))
    vectors = awkward(kind, rng, n, e) if e > 2 else rng.standard_normal((n, e)).astype(np.float16)
    queries = rng.standard_normal((q, e)).round(data.draw(st.integers(0, 4))).astype(np.float32)
    where = rng.random(n) < data.draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    where = data.draw(st.sampled_from([None, where]))
    found = Quantised.of(vectors).topk(queries, k, where=where)
    expected = oracle(vectors, queries, k, where)
    np.testing.assert_array_equal(found[1].reshape(expected[1].shape), expected[1])
    np.testing.assert_array_equal(found[0].reshape(expected[0].shape), expected[0])


def test_equal_to_the_other_exact_search():
    rng = np.random.default_rng(5)
    vectors = clip_like(rng, 50_000, 96).astype(np.float16)
    queries = clip_like(rng, 20, 96)
    same(Quantised.of(vectors).topk(queries, 20), topk(vectors, queries, 20))


def test_few_rows_are_scored():
    """What the codes are for: a bound too wide would pass every test above, slowly.

    The queries have outliers: without their low parts it would be thousands.
    """
    rng = np.random.default_rng(6)
    vectors = clip_like(rng, 300_000, 64).astype(np.float16)
    seen = []
    whole = Quantised.of(vectors)
    index = Quantised(vectors, whole.codes, touch=lambda rows: seen.extend(rows.tolist()))
    queries = clip_like(rng, 8, 64)
    _, rows = index.topk(queries, 10)
    assert set(rows.ravel().tolist()) <= set(seen)
    assert len(seen) / len(queries) < 1000


@pytest.mark.parametrize("kind", ["plain", "near ties", "huge", "tiny", "one huge row", "lengths"])
def test_scores_are_within_the_bound(kind):
    rng = np.random.default_rng(7)
    vectors = awkward(kind, rng, 40_000, 32)
    index = Quantised.of(vectors)
    for query in (*clip_like(rng, 3, 32), vectors[5].astype(np.float32)):
        exact = vectors.astype(np.float64) @ query.astype(np.float64)
        found = index.scores(query)
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() <= index.bound * np.linalg.norm(query.astype(np.float64))


def test_the_bound_of_clip_like_rows_is_small():
    vectors = clip_like(np.random.default_rng(8), 40_000, 512).astype(np.float16)
    assert Quantised.of(vectors).bound < 0.02


def test_scores_of_broken_rows():
    vectors = awkward("nan", np.random.default_rng(9), 5000, 16)
    found = Quantised.of(vectors).scores(np.ones(16, np.float32))
    np.testing.assert_array_equal(np.isneginf(found), ~np.isfinite(vectors).all(1))


def test_no_rows_and_no_queries():
    index = Quantised.of(np.empty((0, 8), np.float16))
    assert [a.shape for a in index.topk(np.zeros((2, 8), np.float32), 3)] == [(2, 0), (2, 0)]
    assert (index.scores(np.zeros(8, np.float32)).shape, index.bound) == ((0,), 0.0)
    index = Quantised.of(np.zeros((9000, 8), np.float16))
    assert [a.shape for a in index.topk(np.zeros((0, 8), np.float32), 3)] == [(0, 3), (0, 3)]


def test_what_cannot_be():
    index = Quantised.of(np.zeros((9, 8), np.float16))
    queries = np.zeros((2, 8), np.float32)
    for call in (
        lambda: index.topk(queries, 0),
        lambda: index.topk(queries[:, :5], 1),
        lambda: index.topk(queries * np.nan, 1),
        lambda: index.topk(queries, 1, where=np.ones(8, bool)),
        lambda: index.topk(queries, 1, where=np.ones(9, int)),
        lambda: index.scores(queries[0, :5]),
        lambda: Quantised.of(queries),
    ):
        with pytest.raises(ConfigError):
            call()
