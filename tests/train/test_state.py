"""A checkpoint is whole or is not there: flipped bits, missing files, a full disk, old ones."""

import errno
import json
import multiprocessing
import random
import shutil

import numpy as np
import pytest
import torch
from full_disk import full_disk

from diptych.errors import TrainError
from diptych.train import state
from diptych.zoo import atomic

FACTS = {"position": {"batch": 3}, "bad": {"0/0/7": ["cannot be decoded", "a.jpg"]}}


def tensors(value: float = 1.0) -> dict:
    return {
        "model": {"visual.proj": torch.full((4, 3), value), "scale": torch.tensor(value)},
        "optim": {"visual.proj/exp_avg": torch.arange(12.0).reshape(4, 3)},
        "mean": {},
    }


def save(folder, *steps):
    for step in steps:
        state.save(folder, step=step, tensors=tensors(step), facts=FACTS)
    return folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_what_is_read(tmp_path):
    found, passed = state.newest(save(tmp_path, 2, 10))
    assert passed == []
    assert (found.step, found.folder.name) == (10, "step-00000010")
    assert found.facts == {"step": 10, **FACTS}
    assert found.part("model").keys() == {"visual.proj", "scale"}
    assert torch.equal(found.part("model")["visual.proj"], torch.full((4, 3), 10.0))
    assert torch.equal(found.part("optim")["visual.proj/exp_avg"], torch.arange(12.0).reshape(4, 3))
    assert found.part("mean") == {}


def test_a_folder_without_checkpoints(tmp_path):
    assert state.newest(tmp_path / "not there") == (None, [])
    (tmp_path / "step-7").mkdir()  # not our name
    (tmp_path / "step-00000007").write_text("a file")
    assert state.newest(tmp_path) == (None, [])


def test_any_flipped_bit_is_found_and_the_older_checkpoint_is_taken(tmp_path):
    save(tmp_path, 1, 2)
    rng = random.Random(0)
    files = sorted((tmp_path / "step-00000002").iterdir())
    sizes = {file: file.stat().st_size for file in files}
    for turn in range(200):
        file = files[turn % 3]  # each of the three as often as the others
        bit = rng.randrange(8 * sizes[file])
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        found, passed = state.newest(tmp_path)
        assert found is not None and found.step == 1, (file.name, bit)
        assert len(passed) == 1 and "step-00000002" in passed[0]
        file.write_bytes(whole)
    assert state.newest(tmp_path)[0].step == 2


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("share", [0, 0.1, 0.9, None])
def test_a_file_that_is_short_or_missing_is_named(tmp_path, name, share):
    file = save(tmp_path, 1, 2) / "step-00000002" / name
    if share is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    found, passed = state.newest(tmp_path)
    assert found.step == 1
    assert "step-00000002" in passed[0]
    if name != "manifest.json" or share is None:
        assert name in passed[0]


@pytest.mark.parametrize("manifest", ["[]", "null", "{}", '{"state.json": 3}', "\udcff"])
def test_a_manifest_that_is_something_else(tmp_path, manifest):
    file = save(tmp_path, 1, 2) / "step-00000002" / "manifest.json"
    file.write_bytes(manifest.encode("utf-8", "surrogateescape"))
    found, passed = state.newest(tmp_path)
    assert found.step == 1 and len(passed) == 1


def test_all_damaged(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / f"step-{step:08d}" / "manifest.json").unlink()
    found, passed = state.newest(tmp_path)
    assert found is None and len(passed) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["model", "optim", "mean"])
def test_what_is_not_a_number_is_not_saved(tmp_path, part, value):
    save(tmp_path, 1)
    wrong = tensors() | {part: {"blocks.3.weight": torch.tensor([1.0, value])}}
    with pytest.raises(TrainError, match=rf"{part}/blocks\.3\.weight.*--set optim\.lr"):
        state.save(tmp_path, step=2, tensors=wrong, facts=FACTS)
    assert names(tmp_path) == ["step-00000001"]


def test_half_of_a_number_of_a_kind(tmp_path):
    """bf16 and whole numbers as well."""
    some = {"model": {"a": torch.tensor([1.5], dtype=torch.bfloat16), "n": torch.tensor([2**40])}}
    state.save(tmp_path, step=1, tensors=some, facts={})
    found = state.newest(tmp_path)[0].part("model")
    assert found["a"].dtype == torch.bfloat16 and found["n"].item() == 2**40


@pytest.mark.parametrize("size", [0, 10_000, 399_999])
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, size):
    folder = save(tmp_path / "checkpoints", 1)
    child = multiprocessing.get_context("forkserver").Process(target=full_disk, args=(folder, size))
    child.start()
    child.join()
    assert child.exitcode == 3
    assert names(folder) == ["step-00000001"]
    assert state.newest(folder)[0].step == 1


CALLS = ["mkdir", "write_text", "chmod", "open", "rename"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_any_call_that_fails_leaves_what_was_there(tmp_path, monkeypatch, call, number):
    folder, calls = save(tmp_path, 1), []
    true = vars(atomic.Path)[call]

    def fails(self, *args, **more):
        if "tmp" in str(self.relative_to(tmp_path)):
            calls.append(self)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return true(self, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(atomic.Path, call, fails)
        try:
            state.save(folder, step=2, tensors=tensors(2.0), facts=FACTS)
            failed = False
        except TrainError as error:
            assert "No space left" in str(error) and "checkpoints.keep" in str(error)
            failed = True
    assert failed == (len(calls) >= number)
    assert names(folder) == ["step-00000001"] + ["step-00000002"] * (not failed)
    assert state.newest(folder)[0].step == (1 if failed else 2)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_disk_that_fails_to_sync_leaves_what_was_there(tmp_path, monkeypatch, number):
    folder, calls = save(tmp_path, 1), []
    true = atomic.os.fsync

    def fails(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        true(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "fsync", fails)
        if number <= 5:
            with pytest.raises(TrainError, match="Input/output error"):
                state.save(folder, step=2, tensors=tensors(2.0), facts=FACTS)
        else:  # three files, the folder, and the folder around it
            state.save(folder, step=2, tensors=tensors(2.0), facts=FACTS)
    assert state.newest(folder)[0].step == (1 if number <= 4 else 2)
    assert not list(folder.glob(".*"))


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, *range(1, 7))
    state.prune(tmp_path, step=6, keep=2, best=3)
    assert names(tmp_path) == ["step-00000003", "step-00000005", "step-00000006"]
    state.prune(tmp_path, step=6, keep=1, best=6)
    assert names(tmp_path) == ["step-00000006"]


def test_a_damaged_newer_one_does_not_push_out_a_good_one(tmp_path):
    """A run that fell back from step 12 to 9 and has saved 10."""
    save(tmp_path, 9, 10, 12)
    (tmp_path / "step-00000012" / "manifest.json").unlink()
    state.prune(tmp_path, step=10, keep=1)
    assert names(tmp_path) == ["step-00000010"]


def test_a_step_that_is_saved_again_replaces_the_damaged_one(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    assert state.newest(tmp_path)[0].step == 1
    save(tmp_path, 2)
    assert state.newest(tmp_path) is not None and state.newest(tmp_path)[0].step == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.0123abcd.tmp")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000001.gone.tmp")
    (tmp_path / ".model.safetensors.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "mine.tmp").write_text("mine")
    assert state.newest(tmp_path)[0].step == 1
    state.clean(tmp_path)
    assert names(tmp_path) == ["mine.tmp", "step-00000001"]


def test_generators_go_on_where_they_were():
    def draw():
        return random.random(), np.random.rand(), random.gauss(0, 1), torch.rand(3).tolist()  # noqa: NPY002

    draw()
    random.gauss(0, 1)  # leaves one in store
    np.random.randn()  # noqa: NPY002 (the same)
    kept = json.loads(json.dumps(state.random_state()))
    first = draw()
    state.set_random_state(kept)
    assert draw() == first
