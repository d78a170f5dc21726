"""Where a run's numbers go beside its file: a line on the terminal, TensorBoard, wandb."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from diptych.config import to_dict
from diptych.errors import MissingExtraError
from diptych.train.config import TrainConfig
from diptych.zoo.atomic import atomic_write

__all__ = ["Line", "Sink", "TensorBoard", "Wandb", "duration", "words"]

# (key of a record, its name on the line, how it is written)
_SHOWN = (
    ("pairs_per_second", "pairs/s", "{:,.1f}"),
    ("loss", "loss", "{:.4f}"),
    ("lr", "lr", "{:.2e}"),
    ("logit_scale", "scale", "{:.2f}"),
    ("grad_norm", "grad", "{:.3g}"),
    ("utilisation", "MFU", "{:.1%}"),
    ("skipped", "skipped", "{:,}"),
    ("dropped", "dropped", "{:,}"),
)
_IF_ANY = ("skipped", "dropped")  # not worth a word where there are none


class Sink(Protocol):
    """Where numbers go."""

    def write(self, group: str, numbers: Mapping[str, float], step: int) -> None:
        """Numbers of a step; `group` is "train" or "evaluation"."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


def words(record: Mapping[str, Any]) -> str:
    """What a person wants to see of a step, on one line."""
    shown = []
    for key, name, how in _SHOWN:
        value = record.get(key)
        if isinstance(value, int | float) and (value or key not in _IF_ANY):
            shown.append(f"{name} {how.format(value)}")
    if "flops_per_second" in record and "utilisation" not in record:
        shown.append(f"{record['flops_per_second'] / 1e12:.2f} TFLOP/s")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """1:02:03, or 4 d 1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02}:{second:02}"


class Line:
    """The progress of a run on a terminal: a bar, the step, the time that is left, the numbers."""

    def __init__(self, terminal: TextIO, *, steps: int, at: int):
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        # One column, so that on a narrow terminal it is the numbers at the end that are cut.
        told = "{task.completed:,}/{task.total:,}  {task.fields[left]}  {task.fields[told]}"
        fits = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            progress.BarColumn(bar_width=12, table_column=Column(min_width=12, no_wrap=True)),
            progress.TextColumn(told, markup=False, table_column=fits),
        )
        self._steps, self._at, self._start = steps, at, time.perf_counter()
        self._bar = progress.Progress(
            *columns,
            console=Console(file=terminal),
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("", total=steps, completed=at, left="", told="")
        self._bar.start()

    def move(self, step: int) -> None:
        """One more step is done."""
        self._bar.update(self._task, completed=step)

    def update(self, record: Mapping[str, Any]) -> None:
        """Show the record of a step."""
        step = record["step"]
        passed = time.perf_counter() - self._start
        left = passed / max(step - self._at, 1) * (self._steps - step)
        told = words(record)
        self._bar.update(self._task, completed=step, left=f"{duration(left)} left", told=told)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


class TensorBoard:
    """Event files in the run's folder, for `tensorboard --logdir`.

    Raises:
        MissingExtraError: there is no tensorboard.
    """

    def __init__(self, folder: Path, at: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            why = 'report_to=("tensorboard",)'
            raise MissingExtraError("tensorboard", extra="train", needed_for=why) from error
        # what an earlier process wrote after the step that this one goes on from is hidden
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=at + 1)

    def write(self, group: str, numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(f"{group}/{key}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; the one thing here that talks to a server.

    Its id stands in the run's folder, so a run that goes on is the same run there.

    Raises:
        MissingExtraError: there is no wandb.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        try:
            import wandb  # pyrefly: ignore[missing-import] (optional)
        except ImportError as error:
            why = 'report_to=("wandb",)'
            raise MissingExtraError("wandb", extra="train", needed_for=why) from error
        path = folder / "wandb-id.txt"
        if not path.is_file():
            atomic_write(path, lambda part: part.write_text(uuid.uuid4().hex, "utf-8"))
        self._run = wandb.init(
            project="diptych",
            name=config.name,
            id=path.read_text("utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=to_dict(config),
        )
        # wandb's own counter refuses numbers of a step that has passed
        self._run.define_metric("*", step_metric="step")

    def write(self, group: str, numbers: Mapping[str, float], step: int) -> None:
        named = {f"{group}/{key}": value for key, value in numbers.items()}
        self._run.log({**named, "step": step})

    def close(self) -> None:
        self._run.finish()
