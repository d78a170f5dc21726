"""Where files lie on this machine: our cache, openai/CLIP's, and the Hugging Face cache."""

import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from diptych.errors import ModelNotFoundError
from diptych.zoo.row import Asset, Hub, Row, Source, Url

__all__ = [
    "RECORD",
    "by_hand",
    "cache_folder",
    "find",
    "folder_for",
    "hf_home",
    "hub_snapshots",
    "locate",
    "published",
    "read_record",
    "vocabulary_folder",
]

RECORD = "source.json"  # in each folder that we filled: what came from where


def cache_folder() -> Path:
    """$DIPTYCH_CACHE, else $DIPTYCH_HOME/cache, else ~/.cache/diptych; not created here."""
    if named := os.environ.get("DIPTYCH_CACHE"):
        return Path(named)
    if home := os.environ.get("DIPTYCH_HOME"):
        return Path(home) / "cache"
    return Path.home() / ".cache" / "diptych"


def hf_home() -> Path:
    """The folder of Hugging Face's libraries, by their own variables."""
    if home := os.environ.get("HF_HOME"):
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface"


def find(row: Row, *, cache: Path | None = None, elsewhere: bool = True) -> Path | None:
    """The row's weight file, if it is on this machine; else None.

    Args:
        cache: ours, in place of the one the environment names.
        elsewhere: also look into the caches of openai/CLIP and Hugging Face.
    """
    places = _places(row, cache or cache_folder(), elsewhere)
    return next((file for file, _ in places if file.is_file()), None)


def published(row: Row, path: Path, *, cache: Path | None = None) -> tuple[str, ...]:
    """The SHA-256, or the first digits, that the file `find` found may have; () if none is known.

    Two sources may call different files the same; then either is the published one.
    """
    known = [sha for file, sha in _places(row, cache or cache_folder(), True) if file == path]
    return () if None in known else tuple(dict.fromkeys(sha for sha in known if sha))


def _places(row: Row, ours: Path, elsewhere: bool) -> Iterator[tuple[Path, str | None]]:
    """Where the weight file of each source may lie, with its hash."""
    for source in row.sources:
        places = [folder_for(row, ours)]
        match source:
            case Asset(file=file, sha256=sha256):
                yield Path(str(resources.files("diptych").joinpath("assets", file))), sha256
            case Url(file=file, sha256=sha256):
                if sha256:  # these folders are of all models: the name alone would prove nothing
                    places += [ours, *([Path.home() / ".cache" / "clip"] if elsewhere else [])]
                yield from ((place / file, sha256) for place in places)
            case Hub(repo=repo, revision=revision, weights=weights, sha256=sha256):
                places += hub_snapshots(repo, revision) if elsewhere else []
                for place in places:
                    yield place / weights[0], sha256
                    yield from ((place / name, None) for name in weights[1:])


def hub_snapshots(repo: str, revision: str = "main") -> list[Path]:
    """Snapshots of a repository in the Hugging Face cache, the wanted revision first."""
    named = os.environ.get("HF_HUB_CACHE")
    root = Path(named) if named else hf_home() / "hub"
    root /= f"models--{repo.replace('/', '--')}"
    pointer = root / "refs" / revision
    commit = pointer.read_text("utf-8").strip() if pointer.is_file() else revision
    wanted = root / "snapshots" / commit
    if revision != "main":  # a pinned revision is that one or none
        return [wanted]
    return [wanted, *sorted(p for p in (root / "snapshots").glob("*") if p != wanted)]


def folder_for(row: Row, cache: Path) -> Path:
    """The folder in our cache that is meant for this row."""
    return cache / "models" / row.name.replace("/", "--")


def vocabulary_folder(
    row: Row, folder: Path, *, cache: Path | None = None, elsewhere: bool = True
) -> Path | None:
    """The folder that has what text needs; None if nothing is needed, or none has it.

    folder: of the weights, which is looked into first.
    """
    for source in row.sources:
        if isinstance(source, Hub) and source.beside:
            places = [folder, folder_for(row, cache or cache_folder())]
            if elsewhere:
                revision = "main" if source.beside_repo else source.revision
                places += hub_snapshots(source.beside_repo or source.repo, revision)
            for place in places:
                if all((place / file).is_file() for file in source.beside):
                    return place
    return None


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """`source.json`: of each file url, commit, sha256, size, date; {} where it is not known."""
    try:
        data = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    known = data.items() if isinstance(data, dict) else ()
    return {name: facts for name, facts in known if isinstance(facts, dict)}


def locate(row: Row, *, cache: Path | None = None) -> Path:
    """`find`, or an error that says what to fetch, from where, and where to put it.

    Raises:
        ModelNotFoundError: the weights are not on this machine.
    """
    found = find(row, cache=cache)
    if found is not None:
        return found
    raise ModelNotFoundError(
        f"{row.name}: its weights are not on this machine. {by_hand(row, cache=cache)}"
    )


def by_hand(row: Row, *, cache: Path | None = None) -> str:
    """What a person can do where we cannot fetch, or must not."""
    for source in row.sources:
        if isinstance(source, Asset):
            return (
                f"{source.file} is missing from this installation. Type: pip install "
                "--force-reinstall --no-deps diptych"
            )
    folder = folder_for(row, cache or cache_folder())
    return (
        f"Where there is a network, type: diptych models download {row.name}. Or fetch "
        f"{', or '.join(map(_wanted, row.sources))} and put it into {folder}."
    )


def _wanted(source: Source) -> str:
    match source:
        case Asset(file=file):
            what = file
        case Url(url=url):
            what = url
        case Hub(repo=repo, revision=revision, weights=weights, beside=beside):
            own = () if source.beside_repo else beside
            what = f"{', '.join((weights[0], *own))} of https://huggingface.co/{repo} ({revision})"
            if source.beside_repo:
                what += f" and {', '.join(beside)} of https://huggingface.co/{source.beside_repo}"
    return what + (f" (SHA-256: {source.sha256})" if source.sha256 else "")
