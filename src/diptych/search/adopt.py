"""Vectors that were made elsewhere, into the store: each under the hash of the file it belongs to.

- Files are read and hashed, not decoded: what costs time is the reading alone. Nothing is known of
  their pixels, so an imported picture is never taken for a near-duplicate; copies are known by
  their bytes as ever.
- A sample of a shard has no file of its own: it is called SHARD.tar!KEY.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data import split_name
from diptych.preprocess.metadata import Metadata, metadata
from diptych.preprocess.open import FORMATS, PILLOW_ERRORS, quiet
from diptych.search.importing import Batches, Foreign
from diptych.search.records import Content, Model
from diptych.search.store import Store
from diptych.search.writer import Writer
from diptych.zoo import sha256_of

__all__ = ["adopt"]


def adopt(
    store: Store,
    writer: Writer,
    model: Model,
    batches: Batches,
    *,
    skipped: Counter[str],
    done: Callable[[int], object] = lambda rows: None,
) -> int:
    """Put the rows into the store, a transaction for each batch; returns how many are new there.

    Args:
        batches: of `importing.usable`, or of `importing.read_bulk`.
        skipped: counts what could not be taken, by reason.
        done: is told how many rows were read, after they are safe.
    """
    added = 0
    for rows, vectors in batches:
        with writer.transaction():
            for row, vector in zip(rows, vectors, strict=True):
                added += _put(store, writer, model, row, vector, skipped)
        done(len(rows))
    return added


def _put(
    store: Store,
    writer: Writer,
    model: Model,
    row: Foreign,
    vector: np.ndarray,
    skipped: Counter[str],
) -> bool:
    parts = split_name(row.path) if row.sha256 is not None else None
    try:
        stat = os.stat(parts[0] if parts else row.path)  # noqa: PTH116
        sha256 = row.sha256 if parts else sha256_of(Path(row.path))
    except OSError:
        skipped["missing"] += 1
        return False
    if sha256 is None or row.sha256 not in (None, sha256):
        skipped["changed"] += 1
        return False
    digest = bytes.fromhex(sha256)
    known = store.content_of(digest, model)
    if known is not None:
        writer.put_file(row.path, stat, known)
        return False
    facts = _of_row(row) if parts else _of_file(row.path)
    content = writer.put_content(
        Content(sha256=digest, size=0 if parts else stat.st_size, kind="image", metadata=facts)
    )
    writer.put_vectors(model, content, vector[None], hashes=[None])
    writer.put_file(row.path, stat, content)
    return True


def _of_file(path: str) -> Metadata | None:
    """What the header says; no pixel is decoded."""
    try:
        with quiet(), Image.open(path, formats=FORMATS) as image:
            return metadata(image)
    except PILLOW_ERRORS:
        return None


def _of_row(row: Foreign) -> Metadata:
    width, height = row.meta.get("width") or 0, row.meta.get("height") or 0
    return Metadata(
        taken=None, camera=None, latitude=None, longitude=None, width=width, height=height,
        format="",
    )  # fmt: skip
