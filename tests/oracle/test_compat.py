"""`diptych.compat` against openai/CLIP's own code and open_clip, through their own functions.

OpenAI's `model.py`, `clip.py` and `simple_tokenizer.py` come with clip-anytorch. The files on disk
are the same for both sides; OpenAI's loader rounds to fp16, so that its files hold such numbers.
"""

import importlib
import random
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import packaging
import packaging.version
import peers
import pytest
import regex
import torch
import torch.nn.functional as F
from PIL import Image
from report import record
from torch import Tensor, nn

sys.path.extend(
    str(Path(__file__).parents[1] / name) for name in ("tokenizer", "compat", "zoo", "preprocess")
)

import small
import tiny_zoo
from awkward import PARTS, SPECIALS, captions, texts
from awkward_files import picture

from diptych import zoo
from diptych.compat import clip, open_clip
from diptych.zoo.openai import SCALARS

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the peers
SECTION, BOUND = "Look-alikes", 2e-6
OPENAI, OPEN_CLIP = "clip-anytorch", "open_clip_torch"


@cache
def openai() -> ModuleType:
    """The package `clip`; it imports `packaging` from where setuptools no longer has it."""
    peers.torchvision_stub()
    stand_in = ModuleType("pkg_resources")
    stand_in.packaging = packaging
    sys.modules.setdefault("pkg_resources", stand_in)
    return importlib.import_module("clip")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")


def far(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, divided by the largest absolute value."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def worst_gradient(ours: nn.Module, theirs: nn.Module) -> float:
    """As in the section "Training": |g - g'| / (|g'| + 0.001 |G|)."""
    a, b = gradients(ours), gradients(theirs)
    assert a.keys() == b.keys()
    whole = torch.stack([g.norm() for g in b.values()]).norm()
    return max(float((a[k] - b[k]).norm() / (b[k].norm() + 1e-3 * whole)) for k in b)


def backward(logits: Tensor) -> None:
    F.cross_entropy(logits, torch.arange(len(logits))).backward()


# --- openai/CLIP --------------------------------------------------------------------------------

FULL = {
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
}
TINY = {
    "a tiny ViT": (48, 32, 2, 64, 8, 16, 128, 64, 1, 2),
    "a tiny ResNet": (48, 64, (1, 2, 1, 1), 8, None, 16, 128, 64, 1, 2),
}


def openai_file(args: tuple, path: Path) -> None:
    """Weights in the layout of OpenAI's archives, of numbers that fp16 holds."""
    model = peers.disturb_(openai().model.CLIP(*args))
    weights = {
        k: v.half().float() if v.is_floating_point() else v for k, v in model.state_dict().items()
    }
    numbers = (args[1], args[5], args[6])
    torch.save(weights | {k: torch.tensor(n) for k, n in zip(SCALARS, numbers, strict=True)}, path)


@pytest.mark.parametrize("what", [*FULL, *TINY])
def test_openai_model(what, tmp_path):
    args = (FULL | TINY)[what]
    path = tmp_path / "weights.pt"
    openai_file(args, path)
    theirs, _ = openai().load(str(path), device="cpu")
    ours, _ = clip.load(path, device="cpu")
    assert not ours.training and ours.dtype == theirs.dtype == torch.float32
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    image = peers.pixels(4, args[1])
    ids = peers.clip_ids(4, args[5], args[6])
    with torch.no_grad():
        pairs = {
            "image": (ours.encode_image(image), theirs.encode_image(image)),
            "text": (ours.encode_text(ids), theirs.encode_text(ids)),
            "logits": (ours(image, ids)[0], theirs(image, ids)[0]),
        }
    for pair in pairs.values():
        assert float(torch.pdist(peers.unit(pair[1])).min()) > 1e3 * BOUND
        record(SECTION, f"clip.load, {what}: features, logits", far(*pair), BOUND, OPENAI)
    for model in (ours, theirs):
        backward(model(image, ids)[0])
    value = worst_gradient(ours, theirs)
    record(SECTION, f"clip.load, {what}: gradients", value, 1e-5, OPENAI)


def test_openai_module_tree(tmp_path):
    """What scripts reach for has the peer's type, shape and order of axes."""
    path = tmp_path / "weights.pt"
    openai_file(TINY["a tiny ViT"], path)
    theirs, ours = openai().load(str(path), device="cpu")[0], clip.load(path, device="cpu")[0]
    blocks = [f"{side}transformer.resblocks.1" for side in ("", "visual.")]
    for name in ("visual", "visual.conv1", "transformer", "ln_final", "token_embedding", *blocks):
        assert type(ours.get_submodule(name)).__name__ == type(theirs.get_submodule(name)).__name__
    for name in ("visual.input_resolution", "visual.output_dim", "context_length", "vocab_size"):
        a, b = ours, theirs
        for part in name.split("."):
            a, b = getattr(a, part), getattr(b, part)
        assert a == b, name
    x = torch.randn(16, 3, 64)  # s n d
    with torch.no_grad():
        assert torch.equal(ours.transformer(x), theirs.transformer(x))
    seen = []
    for model in (ours, theirs):
        model.transformer.resblocks[0].mlp.c_fc.register_forward_hook(
            lambda module, inputs, output: seen.append(output.shape)
        )
        model.encode_text(peers.clip_ids(3, 16, 128))
    assert seen[0] == seen[1] == (16, 3, 256)


def test_openai_fp16_weights(tmp_path):
    path = tmp_path / "weights.pt"
    openai_file(TINY["a tiny ViT"], path)
    theirs, ours = openai().load(str(path), device="cpu")[0], clip.load(path, device="cpu")[0]
    openai().model.convert_weights(theirs)
    clip.model.convert_weights(ours)
    dtypes = [{k: v.dtype for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert dtypes[0] == dtypes[1]
    assert ours.dtype == torch.float16


def test_openai_names():
    assert clip.available_models() == openai().available_models()
    assert clip._MODELS == openai().clip._MODELS


# --- open_clip ----------------------------------------------------------------------------------


def compare(what: str, ours: nn.Module, theirs: nn.Module, size, ids: Tensor, bound: float) -> None:
    """Keys, order, features, logits and gradients of two models of the same weights."""
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    image = peers.pixels(len(ids), size)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        a, b = ours(image, ids), theirs(image, ids)
        assert len(a) == len(b)
        pairs = {
            "image": (ours.encode_image(image), theirs.encode_image(image)),
            "text": (ours.encode_text(ids), theirs.encode_text(ids)),
            "unit features": (torch.cat(a[:2]), torch.cat(b[:2])),
            "logits": (ours.get_logits(image, ids)[0], theirs.get_logits(image, ids)[0]),
        }
        assert torch.equal(a[2], b[2])
    for pair in pairs.values():
        assert float(torch.pdist(peers.unit(pair[1])).min()) > 1e3 * BOUND
        record(SECTION, f"open_clip, {what}: features, logits", far(*pair), BOUND, OPEN_CLIP)
    for model in (ours, theirs):
        backward(model.get_logits(image, ids)[0])
    record(SECTION, f"open_clip, {what}: gradients", worst_gradient(ours, theirs), bound, OPEN_CLIP)


# open_clip pools every position of a ResNet and keeps one, so that sums run in another order.
GRADIENTS = {"resnet": 5e-5, "RN50-quickgelu": 5e-5}

OPEN_CLIP_FULL = {  # name: open_clip's config, QuickGELU
    "ViT-B-32": ("ViT-B-32", False),
    "ViT-B-32-quickgelu": ("ViT-B-32", True),
    "RN50-quickgelu": ("RN50", True),
}


@pytest.mark.parametrize("name", OPEN_CLIP_FULL)
def test_open_clip_full_size(name, tmp_path):
    config, quick_gelu = OPEN_CLIP_FULL[name]
    theirs = peers.open_clip_by_name(config, quick_gelu=quick_gelu)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = open_clip.create_model(name, pretrained=str(tmp_path / "weights.pt"))
    assert ours.training
    compare(name, ours, theirs, 224, peers.clip_ids(4, 77, 49408), GRADIENTS.get(name, 1e-5))


def test_siglip_full_size(tmp_path):
    """With the peer's exact GELU; and how far the tanh GELU of the training is from it."""
    theirs = peers.open_clip_by_name("ViT-B-16-SigLIP")
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = open_clip.create_model("ViT-B-16-SigLIP", pretrained=str(tmp_path / "weights.pt"))
    ids, image = peers.siglip_ids(4, 64, 32000), peers.pixels(4, 224)
    with torch.no_grad():
        a, b = (torch.cat(m.eval()(image, ids)[:2]) for m in (ours, theirs))
    what = "open_clip, ViT-B-16-SigLIP with the tanh GELU of its training: unit features"
    record(SECTION, what, float((a - b).abs().max()), 1e-3, OPEN_CLIP)
    assert not torch.equal(a, b)
    assert open_clip.exact_gelu_(ours) is ours
    compare("ViT-B-16-SigLIP, exact_gelu_", ours, theirs, 224, ids, 1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet", "gelu", "clipa"])
def test_open_clip_local_dir(kind, tmp_path):
    """A folder that Diptych wrote, opened by both under the same name."""
    zoo.write(tiny_zoo.checkpoint(kind), tmp_path / "model", format="open_clip")
    name = f"local-dir:{tmp_path / 'model'}"
    theirs, _, their_pixels = peers.open_clip().create_model_and_transforms(name)
    ours, _, our_pixels = open_clip.create_model_and_transforms(name)
    assert ours.training == theirs.training
    cfg = tiny_zoo.CONFIGS[kind]
    ids = peers.clip_ids(4, 16, 99, cfg.text.eos_id)
    theirs.load_state_dict(peers.disturb_(theirs).state_dict())
    ours.load_state_dict(theirs.state_dict())
    compare(
        f"local-dir, a tiny {kind}",
        ours,
        theirs,
        cfg.visual.image_size,
        ids,
        GRADIENTS.get(kind, 1e-5),
    )
    assert ours.visual.image_size == theirs.visual.image_size
    assert ours.no_weight_decay() == theirs.no_weight_decay()
    their_cfg = theirs.visual.preprocess_cfg
    assert {**ours.visual.preprocess_cfg, "size": 0} == {
        **their_cfg,
        "size": 0,
        "mean": tuple(their_cfg["mean"]),
        "std": tuple(their_cfg["std"]),
    }
    photo = Image.fromarray(picture(90, 70, seed=1))
    assert torch.equal(our_pixels(photo), their_pixels(photo))


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 9])
def test_locks(unlocked, tmp_path):
    zoo.write(tiny_zoo.checkpoint("vit"), tmp_path / "model", format="open_clip")
    name = f"local-dir:{tmp_path / 'model'}"
    trained = []
    for package in (open_clip, peers.open_clip()):
        model = package.create_model(name)
        model.lock_image_tower(unlocked_groups=unlocked)
        model.lock_text_tower(unlocked_layers=unlocked)
        trained.append({k for k, p in model.named_parameters() if p.requires_grad})
    assert trained[0] == trained[1]


def test_image_size_is_forced_as_the_peer_does(tmp_path):
    theirs = peers.open_clip_by_name("ViT-B-32")
    path = str(tmp_path / "weights.pt")
    torch.save(theirs.state_dict(), path)
    pair = [
        package.create_model("ViT-B-32", pretrained=path, force_image_size=288).eval()
        for package in (open_clip, peers.open_clip())
    ]
    image = peers.pixels(2, 288)
    with torch.no_grad():
        a, b = (model.encode_image(image) for model in pair)
    record(SECTION, "open_clip, ViT-B-32, force_image_size=288", far(a, b), BOUND, OPEN_CLIP)


def test_tags():
    """What we list, the peer lists too, under the same spelling; but for what is ours alone."""
    theirs = set(peers.open_clip().list_pretrained())
    extra = {pair for pair in open_clip.list_pretrained() if pair not in theirs}
    print("not among the peer's tags:", sorted(extra))
    assert len(theirs & set(open_clip.list_pretrained())) >= 15
    for package in (open_clip, peers.open_clip()):
        assert "ViT-B-32-quickgelu" in package.list_pretrained_models_by_tag("OpenAI")


# --- tokens and pixels --------------------------------------------------------------------------


def strings() -> list[str]:
    found = captions(2000, seed=20) + list(texts(4000, seed=21)) + PARTS + SPECIALS
    rng = random.Random(1)
    return found + [" ".join(rng.choices(PARTS, k=60)) for _ in range(100)]


SPELLED = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>", regex.IGNORECASE)  # "ſ" is an "s"


def differing(ours, theirs, encode) -> tuple[int, int]:
    """(texts whose ids differ, texts left out because the peer made a control token of them)."""
    wrong = left_out = 0
    for text in strings():
        if max(encode(text), default=0) >= 49406 or SPELLED.search(text):
            left_out += 1
        else:
            wrong += not torch.equal(ours(text), theirs(text).to(ours(text).dtype))
    return wrong, left_out


def test_openai_tokens():
    theirs = openai().simple_tokenizer.SimpleTokenizer()
    ours = clip.simple_tokenizer.SimpleTokenizer()
    assert ours.encoder == theirs.encoder
    wrong, left_out = differing(
        lambda text: clip.tokenize(text, truncate=True),
        lambda text: openai().tokenize(text, truncate=True),
        theirs.encode,
    )
    assert 0 < left_out < 0.3 * len(strings())
    record(SECTION, "clip.tokenize", wrong, 0, OPENAI)
    decoded = [(ours.decode(ids), theirs.decode(ids)) for ids in map(theirs.encode, strings())]
    record(SECTION, "SimpleTokenizer.decode", sum(a != b for a, b in decoded), 0, OPENAI)
    long = "many words " * 50
    with pytest.raises(RuntimeError) as theirs_error:
        openai().tokenize(long)
    with pytest.raises(RuntimeError) as our_error:
        clip.tokenize(long)
    assert str(our_error.value) == str(theirs_error.value)


def test_open_clip_tokens():
    peer = peers.open_clip()
    theirs, ours = peer.get_tokenizer("ViT-B-32"), open_clip.get_tokenizer("ViT-B-32")
    wrong, left_out = differing(ours, theirs, theirs.encode)
    assert 0 < left_out < 0.3 * len(strings())
    record(SECTION, "open_clip.get_tokenizer", wrong, 0, OPEN_CLIP)
    wrong, _ = differing(lambda t: ours(t, 12), lambda t: theirs(t, 12), theirs.encode)
    record(SECTION, "open_clip.get_tokenizer, context_length=12", wrong, 0, OPEN_CLIP)
    assert ours.decode([49406, 320, 49407]) == theirs.decode([49406, 320, 49407])
    assert ours.encoder == theirs.encoder


def pictures() -> list[Image.Image]:
    sizes = [(224, 224), (300, 200), (97, 411), (640, 33), (50, 50), (225, 223), (1000, 10)]
    modes = ("RGB", "L", "RGBA", "P", "RGB", "LA", "RGB")
    return [
        Image.fromarray(picture(w, h, seed=i)).convert(modes[i]) for i, (w, h) in enumerate(sizes)
    ]


def test_openai_pixels(tmp_path):
    path = tmp_path / "weights.pt"
    openai_file(TINY["a tiny ViT"], path)
    ours, theirs = (package.load(str(path), device="cpu")[1] for package in (clip, openai()))
    value = max(float((ours(p) - theirs(p)).abs().max()) for p in pictures())
    record(SECTION, "preprocess of clip.load", value, 0, OPENAI)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_open_clip_pixels(resize_mode):
    given = {"resize_mode": resize_mode, "interpolation": "bilinear", "mean": 0.5, "std": 0.5}
    ours = open_clip.image_transform(96, is_train=False, **given)
    theirs = peers.open_clip().image_transform(96, is_train=False, **given)
    value = max(float((ours(p) - theirs(p)).abs().max()) for p in pictures())
    record(SECTION, f"preprocess_val of open_clip, {resize_mode}", value, 0, OPEN_CLIP)


@pytest.mark.parametrize("aug_cfg", [None, {"scale": (0.2, 0.7)}])
def test_open_clip_training_pixels(aug_cfg):
    """The same seed gives the same crop, and leaves the generator where the peer leaves it."""
    ours = open_clip.image_transform(96, is_train=True, aug_cfg=aug_cfg)
    theirs = peers.open_clip().image_transform(96, is_train=True, aug_cfg=aug_cfg)
    worst = 0.0
    for seed in range(50):
        for photo in pictures():
            found = []
            for transform in (ours, theirs):
                torch.manual_seed(seed)
                found.append((transform(photo), torch.rand(1)))
            assert torch.equal(found[0][1], found[1][1])
            worst = max(worst, float((found[0][0] - found[1][0]).abs().max()))
    what = "default" if aug_cfg is None else "scale=(0.2, 0.7)"
    record(SECTION, f"preprocess_train of open_clip, {what}, 50 seeds", worst, 0, OPEN_CLIP)


# --- scripts ------------------------------------------------------------------------------------


@pytest.fixture
def peers_find_the_files(tmp_path, monkeypatch):
    """Both sides load the same small models under the published names."""
    files = small.put_rows(monkeypatch)
    small.put_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    weights = {Path(url).name: url for url in openai().clip._MODELS.values()}
    local = {weights["ViT-B-32.pt"]: "ViT-B-32/openai", weights["RN50.pt"]: "RN50/openai"}
    find = lambda url, root=None: str(files[local[url]])  # noqa: E731
    monkeypatch.setattr(openai().clip, "_download", find)
    factory = peers.open_clip().factory
    folder = files["ViT-B-32/laion2b_s34b_b79k"].parent
    config = peers.open_clip().get_model_config(f"local-dir:{folder}")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", config)
    path = str(files["ViT-B-32/laion2b_s34b_b79k"])
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", small.datasets())


@pytest.mark.parametrize("script", sorted(p.stem for p in small.SCRIPTS.glob("*.py")))
def test_script(script, peers_find_the_files):
    path = small.SCRIPTS / f"{script}.py"
    theirs, ours = (small.run(path, swap=swap) for swap in (False, True))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name in ("images", "texts"):
            assert len(ours[name]) == len(value)
            continue
        a, b = (np.asarray(x, dtype=np.float64) for x in (ours[name], value))
        assert a.shape == b.shape and np.isfinite(b).all()
        largest = float(np.abs(a - b).max() / np.abs(b).max()) if b.any() else float(a.any())
        peer = OPEN_CLIP if "import open_clip" in path.read_text("utf-8") else OPENAI
        record(SECTION, f"tests/compat/scripts/{script}.py", largest, 1e-5, peer)
