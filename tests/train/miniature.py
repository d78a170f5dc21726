"""A run of a second: 24 coloured squares, and a CLIP as small as its tokenizer lets."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from diptych.config import CLIPConfig, PreprocessConfig, TextConfig, TokenizerConfig, ViTConfig
from diptych.train.config import (
    CheckpointingConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
    changed,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128,) * 3}
CLIP = CLIPConfig(
    embed_dim=16,
    visual=ViTConfig(image_size=(16, 16), patch_size=8, width=16, layers=1, heads=2, mlp_dim=32),
    text=TextConfig(context_length=12, vocab_size=49408, width=16, layers=1, heads=2, mlp_dim=32),
)
MODEL = ModelConfig(
    start=None,
    clip=CLIP,
    preprocess=PreprocessConfig(size=(16, 16)),
    tokenizer=TokenizerConfig(kind="clip_bpe", context_length=12),
    patch_dropout=0.25,
)


def pictures(folder: Path, num: int = 24) -> Path:
    """`num` pictures and their captions.jsonl in `folder`; returns the list."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    rows = []
    for i in range(num):
        name, colour = list(COLOURS.items())[i % len(COLOURS)]
        pixels = np.clip(colour + noise.normal(0, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        rows.append({"image": f"{i:02}.png", "captions": [f"{name} {i}", f"number {i}"]})
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def config(data: Path | str, *settings: str, model: ModelConfig = MODEL) -> TrainConfig:
    """Four steps of 8 pairs, two pieces each, a checkpoint every second; `settings` as --set."""
    base = TrainConfig(
        name="miniature",
        model=model,
        data=DataConfig(sources=(Source(path=str(data)),)),
        optim=OptimConfig(lr=1e-2),
        checkpoints=CheckpointingConfig(every=2, minutes=None),
        batch_size=8,
        micro_batch=4,
        steps=4,
        precision="fp32",
        log_every=1,
    )
    return changed(base, *settings)


def of_model(run: TrainConfig, **changes) -> TrainConfig:
    """`run` with another `ModelConfig`."""
    return replace(run, model=replace(run.model, **changes))


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the model's tensors and of all tensors of the last state."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {
        "model": digest(run / "model.safetensors"),
        last.name: digest(last / "state.safetensors"),
    }


def digest(path: Path) -> str:
    """Over names and bytes of all tensors in a file, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def rows(run: Path, kind: str) -> list[dict]:
    """The lines of metrics.jsonl of one kind."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def told(run: Path) -> str:
    """The texts of all events."""
    return "\n".join(row["text"] for row in rows(run, "event"))
