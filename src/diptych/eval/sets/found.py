"""What every reader of a layout shares: samples as they are found, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diptych.data.lists import file_bytes
from diptych.errors import DataError, ShardError
from diptych.eval.sets.row import DataSet, Sample, Samples, Unused

__all__ = [
    "SPLITS",
    "Found",
    "Part",
    "Picture",
    "also_in",
    "few",
    "lines_of",
    "pictures_of",
    "split_folders",
    "text_of",
    "wanted_split",
]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
_TEXT_BYTES = 256 * 2**20  # of one annotation file; those of ARO and COCO have 10 to 150 MB
_HASHED = 512 * 2**20  # bytes that looking for equal pictures may read
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file, read when it is called: the picture of a member of a tar."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ShardError(
                f"{self.path}: ends {self.size - len(data):,} bytes before the end of a picture: "
                "it has changed since it was looked through. Bring it again."
            )
        return data


class Picture(NamedTuple):
    """A file, or a piece of one: its name, its size in bytes, and how to read it."""

    name: str
    size: int
    read: Callable[[], bytes]


@dataclass(slots=True)
class Found:
    """The samples of a set while a reader finds them. `num_classes`: None where it is not known."""

    num_classes: int | None = None
    samples: list[Sample] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _keys: set[str] = field(default_factory=set)

    def add(self, sample: Sample, *, needs: str = "") -> None:
        """Take a sample, or say why not. `needs`: "captions" or "labels" that it must have."""
        outside = [
            label
            for label in sample.labels
            if label < 0 or (self.num_classes is not None and label >= self.num_classes)
        ]
        if sample.key in self._keys:
            self.lose(sample.key, "an earlier sample has this key")
        elif outside:
            classes = "" if self.num_classes is None else f"{self.num_classes:,} "
            self.lose(sample.key, f"label {outside[0]} is outside the {classes}classes")
        elif needs == "captions" and not any(text.strip() for text in sample.captions):
            self.lose(sample.key, "its caption is empty")
        elif needs == "labels" and not sample.labels:
            self.lose(sample.key, "it has no label")
        else:
            self._keys.add(sample.key)
            self.samples.append(sample)

    def lose(self, key: str, reason: str) -> None:
        """Name a sample that cannot be used."""
        self.unused.append(Unused(key, reason))

    def flaw(self, reason: str, name: str, detail: str = "") -> None:
        """Name something that was lost beside samples, as `data.lists` and `data.shards` do."""
        self.lose(name, f"{reason}: {detail}" if detail else reason)

    def done(
        self,
        row: DataSet,
        where: Path,
        *,
        classes: Sequence[str] = (),
        templates: Sequence[str] = (),
    ) -> Samples:
        """All of it, with a note about each count that is not as it should be.

        Raises:
            DataError: there is not one sample; says the first reason.
        """
        if not self.samples:
            first = [f" The first: {lost.key}: {lost.reason}." for lost in self.unused[:1]]
            told = f" ({row.source})" if row.source else ""
            raise DataError(
                f"{where}: no sample of {row.name} that can be used; {len(self.unused):,} cannot."
                f"{''.join(first)} Check that it is a copy of {row.title}{told}."
            )
        notes = list(self.notes)
        if row.size is not None and len(self.samples) != row.size:
            notes.append(f"expected {row.size:,} samples, found {len(self.samples):,}")
        if self.unused:
            reasons = Counter(u.reason for u in self.unused).most_common(_NAMED)
            told = "; ".join(f"{n:,} x {reason}" for reason, n in reasons)
            notes.append(f"{len(self.unused):,} could not be used: {told}")
        notes += self._without_picture(row, classes)
        return Samples(
            samples=self.samples,
            classes=tuple(classes),
            templates=tuple(templates),
            unused=tuple(self.unused),
            notes=tuple(notes),
        )

    def _without_picture(self, row: DataSet, classes: Sequence[str]) -> list[str]:
        if row.task not in ("classification", "multilabel") or self.num_classes is None:
            return []
        seen = {label for sample in self.samples for label in sample.labels}
        missing = [c for c in range(self.num_classes) if c not in seen]
        if not missing:
            return []
        called = few([classes[c] if c < len(classes) else f"class {c}" for c in missing])
        count = f"{len(missing):,} of {self.num_classes:,} classes"
        return [f"{count} have no picture and only stand in the way: {called}"]


def few(names: Sequence[str], most: int = _NAMED) -> str:
    """The first of some names, as a phrase."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def text_of(path: Path, limit: int = _TEXT_BYTES) -> str:
    """A text file of bounded size, in UTF-8.

    Raises:
        DataError: unreadable, too large, or not UTF-8.
    """
    data, why_not, detail = file_bytes(path, limit)
    if data is None:
        raise DataError(f"{path}: {why_not}: {detail}. Check the file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error}). Save it as UTF-8.") from error


def lines_of(path: Path) -> tuple[str, ...]:
    """The lines of a text file without those at its end that are empty; () if there is no file."""
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in text_of(path, 2**24).rstrip().splitlines())


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder` that are called like splits, by their name."""
    called = {name for names in SPLITS.values() for name in names}
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in called}


def wanted_split(folder: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The folder of the wanted split and the others: `folder` itself where there are no splits.

    Raises:
        DataError: there are splits, and the wanted one is not among them.
    """
    splits = split_folders(folder)
    for name in (split, *SPLITS.get(split, ())):
        for found, path in splits.items():
            if found.lower() == name:
                return path, {n: p for n, p in splits.items() if p != path}
    if splits:
        raise DataError(
            f"{folder}: has {', '.join(splits)} and no {split}, which the protocol measures. "
            f"Bring the folder {split}."
        )
    return folder, {}


def pictures_of(paths: Iterable[Path], folder: Path) -> list[Picture]:
    """Those of the paths that are files, called by their path in `folder`."""
    return [
        Picture(path.relative_to(folder).as_posix(), path.stat().st_size, path.read_bytes)
        for path in paths
        if path.is_file()
    ]


def also_in(mine: Iterable[Picture], others: Iterable[Picture]) -> list[str]:
    """Notes about pictures of `mine` whose bytes are among `others`, or twice in `mine`.

    Only files of equal size are read. Where that is more than 512 MB, only those that have the same
    file name too; the note says so, and `diptych eval overlap` looks at everything.
    """
    mine, others = list(mine), list(others)
    notes = []
    within = _equal(mine, mine, notes)
    across = _equal(mine, others, notes) if others else []
    for pairs, where in ((across, "are in another split too"), (within, "are in the split twice")):
        if pairs:
            named = few([f"{a} = {b}" for a, b in pairs])
            notes.append(f"{len(pairs):,} pictures {where}, byte for byte: {named}")
    return notes


def _equal(
    mine: Sequence[Picture], others: Sequence[Picture], notes: list[str]
) -> list[tuple[str, str]]:
    same = mine is others
    sizes = Counter(p.size for p in others)
    near = [p for p in mine if p.size and sizes[p.size] > same]
    wanted = {p.size for p in near}
    far = [] if same else [p for p in others if p.size in wanted]
    if sum(p.size for p in (*near, *far)) > _HASHED:
        if same:
            return []
        names = {_base(p) for p in near} & {_base(p) for p in far}
        near, far = ([p for p in some if _base(p) in names] for some in (near, far))
        notes.append(
            "equal pictures in two splits were looked for among those of the same name and size "
            "alone; diptych eval overlap looks at all"
        )
    known: dict[bytes, str] = {}
    pairs = []
    for picture in far:
        known.setdefault(_hash(picture), picture.name)
    for picture in near:
        digest = _hash(picture)
        if digest in known:
            pairs.append((picture.name, known[digest]))
        elif same:
            known[digest] = picture.name
    return pairs


def _base(picture: Picture) -> str:
    return picture.name.rpartition("/")[2]


def _hash(picture: Picture) -> bytes:
    try:
        return hashlib.sha256(picture.read()).digest()
    except (OSError, ShardError):  # named when it is decoded
        return picture.name.encode()
