"""A whole Hugging Face repository as a model: "hf:org/name@revision", in a cache or fetched.

- In our cache `hub/<org--name>/<commit>` holds the files of one commit, and `refs/<revision>`
  names the commit; it is written when all files are there.
- Of weights one copy is fetched: the one that `reading` would take.
"""

import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from diptych.errors import CheckpointError, DownloadError, ModelNotFoundError
from diptych.zoo.atomic import atomic_write
from diptych.zoo.cache import RECORD, cache_folder, hub_snapshots
from diptych.zoo.net.download import File, download, get_json
from diptych.zoo.net.web import Unavailable, hub_address, listing_address
from diptych.zoo.open_clip import WEIGHT_FILES
from diptych.zoo.reading import HF_WEIGHT_FILES, INDEX, weight_map

__all__ = ["SCHEME", "choose", "fetch_repository", "find_repository", "page_of", "parse"]

SCHEME = "hf:"
VOCABULARIES = ("spiece.model", "tokenizer.model", "vocab.txt", "merges.txt")
_HF_WEIGHTS = tuple(name + end for name in HF_WEIGHT_FILES for end in ("", INDEX))


def page_of(repo: str) -> str:
    """Where a person reads of a repository and accepts its licence."""
    return f"https://huggingface.co/{repo}"


def parse(name: str) -> tuple[str, str]:
    """(repository, revision) of "hf:org/name@revision".

    Raises:
        ModelNotFoundError: not of that form.
    """
    repo, _, revision = name.removeprefix(SCHEME).partition("@")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repo, re.ASCII):
        raise ModelNotFoundError(f"{name}: is no repository. Write hf:org/name, or ...@revision")
    return repo, revision or "main"


def weight_file(names: Collection[str]) -> str | None:
    """The file of weights, or the index of its shards, that `reading` takes of a folder."""
    if "open_clip_config.json" in names:
        wanted = WEIGHT_FILES
    else:
        wanted = _HF_WEIGHTS if "config.json" in names else ()
    return next((name for name in wanted if name in names), None)


def choose(names: Collection[str]) -> list[str]:
    """What a reader of ours needs of a repository's files; the weights, or their index, are last.

    Shards are not among them: their index names them.
    """
    weights = weight_file(names)
    if weights is None:
        return []
    plain = [n for n in names if n == Path(n).name and not n.startswith(".") and "\\" not in n]
    ours = (INDEX, ".part.json", RECORD)  # and what we write ourselves
    settings = [n for n in plain if n.endswith(".json") and not n.lower().endswith(ours)]
    return [*sorted({*settings, *(n for n in plain if n in VOCABULARIES)} - {weights}), weights]


def shards_of(index: Path) -> list[str]:
    """The files of weights that an index names; errors as `reading.weight_map`."""
    return sorted(set(weight_map(index).values()))


def find_repository(
    repo: str, revision: str, *, cache: Path | None = None, elsewhere: bool = True
) -> Path | None:
    """The folder of a repository, if it is on this machine with its weights; else None."""
    root = _root(repo, cache)
    pointers = {path.name: path.read_text("utf-8").strip() for path in (root / "refs").glob("*")}
    commit = pointers.get(quote(revision, safe=""))
    if commit is None and revision in pointers.values():
        commit = revision
    places = [root / commit] if commit else []
    places += hub_snapshots(repo, revision) if elsewhere else []
    return next((place for place in places if _is_whole(place)), None)


def _root(repo: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "hub" / repo.replace("/", "--")


def _is_whole(folder: Path) -> bool:
    names = {path.name for path in folder.glob("*") if path.is_file()}
    weights = weight_file(names)
    if weights is None or not weights.endswith(INDEX):
        return weights is not None
    try:
        return names.issuperset(shards_of(folder / weights))
    except CheckpointError:
        return False


def fetch_repository(repo: str, revision: str, *, cache: Path | None = None) -> list[File]:
    """The files of a repository that make a model, all of one commit, in one folder of our cache.

    Raises:
        DownloadError: a file cannot be had; says why.
    """
    page = page_of(repo)
    url = listing_address(repo, revision)
    try:
        data = get_json(url, page=page)
        match data:
            case {"sha": str(commit), "siblings": [*files]}:
                names = [f["rfilename"] for f in files if isinstance(f, dict)]
            case _:
                raise Unavailable("the answer is no list of files")
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise Unavailable(f"names no commit but {commit[:50]!r}")
        wanted = choose([name for name in names if isinstance(name, str)])
    except (Unavailable, KeyError) as error:
        raise DownloadError(f"hf:{repo}@{revision}: {url}: {error}.") from error
    if not wanted:
        raise DownloadError(
            f"hf:{repo}@{revision}: holds no model that we read: neither open_clip_config.json nor "
            f"config.json with its weights. See {page}"
        )
    folder = _root(repo, cache) / commit
    found = [_one(repo, commit, folder, name) for name in wanted]
    if wanted[-1].endswith(INDEX):
        found += [_one(repo, commit, folder, n) for n in shards_of(folder / wanted[-1])]
    pointer = folder.parent / "refs" / quote(revision, safe="")
    atomic_write(pointer, lambda temporary: temporary.write_text(commit + "\n", "utf-8"))
    return found


def _one(repo: str, commit: str, folder: Path, name: str) -> File:
    url = hub_address(repo, commit, name)
    try:
        return download(url, folder / name, page=page_of(repo))
    except Unavailable as error:
        raise DownloadError(
            f"hf:{repo}@{commit}: {url}: {error}. What came so far is kept in {folder}."
        ) from error
