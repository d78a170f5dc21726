"""What all tests share: shapes checked while they run, tiny configs, a seed."""

import typing

import beartype  # noqa: F401  (imported whole, before TYPE_CHECKING changes below)
import pytest
import torch
import torch.utils.checkpoint
from jaxtyping import install_import_hook

from diptych.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

# The model imports jaxtyping for type checkers only: it is no run-time dependency. The hook needs
# those names, so these modules, and nothing that they import, see TYPE_CHECKING as true.
typing.TYPE_CHECKING = True
try:
    with install_import_hook(["diptych.model", "diptych.towers"], "beartype.beartype"):
        import diptych.towers  # noqa: F401
finally:
    typing.TYPE_CHECKING = False


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test asks a host; those of downloads say so, and ask a server of their own."""
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """No cache but an empty one in `tmp_path`, and no setting of the person who runs the tests."""
    for name in ("HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "DIPTYCH_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny_vit() -> ViTConfig:
    return ViTConfig(
        image_size=(32, 32), patch_size=8, width=32, layers=3, heads=4, mlp_dim=64, act="quick_gelu"
    )


@pytest.fixture
def tiny_text() -> TextConfig:
    return TextConfig(
        context_length=16, vocab_size=64, width=32, layers=3, heads=4, mlp_dim=64, act="quick_gelu"
    )


@pytest.fixture
def tiny_resnet() -> ResNetConfig:
    return ResNetConfig(image_size=(64, 64), layers=(1, 2, 1, 1), width=8, heads=4)


@pytest.fixture
def tiny_clip(tiny_vit, tiny_text) -> CLIPConfig:
    return CLIPConfig(embed_dim=24, visual=tiny_vit, text=tiny_text)


@pytest.fixture
def ids() -> torch.Tensor:
    """Three texts of 16 ids in CLIP's manner: start 62, end 63, padded with 0."""
    ids = torch.randint(1, 62, (3, 16))
    ids[:, 0] = 62
    for row, length in zip(ids, (5, 9, 16), strict=True):
        row[length - 1] = 63
        row[length:] = 0
    return ids
