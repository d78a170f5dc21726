"""What a bulk job has to do: the shards, where each one's vectors go, and what is finished.

    OUT/00012-1f2e3d4c/         of the shard 00012.tar; the digits are of the path of its folder
        vectors.npy             float16 [n e], unit rows
        rows.parquet            key, caption, width, height, sha256, meta (JSON): one row a vector
        errors.jsonl            {"key", "error", "reason"}: what has no vector, and why
        manifest.json           of what, by which model, how many, and the SHA-256 of each file
    OUT/.leases/                who works on what, while somebody does

A folder is there when it is whole, and its manifest says of what it is.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diptych.data import is_shard
from diptych.errors import ConfigError, ShardError
from diptych.zoo import sha256_of

__all__ = ["Input", "Job", "Manifest", "expand", "finished", "plan", "read_manifest"]

VERSION = 1
MANIFEST, VECTORS, ROWS, ERRORS = "manifest.json", "vectors.npy", "rows.parquet", "errors.jsonl"


class Job(NamedTuple):
    """One shard, and the folder its vectors go to."""

    path: Path
    folder: Path

    @property
    def leases(self) -> Path:
        return self.folder.parent / ".leases"


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """The shard as it was when it was read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a finished folder says of itself.

    Attributes:
        input: of which shard.
        model: the name it was loaded by; `fingerprint` is what counts.
        seen: samples of the shard; `rows` have a vector, `errors` could not be decoded, the others
            are in `drops`, by reason.
        flaws: what the shard lost beside samples, by reason.
        files: SHA-256 of each file.
        attempts: 1, and one for each time that the failures were tried again.
        seconds: that the last attempt took.
    """

    input: Input
    model: str
    fingerprint: str
    precision: str
    embed_dim: int
    seen: int
    rows: int
    errors: int
    drops: dict[str, int]
    flaws: dict[str, int]
    files: dict[str, str]
    attempts: int
    seconds: float
    diptych: str
    version: int = VERSION

    def to_json(self) -> str:
        """Text for `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def expand(inputs: Iterable[str | Path]) -> list[Path]:
    """Shards named by files, patterns such as "data/*.tar", and folders (their `.tar` files).

    Raises:
        ShardError: a name or a pattern without a shard, or a file that is none by its name.
    """
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            some = sorted(path.glob("*.tar"))
        elif not path.exists() and glob.has_magic(str(given)):
            some = sorted(Path(name) for name in glob.glob(str(given), recursive=True))  # noqa: PTH207
        else:
            some = [path]
        wrong = [one for one in some if not is_shard(one)]
        if wrong or not some:
            what = f"{wrong[0]}: is not a shard" if wrong else f"{given}: no shards there"
            raise ShardError(f"{what}. Give .tar files, a folder of them, or a list of images.")
        found += some
    return list(dict.fromkeys(found))


def plan(shards: Iterable[str | Path], out: str | Path) -> list[Job]:
    """A job for each shard.

    The name of a folder depends on the absolute path of the shard alone, so any worker that sees
    the data under the same path names it alike, whichever shards it was given.
    """
    jobs = []
    for shard in shards:
        path = Path(os.path.abspath(shard))  # noqa: PTH100  links are what machines share
        digest = hashlib.sha256(os.fsencode(path.parent) + b"\0" + os.fsencode(path.name))
        jobs.append(Job(path, Path(out) / f"{path.stem}-{digest.hexdigest()[:8]}"))
    return jobs


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished folder; None if there is none.

    Raises:
        ShardError: not a manifest of ours, or of a later version.
    """
    path = folder / MANIFEST
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise ShardError(
                f"{path}: has version {found['version']}, we read {VERSION}. "
                "Type: pip install --upgrade diptych"
            )
        return Manifest(**found | {"input": Input(**found["input"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ShardError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ShardError(
            f"{path}: is not a manifest ({error}). Type: rm -r {folder}  and embed again"
        ) from error


def finished(job: Job, *, fingerprint: str | None = None) -> Manifest | None:
    """The manifest, if the job is done: by this model, from the shard as it is now.

    Args:
        fingerprint: of the model; None takes any.

    Raises:
        ShardError: the shard is another one now.
        ConfigError: the vectors are another model's.
    """
    manifest = read_manifest(job.folder)
    if manifest is None:
        return None
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        raise ConfigError(
            f"{job.folder}: holds vectors of {manifest.model} ({manifest.fingerprint[:12]}), not "
            f"of this model and mode ({fingerprint[:12]}). Give another --out."
        )
    try:
        now = job.path.stat()
    except OSError:  # shards may be deleted when their vectors are there
        return manifest
    same = now.st_size == manifest.input.size and (
        now.st_mtime_ns == manifest.input.mtime_ns or sha256_of(job.path) == manifest.input.sha256
    )
    if not same:
        raise ShardError(
            f"{job.path}: is not the file any more that {job.folder} was made of. "
            f"Type: rm -r {job.folder}  and embed again"
        )
    return manifest
