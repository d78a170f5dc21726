"""Small models under published names, the package's photos in a folder, and the scripts, run."""

import re
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from diptych import zoo
from diptych.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.towers import build
from diptych.zoo.cache import cache_folder, folder_for

SCRIPTS = Path(__file__).parent / "scripts"
PHOTOS = ("bridge", "cat", "crab", "dog", "eiffel-tower", "guitar", "scissors")
SWAPPED = {
    "import clip": "from diptych.compat import clip",
    "import open_clip": "from diptych.compat import open_clip",
    "from clip import clip": "from diptych.compat.clip import clip",
}

TEXT = TextConfig(
    context_length=77,
    vocab_size=49408,
    width=64,
    layers=2,
    heads=1,
    mlp_dim=256,
    act="quick_gelu",
)
VIT = ViTConfig(
    image_size=(64, 64), patch_size=16, width=64, layers=2, heads=1, mlp_dim=256, act="quick_gelu"
)
RESNET = ResNetConfig(image_size=(64, 64), layers=(1, 1, 1, 1), width=8, heads=4)
OPENAI_VIT = CLIPConfig(embed_dim=48, visual=VIT, text=TEXT)
OPENAI_RN = CLIPConfig(embed_dim=48, visual=RESNET, text=TEXT)
LAION = CLIPConfig(embed_dim=48, visual=replace(VIT, act="gelu"), text=replace(TEXT, act="gelu"))
ROWS = {  # a published name: a small config that takes its place
    "ViT-B-32/openai": OPENAI_VIT,
    "RN50/openai": OPENAI_RN,
    "ViT-B-32/laion2b_s34b_b79k": LAION,
}


def noise(config: CLIPConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict, our names, that leaves nothing at zero or one, of numbers that fp16 holds."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for key, value in build(config).state_dict().items():
        if not value.is_floating_point():
            out[key] = value
        elif key.endswith("running_var"):
            out[key] = torch.rand(value.shape, generator=generator) + 0.5
        elif key == "logit_scale":
            out[key] = value
        else:
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            scale = 0.5 if "embedding" in key else scale
            shift = 1.0 if value.ndim == 1 and key.endswith("weight") else 0.0
            out[key] = shift + scale * torch.randn(value.shape, generator=generator)
    return {k: v.half().float() if v.is_floating_point() else v for k, v in out.items()}


def checkpoint(config: CLIPConfig) -> zoo.Checkpoint:
    return zoo.Checkpoint(
        state_dict=noise(config),
        config=config,
        preprocess=PreprocessConfig(size=config.visual.image_size),
        tokenizer=zoo.get("ViT-B-32/openai").tokenizer,
        licence="MIT",
    )


def put_rows(monkeypatch) -> dict[str, Path]:
    """Small models in the cache under published names; returns the weight files."""
    files = {}
    for name, config in ROWS.items():
        row = zoo.get(name)
        sources = tuple(replace(source, sha256=None) for source in row.sources)
        row = replace(
            row,
            config=config,
            preprocess=replace(row.preprocess, size=config.visual.image_size),
            sources=sources,
        )
        monkeypatch.setitem(zoo.registry.rows(), name, row)
        folder = folder_for(row, cache_folder())
        first = sources[0]
        if isinstance(first, zoo.Url):
            file = folder / first.url.rsplit("/", 1)[-1]
            zoo.write(checkpoint(config), file, format="openai")
        else:
            zoo.write(checkpoint(config), folder, format="open_clip")
            file = folder / "open_clip_model.safetensors"
        files[name] = file
    return files


def put_photos(folder: Path) -> None:
    samples = resources.files("diptych") / "assets" / "samples"
    for name in PHOTOS:
        shutil.copyfile(str(samples / f"{name}.jpg"), folder / f"{name}.jpg")


class CIFAR100:
    """The interface of torchvision's data set, with seeded pictures of six classes."""

    def __init__(self, root, train=True, transform=None, download=False):
        self.classes = ["apple", "aquarium_fish", "baby", "bear", "beaver", "bed"]
        self.transform = transform
        random = np.random.default_rng(int(train))
        shade = random.integers(0, 40, (32, 32, 32, 3))
        self.images = [
            Image.fromarray((shade[i] + 40 * (i % 6)).astype(np.uint8)) for i in range(32)
        ]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i]
        return (image if self.transform is None else self.transform(image)), i % 6


def datasets() -> ModuleType:
    """In place of `torchvision.datasets`."""
    module = ModuleType("torchvision.datasets")
    module.CIFAR100 = CIFAR100
    return module


def run(script: Path, *, swap: bool) -> dict:
    """The script's RESULT; `swap` changes its one import line."""
    lines = script.read_text("utf-8").splitlines()
    (at,) = [i for i, line in enumerate(lines) if re.fullmatch("|".join(SWAPPED), line)]
    if swap:
        lines[at] = SWAPPED[lines[at]]
    namespace = {"__name__": "__main__"}
    exec(compile("\n".join(lines), str(script), "exec"), namespace)
    return namespace["RESULT"]
