"""Vector files: the three formats read back, nothing half-written."""

import json

import numpy as np
import pytest

from diptych.engine.vectors import write_vectors
from diptych.errors import CheckpointError, ConfigError

ROWS = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
KEYS = [f"photo {i}.jpg" for i in range(7)]


def batches():
    yield KEYS[:4], ROWS[:4]
    yield [], ROWS[:0]
    yield KEYS[4:], ROWS[4:]


def write(path):
    return write_vectors(path, batches(), embed_dim=5, meta={"fingerprint": "abc"})


def test_npz(tmp_path):
    assert write(tmp_path / "v.npz") == 7
    with np.load(tmp_path / "v.npz") as found:
        np.testing.assert_array_equal(found["vectors"], ROWS)
        assert found["keys"].tolist() == KEYS
        assert json.loads(found["meta"].item()) == {"fingerprint": "abc"}


def test_npy_and_what_stands_beside_it(tmp_path):
    write(tmp_path / "v.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy", mmap_mode="r"), ROWS)
    beside = json.loads((tmp_path / "v.json").read_text())
    assert beside == {"keys": KEYS, "meta": {"fingerprint": "abc"}}


def test_parquet(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["key"].to_pylist() == KEYS
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), ROWS)
    assert json.loads(table.schema.metadata[b"diptych"]) == {"fingerprint": "abc"}


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_a_failure_half_way_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"the old one")

    def failing():
        yield KEYS[:4], ROWS[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vectors(path, failing(), embed_dim=5, meta={})
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_rows_no_file(tmp_path):
    assert write_vectors(tmp_path / "v.npz", iter(()), embed_dim=5, meta={}) == 0
    assert not list(tmp_path.iterdir())


def test_an_unknown_ending_or_a_folder_that_cannot_be_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"\.npy, \.npz, \.parquet"):
        write(tmp_path / "v.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "file" / "v.npz")
