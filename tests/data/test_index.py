"""Indexes: every pair can be found again, every other thing is counted by its reason."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
from PIL import Image

from diptych.data.captions import captions_of, group_of
from diptych.data.columns import Columns
from diptych.data.index import Unreadable, index_file
from diptych.data.shards import Report, read_shard
from diptych.data.sources import Source, as_sources, files_of
from diptych.errors import DataError


@pytest.fixture
def index(tmp_path):
    def index(path, **keys):
        hash_ = keys.pop("hash", True)
        source = Source(path=str(path), **keys)
        (file,) = files_of(source)
        return index_file(file, tmp_path / "indexes", source=source, hash=hash_)

    return index


def rows(index):
    return {index.key(row): index.captions(row) for row in range(index.size)}


@pytest.mark.parametrize("hash_", [True, False])
def test_a_tar(made, index, tmp_path, hash_):
    good = made.picture(3)
    sha = hashlib.sha256(good).hexdigest()
    meta = {"url": "u", "license": "CC0", "source": "museum", "sha256": sha.upper(), "n": 1}
    members = [
        *made.pair(1),
        *made.pair(2, meta={"captions": ["picture number 2", "another"]}),
        *made.pair(3, image=good, meta=meta),
        *made.pair(4, text="  "),
        ("0005.jpg", b"no caption"),
        *made.pair(6, meta={"opt_out": True}),
        *made.pair(7, meta={"sha256": "0" * 64}),
        *made.pair(1),
        ("0008.txt", b"no image"),
        ("0009.png", b"1"),
        ("0009.jpg", b"2"),
        ("0010.jpg", made.picture(10)),
        ("0010.json", json.dumps({"text": "of the JSON"}).encode()),
    ]
    path = made.tar(tmp_path / "a.tar", members)
    found = index(path, hash=hash_)
    expected = {
        "0001": ["picture number 1"],
        "0002": ["picture number 2", "another"],
        "0003": ["picture number 3"],
        "0010": ["of the JSON"],
    }
    drops = {"empty caption": 1, "no caption": 1, "opted out": 1, "key again": 1}
    drops |= {"no image": 1, "two images": 1}
    if hash_:
        drops["sha256 differs"] = 1
    else:
        expected["0007"] = ["picture number 7"]
    assert rows(found) == expected
    assert found.info["drops"] == drops
    assert found.info["seen"] == 11 and found.info["used"] == found.size == len(expected)
    assert found.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest() if hash_ else None)
    keys = [found.key(row) for row in range(found.size)]
    assert [found.image(row) for row in range(found.size)] == [
        good if key == "0003" else made.picture(int(key)) for key in keys
    ]
    assert found.origin(2) == {
        "licence": "CC0",
        "source": "museum",
        "url": "u",
        "sha256": sha.upper(),
    }
    assert found.info["origins"] == {"licence": {"CC0": 1}, "source": {"museum": 1}}
    assert found.info["without"]["licence"] == found.size - 1
    assert found.info["names"]["txt"] == 8 and found.info["names"]["json: url"] == 1
    assert found.name(0) == f"{path}!0001"


def test_an_index_is_made_once_and_when_the_file_changed(made, index, tmp_path, monkeypatch):
    path = made.tar(tmp_path / "a.tar", made.pair(1))
    first = index(path)
    monkeypatch.setattr("diptych.data.index._Builder", None)  # would fail if called
    assert index(path).path == first.path
    assert index(path, hash=False).path == first.path  # one with hashes serves
    monkeypatch.undo()
    made.tar(path, made.pair(2))
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.tar: was changed"):
        first.image(0)
    assert rows(index(path)) == {"0002": ["picture number 2"]}


def test_every_flipped_bit_of_an_index_is_found(made, index, tmp_path, caplog):
    path = made.tar(tmp_path / "a.tar", made.pair(1))
    file = index(path).path
    whole = file.read_bytes()
    for seed in range(200):
        draw = random.Random(seed)
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"columns|bytes"):
            Columns(file, check=True)
    assert rows(index(path)) == {"0001": ["picture number 1"]}
    assert "made again" in caplog.text
    assert file.read_bytes() == whole
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_tar_cut_anywhere(made, index, tmp_path):
    members = [m for i in range(6) for m in made.pair(i)]
    whole = made.tar(tmp_path / "whole.tar", members).read_bytes()
    end = sum(512 + len(data) + -len(data) % 512 for _, data in members)
    draw = random.Random(0)
    for cut in [draw.randrange(len(whole)) for _ in range(40)]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        reads = []
        for hash_ in (True, False):
            found = index(path, hash=hash_)
            info = found.info
            assert info["seen"] == info["used"] + sum(info["drops"].values())
            assert set(info["drops"]) <= {"cut inside a member", "no caption"}
            damage = sum(info["flaws"].values()) + info["drops"].get("cut inside a member", 0)
            assert damage == 1 or (damage == 0 and cut >= end)
            reads.append((info["drops"], info["flaws"], rows(found)))
            assert [found.image(row) for row in range(found.size)] == [
                made.picture(i) for i in range(found.size)
            ]
            found.path.unlink()
        assert reads[0] == reads[1]
        streamed = Report()
        list(read_shard(path, report=streamed))
        assert dict(streamed.flaws) == reads[0][1]


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 999, b"\x1f\x8b" + bytes(600)])
def test_no_tar_at_all(index, tmp_path, garbage):
    (tmp_path / "x.tar").write_bytes(garbage)
    found = index(tmp_path / "x.tar")
    assert found.size == 0 and sum(found.info["flaws"].values()) == 1


@pytest.fixture
def pictures(made, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(made.picture(i))
    return folder


def test_a_folder(made, index, pictures):
    (pictures / "0.txt").write_text("a zero\r\n", "utf-8-sig")
    (pictures / "1.txt").write_text("NULL")
    (pictures / "2.txt").write_text(" \n")
    (pictures / "3.txt").write_bytes(b"\xff")
    (pictures / "deep").mkdir()
    (pictures / "deep" / "x.y.png").write_bytes(made.picture(9))
    (pictures / "deep" / "x.y.txt").write_text("deep")
    (pictures / "notes.md").write_text("no")
    found = index(pictures)
    assert rows(found) == {"0.jpg": ["a zero"], "1.jpg": ["NULL"], "deep/x.y.png": ["deep"]}
    assert found.info["drops"] == {"empty caption": 1, "no caption": 2}
    assert found.info["flaws"] == {"text lost": 1}
    assert found.image(2) == made.picture(9)
    (pictures / "4.txt").write_text("a four")
    assert "4.jpg" in rows(index(pictures))  # a changed folder has a new index


TABLE = [
    {"filepath": "0.jpg", "title": "zero"},
    {"filepath": "1.jpg", "title": "NULL"},
    {"filepath": "0.jpg", "title": 'nought, "0"'},
    {"filepath": "2.jpg", "title": ""},
    {"filepath": "gone.jpg", "title": "gone"},
    {"filepath": "3.jpg", "title": "NA"},
    {"filepath": "", "title": "no path"},
    {"filepath": "0.jpg", "title": "zero"},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_lists(made, index, pictures, kind):
    path = pictures / f"list.{kind}"
    match kind:
        case "csv":
            made.table(path, TABLE)
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        case "tsv":
            made.table(path, TABLE, delimiter="\t", lineterminator="\n")
        case "jsonl":
            path.write_text("\r\n".join(json.dumps(row) for row in TABLE), "utf-8-sig")
        case "parquet":
            pa = pytest.importorskip("pyarrow")
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(TABLE), path)
    found = index(path)
    assert rows(found) == {"0.jpg": ["zero", 'nought, "0"'], "1.jpg": ["NULL"], "3.jpg": ["NA"]}
    assert found.info["drops"] == {"no path": 1, "no such file": 1, "empty caption": 1}
    assert found.image(2) == made.picture(3)
    assert found.name(0) == str(pictures / "0.jpg")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"{path}:{7 if kind in ('jsonl', 'parquet') else 8}" in [
        t[1] for t in found.info["told"]
    ]


def test_several_captions_and_an_origin(made, index, pictures):
    path = pictures / "captions.jsonl"
    table = [
        {"file_name": "0.jpg", "captions": ["a", "b", "a", " "]},
        {"file_name": "1.jpg", "caption": ["c", "d"], "licence": "CC-BY", "opt_out": "no"},
        {"file_name": "2.jpg", "caption": "e", "opt_out": "true"},
        {"file_name": "3.jpg", "captions": '["f", "g"]', "source": "s"},
        {"file_name": "4.jpg", "text": "h", "sha256": "ab"},
    ]
    path.write_text("\n".join(map(json.dumps, table)))
    assert files_of(Source(path=str(pictures))) == [path]  # the list of the folder is found
    found = index(pictures)
    assert rows(found) == {"0.jpg": ["a", "b"], "1.jpg": ["c", "d"], "3.jpg": ["f", "g"]}
    assert found.info["drops"] == {"opted out": 1, "sha256 differs": 1}
    assert found.info["origins"] == {"licence": {"CC-BY": 1}, "source": {"s": 1}}
    (pictures / "1.jpg").unlink()
    with pytest.raises(Unreadable) as caught:
        found.image(1)
    assert caught.value.reason == "no such file"


def test_damaged_lists_name_the_line(index, pictures):
    path = pictures / "x.csv"
    path.write_bytes(b'path,caption\n0.jpg,a\n1.jpg,"open\n2.jpg,b\n')
    found = index(path)
    assert rows(found) == {"0.jpg": ["a"]}
    ((reason, where, _),) = found.info["told"]
    assert (reason, where) == ("damaged list", f"{path}:3")
    path = pictures / "x.jsonl"
    path.write_text('{"path": "0.jpg", "caption": "a"}\n{"path": \n[1]\n')
    assert [told[1] for told in index(path).info["told"]] == [f"{path}:2", f"{path}:3"]


def test_columns_by_name(made, index, pictures):
    path = made.table(pictures / "x.csv", [{"img_name": "0.jpg", "comment": "a"}])
    assert rows(index(path, image_key="img_name", caption_key="comment")) == {"0.jpg": ["a"]}
    assert index(path).info["drops"] == {"no path": 1}
    with pytest.raises(DataError, match=r"no column 'image_name', but img_name, comment"):
        index(path, image_key="image_name")


def test_captions_and_groups():
    assert captions_of("a", {"caption": "b"}, None) == (["a"], 1)
    assert captions_of("", {"caption": "b"}, None) == (["b"], 2)
    assert captions_of("a", {"x": '["b", "c"]'}, "x") == (["b", "c"], 2)
    assert captions_of(None, {"captions": "[sic] a"}, None) == (["[sic] a"], 1)
    assert captions_of(None, {"n": 3}, None) == ([], 0)
    assert group_of("A  cat\n") == group_of("a cat") != group_of("a dog")
    assert 0 <= group_of("") < 2**63


def test_patterns(made, tmp_path):
    made.shards(tmp_path / "s", [1] * 3)
    folder = tmp_path / "s"
    names = ["0000.tar", "0001.tar", "0002.tar"]
    for text in ("{0000..0002}.tar", "{0000,0001,0002}.tar", "*.tar", "000[0-2].tar", ""):
        files = files_of(Source(path=f"{folder}/{text}"))
        assert [file.name for file in files] == names
    with pytest.raises(DataError, match=r"2 of 5 files are not there: .*0003\.tar, .*0004\.tar"):
        files_of(Source(path=f"{folder}/{{0000..0004}}.tar"))
    (tmp_path / "x.txt").write_text("a.jpg")
    with pytest.raises(DataError, match="no captions by its name"):
        files_of(Source(path=str(tmp_path / "x.txt")))
    with pytest.raises(DataError, match="Give all, or none"):
        as_sources([Source(path="a", weight=1.0), "b"])
    with pytest.raises(DataError, match="no source"):
        as_sources([])


def test_an_index_that_cannot_be_written(made, tmp_path):
    path = made.tar(tmp_path / "a.tar", made.pair(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be indexed"):
        index_file(path, tmp_path / "file", source=Source(path=str(path)))


MILLION = """
import resource, sys
from pathlib import Path
from diptych.data.index import Index, index_file
from diptych.data.sources import Source
path, folder = Path(sys.argv[1]), Path(sys.argv[2])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
index = index_file(path, folder, source=Source(path=str(path)))
made = peak()
print(index.size, index.captions(999_999), before, made)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes elsewhere are bytes")
def test_a_million_rows_in_bounded_memory(made, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(1000):
        (folder / f"{i:03}.jpg").write_bytes(b"not decoded here")
        (tmp_path / f"d{i:03}").symlink_to(folder)
    path = tmp_path / "list.csv"
    with path.open("w") as file:
        file.write("path,caption\n")
        for i in range(1_000_000):
            file.write(f"d{i // 1000:03}/{i % 1000:03}.jpg,a caption of usual length number {i}\n")
    for _ in range(2):  # made, then opened
        done = subprocess.run(
            [sys.executable, "-c", MILLION, path, tmp_path / "indexes"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        size, *_, before, after = done.stdout.split()
        print(done.stdout)
        assert size == "1000000"
        assert float(after) - float(before) < 300


def test_names_of_columns_may_be_in_any_case(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("Image ,Caption\na.png,a square\n", "utf-8")
    found = index_file(
        tmp_path / "list.csv", tmp_path / "kept", source=Source(path=str(tmp_path / "list.csv"))
    )
    assert found.captions(0) == ["a square"]
