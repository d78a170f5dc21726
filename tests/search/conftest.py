"""A small model, a library of pictures, and a store of one's own."""

import sys
from pathlib import Path

import numpy as np
import pytest

import diptych
from diptych.search.indexing import update
from diptych.search.records import Root
from diptych.search.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from pictures import TINY, picture


@pytest.fixture(scope="session")
def encoder():
    return diptych.build(TINY, seed=0)


@pytest.fixture(scope="session")
def other_encoder():
    return diptych.build(TINY, seed=1)


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    (folder / "holiday").mkdir(parents=True)
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    for i in range(4, 8):
        picture(i).save(folder / "holiday" / f"{i}.png")
    return folder


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "collection", create=True) as store:
        yield store


@pytest.fixture
def index(store, encoder, library):
    """`update` with what the tests leave as it is; returns the outcome and what was told."""

    def index(*, enc=encoder, roots=None, **rest):
        told = []
        roots = [Root(path=str(library))] if roots is None else roots
        with store.writer() as writer:
            outcome = update(
                store, writer, enc, roots, options={"name": "tiny"}, done=told.extend, **rest
            )
        return outcome, {done.path: done for done in told}

    return index


@pytest.fixture
def vectors(store, encoder):
    """Path -> vector, as the store has them."""

    def vectors(enc=encoder):
        rows = store.rows(
            "SELECT f.path, v.vector FROM files f JOIN vectors v ON v.content=f.content "
            "JOIN models m ON m.id=v.model WHERE m.fingerprint=?",
            [enc.fingerprint],
        )
        return {path: np.frombuffer(blob, "<f2").astype(np.float32) for path, blob in rows}

    return vectors
