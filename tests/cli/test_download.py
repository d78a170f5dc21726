"""`diptych models download`, and `--offline`: the report, the exit codes, a folder to carry."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import diptych
from diptych import zoo

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

import faulty_server as bad

FILE = "/publisher.example/tiny.safetensors"


@pytest.fixture
def server(model, tmp_path, monkeypatch):
    """`model` as two rows, "tiny/a" and "tiny/b"; the publisher's host is this one."""
    for name in ("http_proxy", "HTTP_PROXY", "DIPTYCH_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIPTYCH_CACHE", "HF_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    content = Path(model).read_bytes()
    url = zoo.Url(url=f"https:/{FILE}", sha256=hashlib.sha256(content).hexdigest())
    for name, source in (("tiny/a", url), ("tiny/b", replace(url, url=url.url + "b"))):
        row = replace(zoo.get("ViT-B-32/laion2b_s34b_b79k"), name=name, sources=(source,))
        row = replace(row, config=zoo.read(model).config)
        monkeypatch.setitem(zoo.registry.rows(), name, row)
    monkeypatch.setattr(zoo.net.download, "sleep", lambda seconds: None)
    with bad.Server() as server:
        server.files[FILE] = bad.Served(content)
        monkeypatch.setenv("DIPTYCH_MIRROR", server.url)
        yield server


def test_it_says_what_came_and_what_was_here(run, server, tmp_path):
    sha256 = hashlib.sha256(server.files[FILE].content).hexdigest()
    ran = run("models", "download", "tiny/a")
    path = tmp_path / "DIPTYCH_CACHE" / "models" / "tiny--a" / "tiny.safetensors"
    assert ran.code == 0, ran.err
    assert ran.out == f"{path}  {path.stat().st_size:,} bytes  {sha256}\n"
    assert run("models", "download", "tiny/a").out.endswith(f"{sha256}  already here\n")
    (record,) = run("models", "download", "tiny/a", "--json").records
    assert record == {
        "model": "tiny/a",
        "path": str(path),
        "size": path.stat().st_size,
        "sha256": sha256,
        "url": server.url + FILE,
        "commit": None,
        "already_here": True,
    }
    assert len(server.asked) == 1


def test_patterns_and_exit_codes(run, server):
    ran = run("models", "download", "tiny/*", "tiny/a", "--json")
    assert ran.code == 1
    good, failed = ran.records
    assert (good["model"], good["already_here"]) == ("tiny/a", False)
    assert failed["path"] == "tiny/b"
    assert "HTTP 404" in failed["error"]
    ran = run("models", "download", "tiny/b")
    assert ran.code == 2
    assert f"{server.url}{FILE}b: HTTP 404" in ran.err
    assert run("models", "download", "tiny/z*").code == 2
    assert "Nearest: tiny/" in run("models", "download", "tiny/c").err
    assert run("models", "download").code == 2


def test_a_folder_to_carry(run, server, tmp_path, monkeypatch):
    """Files in other caches do not count: they would stay behind."""
    assert run("models", "download", "tiny/a").code == 0
    assert run("models", "download", "tiny/a", "--to", tmp_path / "stick").code == 0
    assert len(server.asked) == 2
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "stick"))
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    assert diptych.load("tiny/a").card["source"].startswith(str(tmp_path / "stick"))


def test_offline(run, server, photos, monkeypatch):
    command = ("classify", photos, "--labels", "a cat,a dog", "--model", "tiny/a", "--json")
    ran = run(*command, "--offline")
    assert ran.code == 2
    assert "type: diptych models download tiny/a" in ran.err
    with monkeypatch.context() as patch:
        patch.setenv("DIPTYCH_OFFLINE", "1")
        assert "type: diptych models download tiny/a" in run(*command).err
    assert not server.asked
    assert run(*command).code == 0
    assert run(*command, "--offline").code == 0
    assert len(server.asked) == 1


def test_the_embedded_model_is_here(run, server):
    ran = run("models", "download", "mini")
    assert ran.code == 0
    assert ran.out.endswith("already here\n")
    assert not server.asked
