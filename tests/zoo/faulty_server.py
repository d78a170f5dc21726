"""A web server on 127.0.0.1 that misbehaves by script, and counts what it was asked for.

A file stands at a path. Each request takes the next fault of that path's list; when the list is
used up the server is healthy: ranges, If-Range, ETag, and on request the headers of the hub.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 1 << 16
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """linked: a large file of the hub, which states its hash and redirects; small: Git's hash."""

    content: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    commit: str | None = None
    linked: bool = False
    small: bool = False
    kind: str = "application/octet-stream"


@dataclass
class Asked:
    """One request. sent: bytes of the body that were given to the socket."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Server(ThreadingHTTPServer):
    """`with Server() as server`: `server.url` is its address."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.faults: dict[str, list[Callable]] = {}
        self.asked: list[Asked] = []
        self.paced = None  # called before each chunk of a body
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # the client was killed, or has gone

    def bodies(self) -> list[Asked]:
        """The requests that were answered with bytes of a file."""
        return [a for a in self.asked if a.status in (200, 206)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        asked = Asked(self.path, dict(self.headers))
        self.asked = asked
        self.server.asked.append(asked)
        self.close_connection = True
        faults = self.server.faults.get(self.path)
        if faults:
            faults.pop(0)(self)
        elif self.path.removeprefix("/cdn") in self.server.files:
            self.healthy(self.file)
        else:
            self.answer(404, b"no such file")

    def healthy(self, file: Served, *, ranges: bool = True, if_range: bool = True, shift: int = 0):
        more = self.of_the_hub(file)
        if file.linked and not self.path.startswith("/cdn/"):
            self.answer(302, b"", {**more, "Location": f"/cdn{self.path}"})
            return
        more |= {"ETag": file.etag} if file.etag and "ETag" not in more else {}
        more |= {"Last-Modified": file.modified} if file.modified else {}
        start, total = self.start(), len(file.content)
        condition = self.headers.get("If-Range")
        if start and if_range and condition not in (None, file.etag, file.modified):
            start = None
        if start is None or not ranges:
            self.answer(200, file.content, more, kind=file.kind)
        elif start >= total:
            self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
        else:
            more["Content-Range"] = f"bytes {start + shift}-{total - 1}/{total}"
            self.answer(206, file.content[start + shift :], more, kind=file.kind)

    def of_the_hub(self, file: Served) -> dict[str, str]:
        more = {"X-Repo-Commit": file.commit} if file.commit else {}
        if file.linked and not self.path.startswith("/cdn/"):
            digest = hashlib.sha256(file.content).hexdigest()
            more |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(file.content))}
        if file.small:
            blob = f"blob {len(file.content)}\0".encode() + file.content
            more["ETag"] = f'"{hashlib.sha1(blob).hexdigest()}"'
        return more

    def start(self) -> int | None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else None

    def answer(self, status, body, headers=None, *, length=None, cut=None, kind="text/plain"):
        """`length`: what is claimed. `cut`: bytes after which the connection ends."""
        self.asked.status = status
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length != "none":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.send(body if cut is None else body[:cut])

    def send(self, body: bytes, wrap: Callable[[bytes], bytes] = bytes) -> None:
        for i in range(0, len(body), CHUNK):
            if self.server.paced is not None:
                self.server.paced(self.asked)
            self.wfile.write(wrap(body[i : i + CHUNK]))
            self.asked.sent += len(body[i : i + CHUNK])

    @property
    def file(self) -> Served:
        return self.server.files[self.path.removeprefix("/cdn")]

    def log_message(self, *args):
        pass


# --- faults: each takes the handler and answers ------------------------------------------------


def cut(n: int) -> Callable:
    """The connection ends `n` bytes on."""

    def fault(h: Handler):
        file, start = h.file, h.start() or 0
        more = {"ETag": file.etag} if file.etag else {}
        more |= {"Last-Modified": file.modified} if file.modified else {}
        rest, total = file.content[start:], len(file.content)
        if start:
            more["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        h.answer(206 if start else 200, rest, more, cut=n)

    return fault


def claims(delta: int) -> Callable:
    """A Content-Length that is wrong by `delta`; the whole body is sent."""

    def fault(h: Handler):
        h.answer(200, h.file.content, {"ETag": '"one"'}, length=len(h.file.content) + delta)

    return fault


def chunked(cut: int | None = None, *, more: bytes = b"") -> Callable:
    """Transfer-Encoding chunked, without a length; `cut`: never ended. `more`: extra bytes."""

    def fault(h: Handler):
        h.asked.status = 200
        h.send_response(200)
        h.send_header("Transfer-Encoding", "chunked")
        h.send_header("Connection", "close")
        h.end_headers()
        h.send((h.file.content + more)[:cut], lambda b: f"{len(b):x}\r\n".encode() + b + b"\r\n")
        if cut is None:
            h.wfile.write(b"0\r\n\r\n")

    return fault


def until_closed(cut: int | None = None) -> Callable:
    """As HTTP/1.0 did: the body ends with the connection, whole or not."""

    def fault(h: Handler):
        h.answer(200, h.file.content, length="none", cut=cut)

    return fault


def ignores_range(h: Handler) -> None:
    h.healthy(h.file, ranges=False)


def ignores_if_range(h: Handler) -> None:
    h.healthy(h.file, if_range=False)


def wrong_offset(h: Handler) -> None:
    h.healthy(h.file, shift=7)


def lies_about_offset(h: Handler) -> None:
    """Says the right offset and sends other bytes."""
    file, start = h.file, h.start()
    total = len(file.content)
    stated = {"Content-Range": f"bytes {start}-{total - 1}/{total}", "ETag": file.etag}
    h.answer(206, file.content[: total - start], stated)


def changes(new: Served, then: Callable) -> Callable:
    """The file is another one from now on; answered by `then`."""

    def fault(h: Handler):
        h.server.files[h.path] = new
        then(h)

    return fault


def healthy(h: Handler) -> None:
    h.healthy(h.file)


def status(code: int, **headers: str) -> Callable:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda h: h.answer(code, b"<html>sorry</html>", more, kind="text/html")


def web_page(kind: str = "text/html") -> Callable:
    return lambda h: h.answer(200, b"\n<!DOCTYPE html><title>Log in</title>", kind=kind)


def corrupts(h: Handler) -> None:
    """The right length, one wrong bit in the middle."""
    wrong = bytearray(h.file.content)
    wrong[len(wrong) // 2] ^= 1
    h.answer(200, bytes(wrong), {"ETag": h.file.etag})


def hangs(n: int) -> Callable:
    """`n` bytes, then nothing, with the connection open."""

    def fault(h: Handler):
        h.answer(200, h.file.content, {"ETag": h.file.etag}, cut=n)
        h.wfile.flush()
        h.server.ended.wait(20)

    return fault


def silent(h: Handler) -> None:
    """Takes the question and says nothing."""
    h.server.ended.wait(20)


def endless(h: Handler) -> None:
    h.asked.status = 200
    h.send_response(200)
    h.send_header("Transfer-Encoding", "chunked")
    h.end_headers()
    block = b"\x80" * CHUNK
    while not h.server.ended.is_set():
        h.wfile.write(f"{CHUNK:x}\r\n".encode() + block + b"\r\n")


def breaks_at_once(h: Handler) -> None:
    """No answer at all."""


@dataclass
class Pauses:
    """Stands in for `time.sleep`."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
