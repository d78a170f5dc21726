"""The wire: bounded messages, a folder of one's own, settings that tell processes apart."""

import os
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path

import pytest

from diptych.search import wire
from diptych.search.wire import Refused


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_as_it_was(pair):
    message = {"path": "a\udcff.jpg", "score": 0.1 + 0.2, "more": [None, "ä"] * 50_000}
    sender = threading.Thread(target=wire.send, args=(pair[0], message), kwargs={"seconds": 5})
    sender.start()
    assert wire.receive(pair[1], seconds=5) == message
    sender.join()


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_of_json_is_refused(pair, body):
    sender = threading.Thread(target=pair[0].sendall, args=(struct.pack("<I", len(body)) + body,))
    sender.start()
    with pytest.raises(Refused, match="no JSON"):
        wire.receive(pair[1], seconds=5)
    sender.join()


def test_a_long_message_is_refused_before_it_is_read(pair):
    pair[0].sendall(struct.pack("<I", wire.LONGEST + 1))
    with pytest.raises(Refused, match="too long"):
        wire.receive(pair[1], seconds=5)
    with pytest.raises(Refused, match="too long"):
        wire.send(pair[0], {"words": "a" * wire.LONGEST}, seconds=5)


def test_a_message_that_ends_or_stops_is_an_error_in_time(pair):
    pair[0].sendall(struct.pack("<I", 10) + b"{")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(pair[1], seconds=0.05)
    assert time.monotonic() - start < 5
    pair[0].sendall(struct.pack("<I", 10) + b"{")
    pair[0].close()
    with pytest.raises(ConnectionError):
        while True:  # the rest of the first message is part of it
            wire.receive(pair[1], seconds=5)


def test_the_folder_must_be_of_this_user_alone(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(Refused, match="No such file"):
        wire.own_folder(folder)
    wire.own_folder(folder, create=True)
    assert folder.stat().st_mode & 0o777 == 0o700
    wire.own_folder(folder)
    folder.chmod(0o750)
    with pytest.raises(Refused, match=r"is open to others\. Type: chmod 700"):
        wire.own_folder(folder, create=True)
    folder.chmod(0o700)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(Refused, match="not a folder of yours"):
        wire.own_folder(tmp_path / "link")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(Refused, match="not a folder of yours"):
        wire.own_folder(folder)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this system does not say")
def test_another_users_process_is_recognised(pair, monkeypatch):
    assert wire.same_user(pair[0])
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert not wire.same_user(pair[0])


def test_where_the_socket_lies(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="dip-") as short:
        _where_the_socket_lies(Path(short), monkeypatch)


def _where_the_socket_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("DIPTYCH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wire.run_folder() == tmp_path / ".cache" / "diptych" / "run"
    monkeypatch.setenv("DIPTYCH_HOME", os.path.relpath(tmp_path / "here"))
    assert wire.run_folder().resolve() == tmp_path / "here" / "run"
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    assert wire.run_folder() == tmp_path / "here" / "run"
    (tmp_path / "none").mkdir()
    assert wire.run_folder() == tmp_path / "none" / "diptych"
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert len(str(wire.socket_path(wire.run_folder()))) <= 100
    assert wire.run_folder().name.startswith(f"diptych-{os.getuid()}-")


def test_other_settings_make_another_identity(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = wire.identity()
    assert before == wire.identity()
    for name, value in (("DIPTYCH_CACHE", "carry"), ("OMP_NUM_THREADS", "7")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert wire.identity() != before
    monkeypatch.setenv("DIPTYCH_CACHE", "carry")
    assert wire.settings()["DIPTYCH_CACHE"] == str(tmp_path / "carry")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in str(wire.identity())


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Refused):
        wire.ask({"do": "status"})
    wire.own_folder(wire.run_folder(), create=True)
    with pytest.raises(OSError):
        wire.ask({"do": "status"})
