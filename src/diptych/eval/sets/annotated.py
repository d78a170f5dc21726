"""JSON beside pictures: Karpathy's splits of COCO and Flickr, SugarCrepe, ARO.

- Karpathy and Fei-Fei (arXiv 1412.2306): {"images": [{"split", "filename", "filepath",
  "sentences": [{"raw"}]}]}. Five captions a picture count, as in the published figures; COCO has
  some sixth and seventh ones.
- SugarCrepe: {"id": {"filename", "caption", "negative_caption"}}, a file each kind; the group is
  the file's name.
- ARO: [{"image_path", "true_caption", "false_caption", "bbox_x", ...}]; the picture is cut to the
  box, the group is the relation or the pair of attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diptych.errors import DataError
from diptych.eval.sets.folders import Crop
from diptych.eval.sets.found import SPLITS, Found, few, text_of
from diptych.eval.sets.names import Names
from diptych.eval.sets.row import DataSet, Sample, Samples
from diptych.eval.sets.table import choices, locator

__all__ = ["is_annotated", "read_annotated"]

_CAPTIONS = 5
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_DESCRIPTIONS = frozenset(["dataset_info.json", "dataset_infos.json"])
_HEAD = 4096  # bytes in which a file shows what it is


def is_annotated(folder: Path, row: DataSet) -> bool:
    """Whether there is a JSON file in it, or one folder down, that begins like one of these."""
    return bool(_files(folder, row))


def _files(folder: Path, row: DataSet) -> list[Path]:
    words = {
        "retrieval": (b'"sentids"', b'"sentences"', b'"split"'),
        "choice": (b'"negative_caption"', b'"false_caption"'),
    }.get(row.task, ())
    found = []
    for path in sorted((*folder.glob("*.json"), *folder.glob("*/*.json"))):
        if path.name not in _DESCRIPTIONS and path.is_file():
            with path.open("rb") as file:
                head = file.read(_HEAD)
            if any(word in head for word in words):
                found.append(path)
    return found


def read_annotated(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """The samples of the JSON files.

    Raises:
        DataError: a file that is no such JSON, none of the split, or no picture.
    """
    del names, partial
    found, files = Found(), _files(folder, row)
    for path in files:
        try:
            content = json.loads(text_of(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is no JSON ({error}). Bring it again.") from error
        if row.task == "retrieval":
            _karpathy(content, folder, path, row, found)
        else:
            _choices(content, folder, path, found)
    return found.done(row, files[0] if len(files) == 1 else folder)


def _karpathy(content: Any, folder: Path, path: Path, row: DataSet, found: Found) -> None:
    images = content.get("images") if isinstance(content, Mapping) else None
    if not isinstance(images, list) or not all(isinstance(i, Mapping) for i in images):
        raise DataError(f"{path}: has no list of images. Bring dataset_coco.json or its like.")
    wanted = (row.split, *SPLITS.get(row.split, ()))
    splits = {str(image.get("split")) for image in images}
    mine = [image for image in images if image.get("split") in wanted]
    if not mine:
        raise DataError(
            f"{path}: has images of the splits {few(sorted(splits), 8)} and none of {row.split}, "
            "which the protocol measures. Bring the file with that split."
        )
    locate, more = locator(folder), 0
    for image in mine:
        name = str(image.get("filename") or "")
        picture = locate(f"{image['filepath']}/{name}") if image.get("filepath") else None
        picture = picture or locate(name)
        if picture is None:
            found.lose(name, "there is no such picture")
            continue
        sentences = image.get("sentences") or []
        texts = [str(s.get("raw") or "").strip() for s in sentences if isinstance(s, Mapping)]
        texts = [text for text in texts if text]
        more += max(len(texts) - _CAPTIONS, 0)
        found.add(Sample(name, picture, captions=tuple(texts[:_CAPTIONS])), needs="captions")
    if more:
        found.notes.append(f"{more:,} captions beyond the fifth of a picture are left out")
    both = _in_two(images)
    if both:
        found.notes.append(f"{len(both):,} pictures are in two splits: {few(both)}")


def _in_two(images: list[Mapping[str, Any]]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for image in images:
        splits.setdefault(str(image.get("filename")), set()).add(str(image.get("split")))
    return sorted(name for name, some in splits.items() if len(some) > 1)


def _choices(content: Any, folder: Path, path: Path, found: Found) -> None:
    locate = locator(folder)

    def picture(cell: Any) -> Any:
        if not isinstance(cell, Mapping):
            return locate(cell)
        image = locate(cell.get("image_path"))
        box = [round(v) for name in _BOX if isinstance(v := cell.get(name), int | float)]
        if image is None or len(box) != len(_BOX):
            return image
        x, y, width, height = box
        return Crop(image, (x, y, x + max(width, 1), y + max(height, 1)))

    choices(_rows(content, path), found, picture, group=path.stem)


def _rows(content: Any, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(content, Mapping):
        items = list(content.items())
    elif isinstance(content, list):
        items = [(str(i), row) for i, row in enumerate(content)]
    else:
        items = []
    for key, row in items:
        if not isinstance(row, Mapping):
            raise DataError(f"{path}: {key!r} is no object with captions. Bring it again.")
        yield f"{path.stem}/{key}", row
