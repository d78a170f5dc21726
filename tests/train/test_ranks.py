"""Runs of two ranks: one bad batch on one of them, sharded towers, another number of ranks."""

from pathlib import Path

import pytest
import torch.distributed as dist
import worlds
from miniature import config, digest, digests, pictures, rows
from safetensors.torch import load_file

from diptych.train import train
from diptych.train.run import Run


class Cut(Exception):
    """The power went."""


def watched(data: str, folder: str, jobs: list) -> list[dict]:
    """Runs one after another on this rank: of each the keys and losses of its steps.

    jobs: (name of the folder, settings, the step after which the power goes, the step and the rank
    whose pixels are NaN).
    """
    found = []
    for out, settings, until, bad in jobs:
        keys, losses, summary = [], [], {}
        tell, pieces = Run.tell, Run.pieces

        def told(self, record, *, last, losses=losses, until=until, tell=tell):
            losses.append(record["loss"])
            tell(self, record, last=last)
            if self.step == until:
                raise Cut

        def cut(self, batch, keys=keys, bad=bad, pieces=pieces):
            keys.append([Path(key).name for key in batch.keys])
            found = pieces(self, batch)
            if bad == (self.step + 1, self.world.rank):
                found[-1].images.fill_(float("nan"))
            return found

        Run.tell, Run.pieces = told, cut
        try:
            summary = train(config(data, "steps=6", *settings), Path(folder, out))
        except Cut:
            assert until
        finally:
            Run.tell, Run.pieces = tell, pieces
        if dist.is_initialized():
            dist.barrier()
        skipped = summary.get("skipped", -1)
        found.append({"keys": keys, "losses": losses, "skipped": skipped})
    return found


FSDP = ("parallel=fsdp", "ema=0.5")
JOBS = [
    ("whole", (), 0, None),
    ("resumed", (), 3, None),
    ("resumed", (), 0, None),
    ("changing", (), 3, None),
    ("bad 0", (), 0, (3, 0)),
    ("bad 1", (), 0, (3, 1)),
    ("fsdp", FSDP, 0, None),
    ("fsdp resumed", FSDP, 5, None),
    ("fsdp resumed", FSDP, 0, None),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures, in which the runs are."""
    folder = tmp_path_factory.mktemp("ranks")
    pictures(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(folder / "cache"))  # the ranks' as well
        yield folder


def go(place: Path, world: int, jobs: list) -> list[list[dict]]:
    """`watched` on each of `world` ranks: of each job what the ranks found."""
    given = str(place / "pictures" / "captions.jsonl"), str(place), jobs
    ranks = worlds.run(world, watched, *given) if world > 1 else [watched(*given)]
    return [list(job) for job in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def two(place) -> list[list[dict]]:
    """What the two ranks found, job by job."""
    return go(place, 2, JOBS)


def order(found: list[dict]) -> list[list[str]]:
    """The keys of each global batch."""
    steps = zip(*(rank["keys"] for rank in found), strict=True)
    return [[key for part in parts for key in part] for parts in steps]


def test_two_ranks_learn_what_one_does(place, two):
    ((alone,),) = go(place, 1, [("alone", (), 0, None)])
    whole = two[0]
    assert order(whole) == order([alone])
    for rank in whole:
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert _apart(place / "whole", place / "alone") < 5e-6  # six steps of Adam at 1e-3


def _apart(one: Path, other: Path) -> float:
    """The largest difference of any weight in two runs' last states.

    But for biases of keys: their gradient is 0 but for rounding, which Adam makes steps of.
    """
    ours, theirs = (
        load_file(out / "checkpoints/step-00000006/state.safetensors") for out in (one, other)
    )
    names = [k for k in theirs if k.startswith("model/") and not k.endswith("k_proj.bias")]
    return max(float((ours[name] - theirs[name]).abs().max()) for name in names)


def test_two_ranks_resume_bit_for_bit(place, two):
    assert digests(place / "resumed") == digests(place / "whole")


def test_another_number_of_ranks_goes_on_with_the_same_samples(place, two):
    """2 ranks until step 3, 1 until 5, 2 to the end; saved at steps 2 and 4."""
    whole = two[0]
    parts = [two[3], *go(place, 1, [("changing", (), 5, None)])]
    parts += go(place, 2, [("changing", (), 0, None)])
    orders, losses = [order(part) for part in parts], [part[0]["losses"] for part in parts]
    assert orders[0][:2] + orders[1][:2] + orders[2] == order(whole)
    joined = losses[0][:2] + losses[1][:2] + losses[2]
    assert joined == pytest.approx(whole[0]["losses"], abs=1e-5)
    told = "".join(row["text"] for row in rows(place / "changing", "event"))
    assert "goes on with 1 ranks, not 2" in told and "goes on with 2 ranks, not 1" in told
    assert [row["step"] for row in rows(place / "changing", "step")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_is_not_a_number_on_one_rank_is_skipped_by_both(place, two, rank):
    found = two[4 + rank]
    assert found[0]["skipped"] == 1
    losses = [each["losses"] for each in found]
    assert [str(each[2]) for each in losses] == ["nan", "nan"]
    assert losses[0][:2] == losses[1][:2] == two[0][0]["losses"][:2]
    assert losses[0][3:] == losses[1][3:]  # the ranks' weights are equal
    weights = load_file(place / f"bad {rank}" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert "loss nan" in rows(place / f"bad {rank}", "event")[0]["text"]


def test_sharded_towers_learn_the_same_and_resume_bit_for_bit(place, two):
    assert two[6][0]["losses"] == pytest.approx(two[0][0]["losses"], abs=1e-5)
    assert _apart(place / "fsdp", place / "whole") < 1e-6
    for name in ("model.safetensors", "checkpoints/step-00000006/state.safetensors"):
        assert digest(place / "fsdp" / name) == digest(place / "fsdp resumed" / name)
