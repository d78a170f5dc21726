"""The registry: names that are not there, and where the files of a row are found."""

from dataclasses import replace

import pytest
import safetensors.torch
import tiny_zoo
import torch

from diptych import zoo
from diptych.errors import CheckpointError, ModelNotFoundError


def test_unknown_name():
    with pytest.raises(ModelNotFoundError, match=r"Nearest: ViT-B-32/openai.*diptych models list"):
        zoo.get("ViT-B-32-openai")
    with pytest.raises(ModelNotFoundError, match=r"write \./nonsense"):
        zoo.open_model("nonsense")


def test_absent_weights_say_what_to_fetch(tmp_path):
    with pytest.raises(ModelNotFoundError) as error:
        zoo.open_model("ViT-B-32/openai")
    text = str(error.value)
    for source in zoo.get("ViT-B-32/openai").sources:
        assert (source.url if isinstance(source, zoo.Url) else source.repo) in text
    assert "40d365715913" in text
    assert str(tmp_path / "cache") in text
    assert "type: diptych models download ViT-B-32/openai" in text
    with pytest.raises(
        ModelNotFoundError, match=r"spiece\.model of https://huggingface\.co/google"
    ):
        zoo.open_model("ViT-B-16-SigLIP/webli", cache_dir=tmp_path / "mine")
    with pytest.raises(ModelNotFoundError, match="diptych models download hf:org/name@abc"):
        zoo.open_model("hf:org/name@abc")


def test_where_files_are_found(tmp_path):
    row = zoo.get("ViT-B-32/openai")
    assert zoo.find(row) is None
    peer = tmp_path / "home" / ".cache" / "clip" / "ViT-B-32.pt"
    peer.parent.mkdir(parents=True)
    peer.write_bytes(b"x")
    assert zoo.find(row) == peer
    ours = tmp_path / "cache" / "models" / "ViT-B-32--openai" / "ViT-B-32.pt"
    ours.parent.mkdir(parents=True)
    ours.write_bytes(b"x")
    assert zoo.find(row) == ours
    with pytest.raises(CheckpointError, match=r"its SHA-256 is .*the published file has 40d36"):
        zoo.open_model("ViT-B-32/openai")


def test_the_hugging_face_cache(tmp_path, monkeypatch):
    row = zoo.get("ViT-B-16-SigLIP/webli")
    root = tmp_path / "hf" / "hub" / "models--google--siglip-base-patch16-224"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"x")
    assert zoo.find(row) is None  # the weights are missing
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert zoo.find(row) == snapshot / "model.safetensors"
    pinned = replace(row, sources=(replace(row.sources[0], revision="abcd"),))
    assert zoo.find(pinned) is None
    (root / "refs").mkdir()
    (root / "refs" / "abcd").write_text("abc")
    assert zoo.find(pinned) == snapshot / "model.safetensors"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    assert zoo.find(row) is None


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_weights_alone_in_the_cache_of_another_library_will_do(tmp_path, monkeypatch, name):
    """open_clip fetches no open_clip_config.json for a tag it knows: the row says what it holds."""
    given = tiny_zoo.checkpoint("gelu")
    row = replace(zoo.get("ViT-B-32/laion2b_s34b_b79k"), name="tiny/tag", config=given.config)
    monkeypatch.setitem(zoo.registry.rows(), "tiny/tag", row)
    repo = "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    path = tmp_path / "hf" / "hub" / repo / "snapshots" / "abc" / name
    path.parent.mkdir(parents=True)
    theirs = zoo.keymaps.restore(given.state_dict, zoo.keymaps.OPENAI)
    safetensors.torch.save_file(theirs, path) if "safe" in name else torch.save(theirs, path)
    found = zoo.open_model("tiny/tag")
    assert tiny_zoo.same(found.state_dict, given.state_dict)
    assert (found.preprocess, found.tokenizer) == (row.preprocess, row.tokenizer)


def test_a_row_supplies_what_a_bare_file_lacks(tmp_path, monkeypatch):

    given = tiny_zoo.checkpoint("siglip", tmp_path / "v")
    row = replace(
        zoo.get("ViT-B-16-SigLIP/webli"),
        name="tiny/test",
        config=given.config,
        preprocess=given.preprocess,
        tokenizer=given.tokenizer,
    )
    monkeypatch.setitem(zoo.registry.rows(), "tiny/test", row)
    torch.save(given.state_dict, tmp_path / "x.pt")
    found = zoo.read(tmp_path / "x.pt", config="tiny/test")
    assert (found.preprocess, found.tokenizer) == (given.preprocess, given.tokenizer)
    assert found.licence == "Apache-2.0"
    assert "registry row 'tiny/test'" in found.notes[0]


def test_a_family_brings_its_own_key_table(tmp_path, monkeypatch):

    from diptych.towers import Family, families
    from diptych.zoo import reading
    from diptych.zoo.keymaps import Rule

    given = tiny_zoo.checkpoint("vit")
    renamed = {
        key.replace("visual.ln_post", "tower.last_norm"): value
        for key, value in zoo.keymaps.restore(given.state_dict, zoo.keymaps.OPENAI).items()
    }
    torch.save(renamed, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no rule for key 'tower\.last_norm"):
        zoo.read(tmp_path / "x.pt", config=given.config)
    rules = (Rule(r"tower\.last_norm\.(\w+)", r"visual.ln_post.\1"),)
    kind = type(given.config.visual)
    family = Family(config=kind, build=families()[kind].build, rules=rules)
    monkeypatch.setattr(reading, "families", lambda: {**families(), kind: family})
    found = zoo.read(tmp_path / "x.pt", config=given.config)
    assert tiny_zoo.same(found.state_dict, given.state_dict)


def test_a_restricted_licence_is_said_once(tmp_path, monkeypatch, caplog):
    given = tiny_zoo.checkpoint("gelu")
    row = replace(zoo.get("ViT-B-16/dfn2b"), name="tiny/dfn", config=given.config)
    monkeypatch.setitem(zoo.registry.rows(), "tiny/dfn", row)
    path = tmp_path / "cache" / "models" / "tiny--dfn" / row.sources[0].weights[0]
    path.parent.mkdir(parents=True)
    theirs = zoo.keymaps.restore(given.state_dict, zoo.keymaps.OPENAI)
    safetensors.torch.save_file(theirs, path)
    for _ in range(2):
        zoo.open_model("tiny/dfn")
    assert caplog.text.count("forbids or restricts commercial use (Apple's own") == 1
