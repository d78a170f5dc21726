"""The approximate index: the recall that it says, exact scores, refused when damaged or stale."""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rebuilding import approximate, contents

from diptych.errors import CheckpointError, ConfigError, IndexFileError, MissingExtraError
from diptych.search.approximate import Approximate
from diptych.search.matrix import Matrix

faiss = pytest.importorskip("faiss")
HERE = Path(__file__).parent
E = 32


def clusters(seed: int, n: int, *, spread: float = 0.5) -> np.ndarray:
    """Unit rows, float32, around 60 centres that are always the same."""
    centres = np.random.default_rng(0).standard_normal((60, E))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 60, n)] + spread * rng.standard_normal((n, E))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def matrix_of(n: int) -> Matrix:
    return Matrix.of(np.arange(n) * 3 + 1, clusters(1, 20_000)[:n].astype(np.float16))


TEXTS = clusters(2, 300, spread=1.0)


@pytest.fixture(scope="module")
def matrix():
    return matrix_of(12_000)


@pytest.fixture(scope="module")
def built(matrix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    Approximate.build(folder, matrix, queries=TEXTS, recall=0.9)
    return folder


def recall(index, matrix, queries, where=None):
    """Of the true 10 best, by another way than the module's: sets of rows."""
    found, right = index.topk(queries, 10, where=where)[1], matrix.topk(queries, 10, where=where)[1]
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])


def test_the_recall_is_what_it_says(built, matrix):
    index = Approximate.open(built, matrix)
    facts = index.facts
    assert recall(index, matrix, TEXTS[0::2]) >= 0.9  # tuned on these
    assert recall(index, matrix, TEXTS[1::2]) == pytest.approx(facts["recall_text"], abs=1e-3)
    others = clusters(3, 400)
    assert recall(index, matrix, others) == pytest.approx(facts["recall_image"], abs=0.05)
    assert (facts["num_vectors"], facts["num_texts"]) == (12_000, 150)
    assert 1 <= facts["num_probed"] < facts["num_lists"] == 512
    assert facts["faiss"] == faiss.__version__


def test_fewer_lists_would_not_do(built, matrix):
    """The number is the least, to an eighth."""
    index = Approximate.open(built, matrix)
    index.facts["num_probed"] -= max(2, index.facts["num_probed"] // 4)
    assert recall(index, matrix, TEXTS[0::2]) < 0.92  # the target and a standard error


def test_scores_are_exact(built, matrix):
    index = Approximate.open(built, matrix)
    scores, rows = index.topk(TEXTS, 20)
    assert (scores.dtype, rows.dtype, scores.shape) == (np.float32, np.int64, (300, 20))
    pairs = np.einsum("qe,qke->qk", TEXTS.astype(float), matrix.vectors[rows].astype(float))
    np.testing.assert_array_equal(scores, pairs.astype(np.float32))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_all_lists_give_the_exact_result(tmp_path, matrix):
    index = Approximate.build(tmp_path, matrix, queries=TEXTS, recall=1.0)
    index.facts["num_probed"] = index.facts["num_lists"]
    for k in (1, 10, 100):
        for found, right in zip(index.topk(TEXTS, k), matrix.topk(TEXTS, k), strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.05, 0.3, 0.9, 1.0])
def test_filters(built, matrix, share):
    index = Approximate.open(built, matrix)
    where = np.random.default_rng(4).random(12_000) < share
    scores, rows = index.topk(TEXTS, 10, where=where)
    assert rows.shape == (300, min(10, where.sum()))
    assert where[rows].all()
    assert scores.shape == rows.shape
    if share:
        assert recall(index, matrix, TEXTS, where) > 0.85


def test_rows_far_from_the_lists_that_are_looked_at(built, matrix):
    """A filter that leaves nothing in those lists: all allowed rows are compared."""
    index = Approximate.open(built, matrix)
    where = np.zeros(12_000, bool)
    where[matrix.topk(-TEXTS[:1], 600)[1]] = True
    for found, right in zip(
        index.topk(TEXTS[:1], 10, where=where), matrix.topk(TEXTS[:1], 10, where=where), strict=True
    ):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_few_rows(tmp_path, n):
    matrix = matrix_of(n)
    index = Approximate.build(tmp_path, matrix, queries=TEXTS)
    assert index.facts["recall_text"] >= 0.8
    for found, right in zip(index.topk(TEXTS, 500), matrix.topk(TEXTS, 500), strict=True):
        np.testing.assert_array_equal(found, right)


def test_broken_rows_are_never_better(tmp_path):
    rows = matrix_of(5000).vectors.copy()
    rows[::7] = np.nan
    matrix = Matrix.of(np.arange(5000), rows)
    index = Approximate.build(tmp_path, matrix, queries=TEXTS)
    assert (index.topk(TEXTS, 10)[1] % 7 != 0).all()


def test_new_rows_are_added(built, matrix, tmp_path):
    Approximate.build(tmp_path, matrix, queries=TEXTS, recall=0.9)
    more = matrix_of(15_000)
    with pytest.raises(IndexFileError):
        Approximate.open(tmp_path, more)
    old = Approximate.open(tmp_path, more, grown=True)
    with pytest.raises(IndexFileError, match="add"):
        old.topk(TEXTS, 10)
    added = old.add(more)
    for index in (added, Approximate.open(tmp_path, more)):
        assert index.facts["num_vectors"] == 15_000
        assert index.facts["num_probed"] == old.facts["num_probed"]
        assert recall(index, more, TEXTS[1::2]) == pytest.approx(index.facts["recall_text"])
        _, rows = index.topk(more.vectors[12_000:].astype(np.float32), 1)
        assert (rows[:, 0] == np.arange(12_000, 15_000)).mean() > 0.9
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(IndexFileError):
        Approximate.open(tmp_path, matrix)
    with pytest.raises(IndexFileError):
        added.add(matrix)


def test_of_other_rows(built, matrix):
    rows = matrix.vectors.copy()
    rows[11_999, 0] += 1
    ids = matrix.ids.copy()
    ids[-1] += 1
    for other in (Matrix.of(matrix.ids, rows), Matrix.of(ids, matrix.vectors), matrix_of(11_999)):
        with pytest.raises(IndexFileError, match="other rows"):
            Approximate.open(built, other)
    same = Matrix.of(matrix.ids, matrix.vectors.copy())
    assert Approximate.open(built, same).topk(TEXTS, 3)[1].shape == (300, 3)


def test_a_full_disk_leaves_the_old_one(tmp_path, matrix):
    Approximate.build(tmp_path, matrix_of(300), queries=TEXTS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(CheckpointError):
                Approximate.build(tmp_path, matrix_of(12_000), queries=TEXTS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        Approximate.open(tmp_path, matrix_of(300))
    assert len(list(tmp_path.iterdir())) == 3


def test_every_flipped_bit_is_found(built, matrix):
    """Before faiss sees a byte: it may crash on such a file."""
    files = sorted(built.iterdir())
    sizes = [file.stat().st_size for file in files]
    for seed in range(200 + 10 * len(files)):
        rng = random.Random(seed)
        file = rng.choices(files, sizes)[0] if seed < 200 else files[seed % len(files)]
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with pytest.raises(IndexFileError, match="diptych index"):
            Approximate.open(built, matrix)
        file.write_bytes(whole)
    Approximate.open(built, matrix)


@pytest.mark.parametrize("change", [b"", b"x", None])
@pytest.mark.parametrize("kind", ["index", "queries", "approximate.json"])
def test_files_cut_short_longer_or_gone(built, matrix, kind, change):
    (file,) = built.glob(f"{kind}*")
    whole = file.read_bytes()
    if change is None:
        file.unlink()
    else:
        file.write_bytes(whole + change if change else whole[:-1])
    with pytest.raises(IndexFileError, match="diptych index"):
        Approximate.open(built, matrix)
    file.write_bytes(whole)
    Approximate.open(built, matrix)


def test_what_cannot_be(tmp_path, built, matrix):
    for queries, target in ((TEXTS[:1], 0.9), (TEXTS, 0.0), (TEXTS, 1.1), (TEXTS[:, :5], 0.9)):
        with pytest.raises(ConfigError):
            Approximate.build(tmp_path, matrix, queries=queries, recall=target)
    empty = Matrix.of(np.empty(0, np.int64), np.empty((0, E), np.float16))
    with pytest.raises(ConfigError):
        Approximate.build(tmp_path, empty, queries=TEXTS)
    index = Approximate.open(built, matrix)
    for wrong in ({"k": 0}, {"k": 3, "where": np.ones(5, bool)}):
        with pytest.raises(ConfigError):
            index.topk(TEXTS, **wrong)
    assert not list(tmp_path.iterdir())


def test_without_faiss(built, matrix, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"diptych\[search\]"):
        Approximate.open(built, matrix)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """20 kills of a loop of builds of matrix and index: each is whole, and they may not match."""
    rng = random.Random(0)
    matches = 0
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, HERE / "rebuilding.py", "approximate", tmp_path],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        child.stdout.readline()  # one build is done
        try:
            child.wait(rng.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()
        matrix = Matrix.open(tmp_path / "matrix")
        _, rows = contents(matrix.meta["turn"])
        np.testing.assert_array_equal(matrix.vectors, rows)
        other = contents(1 - matrix.meta["turn"])
        matching = []
        for some in (matrix, Matrix.of(*other)):
            try:
                index = Approximate.open(tmp_path / "index", some)
            except IndexFileError as error:
                assert "other rows" in str(error)
                continue
            matching.append(some)
            assert index.topk(rows[:5].astype(np.float32), 3)[1].shape == (5, 3)
        assert len(matching) == 1
        matches += matching[0] is matrix
    assert matches > 0
    approximate(tmp_path, 0)
    assert len(list((tmp_path / "index").iterdir())) == 3
