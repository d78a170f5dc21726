"""Vectors of other tools: read as they wrote them, tested for the model, never believed."""

import hashlib
import json
import os
import sqlite3
from collections import Counter

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from diptych.engine.bulk import expand, plan, work
from diptych.errors import CollectionError, ConfigError
from diptych.search.importing import (
    check_model,
    read_bulk,
    read_clip_retrieval,
    read_rclip,
    usable,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"{i:02}.png" for i in range(40)]
    for i, path in enumerate(paths):
        picture(i, (60, 50)).save(path)
    return paths


@pytest.fixture
def turned(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "photos" / "turned.jpg"
    picture(99, (60, 50)).convert("RGB").save(path, exif=exif)
    return path


def flat(batches):
    rows = []
    for some, vectors in batches:
        assert vectors.dtype == np.float32
        assert vectors.shape[0] == len(some)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        for row, vector in zip(some, vectors, strict=True):
            assert (row.vector == vector).all()
        rows += some
    return rows


# --- clip-retrieval ---


def clip_retrieval(folder, parts, *, dtype=np.float16, digits=1):
    """As clip_retrieval_inference/writer.py, NumpyWriter, lays it out."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, (paths, vectors) in enumerate(parts):
        part = str(number).zfill(digits)
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", np.asarray(vectors, dtype))
        records = [
            {"image_path": str(p), "caption": f"a {p}", "key": f"{i:05}", "url": "http://x/y"}
            for i, p in enumerate(paths)
        ]
        path = folder / "metadata" / f"metadata_{part}.parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
    return folder


@pytest.fixture
def retrieved(tmp_path, files, encoder):
    vectors = encoder.encode_image(files)
    parts = [(files[:25], vectors[:25]), (files[25:], vectors[25:])]
    return clip_retrieval(tmp_path / "cr", parts, digits=2), vectors


def test_clip_retrieval(retrieved, files, encoder):
    folder, vectors = retrieved
    rows = flat(read_clip_retrieval(folder))
    assert [row.path for row in rows] == [str(path) for path in files]
    np.testing.assert_allclose([row.vector for row in rows], vectors, atol=1e-3)
    assert rows[30].meta == {"caption": f"a {files[30]}", "key": "00005", "url": "http://x/y"}
    check = check_model(encoder, usable(read_clip_retrieval(folder)), source=str(folder))
    assert check.num_files == 32
    assert check.median > 0.9999


def test_parts_come_in_the_order_of_their_numbers(tmp_path, encoder):
    e = encoder.config.embed_dim
    parts = [([f"{i}.png"], np.eye(1, e)) for i in range(12)]
    folder = clip_retrieval(tmp_path / "cr", parts)
    rows = flat(read_clip_retrieval(folder, base="/photos"))
    assert [row.path for row in rows] == [f"/photos/{i}.png" for i in range(12)]


def test_vectors_of_another_model_are_refused(retrieved, other_encoder):
    folder, _ = retrieved
    with pytest.raises(ConfigError, match=r"over 32 files the median cosine to ours is -?0\.\d{4}"):
        check_model(other_encoder, usable(read_clip_retrieval(folder)), source=str(folder))


def test_half_of_another_model_is_refused(tmp_path, files, encoder, other_encoder):
    ours, theirs = encoder.encode_image(files[:10]), other_encoder.encode_image(files[10:])
    folder = clip_retrieval(tmp_path / "cr", [(files, np.concatenate([ours, theirs]))])
    with pytest.raises(ConfigError, match="are another model's"):
        check_model(encoder, usable(read_clip_retrieval(folder)), source="it")


def test_another_dimension_and_no_files(tmp_path, files, encoder):
    folder = clip_retrieval(tmp_path / "cr", [(files, np.ones((40, 7)))])
    with pytest.raises(ConfigError, match="vectors have 7 numbers, this model's"):
        check_model(encoder, read_clip_retrieval(folder), source="it")
    vectors = np.ones((3, encoder.config.embed_dim))
    folder = clip_retrieval(tmp_path / "gone", [(["a", "b", "c"], vectors)])
    for batches in (read_clip_retrieval(folder), usable(read_clip_retrieval(folder))):
        with pytest.raises(ConfigError, match="none of its files is here"):
            check_model(encoder, batches, source="it")


def test_rows_that_are_no_vectors_are_counted(tmp_path, files, encoder):
    vectors = np.ones((40, encoder.config.embed_dim), np.float32)
    vectors[3], vectors[5, 1], vectors[7, 0] = 0, np.nan, np.inf
    folder = clip_retrieval(tmp_path / "cr", [(files, vectors)], dtype=np.float32)
    skipped = Counter()
    assert len(flat(read_clip_retrieval(folder, skipped=skipped))) == 37
    assert skipped == {"not a vector": 3}


def test_turned_missing_and_broken_files_are_embedded_anew(tmp_path, files, turned, encoder):
    (files[0].parent / "broken.png").write_bytes(b"no")
    paths = [files[0], turned, files[0].parent / "broken.png", "gone.png", "a\0b"]
    vectors = np.ones((5, encoder.config.embed_dim))
    folder = clip_retrieval(tmp_path / "cr", [(paths, vectors)])
    skipped = Counter()
    rows = flat(usable(read_clip_retrieval(folder), skipped=skipped))
    assert [row.path for row in rows] == [str(files[0])]
    assert skipped == {"turned": 1, "no image": 1, "missing": 2}


@pytest.mark.parametrize(
    "damage", ["short", "pickle", "ints", "rows", "partner", "parquet", "flat"]
)
def test_damaged_folders_are_refused(retrieved, files, damage):
    folder, vectors = retrieved
    array, table = folder / "img_emb/img_emb_01.npy", folder / "metadata/metadata_01.parquet"
    match damage:
        case "short":
            os.truncate(array, array.stat().st_size - 1)
        case "pickle":
            np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "ints":
            np.save(array, np.ones((15, 24), np.int64))
        case "flat":
            np.save(array, np.ones(15, np.float32))
        case "rows":
            np.save(array, vectors[:14])
        case "partner":
            table.unlink()
        case "parquet":
            table.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(CollectionError, match=r"(again|this part)\."):
        flat(read_clip_retrieval(folder))


def test_no_such_folder(tmp_path):
    with pytest.raises(CollectionError, match="--output_folder"):
        flat(read_clip_retrieval(tmp_path / "gone"))


# --- rclip ---

# rclip 3.3.0, db.py: what `ensure_tables` and the migrations to version 4 make
RCLIP = """
CREATE TABLE images (id INTEGER PRIMARY KEY, deleted BOOLEAN, filepath TEXT NOT NULL UNIQUE,
  modified_at DATETIME NOT NULL, size INTEGER NOT NULL, vector BLOB NOT NULL);
CREATE UNIQUE INDEX existing_images ON images(filepath) WHERE deleted IS NULL;
CREATE TABLE db_version (version INTEGER);
ALTER TABLE images ADD COLUMN indexing BOOLEAN;
ALTER TABLE images ADD COLUMN hash TEXT;
CREATE INDEX hash_index ON images(hash) WHERE deleted IS NULL;
INSERT INTO db_version(version) VALUES (4);
"""


class ByItsSchema:
    """Writes what rclip's `DB.upsert_image` writes."""

    def __init__(self, path):
        self.db = sqlite3.connect(path)
        self.db.executescript(RCLIP)

    def upsert_image(self, image):
        row = {"deleted": None, **image}
        self.db.execute(
            "INSERT INTO images(deleted, filepath, modified_at, size, vector, hash) "
            "VALUES (:deleted, :filepath, :modified_at, :size, :vector, :hash)",
            row,
        )

    def close(self):
        self.db.commit()
        self.db.close()


@pytest.fixture(params=["schema", "rclip"])
def rclip(request, tmp_path, files, turned, encoder):
    """A database of 42 files: one of them deleted, one turned; and its vectors."""
    path = tmp_path / "db.sqlite3"
    if request.param == "rclip":
        db = pytest.importorskip("rclip.db").DB(path)
    else:
        db = ByItsSchema(path)
    files = [*files, turned, tmp_path / "deleted.png"]
    picture(50, (60, 50)).save(files[-1])
    vectors = encoder.encode_image(files)
    for file, vector in zip(files, vectors, strict=True):
        image = {"filepath": str(file), "modified_at": file.stat().st_mtime, "hash": "0" * 64}
        image |= {"size": file.stat().st_size, "vector": vector.tobytes()}
        db.upsert_image(image | ({"deleted": True} if file == files[-1] else {}))
    db.close()
    return path, files, vectors


def test_rclip(rclip, encoder):
    path, files, vectors = rclip
    before, skipped = path.read_bytes(), Counter()
    rows = flat(read_rclip(path, skipped=skipped))
    assert [row.path for row in rows] == [str(file) for file in files[:-1]]
    np.testing.assert_allclose([row.vector for row in rows], vectors[:-1], atol=1e-6)
    assert rows[0].size == files[0].stat().st_size
    assert rows[0].mtime == files[0].stat().st_mtime
    assert skipped == {"deleted or damaged": 1}
    picture(60, (60, 50)).save(files[0])  # another picture since
    os.utime(files[1], (0, 0))
    skipped = Counter()
    kept = flat(usable(read_rclip(path), skipped=skipped))
    assert [row.path for row in kept] == [str(file) for file in files[2:-2]]
    assert skipped == {"changed": 2, "turned": 1}
    assert check_model(encoder, usable(read_rclip(path)), source="rclip").lowest > 0.9999
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {"db.sqlite3", "photos", "deleted.png"}


def test_rclip_beside_a_process_that_writes(rclip, encoder):
    path, files, _ = rclip
    with sqlite3.connect(path) as writer:
        writer.execute(
            "INSERT INTO images(filepath, modified_at, size, vector) VALUES ('x',1,1,'')"
        )
        assert len(flat(read_rclip(path))) == len(files) - 1
        writer.rollback()
    writer.close()


def test_damaged_rows_of_rclip_are_counted(tmp_path, encoder):
    db = ByItsSchema(tmp_path / "db.sqlite3")
    e = encoder.config.embed_dim
    good = np.ones(e, np.float32).tobytes()
    vectors = [good, b"", b"xyz", good[:-4], "text", good * 100_000, np.zeros(e, "<f4").tobytes()]
    for i, vector in enumerate(vectors):
        row = {"filepath": f"{i}", "modified_at": "then", "size": 1, "vector": vector, "hash": None}
        db.upsert_image(row)
    db.close()
    skipped = Counter()
    rows = flat(read_rclip(tmp_path / "db.sqlite3", skipped=skipped))
    assert [(row.path, row.size, row.mtime) for row in rows] == [("0", None, None)]
    assert skipped == {"deleted or damaged": 4, "of another length": 1, "not a vector": 1}


def test_no_database_of_rclip(tmp_path):
    (tmp_path / "x").write_bytes(b"not a database" * 100)
    sqlite3.connect(tmp_path / "empty").close()
    for name, message in (("gone", "no such file"), ("x", "cannot be read"), ("empty", "cannot")):
        with pytest.raises(CollectionError, match=message):
            flat(read_rclip(tmp_path / name))


# --- our own ---


@pytest.fixture
def bulk(tmp_path, files, turned, encoder):
    (tmp_path / "photos" / "list.txt").write_text("\n".join(p.name for p in [*files, turned]))
    work(plan(expand([tmp_path / "photos/list.txt"]), tmp_path / "out"), encoder, model="tiny")
    return tmp_path / "out"


def test_bulk(bulk, files, turned, encoder):
    rows = flat(read_bulk(bulk, fingerprint=encoder.fingerprint))
    assert [row.path for row in rows] == [str(path) for path in [*files, turned]]
    assert rows[4].sha256 == hashlib.sha256(files[4].read_bytes()).hexdigest()
    assert rows[4].meta == {"caption": None, "width": 60, "height": 50}
    assert rows[-1].meta["width"] == 50
    assert len(flat(usable(read_bulk(bulk), turned=True))) == 41
    assert check_model(encoder, usable(read_bulk(bulk), turned=True), source="bulk").lowest > 0.9999


def test_bulk_that_is_not_ours_to_read(bulk, other_encoder):
    with pytest.raises(ConfigError, match="holds vectors of tiny"):
        flat(read_bulk(bulk, fingerprint=other_encoder.fingerprint))
    (folder,) = bulk.iterdir()
    with (folder / "vectors.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CollectionError, match=r"vectors\.npy: is damaged"):
        flat(read_bulk(bulk))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"../x": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CollectionError, match="is damaged"):
        flat(read_bulk(bulk))
    with pytest.raises(CollectionError, match="no finished shards"):
        flat(read_bulk(folder))
