"""Do moderation thresholds keep what they promise on the half they were not set on?

    scripts/bench moderation [--splits 100]

Photographs of the packages (recipes/packages.py) and what their own folders and names say of them.
For each label: many random halves; one half sets the thresholds, the other is measured. A promise
is broken where a threshold was set and the precision (or recall) is below the target, which may
happen in at most 1 - confidence of the splits. "kept": the share of all splits in which the other
half did not measure less than the target. "not shown broken": in which it did not measure less by
more than chance (upper end of its 95 % one-sided interval). The other half is a sample too: of a
promise that is just kept it measures less than the target in up to half of the splits, so the first
is too strict and the second too mild. "due": how often a cut for no that just keeps its promise
would be measured as kept, exactly (beta-binomial, from the numbers of true ones in both halves).
"""

import argparse
import math
import sys
from pathlib import Path

import torch

import diptych
from diptych.eval.binomial import clopper_pearson
from diptych.judge.images import Item, encode_items
from diptych.judge.moderate import (
    accept_threshold,
    halves,
    measure,
    policy_scores,
    reject_threshold,
    sentences,
)
from diptych.judge.policy import Label, Policy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import photographs  # noqa: E402

THINGS = {
    "animal": ("a photo of an animal", "a bird", "a fish", "an insect", "a wild animal"),
    "food": ("a photo of food", "fruit", "vegetables", "a dish"),
    "tool": ("a photo of a tool", "a hammer", "a knife", "scissors"),
    "building": ("a photo of a building", "a tower", "a castle", "a cathedral"),
}
CONFIDENCE = 0.9
NOTHING = ("a photo of a plant", "a vehicle", "a piece of clothing", "a musical instrument")


def policy() -> Policy:
    labels = []
    for name, yes in THINGS.items():
        no = [s for other, some in THINGS.items() if other != name for s in some]
        labels.append(Label(name=name, yes=yes, no=(*no, *NOTHING)))
    return Policy(labels=tuple(labels))


def pictures() -> tuple[list[Item], torch.Tensor]:
    """GCompris and Tux Paint, where `nouns` says all four; and as many dishes as there are others.

    Of the dishes only those without animals: a fish on a plate is both, as one sees it.
    """
    sets = photographs.sets(ROOT / "build/packages/unpacked")
    known = [p for name in ("gcompris", "others", "monuments", "tuxpaint") for p in sets[name]]
    known += [p for p in sets["food"] if "animal" not in p.nouns][:200]
    items = [Item(key=p.key, image=p.data) for p in known]
    truth = torch.tensor([[float(name in p.nouns) for name in THINGS] for p in known])
    return items, truth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    encoder = diptych.load(arguments.model)
    rules = policy()
    items, truth = pictures()
    found = sentences(encoder, rules)
    rows = [one.vectors for one in encode_items(encoder, items) if one.vectors is not None]
    assert len(rows) == len(items)
    scores = policy_scores(found, torch.cat(rows)).cpu()
    print(f"{len(items)} photographs, {arguments.splits} random halves, {arguments.model}")
    print(f"confidence {CONFIDENCE}")
    print(
        f"\n{'':22} {'yes':^45} {'no':^42}\n{'label':9} {'true':>5} {'target':>6} "
        f"{'set':>5} {'precision':>10} {'kept':>5} {'not shown broken':>17} {'found':>6} "
        f"{'set':>5} {'recall':>7} {'kept':>5} {'due':>5} {'not shown broken':>17} {'unsure':>7}"
    )
    for target in (0.8, 0.9, 0.95):
        for i, label in enumerate(rules.labels):
            line(label, scores[:, i], truth[:, i] > 0.5, target, arguments.splits)


def line(label, scores, right, target, splits) -> None:
    """One row of the table."""
    exact, kept, found, unsure = [], [], [], []
    shown = [0, 0]
    for seed in range(splits):
        first, second = halves(right, seed=seed)
        accept = accept_threshold(
            scores[first], right[first], precision=target, confidence=CONFIDENCE
        )
        reject = reject_threshold(scores[first][right[first]], recall=target, confidence=CONFIDENCE)
        if accept is not None and reject is not None:
            reject = min(accept, reject)
        made = Label(name=label.name, yes=label.yes, no=label.no, accept=accept, reject=reject)
        report = measure(made, scores[second], right[second])
        if report.precision is not None:
            exact.append(report.precision)
            hits = round(report.precision * report.yes)
            shown[0] += clopper_pearson(hits, report.yes, 0.9).high < target
            found.append(report.found)
        if reject is not None:
            kept.append(report.recall)
            hits = round(report.recall * report.positives)
            shown[1] += clopper_pearson(hits, report.positives, 0.9).high < target
        unsure.append(report.unsure / report.num)

    def mean(values) -> str:
        return f"{sum(values) / len(values):.1%}" if values else "-"

    def kept_in(values) -> float:
        return 1 - sum(value < target for value in values) / splits

    print(
        f"{label.name:9} {int(right.sum()):5} {target:6.2f} {len(exact) / splits:5.0%} "
        f"{mean(exact):>10} {kept_in(exact):5.0%} {1 - shown[0] / splits:17.0%} {mean(found):>6} "
        f"{len(kept) / splits:5.0%} {mean(kept):>7} {kept_in(kept):5.0%} {due(right, target):5.0%} "
        f"{1 - shown[1] / splits:17.0%} {mean(unsure):>7}"
    )


def due(right: torch.Tensor, recall: float) -> float:
    """The chance that the other half measures at least `recall` of a cut that just keeps it.

    The cut is the j-th smallest of p scores; of m fresh ones x are below it with the chance of a
    beta-binomial (m, j, p + 1 - j). 1 where no cut is set.
    """
    first, second = (int(right[half].sum()) for half in halves(right, seed=0))
    places = torch.arange(first, dtype=torch.float64)
    cut = reject_threshold(places, recall=recall, confidence=CONFIDENCE)
    if cut is None:
        return 1.0
    a, b = cut + 1, first - cut
    below = range(math.floor((1 - recall) * second + 1e-9) + 1)
    return sum(
        math.exp(_choose(second, x) + _beta(x + a, second - x + b) - _beta(a, b)) for x in below
    )


def _choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


if __name__ == "__main__":
    main()
