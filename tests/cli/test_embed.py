"""`diptych embed`: images or texts to npz, npy and Parquet, and shards to folders."""

import io
import json
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

import diptych


@pytest.mark.parametrize("suffix", ["npz", "npy", "parquet"])
def test_images(run, model, photos, tmp_path, suffix):
    out = tmp_path / f"v.{suffix}"
    ran = run("embed", photos, "--out", out, "--model", model)
    assert ran.code == 0
    paths = [str(p) for p in sorted(photos.iterdir())]
    expected = diptych.load(model).encode_image(paths)
    if suffix == "npz":
        with np.load(out) as found:
            keys, vectors, meta = found["keys"].tolist(), found["vectors"], found["meta"].item()
        assert json.loads(meta)["fingerprint"] == diptych.load(model).fingerprint
    elif suffix == "npy":
        keys, vectors = json.loads((tmp_path / "v.json").read_text())["keys"], np.load(out)
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        keys, vectors = table["key"].to_pylist(), np.array(table["vector"].to_pylist())
    assert keys == paths
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_texts(run, model, tmp_path):
    out = tmp_path / "t.npz"
    ran = run("embed", "--texts", "a cat,a dog", "--text", "a, b", "--out", out, "--model", model)
    assert ran.code == 0
    with np.load(out) as found:
        assert found["keys"].tolist() == ["a cat", "a dog", "a, b"]
        expected = diptych.load(model).encode_text(found["keys"].tolist())
        np.testing.assert_allclose(found["vectors"], expected, atol=1e-6)


def test_failures_have_no_row(run, model, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"")
    ran = run("embed", photos, "--out", tmp_path / "v.npz", "--json", "--model", model)
    assert ran.code == 1
    assert [set(r) for r in ran.records] == [{"path", "error"}]
    with np.load(tmp_path / "v.npz") as found:
        assert len(found["keys"]) == 3


def test_nothing_done_writes_nothing(run, model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    ran = run("embed", tmp_path / "broken.png", "--out", tmp_path / "v.npz", "--model", model)
    assert ran.code == 2
    assert not (tmp_path / "v.npz").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["x.jpg", "--out", "v.csv"], "the ending says the format"),
        (["--out", "v.npz"], "one of the two"),
        (["x.jpg", "--text", "a", "--out", "v.npz"], "one of the two"),
        (["x.jpg"], "Missing option '--out'"),
    ],
)
def test_wrong_use(run, model, args, message):
    ran = run("embed", *args, "--model", model)
    assert ran.code == 2
    assert message in ran.err


# --- shards ---


@pytest.fixture
def shards(photos, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        with tarfile.open(tmp_path / "data" / f"{i}.tar", "w") as tar:
            for path in sorted(photos.iterdir()):
                tar.add(path, f"{i}-{path.name}")
    return tmp_path / "data"


def bulk(out):
    """key -> vector, of all folders"""
    pq = pytest.importorskip("pyarrow.parquet")
    found = {}
    for folder in out.iterdir():
        keys = pq.read_table(folder / "rows.parquet")["key"].to_pylist()
        found |= dict(zip(keys, np.load(folder / "vectors.npy"), strict=True))
    return found


@pytest.mark.parametrize("given", ["", "*.tar"])
def test_shards(run, model, shards, photos, tmp_path, given):
    out = tmp_path / "out"
    ran = run("embed", shards / given, "--out", out, "--model", model, "--json")
    assert ran.code == 0
    assert [(r["state"], r["rows"], r["errors"]) for r in ran.records] == [("done", 3, 0)] * 3
    assert [r["path"] for r in ran.records] == [str(shards / f"{i}.tar") for i in range(3)]
    found = bulk(out)
    expected = diptych.load(model).encode_image(photos / "a.jpg")[0]
    assert len(found) == 9
    np.testing.assert_allclose(found["2-a"], expected, atol=1e-3)
    ran = run("embed", shards / given, "--out", out, "--model", model, "--json")
    assert ran.code == 0
    assert [r["state"] for r in ran.records] == ["known"] * 3


def test_shards_with_failures(run, model, shards, tmp_path):
    (shards / "3.tar").write_bytes(b"no tar")
    with tarfile.open(shards / "4.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("empty.jpg"), io.BytesIO())
    ran = run("embed", shards, "--out", tmp_path / "out", "--model", model)
    assert ran.code == 1
    assert "9 vectors of 5 shards, 2 samples" in ran.err
    assert "4.tar: 1 samples without a vector or damages, see" in ran.err
    ran = run(
        "embed", shards / "3.tar", shards / "4.tar", "--out", tmp_path / "b", "--model", model
    )
    assert ran.code == 2
    missing = ["embed", shards / "gone.tar", shards / "0.tar", "--out", tmp_path / "c"]
    ran = run(*missing, "--model", model, "--json")
    assert ran.code == 1
    assert "Check the path" in ran.records[0]["error"] + ran.records[1].get("error", "")


def test_shards_again_with_retry(run, model, shards, tmp_path):
    with tarfile.open(shards / "4.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("empty.jpg"), io.BytesIO())
    rest = ["--out", tmp_path / "out", "--model", model, "--json"]
    run("embed", shards, *rest)
    ran = run("embed", shards, *rest, "--retry-failed")
    assert ran.code == 1
    assert sorted(r["state"] for r in ran.records) == ["done"] + ["known"] * 3


def test_shards_of_another_model(run, model, shards, tmp_path):
    run("embed", shards, "--out", tmp_path / "out", "--model", model)
    ran = run("embed", shards, "--out", tmp_path / "out", "--model", model, "--mode", "original")
    assert ran.code == 2
    assert "Give another --out" in ran.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data/0.tar", "--out", "v.npz"], "is a shard: --out must be a folder"),
        (["photos", "--out", "v.npz", "--workers", "2"], "are for shards"),
        (["photos", "--out", "photos"], "Give a file: .npz"),
        (["photos/*.jpeg", "--out", "out"], "no shards there"),
        (["photos/*.jpg", "--out", "out"], "a.jpg: is not a shard"),
    ],
)
def test_wrong_use_of_shards(run, model, shards, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    ran = run("embed", *args, "--model", model)
    assert ran.code == 2
    assert message in ran.err


def test_sigterm_gives_the_lease_back(model, shards, tmp_path):
    """The scheduler's way to end a job: who comes next does not wait for the lease."""
    with tarfile.open(shards / "0.tar", "w") as tar:
        for i in range(4000):
            tar.add(shards.parent / "photos" / "b.png", f"{i}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diptych.cli.main", "embed", str(shards / "0.tar")]
    child = subprocess.Popen([*command, "--out", str(out), "--model", model])
    try:
        deadline = time.monotonic() + 60
        while not any(out.glob(".leases/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        child.terminate()
        assert child.wait(60) == 143
    finally:
        child.kill()
    assert [path for path in out.rglob("*") if path.name != ".leases"] == []


@pytest.mark.slow
def test_shards_by_two_processes(run, model, shards, tmp_path):
    ran = run(
        "embed", shards, "--out", tmp_path / "out", "--model", model, "--workers", 2, "--json"
    )
    assert ran.code == 0
    assert sorted(r["path"] for r in ran.records) == [str(shards / f"{i}.tar") for i in range(3)]
    assert len(bulk(tmp_path / "out")) == 9
