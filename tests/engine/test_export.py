"""Exported folders: what is in them, that they give the model's vectors, and what is refused."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import diptych
from diptych import zoo
from diptych.config import CLIPConfig, ResNetConfig, TextConfig, TokenizerConfig, ViTConfig
from diptych.engine import export as exporting
from diptych.engine import exported as reading
from diptych.engine import graph, onnx
from diptych.errors import CheckpointError, ConfigError, MissingExtraError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOWER = {"width": 64, "heads": 4, "layers": 2, "mlp_dim": 128}
TEXT = {**TOWER, "context_length": 77, "vocab_size": 49408}
IMAGE = {**TOWER, "image_size": (32, 32), "patch_size": 8}
BOUND = 2e-6


def quick() -> CLIPConfig:
    return CLIPConfig(
        embed_dim=24,
        visual=ViTConfig(**IMAGE | {"layers": 1}, act="quick_gelu"),
        text=TextConfig(**TEXT | {"layers": 1}, act="quick_gelu"),
    )


def resnet() -> CLIPConfig:
    visual = ResNetConfig(image_size=(64, 64), layers=(1, 2, 1, 1), width=8, heads=4)
    text = TextConfig(**TEXT, act="quick_gelu", pool="eos", eos_id=49407)
    return CLIPConfig(embed_dim=24, visual=visual, text=text)


def siglip() -> CLIPConfig:
    """MAP head, no class token; a bidirectional text pooled last; a bias."""
    row = zoo.get("ViT-B-16-SigLIP/webli").config
    text = replace(row.text, **TEXT | {"context_length": 64})
    return replace(row, embed_dim=64, visual=replace(row.visual, **IMAGE), text=text)


def clipa() -> CLIPConfig:
    """Mean pool, then the norm."""
    row = next(zoo.get(name).config for name in zoo.list_models() if "CLIPA" in name)
    text = replace(row.text, **TEXT | {"context_length": 32})
    return replace(row, embed_dim=24, visual=replace(row.visual, **IMAGE), text=text)


def built(config: CLIPConfig):
    tokenizer = TokenizerConfig(kind="clip_bpe", context_length=config.text.context_length)
    return diptych.build(config, seed=3, tokenizer=tokenizer, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def model():
    return built(quick())


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "out"
    exporting.export(model, path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    """A copy that a test may spoil."""
    path = tmp_path / "copy"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def manifest_of(folder) -> dict:
    return json.loads((folder / "diptych.json").read_text("utf-8"))


def run(folder, tower: str, batch: torch.Tensor) -> torch.Tensor:
    """As a program that knows only diptych.json and ONNX Runtime."""
    facts = manifest_of(folder)["export"]["towers"][tower]
    session = onnxruntime.InferenceSession(folder / facts["file"])
    found = session.run([facts["output"]["name"]], {facts["input"]["name"]: batch.numpy()})
    return torch.from_numpy(found[0])


def farthest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# --- what is written --------------------------------------------------------------------------


def test_a_folder_stands_alone(model, folder):
    facts = manifest_of(folder)
    export = facts["export"]
    names = {file.name for file in folder.iterdir()}
    assert names == {"diptych.json", *export["files"]}
    assert {"image.onnx", "text.onnx", "vocab.json", "merges.txt"} <= names
    for name, sha256 in export["files"].items():
        assert zoo.sha256_of(folder / name) == sha256
    assert export["fingerprint"] == model.fingerprint
    assert export["embed_dim"] == 24
    assert export["logit_scale"] == pytest.approx(model.model.logit_scale.item())
    assert export["towers"]["image"]["input"]["shape"] == ["n", 3, 32, 32]
    assert export["towers"]["text"]["input"]["shape"] == ["n", "tokens"]
    assert export["opset"] == 18
    assert facts["config"]["visual"]["act"] == "quick_gelu"
    assert facts["tokenizer"]["context_length"] == 77
    assert len(export["parity"]) == 6
    assert all(0 <= p["max_abs"] <= BOUND for p in export["parity"])


def test_no_file_says_where_it_was_made(folder):
    for file in folder.iterdir():
        data = file.read_bytes()
        assert b"site-packages" not in data, file.name
        assert b"diptych/model/" not in data, file.name


@pytest.mark.parametrize("n", [1, 3, 7])
def test_images_of_any_number_are_unit_rows_of_the_model(model, folder, n):
    pixels = torch.randn(n, 3, 32, 32)
    found = run(folder, "image", pixels)
    assert farthest(found.norm(dim=-1), torch.ones(n)) < 1e-6
    with torch.no_grad():
        assert farthest(found, model.model.encode_image(pixels)) <= BOUND


@pytest.mark.parametrize("length", [5, 20, 77])
def test_texts_of_any_length(model, folder, length):
    ids = model.tokenizer(["a dog", "two cats", "x"])
    assert ids.shape == (3, 77)
    found = run(folder, "text", ids[:, :length].contiguous())
    with torch.no_grad():
        assert farthest(found, model.model.encode_text(ids)) <= BOUND


def test_the_activation_is_openais(model, folder):
    """QuickGELU and the exact one differ by more than the bound here: the test can fail."""
    pixels = torch.randn(2, 3, 32, 32)
    other = built(replace(quick(), visual=replace(quick().visual, act="gelu")))
    other.model.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        assert farthest(run(folder, "image", pixels), other.model.encode_image(pixels)) > BOUND


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("config", [resnet, siglip, clipa], ids=lambda make: make.__name__)
def test_families(config, format, tmp_path):
    model = built(config())
    done = exporting.export(model, tmp_path / "out", format=format)
    assert all(parity.max_abs <= BOUND for parity in done.parity)
    text = manifest_of(tmp_path / "out")["export"]["towers"]["text"]["input"]
    free = model.config.text.causal
    assert text["shape"] == ["n", "tokens" if free else model.config.text.context_length]
    assert len(done.parity) == (6 if free else 4)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_mini(format, tmp_path):
    mini = diptych.load("mini", precision="fp32", device="cpu")
    done = exporting.export(mini, tmp_path / "out", format=format)
    assert len(done.parity) == 6
    assert all(parity.max_abs <= BOUND for parity in done.parity)
    assert mini.tokenizer_config.file in done.files
    stored = load_file(tmp_path / "out" / reading.REFERENCE)
    assert stored["pixels"].shape[1:] == (3, 260, 260)
    assert farthest(stored["text_features"], torch.from_numpy(mini.encode_text(captions()))) < 1e-5


def captions() -> list[str]:
    from importlib import resources

    text = resources.files("diptych").joinpath("assets/samples/samples.json").read_text("utf-8")
    return [row["caption"] for row in json.loads(text)[:4]]


@pytest.mark.slow
def test_torch_opens_what_was_written(model, tmp_path):
    exporting.export(model, tmp_path / "out", format="torch", towers=("text",))
    assert not (tmp_path / "out" / "image.pt2").exists()
    program = torch.export.load(tmp_path / "out" / "text.pt2").module()
    ids = model.tokenizer(["a dog"])[:, :9]
    with torch.no_grad():
        assert farthest(program(ids), model.model.encode_text(ids)) <= BOUND


@pytest.mark.slow
def test_levels_go_in_and_half_the_bytes_do(model, folder, tmp_path):
    done = exporting.export(
        model, tmp_path / "out", towers=("image",), precision="fp16", uint8=True
    )
    assert all(0 < p.one_minus_cosine <= 1e-3 for p in done.parity)
    assert "vocab.json" not in done.files
    small, large = (f / "image.onnx" for f in (tmp_path / "out", folder))
    assert small.stat().st_size < 0.8 * large.stat().st_size
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (
        torch.tensor(numbers).view(3, 1, 1)
        for numbers in (model.preprocess.config.mean, model.preprocess.config.std)
    )
    with torch.no_grad():
        expected = model.model.encode_image((levels / 255 - mean) / std)
    cosine = F.cosine_similarity(run(tmp_path / "out", "image", levels), expected)
    assert float((1 - cosine).max()) < 1e-3
    assert reading.check_export(tmp_path / "out", model)["differs"] is False


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(model, folder, tmp_path):
    exporting.export(model, tmp_path / "out")
    for file in folder.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.slow
def test_many_weights_lie_beside_the_graph(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_INSIDE", 1000)
    exporting.export(model, tmp_path / "out", towers=("image",))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"image.onnx", "image.onnx.data", "reference.safetensors", "diptych.json"}
    assert "image.onnx.data" in manifest_of(tmp_path / "out")["export"]["files"]
    assert reading.check_export(tmp_path / "out")["differs"] is False


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_that_differs_leaves_nothing_behind(model, tmp_path, monkeypatch):
    monkeypatch.setitem(reading.BOUNDS, "fp32", ("max_abs", 1e-12))
    with pytest.raises(CheckpointError, match=r"image\.onnx on 8 rows differs .* 1e-12 is allowed"):
        exporting.export(model, tmp_path / "out", towers=("image",))
    assert not list(tmp_path.iterdir())


def test_nan_differs():
    nan = torch.full((1, 4), torch.nan)
    assert reading.compare(nan, torch.ones(1, 4), "image", "1 row").differs("fp32")
    assert reading.compare(nan, torch.ones(1, 4), "image", "1 row").differs("fp16")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"format": "tflite"}, "format must be"),
        ({"towers": ()}, "towers must be"),
        ({"towers": "image"}, "towers must be"),
        ({"precision": "bf16"}, "precision must be"),
        ({"precision": "fp16", "format": "torch"}, "is for ONNX"),
    ],
)
def test_options_that_cannot_be(model, tmp_path, options, what):
    with pytest.raises(ConfigError, match=what):
        exporting.export(model, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_in_training_is_refused(tmp_path):
    model = built(quick())
    model.model.train()
    with pytest.raises(ConfigError, match=r"enc\.model\.eval\(\)"):
        exporting.export(model, tmp_path / "out")


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'onnx'\. Type: pip install 'diptych\[export\]'"):
        exporting.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept(model, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(CheckpointError, match="exists already"):
        exporting.export(model, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# --- checking a folder ------------------------------------------------------------------------


def test_check_by_what_lies_in_the_folder(folder):
    facts = reading.check_export(folder)
    assert facts["differs"] is False
    assert {"image, 2 rows", "text, 4 rows"} <= facts.keys()


def test_check_against_the_model_and_another(model, folder):
    assert reading.check_export(folder, model)["differs"] is False
    other = diptych.build(quick(), seed=4, precision="fp32")
    facts = reading.check_export(folder, other)
    assert facts["differs"] is True
    assert other.fingerprint in facts["made of"]
    assert "DIFFERS" in facts["image, 8 rows"]


@pytest.mark.parametrize("name", ["image.onnx", "reference.safetensors", "merges.txt"])
def test_one_changed_bit_is_found(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name}: its SHA-256 is"):
        reading.check_export(copied)
    (copied / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: is missing"):
        reading.check_export(copied)


def test_other_vectors_with_right_hashes_are_found(copied):
    stored = load_file(copied / reading.REFERENCE)
    stored["image_features"][0, 0] += 1e-5
    save_file(stored, copied / reading.REFERENCE)
    facts = manifest_of(copied)
    facts["export"]["files"][reading.REFERENCE] = zoo.sha256_of(copied / reading.REFERENCE)
    (copied / "diptych.json").write_text(json.dumps(facts))
    assert reading.check_export(copied)["differs"] is True


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda e: e["files"].update({"../../secret": "0"}), "is not the name of a file"),
        (lambda e: e["towers"]["image"].update(file="../image.onnx"), "is not the name of a file"),
        (lambda e: e.pop("files"), "'files' of its 'export' is missing"),
        (lambda e: e.update(precision="int4"), "of a later version"),
        (lambda e: e["towers"]["text"].pop("input"), "is malformed"),
    ],
    ids=["file above", "graph above", "no files", "later", "no input"],
)
def test_a_spoiled_manifest_is_refused(copied, spoil, what):
    facts = manifest_of(copied)
    spoil(facts["export"])
    (copied / "diptych.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=what):
        reading.check_export(copied)


def test_a_program_of_torch_is_never_opened(copied, monkeypatch):
    """It may hold pickles, which run code."""
    facts = manifest_of(copied)
    facts["export"]["format"] = "torch"
    (copied / "diptych.json").write_text(json.dumps(facts))
    monkeypatch.setattr(torch.export, "load", lambda *a, **k: pytest.fail("opened"))
    assert "not run" in reading.check_export(copied)["vectors"]


def test_other_folders_are_no_exports(tmp_path):
    assert not reading.is_export(tmp_path)
    assert not reading.is_export("mini")
    with pytest.raises(CheckpointError, match="diptych models export"):
        reading.read_manifest(tmp_path)


# --- ONNX Runtime as an engine ----------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def towers(folder, cache, monkeypatch):
    """(model, its two towers), with a cache that these tests share and that holds the graphs."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(cache))
    model = built(quick())
    both = engine_of(model)
    for tower in both:
        kept = cache / "onnx" / tower._key() / f"{tower.side.side}.onnx"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes((folder / kept.name).read_bytes())
    return model, *both


def engine_of(model):
    return onnx.onnx_towers(
        model.model,
        config=model.config,
        preprocess=model.preprocess.config,
        tokenizer=model.tokenizer_config,
        fingerprint=model.fingerprint,
    )


def spied(monkeypatch) -> list:
    """The files that are written from now on."""
    written, write = [], onnx.write_graph

    def spy(side, path, **options):
        written.append(path.name)
        write(side, path, **options)

    monkeypatch.setattr(onnx, "write_graph", spy)
    return written


@pytest.mark.parametrize("n", [1, 5])
def test_the_engine_gives_the_towers_vectors(towers, n):
    model, visual, text = towers
    pixels, ids = torch.randn(n, 3, 32, 32), model.tokenizer(["a dog", "a", "b c", "d", "e"][:n])
    with torch.no_grad():
        assert farthest(visual(pixels), model.model.encode_image(pixels)) <= BOUND
        assert farthest(text(ids), model.model.encode_text(ids)) <= BOUND
        assert farthest(text(ids[:, :9]), model.model.encode_text(ids)) <= BOUND
    assert visual._run is not None and text._run is not None


def test_levels_are_normalised(towers):
    model, visual, _ = towers
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = onnx.normalise_batch(levels, model.preprocess.config)
    with torch.no_grad():
        assert farthest(visual(levels), model.model.encode_image(pixels)) <= BOUND


@pytest.mark.slow
def test_a_graph_is_written_once(own_cache, monkeypatch):
    model = built(quick())
    visual, text = engine_of(model)
    pixels, ids = torch.randn(1, 3, 32, 32), model.tokenizer(["a dog"])
    written = spied(monkeypatch)
    visual(pixels), text(ids)
    assert written == ["image.onnx", "text.onnx"]
    written.clear()
    for again in (engine_of(model), pickle.loads(pickle.dumps((visual, text)))):
        again[0](pixels), again[1](ids)
        assert again[0]._run is not None
    assert written == []


@pytest.mark.slow
def test_weights_that_were_trained_since_give_no_stale_vectors(towers, monkeypatch):
    model, visual, _ = towers
    pixels = torch.randn(2, 3, 32, 32)
    before = visual(pixels)
    with torch.no_grad():
        model.model.visual.proj.weight.mul_(-1)
        found = visual(pixels)
        assert farthest(F.normalize(found, dim=-1), model.model.encode_image(pixels)) <= BOUND
        assert farthest(F.normalize(found, dim=-1), -before) <= BOUND
    copy = pickle.loads(pickle.dumps(visual))
    assert copy.fingerprint is None
    written = spied(monkeypatch)
    with torch.no_grad():
        assert farthest(copy(pixels), model.model.encode_image(pixels)) <= BOUND
    assert written == ["image.onnx"]


def test_what_the_graph_cannot_do_the_tower_does(towers):
    model, visual, text = towers
    pixels = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        expected = model.model.encode_image(pixels)
        assert farthest(F.normalize(visual(pixels), dim=-1), expected) <= BOUND
        hook = model.model.text.register_forward_hook(lambda module, args, out: 2 * out)
        ids = model.tokenizer(["a dog"])
        assert farthest(text(ids), model.model.text(ids)) == 0
        hook.remove()
    assert visual._run is None and text._run is None


def test_an_encoder_runs_on_it(towers, photos):
    model, visual, text = towers
    files = sorted(photos.glob("*.png"))[:5]
    texts = ["a", "a dog on the grass", "two", "a photo of a red house by the sea"]
    expected = model.encode_image(files), model.encode_text(texts)
    model._visual, model._text = visual, text
    for encoder in (model, pickle.loads(pickle.dumps(model))):
        assert abs(encoder.encode_image(files) - expected[0]).max() <= BOUND
        assert abs(encoder.encode_text(texts) - expected[1]).max() <= BOUND
    assert visual._run is not None and text._run is not None


def test_threads_share_a_tower(towers):
    model, visual, _ = towers
    batches = [torch.randn(2, 3, 32, 32) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(visual, batches))
    with torch.no_grad():
        for batch, rows in zip(batches, found, strict=True):
            assert farthest(rows, model.model.encode_image(batch)) <= BOUND


def test_a_graph_of_another_model_is_not_used(towers, caplog):
    model, visual, _ = towers
    pixels = torch.randn(2, 3, 32, 32)
    visual(pixels)
    file = visual._file()
    other = diptych.build(quick(), seed=9, precision="fp32")
    wrong = onnx.OnnxTower(
        replace(visual.side, tower=other.model.visual),
        made_of=visual.made_of,
        fingerprint=model.fingerprint,
    )
    assert wrong._file() == file
    with torch.no_grad():
        expected = other.model.encode_image(pixels)
        assert farthest(F.normalize(wrong(pixels), dim=-1), expected) <= BOUND
    assert "not used" in caplog.text


def test_a_damaged_graph_is_named(towers, tmp_path, monkeypatch):
    _, visual, _ = towers
    visual(torch.randn(1, 3, 32, 32))
    damaged = tmp_path / "image.onnx"
    damaged.write_bytes(visual._file().read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"image\.onnx: ONNX Runtime cannot open it"):
        graph.open_onnx(damaged)


def test_as_many_threads_as_torch(towers, monkeypatch):
    _, visual, _ = towers
    seen, opened = [], graph.session
    monkeypatch.setattr(graph, "session", lambda path: seen.append(path) or opened(path))
    before = torch.get_num_threads()
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            visual(torch.randn(1, 3, 32, 32))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 2
