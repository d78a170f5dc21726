"""Prompt sets: whole, unchanged, and found by name."""

import hashlib
import json
import subprocess
import sys

import pytest

from diptych.engine.prompts import PROMPT_SETS, TEMPLATE_SETS, fill, templates_of
from diptych.errors import ConfigError

# templates of openai/CLIP, data/prompts.md
OPENAI = {
    "birdsnap": 1,
    "cifar10": 18,
    "cifar100": 18,
    "clevr-counts": 1,
    "caltech101": 34,
    "country211": 5,
    "dtd": 8,
    "eurosat": 3,
    "fgvc-aircraft": 2,
    "fer2013": 6,
    "flowers102": 1,
    "food101": 1,
    "gtsrb": 3,
    "hateful-memes": 1,
    "kitti": 1,
    "kinetics700": 28,
    "mnist": 1,
    "oxford-pets": 1,
    "voc2007": 1,
    "pcam": 1,
    "resisc45": 18,
    "rendered-sst2": 1,
    "stl10": 2,
    "sun397": 2,
    "stanford-cars": 8,
    "ucf101": 48,
}


def test_the_eighty_are_the_notebooks():
    text = "\n".join(TEMPLATE_SETS["openai-80"]).encode()
    assert hashlib.sha256(text).hexdigest() == (
        "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"
    )
    assert set(TEMPLATE_SETS["openai-7"]) <= set(TEMPLATE_SETS["openai-80"])


def test_counts_of_the_26_further_sets():
    assert {name: len(TEMPLATE_SETS[f"openai-{name}"]) for name in OPENAI} == OPENAI


@pytest.mark.parametrize("name", TEMPLATE_SETS)
def test_a_set_is_what_its_hash_says(name):
    found = PROMPT_SETS[name]
    assert hashlib.sha256("\n".join(found.templates).encode()).hexdigest() == found.sha256
    assert found.name == name
    assert found.source
    assert found.licence
    assert all("{}" in template and "{c}" not in template for template in found.templates)
    assert len(set(found.templates)) == len(found.templates)
    assert TEMPLATE_SETS[name] == templates_of(name) == found.templates


def test_protocols_that_are_mixed_up_elsewhere():
    assert len(TEMPLATE_SETS["clip-benchmark-resisc45"]) == 4
    assert TEMPLATE_SETS["coop-dtd"] == ("{} texture.",)
    assert TEMPLATE_SETS["openai-mnist"] == ('a photo of the number: "{}".',)
    assert TEMPLATE_SETS["openai-kitti"] == ("{}",)
    assert TEMPLATE_SETS["coop-1"] == TEMPLATE_SETS["photo"] == ("a photo of a {}.",)
    assert TEMPLATE_SETS["satellite"] == TEMPLATE_SETS["openai-resisc45"]
    assert "Diptych's own" in PROMPT_SETS["medical"].source


def test_one_more_name_is_no_set():
    with pytest.raises(ConfigError, match=r"no prompt set 'openai-food10'.*openai-food101"):
        templates_of("openai-food10")


@pytest.mark.parametrize(
    ("wrong", "told"), [([], "empty list"), (["a photo"], "has no '{}'"), ([3], "has no '{}'")]
)
def test_templates_that_cannot_be_filled(wrong, told):
    with pytest.raises(ConfigError, match=told):
        templates_of(wrong)


def test_every_place_is_filled_and_braces_of_a_label_stay():
    assert fill("{} and {}", "a {}") == "a {} and a {}"
    assert templates_of(None) == ("{}",)
    assert templates_of(["x {}"]) == ("x {}",)


def test_importing_opens_no_file():
    code = (
        "import sys, json\n"
        "opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        "import diptych.engine.prompts, diptych.eval.classes, diptych.eval.published\n"
        "import diptych.eval.robustness\n"
        "print(json.dumps([f for f in opened if f.endswith('.json') and 'assets' in f]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == []
