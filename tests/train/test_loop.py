"""A run from the first call to the model: kinds of training, resuming, faults in steps and data."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import miniature
import pytest
import torch
from miniature import CLIP, config, digests, of_model, pictures, rows, told
from PIL import Image
from safetensors.torch import load_file

import diptych
from diptych.config import ResNetConfig
from diptych.errors import CheckpointError, ConfigError, DataError, DiptychError, TrainError
from diptych.train import LoraConfig, Stage, Stopped, changed, train
from diptych.train import loop as loop_module
from diptych.train.run import Run


class Cut(Exception):
    """The power went."""


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, data) -> Path:
    """The folder of a whole run."""
    out = tmp_path_factory.mktemp("base")
    train(config(data), out)
    return out


@pytest.fixture
def at_step(monkeypatch):
    """at_step(k, function): call it once, when step k is done, before anything of it is saved."""

    def patch(step: int, function) -> None:
        true, left = Run.tell, [function]

        def tell(self, record, *, last):
            true(self, record, last=last)
            if self.step == step and left:
                left.pop()()

        monkeypatch.setattr(Run, "tell", tell)

    return patch


def names_of_checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def cut() -> None:
    raise Cut


def go_back(out: Path, step: int = 4) -> None:
    """As if step `step` and what came after it had never been."""
    for file in (out / "checkpoints" / f"step-{step:08d}").iterdir():
        file.unlink()
    (out / "checkpoints" / f"step-{step:08d}").rmdir()
    (out / "model.safetensors").unlink()


# --- kinds of training ---


def kinds(data: Path, start: Path) -> dict:
    """name -> config: each kind of run, four steps long."""
    plain = config(data)
    begun = {"start": str(start), "clip": None, "preprocess": None, "tokenizer": None}
    resnet = ResNetConfig(image_size=(32, 32), layers=(1, 1, 1, 1), width=8, heads=4)
    wide = miniature.replace(CLIP, visual=resnet)
    big = miniature.PreprocessConfig(size=(32, 32))
    sigmoid = miniature.replace(CLIP, loss="sigmoid")
    stages = (
        Stage(start=0.25, image_size=24, patch_dropout=0.5),
        Stage(start=0.5, context_length=8),
        Stage(start=0.75, image_size=16, patch_dropout=0.0),
    )
    return {
        "plain": plain,
        "whole batch": config(data, "micro_batch=none"),
        "ema": config(data, "ema=0.5"),
        "bf16": config(data, "precision=bf16"),
        "sgd": config(data, "optim.kind=sgd"),
        "muon": config(data, "optim.kind=muon"),
        "lamb": config(data, "optim.kind=lamb"),
        "stableadamw": config(data, "optim.kind=stableadamw"),
        "sigmoid": of_model(config(data, "logit_scale_max=none"), clip=sigmoid),
        "batch norm": of_model(plain, clip=wide, preprocess=big, patch_dropout=None),
        "stages": miniature.replace(plain, stages=stages),
        "lora": of_model(plain, **begun, lora=LoraConfig(rank=2)),
        "lit": of_model(plain, **begun, freeze=("visual",)),
        "wise-ft": of_model(config(data, "wise_ft=0.5", "ema=0.5"), **begun),
        "teacher": config(data, f"loss.teacher={start}", "loss.teacher_weight=0.5"),
    }


QUICK = ("plain", "ema", "batch norm", "stages", "lora", "lit", "wise-ft")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind in kinds(Path(), Path())
    ],
)
def test_each_kind_of_run_resumes_bit_for_bit_and_gives_a_model(tmp_path, data, base, kind):
    start = base / "model.safetensors"
    run = kinds(data, start)[kind]
    summary = train(run, tmp_path)
    assert (summary["steps"], summary["pairs"], summary["skipped"]) == (4, 32, 0)
    whole = digests(tmp_path)
    go_back(tmp_path)
    again = train(run, tmp_path)
    assert digests(tmp_path) == whole
    assert again["last"]["loss"] == summary["last"]["loss"]
    assert "goes on from step 2" in told(tmp_path)
    assert [row["step"] for row in rows(tmp_path, "step")] == [1, 2, 3, 4]
    encoder = diptych.load(tmp_path / "model.safetensors", device="cpu", precision="fp32")
    picture = Image.new("RGB", (20, 20), "red")
    for vector in (encoder.encode_image([picture]), encoder.encode_text(["red 1"])):
        assert vector.shape == (1, 16)
        assert abs(float((vector**2).sum()) - 1) < 1e-5
    before, after = load_file(start), load_file(tmp_path / "model.safetensors")
    if kind in ("lora", "lit", "wise-ft"):
        same = {name for name in before if torch.equal(before[name], after[name])}
        moved = before.keys() - same
        if kind == "lit":
            assert not any(name.startswith("visual.") for name in moved)
            assert any(name.startswith("text.") for name in moved)
        if kind == "lora":
            adapted = {name for name in moved if "q_proj.w" in name or "v_proj.w" in name}
            assert adapted and moved - adapted <= {"logit_scale"}
        if kind == "wise-ft":  # half of the way to what was trained
            mean = load_file(tmp_path / "checkpoints" / "step-00000004" / "state.safetensors")
            name = "visual.proj.weight"
            half = (before[name] + mean[f"mean/{name}"]) / 2
            torch.testing.assert_close(after[name], half)


def test_a_stage_that_says_nothing_of_patch_dropout_has_that_of_the_run(data, tmp_path):
    """Else a run that is resumed there would drop other patches than one that came through."""
    stages = (Stage(start=0.25, patch_dropout=0.5), Stage(start=0.5))
    run = miniature.replace(config(data, "checkpoints.every=1"), stages=stages)
    seen = []

    def step(self, batch, health, true=loop_module.step):
        seen.append(self.model_inside.visual.cfg.patch_dropout)
        return true(self, batch, health)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "step", step)
        train(run, tmp_path)
    assert seen == [0.25, 0.5, 0.25, 0.25]


def test_the_same_call_twice_gives_the_same_and_a_third_changes_nothing(tmp_path, data, base):
    summary = train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        base / "model.safetensors"
    ).read_bytes()
    again = train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)
    for key in ("steps", "pairs", "skipped", "data", "best", "checkpoints"):
        assert again[key] == summary[key]


def test_another_seed_gives_another_model(tmp_path, data, base):
    train(config(data, "seed=1"), tmp_path)
    assert digests(tmp_path)["model"] != digests(base)["model"]


# --- what ends a run, and how it goes on ---


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_power_lost_after_any_step(tmp_path, data, base, at_step, step):
    at_step(step, cut)
    with pytest.raises(Cut):
        train(config(data), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)
    assert [row["step"] for row in rows(tmp_path, "step")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_and_leaves(tmp_path, data, base, at_step, number, code):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    at_step(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped) as stopped:
        train(config(data), tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    # it came while step 3 was ending, so the end of step 4 is the next moment that asks
    assert stopped.value.code == code and stopped.value.step in (3, 4)
    assert (tmp_path / "checkpoints" / f"step-{stopped.value.step:08d}").is_dir()
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)


def test_a_second_signal_ends_at_once(tmp_path, data, base, at_step):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(3, twice)
    with pytest.raises(KeyboardInterrupt):
        train(config(data), tmp_path)
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_truncated_newest_checkpoint(tmp_path, data, base, name):
    train(config(data), tmp_path)
    file = tmp_path / "checkpoints" / "step-00000004" / name
    file.write_bytes(file.read_bytes()[:-9])
    (tmp_path / "model.safetensors").unlink()
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)
    assert "passed over a checkpoint" in told(tmp_path) and "step-00000004" in told(tmp_path)


def test_no_whole_checkpoint_is_an_error_and_not_a_new_beginning(tmp_path, data, base):
    train(config(data), tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    for file in (tmp_path / "checkpoints").glob("*/state.json"):
        file.write_text("{}")
    with pytest.raises(TrainError, match=r"none of its 2 checkpoints is whole .*rm -r .*"):
        train(config(data), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_what_a_kill_left_is_removed(tmp_path, data, base):
    train(config(data), tmp_path)
    half = tmp_path / "checkpoints" / ".step-00000006.0123.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    (tmp_path / ".model.safetensors.0123.tmp").write_bytes(b"half")
    train(config(data), tmp_path)
    assert not list(tmp_path.rglob(".*.tmp"))


# --- a folder that holds something else ---


@pytest.mark.parametrize(
    "setting",
    ["seed=1", "optim.lr=1e-3", "data.window=4", "batch_size=4", "steps=8", "ema=0.9", "trim=no"],
)
def test_other_settings_are_refused_by_name(tmp_path, data, base, setting):
    name = setting.partition("=")[0]
    before = {f.name: f.read_bytes() for f in base.iterdir() if f.is_file()}
    with pytest.raises(ConfigError, match=rf"other settings: {name} was .*, is .*another --out"):
        train(config(data, setting), base)
    assert {f.name: f.read_bytes() for f in base.iterdir() if f.is_file()} == before


def test_some_settings_may_change_between_two_parts(tmp_path, data, base, at_step):
    at_step(3, cut)
    with pytest.raises(Cut):
        train(config(data), tmp_path)
    allowed = ("checkpoints.every=1", "checkpoints.keep=3", "log_every=2", "timeout=60")
    more = (f"evaluate.sources={data}", "evaluate.every=2", "data.workers=0")
    train(config(data, *allowed, *more), tmp_path)
    assert digests(tmp_path)["model"] == digests(base)["model"]


def test_smaller_pieces_after_memory_ran_out(tmp_path, data, base, at_step):
    at_step(3, cut)
    with pytest.raises(Cut):
        train(config(data), tmp_path)
    train(config(data, "micro_batch=2"), tmp_path)
    assert "goes on with micro_batch=2, not 4" in told(tmp_path)
    ours, theirs = (load_file(out / "model.safetensors") for out in (tmp_path, base))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "TrainConfig", "steps"', "\0"])
def test_a_damaged_config(tmp_path, data, base, text):
    train(config(data), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json.*(Remove it|version)|settings are not of"):
        train(config(data), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="seed was 0, is 1"):  # the checkpoint knows
        train(config(data, "seed=1"), tmp_path)
    (tmp_path / "config.json").unlink(missing_ok=True)
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)


def test_settings_of_another_version(tmp_path, data, base):
    train(config(data), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"trim"', '"trimmed"'))
    with pytest.raises(ConfigError, match=r"version that began the run"):
        train(config(data), tmp_path)


def test_two_runs_in_one_folder(tmp_path, data, at_step):
    found = []

    def second():
        with pytest.raises(TrainError, match="another process is training there"):
            train(config(data), tmp_path)
        found.append(True)

    at_step(2, second)
    train(config(data), tmp_path)
    assert found


def test_data_that_changed_between_two_parts_is_refused(tmp_path, at_step):
    captions = pictures(tmp_path / "pictures")
    out = tmp_path / "run"
    at_step(3, cut)
    with pytest.raises(Cut):
        train(config(captions), out)
    before = captions.read_text()
    captions.write_text("".join(before.splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=r"not what this run began with: captions\.jsonl changed"):
        train(config(captions), out)
    (out / "data.json").unlink()
    with pytest.raises(DataError, match=r"not what this run began with\. Bring back"):
        train(config(captions), out)
    captions.write_text(before)
    train(config(captions), out)
    assert json.loads((out / "data.json").read_text())["samples"] == 24


# --- steps that must not happen ---


@pytest.fixture
def bad_loss(monkeypatch):
    """bad_loss(*steps): the loss of these steps (from 1) is NaN."""

    def patch(*steps: int) -> None:
        true = Run.loss

        def loss(self, batch):
            of = true(self, batch)
            wrong = float("nan") if self.step + 1 in steps else 1.0
            return lambda *features: of(*features) * wrong

        monkeypatch.setattr(Run, "loss", loss)

    return patch


@pytest.mark.parametrize("norms", [False, True])
def test_a_batch_that_is_not_a_number_is_skipped_and_counted(tmp_path, data, bad_loss, norms):
    run = kinds(data, Path())["batch norm"] if norms else config(data)
    run = changed(run, "steps=6", "checkpoints.keep=3")
    bad_loss(2, 5)
    summary = train(run, tmp_path)
    assert (summary["skipped"], summary["steps"], summary["events"]) == (2, 6, 2)
    events = rows(tmp_path, "event")
    assert [event["step"] for event in events] == [2, 5]
    assert all("nan" in event["text"] and ".png" in event["text"] for event in events)
    assert all(t.isfinite().all() for t in load_file(tmp_path / "model.safetensors").values())
    whole = digests(tmp_path)
    go_back(tmp_path, 6)
    assert names_of_checkpoints(tmp_path)[0] == "step-00000003"  # step 2 failed
    again = train(run, tmp_path)  # step 5 comes again, and is told once
    assert digests(tmp_path) == whole
    assert (again["skipped"], again["events"]) == (2, 3)  # and that it goes on


def test_a_batch_of_pixels_that_are_not_numbers_leaves_batch_norms_as_they_were(
    tmp_path, data, monkeypatch
):
    true = Run.pieces

    def pieces(self, batch):
        found = true(self, batch)
        if self.step == 1:
            found[-1].images.fill_(float("nan"))
        return found

    monkeypatch.setattr(Run, "pieces", pieces)
    summary = train(kinds(data, Path())["batch norm"], tmp_path)
    assert summary["skipped"] == 1
    weights = load_file(tmp_path / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_nonfinite_stop(tmp_path, data, bad_loss):
    bad_loss(3)
    with pytest.raises(TrainError, match=r"step 3: loss nan.*step-00000002.*optim\.lr"):
        train(config(data, "checkpoints.nonfinite=stop"), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_too_many_in_a_row_stop_the_run(tmp_path, data, bad_loss):
    bad_loss(*range(3, 20))
    with pytest.raises(TrainError, match=r"3 in a row.*step-00000002"):
        train(config(data, "steps=12", "checkpoints.max_nonfinite=3"), tmp_path)
    assert len(rows(tmp_path, "event")) == 3


@pytest.mark.parametrize("lr", ["1e30", "1e38", "1e39"])
@pytest.mark.parametrize("every", ["none", "1"])
def test_a_rate_that_blows_up_is_an_error_and_is_never_saved(tmp_path, data, lr, every):
    settings = (f"optim.lr={lr}", f"checkpoints.every={every}", f"evaluate.every={every}")
    with pytest.raises(DiptychError, match=r"optim\.lr|not finite: the weights"):
        train(config(data, *settings, f"evaluate.sources={data}"), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    for file in tmp_path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_weights_that_blew_up_push_no_good_checkpoint_out(tmp_path, data, monkeypatch):
    """Step 5 gives weights of 1e30, after which no step is finite; all are asked to be saved."""
    true = loop_module.set_lr
    monkeypatch.setattr(
        loop_module, "set_lr", lambda optimiser, lr: true(optimiser, lr if fine(lr) else 1e30)
    )
    rates = iter(range(100))

    def fine(_lr) -> bool:
        return next(rates) != 4

    settings = ("steps=12", "checkpoints.every=1", "checkpoints.keep=2")
    with pytest.raises(TrainError, match="in a row"):
        train(config(data, *settings), tmp_path)
    assert names_of_checkpoints(tmp_path) == ["step-00000004", "step-00000005"]


def test_fp16_halves_its_scale_when_gradients_overflow(tmp_path, data):
    settings = ("precision=fp16", "steps=24", "checkpoints.every=12", "optim.lr=1e-3")
    summary = train(config(data, *settings), tmp_path)
    last = json.loads((tmp_path / "checkpoints/step-00000024/state.json").read_text())["health"]
    assert last["scale"] == 2.0 ** (16 - last["skipped"])
    assert summary["skipped"] == last["skipped"] < 16
    assert told(tmp_path).count("the scale of fp16 is now") == last["skipped"]
    whole = digests(tmp_path)
    go_back(tmp_path, 24)
    assert train(config(data, *settings), tmp_path)["skipped"] == summary["skipped"]
    assert digests(tmp_path) == whole


def test_fp16_begins_lower_after_an_overflow(tmp_path, data, monkeypatch):
    """Gradients a thousand times as large overflow at 2^16 and at some of the scales below."""
    true = Run.loss

    def loss(self, batch):
        of = true(self, batch)
        return lambda *features: of(*features) * 1e3

    monkeypatch.setattr(Run, "loss", loss)
    summary = train(config(data, "precision=fp16", "steps=24", "checkpoints.every=24"), tmp_path)
    assert 1 <= summary["skipped"] < 16
    assert "the scale of fp16 is now 32768" in told(tmp_path)
    assert json.loads((tmp_path / "checkpoints/step-00000024/state.json").read_text())["health"][
        "scale"
    ] == 2.0 ** (16 - summary["skipped"])


# --- data with faults ---


def test_a_corrupt_picture_is_counted_told_and_replaced(tmp_path):
    captions = pictures(tmp_path / "pictures")
    (captions.parent / "05.png").write_bytes(b"<html>not found</html>")
    out = tmp_path / "run"
    run = config(captions, "steps=6", "data.max_bad_fraction=0.05")
    summary = train(run, out)
    assert summary["data"]["bad"] == {"cannot be decoded": 1}
    assert (summary["data"]["seen"], summary["data"]["used"]) == (24, 24)
    events = rows(out, "event")
    assert len(events) == 1 and "05.png" in events[0]["text"]
    assert rows(out, "step")[-1]["dropped"] == 1
    whole = digests(out)
    go_back(out, 6)
    again = train(run, out)
    assert digests(out) == whole and again["data"]["bad"] == {"cannot be decoded": 1}
    assert told(out).count("05.png") == 1
    with pytest.raises(DataError, match=r"1 of 24 samples are bad.*05\.png.*max_bad_fraction"):
        train(config(captions, "steps=6"), tmp_path / "strict")


def test_a_picture_that_goes_between_two_parts_of_a_run(tmp_path):
    captions = pictures(tmp_path / "pictures")
    run = config(captions, "steps=6", "data.max_bad_fraction=0.05")
    train(run, tmp_path / "run")
    go_back(tmp_path / "run", 6)
    (captions.parent / "07.png").unlink()
    train(run, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["bad"] in ({}, {"no such file": 1})


def test_rows_that_are_no_pairs_are_counted_and_told(tmp_path):
    captions = pictures(tmp_path / "pictures")
    more = [
        {"image": "00.png", "captions": ["another caption of the first"]},
        {"image": "gone.png", "captions": ["no such file"]},
        {"image": "empty.png", "captions": ["  "]},
        {"captions": ["no path"]},
    ]
    (captions.parent / "empty.png").write_bytes((captions.parent / "00.png").read_bytes())
    with captions.open("a") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in more)
    summary = train(config(captions, "data.max_bad_fraction=0.2"), tmp_path / "run")
    assert summary["data"]["drops"] == {"no such file": 1, "empty caption": 1, "no path": 1}
    assert (summary["data"]["seen"], summary["data"]["used"]) == (27, 24)
    text = told(tmp_path / "run")
    assert "gone.png (no such file)" in text
    for why in summary["data"]["drops"]:
        assert f"{why}: 1" in text
    with pytest.raises(DataError, match=r"3 of 27 samples are bad.*doctor data"):
        train(config(captions), tmp_path / "strict")


def test_a_key_that_is_not_there(tmp_path, data):
    source = miniature.Source(path=str(data), caption_key="title")
    run = config(data)
    run = miniature.replace(run, data=miniature.replace(run.data, sources=(source,)))
    with pytest.raises(DataError, match=r"no column 'title', but image, captions"):
        train(run, tmp_path)


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Three tars of eight pairs."""
    captions = pictures(tmp_path / "pictures")
    files = [tmp_path / f"{i:04}.tar" for i in range(3)]
    for i, file in enumerate(files):
        with tarfile.open(file, "w") as tar:
            for row in captions.read_text().splitlines()[8 * i : 8 * i + 8]:
                row = json.loads(row)
                stem = row["image"].removesuffix(".png")
                image = (captions.parent / row["image"]).read_bytes()
                for name, content in (("png", image), ("txt", row["captions"][0].encode())):
                    member = tarfile.TarInfo(f"{stem}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return files


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda whole: whole[:5000], "no end mark"),
        (lambda whole: b"", "empty file"),
        (lambda whole: b"\x5a" * 4096, "damaged tar"),
    ],
)
def test_a_corrupt_shard_is_told_and_the_good_pairs_are_used(tmp_path, shards, damage, why):
    shards[1].write_bytes(damage(shards[1].read_bytes()))
    run = config(tmp_path / "{0000..0002}.tar", "data.max_bad_fraction=0.2")
    found = train(run, tmp_path / "run")["data"]
    assert 16 <= found["used"] < 24
    assert found["flaws"] == {why: 1}
    assert f"{why}: 1" in told(tmp_path / "run") and "0001.tar" in told(tmp_path / "run")
    train(run, tmp_path / "run")
    assert told(tmp_path / "run").count("not used of the data") == 1


def test_a_shard_that_is_missing(tmp_path, shards):
    shards[2].unlink()
    with pytest.raises(DataError, match=r"1 of 3 files are not there: .*0002\.tar"):
        train(config(tmp_path / "{0000..0002}.tar"), tmp_path / "run")


def test_a_shard_that_changes_between_two_parts(tmp_path, shards):
    pattern = tmp_path / "{0000..0002}.tar"
    train(config(pattern), tmp_path / "run")
    go_back(tmp_path / "run")
    changed = bytearray(shards[2].read_bytes())
    changed[700] ^= 1
    shards[2].write_bytes(changed)
    with pytest.raises(DataError, match=r"began with: 0002\.tar changed"):
        train(config(pattern), tmp_path / "run")


# --- a disk that is full ---


def test_no_room_for_a_checkpoint(tmp_path, data, base, monkeypatch):
    from diptych.train import state

    true, calls = state.save_file, []

    def save_file(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            raise state.SafetensorError("I/O error: No space left on device (os error 28)")
        true(tensors, path)

    monkeypatch.setattr(state, "save_file", save_file)
    with pytest.raises(TrainError, match=r"step-00000004.*No space left.*Make room for"):
        train(config(data), tmp_path)
    assert names_of_checkpoints(tmp_path) == ["step-00000002"]
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)


def test_no_room_for_metrics(tmp_path, data, base, monkeypatch):
    true = Path.open

    class Full(io.StringIO):
        def write(self, text):
            if json.loads(text)["step"] == 3:
                raise OSError(28, "No space left on device")
            return super().write(text)

    def opens(self, *args, **more):
        return (
            Full() if self.name == "metrics.jsonl" and args == ("a",) else true(self, *args, **more)
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opens)
        with pytest.raises(TrainError, match=r"metrics\.jsonl: cannot be written .*type the same"):
            train(config(data), tmp_path)
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)


def test_no_room_for_the_model(tmp_path, data, base, monkeypatch):
    import diptych.zoo.writing as writing

    def save_file(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "save_file", save_file)
        with pytest.raises(CheckpointError, match=r"model\.safetensors.*No space left"):
            train(config(data), tmp_path)
    train(config(data), tmp_path)
    assert digests(tmp_path) == digests(base)


def test_a_folder_that_cannot_be_made(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written"):
        train(config(data), tmp_path / "file" / "run")


def test_the_best_checkpoint_and_model_are_kept(tmp_path, data):
    settings = ("steps=6", "checkpoints.every=1", "checkpoints.keep=1", "evaluate.every=1")
    run = config(data, *settings, f"evaluate.sources={data}", "evaluate.best=step")
    with pytest.raises(ConfigError, match=r"evaluate\.best='step' is not measured\. There is: "):
        train(run, tmp_path / "wrong")
    summary = train(config(data, *settings, f"evaluate.sources={data}"), tmp_path / "run")
    evaluations = rows(tmp_path / "run", "evaluation")
    values = [row["image_to_text_r1"] for row in evaluations]
    best = evaluations[values.index(max(values))]
    assert summary["best"] == {
        "metric": "image_to_text_r1",
        "value": max(values),
        "step": best["step"],
    }
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {f"step-{best['step']:08d}", "step-00000006"}
    saved = load_file(
        tmp_path / "run" / "checkpoints" / f"step-{best['step']:08d}/state.safetensors"
    )
    for name, tensor in load_file(tmp_path / "run" / "best.safetensors").items():
        assert torch.equal(saved[f"model/{name}"], tensor)
