"""The fingerprint: what changes it, what does not, and that it is remembered."""

import hashlib
from dataclasses import replace

import pytest
import tiny_zoo

from diptych import zoo
from diptych.errors import CheckpointError
from diptych.zoo import identity


def of(c, mode="right", **more):
    return zoo.fingerprint(c.state_dict, c.preprocess, c.tokenizer, mode, **more)


def test_what_changes_it():
    base = tiny_zoo.checkpoint("vit")
    flipped = {k: v.clone() for k, v in base.state_dict.items()}
    flipped["text.ln_final.bias"][3] += 1e-6
    others = [
        replace(base, state_dict=flipped),
        replace(base, preprocess=replace(base.preprocess, mean=(0.5, 0.5, 0.5))),
        replace(base, preprocess=replace(base.preprocess, crop="floor")),
        replace(base, tokenizer=replace(base.tokenizer, clean="none")),
    ]
    prints = {of(base), of(base, "original"), *(of(c) for c in others)}
    assert len(prints) == 6
    act = replace(base.config, visual=replace(base.config.visual, act="gelu"))
    assert of(base, config=base.config) != of(base, config=act)


def test_what_does_not():
    base = tiny_zoo.checkpoint("vit")
    half = {k: v.half() for k, v in base.state_dict.items()}
    back = {k: v.float() for k, v in half.items()}
    shuffled = dict(reversed(back.items()))
    assert of(replace(base, state_dict=half)) == of(replace(base, state_dict=shuffled))
    rgb = replace(base, preprocess=replace(base.preprocess, rgb="before"))
    assert of(base) == of(rgb)
    assert of(base, "original") != of(rgb, "original")
    dropout = replace(base.config, visual=replace(base.config.visual, patch_dropout=0.5))
    assert of(base, config=base.config) == of(base, config=dropout)


def test_the_vocabulary_counts_by_its_bytes(tmp_path):
    a = tiny_zoo.checkpoint("siglip", tmp_path / "a")
    b = tiny_zoo.checkpoint("siglip", tmp_path / "b")
    (tmp_path / "b" / "spiece.model").rename(tmp_path / "b" / "tokenizer.model")
    b = replace(b, tokenizer=replace(b.tokenizer, file="tokenizer.model"))
    assert of(a, folder=a.folder) == of(b, folder=b.folder)
    (tmp_path / "b" / "tokenizer.model").write_bytes(b"another")
    assert of(a, folder=a.folder) != of(b, folder=b.folder)


def test_the_definition_is_stable():
    """Hashes are stored in indexes: a change of this number breaks every one of them."""
    base = tiny_zoo.checkpoint("vit")
    ramp = {k: (v * 0 + 1) for k, v in base.state_dict.items()}
    found = of(replace(base, state_dict=ramp))
    assert found == STABLE


STABLE = "6e85fcff8f20216431dcad993c45c4a97ef8ef08bc1637632182459a76308e49"


def test_it_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    zoo.write(tiny_zoo.checkpoint("vit"), path, format="diptych")
    calls = []
    real = identity.check_finite
    monkeypatch.setattr(identity, "check_finite", lambda c: calls.append(1) or real(c))
    first = zoo.identify(zoo.read(path), "right")
    assert zoo.identify(zoo.read(path), "right") == first
    assert len(calls) == 1
    zoo.identify(zoo.read(path), "original")
    assert len(calls) == 2
    other = tiny_zoo.checkpoint("vit")
    other.state_dict["logit_scale"] += 1
    zoo.write(other, path, format="diptych")
    assert zoo.identify(zoo.read(path), "right") != first
    assert len(calls) == 3


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    path = tmp_path / "x.safetensors"
    zoo.write(tiny_zoo.checkpoint("vit"), path, format="diptych")
    assert len(zoo.identify(zoo.read(path), "right")) == 64


def test_verify(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    zoo.verify(path, hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(CheckpointError, match="its SHA-256 is"):
        zoo.verify(path, "0" * 64)
