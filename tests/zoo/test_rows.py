"""Every row: sizes and work against what was published, and the traps of single tags."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import torch.nn.functional as F

from diptych import towers, zoo
from diptych.config import ResNetConfig, TextConfig, ViTConfig
from diptych.zoo.architectures import ARCHITECTURES
from diptych.zoo.facts import gflops, num_parameters

# total, visual, text, keys: measured on openai/CLIP's own build_model.
OPENAI = {
    "RN50": (102_007_137, 38_316_896, 63_690_240, 489),
    "RN101": (119_688_033, 56_259_936, 63_428_096, 795),
    "RN50x4": (178_300_601, 87_137_080, 91_163_520, 669),
    "RN50x16": (290_979_217, 167_328_912, 123_650_304, 921),
    "RN50x64": (623_258_305, 420_380_352, 202_877_952, 1353),
    "ViT-B-32": (151_277_313, 87_849_216, 63_428_096, 302),
    "ViT-B-16": (149_620_737, 86_192_640, 63_428_096, 302),
    "ViT-L-14": (427_616_513, 303_966_208, 123_650_304, 446),
    "ViT-L-14-336": (427_944_193, 304_293_888, 123_650_304, 446),
}
PUBLISHED = {
    name: tuple(map(float, numbers))
    for name, *numbers in csv.reader(
        line
        for line in (Path(__file__).parent / "published.csv").read_text().splitlines()
        if not line.startswith("#")
    )
}
NAMES = zoo.list_models()


def architecture(tower):
    """A tower's config but for its activation: two tags that differ in it run the same way."""
    return replace(tower, act="gelu") if isinstance(tower, ViTConfig | TextConfig) else tower


SIDES = {
    side: {architecture(getattr(zoo.get(name).config, side)): name for name in reversed(NAMES)}
    for side in ("visual", "text")
}


@pytest.mark.parametrize("name", OPENAI)
def test_the_nine(name):
    total, visual, text, num_keys = OPENAI[name]
    config = zoo.get(f"{name}/openai").config
    assert tuple(num_parameters(config).values()) == (total, visual, text)
    # q, k and v are one tensor in the file, three in ours
    keys = towers.outline(config).state_dict()
    split = sum(k.endswith("attn.k_proj.weight") for k in keys if "attn_pool" not in k)
    assert len(keys) - 4 * split == num_keys


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_work_are_the_published_ones(name):
    row = next(zoo.get(n) for n in NAMES if n.split("/")[0] == name)
    total, visual, text, image_work, text_work = PUBLISHED[name]
    counts = [n / 1e6 for n in num_parameters(row.config).values()]
    assert counts == pytest.approx([total, visual, text], abs=0.0051)  # rounded to 0.01 there
    work = gflops(row)
    assert work["text"] == pytest.approx(text_work, abs=0.0051)
    assert work["image"] + _unneeded(row.config) == pytest.approx(image_work, abs=0.0051)


def _unneeded(config) -> float:
    """GFLOPs that the peer's attention pool spends on rows of which it keeps none."""
    visual = config.visual
    if not isinstance(visual, ResNetConfig):
        return 0
    places, width = visual.grid[0] * visual.grid[1], 32 * visual.width
    projections = 2 * places * width * (width + config.embed_dim)
    attention = 2 * 2 * places * (places + 1) * width
    return (projections + attention) / 1e9


def test_aligns_size_is_the_peers():
    """Millions, of transformers' AlignModel at kakaobrain/align-base's sizes."""
    counts = num_parameters(zoo.get("align/coyo700m").config)
    assert counts["parameters"] / 1e6 == pytest.approx(171.53, abs=0.006)
    assert counts["of them visual"] / 1e6 == pytest.approx(62.14, abs=0.006)


def test_no_two_architectures_are_one():
    assert len(set(ARCHITECTURES.values())) == len(ARCHITECTURES)
    used = {name.split("/")[0] for name in NAMES}
    assert not ARCHITECTURES.keys() - used


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_whole(name):
    row = zoo.get(name)
    assert row.name == name
    assert re.fullmatch(r"[\w.-]+/\w+", name) or isinstance(row.sources[0], zoo.Asset)
    model = towers.outline(row.config)
    assert row.preprocess.size == row.config.visual.image_size
    assert row.tokenizer.context_length <= row.config.text.context_length
    rows, width = model.text.token_embedding.weight.shape
    assert (rows, width) == (row.config.text.vocab_size, row.config.text.width)
    assert all((i or 0) < rows for i in (row.tokenizer.bos_id, row.tokenizer.eos_id))
    assert row.licence
    if not isinstance(row.sources[0], zoo.Asset):
        assert row.non_commercial != (row.licence in {"MIT", "Apache-2.0"})
    assert bool(row.metrics) == bool(row.metrics_source)
    assert all(0 < value < 100 for value in row.metrics.values())
    if row.tokenizer.file != "clip":
        assert all(row.tokenizer.file in s.beside for s in row.sources if isinstance(s, zoo.Hub))
    for golden in row.goldens:
        assert len(golden.texts) == len(golden.probabilities)
        assert golden.source
        if row.config.loss == "softmax":
            assert sum(golden.probabilities) == pytest.approx(1, abs=1e-4)
    for source in row.sources:
        if source.sha256:
            assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", source.sha256)
        if isinstance(source, zoo.Url):
            assert urlparse(source.url).scheme == "https"
            assert source.sha256 is None or source.sha256 in source.url  # the publisher states it
        if isinstance(source, zoo.Hub):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repo)
            assert source.weights


def test_traps():
    def act(name):
        config = zoo.get(name).config
        return config.visual.act, config.text.act

    # activations, against what the architecture's other tags have
    assert act("ViT-B-32/openai") == act("ViT-B-32/laion400m_e32") == ("quick_gelu",) * 2
    assert act("ViT-B-16/laion400m_e32") == act("ViT-B-32/laion2b_s34b_b79k") == ("gelu",) * 2
    assert act("ViT-L-14/dfn2b") == act("ViT-H-14-378/dfn5b") == ("quick_gelu",) * 2
    assert act("ViT-L-14/dfn2b_s39b") == act("ViT-H-14/metaclip_altogether") == ("gelu",) * 2
    assert act("ViT-H-14/metaclip_fullcc") == ("quick_gelu",) * 2
    assert act("ViT-H-14-worldwide/metaclip2_worldwide") == ("quick_gelu",) * 2
    assert act("ViT-bigG-14-worldwide/metaclip2_worldwide") == ("gelu",) * 2
    assert zoo.get("RN50/cc12m").config.text.act == "quick_gelu"
    assert act("ViT-B-16-SigLIP/webli") == act("ViT-L-14-CLIPA/datacomp1b") == ("gelu_tanh",) * 2
    # pixels
    halves = [n for n in NAMES if zoo.get(n).preprocess.mean == (0.5, 0.5, 0.5)]
    others = [n for n in halves if "SigLIP" not in n and "align" not in n]
    assert others == ["ViT-L-14/laion2b_s32b_b82k"]
    squashed = {n for n in NAMES if zoo.get(n).preprocess.resize == "squash"}
    assert {"ViT-H-14/dfn5b", "ViT-H-14-378/dfn5b"} <= squashed
    assert "ViT-H-14-worldwide-378/metaclip2_worldwide" in squashed
    assert "ViT-H-14-worldwide/metaclip2_worldwide" not in squashed
    assert "ViT-L-14/dfn2b" not in squashed
    # heads
    heads = {n: zoo.get(n).config.visual for n in ("ViT-H-14/dfn5b", "ViT-g-14/laion2b_s12b_b42k")}
    assert [v.width // v.heads for v in heads.values()] == [80, 88]
    bigg = zoo.get("ViT-bigG-14/metaclip_fullcc").config.visual
    assert bigg.width // bigg.heads == 104
    # tokens
    assert zoo.get("ViT-SO400M-14-SigLIP/webli").tokenizer.context_length == 16
    siglip2 = zoo.get("ViT-B-16-SigLIP2/webli")
    assert (siglip2.tokenizer.pad_id, siglip2.tokenizer.clean) == (0, "lower")
    assert zoo.get("ViT-SO400M-16-SigLIP-i18n-256/webli").config.text.proj == "none"
    worldwide = zoo.get("ViT-H-14-worldwide/metaclip2_worldwide")
    assert (worldwide.config.text.pool, worldwide.config.text.eos_id) == ("eos", 2)
    assert worldwide.tokenizer.eos_id == 2  # and not the highest id of the text
    # a wrong address in open_clip's registry
    assert "e31" not in str(zoo.get("ViT-B-16-plus-240/laion400m_e32").sources)
    # licences
    restricted = {n.split("/")[1] for n in NAMES if zoo.get(n).non_commercial}
    assert restricted == {
        *("metaclip_400m", "metaclip_fullcc", "metaclip_altogether", "metaclip2_worldwide"),
        *("dfn2b", "dfn2b_s39b", "dfn5b"),
    }


def fill_(module: torch.nn.Module, noise: torch.Tensor) -> torch.nn.Module:
    """Random numbers of a sensible size in every weight, at the speed of memory."""
    with torch.no_grad():
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if not x.is_floating_point():
                x.zero_()
                continue
            scale = 1 / x[0].numel() ** 0.5 if x.ndim > 1 else 0.1
            if x.ndim == 4 and x.shape[1] == 1:  # depthwise: the signal of EfficientNet fades
                scale *= 4
            flat = x.view(-1)
            for start in range(0, len(flat), len(noise)):
                part = flat[start : start + len(noise)]
                torch.mul(noise[: len(part)], scale, out=part)
            if x.ndim == 1 and "bias" not in name and "mean" not in name:
                x.abs_().add_(0.9)  # norms' scales and variances
    return module.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "config"),
    [(side, config) for side, found in SIDES.items() for config in found],
    ids=lambda x: x if isinstance(x, str) else SIDES["visual"].get(x) or SIDES["text"].get(x),
)
def test_every_tower_runs_at_full_size(side, config):
    row = zoo.get(SIDES[side][config])
    noise = torch.randn(1 << 22)
    with torch.device("meta"):
        tower = towers.build(config, row.config.embed_dim)
    tower = fill_(tower.to_empty(device="cpu"), noise)
    generator = torch.Generator().manual_seed(0)
    if side == "visual":
        batch = torch.randn(2, 3, *row.preprocess.size, generator=generator)
        batch[1] = 0.3 * batch[1] + 1
    else:
        shape = (2, row.tokenizer.context_length)
        batch = torch.randint(1, config.vocab_size, shape, generator=generator)
        if config.pad_id is not None:
            batch[:, -2:] = config.pad_id
    with torch.no_grad():
        vectors = F.normalize(tower(batch), dim=-1)
    assert vectors.shape == (2, row.config.embed_dim)
    assert torch.isfinite(vectors).all()
    assert F.cosine_similarity(vectors[:1], vectors[1:]) < 0.99999  # the input matters
