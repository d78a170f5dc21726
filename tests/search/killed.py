"""The process that tests/search/test_killed.py kills: indexes, and says what is safe."""

import os
from pathlib import Path

import diptych
from diptych.search.indexing import update
from diptych.search.records import Root
from diptych.search.rows import refresh
from diptych.search.store import Store


def main(library: str, collection: str, acknowledged: str, model: str) -> None:
    """Each path that was committed is a line of `acknowledged`; "indexed", "whole" end it."""
    encoder = diptych.load(model, device="cpu")
    encoder.batch_size = 4
    out = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def done(files) -> None:
        os.write(out, b"".join(os.fsencode(file.path) + b"\n" for file in files))

    with Store(Path(collection), create=True) as store, store.writer() as writer:
        outcome = update(
            store, writer, encoder, [Root(path=library)], options={"name": model}, done=done
        )
        os.write(out, b"indexed\n")
        for _ in range(10):  # so that kills also meet the building of the matrix
            refresh(store, outcome.model, force=True)
        os.write(out, b"whole\n")
