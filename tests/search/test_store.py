"""The store where it may not be written, where it is damaged, and where a model comes back."""

import os
import shutil
import sqlite3

import numpy as np
import pytest

from diptych.errors import CollectionError, DiptychError
from diptych.search.collection import Collection
from diptych.search.duplicates import duplicates
from diptych.search.rows import derived_folder, refresh
from diptych.search.store import Store


@pytest.fixture
def read_only(tmp_path, index, store, monkeypatch):
    """A copy of the collection where SQLite cannot make its files, as on a disc."""
    index()
    store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = tmp_path / "disc % 100?"
    folder.mkdir()
    shutil.copy(store.path, folder)
    (folder / "collection.db-shm").mkdir()
    (folder / "collection.db-wal").mkdir()
    real = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: mode != os.W_OK and real(path, mode)
    )  # root may write everywhere
    return folder


def test_a_collection_that_may_not_be_written_is_searched(read_only, encoder):
    with Collection(read_only, encoder=encoder) as photos:
        assert len(photos.search("a dog", strictness=None, fold=False).hits) == 8
        assert photos.store.counts() == {"files": 8, "contents": 8, "failed": 0}


def test_a_copy_from_the_middle_of_writing_is_refused_there(read_only, monkeypatch):
    def refuse(*_, **__):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("sqlite3.connect", refuse)
    (read_only / "collection.db-wal").rmdir()
    (read_only / "collection.db-wal").write_bytes(b"\0" * 100)
    with pytest.raises(CollectionError, match="Copy the folder to where you may write"):
        Store(read_only)


def test_a_reader_waits_for_no_writer(index, store):
    index()
    with store.writer() as writer, writer.transaction(), Store(store.folder) as reader:
        assert reader.counts()["files"] == 8  # it would have waited for 30 seconds, and failed


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_gives_answers_or_a_collection_error(
    index, store, tmp_path, library, encoder, seed
):
    index()
    store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    data, rng = bytearray(store.path.read_bytes()), np.random.default_rng(seed)
    end = 100 if seed % 4 == 0 else len(data)
    for place in rng.integers(0, end, rng.choice([1, 5, 50, 500])):
        data[place] = rng.integers(256)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "collection.db").write_bytes(data)
    try:
        with Collection(tmp_path / "damaged", encoder=encoder) as photos:
            photos.search("a dog")
            duplicates(photos.store, photos.model)
            photos.store.counts()
            list(photos.store.failures())
    except DiptychError as error:
        assert "Type: diptych index" in str(error) or "Use the Diptych" in str(error)


def test_a_vector_of_another_length(index, store):
    outcome, _ = index()
    store.rows("UPDATE vectors SET vector=x'00' WHERE id=3")
    with pytest.raises(CollectionError, match="a vector has another length"):
        list(store.vectors(outcome.model))


def test_a_model_that_was_forgotten_and_indexed_again(index, store, encoder):
    """What was derived from its first vectors is never taken for that of the second ones."""
    outcome, _ = index()
    with store.writer() as writer:
        refresh(store, outcome.model, force=True)
        with Collection(store.folder, encoder=encoder) as open_all_the_time:
            open_all_the_time.search("a dog")
            with writer.transaction():
                writer.remove_model(outcome.model)
            with pytest.raises(CollectionError, match="were removed meanwhile"):
                open_all_the_time.search("a dog")
    again, _ = index()
    assert again.model.fingerprint == outcome.model.fingerprint
    assert (derived_folder(store, again.model) / "matrix").is_dir()
    with Collection(store.folder, encoder=encoder) as photos:
        answer = photos.search("a dog", strictness=None, fold=False)
        assert (len(answer.hits), answer.num_searched) == (8, 8)
        assert photos.rows().ids.tolist()[-8:] == list(range(9, 17))


def test_the_disk_is_full_when_the_collection_is_made(tmp_path, monkeypatch):
    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("diptych.search.store.uuid.uuid4", full)
    with pytest.raises(CollectionError, match="disk is full"):
        Store(tmp_path / "new", create=True)
