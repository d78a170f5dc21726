"""Batches: the same for any number of workers and ranks, from any position; faults are counted."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from diptych.config import AugmentConfig, PreprocessConfig, TokenizerConfig
from diptych.data import Drop, Source
from diptych.data.manifest import manifest_hash, manifest_of
from diptych.data.order import Position
from diptych.data.pairs import PairBatch, Pairs
from diptych.errors import DataError, TrainError
from diptych.preprocess.augment import Augment
from diptych.tokenizer import build

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

image = Augment(PreprocessConfig(size=(16, 16)), AugmentConfig(scale=(0.3, 1.0), flip=0.5))
TOKENIZER = build(TokenizerConfig(kind="clip_bpe", context_length=16), None)
tokenize = partial(TOKENIZER.tokenize, truncate="silent")


def batches(pairs, n, *, position=None, **how):
    how = {"batch_size": 8, "image": image, "tokenize": tokenize, "trim": True} | how
    source = pairs.batches(position, **how)
    found = [next(source) for _ in range(n)]
    source.close()
    return found


def same(first: PairBatch, second: PairBatch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.ids, second.ids)
        and torch.equal(first.seeds, second.seeds)
        and torch.equal(first.groups, second.groups)
        and (first.keys, first.position, first.drops)
        == (second.keys, second.position, second.drops)
    )


def joined(parts: list[PairBatch]) -> tuple:
    rows = [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "seeds")]
    return *(row.tolist() for row in rows), [key for part in parts for key in part.keys]


@pytest.fixture
def pairs(made, tmp_path):
    """50 pairs in four shards; two images are garbage, one text is long, two are equal."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(4):
        members = []
        for i in range(shard * 13, min(shard * 13 + 13, 50)):
            text = {7: "word " * 30, 8: "Same  words", 30: "same words"}.get(i)
            broken = b"garbage" if i in (20, 41) else None
            members += made.pair(i, text=text, image=broken)
        made.tar(folder / f"{shard:04}.tar", members)
    return lambda **how: Pairs.open(
        folder, folder=tmp_path / "indexes", **({"window": 2, "max_bad_fraction": 0.2} | how)
    )


def test_a_batch(pairs):
    opened = pairs(hash=False)
    assert (opened.size, opened.batches_per_epoch(8)) == (50, 6)
    (batch,) = batches(opened, 1)
    assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.ids.dtype == batch.seeds.dtype == batch.groups.dtype == torch.int64
    assert batch.position.batch == 1 and len(set(batch.keys)) == 8
    text = TOKENIZER.tokenize([f"picture number {int(key[-4:])}" for key in batch.keys])
    plain = [i for i, key in enumerate(batch.keys) if int(key[-4:]) not in (7, 8, 30)]
    width = batch.ids.shape[1]
    assert torch.equal(batch.ids[plain], text.ids[plain, :width])
    assert width == max(1, *(int(row.argmax()) + 1 for row in batch.ids))  # EOT: the highest id
    (whole,) = batches(opened, 1, trim=False)
    assert whole.ids.shape == (8, 16)


def test_groups_are_equal_captions(pairs):
    found = batches(pairs(), 6)
    groups = dict(
        pair
        for batch in found
        for pair in zip((key[-4:] for key in batch.keys), batch.groups.tolist(), strict=True)
    )
    assert groups["0008"] == groups["0030"]
    assert len(set(groups.values())) == len(groups) - 1


def test_the_same_batches_for_any_number_of_workers(pairs):
    first = batches(pairs(), 10)
    for workers in (1, 3):
        opened = pairs()
        for mine, its in zip(first, batches(opened, 10, workers=workers), strict=True):
            assert same(mine, its)
    assert opened.report()["bad"] == {"cannot be decoded": 2}


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_batches_for_any_number_of_ranks(pairs, world):
    first = batches(pairs(), 10, trim=False)
    parts = [batches(pairs(), 10, rank=rank, world=world) for rank in range(world)]
    for whole, *pieces in zip(first, *parts, strict=True):
        assert joined(pieces) == joined([whole])
        assert {piece.position for piece in pieces} == {whole.position}
        drops = [drop for piece in pieces for drop in piece.drops]
        assert drops == whole.drops


def test_going_on_at_any_position(pairs):
    whole = batches(pairs(), 14)
    for start in (1, 5, 6, 7, 11):
        saved = json.loads(json.dumps(whole[start - 1].position.to_dict()))
        found = batches(pairs(), 2, position=Position.from_dict(saved))
        assert all(map(same, found, whole[start : start + 2]))


def test_bad_images_are_counted_once_and_replaced(pairs):
    opened = pairs()
    found = batches(opened, 18)  # three epochs
    drops = [drop for batch in found for drop in batch.drops]
    assert len(drops) > 2 and {sample for sample, _ in drops} == set(opened.tally.bad)
    names = sorted(name for _, name in opened.tally.bad.values())
    assert [name[-13:] for name in names] == ["0001.tar!0020", "0003.tar!0041"]
    assert opened.report()["bad"] == {"cannot be decoded": 2}
    for batch in found:
        assert len(batch.ids) == 8 and len(set(batch.keys)) == 8
        assert not {key[-4:] for key in batch.keys} & {"0020", "0041"}
    again = pairs(max_bad_fraction=0.05)
    again.tally.bad = json.loads(json.dumps(opened.tally.bad))
    batches(again, 18)
    assert len(again.tally.bad) == 2
    with pytest.raises(DataError, match=r"3 of 50 .*cannot be decoded: 2.*x: 1.*5\.00%"):
        again.count([("0/0/1", Drop("x", "name", ""))])


def test_too_many_bad_ones_stop_the_run(made, tmp_path, pairs):
    with pytest.raises(
        DataError, match=r"1 of 50 samples are bad \(cannot be decoded: 1\).*1\.00%"
    ):
        batches(pairs(max_bad_fraction=0.01), 12)
    rows = [{"path": f"{i}.jpg", "caption": "x"} for i in range(10)]
    for i in range(9):
        (tmp_path / f"{i}.jpg").write_bytes(made.picture(i))
    path = made.table(tmp_path / "l.csv", rows)
    with pytest.raises(DataError, match=r"no such file: 1\).*the first: 9\.jpg.*doctor data PATH"):
        Pairs.open(path, folder=tmp_path / "i")
    made.table(
        path,
        [{"path": "0.jpg", "caption": "x"}]
        + [{"path": f"{i}.jpg", "caption": ""} for i in range(1, 9)],
    )
    with pytest.raises(DataError, match="empty caption: 8"):
        Pairs.open(path, folder=tmp_path / "i")


def test_all_bad_is_an_error_and_no_endless_search(made, tmp_path):
    members = [m for i in range(20) for m in made.pair(i, image=b"no")]
    made.tar(tmp_path / "a.tar", members)
    for workers in (0, 1):
        opened = Pairs.open(tmp_path / "a.tar", folder=tmp_path / "i", max_bad_fraction=1)
        with pytest.raises(DataError, match="neither it nor its stand-ins can be decoded"):
            batches(opened, 1, workers=workers)


def test_wrong_keys_name_what_is_there(made, tmp_path):
    made.tar(tmp_path / "a.tar", [("1.picture", b""), ("1.words", b""), ("2.jpg", b"")])
    with pytest.raises(DataError, match=r"no pair .*no image: 1.*has: jpg, picture, words\. Name"):
        Pairs.open(tmp_path / "a.tar", folder=tmp_path / "i")
    path = made.table(tmp_path / "x.csv", [{"bild": "a.jpg", "wort": "b"}] * 5)
    with pytest.raises(DataError, match=r"no path: 5.*has: bild, wort\. Name .*image_key="):
        Pairs.open(path, folder=tmp_path / "i")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"it is empty.*has: nothing"):
        Pairs.open(tmp_path / "empty", folder=tmp_path / "i")
    with pytest.raises(DataError, match=r"1 of 1 files are not there"):
        Pairs.open(tmp_path / "gone.tar", folder=tmp_path / "i")


def test_two_shards_of_one_name(made, tmp_path):
    for i, name in enumerate(("a", "b")):
        made.shards(tmp_path / name, [6], start=6 * i)
    opened = Pairs.open([tmp_path / "a", tmp_path / "b"], folder=tmp_path / "i")
    found = batches(opened, 1, batch_size=12)[0]
    assert opened.size == len(set(found.keys)) == 12


def test_a_mixture_and_its_manifest(made, tmp_path):
    for i, name in enumerate(("a", "b")):
        made.shards(tmp_path / name, [20, 10], start=30 * i)
    sources = [Source(path=str(tmp_path / n), weight=w) for n, w in (("a", 3), ("b", 1))]
    opened = Pairs.open(sources, folder=tmp_path / "i", seed=5)
    found = batches(opened, 4)
    from_b = [sum("/b/" in key for key in batch.keys) for batch in found]
    assert from_b == [2] * 4
    manifest, digest = manifest_of(opened)
    assert digest == manifest_hash(json.loads(json.dumps(manifest))) and len(digest) == 64
    assert manifest["samples"] == 60 and manifest["order"] == {"seed": 5, "window": 16}
    assert [part["weight"] for part in manifest["sources"]] == [3, 1]
    first = manifest["sources"][0]["files"][0]
    assert (first["name"], first["samples"], len(first["sha256"])) == ("0000.tar", 20, 64)
    assert str(tmp_path) not in json.dumps(manifest)
    other = Pairs.open(sources, folder=tmp_path / "i", seed=6)
    assert manifest_of(other)[1] != digest


def test_several_captions_are_drawn_by_the_seed(made, tmp_path):
    (tmp_path / "0.jpg").write_bytes(made.picture(0))
    rows = [{"path": "0.jpg", "caption": text} for text in ("one", "two two", "three three three")]
    opened = Pairs.open(made.table(tmp_path / "l.csv", rows), folder=tmp_path / "i")
    lengths = [batch.ids.shape[1] for batch in batches(opened, 60, batch_size=1)]
    assert all(12 <= lengths.count(n) <= 30 for n in (3, 4, 5))  # 20 expected
    again = [batch.ids.shape[1] for batch in batches(opened, 60, batch_size=1)]
    assert again == lengths


def test_a_large_list_is_many_shards_to_the_order(made, tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.data.pairs.UNIT", 4)
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(made.picture(i))
        (tmp_path / f"{i}.txt").write_text(str(i))
    opened = Pairs.open(tmp_path, folder=tmp_path / "i", window=1)
    found = batches(opened, 2, batch_size=5)
    names = {key.rpartition("/")[2] for batch in found for key in batch.keys}
    assert names == {f"{i}.jpg" for i in range(10)}
    assert opened.order.next_batch(Position(), batch_size=5)[0][0].shard in (0, 1, 2)


def test_images_of_several_shapes_are_collated(pairs):
    def of_its_seed(data, seed, name):
        return torch.zeros(seed % 3 + 1)

    found = batches(pairs(), 1, image=of_its_seed, collate=lambda rows: [len(row) for row in rows])
    assert found[0].images == [seed % 3 + 1 for seed in found[0].seeds.tolist()]


def test_ranks_share_the_indexing_and_fail_together(pairs, tmp_path, made):
    met = []
    opened = pairs(
        rank=1, world=2, barrier=lambda: met.append(len(list((tmp_path / "indexes").iterdir())))
    )
    assert met == [2] and opened.size == 50
    made.table(tmp_path / "x.csv", [{"path": "a", "caption": "b"}])
    source = Source(path=str(tmp_path / "x.csv"), image_key="gone")
    for rank in range(2):
        with pytest.raises(DataError, match="no column 'gone'"):
            Pairs.open(
                source, folder=tmp_path / "i", rank=rank, world=2, barrier=lambda: met.append(0)
            )
    assert met == [2, 0, 0]


def test_errors(pairs):
    with pytest.raises(DataError, match="cannot be shared by 3 ranks"):
        batches(pairs(), 1, world=3)
    with pytest.raises(DataError, match="has 50 samples, fewer than its 64"):
        batches(pairs(), 1, batch_size=64)


def test_a_worker_that_dies_ends_the_run(pairs):
    source = pairs().batches(batch_size=8, image=image, tokenize=tokenize, workers=2)
    next(source)
    children = subprocess.run(
        ["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True
    ).stdout.split()
    parents = dict(zip(children[2::2], children[3::2], strict=True))
    ours = str(os.getpid())
    victims = [pid for pid, parent in parents.items() if parents.get(parent) == ours]
    os.kill(int(victims[-1]), signal.SIGKILL)
    with pytest.raises(TrainError, match=r"process that decodes images died .*workers=0"):
        for _ in range(200):
            next(source)
    source.close()


MANY = """
import sys, torch
from pathlib import Path
from diptych.data.pairs import Pairs
def tokenize(texts): return torch.zeros(len(texts), 2, dtype=torch.int64), torch.ones(len(texts))
def image(data, seed, name): return torch.zeros(3, 2, 2)
pairs = Pairs.open(sys.argv[1], folder=Path(sys.argv[2]))
source = pairs.batches(batch_size=1024, image=image, tokenize=tokenize)
for _ in range(20): next(source)
source.close()
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes elsewhere are bytes")
def test_a_million_captions_in_bounded_memory(made, tmp_path):
    peaks = []
    for n in (1000, 1_000_000):
        for i in range(1000):
            (tmp_path / f"{i:03}.jpg").write_bytes(b"not decoded here")
            if not (tmp_path / f"d{i:03}").exists():
                (tmp_path / f"d{i:03}").symlink_to(tmp_path)
        path = tmp_path / f"list{n}.csv"
        with path.open("w") as file:
            file.write("path,caption\n")
            for i in range(n if n > 1024 else 2048):
                file.write(f"d{i // 1000:03}/{i % 1000:03}.jpg,a caption of usual length, {i}\n")
        path.write_text(path.read_text().replace("length, ", "length "))
        done = subprocess.run(
            [sys.executable, "-c", MANY, path, tmp_path / "indexes"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    print(peaks)
    assert peaks[1] - peaks[0] < 300


def test_sources_cost_no_torch():
    code = "import sys, diptych.data.sources; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
