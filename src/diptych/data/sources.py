"""What a source is: tar shards, a list, or a folder; from what a person types to the files.

- A path, a pattern with `{0000..0099}` or `{a,b}`, or with `*`, `?`, `[...]`.
- A folder: its captions.csv, metadata.csv or metadata.jsonl, or else the tars in it, or else its
  pictures, each with a `.txt` of the same stem.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.data.shards import SHARD_SUFFIXES
from diptych.errors import DataError

__all__ = ["LISTS", "Source", "as_sources", "files_of"]

LISTS = (
    *("captions.csv", "captions.tsv", "captions.jsonl"),
    *("metadata.csv", "metadata.jsonl", "metadata.parquet"),
)
_CAPTIONED = SHARD_SUFFIXES - {".txt", ".lst"}  # those hold paths alone
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One source of pairs.

    Attributes:
        path: see above.
        weight: its share of each batch, in any unit; all sources have one, or none.
        image_key: the column of the paths in a list; None: path, image_path, filepath, ...
        caption_key: the column (in a tar: of the JSON) with the caption or captions; None: caption,
            captions, text, title (in a tar: the `.txt` first).
    """

    path: str
    weight: float | None = None
    image_key: str | None = None
    caption_key: str | None = None


def as_sources(given: Sequence[str | Path | Source] | str | Path | Source) -> list[Source]:
    """A list of sources from a path, a source, or several of them.

    Raises:
        DataError: none, or some with a weight and some without.
    """
    if isinstance(given, str | Path | Source):
        given = [given]
    found = [part if isinstance(part, Source) else Source(path=str(part)) for part in given]
    weighted = [part.path for part in found if part.weight is not None]
    if not found:
        raise DataError("no source of pairs. Give a folder, a list, or tar shards.")
    if weighted and len(weighted) < len(found):
        without = next(part.path for part in found if part.weight is None)
        raise DataError(f"{without}: has no weight, and {weighted[0]} has. Give all, or none.")
    return found


def files_of(source: Source) -> list[Path]:
    """The files of a source in their order: tars, one list, or one folder of pictures.

    Raises:
        DataError: nothing there, some of a pattern's files missing, or a file of another kind.
    """
    text = str(Path(source.path).expanduser())
    paths = list(_braces(text))
    found: list[Path] = []
    missing: list[str] = []
    for path in paths:
        if Path(path).exists():
            found.append(Path(path))
        elif matches := _glob(path):
            found += matches
        else:
            missing.append(path)
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{source.path}: {len(missing):,} of {len(paths):,} files are not there: {names}. "
            "Bring them, or give a pattern of those that are."
        )
    files = [file for path in found for file in (_in_folder(path) if path.is_dir() else [path])]
    for file in files:
        if file.is_file() and file.suffix.lower() not in _CAPTIONED:
            known = ", ".join(sorted(_CAPTIONED))
            raise DataError(
                f"{file}: holds no captions by its name. Give a folder, or files that end in "
                f"{known}."
            )
    return files


def _in_folder(folder: Path) -> list[Path]:
    if (folder / ".pack").is_dir():  # of `pack`, until it is done
        raise DataError(
            f"{folder}: was not packed to its end. Type the same diptych curate pack again."
        )
    for name in LISTS:
        if (folder / name).is_file():
            return [folder / name]
    return sorted(folder.glob("*.tar")) or sorted(folder.glob("*/*.tar")) or [folder]


def _glob(path: str) -> list[Path]:
    if not re.search(r"[*?\[]", path):
        return []
    base = Path(Path(path).anchor or ".")
    return sorted(base.glob(str(Path(path).relative_to(base))))


def _braces(text: str) -> Iterator[str]:
    """`a{0..2}b{x,y}` to all of its names; a range keeps its zeros in front."""
    parts = re.split(r"\{([^{}]*)\}", text)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    for chosen in itertools.product(*choices):
        yield "".join(chosen)


def _choices(inside: str) -> list[str]:
    if not (span := _RANGE.fullmatch(inside)):
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = span.groups()
    width = len(first) if first.startswith("0") else 0
    return [f"{i:0{width}}" for i in range(int(first), int(last) + 1)]
