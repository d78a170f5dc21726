"""How well captions fit pictures: CLIPScore and RefCLIPScore, by the convention that is named.

Papers: Hessel et al., CLIPScore (arXiv 2104.08718); code jmhessel/clipscore. The other convention
is that of torchmetrics 1.9 (`torchmetrics.multimodal.CLIPScore`).

- "clipscore": 2.5 * max(cos(image, "A photo depicts " + caption), 0) for each pair; the corpus is
  the mean. RefCLIPScore is the harmonic mean of that and of the largest cosine between the caption
  and a reference; the paper clips that cosine at 0, the code does not. The code's rule is the
  default, `clip_references=True` is the paper's. The two differ only where it is negative.
- "torchmetrics": 100 * cos(image, caption), no prefix; the mean is clamped at 0, no pair is.
- The figure is called CLIPScore only with the model it is defined for, ViT-B-32/openai. With any
  other it is "CLIP score of MODEL": figures of two models say nothing about each other.
- A caption longer than the context is cut, as in the original, and counted; or it is judged in
  windows that fit (ours: see `long_text`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.engine import Encoder
from diptych.engine.stream import sources
from diptych.errors import ConfigError, DataError, ImageError
from diptych.eval.binomial import Interval
from diptych.eval.uncertainty import bootstrap
from diptych.judge.images import encode_items
from diptych.judge.long_text import text_windows
from diptych.judge.pairs import Pair
from diptych.judge.rule import Convention, Long, Rule

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Convention",
    "Failed",
    "Long",
    "PairScore",
    "Rule",
    "Scores",
    "Tally",
    "clip_score",
    "score_pairs",
]

MOST_DRAWN = 100_000  # pairs whose interval is drawn; of more, the normal one is the same


class PairScore(NamedTuple):
    """One caption of one picture.

    group: the number of the picture. cosine: of the caption, or the mean of those of its windows.
    reference_score: RefCLIPScore, None without references. cut: the text was longer than what was
    read of it. num_windows: 1 unless it was judged in several. ratings, skipped: as in `Pair`.
    """

    key: str
    group: int
    caption: str
    score: float
    cosine: float
    reference_score: float | None
    cut: bool
    num_windows: int
    ratings: tuple[float, ...]
    skipped: int


class Failed(NamedTuple):
    """A picture that could not be read; none of its captions has a score."""

    key: str
    error: ImageError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A figure, and all that has to be said with it.

    Attributes:
        name: what it is called; model, rule, prefix: what it was made with.
        values: float64 [n], of the pairs in their order; NaN where the picture failed.
        score: of the corpus, None without a pair. interval: 95 %, None below 2 pairs.
        reference_values, reference_score, reference_interval: RefCLIPScore, where asked for.
        num: pairs with a score. num_cut: of those, captions that were cut. num_windowed: captions
            that were judged in more than one window.
        errors: of the pictures that have no score, by key.
    """

    name: str
    model: str
    rule: Rule
    prefix: str
    values: np.ndarray = field(repr=False)
    score: float | None
    interval: Interval | None
    reference_values: np.ndarray | None = field(repr=False)
    reference_score: float | None
    reference_interval: Interval | None
    num: int
    num_cut: int
    num_windowed: int
    errors: tuple[Failed, ...]


def clip_score(
    encoder: Encoder,
    images: Any,
    texts: Sequence[str],
    *,
    convention: Convention = "clipscore",
    long: Long = "cut",
    references: Sequence[str | Sequence[str]] | None = None,
    clip_references: bool = False,
) -> Scores:
    """The score of captions, each for its picture.

    Args:
        images: one for each text; whatever `Encoder.encode_image` takes. One that cannot be read
            leaves NaN and stands in `errors`.
        texts: captions, without the prefix, which the convention adds.
        long: what is done with a caption longer than the context.
        references: for RefCLIPScore, right captions of each picture.
        clip_references: the paper's rule for them in place of its code's.

    Raises:
        DataError: numbers that differ; a picture without a reference.
        ConfigError: a convention that is none; references under torchmetrics, which has none.
    """
    rule = Rule(convention=convention, long=long, clip_references=clip_references)
    if isinstance(texts, str):
        texts = [texts]
    pictures = list(sources(images))
    if len(pictures) != len(texts):
        raise DataError(f"{len(pictures)} images and {len(texts)} texts: give one text an image.")
    if references is not None and len(references) != len(texts):
        raise DataError(f"{len(references)} references and {len(texts)} texts: give one each.")
    right = [(r,) if isinstance(r, str) else tuple(r) for r in references or [()] * len(texts)]
    pairs = [
        Pair(
            key=key if isinstance(key, str) else f"image {key}",
            image=image,
            captions=(text,),
            references=wanted,
        )
        for (key, image), text, wanted in zip(pictures, texts, right, strict=True)
    ]
    tally = Tally(encoder, rule, references=references is not None)
    for one in score_pairs(encoder, pairs, rule=rule, references=references is not None):
        tally.add(one)
    return tally.scores()


def score_pairs(
    encoder: Encoder, pairs: Iterable[Pair], *, rule: Rule, references: bool = False
) -> Iterator[PairScore | Failed]:
    """The score of each caption of each pair, in order; bounded memory.

    Args:
        references: also RefCLIPScore.

    Raises:
        DataError: a pair without references, where they are wanted.
        ConfigError: references under torchmetrics' convention.
    """
    if references and rule.convention == "torchmetrics":
        raise ConfigError(
            "torchmetrics' convention has no references: use convention='clipscore', or leave the "
            "references out."
        )
    numbers = count()
    waiting: list[tuple[int, Pair, Tensor]] = []
    num_texts = 0
    for one in encode_items(encoder, pairs):
        pair = one.item
        if references and not pair.references:
            raise DataError(f"{pair.key}: has no reference. RefCLIPScore needs one for each.")
        if one.error is not None:
            yield from _finished(encoder, waiting, rule, references)
            waiting, num_texts = [], 0
            next(numbers)
            yield Failed(pair.key, one.error)
            continue
        waiting.append((next(numbers), pair, one.vectors[0]))
        num_texts += len(pair.captions) + len(pair.references)
        if num_texts >= 4 * encoder.batch_size:
            yield from _finished(encoder, waiting, rule, references)
            waiting, num_texts = [], 0
    yield from _finished(encoder, waiting, rule, references)


def _finished(
    encoder: Encoder, waiting: list[tuple[int, Pair, Tensor]], rule: Rule, references: bool
) -> Iterator[PairScore]:
    """The pairs whose pictures are known: all their texts go through the tower together."""
    texts: dict[str, None] = {}
    for _, pair, _ in waiting:
        texts |= dict.fromkeys(pair.captions)
        if references:
            texts |= dict.fromkeys(pair.references)
    read = _read(encoder, list(texts), rule)
    for number, pair, image in waiting:
        for caption in pair.captions:
            text = read[caption]
            cosines = text.vectors @ image.double()  # w
            score = float(text.weights @ _each(rule, cosines))
            cut, reference_score = text.cut, None
            if references:
                others = [read[reference] for reference in pair.references]
                likeness = max(_likeness(text, other) for other in others)
                reference_score = _harmonic(score, likeness, rule.clip_references)
            yield PairScore(
                key=pair.key,
                group=number,
                caption=caption,
                score=score,
                cosine=float(text.weights @ cosines),
                reference_score=reference_score,
                cut=cut,
                num_windows=len(text.vectors),
                ratings=pair.ratings,
                skipped=pair.skipped,
            )


class _Text(NamedTuple):
    """A text as the model reads it: unit rows [w e] of its windows, their weights [w], both
    float64, and whether some of it was left out."""

    vectors: Float[Tensor, "w e"]
    weights: Float[Tensor, " w"]
    cut: bool


def _read(encoder: Encoder, texts: list[str], rule: Rule) -> dict[str, _Text]:
    tokenizer, parts = encoder.tokenizer, []
    for text in texts:
        match rule.long:
            case "cut":
                parts.append([(rule.prefix + text, 1.0)])
            case "windows":
                parts.append(text_windows(tokenizer, text, prefix=rule.prefix))
    flat = [text for part in parts for text, _ in part]
    if not flat:
        return {}
    tokens = tokenizer.tokenize(flat, truncate="silent")
    vectors = torch.empty(len(flat), encoder.config.embed_dim, device=encoder.device)
    for rows in torch.argsort(tokens.lengths, stable=True).split(2 * encoder.batch_size):
        vectors[rows] = encoder.run_text(tokens.ids[rows])
    found, start = {}, 0
    for text, part in zip(texts, parts, strict=True):
        rows = slice(start, start + len(part))
        weights = torch.tensor([w for _, w in part], dtype=torch.float64, device=encoder.device)
        cut = bool(tokens.cut[rows].any())
        found[text] = _Text(vectors[rows].double(), weights / weights.sum(), cut)
        start += len(part)
    return found


def _each(rule: Rule, cosines: Float[Tensor, " w"]) -> Float[Tensor, " w"]:
    scores = [rule.of_cosine(cosine) for cosine in cosines.tolist()]
    return torch.tensor(scores, dtype=torch.float64, device=cosines.device)


def _likeness(text: _Text, reference: _Text) -> float:
    """The cosine of two texts; of windows the mean of each one's best in the reference."""
    return float(text.weights @ (text.vectors @ reference.vectors.T).amax(1))


def _harmonic(score: float, likeness: float, clip: bool) -> float:
    """2ab / (a + b); 0 where either is 0, and where the sum is (the code divides by 0 there)."""
    likeness = max(likeness, 0.0) if clip else likeness
    total = score + likeness
    return 2 * score * likeness / total if score and likeness and total else 0.0


class Tally:
    """Collects what `score_pairs` gives: a few numbers a pair are kept, whatever their number."""

    def __init__(self, encoder: Encoder, rule: Rule, *, references: bool = False):
        self.model = str(encoder.card.get("name", "a model without a name"))
        self.rule, self.references = rule, references
        self.values: list[float] = []
        self.reference_values: list[float] = []
        self.groups: list[int] = []
        self.num_cut = self.num_windowed = 0
        self.errors: list[Failed] = []

    def add(self, one: PairScore | Failed) -> None:
        """Count one pair, or one picture that failed."""
        if isinstance(one, Failed):
            self.errors.append(one)
            self.values.append(math.nan)
            self.reference_values.append(math.nan)
            self.groups.append(-1)
            return
        self.values.append(one.score)
        if one.reference_score is not None:
            self.reference_values.append(one.reference_score)
        self.groups.append(one.group)
        self.num_cut += one.cut
        self.num_windowed += one.num_windows > 1

    def scores(self, *, samples: int = 1000) -> Scores:
        """The figure of all that was added."""
        values = np.array(self.values)
        score, interval = self._mean(values, samples)
        others = np.array(self.reference_values) if self.references else None
        reference_score = reference_interval = None
        if others is not None:
            reference_score, reference_interval = self._mean(others, samples)
        return Scores(
            name=self.rule.title(self.model),
            model=self.model,
            rule=self.rule,
            prefix=self.rule.prefix,
            values=values,
            score=score,
            interval=interval,
            reference_values=others,
            reference_score=reference_score,
            reference_interval=reference_interval,
            num=int((~np.isnan(values)).sum()),
            num_cut=self.num_cut,
            num_windowed=self.num_windowed,
            errors=tuple(self.errors),
        )

    def _mean(self, values: np.ndarray, samples: int) -> tuple[float | None, Interval | None]:
        good = ~np.isnan(values)
        some, groups = values[good], np.array(self.groups)[good]
        if not len(some):
            return None, None
        floor = 0.0 if self.rule.convention == "torchmetrics" else -math.inf
        mean, interval = float(some.mean()), None
        if len(np.unique(groups)) > MOST_DRAWN:
            interval = _normal(some, groups)
        elif len(np.unique(groups)) > 1:
            interval = bootstrap(
                lambda rows: float(some[rows.numpy()].mean()),
                len(some),
                clusters=torch.from_numpy(groups),
                samples=samples,
            )
        if interval is not None:
            low, high = (max(end, floor) for end in interval[:2])
            interval = interval._replace(low=low, high=high)
        return max(mean, floor), interval


def _normal(values: np.ndarray, groups: np.ndarray) -> Interval:
    """95 % of a mean, its standard error over pictures (several captions of one hang together)."""
    mean, inverse = values.mean(), np.unique(groups, return_inverse=True)[1].reshape(-1)
    sums = np.bincount(inverse, weights=values - mean)
    half = 1.959964 * math.sqrt(float((sums**2).sum())) / len(values)
    return Interval(float(mean - half), float(mean + half), "normal, clusters")
