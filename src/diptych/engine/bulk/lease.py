"""A lease on a name in a shared folder: who works on what, without a coordinator.

- A lease is a file `NAME.lease-0`, made with its owner inside by one hard link, which fails where
  the file is there already: atomic also on NFS (link(2), open(2), "O_EXCL").
- A thread sets its time again and again. One that was not renewed for its period is stale, and who
  makes `NAME.lease-1` has taken it over: of two takers one wins, and nobody ever moves or removes
  the lease of a worker that lives. The highest number owns.
- Times are compared with the clock of the file system, never with that of a machine.
- An owner that slept finds a higher number: `lost` is set, and what it made is thrown away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
import uuid
from pathlib import Path

from diptych.errors import ConfigError

__all__ = ["Lease", "claim", "leased"]

# a file system without hard links
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Lease:
    """A lease that is held until `release` or the end of the process. Made by `claim`.

    Attributes:
        number: 0, or how many workers have lost it before.
        lost: set when another worker has taken it over, or it cannot be renewed.
    """

    def __init__(self, path: Path, name: str, number: int, owner: bytes, period: float):
        self.path, self.name, self.number = path, name, number
        self.owner, self.period = owner, period
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="diptych-lease", daemon=True)
        self._thread.start()

    def is_mine(self) -> bool:
        """Asks the folder, now. What is not ours any more never becomes it again.

        Raises:
            OSError: the folder does not answer.
        """
        if not self.lost.is_set():
            newest = max(_numbers(self.path.parent, self.name), default=-1)
            if newest != self.number or _content(self.path) != self.owner:
                self.lost.set()
        return not self.lost.is_set()

    def release(self) -> None:
        """Give it back, with the older ones and the temporary files of workers that died."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # then it becomes stale, and somebody else does it
            if not self.is_mine():
                return
            for entry in sorted(os.listdir(self.path.parent)):  # noqa: PTH208
                older = re.fullmatch(
                    re.escape(self.name) + r"\.lease-(\d+)(\.[0-9a-f]{32})?", entry
                )
                if older and int(older[1]) <= self.number and entry != self.path.name:
                    (self.path.parent / entry).unlink(missing_ok=True)
            self.path.unlink()

    def _renew(self) -> None:
        failures = 0
        while not self._stop.wait(self.period / 4):
            try:
                if not self.is_mine():
                    return
                os.utime(self.path)
                failures = 0
            except OSError:  # a network that stumbles: try again while it is not stale
                failures += 1
                if failures == 3:
                    self.lost.set()
                    return


def claim(folder: Path, name: str, *, period: float) -> Lease | None:
    """The lease on `name`, or None: another worker has it and renews it.

    Args:
        folder: where the lease files are; shared by the workers, made if it is not there.
        period: seconds without renewal after which a lease is stale. The same for all workers.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        newest = max(_numbers(folder, name), default=-1)
        if newest >= 0 and not _is_stale(_path(folder, name, newest), period):
            return None
        path = _path(folder, name, newest + 1)
        owner = _make(path)
    except FileNotFoundError:  # the last worker has removed the folder
        return None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{folder}: cannot be written: {reason}. Give another --out.") from error
    return None if owner is None else Lease(path, name, newest + 1, owner, period)


def leased(folder: Path) -> set[str]:
    """The names of all leases in the folder, stale ones too."""
    try:
        with os.scandir(folder) as entries:
            found = (re.fullmatch(r"(.+)\.lease-\d+(\.[0-9a-f]{32})?", e.name) for e in entries)
            return {match[1] for match in found if match}
    except FileNotFoundError:
        return set()


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}.lease-{number}"


def _numbers(folder: Path, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"\.lease-(\d{1,9})")
    try:
        with os.scandir(folder) as entries:
            found = (pattern.fullmatch(entry.name) for entry in entries)
            return [int(match[1]) for match in found if match]
    except FileNotFoundError:  # the last worker has removed the folder
        return []


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _is_stale(path: Path, period: float) -> bool:
    """Whether it is older than `period` by the clock of the file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        with path.open("rb") as file:  # NFS asks its server when a file is opened, not for a stat
            return now - os.fstat(file.fileno()).st_mtime > period
    except FileNotFoundError:
        return False  # it was given back meanwhile: the next look will see it
    finally:
        probe.unlink(missing_ok=True)


def _make(path: Path) -> bytes | None:
    """Make the file with its owner inside, and return that; None if it is there already."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    text = json.dumps(owner).encode()
    whole = path.with_name(f"{path.name}.{owner['id']}")
    try:
        whole.write_bytes(text)
        try:
            os.link(whole, path)
        except FileExistsError:
            # our own, if the answer was lost on the network and the kernel asked again
            return text if _content(path) == text else None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _make_exclusive(path, text)
        return text
    finally:
        whole.unlink(missing_ok=True)


def _make_exclusive(path: Path, text: bytes) -> bytes | None:
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        return None
    return text
