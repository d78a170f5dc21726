"""`diptych index --from-...`: vectors of shards and of other tools, found like any other."""

import io
import json
import shutil
import sqlite3
import tarfile

import numpy as np
import pytest
from PIL import Image

import diptych

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC)


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"0000{shard}.tar", "w") as tar:
            for i in range(15):
                for name, data in (
                    (f"{shard}{i:03}.png", encoded(picture(100 * shard + i))),
                    (f"{shard}{i:03}.txt", f"caption {i}".encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def test_from_shards(run, model, shards, tmp_path):
    out = tmp_path / "vectors"
    assert run("embed", shards, "--out", out, "--model", model, "--workers", "1").code == 0
    ran = run("index", "--from-shards", out, "--model", model, "--json")
    assert ran.code == 0
    assert (ran.records[-1]["added"], ran.records[-1]["skipped"]) == (30, {})
    asked = tmp_path / "asked.png"
    picture(103).save(asked)
    page = tmp_path / "found.html"
    ran = run("search", asked, "--json", "--top", 1, "--html", page)
    (hit,) = ran.records
    assert hit["path"] == f"{shards / '00001.tar'}!1003"
    assert hit["score"] == pytest.approx(1, abs=2e-3)
    assert page.read_text().count("<img") == 2  # what was asked with, and the sample in the shard
    again = run("index", "--from-shards", out, "--model", model, "--json").records[-1]
    assert again["added"] == 0
    assert run("index", "--status", "--json").records[0]["models"][0]["vectors"] == 30


def test_the_same_file_is_known_whoever_encoded_it(run, model, shards, tmp_path):
    """A sample of a shard and a file with the same bytes are one content."""
    out = tmp_path / "vectors"
    run("embed", shards, "--out", out, "--model", model, "--workers", "1")
    run("index", "--from-shards", out, "--model", model)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "same.png").write_bytes(encoded(picture(3)))
    ran = run("index", tmp_path / "more", "--json")
    assert ran.records[0]["state"] == "known"


@pytest.fixture
def clip_retrieval(photos, model, tmp_path):
    """The layout of `clip-retrieval inference`, for the pictures of `photos`."""
    folder = tmp_path / "theirs"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    paths = sorted(str(path) for path in photos.iterdir())
    vectors = diptych.load(model).encode_image(paths)
    np.save(folder / "img_emb" / "img_emb_0.npy", vectors.astype(np.float16))
    table = pa.table({"image_path": paths})
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    return folder


def test_from_clip_retrieval(run, model, clip_retrieval, photos):
    ran = run("index", "--from-clip-retrieval", clip_retrieval, "--model", model)
    assert ran.code == 0
    assert "3 files encoded again: cosine 1.0000 in the median" in ran.err
    assert "3 vectors imported" in ran.out
    ran = run("index", photos, "--json")  # nothing of them is encoded again
    assert (ran.records[-1]["added"], ran.records[-1]["files"]) == (0, 3)
    assert ran.records[-1]["missing"] == 0


def test_vectors_of_another_model_are_refused(run, clip_retrieval, tmp_path):
    from diptych.config import CLIPConfig, TextConfig, ViTConfig

    config = CLIPConfig(
        embed_dim=24,
        visual=ViTConfig(
            image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128
        ),
        text=TextConfig(
            context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128
        ),
    )
    other = tmp_path / "other.safetensors"
    diptych.zoo.save(diptych.build(config, seed=5), other)
    ran = run("index", "--from-clip-retrieval", clip_retrieval, "--model", other)
    assert ran.code == 2
    assert "cosine" in ran.err
    assert run("search", "x").code == 2  # nothing was taken in


def test_from_rclip(run, model, photos, tmp_path):
    """rclip 3.3.0's table, as its db.py makes it."""
    database = tmp_path / "db.sqlite3"
    paths = sorted(photos.iterdir())
    vectors = diptych.load(model).encode_image(list(paths))
    with sqlite3.connect(database) as db:
        db.execute(
            "CREATE TABLE images (id INTEGER PRIMARY KEY, deleted BOOLEAN, filepath TEXT NOT NULL "
            "UNIQUE, modified_at DATETIME NOT NULL, size INTEGER NOT NULL, vector BLOB NOT NULL, "
            "indexing BOOLEAN, hash TEXT)"
        )
        for path, vector in zip(paths, vectors, strict=True):
            stat = path.stat()
            row = (None, str(path), stat.st_mtime, stat.st_size, vector.tobytes(), None, None)
            db.execute(
                "INSERT INTO images (deleted, filepath, modified_at, size, vector, indexing, hash) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
    paths[0].write_bytes(paths[0].read_bytes() + b" ")  # changed since
    ran = run("index", "--from-rclip", database, "--model", model, "--json")
    assert ran.code == 0
    assert (ran.records[-1]["added"], ran.records[-1]["skipped"]) == (2, {"changed": 1})


def test_wrong_use(run, model, clip_retrieval, photos, tmp_path):
    ran = run("index", photos, "--from-clip-retrieval", clip_retrieval, "--model", model)
    assert ran.code == 2
    assert "takes no FOLDERS" in ran.err
    (tmp_path / "empty").mkdir()
    ran = run("index", "--from-shards", tmp_path / "empty", "--model", model)
    assert ran.code == 2
    assert "no finished shards there" in ran.err
    shutil.rmtree(clip_retrieval / "metadata")
    ran = run("index", "--from-clip-retrieval", clip_retrieval, "--model", model)
    assert ran.code == 2
    assert json.dumps("metadata_0.parquet")[1:-1] in ran.err
