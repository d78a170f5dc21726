"""Do the promises of conformal sets and of rejection hold on pictures that they were not fitted on?

    scripts/bench promises build/eval

For each set (of `recipes/evaluation.py`), 200 random halves: fitted on one, measured on the other.
A promise of precision has a confidence of 95 %: it may be broken in 5 % of the 200 halves.
"""

from pathlib import Path

import click
import numpy as np
import torch

import diptych
from diptych.errors import DataError
from diptych.eval.conformal import Conformal, Rejection
from diptych.eval.sets import find, read
from diptych.eval.tasks.encode import encode
from diptych.eval.tasks.protocol import names_of, templates_for
from diptych.eval.zeroshot import zero_shot_weights

SETS = ("shapes", "tuxpaint", "food", "emoji-fluent", "digits")
HALVES = 200


def probabilities(encoder, row, folder):
    found = read(row, folder)
    kept, vectors, _ = encode(encoder, found.samples, frames=True)
    weights = zero_shot_weights(encoder, names_of(row, found), templates_for(row, found))
    labels = torch.tensor([found.samples[i].labels[0] for i in kept])
    return encoder.probabilities(torch.cat(vectors), weights).double(), labels


def halves(n):
    rng = np.random.default_rng(0)
    for _ in range(HALVES):
        order = torch.from_numpy(rng.permutation(n))
        yield order[: n // 2], order[n // 2 :]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def main(folder):
    encoder = diptych.load("mini", precision="fp32")
    print(f"$ scripts/bench promises {folder}\nmini, {HALVES} random halves of each set\n")
    print("Conformal sets: mean coverage on the other half (and mean number of labels)")
    made = {}
    for row in find(SETS):
        made[row.name] = probabilities(encoder, row, Path(folder, row.name))
    for name, (shares, labels) in made.items():
        cells = []
        for coverage in (0.8, 0.9, 0.95):
            got, sizes = [], []
            for fit, test in halves(len(labels)):
                sets = Conformal(coverage=coverage).fit(shares[fit], labels[fit])
                chosen = sets.predict_sets(shares[test])
                got.append(float(chosen.gather(1, labels[test, None]).double().mean()))
                sizes.append(float(chosen.sum(1).double().mean()))
            cells.append(f"{coverage:.0%}: {np.mean(got):6.2%} ({np.mean(sizes):.0f})")
        print(f"  {name:<14} {len(labels):>5} samples  {'   '.join(cells)}")
    print("\nRejection: share of halves in which the promise was broken; made; answered then")
    for name, (shares, labels) in made.items():
        cells = []
        for precision in (0.3, 0.5, 0.7):
            broken, answered = 0, []
            for fit, test in halves(len(labels)):
                try:
                    reject = Rejection(precision=precision).fit(shares[fit], labels[fit])
                except DataError:  # no threshold keeps it
                    continue
                said = reject.predict(shares[test])
                kept = said >= 0
                answered.append(float(kept.double().mean()))
                right = (
                    float((said[kept] == labels[test][kept]).double().mean()) if kept.any() else 1
                )
                broken += right < precision
            told = f"made {len(answered)}"
            if answered:
                told = f"broken {broken} of {len(answered)}, answered {np.mean(answered):.0%}"
            cells.append(f"{precision:.0%}: {told}")
        print(f"  {name:<14} {'   '.join(cells)}")


if __name__ == "__main__":
    main()
