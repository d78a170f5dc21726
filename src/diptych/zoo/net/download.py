"""One file over HTTP: resumed where it broke off, verified, and never there unless it is whole.

- Bytes go to `<file>.part`; `<file>.part.json` says of which file of the server they are. The name
  is given by `os.replace` after length, hash and content were found right.
- Two processes that want a file take turns by `<file>.lock`, which the system releases when a
  process dies; the second finds the file.
- `source.json` in the folder tells of each file where it came from.
"""

import contextlib
import errno
import json
import logging
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from diptych.errors import CheckpointError, DownloadError
from diptych.zoo.atomic import put_in_place
from diptych.zoo.cache import RECORD, read_record
from diptych.zoo.net.content import WEIGHTS, check_content, is_web_page
from diptych.zoo.net.partial import BLOCK, Job, Part, git_blob, load, store
from diptych.zoo.net.web import Broken, Reply, Unavailable, ask

__all__ = ["File", "download", "get_json"]

log = logging.getLogger("diptych")
sleep = time.sleep  # tests do not wait

RETRIES = 5  # in a row without a byte of progress
LOOK = 16 << 20  # bytes between two looks at the free space
RESERVE = 256 << 20  # bytes of the disk that we leave free
RESERVE_ENDLESS = 1 << 30  # where the server does not say how much will come
MAX_JSON = 64 << 20
PATIENCE = 5.0  # seconds that a process waits for another before it says so

_WEB_PAGE = (
    "the server sent a web page in place of the file: a login page, a captive portal or a proxy. "
    "Open the address in a browser to see it"
)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class File:
    """A file on this machine, and what `source.json` has of it.

    new: it was fetched by this call.
    """

    path: Path
    size: int
    sha256: str | None = None
    url: str | None = None
    commit: str | None = None
    new: bool = False

    @classmethod
    def here(cls, path: Path) -> "File":
        """The file that lies at `path` already."""
        facts = read_record(path.parent).get(path.name, {})
        return cls(
            path=path,
            size=path.stat().st_size,
            sha256=facts.get("sha256"),
            url=facts.get("url"),
            commit=facts.get("commit"),
        )


def download(url: str, path: Path, *, sha256: str | None = None, page: str | None = None) -> File:
    """Fetch `url` to `path`, unless it is there already.

    Args:
        sha256: what the file must have, or its first digits; else what the server states holds.
        page: where a person accepts the licence, for the error of a gated file.

    Raises:
        Unavailable: this address does not give the file; nothing stands under its name.
        DownloadError: this machine cannot take it: no space, no permission.
    """
    job = Job(url=url, path=path, sha256=sha256.lower() if sha256 else None, page=page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path):
            if path.is_file():
                return File.here(path)
            started, part = time.monotonic(), Part(job)
            with _shown(path.name) as show:
                file = _retrying(path.name, lambda: _attempt(job, part, show), part)
            log.info("%s: done in %.1f s", path.name, time.monotonic() - started)
            return file
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path.parent, RESERVE) from error
        raise DownloadError(
            f"{path.parent}: cannot be written ({error}). Set DIPTYCH_CACHE to a folder that can."
        ) from error


def get_json(url: str, *, page: str | None = None) -> Any:
    """The JSON at `url`, at most 64 MB of it.

    Raises:
        Unavailable: it is not given, or is no JSON.
    """

    def attempt() -> bytes:
        data = bytearray()
        with ask(url, page=page) as reply:
            while block := reply.read(BLOCK):
                data += block
                if len(data) > MAX_JSON:
                    raise Unavailable(f"more than {MAX_JSON >> 20} MB of JSON")
            if reply.length is not None and len(data) < reply.length:
                raise Broken("the connection broke off")
        return bytes(data)

    data = _retrying(url, attempt)
    if is_web_page(data[:512]):
        raise Unavailable(_WEB_PAGE)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"the answer is no JSON ({error})") from None


# --- one try ----------------------------------------------------------------------------------


def _retrying(what: str, attempt: Callable[[], T], part: Part | None = None) -> T:
    """`attempt()` until it does not end in `Broken`, with growing pauses.

    Raises:
        Unavailable: no progress in `RETRIES` tries, or as often started over.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except Broken as error:
            limit, kept = error.retries or RETRIES, ""
            if part is not None and part.size:
                limit, kept = RETRIES, f"; {part.size:,} bytes are kept for the next time"
            if part is not None and part.size > part.best:
                part.best, failures = part.size, 0
            failures += 1
            if failures > limit or (part is not None and part.drops > RETRIES):
                raise Unavailable(f"{error} (tried {failures} times){kept}") from error
            pause = error.after
            if pause is None:
                pause = 0.5 * 2 ** (failures - 1) * random.uniform(1, 1.5)
            log.warning("%s: %s; trying again in %.1f s", what, error, pause)
        sleep(pause)


def _attempt(job: Job, part: Part, show: Callable[[int, int | None], None]) -> File:
    headers = part.rest(job)
    with ask(job.url, headers, page=job.page) as reply:
        sha256 = _expected(job, reply)
        if reply.status == 200:
            _check_promise(job, reply, sha256)
            part.begin(job, reply)
        elif reply.status == 206 and headers:
            if problem := part.contradiction(reply):
                part.drop()
                raise Broken(problem)
            part.resumed = True
        elif not (headers and sha256 and _all_here(reply, part)):
            asked = headers.get("Range", "all bytes")
            part.drop()
            raise Broken(f"answered HTTP {reply.status} to a question for {asked}")
        try:
            if reply.status != 416:
                _stream(reply, part, show)
        except DownloadError as error:
            if isinstance(error, Unavailable) or part.total is None:  # it may never end
                part.drop()
            raise
        if problem := _problem(job, part, reply, sha256):
            once_more = part.resumed and not part.again
            part.drop()
            if once_more:  # the server may have joined two files where we cannot see it
                part.again = True
                raise Broken(problem)
            raise Unavailable(problem)
        return _keep(job, part, reply)


def _expected(job: Job, reply: Reply) -> str | None:
    if job.sha256 and reply.sha256 and not reply.sha256.startswith(job.sha256):
        raise Unavailable(f"has the SHA-256 {reply.sha256}, the published file {job.sha256}")
    return reply.sha256 or job.sha256


def _check_promise(job: Job, reply: Reply, sha256: str | None) -> None:
    """What can be refused before the body is read."""
    kind = reply.headers.get("Content-Type", "")
    if kind.startswith("text/html") and job.path.suffix in WEIGHTS:
        raise Unavailable(_WEB_PAGE)
    if None not in (reply.length, reply.linked_size) and reply.length != reply.linked_size:
        raise Unavailable(f"sends {reply.length} bytes, the file has {reply.linked_size}")
    if not reply.ends and reply.linked_size is None and sha256 is None:
        raise Unavailable("states no length and no hash: who could tell whether it is whole?")


def _all_here(reply: Reply, part: Part) -> bool:
    found = re.fullmatch(r"bytes \*/([0-9]{1,18})", reply.headers.get("Content-Range", ""))
    return reply.status == 416 and part.size == (int(found[1]) if found else part.total)


def _stream(reply: Reply, part: Part, show: Callable[[int, int | None], None]) -> None:
    looked = -LOOK
    show(part.size, part.total)
    with part.path.open("ab") as file:
        while block := reply.read(BLOCK):
            if part.size - looked >= LOOK:
                looked = part.size
                _check_space(part)
            if part.size == 0 and is_web_page(block):
                raise Unavailable(_WEB_PAGE)
            if part.total is not None and part.size + len(block) > part.total:
                raise Unavailable("sends more bytes than it announced")
            file.write(block)
            part.add(block)
            show(part.size, part.total)
    if part.total is not None and part.size < part.total:
        raise Broken(f"the connection ended after {part.size:,} of {part.total:,} bytes")


def _problem(job: Job, part: Part, reply: Reply, sha256: str | None) -> str | None:
    """What is wrong with the whole file."""
    found = part.digest.hexdigest()
    if sha256 and not found.startswith(sha256):
        return f"sent a file with the SHA-256 {found}, the published one has {sha256}"
    if reply.blob and (found := git_blob(part.path)) != reply.blob:
        return f"sent a file with Git's SHA-1 {found}, the published one has {reply.blob}"
    try:
        check_content(part.path, job.path.name)
    except CheckpointError as error:
        return f"sent something else: {error}"
    return None


def _keep(job: Job, part: Part, reply: Reply) -> File:
    facts = {"url": job.url, "commit": reply.commit or part.facts.get("commit")}
    facts |= {"sha256": part.digest.hexdigest()}
    record = job.path.parent / RECORD
    with FileLock(f"{record}.lock"):
        date = datetime.now(UTC).isoformat(timespec="seconds")
        known = read_record(record.parent)
        store(record, known | {job.path.name: {**facts, "size": part.size, "date": date}})
    put_in_place(part.path, job.path)
    part.facts_path.unlink(missing_ok=True)
    return File(path=job.path, size=part.size, new=True, **facts)


# --- this machine -----------------------------------------------------------------------------


def _check_space(part: Part) -> None:
    reserve = RESERVE_ENDLESS if part.total is None else RESERVE
    need = (part.total or part.size) - part.size + reserve
    if shutil.disk_usage(part.path.parent).free < need:
        raise _full(part.path.parent, need)


def _full(folder: Path, need: int) -> DownloadError:
    free = shutil.disk_usage(folder).free
    return DownloadError(
        f"{folder}: the disk has {free >> 20:,} MiB free, {need >> 20:,} MiB are needed. Free some "
        "and try again (it goes on where it stopped), or set DIPTYCH_CACHE to a folder elsewhere."
    )


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process or thread at a time may fetch `path`."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        who = load(path.with_name(f"{path.name}.part.json")).get("process", "another process")
        log.warning("%s: waiting for %s, which is fetching it", path, who)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, else a line in the log; called with the bytes so far and in all."""
    if not sys.stderr.isatty():
        said: list[str] = []

        def say(size: int, total: int | None) -> None:
            if not said:
                said.append(name)
                log.info("%s: fetching %s bytes", name, "?" if total is None else f"{total:,}")

        yield say
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn(name),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    how = {"console": console, "redirect_stdout": False, "transient": True}
    with progress.Progress(*columns, **how) as bar:
        task = bar.add_task(name, total=None)
        yield lambda size, total: bar.update(task, completed=size, total=total)
