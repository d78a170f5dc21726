"""What a run was trained on: files, hashes, counts, licences; as JSON with a hash of its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from diptych.data.pairs import Pairs

__all__ = ["manifest_hash", "manifest_of"]


def manifest_of(pairs: Pairs) -> tuple[dict[str, Any], str]:
    """What was found when the data was indexed, and its hash: the same on every machine.

    Per source its weight and keys, and per file the name (not its folder), bytes, SHA-256 (None
    where it was not taken), pairs, drops, flaws, licences, sources, and pairs without each part of
    the origin; also what the order depends on.
    """
    found = []
    for source, indexes in zip(pairs.sources, pairs.indexes, strict=True):
        files = [
            {
                "name": index.file.name,
                "bytes": index.info["bytes"],
                "sha256": index.sha256,
                "samples": index.size,
                "drops": index.info["drops"],
                "flaws": index.info["flaws"],
                "licences": index.info["origins"]["licence"],
                "sources": index.info["origins"]["source"],
                "without": index.info["without"],
            }
            for index in indexes
        ]
        keys = {"image_key": source.image_key, "caption_key": source.caption_key}
        found.append({"weight": source.weight, **keys, "files": files})
    order = {"seed": pairs.seed, "window": pairs.window}
    whole = {"format": 1, "samples": pairs.size, "order": order, "sources": found}
    return whole, manifest_hash(whole)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of its canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
