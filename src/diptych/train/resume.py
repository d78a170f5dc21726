"""Whether the run in a folder may go on: nobody else is there, settings and data are the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diptych.config import from_dict, to_dict
from diptych.errors import ConfigError, DataError, DiptychError, TrainError
from diptych.train.config import TrainConfig, settings_of
from diptych.train.world import World
from diptych.zoo.atomic import atomic_write

__all__ = ["alone", "same_data", "same_settings", "settled"]


@contextlib.contextmanager
def alone(folder: Path, here: World) -> Iterator[None]:
    """No other process trains in `folder` meanwhile.

    Raises:
        TrainError: another one does, or the folder cannot be written.
    """
    if not here.first:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "run.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise TrainError(
            f"{folder}: another process is training there. Wait for it, or give another --out."
        ) from None
    except OSError as error:
        raise TrainError(f"{folder}: cannot be written ({error}). Give another --out.") from error
    try:
        yield
    finally:
        lock.release()


def settled(config: TrainConfig, folder: Path, here: World) -> None:
    """Compare `config` with the folder's config.json, and write it there.

    Raises:
        ConfigError: the folder holds a run with other settings, or config.json is damaged.
    """
    path = folder / "config.json"
    if path.is_file() and any((folder / "checkpoints").glob("step-*")):  # else it never began
        try:
            same_settings(config, json.loads(path.read_text("utf-8")), folder)
        except (OSError, ValueError) as error:
            if isinstance(error, DiptychError):
                raise
            raise ConfigError(
                f"{path}: cannot be read ({error}). Remove it, then type the same again: the "
                "checkpoints know the settings as well."
            ) from error
    here.barrier()  # all have read it
    _write(path, to_dict(config), here)


def same_settings(config: TrainConfig, before: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than `before`, which `to_dict` gave.

    Raises:
        ConfigError: names those that differ, or `before` is of another version.
    """
    try:
        parts = from_dict(before), config
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: its settings are not of this version of diptych ({error}). Go on with the "
            "version that began the run, or give another --out."
        ) from error
    then, now = (dict(settings_of(_essence(part))) for part in parts)
    odd = [key for key in now | then if then.get(key) != now.get(key)]
    if odd:
        told = [f"{k} was {then.get(k)!r:.80}, is {now.get(k)!r:.80}" for k in odd[:5]]
        raise ConfigError(
            f"{folder} holds a run with other settings: {'; '.join(told)}. Give another --out, or "
            "the same settings to go on."
        )


def same_data(folder: Path, here: World, *, manifest: dict, now: str, before: str | None) -> None:
    """Refuse to go on with other data, for then positions mean other samples; write data.json.

    Args:
        manifest: of the data, whose hash is `now`. before: the hash of the checkpoint; None: the
            run begins.

    Raises:
        DataError: names the files that differ.
    """
    path = folder / "data.json"
    if before not in (None, now):
        raise DataError(
            f"{folder}: the data is not what this run began with{_odd_files(path, manifest)}. "
            "Bring back what was there, or begin a new run with another --out."
        )
    here.barrier()
    _write(path, {"sha256": now, **manifest}, here)


def _odd_files(path: Path, manifest: dict) -> str:
    try:
        before = json.loads(path.read_text("utf-8"))
        old, new = (
            {
                json.dumps(file, sort_keys=True): file["name"]
                for s in m["sources"]
                for file in s["files"]
            }
            for m in (before, manifest)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it only says more
    odd = sorted({(old | new)[key] for key in old.keys() ^ new.keys()})
    return f": {', '.join(odd[:5])} changed, came or went" if odd else ""


def _write(path: Path, content: dict[str, Any], here: World) -> None:
    if here.first:
        text = json.dumps(content, indent=1) + "\n"
        atomic_write(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _essence(config: TrainConfig) -> TrainConfig:
    """Without what may change between two parts of a run: it changes no number but by rounding."""
    same = TrainConfig(steps=1)
    # Where the data lies is nobody's business; that it is the same, `same_data` sees.
    sources = tuple(replace(source, path="") for source in config.data.sources)
    return replace(
        config,
        data=replace(config.data, workers=None, sources=sources),
        checkpoints=same.checkpoints,
        evaluate=same.evaluate,
        micro_batch=same.micro_batch,
        parallel=same.parallel,
        log_every=same.log_every,
        report_to=same.report_to,
        timeout=same.timeout,
    )
