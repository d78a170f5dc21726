"""Videos as UCF101 and Kinetics have them: one in a class folder, as a file or as its frames.

- CLASS/VIDEO.avi, or CLASS/VIDEO/frame_0001.jpg; SPLIT/ before CLASS where there are splits.
- UCF101's `testlist01.txt` (also in `ucfTrainTestlist/`) says which videos are its test split.
- The middle picture of a video stands for it (CLIP, arXiv 2103.00020, appendix A.1).
- Video files need the extra `photos`; folders of frames do not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diptych.engine.stream import VIDEO_SUFFIXES
from diptych.eval.sets.folders import pictures_below
from diptych.eval.sets.found import Found, also_in, lines_of, pictures_of, wanted_split
from diptych.eval.sets.names import Names, numbers_of_folders
from diptych.eval.sets.row import DataSet, Sample, Samples

__all__ = ["Middle", "is_videos", "read_videos"]

_KEPT = 16  # pictures of a video in memory while its middle is looked for
_LISTS = ("testlist01.txt", "ucfTrainTestlist/testlist01.txt")
_FRAME_NAMES = ("frame", "img", "image")


@dataclass(frozen=True, slots=True)
class Middle:
    """The middle picture of a video file, decoded when it is called."""

    path: Path

    def __call__(self) -> Image.Image:
        """Of pictures at least half a second apart, the middle one.

        Raises:
            ImageError: the video cannot be read.
            MissingExtraError: PyAV is not installed.
        """
        from diptych.engine.video import frames

        kept: list[Image.Image] = []
        stride = 1
        for i, (_, picture) in enumerate(frames(self.path, every=0.5)):
            if i % stride == 0:
                kept.append(picture)
            if len(kept) == _KEPT:  # too long to keep all: every other one, from now on too
                kept, stride = kept[::2], 2 * stride
        return kept[len(kept) // 2]


def is_videos(folder: Path, row: DataSet) -> bool:
    """Whether there are video files below it, or folders of numbered frames in class folders."""
    del row
    for root, folders, files in os.walk(folder):
        folders.sort()
        if any(Path(name).suffix.lower() in VIDEO_SUFFIXES for name in files):
            return True
        if files and _is_frames(Path(root), files) and Path(root).parent != folder:
            return True
        if any(Path(name).suffix.lower() in (".jpg", ".jpeg", ".png") for name in files):
            return False  # one folder with pictures says enough
    return False


def _is_frames(folder: Path, files: Sequence[str]) -> bool:
    stems = [Path(name).stem.lower() for name in sorted(files) if not name.startswith(".")]
    return folder.parent != folder and all(
        stem.startswith(_FRAME_NAMES) and stem.rstrip("0123456789") != stem for stem in stems
    )


def read_videos(folder: Path, row: DataSet, names: Names | None, *, partial: bool) -> Samples:
    """A sample a video, with a list of one picture.

    Raises:
        DataError: no such split, folders that fit no list, or classes without a folder.
    """
    listed = next((lines for name in _LISTS if (lines := lines_of(folder / name))), ())
    where, others = (folder, {}) if listed else wanted_split(folder, row.split)
    videos = _videos(where)
    classes = sorted({path.parent.relative_to(where).as_posix() for path in videos} - {"."})
    found = Found(num_classes=len(classes) if names is None else len(names.names))
    if names is None:
        numbers: list[int | None] = list(range(len(classes)))
    else:
        numbers, notes = numbers_of_folders(classes, names, where, partial=partial)
        found.notes += notes
    number_of = dict(zip(classes, numbers, strict=True))
    wanted = _listed(found, videos, where, listed) if listed else videos
    for path in wanted:
        number = number_of.get(path.parent.relative_to(where).as_posix())
        key = path.relative_to(folder).as_posix()
        if number is None:
            found.lose(key, "lies in a folder that is no class")
            continue
        _add(found, key, path, number)
    found.notes.append("the middle picture of each video stands for it")
    beside = [path for split in others.values() for path in _videos(split)]
    found.notes += also_in(pictures_of(wanted, folder), pictures_of(beside, folder))
    called = classes if names is None else [n[0] for n in names.names]
    return found.done(row, where, classes=[name.replace("_", " ") for name in called])


def _videos(where: Path) -> list[Path]:
    """Video files and folders of frames, sorted."""
    found = set()
    for root, folders, files in os.walk(where):
        folders.sort()
        found |= {Path(root, f) for f in files if Path(f).suffix.lower() in VIDEO_SUFFIXES}
    frames = {path.parent for path in pictures_below(where)}
    return sorted(found | {path for path in frames if path != where})


def _listed(found: Found, videos: Sequence[Path], where: Path, listed: Sequence[str]) -> list[Path]:
    """Those of the list; one that is listed and not there is named."""
    known = {path.relative_to(where).with_suffix("").as_posix(): path for path in videos}
    wanted = []
    for line in filter(None, listed):
        name = line.split()[0]
        path = known.get(str(Path(name).with_suffix("")))
        if path is None:
            found.lose(name, "the list has it, and it is not there")
        else:
            wanted.append(path)
    return wanted


def _add(found: Found, key: str, path: Path, number: int) -> None:
    if path.is_file():
        found.add(Sample(key, [Middle(path)], labels=(number,)))
        return
    frames = [p for p in pictures_below(path) if p.parent == path]
    found.add(Sample(key, [frames[len(frames) // 2]], labels=(number,)))
