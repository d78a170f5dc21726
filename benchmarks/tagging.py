"""Tags on the packaged photographs with `mini`: thresholds of every kind, with intervals.

    scripts/bench tagging build/packages

1,015 photographs (recipes/photographs.py) and 40 general nouns, in the hierarchy below; which nouns
hold is known from the packages' own folders and by hand. Concepts are halved by a hash: numbers are
chosen, and thresholds fitted, on the tuning half; what is printed is the other half, food and
monuments included, on which nothing was tuned. What is usual is measured on the half at hand.

- macro F1: mean over the nouns with 5 pictures or more in the reported half.
- Intervals: 95 %, bootstrap over pictures (percentile).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import diptych
from diptych.engine.relevance import Relevance, background_texts
from diptych.eval.metrics import multilabel
from diptych.eval.uncertainty import bootstrap
from diptych.judge.tag import (
    SPREADS,
    closed,
    fit_thresholds,
    label_vectors,
    raised,
    thresholds,
    with_thresholds,
)
from diptych.judge.vocabulary import Label, Vocabulary

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import photographs

ABOVE = {
    "animal": "mammal bird insect reptile shellfish fish",
    "mammal": "primate rodent deer bear dog cat horse cattle",
    "tool": "scissors wrench",
    "building": "tower cathedral",
    "food": "fruit vegetable nuts",
    "musical instrument": "guitar",
    "clothing": "headgear",
    "vehicle": "car truck aircraft ship",
}
FEWEST = 5
Truth = np.ndarray


def vocabulary() -> Vocabulary:
    """The nouns; those of the table stand below their kind."""
    parent = {child: above for above, below in ABOVE.items() for child in below.split()}

    def parents(noun: str) -> tuple[str, ...]:
        return (*parents(parent[noun]), parent[noun]) if noun in parent else ()

    labels = [Label(name=noun, parents=parents(noun)) for noun in photographs.NOUNS]
    return Vocabulary(labels=tuple(sorted(labels, key=lambda label: len(label.parents))))


def halves(unpacked: Path) -> tuple[list, list]:
    """(tuning, reported) pictures."""
    sets = photographs.sets(unpacked)
    mixed = [p for name in ("gcompris", "others", "tuxpaint") for p in sets[name]]
    tuning = [p for p in mixed if not photographs.is_reported(p.label)]
    reported = [p for p in mixed if photographs.is_reported(p.label)]
    return tuning, reported + sets["monuments"] + sets["food"]


class Half:
    """Vectors, cosines and truth of some pictures."""

    def __init__(self, encoder: diptych.Encoder, pictures: list, words: Vocabulary):
        vectors = encoder.encode_image(photographs.opened(p) for p in pictures)
        names = [label.name for label in words.labels]
        truth = np.array([[name in p.nouns for name in names] for p in pictures])
        self.truth = closed(truth, words)
        self.cosines = vectors @ label_vectors(encoder, words).T
        self.usual = Relevance.fit(vectors, encoder.encode_text(background_texts()))

    def deviations(self) -> np.ndarray:
        """The textbook's: how many median absolute deviations above its median a label stands."""
        level = np.median(self.cosines, axis=0)
        return (self.cosines - level) / (1.4826 * np.median(np.abs(self.cosines - level), axis=0))


def counts(held: Truth, truth: Truth) -> np.ndarray:
    """[3, n, l]: right, said, true; of pictures and labels."""
    return np.stack([held & truth, held, truth]).astype(float)


def figures(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> tuple[float, ...]:
    """Precision, recall and F1 over all, and macro F1, in percent; counts are [l] each."""
    enough = true >= FEWEST
    each = 2 * right[enough] / np.maximum(said[enough] + true[enough], 1)
    precision, recall = right.sum() / max(said.sum(), 1), right.sum() / true.sum()
    f1 = 2 * right.sum() / (said.sum() + true.sum())
    return tuple(100 * float(x) for x in (precision, recall, f1, each.mean()))


def macro(held: Truth, truth: Truth) -> float:
    """Mean F1 of the labels that some picture has; for choosing on the tuning half."""
    right, said, true = counts(held, truth).sum(1)
    return float((2 * right / np.maximum(said + true, 1))[true > 0].mean())


def interval(held: Truth, truth: Truth) -> list[str]:
    table = counts(held, truth)
    point = figures(*table.sum(1))
    cells = []
    for i, value in enumerate(point):
        found = bootstrap(lambda rows, i=i: figures(*table[:, rows.numpy()].sum(1))[i], len(truth))
        cells.append(f"{value:5.1f} [{found.low:.0f}, {found.high:.0f}]")
    return cells


def rules(tuning: Half, reported: Half, words: Vocabulary) -> dict[str, tuple[Truth, Truth, str]]:
    """Name -> (what holds on the tuning half, on the reported half, what was chosen)."""

    def by(spreads: float, half: Half, words: Vocabulary = words) -> Truth:
        cuts = thresholds(words, half.cosines, half.usual, spreads=spreads)
        return raised(half.cosines - cuts, words) >= 0

    def best(grid: np.ndarray, held) -> float:
        return float(max(grid, key=lambda x: macro(held(x, tuning), tuning.truth)))

    def flat(cut: float, half: Half) -> Truth:
        return raised(half.cosines, words) >= cut

    def textbook(cut: float, half: Half) -> Truth:
        return raised(half.deviations(), words) >= cut

    cut = best(np.arange(0.0, 0.6, 0.005), flat)
    score = best(np.arange(0.5, 12, 0.1), textbook)
    spreads = best(np.arange(0.5, 8, 0.1), by)
    assert abs(spreads - SPREADS) < 0.05, "the default is no longer what the tuning half chooses"
    found = {
        "one cosine for all": (flat(cut, tuning), flat(cut, reported), f"{cut:.3f}"),
        "median and deviation of the label": (
            textbook(score, tuning), textbook(score, reported), f"{score:.1f}",
        ),
        "what is usual, default": (
            by(SPREADS, tuning), by(SPREADS, reported), f"{SPREADS:.1f} spreads",
        ),
    }  # fmt: skip
    for name, precision in (("fitted, best F1", None), ("fitted, precision 0.8", 0.8)):
        fit = fit_thresholds(tuning.cosines, tuning.truth, precision=precision)
        fitted = with_thresholds(words, fit.thresholds)
        told = f"{len(words.labels) - len(fit.left)} of {len(words.labels)} labels"
        found[name] = by(SPREADS, tuning, fitted), by(SPREADS, reported, fitted), told
    plain = reported.cosines >= thresholds(words, reported.cosines, reported.usual)
    there = tuning.cosines >= thresholds(words, tuning.cosines, tuning.usual)
    found["default, without the hierarchy"] = there, plain, ""
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="what recipes/packages.py made")
    unpacked = parser.parse_args().packages / "unpacked"
    torch.set_num_threads(2)
    encoder, words = diptych.load("mini", device="cpu", precision="fp32"), vocabulary()
    tuning, reported = (Half(encoder, pictures, words) for pictures in halves(unpacked))
    print(f"mini {encoder.fingerprint[:16]}, fp32; labels as they are, no template")
    print(f"{len(tuning.truth)} pictures for tuning, {len(reported.truth)} reported\n")
    print(f"{'threshold':34} {'chosen':15} {'tuning':>7} {'precision':>16} {'recall':>16} "
          f"{'F1':>16} {'macro F1':>16}")  # fmt: skip
    all_rules = rules(tuning, reported, words)
    for name, (there, here, chosen) in all_rules.items():
        cells = " ".join(f"{cell:>16}" for cell in interval(here, reported.truth))
        print(f"{name:34} {chosen:15} {100 * macro(there, tuning.truth):7.1f} {cells}")
    scores = torch.from_numpy(raised(reported.cosines, words))
    truth = torch.from_numpy(reported.truth)
    some = truth.sum(0) > 0
    point = multilabel(scores[:, some], truth[:, some])["map"]

    def mean_ap(rows: torch.Tensor) -> float:
        present = truth[rows].any(0)
        return multilabel(scores[rows][:, present], truth[rows][:, present])["map"]

    found = bootstrap(mean_ap, len(truth), samples=200)
    print(f"\nmAP over {int(some.sum())} labels {100 * point:.1f} "
          f"[{100 * found.low:.0f}, {100 * found.high:.0f}]")  # fmt: skip
    here = all_rules["what is usual, default"][1]
    right, said, true = counts(here, reported.truth).sum(1)
    print("\neach label, by the default\n" f"{'label':24} {'pictures':>8} {'said':>6} "
          f"{'precision':>10} {'recall':>7}")  # fmt: skip
    for i in np.argsort(-true, kind="stable"):
        precision = f"{100 * right[i] / said[i]:.0f}" if said[i] else "-"
        recall = f"{100 * right[i] / true[i]:.0f}" if true[i] else "-"
        print(f"{words.labels[i].name:24} {int(true[i]):8} {int(said[i]):6} "
              f"{precision:>10} {recall:>7}")  # fmt: skip


if __name__ == "__main__":
    main()
