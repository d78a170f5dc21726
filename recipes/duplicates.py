"""At which cosine and which distance of hashes two pictures are copies of one.

    python recipes/mini.py fetch build/packages
    python recipes/duplicates.py build/packages
    $(scripts/oracle --setup) recipes/duplicates.py build/packages --hash   # with imagehash 4.3.2

Two minutes on two cores. Originals: GCompris' photographs (animals, tools, monuments, others), the
sample photographs that are not among them, Tux Paint's cut-outs. Of those whose sides have 256
pixels and more, every other one, by SHA-256 of its name, is made into copies as people make them
(`COPIES`), and each copy is compared with its original. Wrong pairs are all pairs of different
originals, the hardest being two pictures with one label. Originals that are one picture twice were
found by eye (`--show` lists the nearest pairs) and are written down in `SAME`.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import packages
import photographs
import torch
from PIL import Image, ImageEnhance

import diptych
from diptych.config import PreprocessConfig
from diptych.engine.neighbours import (
    DUPLICATE_COSINE,
    DUPLICATE_HAMMING,
    hamming,
    leaders,
    perceptual_hash,
)

NEEDED = ("gcompris-qt-data", "tuxpaint-stamps-default")
SAMPLES = Path(__file__).parents[1] / "src/diptych/assets/samples"
CLIP = PreprocessConfig(size=(224, 224))
SAME = {
    ("military/fireman240a.png", "people/fireman240a.png"),
    ("explore_monuments/brandenburgGate", "categorization/brandenburgGate"),
    ("explore_monuments/colosseum", "categorization/colosseum"),
    ("explore_monuments/greatPyramidOfGiza", "categorization/greatPyramid"),
}


def jpeg(image: Image.Image, quality: int, **more) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality, **more)
    return Image.open(stored)


def resized(image: Image.Image, factor: float) -> Image.Image:
    size = [max(32, round(factor * side)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    w, h = image.size
    return image.crop(
        (round(w * share), round(h * share), round(w * (1 - share)), round(h * (1 - share)))
    )


def turned(image: Image.Image) -> Image.Image:
    """Stored on its side, with the orientation in EXIF, as phones do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), 90, exif=exif)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda i: resized(i, 0.5),
    "a quarter": lambda i: resized(i, 0.25),
    "JPEG, quality 60": lambda i: jpeg(i, 60),
    "JPEG, quality 20": lambda i: jpeg(i, 20),
    "half, then quality 60": lambda i: jpeg(resized(i, 0.5), 60),
    "turned, by EXIF": turned,
    "brighter by a fifth": lambda i: ImageEnhance.Brightness(i).enhance(1.2),
    "darker by a third": lambda i: ImageEnhance.Brightness(i).enhance(0.67),
    "more contrast, by a fifth": lambda i: ImageEnhance.Contrast(i).enhance(1.2),
    "2 % cut off each side": lambda i: cropped(i, 0.02),
    "5 % cut off each side": lambda i: cropped(i, 0.05),
    "10 % cut off each side": lambda i: cropped(i, 0.1),
}


def originals(unpacked: Path) -> list[tuple[str, str, Image.Image]]:
    """(name, label, picture in RGB on white)."""
    rcc = unpacked / "gcompris-qt-data/usr/share/gcompris-qt/rcc"
    stamps = unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    pictures = [*photographs._gcompris(rcc), *photographs._monuments(rcc)]
    pictures += [*photographs._others(rcc), *photographs._tuxpaint(stamps)]
    found = [(p.key, p.label, on_white(photographs.opened(p))) for p in pictures]
    for sample in json.loads((SAMPLES / "samples.json").read_text("utf-8")):
        if "gcompris" not in json.dumps(sample):
            path = SAMPLES / sample["file"]
            with Image.open(path) as image:
                found.append((path.name, path.stem, on_white(image)))
    return found


def on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(ground, rgba).convert("RGB")


def is_copied(name: str, image: Image.Image) -> bool:
    return min(image.size) >= 256 and hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def both(enc: diptych.Encoder, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n e], hashes [n]."""
    vectors, hashes = [], []
    for start in range(0, len(images), 32):
        pixels = torch.stack([enc.preprocess(image) for image in images[start : start + 32]])
        vectors.append(enc.run_image(pixels).numpy())
        hashes.append(perceptual_hash(pixels))
    return np.concatenate(vectors), np.concatenate(hashes)


def against_imagehash(images: list[Image.Image]) -> list[str]:
    """In how many bits our hash differs from the package's, and from itself when normalised."""
    import imagehash

    same, whole, normalised = [], [], []
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (CLIP.mean, CLIP.std))
    for image in images:
        grey = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
        pixels = [torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1)[None].float()
                  for i in (grey, image)]  # fmt: skip
        ours = [perceptual_hash(p)[0] for p in (*pixels, (pixels[1] / 255 - mean) / std)]
        theirs = [np.uint64(int(str(imagehash.phash(i)), 16)) for i in (grey, image)]
        same.append(int(hamming(ours[0], theirs[0])))
        whole.append(int(hamming(ours[1], theirs[1])))
        normalised.append(int(hamming(ours[1], ours[2])))
    return [
        f"{name}: of {len(bits)} pictures {bits.count(0)} have the same bits, at most "
        f"{max(bits)} differ"
        for name, bits in (
            ("imagehash, the same 32 x 32 grey levels", same),
            ("imagehash, the whole picture", whole),
            ("our own, normalised and not", normalised),
        )
    ]


def times() -> list[str]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, 512)).astype(np.float32)
    pixels = torch.rand(64, 3, 224, 224)
    jobs: dict[str, tuple[Callable[[], object], float]] = {
        "hash, ms for each picture of 224 x 224": (lambda: perceptual_hash(pixels), 1e3 / 64),
        "groups of 20,000 x 512 without duplicates, s": (lambda: leaders(vectors), 1),
        "groups of 20,000 equal vectors, s": (lambda: leaders(0 * vectors + 1), 1),
    }
    lines = []
    for name, (job, factor) in jobs.items():
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        lines.append(f"{name}: {factor * min(seconds):.2f}")
    return lines


@click.command(help="\n\n".join(f"\b\n{part}" for part in (__doc__ or "").split("\n\n")))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--show", is_flag=True, help="List the nearest pairs of originals.")
@click.option("--hash", "hash_", is_flag=True, help="Compare with imagehash, and measure times.")
def main(folder: Path, *, show: bool, hash_: bool) -> None:
    torch.set_num_threads(2)
    unpacked = packages.unpack(folder, tuple(p for p in packages.PACKAGES if p.name in NEEDED))
    enc = diptych.load("mini", device="cpu", precision="fp32")
    everything = originals(unpacked)
    if hash_:
        print("\n".join([*against_imagehash([image for _, _, image in everything]), *times()]))
        return
    names, labels = [name for name, _, _ in everything], [label for _, label, _ in everything]
    vectors, hashes = both(enc, [image for _, _, image in everything])
    i, j = np.triu_indices(len(everything), 1)
    cosines = (vectors @ vectors.T)[i, j]
    distances = hamming(hashes[i], hashes[j])
    if show:
        for k in np.argsort(-cosines + 0.02 * distances)[:80]:
            print(f"{cosines[k]:.3f} {distances[k]:2} {names[i[k]]} | {names[j[k]]}")
        return
    different = np.array([(names[a], names[b]) not in SAME for a, b in zip(i, j, strict=True)])
    one_kind = np.array([labels[a] == labels[b] for a, b in zip(i, j, strict=True)]) & different
    taken = [k for k, (name, _, image) in enumerate(everything) if is_copied(name, image)]
    copies = {}
    for what, change in COPIES.items():
        v, h = both(enc, [change(everything[k][2]) for k in taken])
        copies[what] = (v * vectors[taken]).sum(1), hamming(h, hashes[taken])
    print(
        f"mini {enc.fingerprint[:16]}: {len(names)} originals, {len(taken)} of them copied in "
        f"{len(COPIES)} ways; {different.sum()} pairs of different pictures, {one_kind.sum()} of "
        "them with one label.\n"
    )
    print("\n".join(thresholds_table(copies, cosines, distances, different, one_kind)))
    print("\n".join(copies_table(copies)))


def thresholds_table(copies, cosines, distances, different, one_kind) -> list[str]:
    """Copies found, and pairs of different pictures that are taken for copies."""
    right = np.concatenate([c for c, _ in copies.values()])
    near = np.concatenate([d for _, d in copies.values()])
    lines = [
        "| cosine | hash | copies found | wrong pairs | of one label |",
        "|---|---|---|---|---|",
    ]
    for least in (-1, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        for most in (8, 10, 12, 14, 20, 64):
            if least == -1 and most == 64:
                continue
            wrong = (cosines >= least) & (distances <= most)
            name = [f"{least}" if least > -1 else "any", f"{most}" if most < 64 else "any"]
            if (least, most) == (DUPLICATE_COSINE, DUPLICATE_HAMMING):
                name = [f"**{x}**" for x in name]
            found = ((right >= least) & (near <= most)).mean()
            lines.append(
                f"| {name[0]} | {name[1]} | {100 * found:.1f} % | {(wrong & different).sum()} "
                f"| {(wrong & one_kind).sum()} |"
            )
    return [*lines, ""]


def copies_table(copies) -> list[str]:
    lines = [
        "| copy | found | by cosine alone | by hash alone | lowest cosine of 95 % | bits of 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for what, (cosine, bits) in copies.items():
        a, b = cosine >= DUPLICATE_COSINE, bits <= DUPLICATE_HAMMING
        cells = [f"{100 * x.mean():.0f} %" for x in (a & b, a, b)]
        low, high = np.quantile(cosine, 0.05), np.quantile(bits, 0.95)
        lines.append(f"| {what} | {' | '.join(cells)} | {low:.3f} | {high:.0f} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
