"""Captions and origin of a sample: from the columns and keys that data sets use."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from diptych.data.lists import TEXT_COLUMNS, pick

__all__ = ["PROVENANCE", "captions_of", "group_of", "opted_out", "provenance"]

PROVENANCE = ("url", "source", "licence", "author", "retrieved", "sha256")


def captions_of(text: str | None, meta: dict[str, Any], key: str | None) -> tuple[list[str], int]:
    """The captions of a sample, each once, and how many were given, empty ones included.

    text: of the `.txt`. meta: the JSON or the row. key: the one to take; None: the text and
    `captions`, and if there is neither, caption, text or title. A list is several captions; so is
    a JSON list in `captions`.
    """
    if key is not None:
        found = _texts(meta.get(key), unpack=True)
    else:
        found = _texts(text) + _texts(meta.get("captions"), unpack=True)
        if not any(part.strip() for part in found):
            column = pick(meta, TEXT_COLUMNS)
            column = column or next((name for name in TEXT_COLUMNS if name in meta), None)
            found += _texts(meta.get(column)) if column else []
    stripped = (part.encode("utf-8", "replace").decode().strip() for part in found)
    return list(dict.fromkeys(part for part in stripped if part)), len(found)


def _texts(value: Any, *, unpack: bool = False) -> list[str]:
    if isinstance(value, str):
        if unpack and value.lstrip().startswith("["):
            try:
                return _texts(json.loads(value))
            except (ValueError, RecursionError):
                pass  # a caption that begins with a bracket
        return [value]
    return [part for part in value if isinstance(part, str)] if isinstance(value, list) else []


def opted_out(meta: dict[str, Any]) -> bool:
    """Whether its author does not want it to be trained on: `opt_out` is true, 1, "true", "yes"."""
    return str(meta.get("opt_out", "")).strip().lower() in ("true", "1", "yes")


def provenance(meta: dict[str, Any]) -> dict[str, Any]:
    """What `meta` says of the sample's origin; "license" is read as "licence"."""
    known = {"licence": meta.get("license"), **meta}
    return {name: known[name] for name in PROVENANCE if known.get(name) not in (None, "")}


def group_of(caption: str) -> int:
    """63 bits that are equal for captions that differ in case and white space alone."""
    text = " ".join(caption.casefold().split())
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
