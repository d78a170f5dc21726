"""Downloads under every fault: what stands under the final name is whole and verified."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import faulty_server as bad
import pytest

from diptych.errors import DownloadError
from diptych.zoo.cache import read_record
from diptych.zoo.net import content, download, partial, web
from diptych.zoo.net.download import get_json
from diptych.zoo.net.web import Unavailable


def safetensors(num_bytes: int, seed: int = 0) -> bytes:
    """A file of one tensor of noise; the header says how long it is."""
    shape = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    header = json.dumps({"x": shape}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(num_bytes)


SIZE = 600_000
CONTENT, OTHER = safetensors(SIZE), safetensors(SIZE, 1)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "/x/model.safetensors"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "DIPTYCH_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with bad.Server() as server:
        server.files[NAME] = bad.Served(CONTENT)
        yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> bad.Pauses:
    pauses = bad.Pauses()
    monkeypatch.setattr(download, "sleep", pauses)
    return pauses


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "cache" / "model.safetensors"


def fetch(server, path, *, name=NAME, **how):
    return download.download(server.url + name, path, **how)


def nothing_wrong(path: Path, *right: bytes) -> None:
    """Whatever happened: the final name has the right bytes, or is not there."""
    assert not path.exists() or path.read_bytes() in right


def heals(server, path, **how) -> None:
    """A later try against a healthy server ends well, and leaves no part behind."""
    server.faults.clear()
    file = fetch(server, path, **how)
    right = server.files[NAME].content
    assert path.read_bytes() == right
    assert file.sha256 == read_record(path.parent)[path.name]["sha256"]
    assert file.sha256 == hashlib.sha256(right).hexdigest()
    assert not path.with_name(path.name + ".part").exists()


def test_a_healthy_download(server, path, caplog):
    server.files[NAME].commit = bad.COMMIT
    with caplog.at_level(logging.INFO, "diptych"):
        file = fetch(server, path, sha256=SHA256)
    assert (file.path, file.size, file.sha256, file.new) == (path, len(CONTENT), SHA256, True)
    assert path.read_bytes() == CONTENT
    facts = read_record(path.parent)[path.name]
    date = datetime.fromisoformat(facts.pop("date"))
    assert datetime.now(UTC) - date < timedelta(minutes=1)
    expected = {"url": server.url + NAME, "commit": bad.COMMIT, "sha256": SHA256}
    assert facts == expected | {"size": len(CONTENT)}
    assert f"fetching {len(CONTENT):,} bytes" in caplog.text
    assert "done in" in caplog.text
    again = fetch(server, path)
    assert (again.new, again.sha256, again.commit) == (False, SHA256, bad.COMMIT)
    assert len(server.asked) == 1


# --- faults after which it ends well ------------------------------------------------------------

OVERCOME = {
    "breaks off three times": [bad.cut(100_000), bad.cut(100_000), bad.cut(100_000)],
    "breaks off more often than there are retries": [bad.cut(50_000)] * 9,
    "no answer": [bad.breaks_at_once] * 4,
    "503 twice": [bad.status(503), bad.status(503)],
    "500, then broken": [bad.status(500), bad.cut(10), bad.status(502), bad.cut(10)],
    "ignores Range": [bad.cut(100_000), bad.ignores_range],
    "206 from the wrong offset": [bad.cut(100_000), bad.wrong_offset],
    "206 with the wrong bytes": [bad.cut(100_000), bad.lies_about_offset],
    "chunked": [bad.chunked()],
    "chunked and broken off": [bad.chunked(100_000)],
    "the end of the connection is the end": [bad.until_closed()],
    "claims more than there is, once": [bad.claims(50)],
    "416 to a part": [bad.cut(100_000), bad.status(416)],
    "a range that nobody asked": [lambda h: h.answer(206, b"x" * 9)],
}


NEEDS_A_HASH = {  # nobody could tell, or it is refused, as other tests show
    "206 with the wrong bytes",
    "the end of the connection is the end",
    "one wrong bit",
}


def with_and_without_a_hash(faults) -> list[tuple[str, bool]]:
    return [(f, known) for f in faults for known in (True, False) if known or f not in NEEDS_A_HASH]


@pytest.mark.parametrize(("fault", "known"), with_and_without_a_hash(OVERCOME))
def test_faults_that_are_overcome(server, path, fault, known):
    server.faults[NAME] = list(OVERCOME[fault])
    fetch(server, path, sha256=SHA256 if known else None)
    assert path.read_bytes() == CONTENT
    assert not server.faults[NAME]
    assert not path.with_name(path.name + ".part").exists()
    assert not path.with_name(path.name + ".part.json").exists()


def test_it_resumes(server, path):
    server.faults[NAME] = [bad.cut(200_000), bad.cut(200_000)]
    fetch(server, path)
    ranges = [a.headers.get("Range") for a in server.asked]
    assert ranges == [None, "bytes=200000-", "bytes=400000-"]
    assert [a.headers.get("If-Range") for a in server.asked] == [None, '"one"', '"one"']
    assert sum(a.sent for a in server.asked) == len(CONTENT)


def test_another_process_resumes(server, path):
    """All that one process knew stands in the part's facts."""
    server.faults[NAME] = [bad.cut(200_000)] + [bad.status(500)] * 6
    with pytest.raises(Unavailable, match=r"HTTP 500 .*200,000 bytes are kept for the next time"):
        fetch(server, path)
    nothing_wrong(path)
    heals(server, path)
    assert server.asked[-1].headers["Range"] == "bytes=200000-"


def test_a_captive_portal_costs_nothing_of_what_came(server, path):
    server.faults[NAME] = [bad.cut(200_000), bad.web_page()]
    with pytest.raises(Unavailable, match="captive portal"):
        fetch(server, path)
    heals(server, path)
    assert server.asked[-1].headers["Range"] == "bytes=200000-"


@pytest.mark.parametrize(
    ("etag", "modified", "sha256", "resumes"),
    [
        ('"strong"', None, None, '"strong"'),
        ('W/"weak"', None, None, False),
        ('W/"weak"', "Mon, 23 Nov 2026 10:00:00 GMT", None, "Mon, 23 Nov 2026 10:00:00 GMT"),
        (None, None, None, False),
        (None, None, SHA256, None),
        (None, None, SHA256[:12], None),
    ],
)
def test_a_part_is_resumed_where_something_can_prove_it(
    server, path, etag, modified, sha256, resumes
):
    server.files[NAME] = bad.Served(CONTENT, etag=etag, modified=modified)
    server.faults[NAME] = [bad.cut(200_000)]
    fetch(server, path, sha256=sha256)
    asked = server.asked[-1].headers
    assert ("Range" in asked) == (resumes is not False)
    assert asked.get("If-Range") == (resumes or None)
    assert path.read_bytes() == CONTENT


def test_all_bytes_were_here_before_the_end(server, path):
    """Killed between the last byte and the name."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir()
    part.write_bytes(CONTENT)
    facts = {"url": server.url + NAME, "etag": '"one"', "size": len(CONTENT)}
    part.with_name(part.name + ".json").write_text(json.dumps(facts))
    fetch(server, path, sha256=SHA256)
    assert [a.status for a in server.asked] == [416]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("honours", [True, False])
def test_the_file_changes_between_two_ranges(server, path, honours):
    new = bad.Served(OTHER, etag='"two"')
    then = bad.healthy if honours else bad.ignores_if_range
    server.faults[NAME] = [bad.cut(200_000), bad.changes(new, then)]
    fetch(server, path)
    assert path.read_bytes() == OTHER


def test_a_changed_file_is_not_the_published_one(server, path):
    new = bad.Served(OTHER, etag='"two"')
    server.faults[NAME] = [bad.cut(200_000), bad.changes(new, bad.ignores_if_range)]
    with pytest.raises(Unavailable, match=rf"the published one has {SHA256}"):
        fetch(server, path, sha256=SHA256)
    nothing_wrong(path)
    server.files[NAME] = bad.Served(CONTENT)
    heals(server, path, sha256=SHA256)


def test_a_part_of_another_address_or_a_damaged_one_is_not_trusted(server, path):
    part = path.with_name(path.name + ".part")
    path.parent.mkdir()
    facts = {"url": server.url + NAME, "etag": '"one"', "size": len(CONTENT)}
    for url, text in (("http://elsewhere/x", json.dumps(facts)), (server.url + NAME, "{")):
        part.write_bytes(OTHER[:1000])
        part.with_name(part.name + ".json").write_text(text.replace(server.url + NAME, url))
        fetch(server, path)
        assert path.read_bytes() == CONTENT
        assert "Range" not in server.asked[-1].headers
        path.unlink()
    part.write_bytes(OTHER[:1000])  # the right facts, the wrong bytes: the disk, not the server
    part.with_name(part.name + ".json").write_text(json.dumps(facts))
    fetch(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert ["Range" in a.headers for a in server.asked[-2:]] == [True, False]


def test_wrong_bytes_under_the_right_etag(server, path):
    """The hash that the hub states finds them."""
    server.files[NAME] = bad.Served(CONTENT, commit=bad.COMMIT, linked=True)
    server.faults[f"/cdn{NAME}"] = [bad.cut(200_000), bad.lies_about_offset]
    file = fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert (file.sha256, file.commit) == (SHA256, bad.COMMIT)


# --- faults that it must not overcome -----------------------------------------------------------

REFUSED = {
    "500 for ever": ([bad.status(500)] * 99, r"HTTP 500 \(tried 6 times\)"),
    "no answer for ever": ([bad.breaks_at_once] * 99, r"tried 6 times"),
    "claims more for ever": ([bad.claims(50)] * 99, r"tried \d+ times|HTTP 206|asked for"),
    "claims less": ([bad.claims(-50)] * 99, r"its header states 600\d+ bytes|SHA-256"),
    "ignores Range and breaks off for ever": (
        [bad.cut(100_000), *[lambda h: h.answer(200, h.file.content, cut=90_000)] * 99],
        r"the connection ended after",
    ),
    "206 from the wrong offset for ever": (
        [bad.cut(100_000), bad.wrong_offset] * 99,
        r"asked for the bytes from 100000",
    ),
    "another file at each range": (
        [
            step
            for i in range(99)
            for step in (
                bad.cut(100_000),
                bad.changes(bad.Served(OTHER, etag=f'"{i}"'), bad.ignores_if_range),
                bad.changes(bad.Served(CONTENT), bad.status(500)),
            )
        ],
        r"was changed on the server meanwhile",
    ),
    "HTML with 200": ([bad.web_page()] * 99, r"a web page .* captive portal or a proxy"),
    "HTML by its content alone": (
        [bad.web_page("application/octet-stream")] * 99,
        r"the server sent a web page",
    ),
    "401": ([bad.status(401)] * 99, r"Accept its licence on https://hub/page, then set HF_TOKEN"),
    "403": ([bad.status(403)] * 99, r"Accept its licence on https://hub/page, then set HF_TOKEN"),
    "404": ([bad.status(404)] * 99, r"HTTP 404: no such file"),
    "418": ([bad.status(418)] * 99, r"HTTP 418"),
    "redirects in a circle": ([bad.status(302, Location=NAME)] * 99, r"more than 10 redirects"),
    "redirects to nowhere": ([bad.status(302)] * 99, r"redirects to nowhere"),
    "redirects to a file": ([bad.status(302, Location="file:///etc/passwd")], r"neither http nor"),
    "redirects to no address": ([bad.status(302, Location="http://[")], r"no address"),
    "compressed": (
        [lambda h: h.answer(200, b"x", {"Content-Encoding": "gzip"})] * 99,
        r"sent as gzip",
    ),
    "one wrong bit": ([bad.corrupts] * 99, r"SHA-256|malformed|no JSON"),
    "more than the hub states": (
        [bad.chunked(more=b"more")] * 99,
        r"its header states 600\d+ bytes|SHA-256",
    ),
}


@pytest.mark.parametrize(("fault", "known"), with_and_without_a_hash(REFUSED))
def test_faults_that_end_with_an_error(server, path, fault, known):
    faults, message = REFUSED[fault]
    server.faults[NAME] = list(faults)
    sha256 = SHA256 if known else None
    with pytest.raises(Unavailable, match=message) as error:
        fetch(server, path, sha256=sha256, page="https://hub/page")
    assert "hf_secret" not in str(error.value)
    assert not path.exists()
    server.files[NAME] = bad.Served(CONTENT)
    heals(server, path, sha256=sha256)


def test_without_a_length_or_hash_there_is_no_end(server, path):
    server.faults[NAME] = [bad.until_closed(100_000)]
    with pytest.raises(Unavailable, match="states no length and no hash"):
        fetch(server, path)
    server.faults[NAME] = [bad.until_closed(100_000)]
    with pytest.raises(Unavailable, match=f"the published one has {SHA256[:10]}"):
        fetch(server, path, sha256=SHA256[:10])
    heals(server, path)


def test_pauses_grow_and_are_not_all_alike(server, path, pauses):
    server.faults[NAME] = [bad.status(500)] * 5
    fetch(server, path)
    for i, seconds in enumerate(pauses.seconds):
        assert 0.5 * 2**i <= seconds <= 0.75 * 2**i
    assert len({s / 2**i for i, s in enumerate(pauses.seconds)}) == 5


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after(server, path, pauses, code):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    server.faults[NAME] = [
        bad.status(code, Retry_After="7"),
        bad.status(code, Retry_After=soon),
        bad.status(code, Retry_After="nonsense"),
    ]
    fetch(server, path)
    assert pauses.seconds[0] == 7
    assert 20 < pauses.seconds[1] <= 40
    assert pauses.seconds[2] < 10
    path.unlink()
    server.faults[NAME] = [bad.status(code, Retry_After="3600")]
    with pytest.raises(Unavailable, match=r"try again at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"):
        fetch(server, path)
    assert len(pauses.seconds) == 3


def test_a_server_that_hangs(server, path, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT", 0.3)
    server.faults[NAME] = [bad.hangs(100_000), bad.hangs(0)]
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked[1].headers["Range"] == "bytes=100000-"
    path.unlink()
    server.faults[NAME] = [bad.silent, *[bad.hangs(0)] * 5]
    with pytest.raises(Unavailable, match=r"sent nothing for 0\.3 s"):
        fetch(server, path)
    heals(server, path)


def test_no_server_and_no_such_host(tmp_path, path, pauses):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}: .*refused.*tried 3 times"):
        download.download(f"http://127.0.0.1:{port}/x", path)
    assert len(pauses.seconds) == 2  # no network at all is said soon
    with pytest.raises(Unavailable, match="neither http nor https"):
        download.download("ftp://127.0.0.1/x", path)
    assert not path.exists()


def test_a_proxy_is_used(server, path, monkeypatch):
    """`server` is the proxy: it is asked for the whole address."""
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    url = "http://publisher.example/x/model.safetensors"
    server.files[url] = bad.Served(CONTENT)
    assert download.download(url, path).sha256 == SHA256


def test_a_certificate_that_is_not_trusted_is_not_asked_again(path, monkeypatch, pauses):
    def refuse(*args, **kwargs):
        error = ssl.SSLCertVerificationError(1, "verify failed")
        error.verify_message = "self-signed certificate"
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(Unavailable, match=r"certificate of hub\.example is .* SSL_CERT_FILE"):
        download.download("https://hub.example/x", path)
    assert not pauses.seconds


# --- what the hub states ------------------------------------------------------------------------


def test_a_large_file_of_the_hub(server, path):
    server.files[NAME] = bad.Served(CONTENT, commit=bad.COMMIT, linked=True)
    file = fetch(server, path)
    assert (file.sha256, file.commit) == (SHA256, bad.COMMIT)
    assert [a.path for a in server.asked] == [NAME, f"/cdn{NAME}"]


@pytest.mark.parametrize(
    "fault",
    [bad.corrupts, bad.claims(-50), bad.chunked(more=b"more")],
    ids=["a wrong bit", "too short", "too long"],
)
def test_the_host_of_the_redirect_is_held_to_what_the_hub_states(server, path, fault):
    server.files[NAME] = bad.Served(CONTENT, commit=bad.COMMIT, linked=True)
    server.faults[f"/cdn{NAME}"] = [fault]
    message = rf"published one has {SHA256}|the file has {len(CONTENT)}|more bytes than"
    with pytest.raises(Unavailable, match=message):
        fetch(server, path)
    heals(server, path)


def test_what_is_more_than_the_hub_states_is_not_even_kept(server, path):
    server.files[NAME] = bad.Served(CONTENT, commit=bad.COMMIT, linked=True)
    server.faults[f"/cdn{NAME}"] = [bad.endless]
    with pytest.raises(Unavailable, match="sends more bytes than it announced"):
        fetch(server, path)
    assert sum(p.stat().st_size for p in path.parent.iterdir()) == 0
    heals(server, path)


def test_the_hub_states_another_hash_than_the_registry(server, path):
    server.files[NAME] = bad.Served(OTHER, commit=bad.COMMIT, linked=True)
    with pytest.raises(Unavailable, match=rf"has the SHA-256 .*the published file {SHA256[:8]}"):
        fetch(server, path, sha256=SHA256[:8])
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors.lock"]


@pytest.mark.parametrize(("name", "right"), [("vocab.txt", b"a\nb\n"), ("config.json", b"{}")])
def test_a_small_file_of_the_hub(server, tmp_path, name, right):
    server.files["/" + name] = bad.Served(right, commit=bad.COMMIT, small=True)
    file = fetch(server, tmp_path / name, name="/" + name)
    assert file.path.read_bytes() == right
    blob = hashlib.sha1(f"blob {len(right)}\0".encode() + right).hexdigest()
    more = {"ETag": f'"{blob}"', "X-Repo-Commit": bad.COMMIT}
    server.faults["/" + name] = [lambda h: h.answer(200, b"[]\n"[: len(right)], more)]
    with pytest.raises(Unavailable, match="Git's SHA-1"):
        fetch(server, tmp_path / "other" / name, name="/" + name)
    assert not (tmp_path / "other" / name).exists()


def test_an_etag_of_another_server_is_no_hash(server, path):
    server.files[NAME].etag = f'"{"0" * 40}"'
    fetch(server, path)
    assert path.read_bytes() == CONTENT


# --- redirects and the token --------------------------------------------------------------------


def test_the_token_goes_to_the_hub_alone(server, path, monkeypatch):
    """Another port is another host."""
    with bad.Server() as other:
        other.files["/far"] = bad.Served(CONTENT, commit=bad.COMMIT)
        far = bad.status(302, Location=f"{other.url}/far")
        near = bad.status(307, Location=NAME)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.faults[NAME] = [near, far]
        fetch(server, path)
        tokens = [a.headers.get("Authorization") for a in server.asked]
        assert tokens == ["Bearer hf_secret", "Bearer hf_secret"]
        assert [a.headers.get("Authorization") for a in other.asked] == [None]
        # and what the far host says of the file is not believed
        assert read_record(path.parent)[path.name]["commit"] is None

        path.unlink()
        monkeypatch.setenv("DIPTYCH_MIRROR", server.url)
        fetch(server, path)
        assert server.asked[-1].headers.get("Authorization") is None
        path.unlink()
        monkeypatch.delenv("DIPTYCH_MIRROR")
        monkeypatch.setenv("HF_ENDPOINT", other.url)
        fetch(server, path)
        assert server.asked[-1].headers.get("Authorization") is None


def test_the_token_of_the_file(server, path, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("from_file\n")
    server.faults[NAME] = [bad.status(403)]
    with pytest.raises(Unavailable, match="The HF_TOKEN that was sent has no access"):
        fetch(server, path, page="https://hub/page")
    assert server.asked[-1].headers["Authorization"] == "Bearer from_file"


def test_a_token_that_cannot_be_sent_is_not_shown(server, path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_s\necret")
    with pytest.raises(Unavailable, match="HF_TOKEN holds characters") as error:
        fetch(server, path)
    assert "ecret" not in str(error.value)


def test_https_is_not_left(server):
    with pytest.raises(Unavailable, match="redirects from https to http://b/y"):
        web._follow("https://a/x", "http://b/y")
    assert web._follow("https://a/x", "/z") == "https://a/z"
    assert web._follow("http://a/x", "https://b/y") == "https://b/y"


# --- this machine -------------------------------------------------------------------------------


class Disk:
    """Free space that shrinks by what lies in a folder."""

    def __init__(self, folder: Path, free: int):
        self.folder, self.free = folder, free

    def __call__(self, _path):
        used = sum(p.stat().st_size for p in self.folder.iterdir())
        return shutil._ntuple_diskusage(0, used, self.free - used)


def test_a_full_disk_is_said_before_anything_is_fetched(server, path, monkeypatch):
    path.parent.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", Disk(path.parent, download.RESERVE + 1000))
    with pytest.raises(DownloadError, match=r"are needed.*DIPTYCH_CACHE") as error:
        fetch(server, path)
    assert not isinstance(error.value, Unavailable)  # another source would not help
    assert str(path.parent) in str(error.value)
    monkeypatch.undo()
    heals(server, path)


def test_a_disk_that_fills_meanwhile_keeps_the_part(server, path, monkeypatch):
    path.parent.mkdir()
    monkeypatch.setattr(download, "LOOK", 1000)
    monkeypatch.setattr(download, "BLOCK", 1 << 14)
    disk = Disk(path.parent, download.RESERVE + len(CONTENT) + 3000)

    def fills(folder):
        if (path.parent / "model.safetensors.part").stat().st_size >= 300_000:
            (path.parent / "other").write_bytes(b"x" * 5000)
        return disk(folder)

    monkeypatch.setattr(shutil, "disk_usage", fills)
    with pytest.raises(DownloadError, match="are needed"):
        fetch(server, path)
    kept = path.with_name(path.name + ".part").stat().st_size
    assert 0 < kept < len(CONTENT)
    monkeypatch.undo()
    heals(server, path)
    assert server.asked[-1].headers["Range"] == f"bytes={kept}-"


def test_no_space_left_on_device(server, path, monkeypatch):
    original = Path.open
    failing = True

    def opens(self, mode="r", *args, **kwargs):
        file = original(self, mode, *args, **kwargs)
        if mode == "ab" and failing:
            file.write(CONTENT[:1000])
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return file

    monkeypatch.setattr(Path, "open", opens)
    with pytest.raises(DownloadError, match=r"MiB are needed.*DIPTYCH_CACHE"):
        fetch(server, path)
    assert path.with_name(path.name + ".part").read_bytes() == CONTENT[:1000]
    assert not path.exists()
    failing = False
    heals(server, path)
    assert server.asked[-1].headers["Range"] == "bytes=1000-"


def test_an_endless_body_ends(server, path, monkeypatch):
    path.parent.mkdir()
    free = download.RESERVE_ENDLESS + (20 << 20)
    monkeypatch.setattr(shutil, "disk_usage", Disk(path.parent, free))
    monkeypatch.setattr(download, "LOOK", 1 << 20)
    server.faults[NAME] = [bad.endless]
    with pytest.raises(DownloadError, match="are needed"):
        fetch(server, path, sha256=SHA256)
    assert sum(p.stat().st_size for p in path.parent.iterdir()) < 1000  # nothing of it is kept
    monkeypatch.undo()
    heals(server, path)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"cannot be written .*Set DIPTYCH_CACHE"):
        fetch(server, tmp_path / "file" / "model.safetensors")


def test_json(server, monkeypatch):
    server.files["/list"] = bad.Served(b'{"sha": 1}')
    server.faults["/list"] = [bad.status(502), bad.cut(3)]
    assert get_json(server.url + "/list") == {"sha": 1}
    server.faults["/list"] = [bad.web_page()]
    with pytest.raises(Unavailable, match="web page"):
        get_json(server.url + "/list")
    server.files["/list"].content = b"[" * 100_000
    with pytest.raises(Unavailable, match="no JSON"):
        get_json(server.url + "/list")
    monkeypatch.setattr(download, "MAX_JSON", 1 << 20)
    server.faults["/list"] = [bad.endless]
    with pytest.raises(Unavailable, match="more than 1 MB"):
        get_json(server.url + "/list")


def test_the_bar_is_on_a_terminal(server, path, monkeypatch, caplog):
    class Terminal:
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(server, path)
    assert "model.safetensors" in terminal.text
    assert "600" in terminal.text


# --- contents -----------------------------------------------------------------------------------


def test_contents(tmp_path):
    import zipfile

    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a/data.pkl", b"x" * 5000)
    whole = archive.read_bytes()
    good = [("a.pt", whole), ("a.bin", b"\x80\x02\x8a"), ("a.safetensors", CONTENT)]
    good += [("a.json", b'{"a": 1}'), ("vocab.txt", b"anything")]
    wrong = [("a.pt", whole[:-30]), ("a.pth", b"version https://git-lfs"), ("a.pt", b"")]
    wrong += [("a.safetensors", CONTENT[:-1]), ("a.safetensors", CONTENT + b"x")]
    wrong += [
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("a.safetensors", b""),
        ("a.json", b'{"a"'),
    ]
    wrong += [("vocab.txt", b"\xef\xbb\xbf  <HTML>"), ("a.bin", b"<!doctype HTML>")]
    wrong += [("a.safetensors", b"\x1e\0\0\0\0\0\0\0" + b'{"x": {"data_offsets": [0]}}  ')]
    for name, data in good:
        archive.write_bytes(data)
        content.check_content(archive, name)
    for name, data in wrong:
        archive.write_bytes(data)
        with pytest.raises(ValueError, match=r"."):
            content.check_content(archive, name)


def test_gits_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")  # as `git hash-object` prints it
    assert partial.git_blob(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"


# --- two at once, and death ----------------------------------------------------------------------


class Stop(BaseException):
    """As a signal would come: between any two things that are done to the disk."""


def test_stopped_between_any_two_steps(server, path, monkeypatch):
    """Before the n-th fsync, replace or unlink; then it heals, having asked for little again."""
    steps = stop_at = 0

    def counting(original):
        def step(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise Stop
            return original(*args, **kwargs)

        return step

    while steps >= stop_at:  # until it came to its end before that step
        stop_at, steps = stop_at + 1, 0
        server.asked.clear()
        server.faults[NAME] = [bad.cut(200_000)]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counting(os.fsync))
            patch.setattr(Path, "replace", counting(Path.replace))
            patch.setattr(Path, "unlink", counting(Path.unlink))
            with contextlib.suppress(Stop):
                fetch(server, path)
        nothing_wrong(path, CONTENT)
        heals(server, path)
        shutil.rmtree(path.parent)
    assert stop_at > 10


def test_files_of_one_folder_at_once_are_all_recorded(server, path):
    names = [f"{i}.safetensors" for i in range(8)]
    for i, name in enumerate(names):
        server.files[f"/{name}"] = bad.Served(safetensors(1000, i))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: fetch(server, path.with_name(n), name=f"/{n}"), names))
    assert sorted(read_record(path.parent)) == names


def test_two_threads_fetch_once(server, path, caplog, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.05)
    caplog.set_level(logging.INFO, "diptych")
    waits = threading.Event()

    class Seen(logging.Handler):
        def emit(self, record):
            if "waiting for" in record.getMessage():
                waits.set()

    log = logging.getLogger("diptych")
    handler = Seen()
    log.addHandler(handler)
    server.paced = lambda asked: waits.wait(20)
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(server, path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.removeHandler(handler)
    assert waits.is_set()
    assert sorted(file.new for file in found) == [False, True]
    assert len(server.asked) == 1


PROCESS = """
import sys
from diptych.zoo.net.download import download
from pathlib import Path
print("ready", flush=True)
sys.stdin.readline()
print(download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3] or None).sha256)
"""


def process(server, path, sha256="") -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, server.url + NAME, str(path), sha256]
    pipe = subprocess.PIPE
    started = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.slow
def test_two_processes_fetch_once(server, path):
    server.paced = lambda asked: time.sleep(0.05)
    both = [process(server, path) for _ in range(2)]
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate()[0].strip() for one in both]
    assert said == [SHA256, SHA256]
    assert len(server.asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["sha256 known", "unknown"])
def test_kill_minus_nine(server, path, known):
    """Ten deaths at random bytes; the next process goes on, and what it ends with is right."""
    large = safetensors(24 << 20)
    sha256 = hashlib.sha256(large).hexdigest()
    server.files[NAME] = bad.Served(large)
    points = sorted(random.sample(range(len(large) - 4 * bad.CHUNK), 10))
    for point in points:
        victim = process(server, path, sha256 if known else "")

        def pace(asked, point=point, victim=victim):
            begin = int(asked.headers.get("Range", "bytes=0-")[6:-1])
            if begin + asked.sent >= point:
                victim.kill()
            time.sleep(0.001)

        server.paced = pace
        victim.communicate("\n")
        assert victim.returncode == -9
        nothing_wrong(path, large)
    server.paced = None
    assert fetch(server, path, sha256=sha256 if known else None).sha256 == sha256
    assert path.read_bytes() == large
    assert len(server.asked) == 11
    assert sum(asked.sent for asked in server.asked) < 2 * len(large)
