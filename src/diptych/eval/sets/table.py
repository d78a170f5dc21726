"""Rows of a table to samples: which columns are the picture, the label, the captions, the group.

CSV, JSON lines, Parquet and the JSON of the choice sets all come here as rows with columns; only
where a picture comes from differs.

- Picture: a column path, image, filename ...; its cell is what `locate` makes of it.
- Label: a column label, class, category ...; a number, a name, or (multilabel) several of them, as
  a list, a JSON list, or with `|` or `;` between.
- Captions: caption, captions, text, title, caption_0 ...; rows of one picture are one sample.
- Group: group, region, income_group, language ... A language is part of the key: a picture with
  captions in two languages is two samples.
- Choices: caption and negative_caption, or true_caption and false_caption; image_0, image_1,
  caption_0, caption_1 (Winoground); cue, candidates, associations (WinoGAViL).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.data.lists import PATH_COLUMNS, pick
from diptych.errors import DataError
from diptych.eval.sets.found import Found, few
from diptych.eval.sets.names import Names, plain
from diptych.eval.sets.row import DataSet, Sample

__all__ = [
    "LABEL_COLUMNS",
    "PICTURE_COLUMNS",
    "SPLIT_COLUMNS",
    "Locate",
    "choices",
    "column",
    "labelled",
    "locator",
    "paired",
]

Locate = Callable[[Any], Any]  # a cell to what Sample.image takes; None: there is no such picture
Rows = Iterable[tuple[str, Mapping[str, Any]]]

PICTURE_COLUMNS = (*PATH_COLUMNS, "picture", "jpg", "png", "webp")
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "category", "categories", "target"),
    *("fine_label", "tag", "tags", "y"),
)
GROUP_COLUMNS = ("group", "region", "income_group", "income", "language", "lang")
SPLIT_COLUMNS = ("split", "subset", "partition")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence", "sentences", "raw")
_LANGUAGES = ("language", "lang")
_PAIRS = (("caption", "negative_caption"), ("true_caption", "false_caption"))
_KIND = ("relation_name", "attributes")  # ARO's
_DEPTH = 64  # folders beside a list in which its pictures are looked for


def locator(folder: Path) -> Locate:
    """Finds files by what a list calls them: in the folder, or in a folder of it.

    A name without a suffix is tried with .png and .jpg. A path that leads out of the folder is not
    found: a list does not choose files of the machine.
    """
    places = [folder, *[p for p in sorted(folder.iterdir()) if p.is_dir()][:_DEPTH]]
    root = folder.resolve()
    first = [0]  # the place where the last one was found

    def locate(name: Any) -> Path | None:
        if not isinstance(name, str) or not name or "\0" in name:
            return None
        for i in (first[0], *range(len(places))):
            for suffix in ("", ".png", ".jpg"):
                path = places[i] / (name + suffix)
                if path.is_file() and path.resolve().is_relative_to(root):
                    first[0] = i
                    return path
        return None

    return locate


def column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The key in `row` of the first of `names` that has a value there; "Label" is "label"."""
    keys = {key.strip().lower(): key for key, value in row.items() if value not in (None, "")}
    return next((keys[name] for name in names if name in keys), None)


def _picture(found: Found, key: str, row: Mapping[str, Any], locate: Locate) -> tuple[str, Any]:
    """(key of the sample, image); None and a named loss where there is none."""
    name = column(row, PICTURE_COLUMNS)
    if name is None:
        found.lose(key, f"none of the columns {', '.join(PICTURE_COLUMNS)} has a picture")
        return key, None
    cell = row[name]
    image = locate(cell)
    if image is None:
        found.lose(cell if isinstance(cell, str) else key, "there is no such picture")
    return (cell if isinstance(cell, str) else key), image


# --- classification and multilabel ---


def labelled(
    rows: Rows,
    row: DataSet,
    names: Names | None,
    found: Found,
    locate: Locate,
    *,
    order: Sequence[int] | None = None,
) -> Names:
    """Samples with labels; returns the classes, those that the cells name where `names` is None.

    Args:
        order: the class of each number that the cells may have; None: the number itself.

    Raises:
        DataError: labels are numbers, and nothing says what they mean.
    """
    cells: list[tuple[str, Any, list[Any], str]] = []
    for key, cell in rows:
        where = column(cell, LABEL_COLUMNS)
        key, image = _picture(found, key, cell, locate)
        if image is None:
            continue
        values = [] if where is None else _values(cell[where], several=row.task == "multilabel")
        if where is None and row.task == "classification":
            found.lose(key, f"none of the columns {few(LABEL_COLUMNS, 5)} has a label")
            continue
        cells.append((key, image, values, _group(cell)))
    if names is None:
        words = sorted({str(value) for _, _, values, _ in cells for value in values})
        if words and all(_as_number(word) is not None for word in words):
            raise DataError(
                f"{row.name}: its labels are numbers ({few(words)}), and nothing says what they "
                "mean. Write the classes, a line each from 0 on, into classnames.txt beside it."
            )
        names = Names(names=tuple((word,) for word in words))
    found.num_classes = len(names.names)
    numbers = _numbers({value for _, _, values, _ in cells for value in values}, names, order)
    needs = "labels" if row.task == "classification" else ""
    for key, image, values, group in cells:
        unknown = [value for value in values if numbers[value] is None]
        if unknown:
            found.lose(key, f"{unknown[0]!r} is no class of the list")
            continue
        labels = tuple(dict.fromkeys(n for v in values if (n := numbers[v]) is not None))
        found.add(Sample(key, image, labels, group=group), needs=needs)
    return names


def _numbers(values: set[Any], names: Names, order: Sequence[int] | None) -> dict[Any, int | None]:
    """Cells to classes. A text is a name, and if it is none, digits; a number is a number."""
    texts = [value for value in values if isinstance(value, str)]
    named = dict(zip(texts, names.numbers(texts), strict=True))
    found: dict[Any, int | None] = {}
    for value in values:
        number = named.get(value)
        if number is None:
            number = _as_number(str(value))
            if number is not None and order is not None and 0 <= number < len(order):
                number = order[number]
        found[value] = number
    return found


def _as_number(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() and len(text) < 18 else None


def _values(cell: Any, *, several: bool) -> list[Any]:
    """The labels in a cell."""
    if isinstance(cell, str) and several:
        if cell.lstrip().startswith("["):
            try:
                return list(json.loads(cell))
            except (ValueError, RecursionError):
                return [cell]
        for mark in ("|", ";"):
            if mark in cell:
                return [part.strip() for part in cell.split(mark) if part.strip()]
        return [cell.strip()] if cell.strip() else []
    if isinstance(cell, list | tuple):
        return list(cell)
    return [cell]


def _group(row: Mapping[str, Any]) -> str:
    name = column(row, GROUP_COLUMNS)
    return "" if name is None else str(row[name])


# --- retrieval ---


def paired(rows: Rows, found: Found, locate: Locate) -> None:
    """Pictures with all of their captions, in the order in which they come first."""
    images: dict[str, Any] = {}
    captions: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    missing: set[str] = set()
    for key, cell in rows:
        named = column(cell, PICTURE_COLUMNS)
        if named is not None and isinstance(cell[named], str) and cell[named] in missing:
            continue  # named once
        name, image = _picture(found, key, cell, locate)
        if image is None:
            missing.add(name)
            continue
        language = column(cell, _LANGUAGES)
        group = _group(cell)
        name = name if language is None else f"{name}@{cell[language]}"
        images.setdefault(name, image)
        groups.setdefault(name, group)
        captions.setdefault(name, []).extend(_captions(cell))
    for name, image in images.items():
        texts = tuple(dict.fromkeys(captions[name]))
        found.add(Sample(name, image, captions=texts, group=groups[name]), needs="captions")


def _captions(row: Mapping[str, Any]) -> list[str]:
    """All captions of a row, without those that are empty."""
    values: list[Any] = []
    name = column(row, CAPTION_COLUMNS)
    if name is not None:
        values += _values(row[name], several=plain(name) == "captions")
    else:
        values += [row[key] for key in row if key.strip().lower().startswith("caption_")]
    texts = [v.get("raw", "") if isinstance(v, Mapping) else v for v in values]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


# --- choices ---


def choices(rows: Rows, found: Found, locate: Locate, *, group: str = "") -> None:
    """Samples whose first captions are right, and the pictures that they are about."""
    for key, row in rows:
        if "image_0" in row and "image_1" in row:
            _add_two(found, key, row, locate)
        elif "cue" in row:
            _add_cue(found, key, row, locate)
        else:
            _add_pair(found, key, row, locate, group)


def _add_two(found: Found, key: str, row: Mapping[str, Any], locate: Locate) -> None:
    """Winoground: two pictures, two captions, each fits one."""
    images = [locate(row["image_0"]), locate(row["image_1"])]
    key = str(row.get("id", key))
    if None in images:
        found.lose(key, "one of its pictures is not there")
        return
    texts = tuple(str(row.get(name) or "").strip() for name in ("caption_0", "caption_1"))
    if not all(texts):
        found.lose(key, "its caption is empty")
        return
    tag = row.get("collapsed_tag") or row.get("tag") or ""
    found.add(Sample(key, images, captions=texts, group=str(tag)))


def _add_cue(found: Found, key: str, row: Mapping[str, Any], locate: Locate) -> None:
    """WinoGAViL: a word, pictures, and those of them that people associate with it.

    The text is "A cue" or "An cue", in lower case, as DataComp's `wino_eval.py` asks.
    """
    candidates = _values(row.get("candidates"), several=True)
    wanted = _values(row.get("associations"), several=True)
    cells = row.get("candidate_images") or candidates
    images = [locate(cell) for cell in cells]
    labels = tuple(i for i, name in enumerate(candidates) if name in wanted)
    cue = str(row["cue"] or "").strip().lower()
    if None in images or len(images) != len(candidates):
        lost = [str(c) for c, image in zip(candidates, images, strict=False) if image is None]
        found.lose(key, f"pictures that are not there: {few(lost) or 'some'}")
    elif not cue or len(labels) != len(set(wanted)) or not labels:
        found.lose(key, "its cue is empty, or what it should find is not among its pictures")
    else:
        text = f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
        found.add(Sample(key, images, labels, (text,), group=str(len(images))))


def _add_pair(found: Found, key: str, row: Mapping[str, Any], locate: Locate, group: str) -> None:
    """SugarCrepe, ARO: a picture, a right text and a wrong one."""
    names = next((pair for pair in _PAIRS if all(name in row for name in pair)), None)
    if names is None:
        found.lose(key, "it has no pair of a right and a wrong text")
        return
    named = pick(dict(row), PATH_COLUMNS)
    image = None if named is None else locate(row if "bbox_x" in row else row[named])
    if image is None:
        found.lose(key, f"{'no path' if named is None else row[named]}: there is no such picture")
        return
    texts = tuple(str(row[name] or "").strip() for name in names)
    if not all(texts):
        found.lose(key, "its caption is empty")
        return
    kind = next((row[name] for name in _KIND if row.get(name)), group)
    kind = "_".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    found.add(Sample(key, [image], captions=texts, group=kind))
