"""The labels that pictures are tagged with: a file of them, their synonyms, thresholds and order.

A vocabulary is a text file, one label a line. What is indented is a kind of what stands above it;
what follows commas are other words for it; "=" sets its threshold, a cosine:

    # lines that begin with "#" are comments
    animal
        dog, puppy
        cat, kitten = 0.21
    outdoors

- The same as JSON: a list of names, or of {"label", "synonyms", "threshold", "children"}. Or CSV /
  TSV with the columns label, parent, synonyms, threshold; levels and synonyms apart by "|".
- A label is known by its path from the top, so "orange" may stand under "fruit" and "colour".
- "|" and what cannot be printed are refused in a label: sidecars could not hold them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.lists import file_bytes, read_rows
from diptych.errors import ConfigError, DataError
from diptych.zoo.atomic import atomic_write

__all__ = ["Label", "Strict", "Vocabulary", "from_names", "read_vocabulary", "write_vocabulary"]

_MOST_BYTES = 2**26


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One label.

    Attributes:
        name: the word itself; it is a prompt as well.
        parents: names of what it is a kind of, from the top.
        synonyms: other words for it; prompts only.
        threshold: the cosine from which it holds; None: what is usual decides.
    """

    name: str
    parents: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    threshold: float | None = None

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.parents, self.name)

    def __str__(self) -> str:
        return "|".join(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Labels, a parent somewhere before its children.

    Raises:
        ConfigError: no label, one that stands twice, one without its parent before it, a name that
            cannot be kept, or a threshold that is no cosine.
    """

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise ConfigError("the vocabulary has no label. Write one a line.")
        seen: set[tuple[str, ...]] = set()
        for label in self.labels:
            for word in (label.name, *label.synonyms):
                _check_word(word)
            if label.path in seen:
                raise ConfigError(f"the label {str(label)!r} stands twice in the vocabulary")
            if label.parents and label.parents not in seen:
                raise ConfigError(
                    f"the label {str(label)!r} stands before its parent "
                    f"{'|'.join(label.parents)!r}, or has none. Write the parent first."
                )
            if label.threshold is not None and not -1 <= label.threshold <= 1:
                raise ConfigError(
                    f"the threshold of {str(label)!r} must be a cosine, from -1 to 1, got "
                    f"{label.threshold}"
                )
            seen.add(label.path)

    @property
    def parents(self) -> tuple[int | None, ...]:
        """Of each label the position of its parent."""
        where = {label.path: i for i, label in enumerate(self.labels)}
        return tuple(where[x.parents] if x.parents else None for x in self.labels)

    def find(self, name: str) -> int | None:
        """The position of a label by its path ("animal|dog") or, if only one has it, by name."""
        paths = [i for i, label in enumerate(self.labels) if str(label) == name]
        names = [i for i, label in enumerate(self.labels) if label.name == name]
        found = paths or names
        return found[0] if len(found) == 1 else None


def _check_word(word: str) -> None:
    if not word or word != word.strip():
        raise ConfigError(f"a label is empty, or has spaces around it: {word!r}")
    if "|" in word or not word.isprintable():
        raise ConfigError(
            f"the label {word!r} holds '|' or something that cannot be printed: sidecars and CSV "
            "need '|' between levels. Write another word."
        )


class Strict:
    """What `read_rows` reports to, where nothing may be lost: the first flaw is an error."""

    def flaw(self, reason: str, name: str, detail: str = "") -> None:
        raise DataError(f"{name}: {reason}{f' ({detail})' if detail else ''}")


def from_names(names: Sequence[str]) -> Vocabulary:
    """A flat vocabulary. Raises ConfigError."""
    return Vocabulary(labels=tuple(Label(name=name) for name in names))


def read_vocabulary(path: Path) -> Vocabulary:
    """A vocabulary from a file: .json, .csv, .tsv, or else lines of text.

    Raises:
        ConfigError: the file cannot be read or understood; names it, and the line.
    """
    data, reason, detail = file_bytes(path, _MOST_BYTES)
    if data is None:
        raise ConfigError(f"{path}: {reason} ({detail}). Give a file with one label a line.")
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv":
                with path.open("rb") as file:
                    return _from_table([row for _, row in read_rows(file, path, Strict())])
            case ".json":
                return Vocabulary(labels=tuple(_from_json(json.loads(data.decode("utf-8-sig")))))
            case _:
                return _from_lines(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ConfigError(f"{path}: too many levels") from error
    except ValueError as error:  # those of diptych, of UTF-8 and of JSON
        raise ConfigError(f"{path}: {error}") from error


def _from_lines(text: str) -> Vocabulary:
    labels: list[Label] = []
    above: list[tuple[str, str]] = []  # (indentation, name) of the lines that this one may be below
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        indent = line[: len(line) - len(line.lstrip())]
        left: str | None = None
        while above and not (indent.startswith(above[-1][0]) and indent != above[-1][0]):
            left = above.pop()[0]
        if left not in (None, indent):
            raise ConfigError(
                f"line {number}: {words!r} is indented like nothing above it. Indent by the "
                "same spaces or tabs as its neighbours."
            )
        words, equals, threshold = words.rpartition("=") if "=" in words else (words, "", "")
        names = [word.strip() for word in words.split(",")]
        try:
            cut = _cosine(threshold) if equals else None
            for name in names:
                _check_word(name)
        except ConfigError as error:
            raise ConfigError(f"line {number}: {error}") from error
        labels.append(
            Label(
                name=names[0],
                parents=tuple(name for _, name in above),
                synonyms=tuple(names[1:]),
                threshold=cut,
            )
        )
        above.append((indent, names[0]))
    return Vocabulary(labels=tuple(labels))


def _cosine(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise ConfigError(f"{text.strip()!r} is no number. A threshold is a cosine, as 0.25.")
    return found


def _from_table(rows: list[dict[str, Any]]) -> Vocabulary:
    labels = []
    for row in rows:
        if not row.get("label", "").strip():
            raise ConfigError(
                f"a row without a label: {row}. The columns are label, parent, synonyms, threshold."
            )
        parent, synonyms = row.get("parent", ""), row.get("synonyms", "")
        threshold = row.get("threshold", "").strip()
        labels.append(
            Label(
                name=row["label"].strip(),
                parents=tuple(x.strip() for x in parent.split("|")) if parent.strip() else (),
                synonyms=tuple(x.strip() for x in synonyms.split("|") if x.strip()),
                threshold=_cosine(threshold) if threshold else None,
            )
        )
    return Vocabulary(labels=tuple(labels))


_KEYS = ("label", "synonyms", "threshold", "children")


def _from_json(nodes: Any, parents: tuple[str, ...] = ()) -> list[Label]:
    if not isinstance(nodes, list):
        raise ConfigError(f"a list of labels must stand here, got {json.dumps(nodes)[:60]}")
    labels: list[Label] = []
    for node in nodes:
        if isinstance(node, str):
            node = {"label": node}
        if not isinstance(node, dict) or not isinstance(node.get("label"), str):
            raise ConfigError(
                f"a label is a text or an object with 'label', got {json.dumps(node)[:60]}"
            )
        if unknown := sorted(set(node) - set(_KEYS)):
            raise ConfigError(f"{node['label']!r}: unknown {unknown[0]!r}. Known: {_KEYS}")
        threshold, synonyms = node.get("threshold"), node.get("synonyms", [])
        if threshold is not None and (
            isinstance(threshold, bool) or not isinstance(threshold, int | float)
        ):
            raise ConfigError(f"{node['label']!r}: the threshold {threshold!r} is no number")
        if not isinstance(synonyms, list) or not all(isinstance(x, str) for x in synonyms):
            raise ConfigError(f"{node['label']!r}: synonyms must be a list of texts")
        label = Label(
            name=node["label"],
            parents=parents,
            synonyms=tuple(synonyms),
            threshold=None if threshold is None else float(threshold),
        )
        labels += [label, *_from_json(node.get("children", []), label.path)]
    return labels


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """The vocabulary as JSON, whole or not at all; `read_vocabulary` gives the same again.

    Raises:
        ConfigError: the name does not end in .json.
        CheckpointError: the system refused.
    """
    if path.suffix.lower() != ".json":
        raise ConfigError(f"{path}: a vocabulary is written as JSON. Give a name with .json.")
    nodes: dict[tuple[str, ...], dict[str, Any]] = {}
    top: list[dict[str, Any]] = []
    for label in vocabulary.labels:
        node: dict[str, Any] = {"label": label.name}
        if label.synonyms:
            node["synonyms"] = list(label.synonyms)
        if label.threshold is not None:
            node["threshold"] = label.threshold
        nodes[label.path] = node
        above = nodes[label.parents].setdefault("children", []) if label.parents else top
        above.append(node)
    text = json.dumps(top, ensure_ascii=False, indent=2) + "\n"
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))
