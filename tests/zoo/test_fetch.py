"""What a model needs: from caches, from the first good source, or not at all if offline."""

import hashlib
import json
import logging
import shutil
import socket
from dataclasses import replace

import faulty_server as bad
import pytest
import safetensors.torch
import tiny_zoo
import torch

import diptych
from diptych import zoo
from diptych.errors import CheckpointError, DownloadError, ModelNotFoundError
from diptych.zoo.cache import published, read_record, vocabulary_folder
from diptych.zoo.net import download, web
from diptych.zoo.net.repository import choose, find_repository, parse
from diptych.zoo.row import Hub, Url

URL = "https://publisher.example/models/tiny.safetensors"
MIRRORED = "/publisher.example/models/tiny.safetensors"
HUB = "/org/tiny/resolve"
SPIECE = b"a stand-in for a vocabulary \0\1\2"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "DIPTYCH_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "sleep", bad.Pauses())
    with bad.Server() as server:
        monkeypatch.setenv("DIPTYCH_MIRROR", server.url)
        yield server


@pytest.fixture
def no_socket(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def gelu(monkeypatch):
    """A row "tiny/tag" whose file lies at `URL`, and that file."""
    given = tiny_zoo.checkpoint("gelu")
    theirs = zoo.keymaps.restore(given.state_dict, zoo.keymaps.OPENAI)
    file = safetensors.torch.save({k: v.contiguous() for k, v in theirs.items()})
    url = Url(url=URL, sha256=hashlib.sha256(file).hexdigest())
    row = replace(
        zoo.get("ViT-B-32/laion2b_s34b_b79k"),
        name="tiny/tag",
        config=given.config,
        preprocess=given.preprocess,
        tokenizer=given.tokenizer,
        sources=(url,),
    )
    monkeypatch.setitem(zoo.registry.rows(), row.name, row)
    return row, file, given.state_dict


@pytest.fixture
def siglip(monkeypatch, tmp_path):
    """A row "tiny/siglip" of the repository org/tiny, with a vocabulary beside, and its file."""
    given = tiny_zoo.checkpoint("siglip", tmp_path / "given")
    file = safetensors.torch.save(given.state_dict)
    row = replace(
        zoo.get("ViT-B-16-SigLIP/webli"),
        name="tiny/siglip",
        config=given.config,
        preprocess=given.preprocess,
        tokenizer=given.tokenizer,
        sources=(Hub(repo="org/tiny", beside=("spiece.model",)),),
    )
    monkeypatch.setitem(zoo.registry.rows(), row.name, row)
    return row, file, given.state_dict


def change(monkeypatch, row, **fields):
    row = replace(row, **fields)
    monkeypatch.setitem(zoo.registry.rows(), row.name, row)
    return row


def on_the_hub(server, file: bytes, name="open_clip_model.safetensors", repo="org/tiny"):
    """Weights by the branch, and by the commit alone what lies beside them."""
    server.files[f"/{repo}/resolve/main/{name}"] = bad.Served(file, commit=bad.COMMIT, linked=True)
    server.files[f"/{repo}/resolve/{bad.COMMIT}/spiece.model"] = bad.Served(
        SPIECE, commit=bad.COMMIT, small=True
    )


def asked(server) -> list[str]:
    return [a.path for a in server.asked if not a.path.startswith("/cdn")]


# --- rows ---------------------------------------------------------------------------------------


def test_load_fetches_once(server, gelu, tmp_path):
    row, file, state_dict = gelu
    server.files[MIRRORED] = bad.Served(file)
    server.faults[MIRRORED] = [bad.cut(5000)]
    encoder = diptych.load("tiny/tag", precision="fp32")
    assert tiny_zoo.same(dict(encoder.model.state_dict()), state_dict)
    path = tmp_path / "cache" / "models" / "tiny--tag" / "tiny.safetensors"
    assert path.read_bytes() == file
    assert encoder.card["source"] == str(path)
    facts = read_record(path.parent)[path.name]
    assert (facts["url"], facts["sha256"]) == (server.url + MIRRORED, row.sources[0].sha256)
    diptych.load("tiny/tag")
    assert len(server.asked) == 2
    assert zoo.fetch("tiny/tag") == zoo.fetch(row) == path
    assert zoo.find(row) == path


def test_cache_dir(server, gelu, tmp_path):
    server.files[MIRRORED] = bad.Served(gelu[1])
    diptych.load("tiny/tag", cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "models" / "tiny--tag" / "tiny.safetensors").is_file()
    assert not (tmp_path / "cache" / "models").exists()


def test_the_first_digits_of_a_hash(server, gelu, tmp_path, monkeypatch):
    row, file, _ = gelu
    short = replace(row.sources[0], sha256=row.sources[0].sha256[:8].upper())
    row = change(monkeypatch, row, sources=(short,))
    server.files[MIRRORED] = bad.Served(file)
    path = zoo.fetch("tiny/tag")
    zoo.open_model("tiny/tag", offline=True)
    with path.open("r+b") as damaged:
        damaged.seek(-1, 2)
        damaged.write(b"!")
    with pytest.raises(CheckpointError, match=r"the published file has .*Remove it"):
        zoo.open_model("tiny/tag")
    assert len(server.asked) == 1


def test_weights_and_vocabulary_of_one_commit(server, siglip):
    _, file, state_dict = siglip
    on_the_hub(server, file)
    found = zoo.open_model("tiny/siglip")
    assert tiny_zoo.same(found.state_dict, state_dict)
    assert (found.folder / "spiece.model").read_bytes() == SPIECE
    assert asked(server) == [
        f"{HUB}/main/open_clip_model.safetensors",
        f"{HUB}/{bad.COMMIT}/spiece.model",
    ]
    record = read_record(found.folder)
    assert {facts["commit"] for facts in record.values()} == {bad.COMMIT}
    assert record["spiece.model"]["sha256"] == hashlib.sha256(SPIECE).hexdigest()


def test_the_vocabulary_alone_and_then_weights_of_its_commit(server, siglip, tmp_path):
    """The branch has moved on when the weights are wanted: they are of the older commit too."""
    spiece = bad.Served(SPIECE, commit=bad.COMMIT, small=True)
    weights = bad.Served(siglip[1], commit=bad.COMMIT, linked=True)
    moved = bad.Served(b"of another commit", commit="f" * 40, linked=True)
    server.files["/org/tiny/resolve/main/spiece.model"] = spiece
    server.files["/org/tiny/resolve/main/open_clip_model.safetensors"] = moved
    server.files[f"/org/tiny/resolve/{bad.COMMIT}/open_clip_model.safetensors"] = weights
    folder = zoo.fetch_vocabulary("tiny/siglip")
    assert folder == tmp_path / "cache" / "models" / "tiny--siglip"
    assert (folder / "spiece.model").read_bytes() == SPIECE
    assert zoo.fetch_vocabulary("tiny/siglip", offline=True) == folder
    assert asked(server) == ["/org/tiny/resolve/main/spiece.model"]
    assert zoo.fetch("tiny/siglip").read_bytes() == siglip[1]
    assert zoo.fetch_vocabulary("mini") is None


def test_the_next_name_and_then_the_next_source(server, siglip, monkeypatch):
    row, file, _ = siglip
    other = Hub(repo="org/other", weights=("a.bin", "b.safetensors"))
    row = change(monkeypatch, row, sources=(other, *row.sources))
    on_the_hub(server, file)
    server.faults["/org/other/resolve/main/b.safetensors"] = [bad.status(500)] * 6
    assert zoo.fetch(row).name == "open_clip_model.safetensors"
    names = asked(server)
    assert names[:2] == [f"/org/other/resolve/main/{name}" for name in other.weights]
    assert names[7:] == [
        f"{HUB}/main/open_clip_model.safetensors",
        f"{HUB}/{bad.COMMIT}/spiece.model",
    ]


def test_no_source_gives_it(server, gelu, tmp_path, monkeypatch):
    row, file, _ = gelu
    hub = Hub(repo="org/gated", weights=("model.safetensors", "pytorch_model.bin"))
    wrong = Url(url=URL.replace("tiny", "page"))
    row = change(monkeypatch, row, sources=(hub, wrong, *row.sources))
    server.faults["/org/gated/resolve/main/model.safetensors"] = [bad.status(403)]
    server.faults[MIRRORED.replace("tiny", "page")] = [bad.web_page()]
    with pytest.raises(DownloadError) as error:
        diptych.load("tiny/tag")
    lines = str(error.value).splitlines()
    assert lines[0] == "tiny/tag: could not be fetched."
    assert lines[1].startswith(f"  {server.url}/org/gated/resolve/main/model.safetensors: HTTP 403")
    assert "https://huggingface.co/org/gated, then set HF_TOKEN" in lines[1]
    assert lines[2].startswith(f"  {server.url}{MIRRORED.replace('tiny', 'page')}: the server sent")
    assert lines[3] == f"  {server.url}{MIRRORED}: HTTP 404: no such file"
    for text in (URL, row.sources[-1].sha256, str(tmp_path / "cache" / "models" / "tiny--tag")):
        assert text in lines[4]
    assert len(server.asked) == 3  # a gated repository has no other name to try
    server.files[MIRRORED] = bad.Served(file)
    assert zoo.fetch("tiny/tag").read_bytes() == file


def test_a_full_disk_is_no_reason_to_ask_the_next_source(server, gelu, monkeypatch):
    row, file, _ = gelu
    change(monkeypatch, row, sources=(*row.sources, Url(url=URL.replace("tiny", "other"))))
    server.files[MIRRORED] = bad.Served(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DownloadError, match="MiB free"):
        zoo.fetch("tiny/tag")
    assert asked(server) == [MIRRORED]


def test_a_file_that_two_sources_call_the_same_is_held_to_either(gelu, monkeypatch):
    row, _, _ = gelu
    first, twin = row.sources[0], Url(url=URL.replace("models", "twins"), sha256="ab" * 32)
    folder = zoo.cache.folder_for(row, zoo.cache_folder())
    for sources, hashes in (
        ((first, twin), (first.sha256, twin.sha256)),
        ((first, replace(twin, sha256=None)), ()),
        ((first,), (first.sha256,)),
    ):
        row = replace(row, sources=sources)
        assert published(row, folder / "tiny.safetensors") == hashes


# --- the Hugging Face cache ---------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path, siglip):
    """The weights alone, as another library left them."""
    folder = tmp_path / "hf" / "hub" / "models--org--tiny" / "snapshots" / bad.COMMIT
    folder.mkdir(parents=True)
    (folder / "open_clip_model.safetensors").write_bytes(siglip[1])
    return folder


def test_only_the_missing_vocabulary_is_fetched(server, siglip, snapshot, tmp_path):
    on_the_hub(server, siglip[1])
    found = zoo.open_model("tiny/siglip")
    assert found.source == str(snapshot / "open_clip_model.safetensors")
    assert found.folder == tmp_path / "cache" / "models" / "tiny--siglip"
    assert (found.folder / "spiece.model").read_bytes() == SPIECE
    assert asked(server) == [f"{HUB}/{bad.COMMIT}/spiece.model"]
    again = zoo.open_model("tiny/siglip", offline=True)
    assert again.folder == found.folder
    assert zoo.identify(again, "right") == zoo.identify(found, "right")


def test_images_do_without_the_vocabulary(server, siglip, snapshot, caplog):
    with caplog.at_level(logging.WARNING, "diptych"):
        found = zoo.open_model("tiny/siglip")
    assert tiny_zoo.same(found.state_dict, siglip[2])
    assert "what text needs could not be fetched" in caplog.text
    caplog.clear()
    zoo.open_model("tiny/siglip", offline=True)
    assert not caplog.text
    with pytest.raises(DownloadError, match="what text needs could not be fetched"):
        zoo.fetch("tiny/siglip")
    with pytest.raises(ModelNotFoundError, match=r"spiece\.model, which text needs, is not on"):
        zoo.fetch("tiny/siglip", offline=True)


def test_a_vocabulary_of_another_repository(server, siglip, snapshot, tmp_path, monkeypatch):
    row = siglip[0]
    row = change(monkeypatch, row, sources=(replace(row.sources[0], beside_repo="google/bert"),))
    name = "/google/bert/resolve/main/spiece.model"
    server.files[name] = bad.Served(SPIECE, commit="9" * 40, small=True)
    path = zoo.fetch(row)
    assert asked(server) == [name]
    assert vocabulary_folder(row, path.parent) == tmp_path / "cache" / "models" / "tiny--siglip"
    theirs = tmp_path / "hf" / "hub" / "models--google--bert" / "snapshots" / ("9" * 40)
    theirs.mkdir(parents=True)
    (theirs / "spiece.model").write_bytes(SPIECE)
    found = zoo.open_model("tiny/siglip", cache_dir=tmp_path / "empty")
    assert found.folder == theirs
    assert len(server.asked) == 1


# --- offline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true", "YES", " On "])
@pytest.mark.parametrize("name", ["DIPTYCH_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_by_the_environment(server, gelu, no_socket, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ModelNotFoundError, match="diptych models download tiny/tag") as error:
        diptych.load("tiny/tag")
    row = gelu[0]
    for text in (URL, row.sources[0].sha256, str(zoo.cache_folder() / "models" / "tiny--tag")):
        assert text in str(error.value)
    with pytest.raises(ModelNotFoundError, match="diptych models download hf:org/tiny@v1"):
        diptych.load("hf:org/tiny@v1")


def test_offline_by_argument(server, gelu, no_socket, monkeypatch):
    with pytest.raises(ModelNotFoundError, match="are not on this machine"):
        diptych.load("tiny/tag", offline=True)
    with pytest.raises(ModelNotFoundError, match="are not on this machine"):
        zoo.fetch("tiny/tag", offline=True)
    monkeypatch.setenv("DIPTYCH_OFFLINE", "0")
    assert not web.is_offline()
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    assert not web.is_offline(False)
    assert not server.asked


def test_the_embedded_model_needs_nobody(no_socket):
    assert zoo.fetch("mini").is_file()


# --- whole repositories -------------------------------------------------------------------------


@pytest.fixture
def repository(server, tmp_path):
    """org/tiny in Hugging Face's layout with our sidecar, listed at main; files by commit alone."""
    given = tiny_zoo.checkpoint("gelu")
    zoo.write(given, tmp_path / "written", format="open_clip")
    files = {p.name: p.read_bytes() for p in (tmp_path / "written").iterdir()}
    extra = {"README.md": b"# hi", "pytorch_model.bin": b"x", "onnx/model.onnx": b"x"}
    extra |= {".gitattributes": b"x", "../evil.json": b"{}", "source.json": b"{}"}
    names = [{"rfilename": name} for name in (*files, *extra)]
    listing = json.dumps({"sha": bad.COMMIT, "siblings": names}).encode()
    server.files["/api/models/org/tiny/revision/main"] = bad.Served(listing)
    server.files[f"/api/models/org/tiny/revision/{bad.COMMIT}"] = bad.Served(listing)
    for name, data in files.items():
        large = name.endswith(".safetensors")
        server.files[f"{HUB}/{bad.COMMIT}/{name}"] = bad.Served(
            data, commit=bad.COMMIT, linked=large, small=not large
        )
    return given, files


def test_a_repository(server, repository, tmp_path):
    given, files = repository
    encoder = diptych.load("hf:org/tiny", precision="fp32")
    assert tiny_zoo.same(dict(encoder.model.state_dict()), given.state_dict)
    folder = tmp_path / "cache" / "hub" / "org--tiny" / bad.COMMIT
    there = {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}
    assert there == {*files, "source.json"}
    # our own record does not make the sidecar look edited
    assert (encoder.card["licence"], encoder.card["notes"]) == ("MIT", [])
    num_asked = len(server.asked)
    for name in ("hf:org/tiny", f"hf:org/tiny@{bad.COMMIT}"):
        assert zoo.fetch(name) == folder
        assert zoo.fetch(name, offline=True) == folder
    assert len(server.asked) == num_asked
    assert zoo.fetch_files("hf:org/tiny").files[0].commit == bad.COMMIT


def test_a_repository_that_broke_off_is_not_taken_for_whole(server, repository, monkeypatch):
    weights = f"{HUB}/{bad.COMMIT}/open_clip_model.safetensors"
    server.faults[f"/cdn{weights}"] = [bad.cut(1000)] + [bad.status(500)] * 6
    with pytest.raises(DownloadError, match=r"hf:org/tiny@0123.*HTTP 500.*1,000 bytes are kept"):
        zoo.fetch("hf:org/tiny")
    assert find_repository("org/tiny", "main") is None
    zoo.fetch("hf:org/tiny")
    assert server.asked[-1].headers["Range"] == "bytes=1000-"
    assert sum(path == f"{HUB}/{bad.COMMIT}/diptych.json" for path in asked(server)) == 1
    assert find_repository("org/tiny", "main") is not None
    assert find_repository("org/tiny", "v2") is None


def test_shards_are_fetched_by_their_index(server):
    shards = {f"a-{i}-of-2.safetensors": {f"x{i}": torch.ones(i)} for i in (1, 2)}
    index = {"weight_map": {key: name for name, held in shards.items() for key in held}}
    files = {name: safetensors.torch.save(held) for name, held in shards.items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["config.json"] = b"{}"
    names = [{"rfilename": name} for name in files]
    listing = {"sha": bad.COMMIT, "siblings": [*names, {"rfilename": "pytorch_model.bin"}]}
    server.files["/api/models/org/tiny/revision/v1%2Fx"] = bad.Served(json.dumps(listing).encode())
    for name, data in files.items():
        server.files[f"{HUB}/{bad.COMMIT}/{name}"] = bad.Served(data)
    folder = zoo.fetch("hf:org/tiny@v1/x")
    assert {p.name for p in folder.iterdir()} >= set(files)
    assert "pytorch_model.bin" not in {p.name for p in folder.iterdir()}
    assert find_repository("org/tiny", "v1/x") == folder
    (folder / "a-2-of-2.safetensors").unlink()
    assert find_repository("org/tiny", "v1/x") is None


def test_a_repository_in_the_hugging_face_cache(no_socket, tmp_path):
    root = tmp_path / "hf" / "hub" / "models--org--tiny" / "snapshots"
    for commit, names in (("a", ["config.json"]), ("b", ["config.json", "model.safetensors"])):
        (root / commit).mkdir(parents=True)
        for name in names:
            (root / commit / name).write_bytes(b"x")
    assert zoo.fetch("hf:org/tiny", offline=True) == root / "b"  # "a" holds no weights
    with pytest.raises(ModelNotFoundError):
        zoo.fetch("hf:org/tiny@a", offline=True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (bad.status(401), "Accept its licence on https://huggingface.co/org/tiny, then set HF_TOK"),
        (bad.status(404), "HTTP 404"),
        (lambda h: h.answer(200, b"[]"), "is no list of files"),
        (lambda h: h.answer(200, b'{"sha": "../x", "siblings": []}'), "names no commit"),
        (
            lambda h: h.answer(
                200, json.dumps({"sha": "1" * 40, "siblings": [{"rfilename": "x.gguf"}]}).encode()
            ),
            "holds no model that we read",
        ),
    ],
    ids=["gated", "missing", "no list", "no commit", "no model"],
)
def test_a_repository_that_is_none(server, answer, message):
    server.faults["/api/models/org/tiny/revision/main"] = [answer]
    with pytest.raises(DownloadError, match=message):
        zoo.fetch("hf:org/tiny")


def test_names_of_repositories():
    assert parse("hf:org/name@v1/x") == ("org/name", "v1/x")
    assert parse("hf:gpt2") == ("gpt2", "main")
    for name in ("hf:", "hf:../..", "hf:a/b/c", "hf:org/..", "hf:/etc", "hf:a b/c"):
        with pytest.raises(ModelNotFoundError, match="hf:org/name"):
            parse(name)


OPEN = ("open_clip_config.json", "open_clip_pytorch_model.bin", "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((*OPEN, "model.safetensors", "config.json"), ["config.json", OPEN[0], OPEN[2]]),
        ((*OPEN[:2], "merges.txt", "a/b.json"), ["merges.txt", OPEN[0], OPEN[1]]),
        (
            ("config.json", "pytorch_model.bin", "model.safetensors"),
            ["config.json", "model.safetensors"],
        ),
        (("config.json", "pytorch_model.bin"), ["config.json", "pytorch_model.bin"]),
        (
            ("config.json", "pytorch_model.bin", "model.safetensors.index.json", "s.safetensors"),
            ["config.json", "model.safetensors.index.json"],
        ),
        (("config.json", "spiece.model"), []),
        (("model.safetensors",), []),
    ],
)
def test_one_copy_of_the_weights_is_chosen(names, chosen):
    assert choose(names) == chosen


def test_addresses(monkeypatch):
    for name in ("DIPTYCH_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert web.address(URL) == URL
    assert web.hub_address("a/b", "refs/pr/1", "x y.json") == (
        "https://huggingface.co/a/b/resolve/refs%2Fpr%2F1/x%20y.json"
    )
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    assert web.listing_address("a/b", "main") == "https://hub.example/api/models/a/b/revision/main"
    assert web.address(URL) == URL
    monkeypatch.setenv("DIPTYCH_MIRROR", "http://mirror.example:8080/base/")
    assert web.address(URL) == f"http://mirror.example:8080/base{MIRRORED}"
    assert web.hub_address("a/b", "main", "x").startswith("http://mirror.example:8080/base/a/b/res")
