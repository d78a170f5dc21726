"""Pictures of which a person has said what is on them: to set thresholds on, and to measure.

A CSV, TSV, JSON lines or Parquet file with a path column, and either a column `labels` (or `tags`,
`keywords`: names apart by ";", or a JSON list; an empty cell: none of them) or a column for each
label with 1, 0, yes, no, true, false, or nothing where nobody knows. Paths may be relative to the
list. For a vocabulary a name may be a path ("animal|dog"), and a label implies its parents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data.lists import PATH_COLUMNS, pick, read_rows
from diptych.errors import DataError, nearest
from diptych.judge.tag import closed
from diptych.judge.vocabulary import Strict, Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["Labelled", "read_examples", "read_labelled"]

_COLUMNS = ("labels", "tags", "keywords")
_WORDS = {"1": 1.0, "yes": 1.0, "true": 1.0, "0": 0.0, "no": 0.0, "false": 0.0, "": math.nan}

Find = Callable[[str], int | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """A picture. truth: of each label 1, 0, or NaN where nobody knows."""

    key: str
    image: Any
    truth: tuple[float, ...]


def read_labelled(
    path: str | Path, labels: Sequence[str], *, find: Find | None = None
) -> Iterator[Labelled]:
    """The pictures of a list, with what they say of these labels.

    Args:
        find: the label that a name in a column of names means, by its position; None where it means
            none, or several. By default the names are those of `labels`.

    Raises:
        DataError: a file, a row or a cell that cannot be understood, or a picture that stands
            twice; names the line. Nothing is left out.
    """
    find = find or {name: i for i, name in enumerate(labels)}.get
    path = Path(path)
    seen: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for where, row in read_rows(file, path, Strict()):
                column = pick(row, PATH_COLUMNS)
                key = row[column].strip() if column else ""
                if not key:
                    raise DataError(f"{where}: no path in it, but {', '.join(row)}.")
                if key in seen:
                    raise DataError(
                        f"{where}: {key} stands in {seen[key]} as well. Put all that is known of a "
                        "picture into one row."
                    )
                seen[key] = where
                truth = _truth(row, labels, find, where)
                yield Labelled(key=key, image=path.parent / key, truth=truth)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _truth(row: dict[str, Any], labels: Sequence[str], find: Find, where: str) -> tuple[float, ...]:
    if columns := [name for name in labels if name in row]:
        missing = [name for name in labels if name not in row]
        if missing and len(columns) < len(labels):
            raise DataError(
                f"{where}: has columns for {', '.join(columns)} but none for {missing[0]!r}. Add "
                "it; leave its cells empty where nobody knows."
            )
        return tuple(_cell(row[name], name, where) for name in labels)
    names = {name.strip().lower(): name for name in row}
    column = next((names[name] for name in _COLUMNS if name in names), None)
    if column is None:
        raise DataError(
            f"{where}: no labels in {', '.join(row)}. Give a column 'labels', or one for each "
            f"label ({', '.join(labels[:5])})."
        )
    cell = row[column]
    words = cell.split(";") if isinstance(cell, str) else cell
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: labels must be a text or a list of texts, got {cell!r:.60}.")
    holds = [0.0] * len(labels)
    for word in filter(None, (word.strip() for word in words)):
        place = find(word)
        if place is None:
            several = [label for label in labels if label.endswith(f"|{word}")]
            hint = f"Say which: {', '.join(several)}." if several else nearest(word, labels)
            raise DataError(f"{where}: there is no label {word!r}, or not one alone. {hint}")
        holds[place] = 1.0
    return tuple(holds)


def _cell(value: Any, name: str, where: str) -> float:
    if value is None:
        return math.nan
    word = str(int(value)) if isinstance(value, bool | int) else str(value).strip().lower()
    if word not in _WORDS:
        raise DataError(
            f"{where}: column {name!r} has {value!r:.40}. Write 1 or 0, or leave it empty."
        )
    return _WORDS[word]


def read_examples(path: Path, vocabulary: Vocabulary) -> tuple[list[str], Bool[np.ndarray, "n l"]]:
    """(paths, which labels of a vocabulary hold), parents included.

    Raises:
        DataError: as `read_labelled`; no picture at all, or one of which a label is not known.
    """
    labels = [str(label) for label in vocabulary.labels]
    found = list(read_labelled(path, labels, find=vocabulary.find))
    if not found:
        raise DataError(f"{path}: holds no example. Give rows with path and labels.")
    truth = np.array([one.truth for one in found])
    if unknown := [one.key for one, row in zip(found, truth, strict=True) if np.isnan(row).any()]:
        raise DataError(f"{path}: of {unknown[0]} not every label is known. Write 1 or 0.")
    return [str(one.image) for one in found], closed(truth > 0.5, vocabulary)
