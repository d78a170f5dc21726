"""Packing: the same bytes each time, resumed after a kill, and read by webdataset."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from diptych.data.index import index_file
from diptych.data.pack import pack
from diptych.data.pairs import Pairs
from diptych.data.sources import Source, files_of
from diptych.errors import DataError, ImageError


@pytest.fixture
def source(made, tmp_path):
    """23 pictures; one has two captions and an origin, one is no image."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"path": f"{i:02}.jpg", "caption": f"picture {i}", "license": ""} for i in range(23)]
    rows[3]["license"] = "CC0"
    for i in range(23):
        (folder / f"{i:02}.jpg").write_bytes(made.picture(i) if i != 9 else b"<html>")
    rows.append({"path": "03.jpg", "caption": "the third", "license": ""})
    return made.table(folder / "captions.csv", rows)


@pytest.fixture
def packed(source, tmp_path):
    def packed(name, **how):
        how = {"shard_size": 5} | how
        return pack(source, tmp_path / name, folder=tmp_path / "indexes", **how)

    return packed


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pairs(path, folder):
    found = {}
    for file in files_of(Source(path=str(path))):
        index = index_file(file, folder, source=Source(path=str(path)))
        for row in range(index.size):
            found[hashlib.sha256(index.image(row)).hexdigest()] = index.captions(row)
        assert not index.info["flaws"] and not index.info["drops"]
    return found


def test_shards(packed, source, tmp_path, made):
    found = packed("out")
    out = tmp_path / "out"
    assert sorted(content(out)) == [f"0000{i}.tar" for i in range(5)] + ["manifest.json"]
    assert (found["samples"], found["drops"]) == (22, {"no image by its first bytes": 1})
    assert [shard["samples"] for shard in found["shards"]] == [5, 5, 5, 5, 2]
    assert json.loads((out / "manifest.json").read_text()) == found
    for shard in found["shards"]:
        data = (out / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    with tarfile.open(out / "00000.tar") as tar:
        infos = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in infos} == {(0, 0, 0, "", 0o644)}
        assert [m.name for m in infos[:4]] == [
            *("000000000.jpg", "000000000.json", "000000000.txt", "000000001.jpg")
        ]
        meta = json.loads(tar.extractfile("000000003.json").read())
    sha = hashlib.sha256(made.picture(3)).hexdigest()
    assert meta == {
        "key": "03.jpg",
        "captions": ["picture 3", "the third"],
        "licence": "CC0",
        "sha256": sha,
    }
    images = [made.picture(i) for i in range(23) if i != 9]
    expected = {hashlib.sha256(image).hexdigest() for image in images}
    read = pairs(out, tmp_path / "indexes")
    assert read.keys() == expected and read[sha] == ["picture 3", "the third"]
    opened = Pairs.open(out, folder=tmp_path / "indexes")
    assert opened.size == 22 and opened.report()["licences"] == {"CC0": 1}


def test_the_same_bytes_again(packed, tmp_path):
    packed("a")
    packed("b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    first = (tmp_path / "a" / "00000.tar").stat()
    assert packed("a")["samples"] == 22  # done already
    assert (tmp_path / "a" / "00000.tar").stat() == first
    with pytest.raises(DataError, match="other inputs or options"):
        packed("a", shard_size=6)
    repacked = pack(tmp_path / "a", tmp_path / "c", folder=tmp_path / "indexes", shard_size=100)
    assert repacked["samples"] == 22
    assert pairs(tmp_path / "c", tmp_path / "i") == pairs(tmp_path / "a", tmp_path / "i")


def test_going_on(packed, tmp_path, monkeypatch):
    packed("whole")
    calls = []

    def fails(data, name):
        calls.append(name)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return data

    with pytest.raises(KeyboardInterrupt):
        packed("out", shrink=fails)
    out = tmp_path / "out"
    assert (out / "00001.tar").exists() and not (out / "manifest.json").exists()
    (out / ".00002.tar.tmp").write_bytes(b"half")
    times = (out / "00001.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match="begun with other inputs or options"):
        packed("out", shrunk="something")
    packed("out", shrink=lambda data, name: data)
    assert content(out) == content(tmp_path / "whole")
    assert (out / "00001.tar").stat().st_mtime_ns == times


def test_faults(packed, source, tmp_path, made):
    def breaks(data, name):
        if name.endswith("4.jpg"):
            raise ImageError(f"{name}: no")
        return data

    found = packed("out", shrink=breaks, max_bytes=3000)
    assert found["drops"] == {"no image by its first bytes": 1, "cannot be decoded": 2}
    assert all(shard["samples"] < 5 for shard in found["shards"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds x\.tar already"):
        packed("other")

    def all_break(data, name):
        raise ImageError("no")

    with pytest.raises(DataError, match="no pair that can be packed"):
        packed("none", shrink=all_break)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        packed("file/out")


# it leaves the file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(packed, tmp_path):
    wds = pytest.importorskip("webdataset")
    packed("out")
    theirs = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        for sample in wds.WebDataset(str(path), shardshuffle=False, empty_check=False):
            image = hashlib.sha256(sample["jpg"]).hexdigest()
            theirs[image] = json.loads(sample["json"]).get("captions", [sample["txt"].decode()])
    assert theirs == pairs(tmp_path / "out", tmp_path / "indexes")


PACK = """
import sys, time
from pathlib import Path
from diptych.data.pack import pack
def slow(data, name):
    time.sleep(0.01)
    return data
pack(sys.argv[1], Path(sys.argv[2]), folder=Path(sys.argv[3]), shard_size=5, shrink=slow)
"""


@pytest.mark.slow
def test_killed_at_random(packed, source, tmp_path):
    packed("whole")
    command = [sys.executable, "-c", PACK, source, tmp_path / "out", tmp_path / "indexes"]
    draw = random.Random(0)
    for _ in range(8):
        child = subprocess.Popen(command)
        while not (tmp_path / "out").exists() and child.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.random() * 0.2)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert subprocess.run(command).returncode == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_folder_that_is_not_packed_to_its_end_is_refused(tmp_path):
    (tmp_path / "out" / ".pack").mkdir(parents=True)
    (tmp_path / "out" / "00000.tar").write_bytes(b"\0" * 1024)
    with pytest.raises(DataError, match="diptych curate pack again"):
        files_of(Source(path=str(tmp_path / "out")))
