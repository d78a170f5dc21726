"""Bulk embedding: each sample once, whatever workers meet, sleep, die or are started again."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.engine.bulk import (
    Place,
    Task,
    default_workers,
    expand,
    finished,
    place,
    plan,
    read_manifest,
    run_here,
    run_local,
    run_ray,
    work,
)
from diptych.engine.bulk.lease import claim, leased
from diptych.engine.bulk.worker import Told
from diptych.errors import ConfigError, DiptychError, ShardError
from diptych.preprocess import Limits

pq = pytest.importorskip("pyarrow.parquet")


def picture(seed: int, size=(60, 50)) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def shard(path, seeds, *, extra=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    members = []
    for seed in seeds:
        members.append((f"{seed:05}.png", picture(seed)))
        members.append((f"{seed:05}.txt", f"picture {seed}".encode()))
        members.append((f"{seed:05}.json", json.dumps({"seed": seed}).encode()))
    with tarfile.open(path, "w") as tar:
        for name, data in [*members, *extra]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def data(tmp_path):
    for i in range(4):
        shard(tmp_path / "data" / f"{i}.tar", range(10 * i, 10 * i + 10))
    return tmp_path / "data"


def run(enc, data, out, **rest):
    told = []
    jobs = plan(expand([data]), out)
    work(jobs, enc, model="tiny", told=told.append, **rest)
    assert sorted(one.path for one in told) == sorted(job.path for job in jobs)
    return {one.path.name: one for one in told}


def rows(folder):
    """key -> (row, vector)"""
    vectors, table = np.load(folder / "vectors.npy"), pq.read_table(folder / "rows.parquet")
    assert vectors.dtype == np.float16
    assert len(vectors) == len(table)
    pairs = zip(table.to_pylist(), vectors, strict=True)
    return {row["key"]: (row, vector) for row, vector in pairs}


def all_rows(out):
    found = {}
    for folder in sorted(out.iterdir()):
        here = rows(folder)
        assert not here.keys() & found.keys()
        found |= here
    return found


def test_one_shard_becomes_one_folder(enc, tmp_path):
    bad = [("bad.jpg", b"no image"), ("bad.txt", b"x"), ("words.txt", b"alone")]
    path = shard(tmp_path / "a.tar", range(40), extra=bad)
    told = run(enc, path, tmp_path / "out")["a.tar"]
    assert told.state == "done"
    found = rows(told.folder)
    assert list(found) == [f"{seed:05}" for seed in range(40)]
    row, _ = found["00007"]
    assert (row["caption"], json.loads(row["meta"])) == ("picture 7", {"seed": 7})
    assert (row["width"], row["height"]) == (60, 50)
    assert row["sha256"] == hashlib.sha256(picture(7)).hexdigest()
    expected = enc.encode_image([picture(seed) for seed in range(40)])
    np.testing.assert_allclose(np.stack([v for _, v in found.values()]), expected, atol=5e-4)
    manifest = read_manifest(told.folder)
    assert manifest == told.manifest
    assert (manifest.seen, manifest.rows, manifest.errors) == (42, 40, 1)
    assert manifest.drops == {"no image": 1}
    assert manifest.fingerprint == enc.fingerprint
    assert manifest.input.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, sha256 in manifest.files.items():
        assert hashlib.sha256((told.folder / name).read_bytes()).hexdigest() == sha256
    errors = [json.loads(line) for line in (told.folder / "errors.jsonl").read_text().splitlines()]
    assert [(e["key"], e["reason"]) for e in errors] == [("words", "no image"), ("bad", "image")]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [told.folder.name]


def test_upright_size_of_a_turned_photograph(enc, tmp_path):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    path = shard(tmp_path / "a.tar", [], extra=[("t.jpg", file.getvalue())])
    row, _ = rows(run(enc, path, tmp_path / "out")["a.tar"].folder)["t"]
    assert (row["width"], row["height"]) == (30, 40)


def test_few_bytes_ahead(enc, data, tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.engine.bulk.unit._BYTES_AHEAD", 1)
    run(enc, data, tmp_path / "out")
    assert len(all_rows(tmp_path / "out")) == 40


def test_a_list_is_a_shard(enc, tmp_path, photos):
    (tmp_path / "list.csv").write_text(f"path,caption\n{photos}/00.png,one\n{photos}/gone.png,\n")
    told = run(enc, tmp_path / "list.csv", tmp_path / "out")["list.csv"]
    assert told.manifest.drops == {"no such file": 1}
    row, vector = rows(told.folder)[f"{photos}/00.png"]
    assert row["caption"] == "one"
    np.testing.assert_allclose(vector, enc.encode_image(f"{photos}/00.png")[0], atol=5e-4)


def test_a_second_run_does_nothing(enc, data, tmp_path, monkeypatch):
    run(enc, data, tmp_path / "out")
    monkeypatch.setattr("diptych.engine.bulk.unit.read_shard", None)  # would fail if called
    os.utime(data / "0.tar")  # the same bytes
    assert {t.state for t in run(enc, data, tmp_path / "out", retry_failed=True).values()} == {
        "known"
    }


def test_names_tell_folders_apart_and_do_not_depend_on_the_others(tmp_path):
    paths = [tmp_path / "x" / "0.tar", tmp_path / "y" / "0.tar"]
    both = plan(paths, tmp_path / "out")
    assert both[0].folder != both[1].folder
    assert plan(paths[1:], tmp_path / "out") == both[1:]
    assert plan([os.path.relpath(paths[0])], tmp_path / "out") == both[:1]


def test_what_does_not_belong_together_is_refused(enc, tiny, data, tmp_path):
    run(enc, data, tmp_path / "out")
    other = diptych.build(tiny, seed=2, precision="fp32")
    with pytest.raises(ConfigError, match=r"holds vectors of tiny .* Give another --out"):
        run(other, data, tmp_path / "out")
    shard(data / "0.tar", range(11))
    told = run(enc, data, tmp_path / "out")
    assert told["0.tar"].state == "failed"
    assert "Type: rm -r" in told["0.tar"].error
    assert told["1.tar"].state == "known"


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(enc, data, tmp_path):
    (data / "0.tar").unlink()
    (data / "0.tar").symlink_to("nowhere")
    told = run(enc, data, tmp_path / "out")
    assert told["0.tar"].state == "failed"
    assert "Check the path" in told["0.tar"].error
    assert [told[f"{i}.tar"].state for i in (1, 2, 3)] == ["done"] * 3


def test_wrong_inputs(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    for given in (tmp_path, tmp_path / "*.tar", tmp_path / "x.jpg"):
        with pytest.raises(ShardError, match=r"Give \.tar files"):
            expand([given])


# --- failures tried again ---


@pytest.fixture
def partly(tiny, tmp_path):
    """An encoder that refuses one image of three, and the shard; `cure` makes it take all."""
    enc = diptych.build(tiny, seed=1, precision="fp32")
    large = [(f"large{i}.png", picture(100 + i, (90, 90))) for i in range(3)]
    shard(tmp_path / "a.tar", range(6), extra=[*large, ("bad.jpg", b"no image"), ("w.txt", b"")])
    enc.preprocess.limits = Limits(pixels=4000)

    def cure():
        enc.preprocess.limits = Limits()

    return enc, tmp_path / "a.tar", tmp_path / "out", cure


def test_retry_encodes_the_failures_alone(partly, tmp_path):
    enc, path, out, cure = partly
    first = run(enc, path, out)["a.tar"]
    assert (first.manifest.rows, first.manifest.errors) == (6, 4)
    same = run(enc, path, out, retry_failed=True)["a.tar"]
    assert (same.manifest.rows, same.manifest.attempts) == (6, 2)
    cure()
    assert run(enc, path, out)["a.tar"].state == "known"
    seen = []
    once = enc.preprocess.uint8
    enc.preprocess.uint8 = lambda image, **rest: seen.append(rest["name"]) or once(image, **rest)
    again = run(enc, path, out, retry_failed=True)["a.tar"]
    assert sorted(seen) == ["bad", "large0", "large1", "large2"]
    assert (again.state, again.manifest.rows, again.manifest.errors) == ("done", 9, 1)
    assert again.manifest.attempts == 3
    clean = run(enc, path, tmp_path / "clean")["a.tar"]
    ours, theirs = rows(again.folder), rows(clean.folder)
    assert list(ours) == list(theirs)
    for key, (row, vector) in ours.items():
        assert row == theirs[key][0]
        np.testing.assert_allclose(vector, theirs[key][1], atol=1e-3)
    assert [p.name for p in out.iterdir()] == [again.folder.name]


def test_retry_refuses_damaged_rows(partly):
    enc, path, out, _ = partly
    folder = run(enc, path, out)["a.tar"].folder
    with (folder / "vectors.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    told = run(enc, path, out, retry_failed=True)["a.tar"]
    assert told.state == "failed"
    assert "is damaged" in told.error


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_folder_is_replaced(partly, monkeypatch, renames):
    """Killed before, between or behind the two renames: the old or the new folder is there."""
    enc, path, out, cure = partly
    (job,) = plan([path], out)
    old = run(enc, path, out)["a.tar"].manifest
    cure()

    class Killed(BaseException):
        pass

    rename, count = type(path).rename, 0

    def killed(self, target):
        nonlocal count
        if job.folder in (self, target):
            count += 1
            if count > renames:
                raise Killed
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", killed)
    monkeypatch.setattr("diptych.engine.bulk.unit.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr("diptych.engine.bulk.lease.Lease.release", lambda lease: lease._stop.set())
    if renames < 2:
        with pytest.raises(Killed):
            run(enc, path, out, retry_failed=True)
    else:
        run(enc, path, out, retry_failed=True)
    monkeypatch.undo()
    assert len(list(out.iterdir())) > 1  # what a killed worker leaves
    os.utime(out / ".leases" / f"{job.folder.name}.lease-0", (0, 0))
    told = run(enc, path, out)["a.tar"]
    assert told.manifest.rows == (9 if renames == 2 else old.rows)
    assert len(rows(told.folder)) == told.manifest.rows
    assert [p.name for p in out.iterdir()] == [job.folder.name]
    assert run(enc, path, out, retry_failed=True)["a.tar"].manifest.rows == 9


# --- leases ---


def together(n, call):
    """What `n` threads get from `call` at the same moment."""
    barrier, found = threading.Barrier(n), []

    def one():
        barrier.wait()
        found.append(call())

    threads = [threading.Thread(target=one) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [lease for lease in found if lease is not None]


def test_one_of_many_gets_the_lease(tmp_path):
    for _ in range(20):
        (lease,) = together(8, lambda: claim(tmp_path, "x", period=60))
        assert lease.is_mine()
        assert claim(tmp_path, "x", period=60) is None
        assert leased(tmp_path) == {"x"}
        lease.release()
        assert not list(tmp_path.iterdir())


def test_one_of_many_takes_a_stale_lease_over(tmp_path):
    for _ in range(20):
        slept = claim(tmp_path, "x", period=60)
        os.utime(slept.path, (0, 0))
        (lease,) = together(8, lambda: claim(tmp_path, "x", period=60))
        assert lease.number == 1
        assert not slept.is_mine()
        slept.release()  # does not touch what is another's
        assert lease.is_mine()
        lease.release()
        assert not list(tmp_path.iterdir())


def test_who_slept_through_a_whole_life_of_the_lease_does_not_own_the_next(tmp_path):
    slept = claim(tmp_path, "x", period=60)
    os.utime(slept.path, (0, 0))
    claim(tmp_path, "x", period=60).release()
    another = claim(tmp_path, "x", period=60)
    assert another.path == slept.path
    assert not slept.is_mine()
    slept.release()
    assert another.is_mine()
    another.release()


def test_a_lease_that_is_held_is_renewed(tmp_path):
    lease = claim(tmp_path, "x", period=0.2)
    os.utime(lease.path, (0, 0))
    deadline = time.monotonic() + 20
    while lease.path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lease.path.stat().st_mtime > 0
    lease.release()


def test_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("os.link", link)
    (lease,) = together(8, lambda: claim(tmp_path, "x", period=60))
    assert lease.is_mine()
    lease.release()
    assert not list(tmp_path.iterdir())


def test_a_worker_whose_lease_was_stolen_throws_its_work_away(enc, data, tmp_path):
    out, states = tmp_path / "out", []

    def slept(_):  # the first worker sleeps in the middle of its first shard
        if not states:
            states.append("asleep")
            for path in (out / ".leases").iterdir():
                os.utime(path, (0, 0))
            states.extend(t.state for t in run(enc, data, out).values())

    told = run(enc, data, out, advance=slept)
    assert states == ["asleep", *["done"] * 4]
    assert {t.state for t in told.values()} == {"known"}
    assert len(all_rows(out)) == 40
    assert len(list(out.iterdir())) == 4


def test_workers_share_the_shards(enc, data, tmp_path):
    out, told = tmp_path / "out", []
    jobs = plan(expand([data]), out)
    rest = {"model": "tiny", "told": told.append}
    together(3, lambda: work(jobs, enc, start=random.random(), **rest))
    assert [t.state for t in told].count("done") == 4
    assert len(told) == 12
    assert len(all_rows(out)) == 40


# --- launchers ---


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 1)),
        ({"SLURM_ARRAY_TASK_ID": "7"}, (7, 0)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, (3, 1)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (11, 0)),
        ({"JOB_COMPLETION_INDEX": "9"}, (9, 0)),
    ],
)
def test_places(environ, expected):
    assert place(environ) == expected
    assert 0 <= place(environ).start < 1


def test_places_that_are_none():
    with pytest.raises(ConfigError, match="unset RANK"):
        place({"RANK": "one"})
    starts = sorted(Place(rank, 0).start for rank in range(8))
    assert min(np.diff(starts)) > 0.05  # they do not begin at the same shard
    assert default_workers(Task(inputs=(), out="", device="cpu"), {}) == 1


@pytest.fixture
def task(tiny, data, tmp_path):
    model = tmp_path / "tiny.safetensors"
    diptych.zoo.save(diptych.build(tiny, seed=1), model)
    return Task(
        inputs=(str(data),), out=str(tmp_path / "out"), model=str(model), device="cpu", lease=2.0
    )


def test_a_failure_to_begin_is_raised(task):
    with pytest.raises(DiptychError, match="no such file"):
        run_here(replace(task, model="./gone.safetensors"))


@pytest.mark.slow
def test_local_processes(task, tmp_path):
    told = []
    assert run_local(task, workers=2, told=told.append) == []
    assert sorted(t.state for t in told) == ["done"] * 4
    assert len(all_rows(tmp_path / "out")) == 40
    with pytest.raises(DiptychError, match="no such file"):
        run_local(replace(task, model="./gone.safetensors"), workers=2)


@pytest.mark.slow
def test_torchrun(task, tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "diptych.cli.main"]
    command += ["embed", *task.inputs, "--out", task.out, "--model", task.model, "--json"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(r["state"] for r in records) == ["done"] * 4 + ["known"] * 4
    assert len(all_rows(tmp_path / "out")) == 40


@pytest.mark.slow
def test_ray(task, tmp_path):
    pytest.importorskip("ray")
    told: list[Told] = []
    assert run_ray(task, workers=2, told=told.append) == []
    assert sorted(t.state for t in told) == ["done"] * 4
    assert len(all_rows(tmp_path / "out")) == 40


class Crew:
    """Workers that are killed at random moments and started again."""

    def __init__(self, task, size):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["diptych.engine.bulk"])
        self.task, self.begun, self.kills, self.children = task, 0, 0, []
        for _ in range(size):
            self.start()

    def start(self):
        self.begun += 1
        where = {"at": Place(self.begun, 0)}
        child = self.context.Process(target=run_here, args=(self.task,), kwargs=where)
        child.start()
        self.children.append(child)

    def kill_one(self, rng):
        victim = rng.choice(self.children)
        if victim.is_alive():
            victim.kill()
            victim.join()  # it lives on for a moment, and `end` would find it killed
            self.kills += 1
        for child in [child for child in self.children if not child.is_alive()]:
            child.join()
            self.children.remove(child)
            self.start()

    def end(self):
        for child in self.children:
            child.join()
            assert child.exitcode == 0


@pytest.mark.slow
def test_random_kills(task, tmp_path):
    """Three workers on twelve shards; rounds until thirty of them were killed."""
    rng, data, pictures = random.Random(0), tmp_path / "many", {}
    for i in range(12):
        members = [(f"bad{i}.jpg", b"no")]
        for k in range(150):
            seed = (i * 150 + k) % 97
            pictures[seed] = pictures.get(seed) or picture(seed, (300, 250))
            members.append((f"{i}-{k:03}.png", pictures[seed]))
        shard(data / f"{i}.tar", [], extra=members)
    task = replace(task, inputs=(str(data),), lease=1.0)
    clean = tmp_path / "clean"
    run_here(replace(task, out=str(clean)))
    theirs = all_rows(clean)
    assert len(theirs) == 1800
    kills = rounds = 0
    while kills < 30:
        rounds += 1
        out = tmp_path / f"out{rounds}"
        jobs = plan(expand([data]), out)
        crew = Crew(replace(task, out=str(out)), 3)
        while any(finished(job) is None for job in jobs):
            time.sleep(rng.uniform(0.05, 0.7))
            crew.kill_one(rng)
        crew.end()
        kills += crew.kills
        run_here(replace(task, out=str(out)))  # one that finds nothing to do sweeps
        ours = all_rows(out)
        assert list(ours) == list(theirs)
        for key, (row, vector) in ours.items():
            assert row == theirs[key][0]
            np.testing.assert_allclose(vector, theirs[key][1], atol=1e-3)
        assert sorted(p.name for p in out.iterdir()) == sorted(job.folder.name for job in jobs)
        assert all(read_manifest(job.folder).errors == 1 for job in jobs)
    print(f"{kills} kills in {rounds} rounds of 12 shards")
