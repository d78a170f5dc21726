"""How well the cut-off tells what a collection holds from what it does not.

    python recipes/mini.py fetch build/packages
    python recipes/cutoff.py evaluate build/packages            # Tux Paint: tuned on
    python recipes/cutoff.py evaluate build/packages --last     # GCompris too
    python recipes/cutoff.py words build/packages               # the general words

Forty seconds on two cores. The last run is kept in benchmarks/results/cutoff.txt.

The labels of a set are split in halves by SHA-256 of a salt and the label, five salts. The pictures
of one half are the collection; the labels of both are asked for, as they are.

- recall: a picture of the label is among the first ten. lost: points of it that the cut-off hides.
- false found: of the labels of the other half, those for which anything at all is shown.
- without kin: absent labels of which a synonym, a hypernym, a hyponym or a sister is present
  (recipes/kin.py) are left out: for "bunny" a rabbit is no wrong answer.
- AUC: how often a present label's best score is above an absent one's.
- oracle: the bound of every cut-off that is one number a query, set by somebody who knows both
  what is there and what the scores are. Where the right picture is not the first, no number keeps
  it and says "nothing found" without it.
- learned: logistic regression on 24 numbers of the scores and of the general words, fitted to the
  other three quarters of the labels: what no rule by hand is likely to surpass.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import kin
import numpy as np
import packages
import photographs
import torch

import diptych
from diptych.engine.relevance import STRICTNESS, Relevance, background_texts

TOP = 10
SALTS = range(5)
NEEDED = ("wordnet-base", "gcompris-qt-data", "tuxpaint-stamps-default")
CURVE = (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0)


class Material(NamedTuple):
    """A set of pictures by one model. kin: (strict, near), bool [l l]."""

    name: str
    images: np.ndarray  # n e
    of: np.ndarray  # n: the number of each picture's label
    labels: list[str]
    texts: np.ndarray  # l e
    background: np.ndarray  # m e
    scale: float
    kin: tuple[np.ndarray, np.ndarray]


class Split(NamedTuple):
    """One half indexed, all labels asked. right: whether the picture at a place is the label's."""

    scores: np.ndarray  # l n
    places: np.ndarray  # l 10
    right: np.ndarray  # l 10
    present: np.ndarray  # l
    free: np.ndarray  # l: absent, and no near kin of it is there
    images: np.ndarray  # n e


def read(enc: diptych.Encoder, unpacked: Path, name: str) -> Material:
    pictures = pictures_of(unpacked, name)
    labels = sorted({p.label for p in pictures})
    return Material(
        name=name,
        images=enc.encode_image(photographs.opened(p) for p in pictures),
        of=np.array([labels.index(p.label) for p in pictures]),
        labels=labels,
        texts=enc.encode_text(labels),
        background=enc.encode_text(background_texts()),
        scale=float(enc.model.logit_scale.detach().exp()),
        kin=kin.kin(unpacked, labels),
    )


def pictures_of(unpacked: Path, name: str) -> list[photographs.Picture]:
    """One set of `photographs.sets`, whose packages alone need be fetched."""
    if name == "tuxpaint":
        return photographs._tuxpaint(unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps")
    return photographs._gcompris(unpacked / "gcompris-qt-data/usr/share/gcompris-qt/rcc")


def is_indexed(label: str, salt: int) -> bool:
    return hashlib.sha256(f"{salt} {label}".encode()).digest()[0] & 1 == 1


def split(it: Material, salt: int) -> Split:
    present = np.array([is_indexed(label, salt) for label in it.labels])
    mine = present[it.of]
    scores = it.texts @ it.images[mine].T
    places = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    right = it.of[mine][places] == np.arange(len(it.labels))[:, None]
    free = ~present & ~it.kin[1][:, present].any(1)
    return Split(scores, places, right, present, free, it.images[mine])


# --- rules: how far a picture stands out for a query, [l n] ---------------------------------------

Rule = Callable[[Material, Split], np.ndarray]


def cosine(it: Material, s: Split) -> np.ndarray:
    return s.scores


def ours(it: Material, s: Split) -> np.ndarray:
    """The strictness at which each picture would just reach the bar, not held to 0..1."""
    usual = Relevance.fit(s.images, it.background)
    bars = [[usual.threshold(q, strictness=x, best=-1) for x in (0.25, 0.5)] for q in s.scores]
    half, whole = np.split(np.array(bars), 2, axis=1)  # l 1
    return 0.5 + 0.25 * (s.scores - whole) / (whole - half)


def z_score(it: Material, s: Split) -> np.ndarray:
    """By the query's own median and median absolute deviation."""
    level = np.median(s.scores, axis=1, keepdims=True)
    return (s.scores - level) / np.median(abs(s.scores - level), axis=1, keepdims=True)


def tail(it: Material, s: Split) -> np.ndarray:
    """Excess over the 90th percentile, in units of the mean excess (an exponential tail)."""
    start = np.quantile(s.scores, 0.9, axis=1, keepdims=True)
    over = np.where(s.scores > start, s.scores - start, np.nan)
    return (s.scores - start) / np.nanmean(over, axis=1, keepdims=True)


def margin(it: Material, s: Split) -> np.ndarray:
    """Against what the best twentieth of the general words gives the same picture."""
    return s.scores - np.quantile(s.images @ it.background.T, 0.95, axis=1)


def rank(it: Material, s: Split) -> np.ndarray:
    """How many general words fit the picture better, counted downwards."""
    others = s.images @ it.background.T  # n m
    return -np.stack([(others > q[:, None]).sum(1) for q in s.scores]).astype(float)


def posterior(it: Material, s: Split) -> np.ndarray:
    """Log probability of the query among the general words, by the model's own scale."""
    others = it.scale * s.images @ it.background.T
    return it.scale * s.scores - np.log(np.exp(others).sum(1))


def both_ways(it: Material, s: Split) -> np.ndarray:
    """Ours, with the level of each picture taken away too."""
    levels = (s.images @ it.background.T).mean(1)
    return ours(it, s._replace(scores=s.scores - levels))


def mixed(it: Material, s: Split) -> np.ndarray:
    """The sum of z-score and margin, each by its deviation over all queries and pictures."""
    parts = [rule(it, s) for rule in (z_score, margin)]
    return sum(part / part.std() for part in parts)


RULES: dict[str, Rule] = {
    "flat cosine": cosine,
    "z-score (median, MAD)": z_score,
    "tail of the query's own scores": tail,
    "margin over general words": margin,
    "rank among general words": rank,
    "posterior among general words": posterior,
    "z-score and margin": mixed,
    "ours": ours,
    "ours, pictures' levels too": both_ways,
}


def learned(it: Material) -> list[np.ndarray]:
    """For each salt, the found-score [l] of a logistic regression fitted to other labels."""
    splits = [split(it, salt) for salt in SALTS]
    features = np.concatenate([_features(it, s) for s in splits])
    features = (features - features.mean(0)) / features.std(0)
    features = np.hstack([features, np.ones((len(features), 1))])
    target = np.concatenate([s.present for s in splits])
    fold = np.array([hashlib.sha256(x.encode()).digest()[1] % 4 for x in it.labels] * len(splits))
    found = np.empty(len(features))
    for k in range(4):
        x, y = features[fold != k], target[fold != k]
        weight = np.zeros(x.shape[1])
        for _ in range(20):  # Newton's steps
            p = 1 / (1 + np.exp(-x @ weight))
            hessian = (x * (p * (1 - p))[:, None]).T @ x + 3 * np.eye(len(weight))
            weight += np.linalg.solve(hessian, x.T @ (y - p) - 3 * weight)
        found[fold == k] = features[fold == k] @ weight
    return np.split(found, len(splits))


def _features(it: Material, s: Split) -> np.ndarray:
    best = np.take_along_axis(s.scores, s.places[:, :5], 1)
    first, parts = s.places[:, 0], (0.5, 0.9, 0.95, 0.99, 1)
    pictures = s.images @ it.background.T
    words = it.texts @ it.background.T
    near = s.images[s.places[:, :5]]  # l 5 e
    return np.column_stack(
        [
            *best.T,
            *(best[:, :1] - best[:, 1:]).T,
            s.scores.mean(1),
            s.scores.std(1),
            np.median(s.scores, axis=1),
            *np.quantile(pictures[first], parts, axis=1),
            *np.quantile(words, parts, axis=1),
            np.linalg.norm(near.mean(1), axis=1),
            [len(label.split()) for label in it.labels],
        ]
    )


def shown_by_ours(it: Material, s: Split, strictness: float) -> np.ndarray:
    """Which of the first ten are shown, bool [l 10]."""
    usual = Relevance.fit(s.images, it.background)
    bars = [usual.threshold(q, strictness=strictness) for q in s.scores]
    return np.take_along_axis(s.scores, s.places, 1) >= np.array(bars)[:, None]


# --- figures --------------------------------------------------------------------------------------


def figures(s: Split, best: np.ndarray, right: np.ndarray) -> list[float]:
    """[AUC, AUC without kin, false found at 5 points lost, the same without kin, points lost at
    20 % false found, the same without kin]. best: the highest score of any of the first ten; right:
    the same, -inf where no right picture is among them."""
    absent, found = best[~s.present], right[s.present]
    free = best[s.free]
    bar = np.sort(found[np.isfinite(found)])[int(0.05 * len(found))]
    values = [auc(best[s.present], absent), auc(best[s.present], free)]
    values += [100 * (x >= bar).mean() for x in (absent, free)]
    for some in (absent, free):
        bar = np.sort(some)[::-1][int(0.2 * len(some))]  # a fifth of them are above it
        values.append(100 * (np.isfinite(found) & (found <= bar)).mean())
    return values


def auc(above: np.ndarray, below: np.ndarray) -> float:
    difference = above[:, None] - below[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def row(name: str, values: list[list[float]]) -> str:
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
    cells = [f"{m:.2f}±{d:.2f}" if i < 2 else f"{m:.0f}±{d:.0f}" for i, (m, d) in
             enumerate(zip(mean, spread, strict=True))]  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


def rules_table(it: Material) -> list[str]:
    lines = [
        "| rule | AUC | without kin | false found at 5 lost | without kin "
        "| lost at 20 % false found | without kin |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        values = []
        for salt in SALTS:
            s = split(it, salt)
            out = np.take_along_axis(rule(it, s), s.places, 1)
            best = out.max(1)
            values.append(figures(s, best, np.where(s.right.any(1), best, -np.inf)))
        lines.append(row(name, values))
    values = []
    for salt, score in zip(SALTS, learned(it), strict=True):
        s = split(it, salt)
        values.append(figures(s, score, np.where(s.right.any(1), score, -np.inf)))
    lines.append(row("learned", values))
    firsts = [split(it, salt) for salt in SALTS]
    gaps = [100 * (s.right.any(1) & ~s.right[:, 0])[s.present].mean() for s in firsts]
    false, lost = (f"{np.mean(np.maximum(0, np.array(gaps) - x)):.0f}" for x in (5, 20))
    return [*lines, f"| oracle | | | {false} | | {lost} | |", ""]


def curve_table(it: Material, strictness: tuple[float, ...] = CURVE) -> list[str]:
    lines = [
        "| strictness | recall lost | of those that stand first | false found | without kin "
        "| wrong pictures hidden |",
        "|---|---|---|---|---|---|",
    ]
    splits = [split(it, salt) for salt in SALTS]
    recall = np.mean([s.right.any(1)[s.present].mean() for s in splits])
    first = np.mean([s.right[:, 0][s.present].mean() for s in splits])
    for x in strictness:
        values = []
        for s in splits:
            shown = shown_by_ours(it, s, x)
            right = s.right[s.present]
            values.append(
                [
                    (right.any(1) & ~(right & shown[s.present]).any(1)).mean(),
                    (right & ~shown[s.present])[:, 0].sum() / right[:, 0].sum(),
                    shown[~s.present].any(1).mean(),
                    shown[s.free].any(1).mean(),
                    (~shown[s.present] & ~right).sum() / (~right).sum(),
                ]
            )
        mean, spread = 100 * np.mean(values, axis=0), 100 * np.std(values, axis=0)
        cells = [f"{m:.0f}±{d:.0f}" for m, d in zip(mean, spread, strict=True)]
        name = f"**{x}**" if x == STRICTNESS else f"{x}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = [f"{np.mean([f(s) for s in splits]):.0f}" for f in (
        lambda s: len(s.images), lambda s: s.present.sum(), lambda s: (~s.present).sum(),
        lambda s: s.free.sum())]  # fmt: skip
    head = (
        f"{counts[0]} pictures in the collection, {counts[1]} labels present, {counts[2]} absent, "
        f"{counts[3]} of them without kin (means of five salts). Without a cut-off the right "
        f"picture is among the first ten for {100 * recall:.0f} %, the first for "
        f"{100 * first:.0f} %."
    )
    return [head, "", *lines, ""]


def one_kind(enc: diptych.Encoder, it: Material, keys: list[str]) -> list[str]:
    """A collection of one kind, asked for that kind: the share of it that is shown."""
    lines = [
        "| collection | pictures | asked for | shown by ours | by z-score |",
        "|---|---|---|---|---|",
    ]
    for folder, word in (
        ("animals/birds/", "bird"),
        ("animals/mammals/", "mammal"),
        ("food/fruit/", "fruit"),
        ("plants/flowers/", "flower"),
    ):
        images = it.images[[key.startswith(folder) for key in keys]]
        scores = images @ enc.encode_text(word)[0]
        shown = scores >= Relevance.fit(images, it.background).threshold(scores)
        alone = scores >= Relevance.fit(images, it.background).threshold(scores, kind="image")
        lines.append(
            f"| {folder} | {len(images)} | {word} | {100 * shown.mean():.0f} % "
            f"| {100 * alone.mean():.0f} % |"
        )
    return [*lines, ""]


def picture_queries(it: Material) -> str:
    """Each picture asks for the others. Something is there: one of its label, or of strict kin."""
    found: dict[bool, list[bool]] = {True: [], False: []}
    usual = Relevance.fit(it.images, it.background)
    scores = it.images @ it.images.T
    for i, label in enumerate(it.of):
        others = np.arange(len(it.of)) != i
        related = it.kin[0][label, it.of] & others
        if related.any() or not (it.kin[1][label, it.of] & others).any():
            bar = usual.threshold(scores[i][others], kind="image")
            wanted = related if related.any() else others
            found[bool(related.any())].append(bool((scores[i][wanted] >= bar).any()))
    yes, no = (100 * np.mean(found[key]) for key in (True, False))
    return (
        f"Pictures as queries: one of the same kind is shown for {yes:.0f} % of the "
        f"{len(found[True])} that have one; anything is shown for {no:.0f} % of the "
        f"{len(found[False])} that have not even near kin."
    )


def random_weights(unpacked: Path) -> str:
    """A model that has learned nothing should find nothing."""
    it = read(diptych.build("ViT-B-32/openai", seed=0, precision="fp32"), unpacked, "tuxpaint")
    shown = []
    for salt in SALTS:
        s = split(it, salt)
        shown.append(shown_by_ours(it, s, STRICTNESS).any(1).mean())
    return (
        f"ViT-B-32 with random weights: {100 * np.mean(shown):.0f} % of all labels find something "
        "at the default."
    )


def cost() -> str:
    scores = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    usual = Relevance(centre=0, limit=1, spread=1)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        usual.threshold(scores)
        seconds.append(time.perf_counter() - start)
    return f"One threshold over 100,000 scores: {1e3 * min(seconds):.1f} ms."


@click.group(help="\n\n".join(f"\b\n{part}" for part in (__doc__ or "").split("\n\n")))
def main() -> None: ...


def _unpacked(folder: Path) -> Path:
    return packages.unpack(folder, tuple(p for p in packages.PACKAGES if p.name in NEEDED))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def words(folder: Path) -> None:
    """Print the general words, as engine/relevance.py holds them."""
    for name, some in kin.most_tagged(_unpacked(folder), 20).items():
        print(f'    "{name}": "{", ".join(some)}",')


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--last", is_flag=True, help="GCompris too, on which nothing may be tuned.")
def evaluate(folder: Path, *, last: bool) -> None:
    """Print the tables."""
    torch.set_num_threads(2)
    unpacked = _unpacked(folder)
    listed = [word for some in kin.most_tagged(unpacked, 20).values() for word in some]
    kept = [text.removeprefix("a photo of a ").rstrip(".") for text in background_texts()]
    assert kept == listed, "the words in engine/relevance.py are not those of WordNet"
    enc = diptych.load("mini", device="cpu", precision="fp32")
    it = read(enc, unpacked, "tuxpaint")
    print(f"# Tux Paint, mini {enc.fingerprint[:16]}\n")
    print("\n".join(curve_table(it) + rules_table(it)))
    print("\n".join(one_kind(enc, it, [p.key for p in pictures_of(unpacked, "tuxpaint")])))
    print(f"{picture_queries(it)}\n\n{random_weights(unpacked)}\n\n{cost()}\n")
    if last:
        it = read(enc, unpacked, "gcompris")
        print("# GCompris animals and tools: nothing was tuned on them\n")
        print("\n".join(curve_table(it) + rules_table(it)))


if __name__ == "__main__":
    main()
