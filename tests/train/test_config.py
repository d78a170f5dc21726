"""Settings: what --set makes of them, what it refuses, and that JSON loses nothing."""

import ast
import dataclasses
import json
import subprocess
import sys
import types
import typing
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.config import from_dict, to_dict
from diptych.errors import ConfigError
from diptych.train.config import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    Source,
    Stage,
    TrainConfig,
    changed,
    settings_of,
)

BASE = TrainConfig(steps=10)


def value_of(config, key: str):
    for part in key.split("."):
        config = vars(type(config))[part].__get__(config)
    return config


def leaves(cls=TrainConfig, where: str = "") -> dict:
    """key -> type of every setting of plain values."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= leaves(hint, f"{where}{name}.")
        elif not any(dataclasses.is_dataclass(arg) for arg in typing.get_args(hint)):
            found[f"{where}{name}"] = hint
    return found


def texts(hint) -> st.SearchStrategy:
    """(what is typed, what is meant) for a type."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is types.UnionType:
        none = st.sampled_from(["none", "None", "null"]).map(lambda text: (text, None))
        return none | texts(args[0])
    if origin is Literal:
        return st.sampled_from(args).map(lambda text: (text, text))
    if origin is tuple:
        inside = texts(args[0])
        rising = st.tuples(inside, inside).map(
            lambda two: sorted(two, key=lambda part: part[1])
        )  # as `ratio` and `scale` must be
        some = st.lists(inside, max_size=3) if args[-1] is Ellipsis else rising
        return some.map(
            lambda parts: (f"({', '.join(t for t, _ in parts)})", tuple(v for _, v in parts))
        )
    if hint is bool:
        return st.sampled_from([("true", True), ("No", False), ("1", True), ("false", False)])
    if hint is str:
        plain = st.text("abcxyz/_-.0", min_size=1, max_size=9).filter(lambda t: t != "none")
        return plain.map(lambda text: (text, text))
    numbers = st.floats(1e-9, 1, exclude_min=True) if hint is float else st.integers(1, 10**9)
    return numbers.map(lambda number: (repr(number), number))


# Of these not every value is one.
BOUND = {"name", "logit_scale_max", "loss.teacher_weight", "evaluate.every"}
LEAVES = {key: hint for key, hint in leaves().items() if key not in BOUND}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_what_is_typed_is_what_is_set_and_json_loses_nothing(data):
    key = data.draw(st.sampled_from(sorted(LEAVES)))
    text, meant = data.draw(texts(LEAVES[key]))
    if key in ("steps", "epochs") and meant is None:
        return  # one of the two is needed
    config = changed(BASE, f"{key}={text}")
    assert value_of(config, key) == meant
    assert type(value_of(config, key)) is type(meant)
    others = {k: v for k, v in settings_of(config) if k not in (key, "steps", "epochs")}
    assert others == {k: v for k, v in settings_of(BASE) if k in others}
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_every_setting_is_listed_once():
    keys = [key for key, _ in settings_of(BASE)]
    assert len(keys) == len(set(keys))
    assert set(LEAVES) - {"model.build"} <= {*keys, "model.build"}


def test_a_recipe_with_everything_in_it_survives_json():
    config = TrainConfig(
        epochs=0.5,
        model=ModelConfig(start=None, build="ViT-B-32/openai", lora=LoraConfig(rank=2)),
        data=DataConfig(sources=(Source(path="a", weight=0.1), Source(path="b", weight=1 / 3))),
        evaluate=EvalConfig(sources=(Source(path="c", caption_key="text"),)),
        stages=(Stage(start=0.0, image_size=64), Stage(start=1 / 3, context_length=16)),
        report_to=("tensorboard",),
    )
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("optim.lrr=1", r"no setting 'optim\.lrr'\. Nearest: lr"),
        ("optimm.lr=1", r"no setting 'optimm'\. Nearest: optim"),
        ("batchsize=8", r"no setting 'batchsize'\. Nearest: batch_size"),
        ("model.lora.rnk=8", r"no setting 'model\.lora\.rnk'\. Nearest: rank"),
        ("optim.lr", r"write KEY=VALUE"),
        ("=3", r"write KEY=VALUE"),
        ("optim.lr=fast", r"optim\.lr must be a number, got 'fast'"),
        ("optim.lr=", r"optim\.lr must be a number"),
        ("batch_size=8.5", r"batch_size must be a whole number, got '8\.5'"),
        ("batch_size=True", r"batch_size must be a whole number"),
        ("batch_size=0", r"batch_size=0: give a number above 0"),
        ("batch_size=-8", r"give a number above 0"),
        ("steps=none", r"give one of the two"),
        ("micro_batch=0", r"micro_batch=0: give a number above 0"),
        ("ema=1.5", r"ema=1\.5: give a number from 0 to 1"),
        ("precision=fp8", r"precision must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        ("optim.betas=0.9", r"optim\.betas must be 2 values, got '0\.9'"),
        ("optim.betas=(0.9, x)", r"optim\.betas must be a number, got 'x'"),
        ("trim=maybe", r"trim must be true or false"),
        ("checkpoints.every=0", r"checkpoints\.every=0: give a number above 0"),
        ("optim.lr=-1", r"optim\.lr=-1\.0: give a number from 0"),
        ("evaluate.every=5", r"evaluate\.every=5: there is nothing to measure on"),
        ("model.clip.embed_dim=3", r"model\.clip is set in a recipe, as a whole"),
        ("optim=adamw", r"optim is set in a recipe, or by its own settings: optim\.NAME"),
        ("optim.lr.x=3", r"'optim\.lr' has no settings of its own"),
        ("optim.lr=__import__('os').getpid()", r"must be a number"),
    ],
)
def test_what_cannot_be_set_says_so(setting, told):
    with pytest.raises(ConfigError, match=told):
        changed(BASE, setting)


def test_steps_and_epochs_replace_each_other():
    config = changed(BASE, "epochs=2")
    assert (config.steps, config.epochs) == (None, 2)
    config = changed(config, "steps=1e3")
    assert (config.steps, config.epochs) == (1000, None)
    with pytest.raises(ConfigError, match="give one of the two"):
        changed(BASE, "steps=3", "epochs=3")


def test_settings_that_are_only_valid_together_may_come_in_any_order():
    both = ("data.augment.ratio=(3, 4)", "data.augment.scale=(0.2, 0.4)")
    assert changed(BASE, *both) == changed(BASE, *reversed(both))


def test_adapters_are_asked_for_by_their_settings():
    config = changed(BASE, "model.lora.rank=4", "model.lora.targets=q_proj,k_proj")
    assert config.model.lora == LoraConfig(rank=4, targets=("q_proj", "k_proj"))
    assert changed(config, "model.lora=none").model.lora is None


def test_sources_are_paths():
    config = changed(BASE, "data.sources=a.csv,b-{0000..0003}.tar")
    assert [source.path for source in config.data.sources] == ["a.csv", "b-{0000..0003}.tar"]


@pytest.mark.parametrize("starts", [(0.5, 0.25), (0.5, 0.5), (1.0,), (-0.1,)])
def test_stages_rise(starts):
    with pytest.raises(ConfigError, match="stages start at"):
        TrainConfig(steps=1, stages=tuple(Stage(start=start) for start in starts))


def test_no_torch_is_needed_to_read_a_recipe():
    code = "import sys, diptych.train.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_literals_are_what_they_look_like():
    """`--set help` prints values that `--set` takes back."""
    for key, value in settings_of(BASE):
        if key in LEAVES and key not in ("steps", "epochs", "model.start"):
            again = changed(BASE, f"{key}={value}")
            assert value_of(again, key) == value, key
            assert value is None or isinstance(value, str) or ast.literal_eval(repr(value)) == value
