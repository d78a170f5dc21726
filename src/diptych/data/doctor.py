"""Is this data fit to train on? What is there, what would be dropped, and what stands twice."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.captions import group_of
from diptych.data.index import Index, Unreadable, index_file
from diptych.data.order import hashed
from diptych.data.sources import Source, as_sources, files_of
from diptych.errors import ImageError

__all__ = ["examine"]

_AT_ONCE = 512
_MOST_NAMED = 20


def examine(
    sources: Sequence[str | Path | Source] | str | Path | Source,
    *,
    folder: Path,
    decode: Callable[[bytes, str], tuple[int, int]],
    count: Callable[[str], int],
    context: int,
    batch_size: int,
    check: int | None = None,
    threads: int = 4,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, Any]:
    """What a person wants to know before a run, as JSON.

    Args:
        folder: where indexes are kept.
        decode: bytes, name -> (width, height); raises ImageError.
        count: tokens of a text. context: how many the model takes.
        batch_size: of the run, for its first loss, ln N.
        check: so many pictures are decoded, drawn once and for all; None: all.
        progress: is told how many pictures more were decoded.

    Returns:
        "sources" (path, files, samples, seen, names, drops, flaws), "samples", "seen", "drops",
        "flaws", "told" (the first of them: reason, name, detail), "pictures", "captions",
        "duplicates", "origin", "loss". "fit": nothing would be dropped.

    Raises:
        DataError: files that are not there or that cannot be read.
    """
    found: list[dict[str, Any]] = []
    indexes: list[Index] = []
    for source in as_sources(sources):
        part = [index_file(file, folder, source=source) for file in files_of(source)]
        found.append({"path": source.path, "files": len(part), **_counts(part)})
        indexes += part
    whole = _counts(indexes)
    told = [drop for index in indexes for drop in index.info["told"]]
    rows = _rows(indexes, check)
    pictures, bad, digests = _pictures(rows, decode, threads, progress)
    captions = _captions(rows, count, context)
    drops = Counter(whole["drops"]) + Counter(reason for reason, _, _ in bad)
    origins = {"licence": Counter(), "source": Counter(), "without": Counter()}
    for index in indexes:
        for name in ("licence", "source"):
            origins[name].update(index.info["origins"][name])
        origins["without"].update(index.info["without"])
    groups = np.array([group_of(text) for text in _texts(indexes)], np.int64)
    return {
        "sources": found,
        "samples": whole["samples"],
        "seen": whole["seen"],
        "drops": dict(drops),
        "flaws": whole["flaws"],
        "told": [*told[:_MOST_NAMED], *bad[:_MOST_NAMED]],
        "pictures": pictures,
        "captions": {"number": len(groups), **captions},
        "duplicates": {
            "captions": len(groups) - len(np.unique(groups)),
            "images": len(digests) - len(set(digests)),
        },
        "origin": {name: dict(counts.most_common(_MOST_NAMED)) for name, counts in origins.items()},
        "loss": {"batch_size": batch_size, "ln_n": math.log(batch_size)},
        "fit": not drops.total() and not whole["flaws"] and whole["samples"] > 0,
    }


def _counts(indexes: list[Index]) -> dict[str, Any]:
    counts = {name: Counter() for name in ("names", "drops", "flaws")}
    for index in indexes:
        for name, total in counts.items():
            total.update(index.info[name])
    return {
        "samples": sum(index.size for index in indexes),
        "seen": sum(index.info["seen"] for index in indexes),
        **{name: dict(total) for name, total in counts.items()},
    }


def _rows(indexes: list[Index], check: int | None) -> list[tuple[Index, int]]:
    """All pairs, or `check` of them, in the order of the files."""
    ends = np.cumsum([index.size for index in indexes])
    chosen = np.arange(ends[-1] if len(ends) else 0)
    if check is not None and check < len(chosen):
        chosen = np.sort(np.argsort(hashed(0, chosen), kind="stable")[:check])
    where = np.searchsorted(ends, chosen, side="right").tolist()
    starts = [0, *ends.tolist()]
    return [(indexes[i], n - starts[i]) for i, n in zip(where, chosen.tolist(), strict=True)]


def _texts(indexes: list[Index]) -> itertools.chain[str]:
    return itertools.chain.from_iterable(
        index.captions(row) for index in indexes for row in range(index.size)
    )


def _pictures(
    rows: list[tuple[Index, int]],
    decode: Callable[[bytes, str], tuple[int, int]],
    threads: int,
    progress: Callable[[int], object],
) -> tuple[dict[str, Any], list[list[str]], list[bytes]]:
    """Sizes of the pictures; those that cannot be decoded; the digests of all that can be read."""

    def look(row: tuple[Index, int]) -> tuple[tuple[int, int] | list[str], bytes | None]:
        index, at = row
        name = index.name(at)
        try:
            data = index.image(at)
        except Unreadable as error:
            return [error.reason, name, error.detail], None
        digest = hashlib.sha256(data).digest()
        try:
            return decode(data, name), digest
        except ImageError as error:
            return ["cannot be decoded", name, str(error)], digest

    sizes: list[tuple[int, int]] = []
    bad: list[list[str]] = []
    digests: list[bytes] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            for size, digest in pool.map(look, part):
                if isinstance(size, list):
                    bad.append(size)
                else:
                    sizes.append(size)
                if digest is not None:
                    digests.append(digest)
            progress(len(part))
    known = {
        "checked": len(rows),
        "bad": len(bad),
        "width": _quantiles([width for width, _ in sizes]),
        "height": _quantiles([height for _, height in sizes]),
    }
    return known, bad, digests


def _captions(
    rows: list[tuple[Index, int]], count: Callable[[str], int], context: int
) -> dict[str, Any]:
    lengths = [count(text) for index, at in rows for text in index.captions(at)]
    return {
        "counted": len(lengths),
        "tokens": _quantiles(lengths),
        "context": context,
        "cut": sum(length > context for length in lengths),
    }


def _quantiles(values: list[int]) -> dict[str, int]:
    """Smallest, median, the one that 90 % and 99 % do not exceed, largest."""
    if not values:
        return {}
    found = np.quantile(values, (0, 0.5, 0.9, 0.99, 1), method="inverted_cdf").tolist()
    return dict(zip(("min", "50%", "90%", "99%", "max"), map(int, found), strict=True))
