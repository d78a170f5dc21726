"""Rows: counts of parameters against the published tables, errors, and where files are found."""

import re
from dataclasses import replace
from urllib.parse import urlparse

import pytest
import safetensors.torch
import tiny_zoo
import torch

from diptych import zoo
from diptych.errors import CheckpointError, ModelNotFoundError
from diptych.towers import build

# total, visual, text, keys: measured on openai/CLIP's own build_model.
OPENAI = {
    "RN50": (102_007_137, 38_316_896, 63_690_240, 489),
    "RN101": (119_688_033, 56_259_936, 63_428_096, 795),
    "RN50x4": (178_300_601, 87_137_080, 91_163_520, 669),
    "RN50x16": (290_979_217, 167_328_912, 123_650_304, 921),
    "RN50x64": (623_258_305, 420_380_352, 202_877_952, 1353),
    "ViT-B-32": (151_277_313, 87_849_216, 63_428_096, 302),
    "ViT-B-16": (149_620_737, 86_192_640, 63_428_096, 302),
    "ViT-L-14": (427_616_513, 303_966_208, 123_650_304, 446),
    "ViT-L-14-336": (427_944_193, 304_293_888, 123_650_304, 446),
}
# millions in all and of the image tower: open_clip's docs/model_profile.csv.
OTHERS = {
    "ViT-B-32/laion2b_s34b_b79k": (151.28, 87.85),
    "ViT-L-14/laion2b_s32b_b82k": (427.62, 303.97),
    "ViT-L-14/datacomp_xl_s13b_b90k": (427.62, 303.97),
    "ViT-H-14/laion2b_s32b_b79k": (986.11, 632.08),
    "ViT-bigG-14/laion2b_s39b_b160k": (2539.57, 1844.91),
    "ViT-B-16-SigLIP/webli": (203.16, 92.88),
    "ViT-B-16-SigLIP2/webli": (375.19, 92.88),
    "ViT-L-14-CLIPA/datacomp1b": (414.21, 303.96),
    "align/coyo700m": (171.53, 62.14),
}


def model(name):
    with torch.device("meta"):
        return build(zoo.get(name).config)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", OPENAI)
def test_the_nine(name):
    total, visual, text, num_keys = OPENAI[name]
    found = model(f"{name}/openai")
    assert (count(found), count(found.visual), count(found.text)) == (total, visual, text)
    # q, k and v are one tensor in the file, three in ours
    split = sum(
        k.endswith("attn.k_proj.weight") for k in found.state_dict() if "attn_pool" not in k
    )
    assert len(found.state_dict()) - 4 * split == num_keys


@pytest.mark.parametrize("name", OTHERS)
def test_the_others(name):
    total, visual = OTHERS[name]
    found = model(name)
    assert count(found) / 1e6 == pytest.approx(total, abs=0.006)
    assert count(found.visual) / 1e6 == pytest.approx(visual, abs=0.006)


def test_every_row_is_whole():
    for name in zoo.list_models():
        row = zoo.get(name)
        assert row.name == name
        assert re.fullmatch(r"[\w.-]+/\w+", name) or isinstance(row.source, zoo.Asset)
        assert row.tokenizer.context_length <= row.config.text.context_length
        assert row.preprocess.size == row.config.visual.image_size
        assert row.licence
        assert bool(row.metrics) == bool(row.metrics_source)
        if isinstance(row.source, zoo.Url):
            assert urlparse(row.source.url).scheme == "https"
            assert re.fullmatch(r"[0-9a-f]{64}", row.sha256)
            assert row.source.url.split("/")[-2] == row.sha256
    assert len(zoo.list_models("*/openai")) == 9


def test_traps():
    assert zoo.get("ViT-L-14/laion2b_s32b_b82k").preprocess.mean == (0.5, 0.5, 0.5)
    assert zoo.get("ViT-H-14/laion2b_s32b_b79k").config.visual.heads == 16
    assert zoo.get("ViT-B-32/openai").config.text.act == "quick_gelu"
    assert zoo.get("ViT-B-32/laion2b_s34b_b79k").config.text.act == "gelu"
    siglip2 = zoo.get("ViT-B-16-SigLIP2/webli")
    assert (siglip2.tokenizer.pad_id, siglip2.tokenizer.clean) == (0, "lower")
    assert siglip2.config.visual.act == "gelu_tanh"


def test_unknown_name():
    with pytest.raises(ModelNotFoundError, match=r"Nearest: ViT-B-32/openai.*diptych models list"):
        zoo.get("ViT-B-32-openai")
    with pytest.raises(ModelNotFoundError, match=r"write \./nonsense"):
        zoo.open_model("nonsense")


def test_absent_weights_say_what_to_fetch(tmp_path):
    with pytest.raises(ModelNotFoundError) as error:
        zoo.open_model("ViT-B-32/openai")
    text = str(error.value)
    assert zoo.get("ViT-B-32/openai").source.url in text
    assert "40d365715913" in text
    assert str(tmp_path / "cache") in text
    with pytest.raises(
        ModelNotFoundError, match=r"spiece\.model of https://huggingface\.co/google"
    ):
        zoo.open_model("ViT-B-16-SigLIP/webli", cache_dir=tmp_path / "mine")
    with pytest.raises(ModelNotFoundError, match="hf download org/name --revision abc"):
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
    pinned = replace(row, source=replace(row.source, revision="abcd"))
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
