"""The first bytes of a file that is being fetched, and what they may be continued with."""

import hashlib
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.zoo.atomic import put_in_place
from diptych.zoo.net.web import Reply

__all__ = ["Job", "Part", "git_blob", "load", "store"]

BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `download` was asked for."""

    url: str
    path: Path
    sha256: str | None
    page: str | None


class Part:
    """The bytes so far, their hash, and of which file of the server they are.

    total: bytes of the whole file, if the server said so. best: as far as one try came.
    drops: how often we started over. resumed: not all of it came in one answer.
    """

    def __init__(self, job: Job):
        self.path = job.path.with_name(f"{job.path.name}.part")
        self.facts_path = job.path.with_name(f"{job.path.name}.part.json")
        self.drops, self.resumed, self.again = 0, True, False
        self._clear()
        facts = load(self.facts_path)
        if facts.get("url") == job.url and self.path.is_file():
            self.facts = facts
            with self.path.open("rb") as file:
                self.digest = hashlib.file_digest(file, "sha256")
                self.size = self.best = file.tell()

    def _clear(self) -> None:
        self.facts: dict[str, Any] = {}
        self.digest, self.size, self.best = hashlib.sha256(), 0, 0

    @property
    def total(self) -> int | None:
        return self.facts.get("size")

    def rest(self, job: Job) -> dict[str, str]:
        """The headers that ask for the rest; none where nothing could prove that it fits."""
        etag, modified = self.facts.get("etag"), self.facts.get("modified")
        validator = etag if etag and not etag.startswith("W/") else modified
        if not self.size or not (validator or job.sha256 or self.facts.get("sha256")):
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": validator} if validator else {})

    def begin(self, job: Job, reply: Reply) -> None:
        """Start from zero. Emptied before the new facts stand, or they would speak of old bytes."""
        with self.path.open("wb") as file:
            os.fsync(file.fileno())
        best = self.best
        self._clear()
        self.best, self.resumed = best, False
        facts = {
            "url": job.url,
            "etag": _sendable(reply.headers.get("ETag")),
            "modified": _sendable(reply.headers.get("Last-Modified")),
            "size": reply.length if reply.linked_size is None else reply.linked_size,
            "sha256": reply.sha256,
            "commit": reply.commit,
            "process": f"process {os.getpid()} on {socket.gethostname()}",
        }
        store(self.facts_path, facts)
        self.facts = facts

    def add(self, block: bytes) -> None:
        self.digest.update(block)
        self.size += len(block)

    def drop(self) -> None:
        """These bytes are not worth keeping."""
        self.drops += 1
        self._clear()
        self.path.unlink(missing_ok=True)
        self.facts_path.unlink(missing_ok=True)

    def contradiction(self, reply: Reply) -> str | None:
        """Why an answer with status 206 is not the rest of these bytes."""
        stated = reply.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", stated)
        if found is None or int(found[1]) != self.size:
            return f"asked for the bytes from {self.size}, the server sent {stated or 'others'}"
        total = int(found[2])
        if {total} != {total, self.total or total, reply.linked_size or total}:
            return f"the file had {self.total} bytes, now {total}"
        now = {
            "etag": reply.headers.get("ETag"),
            "modified": reply.headers.get("Last-Modified"),
            "sha256": reply.sha256,
        }
        if any(v and self.facts.get(k) and v != self.facts[k] for k, v in now.items()):
            return "the file was changed on the server meanwhile"
        self.facts["size"] = total
        return None


def git_blob(path: Path) -> str:
    """What Git calls a file: it is the hub's ETag of small ones."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sendable(text: str | None) -> str | None:
    """A header's value that we may send back; a folded line would be refused for ever."""
    return text if text and text.isascii() and text.isprintable() else None


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours; {} if there is none."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def store(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all. The caller holds a lock."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    put_in_place(temporary, path)
