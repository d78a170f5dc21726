"""The mapped matrix: equal to what was put in, whole after any kill, refused after any flip."""

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from rebuilding import E, build, contents

from diptych.engine.topk import topk
from diptych.errors import CheckpointError, ConfigError, IndexFileError
from diptych.search.matrix import Matrix

HERE = Path(__file__).parent


def same_as(matrix: Matrix, turn: int) -> None:
    ids, rows = contents(turn)
    np.testing.assert_array_equal(matrix.ids, ids)
    np.testing.assert_array_equal(matrix.vectors, rows)
    assert (matrix.num_vectors, matrix.meta["turn"]) == (len(ids), turn)
    matrix.verify()


def test_what_was_put_in(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.cumsum(rng.integers(1, 5, 70_000))
    rows = rng.standard_normal((70_000, 24)).astype(np.float16)
    rows[40_000, 3] = np.nan
    cuts = [0, 1, 1, 30_000, 69_999, 70_000]
    blocks = [(ids[a:b], rows[a:b]) for a, b in itertools.pairwise(cuts)]
    meta = {"fingerprint": "f" * 64, "generation": 7}
    built = Matrix.build(tmp_path / "m", iter(blocks), embed_dim=24, meta=meta)
    queries = rng.standard_normal((3, 24)).astype(np.float32)
    where = rng.random(70_000) < 0.3
    expected, few = topk(rows, queries, 20), topk(rows[where], queries, 20)
    for matrix in (built, Matrix.open(tmp_path / "m"), Matrix.of(ids, rows)):
        np.testing.assert_array_equal(matrix.ids, ids)
        np.testing.assert_array_equal(matrix.vectors, rows)
        for found, right in zip(matrix.topk(queries, 20), expected, strict=True):
            np.testing.assert_array_equal(found, right)
        scores, found = matrix.topk(queries, 20, where=where)
        np.testing.assert_array_equal(scores, few[0])
        np.testing.assert_array_equal(found, np.flatnonzero(where)[few[1]])
        query = queries[0] / np.linalg.norm(queries[0])
        near = np.abs(matrix.scores(query) - rows.astype(np.float64) @ query) <= matrix.bound
        assert near.sum() == 69_999
        assert matrix.digest() == built.digest()
        assert matrix.digest(30_011) == Matrix.of(ids[:30_011], rows[:30_011]).digest()
    assert (built.meta, Matrix.open(tmp_path / "m").meta) == (meta, meta)


def test_no_rows(tmp_path):
    Matrix.build(tmp_path, [], embed_dim=24, meta={})
    matrix = Matrix.open(tmp_path)
    assert (matrix.num_vectors, matrix.ids.dtype) == (0, np.int64)
    assert matrix.vectors.shape == (0, 24)
    assert matrix.topk(np.zeros((1, 24), np.float32), 5)[1].shape == (1, 0)
    assert matrix.scores(np.zeros(24, np.float32)).shape == (0,)
    matrix.verify()


def test_who_has_the_old_one_mapped_goes_on(tmp_path):
    old = build(tmp_path, 0)
    build(tmp_path, 1)
    same_as(Matrix.open(tmp_path), 1)
    assert len(list(tmp_path.iterdir())) == 6
    same_as(old, 0)


def test_a_reader_among_builds(tmp_path):
    build(tmp_path, 0)
    stop, errors, seen = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                matrix = Matrix.open(tmp_path)
                seen.append(matrix.meta["turn"])
                same_as(matrix, matrix.meta["turn"])
            except Exception as error:  # noqa: BLE001
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(30):
        build(tmp_path, turn)
    stop.set()
    reader.join()
    assert not errors
    assert len(set(seen)) > 3


def test_leftovers_of_dead_builds_go(tmp_path):
    build(tmp_path, 0)
    dead = [f"rows-{'a' * 32}", f".codes-{'b' * 32}.{'c' * 32}.tmp", f".matrix.json.{'d' * 32}.tmp"]
    for name in (*dead, "rows-of-mine", "notes.txt"):
        (tmp_path / name).write_text("x")
    build(tmp_path, 1)
    left = {file.name for file in tmp_path.iterdir()}
    assert not left & set(dead)
    assert {"rows-of-mine", "notes.txt"} < left
    same_as(Matrix.open(tmp_path), 1)


@pytest.mark.parametrize("fault", ["type", "width", "ids", "ids between blocks", "iterator"])
def test_a_wrong_block_leaves_the_old_one(tmp_path, fault):
    build(tmp_path, 0)

    def blocks():
        ids, rows = contents(1)
        yield ids[:1000], rows[:1000]
        match fault:
            case "type":
                yield ids[1000:], rows[1000:].astype(np.float32)
            case "width":
                yield ids[1000:], rows[1000:, :-1]
            case "ids":
                yield ids[:0:-1] + 9999, rows[1:]
            case "ids between blocks":
                yield ids[500:], rows[500:]
            case "iterator":
                raise KeyError("of the caller")

    with pytest.raises(KeyError if fault == "iterator" else ConfigError):
        Matrix.build(tmp_path, blocks(), embed_dim=E, meta={})
    assert len(list(tmp_path.iterdir())) == 6
    same_as(Matrix.open(tmp_path), 0)


def test_a_full_disk_leaves_the_old_one(tmp_path):
    build(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 1000, 20_000, 60_000, 150_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(CheckpointError):
                build(tmp_path, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        same_as(Matrix.open(tmp_path), 0)
    build(tmp_path, 1)
    same_as(Matrix.open(tmp_path), 1)
    assert len(list(tmp_path.iterdir())) == 6


def test_every_flipped_bit_is_found(tmp_path):
    """200 seeds over all bytes, and 10 in each file: some are small."""
    build(tmp_path, 0)
    files = sorted(tmp_path.iterdir())
    sizes = [file.stat().st_size for file in files]
    for seed in range(200 + 10 * len(files)):
        rng = random.Random(seed)
        file = rng.choices(files, sizes)[0] if seed < 200 else files[seed % len(files)]
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        whole = file.read_bytes()
        file.write_bytes(data)
        with pytest.raises(IndexFileError, match="diptych index"):
            Matrix.open(tmp_path).verify()
        file.write_bytes(whole)
    same_as(Matrix.open(tmp_path), 0)


def test_a_damaged_row_is_never_an_answer(tmp_path):
    """It lies in a file that opening does not read: the search that needs the row says so."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((40_000, 16)).astype(np.float16)
    rows[777] *= 4
    Matrix.build(tmp_path, [(np.arange(40_000), rows)], embed_dim=16, meta={})
    (file,) = tmp_path.glob("rows-*")
    data = bytearray(file.read_bytes())
    data[777 * 32 + 1] ^= 1
    file.write_bytes(data)
    matrix = Matrix.open(tmp_path)
    queries = rows[[777]].astype(np.float32)
    for _ in range(2):
        with pytest.raises(IndexFileError, match="rows-"):
            matrix.topk(queries, 3)
    elsewhere = np.arange(40_000) // 64 != 777 // 64
    assert matrix.topk(queries, 3, where=elsewhere)[0].shape == (1, 3)


@pytest.mark.parametrize("change", [-1, 1, None])
@pytest.mark.parametrize("kind", ["rows", "codes", "ids", "blocks", "sums", "matrix.json"])
def test_files_cut_short_longer_or_gone(tmp_path, kind, change):
    build(tmp_path, 0)
    (file,) = tmp_path.glob(f"{kind}*")
    data = file.read_bytes()
    if change is None:
        file.unlink()
    else:
        file.write_bytes(data[:-1] if change < 0 else data + b"x")
    with pytest.raises(IndexFileError, match="diptych index"):
        Matrix.open(tmp_path)
    build(tmp_path, 1)
    same_as(Matrix.open(tmp_path), 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "\udcff", '{"body": 3}', "[" * 5000])
def test_what_is_no_manifest(tmp_path, text):
    with pytest.raises(IndexFileError):
        Matrix.open(tmp_path)
    (tmp_path / "matrix.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(IndexFileError):
        Matrix.open(tmp_path)


def test_another_version(tmp_path):
    from diptych.search.derived import write_manifest

    build(tmp_path, 0)
    body = json.loads((tmp_path / "matrix.json").read_text())["body"]
    write_manifest(tmp_path / "matrix.json", {**body, "version": 99})
    with pytest.raises(IndexFileError, match="99"):
        Matrix.open(tmp_path)


def test_rows_in_memory_are_checked():
    ids, rows = np.arange(5), np.zeros((5, 4), np.float16)
    for wrong in ((ids[:4], rows), (ids.astype(np.int32), rows), (ids[::-1], rows)):
        with pytest.raises(ConfigError):
            Matrix.of(*wrong)
    with pytest.raises(ConfigError):
        Matrix.of(ids, rows.astype(np.float32))


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """40 kills of a loop of builds: what is there is one build, whole, and the next one cleans."""
    rng = random.Random(0)
    turns = set()
    for _ in range(40):
        child = subprocess.Popen(
            [sys.executable, HERE / "rebuilding.py", "matrix", tmp_path],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        child.stdout.readline()  # one build is done
        try:
            child.wait(rng.uniform(0, 0.15))
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()
        matrix = Matrix.open(tmp_path)
        turns.add(matrix.meta["turn"])
        same_as(matrix, matrix.meta["turn"])
    assert len(turns) > 3
    build(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 6
