"""A whole run in miniature: the packaged photographs, a tiny CLIP from random weights.

    diptych train recipes/smoke.py --out runs/smoke

Hardware: 2 CPU cores, under 1 GB, no network. Cost: under 2 minutes. Expected: the loss starts near
ln 12 = 2.48 and ends below half of it; twice the same command gives the same weights. It learns 24
pictures by heart: what is measured on the 4 held-out ones means nothing but that it was measured.

In it because each is a thing to break: four micro-batches a step, patch dropout, several captions a
picture, a mean of the weights, held-out pairs, checkpoints in the middle of an epoch.
"""

import json
from importlib import resources
from pathlib import Path

from diptych.config import CLIPConfig, PreprocessConfig, TextConfig, TokenizerConfig, ViTConfig
from diptych.train.config import (
    CheckpointingConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
)

__all__ = ["TINY", "smoke"]

LISTS = Path(__file__).parents[1] / "build" / "smoke"
HELD_OUT = 7  # every so many pictures

TINY = ModelConfig(
    start=None,
    clip=CLIPConfig(
        embed_dim=64,
        visual=ViTConfig(
            image_size=(64, 64), patch_size=16, width=64, layers=3, heads=2, mlp_dim=256
        ),
        text=TextConfig(
            context_length=24, vocab_size=49408, width=64, layers=2, heads=2, mlp_dim=256
        ),
    ),
    preprocess=PreprocessConfig(size=(64, 64)),
    tokenizer=TokenizerConfig(kind="clip_bpe", context_length=24),
    patch_dropout=0.25,
)


def lists(folder: Path = LISTS) -> tuple[Path, Path]:
    """Write the lists of the pairs to train on and of the held-out ones; returns both paths."""
    samples = Path(str(resources.files("diptych") / "assets" / "samples"))
    rows = json.loads((samples / "samples.json").read_text("utf-8"))
    pairs = [
        json.dumps(
            {
                "image": str(samples / row["file"]),
                "captions": [row["caption"], f"a photo of a {row['labels'][0]}"],
                "licence": row["licence"],
                "author": row["author"],
            }
        )
        for row in rows
    ]
    parts = {
        "train": [pair for i, pair in enumerate(pairs) if i % HELD_OUT],
        "held-out": pairs[::HELD_OUT],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path in paths:
        text = "".join(f"{line}\n" for line in parts[path.stem])
        if not path.is_file() or path.read_text("utf-8") != text:  # a reader may be at work
            path.write_text(text, "utf-8")
    return paths


def smoke() -> TrainConfig:
    """See the file."""
    train, held_out = lists()
    return TrainConfig(
        name="smoke",
        model=TINY,
        data=DataConfig(sources=(Source(path=str(train)),)),
        optim=OptimConfig(lr=1e-3),
        evaluate=EvalConfig(sources=(Source(path=str(held_out)),), every=40),
        checkpoints=CheckpointingConfig(every=20, minutes=None),
        batch_size=12,
        micro_batch=3,
        steps=120,
        precision="fp32",
        ema=0.95,
        log_every=5,
    )
