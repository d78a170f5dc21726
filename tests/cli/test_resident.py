"""`diptych resident`: the same output with it as without, and no harm where it fails."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from diptych.cli import resident
from diptych.search import wire


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A place for sockets whose path is short, and settings that a resident may share."""
    folder = Path(tempfile.mkdtemp(prefix="dip-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("DIPTYCH_RESIDENT", raising=False)
    yield wire.run_folder()
    shutil.rmtree(folder)


@contextlib.contextmanager
def listening(home, answer):
    """A process that is no resident: `answer` gets each connection."""
    wire.own_folder(home, create=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(wire.socket_path(home)))
        listener.listen(4)
        listener.settimeout(0.02)
        seen, over = [], threading.Event()

        def loop():
            while not over.is_set():
                with contextlib.suppress(OSError):
                    peer, _ = listener.accept()
                    seen.append(peer)
                    answer(peer)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield seen
        over.set()
        thread.join(5)
        for peer in seen:
            peer.close()


def framed(*messages) -> bytes:
    texts = [json.dumps(message).encode() for message in messages]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.fixture
def asked(run, model, photos, monkeypatch):
    """`diptych search` of an indexed collection, and what it says without a resident."""
    assert run("index", photos, "--model", model).code == 0
    monkeypatch.setenv("DIPTYCH_RESIDENT", "0")
    expected = run("search", "a dog", "--all")
    assert (expected.code, len(expected.out.splitlines())) == (0, 3)
    monkeypatch.delenv("DIPTYCH_RESIDENT")
    return lambda: run("search", "a dog", "--all"), expected


HIT = {
    "path": "/x.jpg", "score": 0.25, "copies": ["/y.jpg"], "similar": [], "moment": None,
    "moments": [], "taken": None, "camera": None, "width": 3, "height": 2, "vector_id": 1,
}  # fmt: skip
ANSWER = {
    "hits": [HIT], "best": 0.25, "threshold": -1.0, "num_searched": 1, "model": "m",
    "said": ["mind the licence"],
}  # fmt: skip


def test_an_answer_is_shown_as_if_it_was_found_here(home, asked):
    ask, _ = asked
    with listening(home, lambda peer: peer.sendall(framed({"begun": True}, ANSWER))) as seen:
        ran = ask()
    assert (ran.code, ran.err) == (0, "mind the licence\n")
    assert ran.out == "   1   0.2500  /x.jpg  (+ 1 copies)\n"
    assert len(seen) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"\xff" * 100, framed({"begun": True}), framed({"begun": True}, {"declined": "no"}),
        framed({"begun": True}, {"hits": 3}), framed({"begun": True}, {"hits": [3]}),
        framed({"begun": True}, {"hits": []}),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_not_used(home, asked, sent):
    ask, expected = asked

    def answer(peer):
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)

    with listening(home, answer) as seen:
        assert ask() == expected
    assert len(seen) == 1


def test_one_that_hangs_is_left_alone(home, asked, monkeypatch):
    ask, expected = asked
    monkeypatch.setattr(wire.ask, "__kwdefaults__", {"prompt": 0.1, "patience": 0.1})
    for sent in (b"", framed({"begun": True})):
        with listening(home, lambda peer, sent=sent: peer.sendall(sent)) as seen:
            assert ask() == expected
        assert len(seen) == 1
        wire.socket_path(home).unlink()


def test_it_is_not_asked_where_it_must_not_be(home, asked, run, photos, monkeypatch, model):
    ask, expected = asked
    with listening(home, lambda peer: peer.sendall(framed({"begun": True}, ANSWER))) as seen:
        monkeypatch.setenv("DIPTYCH_RESIDENT", "0")
        assert ask() == expected
        monkeypatch.delenv("DIPTYCH_RESIDENT")
        assert run("search", "a dog", photos, "--model", model).code == 0
        assert run("search", photos / "a.jpg", "--all").code == 0
        assert run("search", "a dog", "--all", "--html", photos / "page.html").code == 0
        assert run("search", "a dog", "--all", "--preview").code == 0
        assert not seen
        home.chmod(0o755)
        assert ask() == expected
        assert not seen
        home.chmod(0o700)
        assert ask() != expected


def test_a_command_that_asks_imports_little(home):
    answer = framed({"begun": True}, ANSWER)
    code = (
        "import sys; from diptych.cli.main import main; sys.argv = ['diptych', 'search', 'a dog']\n"
        "try: main()\n"
        "finally: print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    with listening(home, lambda peer: peer.sendall(answer)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "   1   0.2500  /x.jpg  (+ 1 copies)\n"
    assert not {"torch", "numpy", "PIL", "sqlite3", "subprocess"} & set(done.stderr.split())


def test_the_first_question_starts_it_if_that_is_wished(home, asked, monkeypatch):
    ask, expected = asked
    started = []
    monkeypatch.setattr(resident, "_spawn", lambda idle: started.append(idle) or SimpleNamespace())
    assert (ask(), started) == (expected, [])
    monkeypatch.setenv("DIPTYCH_RESIDENT", "1")
    assert (ask(), started) == (expected, [900.0])
    with listening(home, lambda peer: peer.close()):
        pass  # leaves a socket that refuses
    assert ask() == expected
    assert started == [900.0, 900.0]


def test_what_is_typed_wrongly(home, run, monkeypatch):
    ran = run("resident", "start", "--idle", "soon")
    assert (ran.code, "Give 90s, 15m or 2h." in ran.err) == (2, True)
    assert run("resident", "stop").out == "it does not run\n"
    ran = run("resident", "status")
    assert (ran.code, ran.out) == (1, "it does not run. Type: diptych resident start\n")
    assert run("resident", "status", "--json").records == [{"running": False}]
    monkeypatch.setattr(sys, "platform", "win32")
    ran = run("resident", "status")
    assert (ran.code, "not available on Windows" in ran.err) == (2, True)


# --- with the process itself ---------------------------------------------------------------------


@pytest.fixture
def started(home, run, asked):
    """Starts it with options; ends it at last."""

    def start(*options):
        ran = run("resident", "start", *options)
        assert ran.code == 0, ran.err
        return facts(run)

    yield start
    with contextlib.suppress(OSError, wire.Refused):
        wire.ask({"do": "stop"})


def facts(run) -> dict:
    return run("resident", "status", "--json").records[0]


def gone(path: Path, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not path.exists()


SAME = (
    ["a dog", "--all"], ["a dog", "--all", "--json"], ["a dog", "--all", "--print0"], ["a dog"],
    ["a dog", "--strict", "1", "--json"], ["a dog", "+", "snow", "--all", "--top", "2"],
    ["2:a dog", "-", "cat", "--json"], ["a dog", "--all", "--no-fold", "--exact"],
    ["a dog", "--all", "--after", "2020", "--type", "png", "--min-side", "30"],
    ["a dog", "--all", "--in", "photos"], ["a dog", "--camera", "none of these"],
)  # fmt: skip
WRONG = (
    ["a dog", "--collection", "none"], ["a dog", "--model", "none"], ["a", "-", "a"],
    ["a dog", "--after", "soon"], ["a dog", "--box", "1,2"], ["a dog", "--device", "warp"],
    ["a dog", "--top", "0"], ["\udcff"], ["a dog", "--json", "--print0"],
)  # fmt: skip


@pytest.mark.slow
def test_the_output_is_the_same_byte_for_byte(started, run, photos, monkeypatch):
    started()
    monkeypatch.chdir(photos.parent)
    for arguments in (*SAME, *WRONG):
        served = run("search", *arguments)
        monkeypatch.setenv("DIPTYCH_RESIDENT", "0")
        assert served == run("search", *arguments), arguments
        monkeypatch.delenv("DIPTYCH_RESIDENT")
    assert facts(run)["answered"] == len(SAME)
    assert len(facts(run)["models"]) == 1


@pytest.mark.slow
def test_an_index_that_changed_is_seen(started, run, photos, model):
    started()
    assert len(run("search", "a dog", "--all").out.splitlines()) == 3
    shutil.copy(photos / "a.jpg", photos / "again.jpg")
    (photos / "b.png").unlink()
    assert run("index", photos, "--model", model).code == 0
    ran = run("search", "a dog", "--all")
    assert "(+ 1 copies)" in ran.out
    assert "b.png" not in ran.out
    assert facts(run)["answered"] == 2


@pytest.mark.slow
def test_killed_it_hurts_nobody_and_the_next_one_takes_over(started, run, home, asked):
    first = started()
    os.kill(first["process"], signal.SIGKILL)
    end = time.monotonic() + 20
    while facts(run)["running"] and time.monotonic() < end:
        time.sleep(0.05)
    assert wire.socket_path(home).exists()
    ask, expected = asked
    assert ask() == expected
    assert run("resident", "status").code == 1
    second = started()
    assert second["process"] != first["process"]
    assert ask() == expected
    assert facts(run)["answered"] == 1
    assert run("resident", "start").out == f"process {second['process']} runs already\n"
    assert run("resident", "stop").out == f"process {second['process']} has left\n"
    assert not wire.socket_path(home).exists()


@pytest.mark.slow
def test_it_leaves_when_nobody_asks_and_on_a_signal(started, home):
    started("--idle", "0.5s")
    assert gone(wire.socket_path(home))
    os.kill(started()["process"], signal.SIGTERM)
    assert gone(wire.socket_path(home))


@pytest.mark.slow
def test_of_two_that_start_at_once_one_stays(home, started, run):
    command = [sys.executable, "-m", "diptych.cli.main", "resident", "start"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0].split()[:2] == said[1].split()[:2] == ["process", str(facts(run)["process"])]


@pytest.mark.slow
def test_garbage_on_the_socket_does_not_end_it(started, run, asked):
    before = started()
    garbage = (
        b"", b"\0", b"\xff" * 100_000, b"GET / HTTP/1.1\r\n\r\n", framed({"do": None}),
        framed({"do": "search", "identity": wire.identity(), "folder": 3}),
        framed({"do": "search", "identity": wire.identity(), "folder": "/", "question": [1]}),
        struct.pack("<I", 100) + b"{",  # and nothing more
    )  # fmt: skip
    for data in garbage:
        with wire.connect(wire.run_folder(), seconds=5) as peer, contextlib.suppress(OSError):
            peer.sendall(data)
            peer.settimeout(0.2)
            peer.recv(1000)
    time.sleep(2.5)  # one waits for the rest of the last
    ask, expected = asked
    assert ask() == expected
    after = facts(run)
    assert (after["process"], after["answered"]) == (before["process"], 1)


@pytest.mark.slow
def test_with_other_settings_it_is_not_asked(started, run, asked, monkeypatch, tmp_path):
    started()
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "another"))
    ask, expected = asked
    assert ask() == expected
    assert (facts(run)["answered"], facts(run)["same"]) == (0, False)
    ran = run("resident", "start")
    assert (ran.code, "Type: diptych resident stop" in ran.err) == (2, True)
