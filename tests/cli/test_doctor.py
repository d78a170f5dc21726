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


def test_doctor_data(run, photos, model, own_cache):
    for path in photos.iterdir():
        path.with_suffix(".txt").write_text(f"a photo of {path.name}")
    ran = run("doctor", "data", photos, "--model", model, "--batch-size", 64)
    assert ran.code == 0, ran.err + ran.out
    for text in ("3 pairs in 1 file", "png 2", "ln 64", "longer than 77", "Fit to train on"):
        assert text in ran.out
    (photos / "a.jpg").write_bytes(b"<html>\x1b[31m")
    (photos / "b.txt").write_text(" ")
    ran = run("doctor", "data", photos, "--model", model)
    assert ran.code == 1
    assert "1 decoded, 1 cannot be decoded" in ran.out and "empty caption 1" in ran.out
    found = run("doctor", "data", photos, "--model", model, "--json").records[0]
    assert found["drops"] == {"empty caption": 1, "cannot be decoded": 1}
    assert not found["fit"]


def test_doctor_data_without_any(run, photos, model, own_cache):
    ran = run("doctor", "data", photos, "--model", model)
    assert ran.code == 2
    assert "no caption 3" in ran.out
    ran = run("doctor", "data", photos / "gone", "--model", model)
    assert ran.code == 2
    assert "not there" in ran.err
