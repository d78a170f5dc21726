"""Pictures of which a person has said what is on them: to set thresholds on, and to measure.

A CSV, TSV, JSON lines or Parquet file with a path column, and either a column `labels` (names apart
by ";", or a JSON list; an empty cell: none of them) or a column for each label with 1, 0, yes, no,
true, false, or nothing where nobody knows. Paths may be relative to the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.lists import PATH_COLUMNS, pick, read_rows
from diptych.errors import DataError, nearest
from diptych.judge.vocabulary import Strict

__all__ = ["Labelled", "read_labelled"]

_WORDS = {"1": 1.0, "yes": 1.0, "true": 1.0, "0": 0.0, "no": 0.0, "false": 0.0, "": math.nan}


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """A picture. truth: of each label 1, 0, or NaN where nobody knows."""

    key: str
    image: Any
    truth: tuple[float, ...]


def read_labelled(path: str | Path, labels: Sequence[str]) -> Iterator[Labelled]:
    """The pictures of a list, with what they say of these labels.

    Raises:
        DataError: a file, a row or a cell that cannot be understood, or a picture that stands
            twice; names the line. Nothing is left out.
    """
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
                truth = _truth(row, labels, where)
                yield Labelled(key=key, image=path.parent / key, truth=truth)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _truth(row: dict[str, Any], labels: Sequence[str], where: str) -> tuple[float, ...]:
    if columns := [name for name in labels if name in row]:
        missing = [name for name in labels if name not in row]
        if missing and len(columns) < len(labels):
            raise DataError(
                f"{where}: has columns for {', '.join(columns)} but none for {missing[0]!r}. Add "
                "it; leave its cells empty where nobody knows."
            )
        return tuple(_cell(row[name], name, where) for name in labels)
    if "labels" not in row:
        raise DataError(
            f"{where}: has {', '.join(row)}: neither a column 'labels' nor one for each label of "
            f"the policy ({', '.join(labels[:5])})."
        )
    cell = row["labels"]
    words = cell.split(";") if isinstance(cell, str) else cell
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: labels must be a text or a list of texts, got {cell!r:.60}.")
    holds = {word.strip() for word in words if word.strip()}
    if unknown := holds - set(labels):
        name = min(unknown)
        raise DataError(f"{where}: the policy has no label {name!r}. {nearest(name, labels)}")
    return tuple(float(name in holds) for name in labels)


def _cell(value: Any, name: str, where: str) -> float:
    if value is None:
        return math.nan
    word = str(int(value)) if isinstance(value, bool | int) else str(value).strip().lower()
    if word not in _WORDS:
        raise DataError(
            f"{where}: column {name!r} has {value!r:.40}. Write 1 or 0, or leave it empty."
        )
    return _WORDS[word]
