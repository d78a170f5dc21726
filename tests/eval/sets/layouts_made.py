"""Miniature files of each layout: a few pictures of 8 pixels, as the publishers lay them out."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.eval.sets import DataSet


def picture(number: int, form: str = "PNG", side: int = 8) -> bytes:
    """A picture of its own for each number."""
    rng = np.random.default_rng(number)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, form)
    return out.getvalue()


def put(path: Path, content: bytes | str | int) -> Path:
    """A file with its folders: bytes, text, or the picture of a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        content = picture(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def row(**settings) -> DataSet:
    """A row of three classes that the data name."""
    base = {"name": "pets", "title": "Pets", "task": "classification", "metric": "top1"}
    return DataSet(**(base | settings))


def class_folders(
    folder: Path,
    names: Sequence[str] = ("bird", "cat", "dog"),
    *,
    split: str = "test",
    each: int = 2,
) -> Path:
    """SPLIT/CLASS/N.png, a picture of its own each."""
    first = sum(map(ord, split))
    for c, name in enumerate(names):
        for i in range(each):
            put(folder / split / name / f"{i}.png", first + 100 * c + i)
    return folder


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def array(values: Sequence[float]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values), allow_pickle=False)
    return out.getvalue()


def web_data(
    folder: Path, *, split: str = "test", shards: int = 2, classes: Sequence[str] = ("bird", "cat")
) -> Path:
    """SPLIT/0.tar ... with two samples each, nshards.txt, classnames.txt, templates."""
    for shard in range(shards):
        members = []
        for i in range(2):
            members += [
                (f"s{i:07}.png", picture(hash_of(split) + 10 * shard + i)),
                (f"s{i:07}.cls", str(i % len(classes)).encode()),
            ]
        tar_of(folder / split / f"{shard}.tar", members)
    put(folder / split / "nshards.txt", f"{shards}\n")
    put(folder / "classnames.txt", "".join(f"{name}\n" for name in classes))
    put(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\nart of {c}\n")
    return folder


def hash_of(text: str) -> int:
    return 1000 * sum(map(ord, text))


def parquet(path: Path, columns: Mapping[str, Sequence], features: Mapping | None = None) -> Path:
    """A Parquet file as Hugging Face's datasets writes it; row groups of two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    if features is not None:
        described = json.dumps({"info": {"features": dict(features)}})
        table = table.replace_schema_metadata({"huggingface": described})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def cell(number: int, name: str = "x.png") -> dict:
    return {"bytes": picture(number), "path": name}


def video(path: Path, *, seconds: int = 3) -> Path:
    """A film of one grey level a second: 0, 60, 120 ..."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(4 * seconds):
            level = np.full((64, 64, 3), 60 * (i // 4), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(stream.encode())
    return path
