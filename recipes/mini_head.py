"""What joins the two towers of `mini`: class vectors, a learned correction, colours, the scale.

All text vectors are of the quantised text tower, so that the shipped file is consistent in itself.
`Encode` is texts -> unit rows [n e] on the CPU. Letters: k classes, e width of the space.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import wordnet
from torch import Tensor

from diptych.towers.concepts import COLOURS

__all__ = [
    "PROMPTS",
    "Hypernyms",
    "class_words",
    "concept_vectors",
    "fit_scale",
    "hypernyms",
    "learn",
    "palette_vectors",
    "prompted",
    "unit",
]

Encode = Callable[[Sequence[str]], Tensor]
PROMPTS = ("{}", "a photo of a {}.", "a picture of a {}.")


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def prompted(encode: Encode, words: Sequence[str]) -> Tensor:
    """Unit rows: the mean over the three prompts of each word."""
    rows = encode([prompt.format(word) for word in words for prompt in PROMPTS])
    return unit(rows.view(len(words), len(PROMPTS), -1).mean(1))


def class_words(nouns: Mapping[str, wordnet.Noun], classes: Sequence[str]) -> list[str]:
    """The first two lemmas of each class."""
    return [", ".join(nouns[offset].lemmas[:2]) for offset in classes]


def concept_vectors(
    encode: Encode, nouns: Mapping[str, wordnet.Noun], classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """(unit class vectors [k e], their mean before centring [e]): names, gloss, hypernyms.

    c_k = a_k + 0.5 g_k + 0.2 h_k: a the prompted names, g "lemma: gloss", h the hypernyms of depth
    5 and more, each 0.4 times the one below it. Unit, less the mean of all, unit again.
    """
    names = prompted(encode, class_words(nouns, classes))
    glosses = encode([f"{nouns[o].lemmas[0]}: {nouns[o].gloss}" for o in classes])
    above = [wordnet.ancestors(nouns, offset) for offset in classes]
    deep = sorted({o for each in above for o in each if wordnet.depth(nouns, o) >= 5})
    vectors = dict(zip(deep, prompted(encode, [nouns[o].lemmas[0] for o in deep]), strict=True))
    hypernyms = torch.zeros_like(names)
    for k, each in enumerate(above):
        for offset, distance in each.items():
            if offset in vectors:
                hypernyms[k] += 0.4 ** (distance - 1) * unit(vectors[offset] + names[k])
    vectors = unit(names + 0.5 * glosses + 0.2 * hypernyms)
    mean = vectors.mean(0)
    return unit(vectors - mean), mean


class Hypernyms(NamedTuple):
    """General nouns above the classes: unit text vectors [h e], and what is below which [k h]."""

    vectors: Tensor
    below: Tensor


def hypernyms(
    encode: Encode,
    mean: Tensor,
    nouns: Mapping[str, wordnet.Noun],
    classes: Sequence[str],
    without: Collection[str],
) -> Hypernyms:
    """All nouns of depth 4 and more above a class, but those whose lemmas are in `without`."""
    above = [wordnet.ancestors(nouns, offset).keys() for offset in classes]
    found = [
        offset
        for offset in sorted(set().union(*above))
        if wordnet.depth(nouns, offset) >= 4
        and not {lemma.lower() for lemma in nouns[offset].lemmas} & set(without)
    ]
    vectors = unit(prompted(encode, [nouns[offset].lemmas[0] for offset in found]) - mean)
    below = torch.tensor([[offset in each for offset in found] for each in above])
    return Hypernyms(vectors, below)


def learn(
    concepts: Tensor,
    names: Tensor,
    general: Hypernyms,
    classifier: tuple[Tensor, Tensor],
    views: Tensor,
    captions: Tensor,
    same: Tensor,
    *,
    seed: int,
    steps: int = 450,
    temperature: float = 1.5,
    top: int = 200,
    penalty: float = 1.0,
    num_drawn: int = 512,
    num_made: int = 384,
    share_general: float = 0.6,
) -> Tensor:
    """A correction of `concepts` [k e], by symmetric InfoNCE on drawings and on made-up features.

    Args:
        names: unit text vectors of the classes [k e].
        classifier: its weight [k d] and bias [k].
        views: features of the drawings [v n d], v views of each.
        captions: unit text vectors [n e]; same: an id of each caption [n], equal for equal texts.

    `num_made` of a batch are pseudo photographs: a drawing's features, faded, plus the direction of
    one class, with that class's name or, in `share_general` of them, a noun above it; such a noun
    is right for every pseudo photograph below it. Without them the drawings pull the classes apart
    and "animal" is lost. AdamW, one cycle to 3e-3, penalty * |correction|^2.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, bias = classifier
    directions = unit(weight - weight.mean(0))
    correction = torch.zeros_like(concepts).requires_grad_()
    scale = torch.tensor(math.log(20.0)).requires_grad_()
    groups = [
        {"params": [correction], "weight_decay": 0.05},
        {"params": [scale], "weight_decay": 0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    first_class = int(same.max()) + 1  # ids: captions, then classes, then general nouns
    for _ in range(steps):
        drawn = torch.randperm(len(captions), generator=generator)[:num_drawn]
        view = torch.randint(len(views), (num_drawn,), generator=generator)
        base = views[0, torch.randint(len(captions), (num_made,), generator=generator)]
        classes = torch.randint(len(concepts), (num_made,), generator=generator)
        fade, push = (torch.rand(num_made, 1, generator=generator) for _ in range(2))
        made = F.relu(fade * base + (3 + 6 * push) * directions[classes])
        below = general.below[classes]
        noun = torch.multinomial(below + 1e-9, 1, generator=generator)[:, 0]
        is_general = torch.rand(num_made, generator=generator) < share_general
        is_general &= below.any(1)
        features = torch.cat([views[view, drawn], made])
        p = ((features @ weight.T + bias) / temperature).softmax(-1)
        p = torch.where(p >= p.topk(top, dim=-1).values[:, -1:], p, 0)
        image = unit(p @ (concepts + correction))
        said = torch.where(is_general[:, None], general.vectors[noun], names[classes])
        text = torch.cat([captions[drawn], said])
        ids = torch.cat([same[drawn], first_class + classes])
        positive = ids[:, None] == ids
        right = torch.where(
            is_general, general.below[classes][:, noun], classes[:, None] == classes
        )
        positive[num_drawn:, num_drawn:] = right
        positive = positive.float()
        logits = scale.exp().clamp(max=60) * image @ text.T
        losses = [
            (z.log_softmax(1) * y).sum(1) / y.sum(1).clamp(min=1)
            for z, y in ((logits, positive), (logits.T, positive.T))
        ]
        loss = -(losses[0].mean() + losses[1].mean()) / 2
        loss = loss + penalty * correction.square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return correction.detach()


def palette_vectors(encode: Encode, mean: Tensor, concepts: Tensor, nouns: Sequence[str]) -> Tensor:
    """[c e]: where the text tower moves when a colour word comes before a noun.

    The mean over `nouns` of ("red noun" - "noun"), less the mean colour, without its part in the 40
    main directions of the class vectors, so that colours do not speak for things. Unit rows.
    """
    plain = unit(prompted(encode, nouns) - mean)
    moved = []
    for colour in COLOURS:
        words = [f"{colour} {noun}" for noun in nouns]
        moved.append((unit(prompted(encode, words) - mean) - plain).mean(0))
    vectors = torch.stack(moved)
    vectors = unit(vectors - vectors.mean(0))
    main = torch.linalg.svd(concepts - concepts.mean(0), full_matrices=False).Vh[:40]
    return unit(vectors - vectors @ main.T @ main)


def fit_scale(cosines: Sequence[tuple[Tensor, Tensor]]) -> float:
    """log of the scale that makes softmax(scale * cosine) most likely, over sets of
    (cosines [n l], right label [n]); every picture counts once. Golden-section search on [0, 5].
    """

    def loss(log_scale: float) -> float:
        losses = [
            F.cross_entropy(math.exp(log_scale) * c.double(), y, reduction="none")
            for c, y in cosines
        ]
        return float(torch.cat(losses).mean())

    low, high, ratio = 0.0, 5.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return (low + high) / 2
