"""Indexing: each file's vector is its own, whatever was copied, moved, replaced or damaged."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from diptych.errors import CollectionBusyError, CollectionError
from diptych.search.indexing import update
from diptych.search.records import Root
from diptych.search.store import Store


def close(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) > 0.9999  # one is rounded


def test_vectors_are_the_encoders(index, vectors, library, encoder):
    outcome, told = index()
    assert (outcome.added, outcome.failed, outcome.found.num_files) == (8, 0, 8)
    assert {done.state for done in told.values()} == {"added"}
    found = vectors()
    assert sorted(found) == sorted(str(p) for p in library.rglob("*.png"))
    for path, vector in found.items():
        np.testing.assert_allclose(vector, encoder.encode_image(path)[0], atol=5e-4)


def test_a_second_run_reads_nothing(index, monkeypatch):
    index()
    monkeypatch.setattr("diptych.search.indexing._bytes", None)  # would fail if called
    outcome, told = index()
    assert (outcome.added, outcome.known, told) == (0, 0, {})


def test_copied_moved_renamed_touched_keep_their_vector(
    index, vectors, library, encoder, monkeypatch
):
    index()
    before = vectors()
    shutil.copy(library / "0.png", library / "copy of 0.png")
    (library / "1.png").rename(library / "holiday" / "moved 1.png")
    (library / "2.png").rename(library / "renamed 2.png")
    os.utime(library / "3.png", (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(encoder.preprocess, "mode", "no decoding may happen", raising=True)
        patch.setattr(type(encoder), "run_image", None)
        outcome, told = index()
    assert (outcome.added, outcome.known, outcome.removed, outcome.purged) == (0, 4, 2, 0)
    assert {done.state for done in told.values()} == {"known"}
    after = vectors()
    pairs = {
        "0.png": "copy of 0.png", "1.png": "holiday/moved 1.png", "2.png": "renamed 2.png",
        "3.png": "3.png",
    }  # fmt: skip
    for old, new in pairs.items():
        np.testing.assert_array_equal(before[str(library / old)], after[str(library / new)])
    assert str(library / "1.png") not in after


@pytest.mark.parametrize("forged", [False, True])
def test_a_replaced_file_gets_a_new_vector(index, vectors, library, encoder, forged):
    path = library / "0.bmp"
    picture(20).save(path)
    index()
    before, stat = vectors()[str(path)], path.stat()
    picture(21).save(path)  # a BMP of the same size
    assert path.stat().st_size == stat.st_size
    if forged:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    outcome, _ = index()
    assert (outcome.added, outcome.purged) == (1, 1)
    assert close(vectors()[str(path)], encoder.encode_image(path)[0])
    assert not close(vectors()[str(path)], before)


def test_equal_in_size_and_first_megabyte(index, vectors, library, encoder):
    """rclip 3.3.0 takes such a pair of scans for one picture: it hashes 1 MiB and the last KiB."""
    width, height = 1000, 800
    for name, seed in (("scan a.tif", 30), ("scan b.tif", 31)):
        page = Image.new("RGB", (width, height), "white")
        page.paste(picture(seed, (width, 300)), (0, 450))
        page.save(library / name)
    a, b = ((library / name).read_bytes() for name in ("scan a.tif", "scan b.tif"))
    assert a != b
    assert (len(a), a[: 2**20], a[-1024:]) == (len(b), b[: 2**20], b[-1024:])
    index()
    found = vectors()
    for name in ("scan a.tif", "scan b.tif"):
        assert close(found[str(library / name)], encoder.encode_image(library / name)[0])
    assert not close(found[str(library / "scan a.tif")], found[str(library / "scan b.tif")])


def test_all_eight_orientations_are_one_picture(index, vectors, library):
    upright = picture(40, (64, 48))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for value in range(1, 9):
        stored = upright.transpose(turns[value]) if value > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = value
        stored.save(library / f"exif {value}.png", exif=exif)
    index()
    found = vectors()
    first = found[str(library / "exif 1.png")]
    for value in range(2, 9):
        assert close(found[str(library / f"exif {value}.png")], first), value


def test_copies_in_one_run_are_decoded_once(index, library, vectors):
    for i in range(5):
        shutil.copy(library / "0.png", library / f"again {i}.png")
    outcome, told = index()
    assert (outcome.added, outcome.known) == (8, 5)
    assert len(vectors()) == 13
    assert len(told) == 13


def test_a_damaged_file_is_named_and_tried_again_when_it_changes(index, library, store):
    good = (library / "0.png").read_bytes()
    bad = library / "cut.png"
    bad.write_bytes(good[:100])
    shutil.copy(bad, library / "a copy of it.png")
    outcome, told = index()
    assert (outcome.added, outcome.failed) == (8, 2)
    assert "cut short" in (told[str(library / "a copy of it.png")].error or "")
    assert told[str(bad)].state == "failed"
    assert sorted(path for path, _ in store.failures()) == sorted(
        [str(library / "a copy of it.png"), str(bad)]
    )
    assert index()[1] == {}  # not again
    assert set(index(retry_failed=True)[1]) >= {str(library / "a copy of it.png")}
    bad.write_bytes(good)
    outcome, told = index()
    assert told[str(bad)].state == "known"
    assert [path for path, _ in store.failures()] == [str(library / "a copy of it.png")]


def test_a_file_that_grows_while_it_is_read(index, library, monkeypatch):
    path = library / "growing.png"
    picture(50).save(path)
    real = os.fstat

    def fstat(descriptor):
        stat = real(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == path:
            with path.open("ab") as file:
                file.write(b"more")
        return stat

    with monkeypatch.context() as patch:
        patch.setattr("diptych.search.indexing.os.fstat", fstat)
        outcome, told = index()
    assert "was changed while it was read" in (told[str(path)].error or "")
    assert outcome.failed == 1
    assert index()[1][str(path)].state == "added"


def test_gone_files_go_but_not_a_drive_that_is_not_there(index, library, vectors):
    index()
    (library / "0.png").unlink()
    shutil.rmtree(library / "holiday")
    outcome, _ = index()
    assert (outcome.removed, outcome.purged) == (5, 5)
    assert len(vectors()) == 3
    away = library.with_name("away")
    library.rename(away)
    outcome, _ = index()
    assert (outcome.removed, outcome.found.empty) == (0, [str(library)])
    library.mkdir()  # an empty mount point
    outcome, _ = index()
    assert (outcome.removed, outcome.found.empty) == (0, [str(library)])
    assert len(vectors()) == 3
    outcome, _ = index(remove_empty=True)
    assert (outcome.removed, vectors()) == (3, {})


def test_a_folder_that_cannot_be_listed_keeps_its_rows(index, library, vectors, monkeypatch):
    index()
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("holiday"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    outcome, _ = index()
    assert outcome.removed == 0
    assert outcome.found.unreadable == {str(library / "holiday"): "Permission denied"}
    assert len(vectors()) == 8


def test_excluded_and_hidden(index, library, vectors):
    (library / ".thumbs").mkdir()
    picture(60).save(library / ".thumbs" / "x.png")
    picture(61).save(library / "y.gif")
    root = Root(path=str(library), exclude=("*.gif", "holiday"))
    outcome, _ = index(roots=[root])
    assert sorted(vectors()) == [str(library / f"{i}.png") for i in range(4)]
    outcome, _ = index(roots=[Root(path=str(library), hidden=True)])
    assert outcome.added == 6


def test_a_name_that_is_not_utf8(index, library, vectors, store):
    raw = os.fsencode(str(library)) + b"/caf\xe9.png"
    shutil.copy(library / "0.png", raw)
    index()
    name = os.fsdecode(raw)
    assert name in vectors()
    Path(name).unlink()
    assert index()[0].removed == 1
    assert name not in vectors()


def test_the_old_model_answers_until_the_new_one_is_whole(
    index, store, library, encoder, other_encoder, monkeypatch
):
    index()
    assert [m.fingerprint for m in store.models()] == [encoder.fingerprint]

    class Stop(Exception):
        pass

    def stop(done):
        raise Stop

    with pytest.raises(Stop), store.writer() as writer:
        monkeypatch.setattr(other_encoder, "batch_size", 3)
        update(store, writer, other_encoder, [Root(path=str(library))], options={}, done=stop)
    old, new = store.models()
    assert old.fingerprint == encoder.fingerprint
    assert (store.num_vectors(old), store.num_vectors(new)) == (8, 3)
    index(enc=other_encoder)
    first, second = store.models()
    assert first.fingerprint == other_encoder.fingerprint
    assert store.num_vectors(first) == store.num_vectors(second) == 8


def test_a_second_writer_is_refused_and_told_who_writes(store, tmp_path):
    with (
        store.writer(),
        Store(tmp_path / "collection") as again,
        pytest.raises(CollectionBusyError) as caught,
        again.writer(),
    ):
        pass
    assert f"process {os.getpid()} is writing" in str(caught.value)
    with Store(tmp_path / "collection") as again, again.writer():
        pass  # free again


def test_a_full_disk_keeps_what_was_told(store, index, library, encoder, vectors):
    index()
    before = vectors()
    for i in range(100, 400):
        picture(i).save(library / f"{i}.png")
    (pages,) = next(store.rows("PRAGMA page_count"))
    store.rows(f"PRAGMA max_page_count={pages + 8}")
    told = []
    full = pytest.raises(CollectionError, match=r"full.*start the same command again")
    with full, store.writer() as writer:
        update(store, writer, encoder, [Root(path=str(library))], options={}, done=told.extend)
    now = vectors()
    assert set(now) == set(before) | {done.path for done in told}
    store.rows("PRAGMA max_page_count=1073741823")
    assert index()[0].missing == 0
    assert len(vectors()) == 308


def test_readers_go_on_while_a_writer_writes(index, store, library, encoder, tmp_path):
    index()
    errors, stop = [], threading.Event()

    def read():
        with Store(tmp_path / "collection") as reader:
            (model,) = reader.models()
            while not stop.is_set():
                with reader.snapshot():
                    ids = reader.ids(model)
                    rows = sum(len(ids) for ids, _ in reader.vectors(model))
                if rows != len(ids) or rows % 8:
                    errors.append((rows, len(ids)))

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(5):
        for j in range(8):
            picture(1000 + 8 * i + j).save(library / f"more {i} {j}.png")
        index()
    stop.set()
    thread.join()
    assert not errors


def test_no_store_of_ours(tmp_path):
    with pytest.raises(CollectionError, match="Type: diptych index"):
        Store(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "collection.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CollectionError, match=r"cannot be read.*diptych index FOLDER"):
        Store(tmp_path / "text")


def test_an_extra_that_is_not_here_today_takes_nothing_out(index, library, vectors, monkeypatch):
    """Files that cannot be read without it are left out, with their vectors kept."""
    index()
    (library / "0.png").unlink()
    without = frozenset({".jpg"})
    monkeypatch.setattr("diptych.search.scan._taken", lambda: without)
    monkeypatch.setattr("diptych.search.scan.RAW_SUFFIXES", frozenset({".png"}))
    outcome, _ = index(remove_empty=True)
    assert (outcome.removed, outcome.found.left_out) == (0, {".png": 7})
    assert len(vectors()) == 8
    monkeypatch.undo()
    assert index()[0].removed == 1
