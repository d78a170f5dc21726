"""Heads: folded, recognised, refused where they do not belong, fetched, and fitted."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import diptych
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DownloadError,
    ModelNotFoundError,
    UnsafeFileError,
)
from diptych.judge import aesthetics
from diptych.judge.aesthetics import (
    HEADS,
    Head,
    aesthetic_scores,
    check_head,
    fetch_head,
    fit_head,
    fold,
    open_head,
    read_head,
    save_head,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from faulty_server import Served, Server

TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=1, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=1, heads=4, mlp_dim=128),
)


KINDS = ("weight", "bias")


class V2(nn.Module):
    """improved-aesthetic-predictor's MLP, as its repository writes it down."""

    def __init__(self, size=768):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(size, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def enc():
    return diptych.build(TINY, precision="fp32")


def unit(n, size=768):
    return nn.functional.normalize(torch.randn(n, size, dtype=torch.float64), dim=-1)


def test_v2_folded_into_one_map_is_the_same_function():
    model = V2().double().eval()
    vectors = unit(200)
    weight, bias = fold(model.state_dict())
    with torch.no_grad():
        exact = model(vectors)[:, 0]
        single = model.float()(vectors.float())[:, 0]
    head = Head(weight=weight, bias=bias)
    assert (aesthetic_scores(head, vectors) - exact).abs().max() < 1e-13
    assert (aesthetic_scores(head, vectors) - single).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("model", "size", "models"),
    [
        (nn.Linear(768, 1), 768, HEADS["laion-v1-l14"].models),
        (nn.Linear(512, 1), 512, HEADS["laion-v1-b32"].models + HEADS["laion-v1-b16"].models),
        (V2(), 768, HEADS["laion-v2-l14"].models),
        (nn.Linear(640, 1), 640, ()),
    ],
)
def test_a_published_file_is_recognised_by_its_tensors(tmp_path, model, size, models):
    torch.save(model.state_dict(), tmp_path / "any name.pth")
    head = read_head(tmp_path / "any name.pth")
    assert (len(head.weight), head.models) == (size, models)
    vectors = unit(10, size)
    with torch.no_grad():
        expected = model.eval().double()(vectors)[:, 0]
    assert (aesthetic_scores(head, vectors) - expected).abs().max() < 1e-12


def damaged(change):
    state = V2().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"x": torch.zeros(3)}, "no aesthetics head"),
        ({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, "gives 2 numbers"),
        ({"weight": torch.zeros(8), "bias": torch.zeros(1)}, "do not follow"),
        ({"weight": torch.full((1, 8), torch.nan), "bias": torch.zeros(1)}, "not finite"),
        (damaged(lambda s: s.update({"layers.2.weight": torch.zeros(128, 99)})), "do not follow"),
        (
            {f"layers.{i}.{k}": torch.ones(1) for i in (0, 3, 6, 9, 11) for k in KINDS},
            "ReLU",
        ),
    ],
)
def test_what_is_no_head_is_refused(tmp_path, state, says):
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=says):
        read_head(tmp_path / "x.pth")


def test_no_code_of_a_file_is_run(tmp_path):
    torch.save(nn.Linear(768, 1), tmp_path / "module.pth")  # a pickled module needs its class
    with pytest.raises(UnsafeFileError, match="Nothing was run"):
        read_head(tmp_path / "module.pth")
    with pytest.raises(ModelNotFoundError):
        read_head(tmp_path / "none.pth")


def test_a_head_refuses_vectors_of_another_size_or_model(enc, caplog):
    with pytest.raises(ConfigError, match="takes vectors of 768"):
        check_head(Head(weight=torch.zeros(768), bias=0.0), enc)
    head = Head(weight=torch.zeros(24), bias=0.0, models=("ViT-L-14/openai",), name="h.pth")
    with pytest.raises(ConfigError, match=r"trained on vectors of ViT-L-14/openai.*--any-model"):
        check_head(head, enc)
    check_head(head, enc, any_model=True)
    assert "say nothing" in caplog.text
    check_head(replace(head, models=(enc.card["name"],)), enc)
    check_head(replace(head, fingerprint=enc.fingerprint), enc)
    with pytest.raises(ConfigError):  # the name alone does not do, where the fingerprint is known
        check_head(replace(head, models=(enc.card["name"],), fingerprint="0" * 64), enc)


def test_a_head_of_one_s_own_is_kept_whole(enc, tmp_path):
    vectors = unit(200, 24)
    ratings = 5 + vectors @ torch.randn(24, dtype=torch.float64)
    fitted = fit_head(vectors, ratings, encoder=enc, samples=100)
    assert fitted.num == 150 and fitted.held_out.num == 50
    assert fitted.held_out.pearson > 0.999
    save_head(fitted.head, tmp_path / "own.safetensors")
    again = read_head(tmp_path / "own.safetensors")
    assert torch.equal(again.weight, fitted.head.weight)
    assert (again.bias, again.fingerprint) == (fitted.head.bias, enc.fingerprint)
    check_head(again, enc)


def test_ridge_is_the_closed_form_and_leaves_one_out():
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    weight, bias, ridge = aesthetics._ridge(x, y)
    centred, level = x - x.mean(0), y - y.mean()
    expected = torch.linalg.solve(
        centred.T @ centred + ridge * torch.eye(5, dtype=torch.float64), centred.T @ level
    )
    assert (weight - expected).abs().max() < 1e-12
    assert bias == pytest.approx(float(y.mean() - expected @ x.mean(0)))


def test_noise_is_not_learned_and_says_so():
    vectors, ratings = unit(400, 64), torch.randn(400)
    fitted = fit_head(vectors, ratings, samples=200)
    low, high, _ = fitted.held_out.intervals["spearman"]
    assert low < 0 < high or abs(fitted.held_out.spearman) < 0.2


@pytest.mark.parametrize(
    ("vectors", "ratings"),
    [
        (torch.randn(10, 4), torch.randn(10)),
        (torch.randn(30, 4), torch.ones(30)),
        (torch.randn(30, 4), torch.full((30,), torch.nan)),
        (torch.randn(30, 4), torch.randn(29)),
    ],
)
def test_what_cannot_be_fitted(vectors, ratings):
    with pytest.raises(DataError):
        fit_head(vectors, ratings)


def test_a_published_head_is_fetched_once_and_checked(own_cache, tmp_path, monkeypatch):
    monkeypatch.delenv("DIPTYCH_OFFLINE")
    torch.save(V2().state_dict(), tmp_path / "x.pth")
    path = "/" + HEADS["laion-v2-l14"].url.removeprefix("https://")
    with Server() as server:
        monkeypatch.setenv("DIPTYCH_MIRROR", server.url)
        server.files[path] = Served((tmp_path / "x.pth").read_bytes())
        head = open_head("laion-v2-l14")
        assert head.models == HEADS["laion-v2-l14"].models
    assert torch.equal(open_head("laion-v2-l14").weight, head.weight)  # from the cache
    with pytest.raises(DownloadError):
        fetch_head("laion-v1-l14")
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match=r"sa_0_4_vit_b_32_linear\.pth"):
        fetch_head("laion-v1-b32")


def test_a_name_that_is_none():
    with pytest.raises(ConfigError, match="laion-v1-l14"):
        open_head("laion-v1-14")
    with pytest.raises(ModelNotFoundError):
        open_head("./none.pth")
