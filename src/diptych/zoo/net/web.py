"""One question over HTTP: which address, which token, which redirects, what the answer means.

- `DIPTYCH_MIRROR` stands in for every host, else `HF_ENDPOINT` for the Hugging Face hub.
- Redirects are followed by hand: the hub states a file's hash, size and commit on the way to the
  host that has it, and the token must not travel on. What another host states is not believed.
- Two ends: `Unavailable`, this address will not give it; `Broken`, another try may.
"""

import contextlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

from diptych.errors import DownloadError
from diptych.zoo.cache import hf_home

__all__ = [
    "Broken",
    "Reply",
    "Unavailable",
    "address",
    "ask",
    "hub",
    "hub_address",
    "is_offline",
    "listing_address",
]

HUB = "https://huggingface.co"
TIMEOUT = 30.0  # seconds without a byte
MAX_REDIRECTS = 10
MAX_WAIT = 60.0  # seconds that a server may ask us to wait
REDIRECTS = (301, 302, 303, 307, 308)
_STATED = ("x-linked-etag", "x-linked-size", "x-repo-commit")


class Unavailable(DownloadError):
    """This address will not give the file, however often it is asked. `missing`: it says 404."""

    def __init__(self, reason: str, *, missing: bool = False):
        super().__init__(reason)
        self.missing = missing


class Broken(Exception):
    """Another try may succeed.

    after: seconds that the server asks to wait. retries: how many tries are worth while, if few.
    """

    def __init__(self, reason: str, *, after: float | None = None, retries: int | None = None):
        super().__init__(reason)
        self.after, self.retries = after, retries


# --- addresses --------------------------------------------------------------------------------


def is_offline(offline: bool | None = None) -> bool:
    """`offline`, or where it is None what $DIPTYCH_OFFLINE and $HF_HUB_OFFLINE say."""
    if offline is not None:
        return offline
    names = ("DIPTYCH_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(n, "").strip().lower() in {"1", "true", "yes", "on"} for n in names)


def hub() -> str:
    """Where the Hugging Face hub is asked: the mirror, $HF_ENDPOINT, or itself."""
    named = os.environ.get("DIPTYCH_MIRROR") or os.environ.get("HF_ENDPOINT") or HUB
    return named.rstrip("/")


def hub_address(repo: str, revision: str, file: str) -> str:
    """The address of a file in a repository."""
    return f"{hub()}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"


def listing_address(repo: str, revision: str) -> str:
    """The address of a repository's list of files."""
    return f"{hub()}/api/models/{repo}/revision/{quote(revision, safe='')}"


def address(url: str) -> str:
    """`url`, or where the mirror has it: BASE/host/path."""
    mirror = os.environ.get("DIPTYCH_MIRROR")
    return f"{mirror.rstrip('/')}/{url.split('://', 1)[1]}" if mirror else url


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError as error:
        raise Unavailable(f"{url} is no address ({error})") from None
    return parts.scheme, parts.hostname or "", port


def _token_for(url: str) -> str | None:
    """The user's token, for the hub itself alone: no mirror, no host of a redirect."""
    if os.environ.get("DIPTYCH_MIRROR") or _origin(url) != _origin(hub()):
        return None
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (hf_home() / "token").read_text("utf-8").strip() or None
    return None


# --- a question and its answer ----------------------------------------------------------------


class _AsIs(urllib.request.HTTPErrorProcessor):
    """Any status is an answer; redirects are not followed."""

    def http_response(self, request, response):
        return response

    https_response = http_response


@dataclass(frozen=True)
class Reply:
    """An answer whose body has not been read.

    stated: what the host that was asked said of the file, before any redirect to another host.
    """

    status: int
    headers: Message
    stated: Mapping[str, str]
    body: http.client.HTTPResponse

    @property
    def commit(self) -> str | None:
        found = self.stated.get("x-repo-commit", "")
        return found if re.fullmatch(r"[0-9a-f]{40}", found) else None

    @property
    def sha256(self) -> str | None:
        """Of a large file, as the hub states it."""
        found = self.stated.get("x-linked-etag", "").removeprefix("W/").strip('"').lower()
        return found if re.fullmatch(r"[0-9a-f]{64}", found) else None

    @property
    def blob(self) -> str | None:
        """Git's SHA-1 of a small file; elsewhere than on the hub an ETag may be anything."""
        found = (self.headers.get("ETag") or "").removeprefix("W/").strip('"')
        known = self.commit and re.fullmatch(r"[0-9a-f]{40}", found)
        return found if known else None

    @property
    def linked_size(self) -> int | None:
        """The file's length, as the hub states it."""
        return _number(self.stated.get("x-linked-size"))

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where it comes in chunks or ends with the connection."""
        return None if self.body.chunked else _number(self.headers.get("Content-Length"))

    @property
    def ends(self) -> bool:
        """Whether the end of the body can be told from a broken connection."""
        return bool(self.body.chunked) or self.length is not None

    def read(self, n: int) -> bytes:
        """Up to `n` bytes as they come in; b"" at the end.

        Raises:
            Broken: the connection failed.
        """
        try:
            return self.body.read1(n)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(_reason(error)) from error


@contextlib.contextmanager
def ask(
    url: str, headers: Mapping[str, str] | None = None, *, page: str | None = None
) -> Iterator[Reply]:
    """The answer with status 200, 206 or 416 to a GET.

    Args:
        page: where a person accepts the licence of a gated file.

    Raises:
        Unavailable: refused, missing, a redirect that we do not follow.
        Broken: no connection, no answer in time, or the server asks to come back.
    """
    opener = urllib.request.build_opener(_AsIs)  # reads the proxies of the environment
    home, stated = _origin(url), {}
    for _ in range(MAX_REDIRECTS + 1):
        body = _open(opener, url, headers or {})
        if _origin(url) == home:
            stated |= {name: body.headers[name] for name in _STATED if name in body.headers}
        if body.status not in REDIRECTS:
            break
        body.close()
        url = _follow(url, body.headers.get("Location"))
    else:
        raise Unavailable(f"more than {MAX_REDIRECTS} redirects")
    with body:
        if body.status not in (200, 206, 416):
            raise _refusal(body, url, page)
        if body.headers.get("Content-Encoding", "identity") != "identity":
            raise Unavailable(f"sent as {body.headers['Content-Encoding']}, which was not asked")
        yield Reply(body.status, body.headers, stated, body)


def _open(
    opener: urllib.request.OpenerDirector, url: str, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    if _origin(url)[0] not in ("http", "https"):
        raise Unavailable(f"{url}: neither http nor https")
    more = {"User-Agent": "diptych"}
    if token := _token_for(url):
        more["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(url, headers={**headers, **more})
        return opener.open(request, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Unavailable(
                f"the certificate of {urlsplit(url).hostname} is not trusted "
                f"({cause.verify_message}). If a proxy signs what passes, name its certificates "
                "in SSL_CERT_FILE"
            ) from None
        # no network at all should not take minutes to say
        few = 2 if isinstance(cause, socket.gaierror | ConnectionRefusedError) else None
        raise Broken(f"{urlsplit(url).netloc}: {_reason(cause)}", retries=few) from error
    except ValueError as error:  # without its text, which may hold the token
        raise Unavailable(f"{url} or HF_TOKEN holds characters that cannot be sent") from error


def _reason(error: object) -> str:
    match error:
        case TimeoutError():
            return f"sent nothing for {TIMEOUT:g} s"
        case socket.gaierror():
            return f"the name is not found ({error.strerror}): is there a network?"
        case http.client.IncompleteRead():
            return "the connection broke off"
    return str(error) or type(error).__name__


def _follow(url: str, location: str | None) -> str:
    if not location:
        raise Unavailable(f"{url} redirects to nowhere")
    try:
        target = urljoin(url, location)
    except ValueError:
        raise Unavailable(f"{url} redirects to {location!r}, which is no address") from None
    if _origin(url)[0] == "https" and _origin(target)[0] != "https":
        raise Unavailable(f"{url} redirects from https to {target}, which anyone could change")
    return target


def _refusal(body: http.client.HTTPResponse, url: str, page: str | None) -> Exception:
    status, reason = body.status, f"HTTP {body.status}"
    if status in (401, 403):
        if page is None:
            return Unavailable(f"{reason}: the server refuses access")
        with_token = " The HF_TOKEN that was sent has no access." if _token_for(url) else ""
        return Unavailable(
            f"{reason}: gated, private or no such repository. Accept its licence on {page}, then "
            f"set HF_TOKEN.{with_token}"
        )
    if status in (404, 410):
        return Unavailable(f"{reason}: no such file", missing=True)
    if status in (408, 429) or status >= 500:
        after = _retry_after(body.headers.get("Retry-After"))
        if after is not None and after > MAX_WAIT:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + after))
            return Unavailable(f"{reason}: the server asks to try again at {when}, not before")
        return Broken(reason, after=after)
    return Unavailable(reason)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


def _retry_after(text: str | None) -> float | None:
    """Seconds from now, of "120" or a date."""
    if text is None:
        return None
    if (seconds := _number(text)) is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
