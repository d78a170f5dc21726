"""The one place that a run reports to: metrics.jsonl, a progress line, a summary, and `sinks`.

- `metrics.jsonl` has one object a line with "kind": step, evaluation, event or checkpoint. A run
  that goes on first takes out what was written after the step it goes on from, and a torn last
  line, so each step is there once.
- Only the first rank writes. Nothing is sent anywhere unless the config asks for wandb.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from diptych.errors import TrainError
from diptych.train.config import TrainConfig
from diptych.train.flops import Work
from diptych.train.sinks import Line, Sink, TensorBoard, Wandb, words
from diptych.train.world import World
from diptych.zoo.atomic import atomic_write

__all__ = ["METRICS", "SUMMARY", "Watch", "plain", "read_metrics"]

METRICS, SUMMARY = "metrics.jsonl", "summary.json"

log = logging.getLogger("diptych")


class Watch:
    """Reports of one run, from one process.

    Args:
        folder: of the run.
        steps: of the whole run.
        world: who reports; only its first rank does anything.
        at: the step that the run goes on from.
        work: arithmetic of a step; with `peak`, FLOP/s of all devices together, gives the
            utilisation.
        terminal: gets the progress line if it is one; None: stderr. Elsewhere `logging` has a line
            for each written step.

    Raises:
        TrainError: the folder cannot be written.
        MissingExtraError: what `config.report_to` names is not installed.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        *,
        steps: int,
        world: World,
        at: int = 0,
        work: Work | None = None,
        peak: float | None = None,
        terminal: TextIO | None = None,
    ):
        self.folder, self.config, self.steps, self.at = folder, config, steps, at
        self.work, self.peak = work, peak
        self.active = world.first
        self._sinks: list[Sink] = []
        self._line: Line | None = None
        self._file: TextIO | None = None
        self._last: dict[str, Any] = {}
        self._start = self._mark = time.perf_counter()
        self._before = 0.0  # seconds of the run before this process
        self._apart = 0.0  # seconds since the mark that no step took
        self._window = (at, 0.0)  # the last step that was written, seconds inside steps since
        if not self.active:
            return
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for where in config.report_to:
            match where:
                case "tensorboard":
                    self._sinks.append(TensorBoard(folder, at))
                case "wandb":
                    self._sinks.append(Wandb(folder, config))
        with _writing(folder / METRICS):
            self._before = _repair(folder / METRICS, at)
            self._file = (folder / METRICS).open("a", encoding="utf-8")
        terminal = terminal or sys.stderr
        if terminal.isatty():
            self._line = Line(terminal, steps=steps, at=at)

    def step(self, record: Mapping[str, Any], *, write: bool = True) -> None:
        """One step is done.

        Args:
            record: "step" (steps done so far) and what else is known of it, as numbers: loss, lr,
                logit_scale, grad_norm ... "seconds" is the time inside the step. "tokens" and
                "image_size", the shape of its batch, are for the utilisation.
            write: False: only count it. A written one gets pairs (of the whole run), seconds (of
                the whole run), and since the last written one pairs_per_second, waiting (the share
                of time outside steps: for data) and flops_per_second, utilisation where known.
        """
        if not self.active:
            return
        since, inside = self._window
        inside += record.get("seconds", 0.0)
        self._window = since, inside
        if not write:
            if self._line is not None:
                self._line.move(record["step"])
            return
        now, step = time.perf_counter(), record["step"]
        passed = max(now - self._mark - self._apart, 1e-9)
        done = step - since
        row = dict(record)
        if "seconds" in row:
            row["waiting"] = round(max(0.0, 1 - inside / passed), 4)
        row["pairs"] = step * self.config.batch_size
        row["seconds"] = round(self.seconds, 3)
        row["pairs_per_second"] = done * self.config.batch_size / passed
        if self.work is not None:
            shape = {"image_size": row.get("image_size"), "tokens": row.get("tokens")}
            row["flops_per_second"] = done * self.work.step(**shape).model / passed
            if self.peak is not None:
                row["utilisation"] = row["flops_per_second"] / self.peak
        self._mark, self._apart, self._window = now, 0.0, (step, 0.0)
        self._last = row
        self._write("step", row)
        self._tell("train", row)
        if self._line is None:
            log.info("step %d of %d  %s", step, self.steps, words(row))
        else:
            self._line.update(row)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Metrics of the held-out pairs, with "step"."""
        if self.active:
            self._write("evaluation", record)
            self._tell("evaluation", record)
            shown = {k: v for k, v in record.items() if k.endswith(("_r1", "top1", "loss"))}
            told = [f"{k} {v:.4g}" for k, v in (shown or record).items() if _is_number(v)]
            self._say(f"step {record['step']}: {', '.join(told)}")

    def event(self, text: str, *, step: int | None = None) -> None:
        """What a person should know: a skipped step, a checkpoint that was passed over ..."""
        if self.active:
            self._write("event", {"step": self._step if step is None else step, "text": text})
            self._say(text, level=logging.WARNING)

    def saved(self, step: int) -> None:
        """The state of this step is safe."""
        if self.active:
            self._write("checkpoint", {"step": step})

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Time inside is not of the steps: evaluations, checkpoints."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - start

    def close(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """End the reports and write summary.json, whole or not at all.

        Args:
            summary: what the run knows; its keys go before those that are known here.

        Returns:
            It, with steps, pairs, seconds, pairs_per_second (all over all of the run), last,
            evaluation (the last ones), events, checkpoints (that are there) and versions.
        """
        self.stop()
        if not self.active:
            return dict(summary)
        rows = list(read_metrics(self.folder / METRICS))
        evaluations = [row for row in rows if row["kind"] == "evaluation"]
        steps = [row for row in rows if row["kind"] == "step"]
        last = self._last or (steps[-1] if steps else {})
        pairs, seconds = last.get("pairs", 0), self.seconds
        folders = (self.folder / "checkpoints").glob("step-*")
        known = {
            "steps": last.get("step", 0),
            "pairs": pairs,
            "seconds": round(seconds, 3),
            "pairs_per_second": pairs / seconds,
            "last": last,
            "evaluation": evaluations[-1] if evaluations else {},
            "events": sum(row["kind"] == "event" for row in rows),
            "checkpoints": sorted(path.name for path in folders),
            "versions": {
                "diptych": version("diptych"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        whole = plain({**known, **summary})
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(self.folder / SUMMARY, lambda part: part.write_text(text, "utf-8"))
        return whole

    def stop(self) -> None:
        """Put the terminal right and let go of the files; a second call does nothing."""
        if self._line is not None:
            self._line.stop()
            self._line = None
        for sink in self._sinks:
            sink.close()
        self._sinks = []
        if self._file is not None:
            with contextlib.suppress(OSError):  # each line was flushed, or was an error
                self._file.close()
            self._file = None

    @property
    def seconds(self) -> float:
        """That the run has taken, in all processes that trained a part that counts."""
        return self._before + time.perf_counter() - self._start

    @property
    def _step(self) -> int:
        return self._last.get("step", self.at)

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        if self._file is None:  # stopped
            return
        row = {"kind": kind, **record, "time": round(time.time(), 3)}
        text = json.dumps(plain(row), ensure_ascii=False, allow_nan=False)
        with _writing(self.folder / METRICS):
            self._file.write(text + "\n")
            self._file.flush()

    def _tell(self, group: str, record: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in record.items() if _is_number(v) and k != "step"}
        for sink in self._sinks:
            sink.write(group, numbers, record["step"])

    def _say(self, text: str, *, level: int = logging.INFO) -> None:
        if self._line is None:
            log.log(level, "%s", text)
        else:
            self._line.say(text)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; what is torn or is no object is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            row = _row(line)
            if row is not None:
                yield row


def plain(value: Any) -> Any:
    """As JSON has it: numbers that are not finite become null, for JSON has no word for them."""
    match value:
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case float():
            return value if math.isfinite(value) else None
        case str() | int() | None:
            return value
    return str(value)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("kind"), str)
    return row if whole and isinstance(row.get("step"), int) else None


def _repair(path: Path, at: int) -> float:
    """Take out what is torn or was written after step `at`; seconds of the run until there."""
    seconds, same = 0.0, True
    kept: list[str] = []
    if not path.is_file():
        return seconds
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            row = _row(line)
            if row is None or row["step"] > at or not at:
                same = False
                continue
            same &= line.endswith("\n")
            kept.append(line.rstrip("\n") + "\n")
            seconds = row["seconds"] if row["kind"] == "step" else seconds
    if not same:
        atomic_write(path, lambda part: part.write_text("".join(kept), "utf-8"))
    return seconds


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainError(
            f"{path}: cannot be written ({error}). Make room or give another --out, then type the "
            "same again: the run goes on from its last checkpoint."
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
