"""Pictures that a person has tagged: a list of paths and labels, to fit thresholds to.

A CSV, TSV, JSON lines or Parquet file with a path column and a column `labels` (or `tags`): labels
apart by ";", or a JSON list. A label is its name or its path ("animal|dog"); it implies its
parents. Paths may be relative to the list.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data.lists import PATH_COLUMNS, pick, read_rows
from diptych.errors import DataError, nearest
from diptych.judge.tag import closed
from diptych.judge.vocabulary import Strict, Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["read_examples"]

_COLUMNS = ("labels", "tags", "keywords")


def read_examples(path: Path, vocabulary: Vocabulary) -> tuple[list[str], Bool[np.ndarray, "n l"]]:
    """(paths, which labels hold), parents included.

    Raises:
        DataError: a file or a row that cannot be understood, a label that is not in the
            vocabulary, or a picture that stands twice; names the line.
    """
    paths: list[str] = []
    rows: list[np.ndarray] = []
    seen: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for where, row in read_rows(file, path, Strict()):
                key = pick(row, PATH_COLUMNS)
                if key is None:
                    raise DataError(
                        f"{where}: no path in it. Give a column 'path' and a column 'labels'."
                    )
                picture = str(path.parent / row[key])
                if picture in seen:
                    raise DataError(
                        f"{where}: {row[key]} stands in {seen[picture]} as well. Put all its "
                        "labels into one row, apart by ';'."
                    )
                seen[picture] = where
                paths.append(picture)
                rows.append(_truth(row, vocabulary, where))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows:
        raise DataError(f"{path}: holds no example. Give rows with path and labels.")
    return paths, closed(np.stack(rows), vocabulary)


def _truth(row: dict[str, Any], vocabulary: Vocabulary, where: str) -> np.ndarray:
    names = {key.strip().lower(): key for key in row}
    key = next((names[name] for name in _COLUMNS if name in names), None)
    if key is None:
        raise DataError(
            f"{where}: no labels in it. Give a column 'labels', with labels apart by ';'; leave a "
            "cell empty where none holds."
        )
    cell = row[key]
    words = cell.split(";") if isinstance(cell, str) else cell
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: labels must be a text or a list of texts, got {cell!r:.60}")
    holds = np.zeros(len(vocabulary.labels), bool)
    for word in (word.strip() for word in words):
        if not word:
            continue
        found = vocabulary.find(word)
        if found is None:
            several = [str(x) for x in vocabulary.labels if x.name == word]
            hint = f"Say which: {', '.join(several)}." if several else ""
            known = [str(x) for x in vocabulary.labels]
            raise DataError(
                f"{where}: the label {word!r} is not in the vocabulary, or not one alone. "
                f"{hint or nearest(word, known)}"
            )
        holds[found] = True
    return holds
