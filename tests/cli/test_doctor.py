"""`diptych doctor` and the face of the whole command."""

import pytest

from diptych.cli.main import VERBS


def test_doctor(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setenv("https_proxy", "http://me:a secret@proxy.example")
    monkeypatch.setenv("DIPTYCH_MIRROR", "http://mirror.example/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("DIPTYCH_OFFLINE", "yes")
    ran = run("doctor")
    assert ran.code == 0
    for text in ("torch", "DIPTYCH_CACHE", "HF_HUB_OFFLINE", "bf16 in the CPU", "parquet"):
        assert text in ran.out
    assert "a secret" not in ran.out
    found = run("doctor", "--json").records[0]
    assert found["versions"]["torch"]
    assert found["network"]["downloads"] == "none: offline"
    assert found["network"]["hub"] == "http://mirror.example"
    assert found["network"]["https proxy"] == "set"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(run, verb):
    ran = run(*filter(None, [verb]), "--help")
    assert ran.code == 0
    assert "Usage: diptych" in ran.out
    listed = run("--help").out
    assert all(name in listed and line in listed for name, (_, line) in VERBS.items())


def test_an_unknown_verb(run):
    ran = run("clasify")
    assert ran.code == 2
    assert "classify" in ran.err
