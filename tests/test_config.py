"""Configs: exact round trips, and every wrong value an error that names it."""

import json
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych import config
from diptych.config import (
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
    from_dict,
    register,
    to_dict,
)
from diptych.errors import ConfigError

VIT = ViTConfig(image_size=(32, 48), patch_size=8, width=32, layers=2, heads=4, mlp_dim=64)
RESNET = ResNetConfig(image_size=(64, 64), layers=(1, 2, 3, 4), width=8, heads=4)
TEXT = TextConfig(context_length=16, vocab_size=99, width=32, layers=2, heads=4, mlp_dim=64)
ALL = [
    VIT,
    replace(VIT, class_token=False, pool="map", ln_eps=1e-6, act="gelu_tanh", patch_dropout=0.5),
    RESNET,
    TEXT,
    replace(TEXT, pool="eos", eos_id=2, pad_id=0),
    CLIPConfig(embed_dim=8, visual=VIT, text=TEXT),
    CLIPConfig(embed_dim=8, visual=RESNET, text=TEXT, loss="sigmoid"),
    PreprocessConfig(size=(224, 224)),
    PreprocessConfig(size=(384, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash"),
    TokenizerConfig(kind="clip_bpe", context_length=77),
    TokenizerConfig(kind="sentencepiece", context_length=64, file="t.model", bos_id=None, eos_id=1),
]


@pytest.mark.parametrize("cfg", ALL, ids=lambda cfg: f"{ALL.index(cfg)}-{type(cfg).__name__}")
def test_round_trip_through_json(cfg):
    data = to_dict(cfg)
    assert from_dict(json.loads(json.dumps(data))) == cfg
    assert to_dict(from_dict(data)) == data
    assert hash(cfg) == hash(from_dict(data))
    with pytest.raises(FrozenInstanceError):
        setattr(cfg, fields(cfg)[0].name, 1)


def test_grid():
    assert VIT.grid == (4, 6)
    assert RESNET.grid == (2, 2)


def changed(cfg, **changes):
    data = {**to_dict(cfg), **changes}
    return {key: value for key, value in data.items() if value is not ...}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "a config is a dict with a 'type'"),
        ([], "a config is a dict with a 'type'"),
        ({"type": "VitConfig"}, "unknown config type 'VitConfig'. Nearest: ViTConfig"),
        (changed(VIT, widht=3), "ViTConfig: unknown key 'widht'. Nearest: width"),
        (changed(VIT, width=...), "ViTConfig: missing key 'width'"),
        (changed(VIT, width="32"), "ViTConfig.width must be int, got '32'"),
        (changed(VIT, width=True), "ViTConfig.width must be int, got True"),
        (changed(VIT, width=32.0), "ViTConfig.width must be int, got 32.0"),
        (changed(VIT, class_token=1), "ViTConfig.class_token must be bool, got 1"),
        (
            changed(VIT, act="relu"),
            "ViTConfig.act must be one of 'quick_gelu', 'gelu', 'gelu_tanh'",
        ),
        (changed(VIT, image_size=32), "ViTConfig.image_size must be a list of 2, got 32"),
        (changed(VIT, image_size=[32]), "ViTConfig.image_size must be a list of 2"),
        (changed(VIT, image_size=[32, None]), "ViTConfig.image_size must be int, got None"),
        (changed(VIT, heads=5), "width 32 is not a multiple of heads 5"),
        (changed(VIT, heads=0), "width 32 is not a multiple of heads 0"),
        (changed(VIT, class_token=False), "pool='class' needs class_token=True"),
        (changed(VIT, patch_size=33), "image_size (32, 48) is below patch_size 33"),
        (changed(VIT, patch_dropout=1.0), "patch_dropout must lie in [0, 1), got 1.0"),
        (changed(RESNET, image_size=[16, 64]), "image_size (16, 64) is below the stride, 32"),
        (changed(RESNET, layers=[1, 2, 3]), "ResNetConfig.layers must be a list of 4"),
        (changed(TEXT, pool="eos"), "pool='eos' and eos_id go together"),
        (changed(TEXT, eos_id=3), "pool='eos' and eos_id go together"),
        (changed(TEXT, pad_id="0"), "TextConfig.pad_id must be int, got '0'"),
        (changed(ALL[5], visual=None), "a config is a dict with a 'type', got None"),
        (changed(ALL[5], visual=changed(VIT, width="w")), "ViTConfig.width must be int"),
    ],
)
def test_a_wrong_value_is_named(data, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(data)
    assert message in str(caught.value)


def test_an_integer_is_read_as_float():
    assert from_dict(changed(VIT, ln_eps=1)).ln_eps == 1.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(ALL), st.data())
def test_any_json_is_read_or_refused(cfg, data):
    out = to_dict(cfg)
    key = data.draw(st.sampled_from(sorted(out)))
    out[key] = data.draw(json_values)
    try:
        found = from_dict(out)
    except ConfigError:
        return
    assert to_dict(found) == out or key in ("ln_eps", "patch_dropout", "mean", "std")


@pytest.fixture
def classes(monkeypatch):
    monkeypatch.setattr(config, "_CLASSES", dict(config._CLASSES))


def test_register(classes):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Outer:
        inner: ViTConfig
        sizes: tuple[int, int] = field(default_factory=lambda: (1, 2))

    assert register(register(Outer)) is Outer
    assert from_dict(to_dict(Outer(inner=VIT))) == Outer(inner=VIT)
    assert from_dict({"type": "Outer", "inner": to_dict(VIT)}).sizes == (1, 2)
    with pytest.raises(ConfigError, match=r"Outer\.inner must be ViTConfig"):
        from_dict({"type": "Outer", "inner": to_dict(TEXT)})


def test_register_refuses_what_is_no_dataclass(classes):
    with pytest.raises(ConfigError, match="is not a dataclass"):
        register(int)
