"""The sample photographs of the package as sets: by their first label, and by their caption."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from diptych.eval.sets.row import Sample, Samples

__all__ = ["sample_captions", "sample_labels"]


@lru_cache(maxsize=1)
def _rows() -> tuple[Path, list[dict[str, Any]]]:
    folder = Path(str(resources.files("diptych") / "assets" / "samples"))
    return folder, json.loads((folder / "samples.json").read_text("utf-8"))


def sample_labels() -> Samples:
    """Each photograph with the first of its labels."""
    folder, rows = _rows()
    classes = sorted({row["labels"][0] for row in rows})
    samples = [
        Sample(row["file"], folder / row["file"], labels=(classes.index(row["labels"][0]),))
        for row in rows
    ]
    return Samples(samples=samples, classes=tuple(classes))


def sample_captions() -> Samples:
    """Each photograph with its caption."""
    folder, rows = _rows()
    samples = [
        Sample(row["file"], folder / row["file"], captions=(row["caption"],)) for row in rows
    ]
    return Samples(samples=samples)
