"""From what a person types to a checkpoint: a registry name, a path, or "hf:org/name@revision"."""

import os
from pathlib import Path

from diptych.config import CLIPConfig
from diptych.errors import ModelNotFoundError, nearest
from diptych.zoo.cache import cache_folder, hub_snapshots, locate
from diptych.zoo.checkpoint import Checkpoint
from diptych.zoo.identity import verify
from diptych.zoo.reading import read
from diptych.zoo.registry import rows

__all__ = ["open_model"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def open_model(
    name: str | Path,
    *,
    cache_dir: str | Path | None = None,
    config: CLIPConfig | str | None = None,
) -> Checkpoint:
    """The checkpoint that `name` means.

    Args:
        name: a registry name first; a path if it is a `Path`, starts with "/", "." or "~", or ends
            in a known suffix; "hf:org/name@revision" is looked up in the Hugging Face cache.
        cache_dir: our cache for this call, in place of the one the environment names.
        config: as for `read`; a registry name brings its own.

    Raises:
        ModelNotFoundError: no such name, or its weights are not here; says what to do.
        CheckpointError: not the published file, or no checkpoint.
    """
    if isinstance(name, str) and name in rows():
        row = rows()[name]
        path = locate(row, cache=None if cache_dir is None else Path(cache_dir))
        if row.sha256 is not None and path.is_file():
            verify(path, row.sha256)
        return read(path, config=row.name if config is None else config, rules=row.rules)
    if isinstance(name, str) and name.startswith("hf:"):
        return read(_hub(name), config=config)
    if isinstance(name, Path) or name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES):
        return read(Path(os.path.expanduser(name)), config=config)  # noqa: PTH111
    raise ModelNotFoundError(
        f"no model is named {name!r}. {nearest(name, rows())} All of them: diptych models list. "
        f"For a file or folder, write ./{name}"
    )


def _hub(name: str) -> Path:
    repo, _, revision = name.removeprefix("hf:").partition("@")
    found = [p for p in hub_snapshots(repo, revision or "main") if p.is_dir()]
    if not found:
        raise ModelNotFoundError(
            f"{name}: is not in the Hugging Face cache. Fetch it with: hf download {repo}"
            f"{f' --revision {revision}' if revision else ''}, or put its files into a folder "
            f"and give its path. Our own cache is {cache_folder()}."
        )
    return found[0]
