"""What a model needs, on this machine: found in a cache, else fetched from the first good source.

A file is taken where it lies: weights may be in the Hugging Face cache and the vocabulary in ours.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from diptych.errors import DownloadError, ModelNotFoundError
from diptych.zoo import cache as places
from diptych.zoo.identity import verify
from diptych.zoo.net.download import File, download
from diptych.zoo.net.repository import SCHEME, fetch_repository, find_repository, page_of, parse
from diptych.zoo.net.web import Unavailable, address, hub_address, is_offline
from diptych.zoo.registry import Asset, Hub, Row, Source, Url, get

__all__ = ["Fetched", "fetch", "fetch_files", "fetch_url", "fetch_vocabulary"]

log = logging.getLogger("diptych")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """path: what `read` takes, a file or a folder. files: the weights, and what lies beside."""

    path: Path
    files: tuple[File, ...]


def fetch(name: Row | str, *, cache: str | Path | None = None, offline: bool | None = None) -> Path:
    """The weights of a model of the registry, or the folder of "hf:org/name"; fetched if needed.

    Args:
        cache: ours, in place of the one the environment names.
        offline: open no socket; None: as $DIPTYCH_OFFLINE and $HF_HUB_OFFLINE say.

    Raises:
        ModelNotFoundError: no such model, or offline and not here; says what to do.
        DownloadError: no source gives it; lists each with its reason.
        CheckpointError: what lies here is not the published file.
    """
    return fetch_files(name, cache=cache, offline=offline).path


def fetch_files(
    name: Row | str,
    *,
    cache: str | Path | None = None,
    offline: bool | None = None,
    elsewhere: bool = True,
    images_will_do: bool = False,
) -> Fetched:
    """`fetch`, with each file that it found or fetched.

    Args:
        elsewhere: take files from the caches of other libraries too.
        images_will_do: a vocabulary that cannot be fetched is a warning; text will be an error.
    """
    ours = None if cache is None else Path(cache)
    off = is_offline(offline)
    if isinstance(name, str) and name.startswith(SCHEME):
        return _repository(name, ours, off, elsewhere)
    row = get(name) if isinstance(name, str) else name
    path = places.find(row, cache=ours, elsewhere=elsewhere)
    if path is None and not off:
        weights = _first_good(row, ours or places.cache_folder())
    else:
        weights = File.here(path or places.locate(row, cache=ours))
        if hashes := places.published(row, weights.path, cache=ours):
            verify(weights.path, *hashes)
    try:
        beside = _beside(row, weights.path.parent, ours, off, elsewhere)
    except ModelNotFoundError as error:
        if not images_will_do:
            raise
        if not off:
            log.warning("%s", error)
        beside = []
    return Fetched(path=weights.path, files=(weights, *beside))


def fetch_vocabulary(
    name: Row | str, *, cache: str | Path | None = None, offline: bool | None = None
) -> Path | None:
    """The folder with what text needs of a model of the registry, without its weights.

    None: nothing lies beside its weights; the vocabulary is in this package or in their file.

    Raises: as `fetch`.
    """
    row = get(name) if isinstance(name, str) else name
    ours = None if cache is None else Path(cache)
    weights = places.find(row, cache=ours)
    own = places.folder_for(row, ours or places.cache_folder())
    folder = own if weights is None else weights.parent
    files = _beside(row, folder, ours, is_offline(offline), True)
    return files[0].path.parent if files else None


def fetch_url(source: Url, folder: Path, *, offline: bool | None = None) -> Path:
    """A single file, in `folder`; fetched if it is not there.

    Raises:
        ModelNotFoundError: offline, and not there.
        DownloadError: it cannot be fetched.
    """
    path = folder / source.file
    if path.is_file():
        return path
    if is_offline(offline):
        raise ModelNotFoundError(f"{path}: is not here. Fetch {source.url} and put it there.")
    url = address(source.url)
    try:
        return _named(url, path, source.sha256, page=None).path
    except Unavailable as error:
        raise DownloadError(str(error)) from error


def _first_good(row: Row, ours: Path) -> File:
    """The weights from the first source that gives them."""
    folder, reasons = places.folder_for(row, ours), []
    for source in row.sources:
        try:
            return _weights(source, folder)
        except Unavailable as error:
            log.warning("%s: %s", row.name, error)
            reasons.append(str(error))
    listed = "".join(f"\n  {reason}" for reason in reasons)
    raise DownloadError(
        f"{row.name}: could not be fetched.{listed}\n{places.by_hand(row, cache=ours)}"
    )


def _weights(source: Source, folder: Path) -> File:
    match source:
        case Asset(file=file):
            raise Unavailable(f"{file}: is part of the package")
        case Url():
            url = address(source.url)
            return _named(url, folder / source.file, source.sha256, page=None)
        case Hub():
            missing = []
            for i, name in enumerate(source.weights):
                url = hub_address(source.repo, _commit(folder, source), name)
                sha256 = None if i else source.sha256
                try:
                    return _named(url, folder / name, sha256, page=page_of(source.repo))
                except Unavailable as error:
                    if not error.missing:
                        raise
                    missing.append(str(error))
            raise Unavailable("\n  ".join(missing))


def _named(url: str, path: Path, sha256: str | None, *, page: str | None) -> File:
    """`download`, whose errors begin with the address that was asked."""
    try:
        return download(url, path, sha256=sha256, page=page)
    except Unavailable as error:
        raise Unavailable(f"{url}: {error}", missing=error.missing) from error


def _beside(row: Row, where: Path, ours: Path | None, off: bool, elsewhere: bool) -> list[File]:
    """What text needs besides, all of it in one folder; `where` the weights lie, or will."""
    sources = [s for s in row.sources if isinstance(s, Hub) and s.beside]
    if not sources:
        return []
    here = places.vocabulary_folder(row, where, cache=ours, elsewhere=elsewhere)
    if here is not None:
        return [File.here(here / name) for name in sources[0].beside if (here / name).is_file()]
    if off:
        raise ModelNotFoundError(
            f"{row.name}: {', '.join(sources[0].beside)}, which text needs, is not on this "
            f"machine. {places.by_hand(row, cache=ours)}"
        )
    folder, reasons = places.folder_for(row, ours or places.cache_folder()), []
    for source in sources:
        repo = source.beside_repo or source.repo
        revision = "main" if source.beside_repo else _commit(where, source)
        try:
            return [
                _named(hub_address(repo, revision, name), folder / name, None, page=page_of(repo))
                for name in source.beside
            ]
        except Unavailable as error:
            reasons.append(str(error))
    listed = "".join(f"\n  {reason}" for reason in reasons)
    raise DownloadError(
        f"{row.name}: what text needs could not be fetched.{listed}\n"
        f"{places.by_hand(row, cache=ours)}"
    )


def _commit(folder: Path, source: Hub) -> str:
    """The commit of what `folder` has of the repository, so that all is of one; or the revision."""
    for facts in places.read_record(folder).values():
        if f"/{source.repo}/resolve/" in str(facts.get("url")) and facts.get("commit"):
            return str(facts["commit"])
    cached = f"models--{source.repo.replace('/', '--')}" in folder.parts
    if cached and re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return folder.name
    return source.revision


def _repository(name: str, ours: Path | None, off: bool, elsewhere: bool) -> Fetched:
    repo, revision = parse(name)
    found = find_repository(repo, revision, cache=ours, elsewhere=elsewhere)
    if found is not None:
        known = places.read_record(found)
        files = [found / n for n in known] or [p for p in sorted(found.iterdir()) if p.is_file()]
        return Fetched(path=found, files=tuple(map(File.here, filter(Path.is_file, files))))
    if off:
        raise ModelNotFoundError(
            f"{name}: is neither in the Hugging Face cache nor in ours, "
            f"{ours or places.cache_folder()}. Where there is a network, type: diptych models "
            f"download {name}. Or put its files into a folder and give its path."
        )
    got = fetch_repository(repo, revision, cache=ours)
    return Fetched(path=got[0].path.parent, files=tuple(got))
