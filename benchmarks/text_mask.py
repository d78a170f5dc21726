"""How much printed text the mask finds on photographs, what it masks in vain, what that does.

    scripts/bench text_mask [--fit]

Words are printed on photographs of the packages (recipes/packages.py): four heights, white, black,
a random colour, and black on a white plate; a sans, a serif and a bold face. Found: lines of which
more than half of the pixels are masked. The cosines are of `mini`, between the photograph and the
one with words, as it is and with the words painted over.

--fit makes the weights of `engine/textmask.py` anew: logistic regression on rows of pieces, those
of the words against those of the photographs as they are. No label of its photographs is among the
measured ones.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import diptych
from diptych.engine.textmask import (
    WEIGHTS,
    line_features,
    pieces_of,
    rows_of,
    text_mask,
    without_text,
)

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import photographs  # noqa: E402

WORDS = "iPod pizza sale 50% free library hotel danger exit open taxi Monday summer orange coffee"
STYLES = ("white", "black", "colour", "plate")
HEIGHTS = (0.06, 0.1, 0.18, 0.3)  # of the picture's height
FACES = (None, "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf")


def pictures(fit: bool, number: int) -> list[Image.Image]:
    """Photographs, evenly from four sets; no label is in both halves."""
    found = []
    sets = photographs.sets(ROOT / "build/packages/unpacked")
    for name in ("gcompris", "monuments", "others", "food"):
        some = [p for p in sets[name] if photographs.is_reported(p.label) != fit]
        random.Random(0).shuffle(some)
        found += some[: number // 4]
    out = []
    for picture in found:
        image = photographs.opened(picture).convert("RGB")
        image.thumbnail((1280, 1280))
        out.append(image)
    return out


def font(face: str | None, size: int):
    if face is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(face, size)
    except OSError:
        return ImageFont.load_default(size)


def printed(image: Image.Image, height: float, style: str, face, rng: random.Random):
    """The picture with words, where their pixels are, and the box around them."""
    size = max(round(height * image.height), 6)
    text = " ".join(rng.sample(WORDS.split(), 3 if height < 0.1 else 1))
    layer = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(layer)
    face = font(face, size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=face)
    x = rng.randint(0, max(image.width - right, 1))
    y = rng.randint(0, max(image.height - bottom, 1))
    draw.text((x, y), text, font=face, fill=255)
    out = image.copy()
    fill: tuple[int, ...] = tuple(rng.randrange(256) for _ in range(3))
    if style == "plate":
        box = (x + left - 4, y + top - 4, x + right + 4, y + bottom + 4)
        ImageDraw.Draw(out).rectangle(box, fill="white")
    fill = {"white": (255, 255, 255), "black": (0, 0, 0), "plate": (0, 0, 0)}.get(style, fill)
    out.paste(fill, mask=layer)
    return out, np.asarray(layer) > 127, layer.getbbox()


def measure() -> None:
    rng, found, cosines = random.Random(1), defaultdict(list), defaultdict(list)
    encoder = diptych.load("mini")
    images = pictures(False, 80)
    shares, painted_over, seconds = [], [], []
    for i, image in enumerate(images):
        start = time.perf_counter()
        mask = text_mask(image)
        seconds.append(time.perf_counter() - start)
        shares.append(mask.share)
        painted_over.append(mask.strokes.mean())
        clean = encoder.encode_image(image)[0]
        for height in HEIGHTS:
            for style in STYLES:
                words, truth, _ = printed(image, height, style, FACES[i % 3], rng)
                mask = text_mask(words)
                share = mask.strokes[truth].mean()
                found[height, style].append(share)
                if style == "white":
                    views = encoder.encode_image([words, without_text(words, mask)])
                    cosines[height].append(views @ clean)
    print(f"{len(images)} photographs, {np.mean(seconds) * 1000:.0f} ms each\n")
    print("lines found, and of all text pixels masked, by height of the letters' box and style\n")
    print(f"{'':>7}" + "".join(f"{style:>16}" for style in STYLES))
    for height in HEIGHTS:
        cells = [np.array(found[height, style]) for style in STYLES]
        row = "".join(f"{(c > 0.5).mean():8.0%}{c.mean():8.0%}" for c in cells)
        print(f"{height:7.0%}{row}")
    shares = np.array(shares)
    print(f"\nmasked in vain: {shares.mean():.1%} of the area of photographs without added words,")
    print(
        f"{np.mean(painted_over):.1%} painted over; on {(shares > 0).mean():.0%} of them anything,"
    )
    print(f"on {(shares > 0.1).mean():.0%} boxes over more than 10 %")
    print("\ncosine to the photograph without words (white words): as it is, and painted over\n")
    for height in HEIGHTS:
        with_words, painted = np.array(cosines[height]).T
        print(f"{height:7.0%}{with_words.mean():9.3f}{painted.mean():9.3f}")


def fit() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = random.Random(2)
    rows, truth = [], []

    def collect(image: Image.Image, box=None) -> None:
        for side in (640, 320, 160):
            scale = min(side / max(image.size), 2.0)
            size = (round(image.width * scale), round(image.height * scale))
            small = image.resize(
                size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
            )
            for channel in small.split():
                values = np.asarray(channel, np.float32)
                for grey in (values, 255 - values):
                    letters = pieces_of(grey)
                    for some in rows_of(letters):
                        edges = letters.box[some] / scale
                        line = [*edges[:, :2].min(0), *edges[:, 2:].max(0)]
                        if box is not None and not _is(line, box, 4 / scale):
                            continue
                        features = line_features(letters, some)
                        rows.append([features[name] for name in WEIGHTS])
                        truth.append(box is not None)

    for i, image in enumerate(pictures(True, 80)):
        collect(image)
        for height in HEIGHTS[:3]:
            words, _, box = printed(image, height, rng.choice(STYLES[:3]), FACES[i % 3], rng)
            collect(words, box)
    model = LogisticRegression(C=10, max_iter=10_000).fit(rows, truth)
    print(f"{sum(truth)} lines of words, {len(truth) - sum(truth)} rows of other things")
    for name, weight in zip(WEIGHTS, model.coef_[0], strict=True):
        print(f"{name:10}{weight:8.2f}")
    print(f"{'bias':10}{model.intercept_[0]:8.2f}")


def _is(line, box, slack: float) -> bool:
    """Whether a row lies in the box of the words and is a good part of it."""
    inside = all(line[k] > box[k] - slack for k in (0, 1)) and all(
        line[k] < box[k] + slack for k in (2, 3)
    )
    return inside and line[2] - line[0] > 0.4 * (box[2] - box[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        fit()
    else:
        measure()
