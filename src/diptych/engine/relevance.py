"""Whether anything fits a question at all: a cut-off that is made for each query anew.

A query finds the nearest of whatever is there. What an unrelated picture scores depends on the
model, on the collection and on the query, so no fixed cosine can say where the hits end:

    bar = level + 2 * strictness * spread * sqrt(2 ln n)

Something is found when the best picture reaches the bar. Then those are shown that come 0.7 of the
way from the level to it: where one picture surely fits, a fainter one is worth a look.

- level: what this query gives a picture that has nothing to do with it, the median of its cosines
  over the collection. For words it may not lie farther from the levels of general words than these
  lie from each other (two standard deviations): a collection of nothing but cats has a high median
  for "a cat", and the cats are to be found all the same.
- spread: for words, how much the cosines of general words vary from picture to picture, their
  levels taken away; for pictures, the median absolute deviation of the query's own cosines.
- sqrt(2 ln n): of n independent normal numbers the largest is about that many standard deviations
  above the mean (Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika
  1994). At the default strictness of 0.5 a hit must stand above what chance gives the best of n.

The general words (`background_texts`) are the nouns for visible things that are tagged most often
in SemCor, 20 of each of WordNet's files for them: chosen by nobody here, and before any test.

What it is worth, against which other rules, and how it was measured:
docs/explanation/nothing-found.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from diptych.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["FEWEST", "STRICTNESS", "Relevance", "background_texts"]

STRICTNESS = 0.5
FEWEST = 20  # pictures; of fewer nobody can say what is usual among them
_SAMPLE = 4096  # pictures that the general words are compared with
_FAINTER = 0.7
_NORMAL = 1.4826  # standard deviation / median absolute deviation, of normal numbers

# Written by `python recipes/cutoff.py words build/packages`, from WordNet 3.0's cntlist.rev.
_WORDS = {
    "animal": "horse, dog, bird, cattle, hen, human being, bee, cow, snake, egg, anaconda, cat, "
    "female, queen, mouse, sheep, bumblebee, fish, rabbit, andrena",
    "artifact": "house, room, door, road, surface, street, wall, rifle, gun, window, car, cell, "
    "anode, plant, office, shelter, product, bed, art, farm",
    "body": "eye, hand, head, face, body, arm, foot, leg, shoulder, blood, hair, lip, back, "
    "finger, knee, mouth, muscle, tooth, tissue, ear",
    "food": "coffee, feed, dinner, drink, meal, milk, whisky, beer, chicken, avocado, supper, "
    "breakfast, lunch, hay, liquor, honey, wine, diet, radish, ration",
    "object": "ground, river, earth, sky, sun, sea, hill, moon, europe, valley, pond, bank, agent, "
    "planet, coast, stream, shore, mountain, hills, stone",
    "person": "man, youth, friend, soldier, child, boy, woman, wife, mother, god, officer, girl, "
    "doctor, patient, father, husband, member, student, employee, comrade",
    "phenomenon": "effect, result, pressure, smoke, light, arc, energy, radiation, wind, rain, "
    "cloud, shear, weather, heat, consequence, spectrum, radio emission, bond, fog, exchange",
    "plant": "tree, grass, flower, leaf, pansy, sweet clover, seed, root, fruit, pollen, crop, "
    "willow, catkin, vine, blossom, bough, foliage, pseudophloem, bush, rose",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Relevance:
    """What is usual between words and the pictures of one collection, in one model's space.

    Attributes:
        centre: the middle of the levels of the general words; a cosine.
        limit: how far from it the level of a query may lie.
        spread: standard deviation of the words' cosines around their levels.
    """

    centre: float
    limit: float
    spread: float

    @classmethod
    def fit(
        cls, vectors: Float[np.ndarray, "n e"], background: Float[np.ndarray, "m e"]
    ) -> Relevance:
        """Measure it: some milliseconds, whatever n is, for at most 4096 rows are read.

        Args:
            vectors: unit rows of the collection, of any float type, also memory-mapped; rows with
                NaN count for nothing.
            background: unit rows of `background_texts()` by the same model.

        Raises:
            ConfigError: the two are not rows of one space, or hold nothing to measure.
        """
        if vectors.ndim != 2 or background.ndim != 2 or vectors.shape[1] != background.shape[1]:
            raise ConfigError(
                f"vectors {list(vectors.shape)} and background {list(background.shape)} are not "
                "rows of one space. Make both with the same model."
            )
        places = np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLE)).round().astype(int)
        some = np.asarray(vectors[places], np.float32)
        some = some[np.isfinite(some).all(1)]
        if not len(some) or len(background) < 2:
            raise ConfigError(
                f"{len(some)} pictures and {len(background)} texts are too few to say what is "
                "usual. Give at least one picture and two texts."
            )
        cosines = some @ np.asarray(background, np.float32).T  # n m
        levels = np.median(cosines, axis=0)
        return cls(
            centre=float(np.median(levels)),
            limit=float(2 * levels.std()),
            spread=float((cosines - levels).std()),
        )

    def threshold(
        self,
        scores: Float[np.ndarray, " n"],
        *,
        kind: Literal["text", "image"] = "text",
        strictness: float = STRICTNESS,
        best: float | None = None,
    ) -> float:
        """The cosine that a picture must reach to be shown; above all of them, nothing is found.

        Args:
            scores: the query's cosines over the whole collection, also where a filter hides a part
                of it: they say what is usual. NaN and infinity count for nothing.
            kind: "text" for words; "image" as soon as a picture is a part of the query.
            strictness: from 0, which shows everything, to 1, twice the default's distance.
            best: the highest cosine of those that may answer, where a filter hides some; by
                default that of `scores`.

        Returns:
            -1, which everything reaches, for strictness 0 and where fewer than 20 pictures leave
            nothing to compare with.

        Raises:
            ConfigError: a strictness outside 0 to 1, or another kind.
        """
        if not 0 <= strictness <= 1:
            raise ConfigError(
                f"strictness must be from 0 (show everything) to 1, got {strictness}. "
                f"The default is {STRICTNESS}."
            )
        if kind not in ("text", "image"):
            raise ConfigError(f"kind must be 'text' or 'image', got {kind!r}")
        scores = scores[np.isfinite(scores)]
        if strictness == 0 or len(scores) < FEWEST:
            return -1.0
        level = float(np.median(scores))
        if kind == "text":
            level = min(max(level, self.centre - self.limit), self.centre + self.limit)
            spread = self.spread
        else:
            spread = _NORMAL * float(np.median(np.abs(scores - level)))
        distance = 2 * strictness * spread * math.sqrt(2 * math.log(len(scores)))
        best = float(scores.max()) if best is None else best
        return level + distance * (_FAINTER if best >= level + distance else 1)


def background_texts() -> list[str]:
    """General words that most pictures have nothing to do with: encode them once for each model.

    Every other one stands in a sentence. Models give sentences another level than single words, and
    people write both.
    """
    words = [word for some in _WORDS.values() for word in some.split(", ")]
    return [f"a photo of a {word}." if i % 2 else word for i, word in enumerate(words)]
