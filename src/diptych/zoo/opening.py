"""From what a person types to a checkpoint: a registry name, a path, or "hf:org/name@revision"."""

import functools
import logging
import os
from dataclasses import replace
from pathlib import Path

from diptych.config import CLIPConfig
from diptych.errors import ModelNotFoundError, nearest
from diptych.zoo.cache import vocabulary_folder
from diptych.zoo.checkpoint import Checkpoint
from diptych.zoo.fetch import fetch, fetch_files
from diptych.zoo.reading import read
from diptych.zoo.registry import Row, rows

__all__ = ["open_model"]

log = logging.getLogger("diptych")

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def open_model(
    name: str | Path,
    *,
    cache_dir: str | Path | None = None,
    config: CLIPConfig | str | None = None,
    offline: bool | None = None,
) -> Checkpoint:
    """The checkpoint that `name` means; what is not on this machine is fetched.

    Args:
        name: a registry name first; a path if it is a `Path`, starts with "/", "." or "~", or ends
            in a known suffix; "hf:org/name@revision" is a repository of Hugging Face.
        cache_dir: our cache for this call, in place of the one the environment names.
        config: as for `read`; a registry name brings its own.
        offline: open no socket; None: as $DIPTYCH_OFFLINE and $HF_HUB_OFFLINE say.

    Raises:
        ModelNotFoundError: no such name, or its weights are not to be had; says what to do.
        CheckpointError: not the published file, or no checkpoint.
    """
    cache = None if cache_dir is None else Path(cache_dir)
    if isinstance(name, str) and name in rows():
        return _open_row(rows()[name], cache, config, offline)
    if isinstance(name, str) and name.startswith("hf:"):
        return read(fetch(name, cache=cache, offline=offline), config=config)
    if isinstance(name, Path) or name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES):
        return read(Path(os.path.expanduser(name)), config=config)  # noqa: PTH111
    raise ModelNotFoundError(
        f"no model is named {name!r}. {nearest(name, rows())} All of them: diptych models list. "
        f"For a file or folder, write ./{name}"
    )


def _open_row(
    row: Row, cache: Path | None, config: CLIPConfig | str | None, offline: bool | None
) -> Checkpoint:
    if row.non_commercial:
        _warn_of_licence(row.name, row.licence)
    path = fetch_files(row, cache=cache, offline=offline, images_will_do=True).path
    found = read(path, config=row.name if config is None else config, rules=row.rules)
    folder = vocabulary_folder(row, path.parent, cache=cache)
    return found if folder is None else replace(found, folder=folder)


@functools.cache
def _warn_of_licence(name: str, licence: str) -> None:
    """Once in a process."""
    log.warning("%s: its licence forbids or restricts commercial use (%s)", name, licence)
