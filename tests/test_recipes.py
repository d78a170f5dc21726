"""The recipes' own arithmetic: statistics, splits, captions, the head's training. No packages."""

import importlib.util
import io
import json
import math
import sys
import tarfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import drawings
import emoji
import emoji_pairs
import finetune
import lit
import mini
import mini_figures as figures
import mini_head as head
import packages
import photographs
import published
import smoke
import wordnet
from PIL import Image

from diptych import towers, zoo
from diptych.config import ViTConfig
from diptych.data.pairs import Pairs
from diptych.train import train
from diptych.train.config import TrainConfig

RECIPES = Path(smoke.__file__).parent


def test_wilson_interval():
    """Brown, Cai and DasGupta 2001: 50 of 96."""
    assert figures.wilson(50, 96) == "52.1 [42, 62]"
    assert figures.wilson(0, 10).startswith("0.0 [0, 28]")


def test_mcnemar_is_the_exact_binomial():
    one = torch.tensor([1] * 9 + [0] + [1] * 20).bool()
    two = torch.tensor([0] * 9 + [1] + [1] * 20).bool()
    assert figures.mcnemar(one, two) == pytest.approx(2 * (1 + 10) / 2**10)
    assert figures.mcnemar(one, one) == 1


def test_sign_flips_see_a_difference_and_no_difference():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(60, generator=generator)
    assert figures.sign_flips(noise + 0.5, noise) < 0.001
    assert figures.sign_flips(noise, noise[torch.randperm(60, generator=generator)]) > 0.1


def test_average_precision():
    scores, relevant = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0])
    assert figures.average_precision(scores, relevant) == pytest.approx((1 + 2 / 3) / 2)


def test_calibration_error():
    sure = torch.full((100,), 0.8)
    right = torch.arange(100) < 80
    assert figures.calibration_error(sure, right) == pytest.approx(0, abs=1e-6)
    assert figures.calibration_error(sure, right & (torch.arange(100) < 50)) == pytest.approx(0.3)


def test_the_scale_is_found_again():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(4000, 10, generator=generator) * 0.6
    right = torch.multinomial((12 * cosines).softmax(1), 1, generator=generator)[:, 0]
    assert math.exp(head.fit_scale([(cosines, right)])) == pytest.approx(12, rel=0.05)


def test_the_split_is_fixed_and_about_half():
    assert [photographs.is_reported(x) for x in ("giraffe", "hammer", "owl")] == [True, False, True]
    labels = [f"label {i}" for i in range(1000)]
    assert 450 < sum(map(photographs.is_reported, labels)) < 550


def test_forty_nouns():
    assert len(photographs.NOUNS) == len(set(photographs.NOUNS)) == 40


@pytest.mark.parametrize(
    ("stem", "words"), [("screwDriver2", "screw driver"), ("red_panda", "red panda")]
)
def test_names_of_files(stem, words):
    assert photographs._words(stem) == words


def test_captions():
    assert photographs._label("A peacock (a male peafowl).") == "peacock"
    assert drawings.caption_of("Frog_mascot 12", {"frog", "mascot"}) == "frog mascot"
    assert drawings.caption_of("tuxqwe", {"frog"}) is None
    assert drawings.colour_word("a red flower") == "red"
    assert drawings.colour_word("red") is None and drawings.colour_word("red and blue car") is None


def test_wordnet_file(tmp_path):
    folder = tmp_path / "wordnet-base/usr/share/wordnet"
    folder.mkdir(parents=True)
    lines = [
        "  1 a licence",
        '00000001 03 n 01 entity 0 000 | that which is; "it is"',
        "00000002 03 n 02 dog 0 wild_dog 0 001 @ 00000001 n 0000 | an animal",
    ]
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    nouns = wordnet.read(tmp_path)
    assert nouns["00000002"] == wordnet.Noun(("dog", "wild dog"), "an animal", ("00000001",))
    assert nouns["00000001"].gloss == "that which is"
    assert wordnet.ancestors(nouns, "00000002") == {"00000001": 1}
    assert [wordnet.depth(nouns, offset) for offset in nouns] == [0, 1]


def test_a_correction_is_learned_and_is_the_same_twice():
    generator = torch.Generator().manual_seed(0)
    k, e, d, n = 30, 16, 24, 200

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    concepts, below = head.unit(rand(k, e)), torch.rand(k, 5, generator=generator) < 0.3
    below[0] = False  # a class with no general noun above it
    classifier = rand(k, d), torch.zeros(k)
    views = rand(2, n, d).relu()
    p = (views[0] @ classifier[0].T).softmax(-1)
    wanted = head.unit(rand(k, e))  # what the classes would have to mean
    captions = head.unit(p @ wanted)

    def learned(steps: int) -> torch.Tensor:
        general = head.Hypernyms(concepts[:5], below)
        sizes = {"num_drawn": 64, "num_made": 16, "top": 10, "penalty": 0.01, "steps": steps}
        parts = (concepts, concepts, general, classifier, views, captions, torch.arange(n))
        return head.learn(*parts, seed=0, **sizes)

    def cosine(correction: torch.Tensor) -> float:
        return float((head.unit(p @ (concepts + correction)) * captions).sum(1).mean())

    correction = learned(200)
    assert torch.equal(correction, learned(200))
    assert cosine(correction) > cosine(torch.zeros_like(correction)) + 0.1


def test_what_is_stored_how():
    config = zoo.get("mini").config
    shapes = zoo.checkpoint.expected_shapes(config)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    whole, half = set(mini.in_int8(state)), mini.in_half(state)
    assert not whole & half
    size = sum(t.numel() * (1 if k in whole else 2 if k in half else 4) for k, t in state.items())
    assert size < 31e6
    assert "visual.proj.concepts" in half and "text.token_embedding.weight" in whole


def test_a_package_must_be_the_one_that_was_used(tmp_path):
    package = packages.PACKAGES[0]
    with pytest.raises(ValueError, match="missing"):
        packages.check(tmp_path, package)
    (tmp_path / package.file).write_bytes(b"another")
    with pytest.raises(ValueError, match="SHA-256"):
        packages.check(tmp_path, package)


# --- training -----------------------------------------------------------------------------------

# facts of the publishers: batch, peak rate, decay, beta 2, warm-up, pairs; see each docstring
PUBLISHED = {
    "openai_vit_b32": (32_768, 5e-4, 0.2, 0.98, 2000, 12.8e9),
    "openai_vit_l14": (32_768, 4e-4, 0.2, 0.98, 2000, 12.8e9),
    "laion2b_vit_b32": (96 * 824, 1e-3, 0.2, 0.98, 2000, 34.7e9),
    "laion2b_vit_h14": (96 * 824, 5e-4, 0.2, 0.98, 2000, 34.7e9),
    "datacomp_small": (4096, 5e-4, 0.2, 0.98, 500, 12.8e6),
    "datacomp_medium": (4096, 5e-4, 0.2, 0.98, 500, 128e6),
    "datacomp_large": (8192, 5e-4, 0.2, 0.98, 500, 1.28e9),
    "datacomp_xlarge": (90_112, 1e-3, 0.2, 0.95, 10_000, 12.8e9),
    "siglip_vit_b16": (32_768, 1e-3, 1e-4, 0.95, 20_000, 45e9),
    "siglip2_vit_b16": (32_768, 1e-3, 1e-4, 0.95, 20_000, 40e9),
    "clipa_h14": (65_536, 8e-6 * 256, 0.2, 0.95, 3200, 12.8e9),
    "clipa_h14_224": (32_768, 4e-7 * 128, 0.2, 0.95, 800, 512e6),
    "clipa_h14_336": (16_384, 1e-7 * 64, 0.2, 0.95, 1600, 131e6),
    "metaclip_vit_b32": (64 * 512, 5e-4, 0.2, 0.98, 2000, 12.8e9),
    "metaclip_vit_l14": (128 * 256, 4e-4, 0.2, 0.98, 2000, 12.8e9),
}


@pytest.mark.parametrize("recipe", published.RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_published_recipe(recipe):
    run, said = recipe(), published.facts(recipe)
    assert set(said) == {"source", "hardware", "cost", "expected"}
    row = zoo.get(run.model.build)
    assert towers.outline(row.config).visual.cfg == row.config.visual
    if recipe is published.clipa_h14_one_run:
        return  # ours
    batch, rate, decay, beta, warmup, pairs = PUBLISHED[recipe.__name__]
    assert run.batch_size == batch and run.optim.lr == pytest.approx(rate)
    assert run.optim.weight_decay == decay and run.optim.betas == (0.9, beta)
    assert run.schedule.warmup == warmup
    assert run.steps * run.batch_size == pytest.approx(pairs, rel=2e-3)
    number, tag = said["expected"].split(",")[0].rstrip(")").split(" (")
    assert zoo.get(tag).metrics["imagenet1k_zero_shot"] == float(number)


def test_the_stages_of_clipa_are_those_of_the_three_runs():
    run = published.clipa_h14_one_run()
    sizes = [stage.image_size for stage in run.stages]
    assert sizes == [84, 224, 336]
    shares = [stage.start for stage in run.stages]
    assert shares == pytest.approx([0, 12.81e9 / 13.45e9, 13.32e9 / 13.45e9], abs=1e-3)


def test_the_table_has_every_recipe_once():
    lines = published.table().splitlines()
    assert [line.split()[1] for line in lines[2:]] == [r.__name__ for r in published.RECIPES]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    "recipe",
    [smoke.smoke, emoji.cpu, emoji.gpu, finetune.finetune, finetune.lora, lit.lit, lit.siglip],
    ids=lambda recipe: f"{recipe.__module__}-{recipe.__name__}",
)
def test_a_recipe_is_a_config_that_builds(recipe):
    run = recipe()
    assert isinstance(run, TrainConfig)
    config = run.model.clip or zoo.get(run.model.start).config
    model = towers.outline(config)
    names = {name for name, _ in model.named_parameters()}
    for start in run.model.freeze:
        assert any(name.startswith(f"{start}.") for name in names)
    if isinstance(config.visual, ViTConfig) and run.model.clip:
        assert run.model.preprocess.size == config.visual.image_size
        assert run.model.tokenizer.context_length == config.text.context_length


@pytest.mark.parametrize("name", ["smoke", "emoji", "finetune", "lit", "published"])
def test_a_recipe_is_read_from_its_file(name):
    """As the command line does; its function is named like the file, or is asked for by name."""
    spec = importlib.util.spec_from_file_location(f"alone_{name}", RECIPES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert name in vars(module) or name in ("emoji", "published")


def test_the_pairs_of_smoke(tmp_path):
    train, held_out = smoke.lists(tmp_path)
    before = train.stat()
    assert smoke.lists(tmp_path) == (train, held_out)
    assert train.stat() == before, "written again while a reader may be at work"
    sizes = [Pairs.open(str(path), folder=tmp_path / "index").size for path in (train, held_out)]
    assert sizes == [24, 4]


@pytest.mark.slow
def test_smoke_learns_and_is_the_same_twice(tmp_path):
    run = smoke.smoke()
    ends = [train(run, tmp_path / name) for name in ("one", "two")]
    lines = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"]
    assert losses[0] == pytest.approx(math.log(run.batch_size), abs=0.7)
    assert losses[-1] < math.log(run.batch_size) / 2
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert all(end["steps"] == run.steps for end in ends)


@pytest.mark.parametrize(
    ("hexcode", "about"),
    [
        ("1F600", {"1F600"}),
        ("1F468-200D-1F692", {"1F692"}),  # man firefighter
        ("1F44B-1F3FB", {"1F44B"}),  # waving hand: light skin tone
        ("1F3C3-1F3FF-200D-2642-FE0F", {"1F3C3"}),  # man running: dark skin tone
        ("2764-FE0F-200D-1F525", {"2764", "1F525"}),  # heart on fire
        ("1F468-200D-1F469-200D-1F466", {"1F468"}),  # a family has nothing beside persons
        ("2640-FE0F", {"2640"}),  # female sign
        ("0031-FE0F-20E3", {"0031"}),  # keycap: 1
    ],
)
def test_what_an_emoji_is_about(hexcode, about):
    assert emoji_pairs.bases(hexcode) == about


def test_what_shares_a_code_point_is_in_one_part():
    hexcodes = [f"{i:X}" for i in range(0x1F300, 0x1F700)]
    joined = ["1F300-200D-1F301", "1F301-200D-1F302", "1F468-200D-1F300", "1F300-1F3FB"]
    part = emoji_pairs.parts(hexcodes + joined)
    assert len({part[h] for h in ("1F300", "1F301", "1F302", *joined)}) == 1
    held_out = sum(p != "train" for p in part.values()) / len(part)
    assert 0.15 < held_out < 0.25


@pytest.fixture
def unpacked(tmp_path):
    """Two emoji in three sets, one of them held out, and three drawings of clip art."""
    test = next(
        f"{i:X}"
        for i in range(0x1F300, 0x1F700)
        if emoji_pairs.parts([f"{i:X}"]) == {f"{i:X}": "test"}
    )
    train = next(
        f"{i:X}"
        for i in range(0x1F300, 0x1F700)
        if emoji_pairs.parts([f"{i:X}"]) == {f"{i:X}": "train"}
    )
    rows = [
        {"label": "Owl", "hexcode": test, "group": 3, "tags": ["bird"]},
        {"label": "nest", "hexcode": train, "group": 3, "tags": ["owl", "bird", "nest"]},
        {"label": "flag: owl", "hexcode": "1F1E6-1F1E8", "group": 9},
    ]
    table = tmp_path / "emojibase-data/package/en/data.json"
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps(rows))
    for package, folder, _ in emoji_pairs.SETS.values():
        pictures = tmp_path / package / folder.replace("*", "package")
        pictures.mkdir(parents=True)
        for hexcode in (test, train):
            Image.new("RGBA", (20, 40), (0, 90, 0, 255)).save(pictures / f"{hexcode.lower()}.png")
    clip_art = tmp_path / "openclipart-png/usr/share/openclipart/png/animals"
    sources = tmp_path / "openclipart-svg/usr/share/openclipart/svg/animals"
    for folder in (clip_art, sources):
        folder.mkdir(parents=True)
    for name in ("owl", "brown_owl_01", "nest"):
        Image.new("RGBA", (9, 9), (90, 0, 0, 255)).save(clip_art / f"{name}.png")
        words = "<rdf:li>owl</rdf:li><rdf:li>bird</rdf:li><rdf:li>xyzzy</rdf:li>"
        (sources / f"{name}.svg").write_text(f"<dc:title></dc:title>{words}")
    nouns = tmp_path / "wordnet-base/usr/share/wordnet/data.noun"
    nouns.parent.mkdir(parents=True)
    rows = [f"{i:08} 05 n 01 {word} 0 000 | x" for i, word in enumerate(("owl", "bird", "nest"), 1)]
    nouns.write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_held_out_name_is_nowhere_in_training(unpacked):
    found = emoji_pairs.pairs(unpacked)
    assert {(p.part, p.captions) for p in found if p.source == "noto"} == {
        ("test", ("Owl",)),
        ("train", ("nest", "nest, bird")),
    }
    clip_art = [pair.captions for pair in found if pair.source == "openclipart"]
    assert clip_art == [("brown owl", "brown owl, bird"), ("nest", "nest, bird")]
    said = {
        emoji_pairs.plain(part)
        for pair in found
        if pair.part == "train"
        for caption in pair.captions
        for part in (caption, *caption.split(", "))
    }
    assert "owl" not in said and "brown owl" in said


def test_packed_pairs_are_the_same_bytes_and_are_read_back(unpacked, tmp_path):
    found = emoji_pairs.pairs(unpacked)
    counts = emoji.pack_pairs(found, tmp_path / "one")
    assert emoji.pack_pairs(found, tmp_path / "two") == counts
    assert counts["train-00.tar"] == 5 and counts["test-fluent.tar"] == 1
    for name in counts:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    names, pictures = emoji.unpack(tmp_path / "one" / "test-noto.tar")
    assert names == ["Owl"]
    with Image.open(io.BytesIO(pictures[0])) as image:
        assert image.size == (44, 44) and image.getpixel((2, 22)) == (255, 255, 255)
    with tarfile.open(tmp_path / "one" / "train-00.tar") as tar:
        assert len({name.partition(".")[0] for name in tar.getnames()}) == 5
    train = str(tmp_path / "one" / "train-*.tar")
    assert Pairs.open(train, folder=tmp_path / "index").size == 5
