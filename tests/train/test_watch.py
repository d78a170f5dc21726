"""What a run leaves in its folder, and that a run that goes on leaves it once."""

import io
import json
import logging
import math
import sys
import types

import pytest

from diptych.errors import MissingExtraError, TrainError
from diptych.train import watch as module
from diptych.train.config import TrainConfig
from diptych.train.flops import StepFlops
from diptych.train.watch import METRICS, SUMMARY, Watch, read_metrics
from diptych.train.world import World

CONFIG = TrainConfig(batch_size=8, steps=10)


def watch(folder, config=CONFIG, **how):
    return Watch(folder, config, **({"steps": 10, "world": World()} | how))


def record(step: int, **more):
    return {"step": step, "loss": 2.0 - step / 10, "lr": 1e-3, "seconds": 0.0, **more}


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]


@pytest.fixture
def clock(monkeypatch):
    """Time stands still unless it is moved."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_for_each_thing(tmp_path, clock):
    w = watch(tmp_path)
    for step in (1, 2, 3, 4):
        clock[0] += 2
        w.step(record(step, seconds=1.5), write=step % 2 == 0)
    with w.apart():  # an evaluation of 100 seconds
        clock[0] += 100
        w.evaluation({"step": 4, "image_to_text_r1": 0.25})
    clock[0] += 2
    w.step(record(5, seconds=2.0))
    w.event("step 6: skipped")
    w.saved(5)
    w.stop()
    found = rows(tmp_path)
    kinds = ["step", "step", "evaluation", "step", "event", "checkpoint"]
    assert [row["kind"] for row in found] == kinds
    assert [row["step"] for row in found] == [2, 4, 4, 5, 5, 5]
    assert found[1]["pairs"] == 32
    assert found[1]["pairs_per_second"] == 2 * 8 / 4
    assert found[1]["waiting"] == 0.25
    assert found[3]["pairs_per_second"] == 8 / 2  # the evaluation does not count
    assert found[3]["waiting"] == 0
    assert found[3]["seconds"] == 110
    assert found[1]["loss"] == 2.0 - 4 / 10


def test_utilisation(tmp_path, clock):
    class Work:
        def step(self, *, image_size, tokens):
            assert (image_size, tokens) == ((32, 32), 7)
            return StepFlops(6e12, 8e12)

    w = watch(tmp_path, work=Work(), peak=10e12)
    clock[0] += 4
    w.step(record(2, image_size=(32, 32), tokens=7))
    w.stop()
    (row,) = rows(tmp_path)
    assert row["flops_per_second"] == 2 * 6e12 / 4
    assert row["utilisation"] == 0.3


def test_each_step_once_after_a_kill(tmp_path):
    """Went to step 7, saved at 4, killed in the middle of a line; goes on from 4."""
    w = watch(tmp_path)
    for step in range(1, 8):
        w.step(record(step))
        w.event(f"event {step}")
    w.stop()
    whole = (tmp_path / METRICS).read_text("utf-8")
    (tmp_path / METRICS).write_text(whole + '{"kind": "step", "step": 8, "lo', "utf-8")
    w = watch(tmp_path, at=4)
    kept = rows(tmp_path)
    assert kept == [row for row in map(json.loads, whole.splitlines()) if row["step"] <= 4]
    for step in range(5, 11):
        w.step(record(step))
    assert w.seconds >= kept[-2]["seconds"]
    w.close({})
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "step"] == [*range(1, 11)]


@pytest.mark.parametrize("end", [b'{"kind": "st', b"\x00\x00\x00", b"\xff\xfe\n", b"[1]\n", b""])
def test_a_torn_end_is_taken_out_and_nothing_else(tmp_path, end):
    w = watch(tmp_path)
    w.step(record(1, note="größer"))
    w.step(record(2))
    w.stop()
    whole = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(whole + end)
    w = watch(tmp_path, at=2)
    w.stop()
    assert (tmp_path / METRICS).read_bytes() == whole


def test_a_last_line_without_its_end_is_kept_whole(tmp_path):
    w = watch(tmp_path)
    w.step(record(1))
    w.stop()
    whole = (tmp_path / METRICS).read_text("utf-8")
    (tmp_path / METRICS).write_text(whole.rstrip("\n"), "utf-8")
    w = watch(tmp_path, at=1)
    w.step(record(2))
    w.stop()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    w = watch(tmp_path)
    w.event("went wrong before the first checkpoint")
    w.step(record(1))
    w.stop()
    watch(tmp_path).stop()
    assert rows(tmp_path) == []


def test_what_is_no_number_is_json_all_the_same(tmp_path):
    w = watch(tmp_path)
    w.step({"step": 1, "loss": math.nan, "grad_norm": math.inf, "dropped": {"empty": 2}})
    w.stop()
    (row,) = rows(tmp_path)
    assert row["loss"] is row["grad_norm"] is None
    assert row["dropped"] == {"empty": 2}
    assert "NaN" not in (tmp_path / METRICS).read_text("utf-8")


def test_only_the_first_rank_writes(tmp_path):
    w = watch(tmp_path / "run", world=World(rank=1, size=2))
    w.step(record(1))
    w.evaluation({"step": 1, "x": 1.0})
    w.event("something")
    w.saved(1)
    assert w.close({"steps": 1}) == {"steps": 1}
    assert not (tmp_path / "run").exists()


def test_summary(tmp_path, clock):
    w = watch(tmp_path)
    clock[0] += 10
    w.step(record(10))
    w.evaluation({"step": 5, "text_to_image_r1": 0.5})
    w.evaluation({"step": 10, "text_to_image_r1": 0.25})
    w.event("one")
    (tmp_path / "checkpoints" / "step-10").mkdir(parents=True)
    given = {"dropped": {"empty caption": 3}, "best": {"text_to_image_r1": 0.5}, "bad": math.nan}
    returned = w.close(given)
    found = json.loads((tmp_path / SUMMARY).read_text("utf-8"))
    assert found == returned
    assert found["steps"] == 10
    assert found["pairs"] == 80
    assert found["pairs_per_second"] == 8
    assert found["evaluation"]["step"] == 10
    assert found["last"]["loss"] == 1.0
    assert found["events"] == 1
    assert found["checkpoints"] == ["step-10"]
    assert found["dropped"] == {"empty caption": 3}
    assert found["bad"] is None
    assert found["versions"]["torch"]
    w.close(given)
    w.event("after the end: nowhere")
    assert len(rows(tmp_path)) == 4


def test_a_full_disk_stops_the_run_and_says_what_to_do(tmp_path):
    w = watch(tmp_path)
    w._file.close()
    w._file = open("/dev/full", "w")  # noqa: SIM115, PTH123
    with pytest.raises(TrainError, match=r"metrics.jsonl: cannot be written .*Make room"):
        w.step(record(1))
    w.stop()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written"):
        watch(tmp_path / "file" / "run")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_on_a_terminal(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with caplog.at_level(logging.INFO, "diptych"):
        w = watch(tmp_path, terminal=terminal)
        w.event("passed over [step-3]: its hash differs")
        w.step(record(4, logit_scale=14.3, grad_norm=0.71, skipped=0, dropped=12))
        w.stop()
        w.stop()
    shown = terminal.getvalue()
    assert "4/10" in shown
    for part in ("left", "pairs/s", "loss 1.6000", "scale 14.30", "grad 0.71", "dropped 12"):
        assert part in shown, part
    assert "skipped" not in shown
    assert "passed over [step-3]: its hash differs" in shown
    assert not caplog.records


def test_plain_lines_elsewhere(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "diptych"):
        w = watch(tmp_path, terminal=io.StringIO())
        w.step(record(4))
        w.step(record(5), write=False)
        w.event("skipped")
        w.evaluation({"step": 5, "image_to_text_r1": 0.25, "image_to_text_r5": 0.5})
        w.stop()
    texts = [r.getMessage() for r in caplog.records]
    assert len(texts) == 3
    assert texts[0].startswith("step 4 of 10  pairs/s")
    assert texts[1:] == ["skipped", "step 5: image_to_text_r1 0.25"]
    assert caplog.records[1].levelno == logging.WARNING


def test_read_metrics_passes_over_what_is_torn(tmp_path):
    path = tmp_path / METRICS
    assert list(read_metrics(path)) == []
    path.write_text('{"kind": "step", "step": 1}\n{"kind"\n7\n{"kind": "event", "step": 2}\n{"ki')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


# --- where numbers go beside the file ---


def test_tensorboard(tmp_path):
    """Read back by TensorBoard's own reader; a run that goes on has each step once."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrainConfig(batch_size=8, steps=4, report_to=("tensorboard",))
    for at in (0, 2):
        w = watch(tmp_path, config, at=at)
        for step in range(at + 1, 5 - at // 2):
            w.step(record(step, loss=float(10 * at + step), name="not a number"))
        w.evaluation({"step": 4 - at // 2, "image_to_text_r1": 0.5})
        w.stop()
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    scalars = [(event.step, event.value) for event in reader.Scalars("train/loss")]
    assert scalars == [(1, 1.0), (2, 2.0), (3, 23.0)]
    assert "train/name" not in reader.Tags()["scalars"]
    assert reader.Scalars("evaluation/image_to_text_r1")[-1].value == 0.5


def test_wandb_is_one_run_and_gets_numbers_only(tmp_path, monkeypatch):
    made, told, finished = [], [], []

    class Run:
        def log(self, numbers):
            told.append(numbers)

        def define_metric(self, pattern, *, step_metric):
            assert (pattern, step_metric) == ("*", "step")

        def finish(self):
            finished.append(True)

    def init(**how):
        made.append(how)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = TrainConfig(batch_size=8, steps=4, report_to=("wandb",), name="first")
    for _ in "ab":
        w = watch(tmp_path, config)
        w.step(record(1, note="words"))
        w.stop()
    assert len({how["id"] for how in made}) == 1
    assert made[0]["name"] == "first"
    assert made[0]["config"]["batch_size"] == 8
    assert told[0]["step"] == 1
    assert told[0]["train/loss"] == 1.9
    assert "train/note" not in told[0]
    assert len(finished) == 2


@pytest.mark.parametrize("where", ["wandb", "tensorboard"])
def test_what_is_asked_for_and_missing(tmp_path, monkeypatch, where):
    monkeypatch.setitem(sys.modules, where, None)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=where):
        watch(tmp_path, TrainConfig(steps=1, report_to=(where,)))


def test_nothing_is_imported_that_was_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    w = watch(tmp_path)
    w.step(record(1))
    w.close({})
    assert {path.name for path in tmp_path.iterdir()} == {METRICS, SUMMARY}
