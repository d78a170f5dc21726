"""`diptych embed`: images or texts to npz, npy and Parquet."""

import json

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
