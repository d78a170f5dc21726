"""Small sources of pairs: pictures, tars, lists."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size=(24, 20)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(i, *, image=None, text=None, meta=None):
    """Members of one sample."""
    yield f"{i:04}.jpg", picture(i) if image is None else image
    yield f"{i:04}.txt", (f"picture number {i}" if text is None else text).encode()
    if meta is not None:
        yield f"{i:04}.json", json.dumps(meta).encode()


@pytest.fixture
def made():
    """The functions above, for test modules, which are not importable from here."""

    class Made:
        picture, pair, tar = map(staticmethod, (picture, pair, write_tar))

        @staticmethod
        def shards(folder, sizes, *, start=0):
            folder.mkdir(parents=True, exist_ok=True)
            for number, size in enumerate(sizes):
                members = [m for i in range(start, start + size) for m in pair(i)]
                write_tar(folder / f"{number:04}.tar", members)
                start += size
            return str(folder / f"{{0000..{len(sizes) - 1:04}}}.tar")

        @staticmethod
        def table(path, rows, **how):
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), **how)
                writer.writeheader()
                writer.writerows(rows)
            return path

    return Made
