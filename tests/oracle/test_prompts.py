"""Prompt sets, class lists and classifiers against open_clip and clip-benchmark."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peers import open_clip, open_clip_by_name, ours, torchvision_stub
from report import record

from diptych import zoo
from diptych.engine import Encoder
from diptych.engine.prompts import TEMPLATE_SETS
from diptych.eval.classes import class_list
from diptych.eval.zeroshot import zero_shot_weights
from diptych.preprocess import Preprocess
from diptych.zoo.keymaps import OPEN_CLIP

SECTION = "Prompts and class names"


def differing(mine, theirs) -> int:
    """Lines that are not the same at the same place."""
    mine, theirs = list(mine), list(theirs)
    same = sum(a == b for a, b in zip(mine, theirs, strict=False))
    return max(len(mine), len(theirs)) - same


def check(what: str, mine, theirs, peer: str) -> None:
    found = differing(mine, theirs)
    record(SECTION, what, found, 0, peer)
    assert found == 0


def first_names(name: str) -> list[str]:
    return [names[0] for names in class_list(name).names]


def test_imagenet_is_open_clips():
    theirs = open_clip()
    eighty = [fill("{}") for fill in theirs.OPENAI_IMAGENET_TEMPLATES]
    seven = [fill("{}") for fill in theirs.SIMPLE_IMAGENET_TEMPLATES]
    peer = "open_clip_torch"
    check("openai-80, strings that differ", TEMPLATE_SETS["openai-80"], eighty, peer)
    check("openai-7, strings that differ", TEMPLATE_SETS["openai-7"], seven, peer)
    check(
        "ImageNet's names, strings that differ",
        first_names("imagenet"),
        theirs.IMAGENET_CLASSNAMES,
        peer,
    )


@pytest.fixture(scope="module")
def benchmark() -> Path:
    torchvision_stub()
    pytest.importorskip("clip_benchmark")
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets"


# clip-benchmark's names of the sets whose names it shares with OpenAI, word for word
SHARED_NAMES = {
    "flowers": "flowers102",
    "gtsrb": "gtsrb",
    "country211": "country211",
    "caltech101": "caltech101",
    "mnist": "mnist",
    "kitti_closest_vehicle_distance": "kitti",
    "pcam": "pcam",
}
SHARED_TEMPLATES = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "food101": "food101",
    "sun397": "sun397",
    "cars": "stanford-cars",
    "fgvc_aircraft": "fgvc-aircraft",
    "dtd": "dtd",
    "pets": "oxford-pets",
    "caltech101": "caltech101",
    "flowers": "flowers102",
    "mnist": "mnist",
    "stl10": "stl10",
    "eurosat": "eurosat",
    "gtsrb": "gtsrb",
    "country211": "country211",
    "renderedsst2": "rendered-sst2",
    "voc2007": "voc2007",
    "fer2013": "fer2013",
    "kitti_closest_vehicle_distance": "kitti",
}
OTHERS = {
    "resisc45": "resisc45",
    "pcam": "pcam",
    "clevr_count_all": "clevr-counts",
    "svhn": "svhn",
    "dmlab": "dmlab",
}


def test_openais_sets_are_those_that_clip_benchmark_has(benchmark):
    """OpenAI's were read from its own file; clip-benchmark took them by way of another project."""
    names = json.loads((benchmark / "en_classnames.json").read_text("utf-8"))
    theirs = [name for key in SHARED_NAMES for name in names[key]]
    mine = [name for key in SHARED_NAMES.values() for name in first_names(key)]
    check("names of 7 sets, strings that differ", mine, theirs, "clip-benchmark")
    file = benchmark / "en_zeroshot_classification_templates.json"
    templates = json.loads(file.read_text("utf-8"))
    theirs = [t.replace("{c}", "{}") for key in SHARED_TEMPLATES for t in templates[key]]
    mine = [t for key in SHARED_TEMPLATES.values() for t in TEMPLATE_SETS[f"openai-{key}"]]
    check("templates of 19 sets, strings that differ", mine, theirs, "clip-benchmark")
    for key, name in (SHARED_TEMPLATES | OTHERS).items():
        theirs = [t.replace("{c}", "{}") for t in templates[key]]
        assert list(TEMPLATE_SETS[f"clip-benchmark-{name}"]) == theirs


def test_where_clip_benchmark_is_another_protocol(benchmark):
    names = json.loads((benchmark / "en_classnames.json").read_text("utf-8"))
    for key, name in (
        ("eurosat", "eurosat"),
        ("fer2013", "fer2013"),
        ("clevr_count_all", "clevr-counts"),
        ("pets", "oxford-pets"),
    ):
        assert first_names(f"clip-benchmark-{name}") == names[key]
        assert first_names(name) != names[key]


@pytest.fixture(scope="module")
def twins() -> tuple[Encoder, torch.nn.Module]:
    """Our encoder in fp32 and open_clip's model on the same random tensors."""
    row, peer = zoo.get("ViT-B-32/openai"), open_clip_by_name("ViT-B-32", quick_gelu=True)
    encoder = Encoder(
        ours(row.config, peer, OPEN_CLIP),
        config=row.config,
        preprocess=Preprocess(row.preprocess),
        tokenizer=row.tokenizer,
        precision="fp32",
        device="cpu",
    )
    return encoder, peer


def test_the_classifier_is_open_clips(twins):
    encoder, peer = twins
    names, templates = first_names("imagenet")[:12], TEMPLATE_SETS["openai-80"][:10]
    mine = zero_shot_weights(encoder, names, templates, cache=False)
    tokenizer = open_clip().get_tokenizer("ViT-B-32")
    with torch.no_grad():
        theirs = open_clip().build_zero_shot_classifier(peer, tokenizer, names, templates).T
    difference = float((mine - theirs).abs().max())
    record(SECTION, "classifier, 12 classes x 10 templates", difference, 2e-6, "open_clip_torch")
    assert difference <= 2e-6


def test_the_classifier_is_clip_benchmarks(twins, benchmark):
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    encoder, peer = twins
    names, templates = first_names("food101")[:10], TEMPLATE_SETS["clip-benchmark-cifar10"]
    mine = zero_shot_weights(encoder, names, templates, cache=False)
    tokenizer = open_clip().get_tokenizer("ViT-B-32")
    fields = [template.replace("{}", "{c}") for template in templates]
    theirs = zero_shot_classifier(peer, tokenizer, names, fields, "cpu", amp=False).T
    difference = float((mine - theirs).abs().max())
    record(SECTION, "classifier, 10 classes x 18 templates", difference, 2e-6, "clip-benchmark")
    assert difference <= 2e-6
