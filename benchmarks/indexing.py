"""`diptych index` on real pictures against the bare encoder, and 300,000 rows in the store.

    scripts/bench indexing build/packages [--rows 300000]

Pictures: the photographs, cut-outs, drawings and emoji of the packages that `recipes/mini.py fetch`
brings, as files in one folder. The encoder (`Encoder.stream` over that folder) and the index
(hash, decode, encode, commit with fsync) take turns, three rounds each, and the best of each
counts. The rows are synthetic: what is timed is the store and what is derived from it.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import diptych
from diptych.preprocess.metadata import Metadata
from diptych.search.collection import Collection
from diptych.search.filters import Filters
from diptych.search.indexing import update
from diptych.search.records import Content, Root
from diptych.search.rows import Rows, refresh
from diptych.search.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import packages
import photographs

ROUNDS = 3


def gather(folder: Path, to: Path) -> int:
    """Every picture of the packages as a file below `to`; returns how many."""
    unpacked = packages.unpack(folder)
    number = 0
    for name, pictures in photographs.sets(unpacked).items():
        (to / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            suffix = ".jpg" if picture.data.startswith(b"\xff\xd8") else ".png"
            (to / name / f"{i}{suffix}").write_bytes(picture.data)
            number += 1
    for name in ("openclipart-png", "lobehub-fluent-emoji-3d"):
        (to / name).mkdir()
        files = sorted(p for p in (unpacked / name).rglob("*") if p.suffix in (".png", ".webp"))
        for i, file in enumerate(files[:: max(1, len(files) // 600)]):
            shutil.copy(file, to / name / f"{i}{file.suffix}")
            number += 1
    return number


def pictures(folder: Path) -> None:
    encoder = diptych.load("mini")
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "library")
        number = gather(folder, library)
        size = sum(p.stat().st_size for p in library.rglob("*") if p.is_file())
        best = {"encode": float("inf"), "index": float("inf")}
        for i in range(ROUNDS):
            start = time.perf_counter()
            good = sum(len(batch.keys) for batch in encoder.stream(library))
            best["encode"] = min(best["encode"], time.perf_counter() - start)
            with Store(Path(scratch, f"collection {i}"), create=True) as store:
                start = time.perf_counter()
                with store.writer() as writer:
                    outcome = update(
                        store, writer, encoder, [Root(path=str(library))], options={"name": "mini"}
                    )
                    refresh(store, outcome.model)
                best["index"] = min(best["index"], time.perf_counter() - start)
        with Store(Path(scratch, "collection 0")) as store, store.writer() as writer:
            start = time.perf_counter()
            again = update(
                store, writer, encoder, [Root(path=str(library))], options={"name": "mini"}
            )
            unchanged = time.perf_counter() - start
        assert (again.added, again.failed, again.removed) == (0, 0, 0)
        with Collection(Path(scratch, "collection 0"), encoder=encoder) as photos:
            photos.search("a dog")
            start = time.perf_counter()
            answer = photos.search("a bird on a branch")
            asked = time.perf_counter() - start
    print(f"{number:,} pictures, {size / 1e6:,.0f} MB, mini, {good:,} can be decoded")
    for name, seconds in best.items():
        print(f"  {name:8} {seconds:7.1f} s   {good / seconds:7.1f} pictures/s")
    print(f"  index / encode: {best['encode'] / best['index']:.1%} of the rate")
    print(f"  {outcome.added:,} different contents; indexed again, unchanged: {unchanged:.2f} s")
    print(f"  one question, model loaded: {1000 * asked:.0f} ms, {len(answer.hits)} hits")


def rows(number: int, dim: int = 384) -> None:
    encoder = diptych.load("mini")
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(dim)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "collection")
        start = time.perf_counter()
        with Store(folder, create=True) as store, store.writer() as writer:
            model = None
            stat = Path(__file__).stat()
            for first in range(0, number, 2000):
                vectors = 0.7 * mean + rng.standard_normal((min(2000, number - first), dim))
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                with writer.transaction():
                    model = model or writer.add_model(
                        fingerprint=encoder.fingerprint, name="mini", options={"name": "mini"},
                        precision="fp32", dim=dim,
                    )  # fmt: skip
                    for i, vector in enumerate(vectors, first):
                        content = writer.put_content(
                            Content(
                                sha256=i.to_bytes(32), size=i, kind="image",
                                metadata=Metadata(
                                    width=4000, height=3000, format="JPEG", camera="A camera",
                                    taken=f"20{i % 25:02}-05-01T12:00:00", latitude=None,
                                    longitude=None,
                                ),
                            )
                        )  # fmt: skip
                        writer.put_vectors(model, content, vector[None], hashes=[i])
                        writer.put_file(f"/photos/{i % 300}/{i}.jpg", stat, content)
            times = {"written": time.perf_counter() - start}
            assert model is not None
            start = time.perf_counter()
            refresh(store, model, force=True)
            times["matrix built"] = time.perf_counter() - start
            start = time.perf_counter()
            Rows(store, model)
            times["opened"] = time.perf_counter() - start
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        matrix = sum(p.stat().st_size for p in (folder / "derived").rglob("*") if p.is_file())
        with Collection(folder, encoder=encoder) as photos:
            year = Filters(after="2020", before="2021")
            for name, filters in (("first", None), ("next", None), ("of one year", year)):
                start = time.perf_counter()
                photos.search("a dog on the beach", filters=filters)
                times[f"question, {name}"] = time.perf_counter() - start
    print(f"{number:,} rows x {dim}: {size / 1e6:,.0f} MB, of that derived {matrix / 1e6:,.0f}")
    for name, seconds in times.items():
        print(f"  {name:24} {1000 * seconds:10,.0f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  memory of the process at its peak: {peak:,.0f} MB, torch and mini included")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="where `recipes/mini.py fetch` put them")
    parser.add_argument("--rows", type=int, default=300_000)
    options = parser.parse_args()
    pictures(options.packages)
    print()
    rows(options.rows)


if __name__ == "__main__":
    main()
