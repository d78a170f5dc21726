"""kill -9 at random moments: what was reported is there, and the end is that of a clean run."""

import multiprocessing
import random
import time
from pathlib import Path

import killed
import numpy as np
import pytest
from pictures import TINY, picture

import diptych
from diptych.search.rows import Rows
from diptych.search.store import Store

pytestmark = pytest.mark.slow
KILLS, PICTURES = 30, 400
SIZE = (300, 200)


def run(*arguments, until=lambda: False) -> int:
    """The exit code of a child that is killed as soon as `until` says so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed"])
    child = context.Process(target=killed.main, args=[str(argument) for argument in arguments])
    child.start()
    while child.is_alive() and not until():
        time.sleep(0.002)
    child.kill()
    child.join()
    code = child.exitcode
    child.close()
    assert code in (0, -9), "the child failed by itself"
    return code


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def contents(folder: Path) -> dict[str, np.ndarray]:
    with Store(folder) as store:
        rows = store.rows(
            "SELECT f.path, v.vector FROM files f JOIN vectors v ON v.content=f.content"
        )
        return {path: np.frombuffer(blob, "<f2").astype(np.float32) for path, blob in rows}


def nearest(folder: Path, queries: np.ndarray) -> list[str]:
    with Store(folder) as store:
        rows = Rows(store, store.models()[0])
        assert rows.num_vectors == store.num_vectors(store.models()[0])
        found = [int(rows.ids[rows.topk(query, 1)[1][0]]) for query in queries]
        listed = store.rows("SELECT v.id, f.path FROM vectors v JOIN files f USING (content)")
        paths = dict(listed)
        return [paths[key] for key in found]


def test_thirty_kills_while_indexing_and_building_the_matrix(tmp_path):
    rng = random.Random(0)
    library, collection = tmp_path / "library", tmp_path / "collection"
    library.mkdir()
    model = tmp_path / "tiny.safetensors"
    diptych.zoo.save(diptych.build(TINY, seed=0), model)
    for i in range(PICTURES):
        picture(i, SIZE).save(library / f"{i}.png")
    kills, finished, safe = {"indexing": 0, "building": 0}, 0, set()
    for turn in range(10**6):
        if sum(kills.values()) >= KILLS:
            break
        told, start = tmp_path / f"told {turn}", time.monotonic()
        phase = "building" if kills["building"] < KILLS // 3 and rng.random() < 0.5 else "indexing"
        wait = rng.uniform(0, 0.1 if phase == "building" else 0.9)

        def until(told=told, start=start, phase=phase, wait=wait) -> bool:
            if phase == "building" and "indexed" in lines(told):
                time.sleep(wait)
                return True
            return phase == "indexing" and time.monotonic() - start > wait

        code = run(library, collection, told, model, until=until)
        safe |= set(lines(told)) - {"indexed", "whole"}
        if code == -9:
            kills["building" if "indexed" in lines(told) else "indexing"] += 1
        if safe:
            there = contents(collection)
            missing = safe - set(there)
            assert not missing, f"{kills}: {len(missing)} acknowledged files are not there"
            nearest(collection, np.stack(list(there.values())[:3]))
        if code == 0 or "indexed" in lines(told):  # nothing left to interrupt: change something
            finished += 1
            for i in rng.sample(range(PICTURES), 150):
                picture(rng.randrange(10**6), SIZE).save(library / f"{i}.png")
            safe = set()
    for folder in (collection, tmp_path / "clean"):
        assert run(library, folder, tmp_path / f"{folder.name}.told", model) == 0
    survivor, clean = contents(collection), contents(tmp_path / "clean")
    assert sorted(survivor) == sorted(clean)
    assert len(clean) == PICTURES
    for path, vector in clean.items():  # batches were cut otherwise: fp16's last bit may differ
        np.testing.assert_allclose(survivor[path], vector, atol=1e-3)
    queries = np.stack(list(clean.values())[:50])
    assert nearest(collection, queries) == nearest(tmp_path / "clean", queries)
    assert min(kills.values()) >= KILLS // 4
    print(f"killed while {kills}; {finished} times everything was indexed between them")
