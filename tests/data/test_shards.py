"""Shards: every good sample once, every other thing counted by its reason and named."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data import Report, is_shard, read_shard
from diptych.errors import ShardError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def pack(path, members, *, format=tarfile.USTAR_FORMAT):
    """A tar of (name, bytes) pairs, or of whole `TarInfo`."""
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(n, *, size=700):
    for i in range(n):
        yield f"{i:03}.jpg", bytes([i]) * size
        yield f"{i:03}.txt", f"picture {i}".encode()
        yield f"{i:03}.json", json.dumps({"number": i}).encode()


def read(path, **rest):
    told = []
    report = Report(on_drop=told.append)
    found = list(read_shard(path, report=report, **rest))
    assert report.used == len(found)
    assert report.seen == report.used + report.drops.total()
    assert len(told) == report.drops.total() + report.flaws.total()
    return found, report, told


@pytest.fixture
def tar(tmp_path):
    return lambda members, **rest: pack(tmp_path / "shard.tar", members, **rest)


@pytest.mark.parametrize("format", FORMATS)
def test_a_good_shard(tar, format):
    found, _, told = read(tar(samples(12), format=format))
    assert [sample.key for sample in found] == [f"{i:03}" for i in range(12)]
    assert found[3].image == bytes([3]) * 700
    assert (found[3].text, found[3].meta) == ("picture 3", {"number": 3})
    assert not told


@pytest.mark.parametrize("format", FORMATS[1:])
def test_long_and_foreign_names(tar, format):
    names = ["d/" * 60 + "x" * 150 + ".jpg", "Ünïcödé/日本.jpg", "a.b.c/d.jpg"]
    found, _, told = read(tar([(name, name.encode()) for name in names], format=format))
    assert [sample.key for sample in found] == [name.removesuffix(".jpg") for name in names]
    assert [sample.image.decode() for sample in found] == names
    assert not told


def test_keys_and_members_as_webdataset_has_them(tar):
    members = [
        ("a/x.jpg", b"1"),
        ("b/x.JPG", b"2"),  # another folder, another key
        ("b/x.cls", b"7"),
        ("c.seg.png", b"3"),  # the suffix is seg.png: no image
        ("__meta__/info.jpg", b"4"),
        ("README", b"5"),
        (".hidden.jpg", b"6"),
        ("d.jpg", b"8"),
    ]
    found, _, told = read(tar(members))
    assert [(s.key, s.image) for s in found] == [("a/x", b"1"), ("b/x", b"2"), ("d", b"8")]
    assert [(drop.reason, drop.name) for drop in told] == [("no image", "c")]


# it leaves the file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same(tar):
    wds = pytest.importorskip("webdataset")
    members = [*samples(20), ("a/x.y.jpg", b"1"), ("b/x.png", b"2"), ("b/x.txt", b"two")]
    path = tar(members, format=tarfile.PAX_FORMAT)
    theirs = {}
    for sample in wds.WebDataset(str(path), shardshuffle=False, empty_check=False):
        image = sample.get("jpg", sample.get("png"))
        if image is not None:
            theirs[sample["__key__"]] = image, sample.get("txt"), sample.get("json")
    found, _, told = read(path)
    ours = {
        s.key: (
            s.image,
            None if s.text is None else s.text.encode(),
            json.dumps(s.meta).encode() if s.meta else None,
        )
        for s in found
    }
    assert ours == theirs
    assert len(ours) == 21
    assert [drop.name for drop in told] == ["a/x"]  # its suffix is y.jpg


def test_webdataset_writes_what_we_read(tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "w.tar")) as writer:
        for i in range(9):
            sample = {
                "__key__": f"{i:05}",
                "jpg": bytes([i]) * 999,
                "txt": f"t{i}",
                "json": {"i": i},
            }
            writer.write(sample)
    found, _, told = read(tmp_path / "w.tar")
    assert [(s.key, s.image, s.text, s.meta) for s in found] == [
        (f"{i:05}", bytes([i]) * 999, f"t{i}", {"i": i}) for i in range(9)
    ]
    assert not told


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
@pytest.mark.parametrize("format", ["gnu", "posix", "ustar", "v7"])
def test_what_tar_writes(tmp_path, format):
    folder = tmp_path / "in"
    folder.mkdir()
    name = "x" * (150 if format in ("gnu", "posix") else 40) + ".jpg"
    for i, known in enumerate(["b.jpg", "c.png", name]):
        (folder / known).write_bytes(bytes([i]) * 1000)
    os.link(folder / "b.jpg", folder / "hard.jpg")
    (folder / "link.jpg").symlink_to("b.jpg")
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(10_000_000)
        file.seek(5_000_000)
        file.write(b"island")
    sparse = ["--sparse"] if format in ("gnu", "posix") else []
    command = ["tar", f"--format={format}", *sparse, "--sort=name", "-cf", "t.tar", "in"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"another tar: {done.stderr}")
    found, report, _ = read(tmp_path / "t.tar")
    with tarfile.open(tmp_path / "t.tar") as peer:
        theirs = {
            m.name.removesuffix(".jpg").removesuffix(".png"): peer.extractfile(m).read()
            for m in peer
            if m.isreg() and not m.issparse()
        }
    assert {s.key: s.image for s in found} == theirs
    assert len(found) == (3 if sparse else 4)
    assert report.flaws == {"not a file": 3 if sparse else 2}
    assert not report.drops


def test_what_is_not_a_sample_is_counted(tar):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device, folder = tarfile.TarInfo("null.jpg"), tarfile.TarInfo("folder")
    device.type, folder.type = tarfile.CHRTYPE, tarfile.DIRTYPE
    members = [
        ("only-text.txt", b"words"),
        link,
        ("two.jpg", b"1"),
        ("two.png", b"2"),
        device,
        folder,
        ("big.jpg", b"0" * 5000),
        ("good.jpg", b"good"),
        ("again.jpg", b"1"),
        ("other.jpg", b"2"),
        ("again.jpg", b"3"),
    ]
    found, report, told = read(tar(members), image_bytes=4999)
    assert [(s.key, s.image) for s in found] == [
        ("good", b"good"),
        ("again", b"1"),
        ("other", b"2"),
    ]
    assert report.drops == {
        "no image": 1,
        "two images": 1,
        "member too large": 1,
        "key again": 1,
    }
    assert report.flaws == {"not a file": 2}
    assert {(d.reason, d.name) for d in told} == {
        ("no image", "only-text"),
        ("not a file", "link.jpg"),
        ("not a file", "null.jpg"),
        ("two images", "two"),
        ("member too large", "big"),
        ("key again", "again"),
    }


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("a.txt", b"\xff\xfe\xfa"), "text lost"),
        (("a.txt", b"x" * (2**20 + 1)), "text lost"),
        (("a.json", b"[1, 2]"), "metadata lost"),
        (("a.json", b"{broken"), "metadata lost"),
        (("a.json", b'{"a":' + b"[" * 200_000), "metadata lost"),
    ],
)
def test_words_that_cannot_be_read_cost_no_image(tar, member, reason):
    found, report, _ = read(tar([("a.jpg", b"1"), member, ("b.jpg", b"2")]))
    assert [(s.key, s.text, s.meta) for s in found] == [("a", None, {}), ("b", None, {})]
    assert report.flaws == {reason: 1}


def test_nan_of_pandas(tar):
    found, _, told = read(tar([("a.jpg", b"1"), ("a.json", b'{"x": NaN, "y": 1}')]))
    assert found[0].meta == {"x": None, "y": 1}
    assert not told


def test_cut_inside_a_member(tar):
    path = tar([(f"{i}.jpg", bytes([i]) * 3000) for i in range(5)])
    os.truncate(path, 3 * (512 + 3072) + 512 + 1000)  # in the fourth
    found, report, told = read(path)
    assert [s.key for s in found] == ["0", "1", "2"]
    assert report.drops == {"cut inside a member": 1}
    assert (told[0].name, told[0].reason) == ("3", "cut inside a member")
    assert "2,000 bytes before the end of 3.jpg" in told[0].detail


def test_cut_between_members_and_in_a_header(tar):
    for extra, flaw in ((0, "no end mark"), (100, "damaged tar")):
        path = tar([(f"{i}.jpg", bytes([i]) * 3000) for i in range(5)])
        os.truncate(path, 3 * (512 + 3072) + extra)
        found, report, _ = read(path)
        assert [s.key for s in found] == ["0", "1", "2"]
        assert report.flaws == {flaw: 1}


def test_a_damaged_header_stops_with_a_word(tar):
    path = tar([(f"{i}.jpg", bytes([i]) * 3000) for i in range(5)])
    data = bytearray(path.read_bytes())
    data[2 * 3584 + 5] ^= 0xFF
    path.write_bytes(data)
    with tarfile.open(path) as peer:
        assert len(peer.getmembers()) == 2  # without a word
    found, report, told = read(path)
    assert [s.key for s in found] == ["0", "1"]
    assert report.flaws == {"damaged tar": 1}
    assert "byte 7,168" in told[0].detail


def test_trailing_garbage_and_concatenated_tars(tar):
    path = tar(samples(2))
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    found, report, told = read(path)
    assert len(found) == 2
    assert report.flaws == {"trailing garbage": 1}
    assert f"{len(whole):,}" in told[0].detail.split(" bytes from byte ")[1]


@pytest.mark.parametrize(
    ("data", "flaw"),
    [(b"", "empty file"), (b"\x1f\x8b" + b"x" * 600, "damaged tar"), (b"x" * 99, "damaged tar")],
)
def test_no_tar_at_all(tmp_path, data, flaw):
    (tmp_path / "x.tar").write_bytes(data)
    found, report, told = read(tmp_path / "x.tar")
    assert not found
    assert report.flaws == {flaw: 1}
    assert ("gunzip" in told[0].detail) == data.startswith(b"\x1f\x8b")


def test_an_empty_tar_is_fine(tar):
    assert read(tar([]))[0] == []


def test_a_header_of_an_absurd_length_takes_no_memory(tar):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    path = tar([])
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    assert read(path)[1].flaws == {"damaged tar": 1}
    info.type, info.name = tarfile.REGTYPE, "a.jpg"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    _, report, _ = read(path)
    assert report.drops == {"cut inside a member": 1}


def test_memory_does_not_grow_with_the_shard(tar):
    path = tar((f"{i:05}.jpg", b"x" * 100_000) for i in range(300))
    tracemalloc.start()
    count = sum(1 for _ in read_shard(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300
    assert peak < 3_000_000  # of 30 MB


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_digest_is_that_of_the_file(tar, keep):
    path = tar(samples(30))
    os.truncate(path, int(path.stat().st_size * keep))
    digest = hashlib.sha256()
    read(path, digest=digest)
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_damage_raises(tmp_path_factory, data):
    path = pack(tmp_path_factory.mktemp("fuzz") / "f.tar", samples(4), format=tarfile.PAX_FORMAT)
    original = bytearray(path.read_bytes())
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    read(path)


# --- lists ---


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(bytes([i]))
    return [f"in/{i}.jpg" for i in range(3)]


def test_a_text_file_of_paths(tmp_path, files):
    path = tmp_path / "list.txt"
    text = "\r\n".join([*files, "", "in/gone.jpg", "in", str(tmp_path / files[0])])
    path.write_text(text, encoding="utf-8-sig")
    digest = hashlib.sha256()
    found, report, _ = read(path, digest=digest)
    keys = [*files, str(tmp_path / files[0])]
    assert [(s.key, s.image) for s in found] == list(
        zip(keys, [b"\0", b"\1", b"\2", b"\0"], strict=True)
    )
    assert report.drops == {"no such file": 1, "not a file": 1}
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables(tmp_path, files, suffix):
    path = tmp_path / f"table.{suffix}"
    rows = [
        {"image_path": name, "caption": f'"{i}", cat', "licence": "CC0"}
        for i, name in enumerate([*files, ""])
    ]
    if suffix == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "," if suffix == "csv" else "\t"
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    digest = hashlib.sha256()
    found, report, told = read(path, digest=digest)
    assert [s.key for s in found] == files
    assert [s.text for s in found] == ['"0", cat', '"1", cat', '"2", cat']
    assert {s.meta["licence"] for s in found} == {"CC0"}
    assert report.drops == {"no path": 1}
    assert told[0].name == f"{path}:{4 if suffix == 'parquet' else 5}"
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize(
    ("name", "data", "flaw"),
    [
        ("x.csv", b'path\n"unclosed', "damaged list"),
        ("x.txt", b"\xff\xff\n", "not UTF-8"),
        ("x.txt", b"x" * 2_000_000, "damaged list"),
        ("x.parquet", b"PAR1 no", "damaged list"),
    ],
)
def test_damaged_lists(tmp_path, name, data, flaw):
    (tmp_path / name).write_bytes(data)
    found, report, _ = read(tmp_path / name)
    assert not found
    assert report.flaws == {flaw: 1}


def test_wrong_use(tmp_path):
    assert is_shard("a/B.TAR")
    assert not is_shard("a.jpg")
    for name, message in (("gone.tar", "Check the path"), ("x.jpg", "is not a shard by its name")):
        with pytest.raises(ShardError, match=message):
            list(read_shard(tmp_path / name))
    (tmp_path / "d.tar").mkdir()
    with pytest.raises(ShardError, match="is a folder"):
        list(read_shard(tmp_path / "d.tar"))
