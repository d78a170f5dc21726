"""Where files lie on this machine: our cache, openai/CLIP's, and the Hugging Face cache."""

import os
from importlib import resources
from pathlib import Path

from diptych.errors import ModelNotFoundError
from diptych.zoo.registry import Asset, Hub, Row, Url

__all__ = ["cache_folder", "find", "hub_snapshots", "locate"]


def cache_folder() -> Path:
    """$DIPTYCH_CACHE, else $DIPTYCH_HOME/cache, else ~/.cache/diptych; not created here."""
    if named := os.environ.get("DIPTYCH_CACHE"):
        return Path(named)
    if home := os.environ.get("DIPTYCH_HOME"):
        return Path(home) / "cache"
    return Path.home() / ".cache" / "diptych"


def hub_dir() -> Path:
    """The Hugging Face cache, by its own variables."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface" / "hub"


def find(row: Row, *, cache: Path | None = None) -> Path | None:
    """The row's weight file, if it is on this machine; else None.

    Looks into our cache (`cache`, or the one the environment names), then openai/CLIP's or the
    Hugging Face cache.
    """
    ours = cache or cache_folder()
    match row.source:
        case Asset(file=file):
            files = [Path(str(resources.files("diptych").joinpath("assets", file)))]
        case Url(url=url):
            name = url.rsplit("/", 1)[-1]
            places = [folder_for(row, ours), ours, Path.home() / ".cache" / "clip"]
            files = [place / name for place in places]
        case Hub(repo=repo, revision=revision, weights=weights):
            places = [folder_for(row, ours), *hub_snapshots(repo, revision)]
            files = [place / name for place in places for name in weights]
    return next((file for file in files if file.is_file()), None)


def hub_snapshots(repo: str, revision: str = "main") -> list[Path]:
    """Snapshots of a repository in the Hugging Face cache, the wanted revision first."""
    root = hub_dir() / f"models--{repo.replace('/', '--')}"
    pointer = root / "refs" / revision
    commit = pointer.read_text("utf-8").strip() if pointer.is_file() else revision
    wanted = root / "snapshots" / commit
    if revision != "main":  # a pinned revision is that one or none
        return [wanted]
    return [wanted, *sorted(p for p in (root / "snapshots").glob("*") if p != wanted)]


def folder_for(row: Row, cache: Path) -> Path:
    """The folder in our cache that is meant for this row."""
    return cache / "models" / row.name.replace("/", "--")


def locate(row: Row, *, cache: Path | None = None) -> Path:
    """`find`, or an error that says what to fetch, from where, and where to put it.

    Raises:
        ModelNotFoundError: the weights are not on this machine.
    """
    found = find(row, cache=cache)
    if found is not None:
        return found
    match row.source:
        case Asset(file=file):
            raise ModelNotFoundError(
                f"{row.name}: {file} is missing from this installation. Type: pip install "
                "--force-reinstall --no-deps diptych"
            )
        case Url(url=url):
            what = f"fetch {url}"
        case Hub(repo=repo, revision=revision, weights=weights, beside=beside):
            files = ", ".join((weights[0], *beside))
            what = f"fetch {files} of https://huggingface.co/{repo} ({revision})"
    check = f" SHA-256: {row.sha256}." if row.sha256 else ""
    raise ModelNotFoundError(
        f"{row.name}: its weights are not on this machine. {what[0].upper()}{what[1:]} and put it "
        f"into {folder_for(row, cache or cache_folder())}.{check}"
    )
