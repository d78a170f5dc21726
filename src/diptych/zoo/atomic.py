"""Write a file or a folder whole or not at all.

A temporary in the same directory, fsync, `os.replace`, fsync of the directory; the mode is what
the umask asks for, so that another user's server can read the file.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from diptych.errors import CheckpointError

__all__ = ["atomic_folder", "atomic_write", "put_in_place"]


def atomic_write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary beside `path`, then put it there. Parents are created.

    Raises:
        CheckpointError: the system refused (disk full, no permission); the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        put_in_place(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}). It is as it was.") from error
    finally:
        with contextlib.suppress(OSError):  # there may be no such folder
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error.

    A folder cannot take another's place in one step, so an existing one is refused.

    Raises:
        CheckpointError: `path` exists already, or the system refused.
    """
    if path.exists():
        raise CheckpointError(f"{path}: exists already. Remove it, or give another name.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _finish(file)
        _sync_directory(temporary)
        temporary.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a whole file its name, for good: with its bytes on the disk before and after."""
    _finish(temporary)
    temporary.replace(path)
    _sync_directory(path.parent)


def _finish(file: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o644 & ~umask)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # other systems cannot open a directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
