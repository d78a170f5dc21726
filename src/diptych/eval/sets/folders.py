"""A folder per class: SPLIT/CLASS/*.jpg or CLASS/*.jpg, and MVTec AD's good and defective parts.

- A class is a folder that holds pictures: a name, a WordNet id, a number (ImageNet-V2), or a path
  of several ("a/abbey" of SUN397). Which row of the list it is: `names`.
- Other splits beside the wanted one are compared with it: pictures in both are named.
- ObjectNet, known by `mappings/folder_to_objectnet_label.json`: its folders are called by that
  file, and the red border of 2 pixels is cut off, as its terms ask.
- MVTec AD, CATEGORY/test/good and CATEGORY/test/DEFECT: label 0 is good, 1 a defect; the group is
  the category. Its masks belong to `diptych anomaly`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diptych.data.shards import as_object
from diptych.engine.stream import readable_suffixes
from diptych.errors import DataError
from diptych.eval.sets.found import (
    Found,
    also_in,
    few,
    lines_of,
    pictures_of,
    text_of,
    wanted_split,
)
from diptych.eval.sets.names import Names, numbers_of_folders
from diptych.eval.sets.row import DataSet, Sample, Samples
from diptych.preprocess.open import open_image

__all__ = [
    "TEMPLATES_FILE",
    "Crop",
    "is_folders",
    "is_mvtec",
    "pictures_below",
    "read_folders",
    "read_mvtec",
]

TEMPLATES_FILE = "zeroshot_classification_templates.txt"
_MOST_OTHERS = 200_000  # files of other splits that are looked at
_OBJECTNET = "folder_to_objectnet_label.json"
_BORDER = 2  # pixels


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a picture, opened when it is called: (left, upper, right, lower) in pixels.

    Negative `right` and `lower` count from the other side.
    """

    path: Path
    box: tuple[int, int, int, int]

    def __call__(self) -> Image.Image:
        """Raises ImageError where the picture cannot be read."""
        image = open_image(self.path)
        left, upper, right, lower = self.box
        right += image.width if right <= 0 else 0
        lower += image.height if lower <= 0 else 0
        return image.crop((left, upper, max(right, left + 1), max(lower, upper + 1)))


def pictures_below(folder: Path) -> Iterator[Path]:
    """The pictures below a folder by their names, sorted; hidden files and folders are none."""
    suffixes = readable_suffixes()
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(root, name)


def is_folders(folder: Path, row: DataSet) -> bool:
    """Whether folders in it hold pictures."""
    del row
    return any(path.parent != folder for path in pictures_below(folder))


def read_folders(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """The pictures of the row's split, labelled by their folder.

    Raises:
        DataError: no such split, folders that fit no list, or classes without a folder.
    """
    if row.task not in ("classification", "multilabel"):
        raise DataError(
            f"{folder}: has pictures in folders, which say nothing of captions, and {row.name} is "
            f"measured by {row.task}. Bring its list too (see {row.source or 'its publisher'})."
        )
    where, others = wanted_split(folder, row.split)
    found = Found()
    mapping = _objectnet(folder)
    pictures = list(pictures_below(where))
    folders = _class_folders(where, pictures)
    called = [mapping.get(name, name) for name in folders]
    if names is None:
        classes: Sequence[str] = [name.replace("_", " ") for name in called]
        numbers: list[int | None] = list(range(len(called)))
        found.num_classes = len(called)
        _check_number(row, where, folders)
    else:
        numbers, notes = numbers_of_folders(called, names, where, partial=partial)
        classes = [n[0] for n in names.names]
        found.num_classes = len(classes)
        found.notes += notes
    number_of = dict(zip(folders, numbers, strict=True))
    kept = _take(found, folder, where, pictures, number_of, crop=bool(mapping))
    found.notes += _compared(folder, kept, others)
    return found.done(
        row,
        where,
        classes=classes,
        templates=[t.replace("{c}", "{}") for t in lines_of(folder / TEMPLATES_FILE)],
    )


def _check_number(row: DataSet, where: Path, folders: Sequence[str]) -> None:
    if row.num_classes is not None and len(folders) != row.num_classes:
        raise DataError(
            f"{where}: has {len(folders):,} folders of pictures, and {row.title} has "
            f"{row.num_classes:,} classes: {few(folders)}. Bring those that are missing, or take "
            "away what is none."
        )


def _class_folders(where: Path, pictures: Sequence[Path]) -> list[str]:
    """Names of the classes: of folders with pictures, and of empty ones at the top."""
    found = {path.parent.relative_to(where).as_posix() for path in pictures} - {"."}
    return sorted(found)


def _take(
    found: Found,
    folder: Path,
    where: Path,
    pictures: Sequence[Path],
    number_of: dict[str, int | None],
    *,
    crop: bool,
) -> list[Path]:
    """Give the pictures their labels; returns those that were taken."""
    kept, outside, loose = [], 0, []
    for path in pictures:
        key = path.relative_to(folder).as_posix()
        below = path.parent.relative_to(where).as_posix()
        number = number_of.get(below)
        if below == ".":
            loose.append(key)
        elif number is None:
            outside += 1
        elif path.is_file() and not path.stat().st_size:
            found.lose(key, "is empty (0 bytes)")
        else:
            image = Crop(path, (_BORDER, _BORDER, -_BORDER, -_BORDER)) if crop else path
            found.add(Sample(key, image, labels=(number,)))
            kept.append(path)
    if outside:
        found.notes.append(f"{outside:,} pictures are in folders that are no class: left out")
    for key in loose:
        found.lose(key, "lies beside the class folders")
    return kept


def _compared(folder: Path, kept: Sequence[Path], others: dict[str, Path]) -> list[str]:
    beside = []
    for split in others.values():
        for path in pictures_below(split):
            if len(beside) == _MOST_OTHERS:
                return [
                    f"more than {_MOST_OTHERS:,} pictures in other splits: they were not compared. "
                    "Type: diptych eval overlap"
                ]
            beside.append(path)
    return also_in(pictures_of(kept, folder), pictures_of(beside, folder))


def _objectnet(folder: Path) -> dict[str, str]:
    """Folder names to labels where the publisher's file is there, else {}."""
    for path in (folder / _OBJECTNET, folder / "mappings" / _OBJECTNET):
        if path.is_file():
            try:
                pairs = as_object(text_of(path, 2**20))
            except ValueError as error:
                raise DataError(f"{path}: {error}. Bring it again.") from error
            return {str(key): str(value) for key, value in pairs.items()}
    return {}


# --- MVTec AD ---


def is_mvtec(folder: Path, row: DataSet) -> bool:
    """Whether it is a category of MVTec AD, or holds some."""
    del row
    return bool(_categories(folder))


def _categories(folder: Path) -> list[Path]:
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return [p for p in places if (p / "test" / "good").is_dir() and (p / "train").is_dir()]


def read_mvtec(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """The test pictures: label 0 from the folder good, 1 from all others."""
    del names, partial
    found = Found(num_classes=2)
    tests, trains = [], []
    for category in _categories(folder):
        trains += pictures_below(category / "train")
        for path in pictures_below(category / "test"):
            kind = path.relative_to(category / "test").parts[0]
            key = path.relative_to(folder).as_posix()
            found.add(Sample(key, path, labels=(int(kind != "good"),), group=category.name))
            tests.append(path)
    found.notes += also_in(*(pictures_of(some, folder) for some in (tests, trains)))
    return found.done(row, folder, classes=("good", "defect"))
