"""Which names and templates a set is measured with, and hashes that tell protocols apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from diptych.engine.prompts import templates_of
from diptych.errors import DataError
from diptych.eval.classes import class_list
from diptych.eval.sets import DataSet, Samples

__all__ = ["digest", "names_of", "protocol", "templates_for"]


def names_of(row: DataSet, found: Samples) -> tuple[tuple[str, ...], ...]:
    """The names of each class, the first is how it is called; () for tasks without classes.

    Raises:
        DataError: a classification whose classes neither the row nor the data name.
    """
    if row.task not in ("classification", "multilabel"):
        return ()
    if row.classes is not None:
        return class_list(row.classes).names
    if not found.classes:
        raise DataError(
            f"{row.name}: neither the data nor the protocol name its classes. Put a classnames.txt "
            "with a name a line beside the data."
        )
    return tuple((name,) for name in found.classes)


def templates_for(row: DataSet, found: Samples) -> tuple[str, ...]:
    """The row's prompt set, else the templates beside the data, else labels as they are."""
    if row.templates is None and found.templates:
        return found.templates
    return templates_of(row.templates)


def protocol(row: DataSet, found: Samples) -> dict[str, Any]:
    """What two figures must share to be compared, as JSON takes it."""
    names, templates = names_of(row, found), templates_for(row, found)
    said = row.templates or ("beside the data" if found.templates else "as they are")
    return {
        "task": row.task,
        "metric": row.metric,
        "split": row.split,
        "templates": said,
        "num_templates": len(templates),
        "templates_sha256": hashlib.sha256("\n".join(templates).encode()).hexdigest(),
        "classes": row.classes or ("of the data" if names else None),
        "num_classes": len(names) or None,
        "classes_sha256": digest(names) if names else None,
        "num_samples": len(found.samples),
        "samples_sha256": digest(
            [(s.key, s.labels, s.captions, s.group) for s in found.samples],
        ),
    }


def digest(thing: Any) -> str:
    """SHA-256 of what JSON makes of it."""
    text = json.dumps(thing, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
