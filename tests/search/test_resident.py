"""The resident in this process: the same answers, of the current state, and no harm by garbage."""

import dataclasses
import json
import logging
import shutil
import socket
import struct

import pytest
from pictures import picture

import diptych
from diptych.errors import CollectionError, DiptychError
from diptych.search import Collection, resident, wire
from diptych.search.filters import Filters
from diptych.search.indexing import update
from diptych.search.records import Root
from diptych.search.resident import KEPT, Resident
from diptych.search.store import Store

NO_FILTERS = dataclasses.asdict(Filters())
LOADING = {"device": "auto", "precision": "auto", "offline": None}


def indexing(folder, encoder, file, library):
    with Store(folder, create=True) as store, store.writer() as writer:
        update(store, writer, encoder, [Root(path=str(library))], options={"name": str(file)})


@pytest.fixture
def indexed(encoder, library, tmp_path):
    """The folder of a collection whose model can be loaded from a file."""
    diptych.zoo.save(encoder, tmp_path / "tiny.safetensors")
    indexing(tmp_path / "indexed", encoder, tmp_path / "tiny.safetensors", library)
    return tmp_path / "indexed"


def question(folder, *words, **how):
    return {
        "collection": str(folder), "model": None, "loading": LOADING,
        "terms": [[word, 1.0] for word in words], "filters": NO_FILTERS, "how": how,
    }  # fmt: skip


def test_the_answer_is_that_of_the_collection(indexed):
    with Collection(indexed) as photos:
        expected = photos.search("a red thing", strictness=None, top=3)
    asked = question(indexed, "a red thing", strictness=None, top=3)
    answerer = Resident()
    for _ in range(2):
        found = json.loads(json.dumps(answerer.search(asked)))
        assert found["hits"] == [dataclasses.asdict(hit) for hit in expected.hits]
        assert (found["best"], found["threshold"]) == (expected.best, expected.threshold)
        assert found["said"] == []
    assert answerer.num_answered == 2
    answerer.close()


def test_filters_and_several_terms_count(indexed):
    answerer = Resident()
    asked = question(indexed, "a", "b", strictness=None, top=20, fold=False)
    assert len(answerer.search(asked)["hits"]) == 8
    folder = str(indexed.parent / "library" / "holiday")
    some = answerer.search({**asked, "filters": {**NO_FILTERS, "folder": folder}})
    assert len(some["hits"]) == 4
    answerer.close()


def test_what_another_process_indexed_is_seen(indexed, encoder, library, tmp_path):
    answerer = Resident()
    asked = question(indexed, "a thing", strictness=None, top=20, fold=False)
    assert len(answerer.search(asked)["hits"]) == 8
    (kept,) = answerer._open.values()
    picture(99).save(library / "new.png")
    indexing(indexed, encoder, tmp_path / "tiny.safetensors", library)
    assert len(answerer.search(asked)["hits"]) == 9
    assert list(answerer._open.values()) == [kept]  # the model was not loaded again
    answerer.close()


def test_a_collection_that_went_and_came_is_another_one(indexed, encoder, library, tmp_path):
    answerer = Resident()
    asked = question(indexed, "a thing", strictness=None, top=20, fold=False)
    assert len(answerer.search(asked)["hits"]) == 8
    shutil.rmtree(indexed)
    with pytest.raises(CollectionError, match="there is no collection"):
        answerer.search(asked)
    indexing(indexed, encoder, tmp_path / "tiny.safetensors", library / "holiday")
    assert len(answerer.search(asked)["hits"]) == 4
    answerer.close()


def test_weights_that_change_on_the_disk_are_not_answered_with(indexed, tmp_path, other_encoder):
    answerer = Resident()
    asked = question(indexed, "a thing", strictness=None)
    answerer.search(asked)
    diptych.zoo.save(other_encoder, tmp_path / "tiny.safetensors")
    with pytest.raises(CollectionError, match="another model, or other files"):
        answerer.search(asked)
    answerer.close()


def test_no_more_models_are_kept_than_said(indexed):
    answerer = Resident()
    for device in ("auto", "cpu"):
        for precision in ("auto", "fp32"):
            asked = question(indexed, "a thing", strictness=None)
            asked["loading"] = {**LOADING, "device": device, "precision": precision}
            answerer.search(asked)
            assert len(answerer.names()) <= KEPT
    assert len(answerer._weights) == KEPT
    answerer.close()
    assert not answerer.names()


def test_what_loading_says_is_said_each_time(indexed, monkeypatch):
    load = diptych.search.collection.load
    said = []

    def loud(*args, **rest):
        if not said:  # once in a process, as warnings of a licence are
            logging.getLogger("diptych").warning("mind the licence")
            said.append(True)
        return load(*args, **rest)

    monkeypatch.setattr("diptych.search.collection.load", loud)
    answerer = Resident()
    asked = question(indexed, "a thing", strictness=None)
    for _ in range(3):
        assert answerer.search(asked)["said"] == ["mind the licence"]
        answerer.close()  # and is loaded again
    for _ in range(2):
        assert answerer.search(asked)["said"] == ["mind the licence"]
    answerer.close()


def test_a_model_that_cannot_be_loaded_puts_none_out(indexed):
    answerer = Resident()
    asked = question(indexed, "a thing", strictness=None)
    answerer.search(asked)
    (kept,) = answerer._open.values()
    with pytest.raises(DiptychError):
        answerer.search({**asked, "loading": {**LOADING, "device": "warp"}})
    assert list(answerer._open.values()) == [kept]
    answerer.close()


def test_a_damaged_derived_file_is_told_of_each_time(indexed, encoder):
    folder = indexed / "derived" / encoder.fingerprint[:16] / "matrix"
    folder.mkdir(parents=True)
    (folder / "matrix.json").write_text("{")
    answerer = Resident()
    asked = question(indexed, "a thing", strictness=None)
    for _ in range(2):
        (line,) = answerer.search(asked)["said"]
        assert line.endswith("The collection's own file answers instead.")
    answerer.close()


# --- one connection ------------------------------------------------------------------------------


def answered(data: bytes, answerer: Resident, identity: dict) -> list[dict]:
    """What comes back for these bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        assert resident._answer(theirs, answerer, identity, {"process": 1})
        theirs.close()
        found = []
        while True:
            try:
                found.append(wire.receive(ours, seconds=5))
            except ConnectionError:
                return found


def message(**request) -> bytes:
    data = json.dumps(request).encode()
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, struct.pack("<I", 7) + b"[1, 2]"],
)
def test_garbage_is_answered_with_an_error_or_not_at_all(data):
    for found in answered(data, Resident(), {}):
        assert "error" in found


@pytest.mark.parametrize(
    "more",
    [
        {}, {"question": 3}, {"question": {}}, {"question": {"collection": 3}},
        {"question": {"terms": [[1]], "filters": {}}}, {"folder": "/no/such/folder"},
        {"question": {"terms": [], "filters": {"box": None, "types": [], "after": 5}}},
    ],
)  # fmt: skip
def test_a_request_that_is_none_is_declined(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = {"do": "search", "identity": {"a": 1}, "folder": str(tmp_path), **more}
    begun, found = answered(message(**request), Resident(), {"a": 1})
    assert begun == {"begun": True}
    assert "declined" in found


def test_another_identity_is_declined_and_an_unknown_wish_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = wire.identity()
    (_, found) = answered(message(do="search", identity={"code": 1}), Resident(), mine)
    assert found == {"declined": "another version, or other settings"}
    (_, found) = answered(message(do="dance"), Resident(), mine)
    assert found == {"error": "nothing is known of 'dance'"}
    (_, found) = answered(message(do="status", identity=mine), Resident(), mine)
    assert found == {"process": 1, "models": [], "answered": 0, "same": True}
