"""A tower of another package: registered by an entry point, then like one of ours."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych import config, towers
from diptych.config import CLIPConfig, ViTConfig
from diptych.errors import ConfigError
from diptych.preprocess.batch import collate, patchify

PLUGIN = Path(__file__).parents[1] / "plugin"


@pytest.fixture
def toy(monkeypatch, tiny_vit):
    monkeypatch.syspath_prepend(PLUGIN)
    towers.families.cache_clear()
    import toy_tower

    base = replace(tiny_vit, class_token=False, pool="map", pre_norm=False)
    yield toy_tower.ToyConfig(patch_size=8, width=32, layers=2, base=base)
    towers.families.cache_clear()
    config._CLASSES.pop("ToyConfig", None)
    sys.modules.pop("toy_tower")


def test_is_found_by_its_entry_point_and_named_in_errors(toy, tiny_text):
    names = [cls.__name__ for cls in towers.families()]
    assert names[-1] == "ToyConfig"
    assert names[:-1] == [
        *("ViTConfig", "ResNetConfig", "EfficientNetConfig", "TextConfig", "BertConfig")
    ]
    with pytest.raises(ConfigError, match=r"no tower is registered for dict; known: .*ToyConfig"):
        towers.build(CLIPConfig(embed_dim=8, visual={}, text=tiny_text))


def test_builds_runs_and_round_trips(toy, tiny_text, ids):
    cfg = CLIPConfig(embed_dim=24, visual=toy, text=tiny_text)
    model = towers.build(cfg)
    assert config.from_dict(config.to_dict(cfg)) == cfg

    images = [torch.randn(3, 16, 40), torch.randn(3, 32, 24), torch.randn(3, 8, 8)]
    batch = collate([patchify(image, 8) for image in images])
    out = model(batch, ids)
    assert out.image_features.shape == (3, 24)
    assert torch.allclose(out.image_features.norm(dim=-1), torch.ones(3))
    # padding reaches no vector: alone and in the batch are the same
    for i, image in enumerate(images):
        alone = model.visual(collate([patchify(image, 8)]))
        assert torch.allclose(alone, model.visual(batch)[i : i + 1], atol=1e-5)

    hidden = model.visual.hidden(batch, layers=(0, -1), attention=(1,))
    assert list(hidden.tokens) == [0, -1]
    padding = hidden.attention[1].masked_select(~batch.mask[:, None, None])
    assert padding.abs().max() == 0


def test_two_classes_of_one_name_are_refused(toy):
    with pytest.raises(ConfigError, match="two config classes are named 'ViTConfig'"):
        config.register(type("ViTConfig", (ViTConfig,), {}))
