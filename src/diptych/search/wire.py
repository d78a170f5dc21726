"""How a command and the resident find each other and talk; nothing heavy is imported here.

- A socket (0600) in a folder of the user's own (0700); anything else is refused. Where the system
  tells who is at the other end (Linux, macOS), it must be the same user.
- A message is 4 bytes of length, little-endian, and that much JSON: nothing in it can run. Its
  length has a bound, and so has the time that is spent on it.
- A request carries `identity`: who was started from other code, or with other settings, would give
  other answers, and does not answer.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError
from diptych.processors import num_processors

__all__ = [
    "LONGEST",
    "Refused",
    "ask",
    "code_stamp",
    "connect",
    "identity",
    "own_folder",
    "receive",
    "run_folder",
    "same_user",
    "send",
    "settings",
    "socket_path",
]

LONGEST = 16 << 20  # bytes of a message
PROMPT = 1.0  # seconds until a resident that is well has said that it works on a question
PATIENCE = 20.0  # seconds until it has answered: the first question loads the model

_LONGEST_PATH = 100  # bytes of a socket's path: 107 on Linux, 103 on macOS
_LENGTH = struct.Struct("<I")
_FOLDERS = (
    *("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "DIPTYCH_HOME", "DIPTYCH_CACHE"),
    *("HF_HOME", "HF_HUB_CACHE"),
)
_VALUES = (
    *("DIPTYCH_OFFLINE", "DIPTYCH_MIRROR", "DIPTYCH_THREADS", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ONEDNN_MAX_CPU_ISA"),
    *("CUDA_VISIBLE_DEVICES", "TZ"),
)


class Refused(ConfigError):
    """Nothing that may be trusted is at the other end, or it does not speak this language."""


def run_folder() -> Path:
    """Where the socket lies; absolute, not created here.

    $XDG_RUNTIME_DIR/diptych, else $DIPTYCH_HOME/run, else ~/.cache/diptych/run. Not $DIPTYCH_CACHE:
    that may be shared by several machines, and a socket belongs to one. Where that path is longer
    than a socket's may be, a folder of the system's temporary one.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        folder = Path(runtime).absolute() / "diptych"
    elif home := os.environ.get("DIPTYCH_HOME"):
        folder = Path(home).absolute() / "run"
    else:
        folder = Path.home() / ".cache" / "diptych" / "run"
    if len(os.fsencode(socket_path(folder))) <= _LONGEST_PATH:
        return folder
    import tempfile

    name = f"diptych-{os.getuid()}-{zlib.crc32(os.fsencode(folder)):08x}"
    return Path(tempfile.gettempdir()) / name


def socket_path(folder: Path) -> Path:
    """Of the resident that runs in `folder`."""
    return folder / "resident.sock"


def own_folder(folder: Path, *, create: bool = False) -> None:
    """Whether `folder` is a folder of this user that nobody else may enter.

    Raises:
        Refused: it is another's, or open to others; or there is none, and none was created.
    """
    try:
        if create:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}. It is where the resident runs.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Refused(f"{folder}: is not a folder of yours. Remove it, or set XDG_RUNTIME_DIR.")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise Refused(f"{folder}: is open to others. Type: chmod 700 {folder}")


def same_user(peer: socket.socket) -> bool:
    """Whether the process at the other end is this user's; True where the system does not say."""
    if sys.platform == "linux":
        sent = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return struct.unpack("3i", sent)[1] == os.getuid()
    if sys.platform == "darwin":  # struct xucred: version, uid, groups
        sent = peer.getsockopt(0, 1, 76)
        return struct.unpack_from("=2I", sent)[1] == os.getuid()
    return True


def settings() -> dict[str, str]:
    """What of the environment an answer depends on; folders absolute."""
    found = {name: os.environ[name] for name in _VALUES if name in os.environ}
    for name in _FOLDERS:
        if value := os.environ.get(name):
            found[name] = os.path.abspath(value)  # noqa: PTH100  as it is told, without links
    return found


def code_stamp() -> list[Any]:
    """What changes when another Diptych, Python or torch is installed, or a file is edited."""
    root = Path(__file__).parents[1]
    torch = find_spec("torch")
    origin = torch.origin if torch is not None else None
    stamps = [(s.st_mtime_ns, s.st_size) for s in _sources(os.fspath(root))]
    return [
        str(root), sys.executable, sys.version, len(stamps), max(stamps)[0],
        sum(size for _, size in stamps), os.stat(origin).st_mtime_ns if origin else 0,  # noqa: PTH116
    ]  # fmt: skip


def _sources(folder: str) -> Iterator[os.stat_result]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.path.endswith(".py"):
                yield entry.stat()
            elif entry.is_dir():
                yield from _sources(entry.path)


def identity() -> dict[str, Any]:
    """Equal for two processes only if they answer alike."""
    return {"code": code_stamp(), "settings": settings(), "cores": num_processors()}


def connect(folder: Path, *, seconds: float) -> socket.socket:
    """A connection to the resident of `folder`.

    Raises:
        Refused: the folder is open to others, or another user's process has answered.
        OSError: nobody is there.
    """
    own_folder(folder)
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.settimeout(seconds)
        peer.connect(os.fspath(socket_path(folder)))
        if not same_user(peer):
            raise Refused(f"{socket_path(folder)}: another user's process has answered.")
    except BaseException:
        peer.close()
        raise
    return peer


def send(peer: socket.socket, message: dict[str, Any], *, seconds: float) -> None:
    """Raises Refused for a message that is too long, and OSError."""
    data = json.dumps(message).encode()
    if len(data) > LONGEST:
        raise Refused(f"a message of {len(data):,} bytes is too long")
    peer.settimeout(seconds)
    peer.sendall(_LENGTH.pack(len(data)) + data)


def receive(peer: socket.socket, *, seconds: float) -> dict[str, Any]:
    """The next message, whole within so many seconds.

    Raises:
        Refused: it is too long, or no JSON object.
        OSError: the time is over, or the connection.
    """
    end = time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size, end))
    if length > LONGEST:
        raise Refused(f"a message of {length:,} bytes is too long")
    try:
        message = json.loads(_exactly(peer, length, end))
    except (ValueError, RecursionError) as error:
        raise Refused(f"a message is no JSON ({error})") from error
    if not isinstance(message, dict):
        raise Refused("a message is no JSON object")
    return message


def _exactly(peer: socket.socket, count: int, end: float) -> bytes:
    parts, left = [], count
    while left:
        remaining = end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time for a message is over")
        peer.settimeout(remaining)
        part = peer.recv(min(left, 1 << 20))
        if not part:
            raise ConnectionError("the connection ended within a message")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def ask(
    request: dict[str, Any], *, prompt: float = PROMPT, patience: float = PATIENCE
) -> dict[str, Any]:
    """The resident's answer to a request.

    Args:
        prompt: seconds in which it must begin.
        patience: seconds in which it must be done.

    Raises:
        Refused: there is none that may be trusted.
        OSError: there is none, or it took too long.
    """
    with connect(run_folder(), seconds=prompt) as peer:
        send(peer, {**request, "identity": identity(), "folder": os.getcwd()}, seconds=prompt)  # noqa: PTH109
        receive(peer, seconds=prompt)  # that it has begun
        return receive(peer, seconds=patience)
