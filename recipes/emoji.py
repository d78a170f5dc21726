"""A small CLIP from scratch on free drawings, emoji and clip art, split by code point.

    python recipes/emoji.py fetch build/packages            # 330 MB of packages, checked by SHA-256
    python recipes/emoji.py pack build/packages build/emoji
    diptych train recipes/emoji.py:cpu --out runs/emoji
    python recipes/emoji.py evaluate runs/emoji build/emoji

Hardware and cost: `cpu` 2 CPU cores, 8 to 14 minutes; `gpu` one H100, minutes (written for it, not
run yet). Expected of `cpu`: 9.1 % of the held-out pictures find their name first among about 150
(95 % interval 7 to 12; chance 0.67 %); all figures: benchmarks/results/emoji.txt.

It learns to name emoji and clip art. It cannot learn photographs: there are none in it, and 6,000
drawings would not do. How pairs are made and split: `emoji_pairs.py`.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click
import drawings
import emoji_pairs
import packages
import torch
from emoji_pairs import SETS, Pair
from mini_figures import wilson
from PIL import Image

import diptych
from diptych.config import (
    AugmentConfig,
    CLIPConfig,
    PreprocessConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.eval.retrieval import retrieval
from diptych.train.config import (
    CheckpointingConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    Source,
    TrainConfig,
)

__all__ = ["cpu", "gpu"]

PACKED = Path(__file__).parents[1] / "build" / "emoji"
SIDE = 128  # pixels of a packed picture, at most
SHARD = 2000  # pictures a shard
_RECALLS = ("image_to_text_r1", "image_to_text_r5", "image_to_text_r10", "text_to_image_r1")


def small_clip(side: int, patch_size: int, width: int, layers: int, heads: int) -> ModelConfig:
    """A ViT beside a text tower of the same width and two thirds of the layers; 16 tokens."""
    visual = ViTConfig(
        image_size=(side, side),
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        mlp_dim=4 * width,
        pool="mean",  # of few patches: no token has to learn to look at the others first
        class_token=False,
    )
    text = TextConfig(
        context_length=16,
        vocab_size=49408,
        width=width,
        layers=2 * layers // 3,
        heads=heads,
        mlp_dim=4 * width,
    )
    return ModelConfig(
        start=None,
        clip=CLIPConfig(embed_dim=width, visual=visual, text=text),
        preprocess=PreprocessConfig(size=(side, side)),
        tokenizer=TokenizerConfig(kind="clip_bpe", context_length=16),
        patch_dropout=0.25,
    )


def cpu() -> TrainConfig:
    """64 pixels, patches of 8, 6 layers of width 192."""
    return TrainConfig(
        name="emoji-cpu",
        model=small_clip(64, 8, 192, 6, 3),
        data=DataConfig(
            sources=(Source(path=str(PACKED / "train-*.tar")),),
            augment=AugmentConfig(scale=(0.5, 1.0), jitter=0.3, grey=0.05),
        ),
        optim=OptimConfig(lr=1e-3, weight_decay=0.2),
        schedule=ScheduleConfig(kind="cosine", warmup=0.1),
        evaluate=EvalConfig(sources=(Source(path=str(PACKED / "val-noto.tar")),), every=250),
        checkpoints=CheckpointingConfig(minutes=5.0),
        batch_size=256,
        steps=600,
        ema=0.99,
    )


def gpu() -> TrainConfig:
    """ViT-S/12 at 96 pixels, batch 1,024, 200 times over the data."""
    small = cpu()
    return replace(
        small,
        name="emoji-gpu",
        model=replace(small_clip(96, 12, 384, 12, 6), patch_dropout=0.5),
        optim=replace(small.optim, lr=5e-4),
        batch_size=1024,
        steps=1200,
        ema=0.99,
    )


# --- packing --------------------------------------------------------------------------------------


def pack_pairs(found: Iterable[Pair], folder: Path) -> dict[str, int]:
    """Shards `train-00.tar` ..., `val-noto.tar`, `test-noto.tar` ...; their counts.

    The held-out ones are a set each, so that every name stands for one picture. Same pairs, same
    bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, list[Pair]] = {}
    train = 0
    for pair in found:
        name = f"{pair.part}-{pair.source}"
        if pair.part == "train":
            name, train = f"train-{train // SHARD:02}", train + 1
        shards.setdefault(f"{name}.tar", []).append(pair)
    for name, members in shards.items():
        with tarfile.open(folder / f".{name}", "w") as tar:
            for number, pair in enumerate(members):
                _add(tar, f"{pair.source}-{number:05}", pair)
        (folder / f".{name}").replace(folder / name)
    return {name: len(members) for name, members in shards.items()}


def _on_white(path: Path) -> Image.Image:
    """What is drawn, with a margin of a twentieth, on a white square."""
    image = drawings.small(path)
    if box := image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox():
        image = image.crop(box)
    side = round(max(image.size) * 1.1)
    ground = Image.new("RGB", (side, side), (255, 255, 255))
    ground.paste(image, ((side - image.width) // 2, (side - image.height) // 2), image)
    ground.thumbnail((SIDE, SIDE))
    return ground


def _add(tar: tarfile.TarFile, key: str, pair: Pair) -> None:
    image = _on_white(pair.path)
    picture = io.BytesIO()
    image.save(picture, "WEBP", quality=85, method=4)
    facts = {"captions": pair.captions, "source": pair.source, "licence": pair.licence}
    text = json.dumps(facts, ensure_ascii=False).encode()
    for suffix, data in (("json", text), ("webp", picture.getvalue())):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def unpack(shard: Path) -> tuple[list[str], list[bytes]]:
    """Names and pictures of a shard that `pack_pairs` wrote."""
    with tarfile.open(shard) as tar:
        data = {member.name: tar.extractfile(member).read() for member in tar}
    keys = [name.removesuffix(".json") for name in data if name.endswith(".json")]
    names = [json.loads(data[f"{key}.json"])["captions"][0] for key in keys]
    return names, [data[f"{key}.webp"] for key in keys]


# --- evaluation -----------------------------------------------------------------------------------


def figures(encoder: diptych.Encoder, model: str, folder: Path, part: str) -> list[str]:
    """Rows of the table: each set among its own names, then the three together.

    Together: shares of all pictures, each still looked for in its own set. The interval of that row
    is too narrow, for the three drawings of a code point are not independent.
    """
    rows, hits, total = [], dict.fromkeys(_RECALLS, 0), 0
    for source in SETS:
        names, pictures = unpack(folder / f"{part}-{source}.tar")
        assert len(set(names)) == len(names), source
        images = torch.from_numpy(encoder.encode_image(pictures))
        texts = torch.from_numpy(encoder.encode_text(names))
        share = retrieval(images, texts, torch.arange(len(names)))
        mine = {metric: round(share[metric] * len(names)) for metric in _RECALLS}
        rows.append(_row(model, source, len(names), len(names), mine))
        hits = {metric: hits[metric] + mine[metric] for metric in _RECALLS}
        total += len(names)
    return [*rows, _row(model, "all three", total, total / len(SETS), hits)]


def _row(model: str, source: str, pictures: int, names: float, hits: dict[str, int]) -> str:
    counts = [wilson(hits[metric], pictures) for metric in _RECALLS]
    cells = [model, source, str(pictures), f"{100 / names:.2f}", *counts]
    return f"| {' | '.join(cells)} |"


# --- commands -------------------------------------------------------------------------------------

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(help=__doc__.partition("\n")[0])
def main() -> None:
    pass


@main.command(help="Download the packages into FOLDER.")
@click.argument("folder", type=_FOLDER)
def fetch(folder: Path) -> None:
    packages.fetch(folder, packages.EMOJI)


@main.command(help="Write the shards into TO.")
@click.argument("folder", type=_FOLDER)
@click.argument("to", type=_FOLDER)
def pack(folder: Path, to: Path) -> None:
    found = emoji_pairs.pairs(packages.unpack(folder, packages.EMOJI))
    for name, count in pack_pairs(found, to).items():
        click.echo(f"{to / name}: {count} pictures")


@main.command(help="Retrieval on the held-out code points: RUN's model and mini.")
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=_FOLDER)
@click.option("--part", type=click.Choice(["test", "val"]), default="test", show_default=True)
def evaluate(run: Path, folder: Path, part: str) -> None:
    head = ("model", "set", "pictures", "chance", "R@1", "R@5", "R@10", "name to picture R@1")
    click.echo(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for path in (run / "model.safetensors" if run.is_dir() else run, "mini"):
        click.echo("\n".join(figures(diptych.load(path), str(path), folder, part)))
    click.echo("mini was made with the Fluent pictures and their names: no held-out set for it.")


if __name__ == "__main__":
    main()
