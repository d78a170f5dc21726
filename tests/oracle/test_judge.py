"""Caption scores, agreement with people and aesthetics heads against the peers' own code."""

import numpy as np
import peers
import pytest
import torch
import torch.nn.functional as F
from report import record
from scipy.stats import kendalltau, pearsonr, spearmanr

import diptych
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.judge.aesthetics import Head, aesthetic_scores, fold
from diptych.judge.correlation import kendall, pearson, spearman
from diptych.judge.score import clip_score

SECTION = "Metrics"
TINY = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(
        image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128,
        act="quick_gelu",
    ),
    text=TextConfig(
        context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128,
        act="quick_gelu",
    ),
)  # fmt: skip
TEXTS = [f"{n} {thing}" for n in ("one", "two", "a photo of") for thing in ("dogs", "cats", "seas")]
RIGHT = [[f"{text} in the sun", "an animal", f"picture {i}"] for i, text in enumerate(TEXTS)]


def balance_(enc, pictures, texts) -> None:
    """Cosines of both signs: random towers leave all images on one side of all texts."""
    words = enc.encode_text(texts, out="torch").mean(0)
    words = words / words.norm()
    with torch.no_grad():
        weight = enc.model.visual.proj.weight  # e w
        weight -= words[:, None] * (words @ weight)
        if clip_score(enc, pictures, texts, convention="torchmetrics").values.mean() < 0:
            weight.neg_()


@pytest.fixture(scope="module")
def both(tmp_path_factory, pictures):
    """Our encoder and transformers' model, from one folder."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    enc = diptych.build(TINY, seed=2, precision="fp32")
    peers.disturb_(enc.model, seed=2)
    balance_(enc, pictures, TEXTS)
    diptych.zoo.save(enc, folder, format="hf")
    peer = peers.transformers().CLIPModel.from_pretrained(folder)
    return diptych.load(folder, precision="fp32"), peer


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (len(TEXTS), 4, 4, 3), np.uint8)
    return [np.kron(one, np.ones((10, 10, 1), np.uint8)) for one in small]


class Wrapped(torch.nn.Module):
    """transformers 5 answers with an object where torchmetrics 1.9 wants the vectors."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels):
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids, mask):
        return self.model.get_text_features(ids, mask).pooler_output


def features(both, pictures, texts):
    """Unit rows of transformers' model, float64."""
    enc, peer = both
    wrapped = Wrapped(peer.eval())
    ids = enc.tokenizer(texts)
    with torch.no_grad():
        images = wrapped.get_image_features(torch.stack([enc.preprocess(p) for p in pictures]))
        words = wrapped.get_text_features(ids, torch.ones_like(ids))
    return F.normalize(images.double(), dim=-1), F.normalize(words.double(), dim=-1)


def test_the_formula_of_clipscore(both, pictures):
    """jmhessel/clipscore: w * clip(cos, 0), and its harmonic mean with the best reference."""
    enc, _ = both
    prefixed = [f"A photo depicts {text}" for text in TEXTS]
    images, words = features(both, pictures, prefixed)
    per_pair = 2.5 * np.clip((images * words).sum(1).numpy(), 0, None)
    own = clip_score(enc, pictures, TEXTS, references=RIGHT)
    difference = np.abs(own.values - per_pair).max()
    assert per_pair.max() > 0.02 and per_pair.min() == 0
    record(SECTION, "CLIPScore, each pair", difference, 2e-6, "transformers")
    best = []
    for word, right in zip(words, RIGHT, strict=True):
        others = features(both, pictures[:1], [f"A photo depicts {text}" for text in right])[1]
        best.append(float((others @ word).max()))
    both_ways = zip(per_pair, best, strict=True)
    theirs = np.array([2 * a * b / (a + b) if a and b else 0 for a, b in both_ways])
    difference = np.abs(own.reference_values - theirs).max()
    record(SECTION, "RefCLIPScore, each pair", difference, 2e-6, "transformers")


def test_torchmetrics_clipscore(both, pictures):
    from torchmetrics.multimodal import CLIPScore

    enc, peer = both

    def processor(*, text=None, images=None, return_tensors, padding):
        if images is not None:
            pixels = [enc.preprocess(image.permute(1, 2, 0).numpy()) for image in images]
            return {"pixel_values": torch.stack(pixels)}
        ids = enc.tokenizer(text)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    metric = CLIPScore(model_name_or_path=lambda: (Wrapped(peer.eval()), processor))
    metric.update([torch.from_numpy(p).permute(2, 0, 1) for p in pictures], TEXTS)
    own = clip_score(enc, pictures, TEXTS, convention="torchmetrics").score
    assert own > 0
    difference = abs(own - float(metric.compute().detach())) / 100
    record(SECTION, "CLIP score as torchmetrics has it, / 100", difference, 2e-6, "torchmetrics")


def test_agreement_of_scipy():
    rng = np.random.default_rng(0)
    differences = {"Kendall tau-b": 0.0, "Kendall tau-c": 0.0, "Spearman": 0.0, "Pearson": 0.0}
    for n, levels in ((5, 3), (50, 4), (2000, 4), (2000, 100_000), (5664, 4)):
        x = np.round(rng.normal(size=n), 2 if levels < 1000 else 9)
        y = rng.integers(0, levels, n) + np.round(x)
        tau_b, tau_c = kendall(x, y)
        pairs = {
            "Kendall tau-b": (tau_b, kendalltau(x, y, variant="b").statistic),
            "Kendall tau-c": (tau_c, kendalltau(x, y, variant="c").statistic),
            "Spearman": (spearman(x, y), spearmanr(x, y).statistic),
            "Pearson": (pearson(x, y), pearsonr(x, y).statistic),
        }
        for name, (own, theirs) in pairs.items():
            differences[name] = max(differences[name], abs(own - theirs))
    for name, difference in differences.items():
        record(SECTION, name, difference, 1e-12, "scipy")


def test_aesthetics_v2_is_the_five_layers():
    """The module of improved-aesthetic-predictor, in float32 as it is published, and in float64."""
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
    ).eval()
    for layer in layers:
        if isinstance(layer, nn.Linear):  # scores of the size of ratings, not of 0.01
            nn.init.normal_(layer.weight, std=1.5 / layer.in_features**0.5)
    vectors = F.normalize(torch.randn(500, 768), dim=-1)
    weight, bias = fold({f"layers.{key}": value for key, value in layers.state_dict().items()})
    own = aesthetic_scores(Head(weight=weight, bias=bias), vectors)
    with torch.no_grad():
        single = (own - layers(vectors)[:, 0]).abs().max()
        double = (own - layers.double()(vectors.double())[:, 0]).abs().max()
    record(SECTION, "Aesthetics V2 as one affine map, float32", float(single), 1e-5, "torch")
    record(SECTION, "Aesthetics V2 as one affine map, float64", float(double), 1e-12, "torch")
