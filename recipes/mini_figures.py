"""The tables of docs/models/mini.md: the shipped `mini` against ConSE and its own ablations.

`report(unpacked)` measures the file in the package, prints, and rewrites what stands between the
markers in the model card. All rows of a table use the same towers, prompts and candidates.

- Classification: of all labels of a set, the right one (top-1, top-5, mean reciprocal rank).
- Retrieval: a label as the query, one of its pictures first (R@1, mean reciprocal rank).
- Intervals: Wilson for shares, bootstrap over pictures for means; 95 %. Paired tests on the same
  pictures: exact McNemar for top-1, sign flips of the difference for reciprocal ranks.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import drawings
import mini
import mini_head as head
import photographs
import torch
import wordnet
from torch import Tensor

import diptych
from diptych.config import PreprocessConfig
from diptych.eval import uncertainty
from diptych.towers.concepts import COLOURS

__all__ = ["report"]

CARD = Path(__file__).parents[1] / "docs/models/mini.md"
START, END = "<!-- figures: python recipes/mini.py evaluate -->", "<!-- end of figures -->"
NUM_RESAMPLES = 10_000


# --- statistics -----------------------------------------------------------------------------------


def wilson(right: int, n: int) -> str:
    """ "52.1 [42.2, 61.8]": a share in percent with its 95 % interval."""
    low, high = uncertainty.wilson(right / n, n)
    return f"{100 * right / n:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def bootstrap(values: Tensor) -> str:
    """A mean in percent with its 95 % interval over resampled values."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=generator)
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975]))
    return f"{100 * values.mean():.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def mcnemar(one: Tensor, two: Tensor) -> float:
    """Exact two-sided p of two rows of right and wrong on the same pictures."""
    only_one, only_two = int((one & ~two).sum()), int((two & ~one).sum())
    n, k = only_one + only_two, min(only_one, only_two)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def sign_flips(one: Tensor, two: Tensor) -> float:
    """Two-sided p of the mean difference, under flips of each picture's sign."""
    difference = (one - two).double()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (NUM_RESAMPLES, len(difference)), generator=generator) * 2 - 1
    flipped = (signs * difference).mean(1).abs()
    return (1 + int((flipped >= difference.mean().abs() - 1e-12).sum())) / (NUM_RESAMPLES + 1)


def calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> float:
    """ECE (Guo et al. 2017, arXiv 1706.04599): top-1 confidence against accuracy, equal bins."""
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    gaps = [
        (correct[bins == b].float().mean() - confidence[bins == b].mean()).abs() * (bins == b).sum()
        for b in bins.unique()
    ]
    return float(torch.stack(gaps).sum() / len(correct))


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    hits = relevant[scores.argsort(descending=True, stable=True)].float()
    ranks = torch.arange(1, len(hits) + 1)
    return float((hits.cumsum(0) / ranks * hits).sum() / hits.sum())


# --- what is compared -----------------------------------------------------------------------------

Space = tuple[
    Callable[[str], Tensor], Callable[[list[str]], Tensor]
]  # set -> images, words -> text


class Study:
    """The shipped model, its pictures and features, and the rows that are compared."""

    def __init__(self, unpacked: Path):
        self.enc = diptych.load("mini", device="cpu", precision="fp32")
        self.pictures = photographs.sets(unpacked)
        self.encode = lambda texts: torch.from_numpy(self.enc.encode_text(texts))
        shipped = self.enc.model.state_dict()
        self.mean = -shipped["text.proj.bias"]
        plain = mini.encoder(mini.starting_point(unpacked))  # its texts are not centred
        self.raw = mini.text_encoder(plain)
        nouns, classes = wordnet.read(unpacked), wordnet.imagenet(unpacked)
        self.names = head.prompted(self.raw, head.class_words(nouns, classes))
        self.concepts, mean = head.concept_vectors(self.raw, nouns, classes)
        assert torch.allclose(mean, self.mean, atol=1e-5)
        self.shipped = shipped["visual.proj.concepts"]
        self.weight = shipped["visual.proj.classifier.weight"]
        self.bias = shipped["visual.proj.classifier.bias"]
        self.first_bias = plain.model.state_dict()["visual.proj.classifier.bias"]
        config = self.enc.preprocess.config
        padded = PreprocessConfig(
            size=config.size, mean=config.mean, std=config.std, resize="longest", pad=255
        )
        self.vectors: dict[str, Tensor] = {}
        self.features: dict[tuple[str, str], Tensor] = {}
        for name, pictures in self.pictures.items():
            for how, each in (("squash", config), ("pad", padded)):
                images = (photographs.opened(p) for p in pictures)
                self.features[name, how] = mini.features(plain, images, each)

    def rows(self) -> dict[str, Space]:
        """Name -> (images of a set, texts), from the published method to what is shipped."""
        words = self._centred
        correction = (self.shipped - self.concepts) / mini.LEARNED
        full = self.concepts + correction
        return {
            "ConSE, padded": (self._images(self.names, 1.0, 20, self.first_bias, "pad"), self._raw),
            "F1, padded": (self._images(self.concepts, 1.4, 20, self.first_bias, "pad"), words),
            "ConSE, squashed": (self._images(self.names, 1.0, 20, self.first_bias), self._raw),
            "F1, squashed": (self._images(self.concepts, 1.4, 20, self.first_bias), words),
            "+ prior of drawings": (self._images(self.concepts, 1.4, 20, self.bias), words),
            "+ all of the correction (F2)": (self._images(full, 1.5, 200, self.bias), words),
            "+ 0.75 of it": (self._images(self.shipped, 1.4, 20, self.bias), words),
            "+ F3's block of colour words": (self._block, self._block_words),
            "+ colours = mini": (self._shipped, words),
        }

    def _images(self, concepts: Tensor, temperature: float, top: int, bias: Tensor, how="squash"):
        def images(name: str) -> Tensor:
            features = self.features[name, how][:, : self.weight.shape[1]]
            p = ((features @ self.weight.T + bias) / temperature).softmax(-1)
            p = torch.where(p >= p.topk(top, dim=-1).values[:, -1:], p, 0)
            return head.unit(p @ concepts)

        return images

    def _shipped(self, name: str) -> Tensor:
        if name not in self.vectors:
            opened = (photographs.opened(p) for p in self.pictures[name])
            self.vectors[name] = torch.from_numpy(self.enc.encode_image(opened))
        return self.vectors[name]

    def _block(self, name: str) -> Tensor:
        """The vector, and behind it what the picture has of each colour beyond the usual."""
        shares = self.features[name, "squash"][:, self.weight.shape[1] :]
        usual = self.enc.model.visual.proj.palette.usual.detach()
        plain = self._images(self.shipped, 1.4, 20, self.bias)(name)
        return torch.cat([plain, shares.sqrt() - usual], dim=1)

    def _block_words(self, words: list[str]) -> Tensor:
        """The vector, and behind it 0.2 for each colour that is named."""
        named = [[0.2 * (colour in word.split()) for colour in COLOURS] for word in words]
        return torch.cat([self._centred(words), torch.tensor(named)], dim=1)

    def _raw(self, words: list[str]) -> Tensor:
        return head.prompted(self.raw, words)

    def _centred(self, words: list[str]) -> Tensor:
        return head.unit(head.prompted(self.raw, words) - self.mean)


# --- tables ---------------------------------------------------------------------------------------


def ranks(study: Study, space: Space, name: str) -> tuple[Tensor, Tensor, list[str]]:
    """(rank of each picture's label [n], rank of each label's first picture [l], labels)."""
    images, texts = space
    labels = sorted({p.label for p in study.pictures[name]})
    right = torch.tensor([labels.index(p.label) for p in study.pictures[name]])
    scores = images(name) @ texts(labels).T  # n l
    of_label = (scores > scores.gather(1, right[:, None])).sum(1)
    of_picture = []
    for i in range(len(labels)):
        mine = right == i
        of_picture.append((scores[~mine, i] > scores[mine, i].max()).sum())
    return of_label, torch.stack(of_picture), labels


PARTS = (
    ("gcompris", "half", "GCompris animals and tools, the untouched half"),
    ("gcompris", "all", "GCompris animals and tools, all (half of it was tuned on)"),
    ("tuxpaint", "half", "Tux Paint cut-outs, the untouched half"),
    ("food", "all", "IFCT food"),
    ("monuments", "all", "GCompris monuments"),
)


def main_tables(study: Study) -> list[str]:
    lines = []
    for name, part, title in PARTS:
        found = {}
        for row, space in study.rows().items():
            of_label, of_picture, labels = ranks(study, space, name)
            if part == "half":
                mine = [photographs.is_reported(p.label) for p in study.pictures[name]]
                of_label = of_label[torch.tensor(mine)]
                of_picture = of_picture[torch.tensor([photographs.is_reported(x) for x in labels])]
            found[row] = of_label, of_picture
        n, q = (len(x) for x in found["F1, padded"])
        lines += [f"### {title}", ""]
        lines += [f"{n} pictures, {len(labels)} candidate labels; {q} labels as queries.", ""]
        lines += [
            "| | top-1 | top-5 | MRR | text to image R@1 | MRR |",
            "|---|---|---|---|---|---|",
        ]
        for row, (a, b) in found.items():
            cells = [wilson(int((a < k).sum()), n) for k in (1, 5)]
            cells += [bootstrap(1 / (1 + a.float())), wilson(int((b < 1).sum()), q)]
            cells += [bootstrap(1 / (1 + b.float()))]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        last, _ = found["+ colours = mini"]
        lines.append("")
        for other in ("ConSE, padded", "F1, padded"):
            a, _ = found[other]
            lines.append(
                f"mini against {other}: top-1 McNemar p = {mcnemar(last < 1, a < 1):.3f}, "
                f"reciprocal rank, sign flips p = {sign_flips(1 / (1 + last), 1 / (1 + a)):.4f}."
            )
        lines.append("")
    return lines


def noun_table(study: Study) -> list[str]:
    """Average precision of 40 general nouns, as they are, over all photographs."""
    pictures = [p for each in study.pictures.values() for p in each]
    rows = {k: study.rows()[k] for k in ("ConSE, padded", "F1, padded", "+ colours = mini")}
    found = {}
    for row, (images, _) in rows.items():
        vectors = torch.cat([images(name) for name in study.pictures])
        words = study.raw(photographs.NOUNS) if "ConSE" in row else study.encode(photographs.NOUNS)
        for i, noun in enumerate(photographs.NOUNS):
            relevant = torch.tensor([noun in p.nouns for p in pictures])
            found[row, noun] = average_precision(vectors @ words[i], relevant)
    lines = [f"{len(photographs.NOUNS)} nouns over {len(pictures)} photographs, plain words.", ""]
    lines += [f"| noun | pictures | {' | '.join(rows)} |", f"|---|---|{'---|' * len(rows)}"]
    means = [torch.tensor([found[row, n] for n in photographs.NOUNS]) for row in rows]
    lines.append(f"| **mean** | | {' | '.join(f'**{bootstrap(m)}**' for m in means)} |")
    for noun in sorted(photographs.NOUNS, key=lambda n: -found["+ colours = mini", n]):
        count = sum(noun in p.nouns for p in pictures)
        cells = " | ".join(f"{100 * found[row, noun]:.0f}" for row in rows)
        lines.append(f"| {noun} | {count} | {cells} |")
    return [*lines, ""]


def colour_table(study: Study, unpacked: Path) -> list[str]:
    """Captions with one colour word, against the same with each of the ten other colours."""
    lines = ["| | pictures | the right one of 11 | the right one of two |", "|---|---|---|---|"]
    reported = [p for p in study.pictures["tuxpaint"] if photographs.is_reported(p.label)]
    photos = [(photographs.opened(p), p.label) for p in reported]
    drawn = [d for d in drawings.drawings(unpacked) if drawings.colour_word(d.caption)]
    for title, pairs in (
        ("cut-outs of photographs, the untouched half", photos),
        ("drawings, held out", [(drawings.on_white(d.path), d.caption) for d in drawn]),
    ):
        pairs = [(image, text) for image, text in pairs if drawings.colour_word(text)]
        found = mini.features(study.enc, (i for i, _ in pairs), study.enc.preprocess.config)
        join = study.enc.model.visual.proj
        with torch.no_grad():
            plain = head.unit(join.probabilities(found[:, : join.width]) @ join.concepts)
            whole = head.unit(join(found))
        for row, vectors in (("without colours", plain), ("mini", whole)):
            first, pairwise = [], []
            for vector, (_, text) in zip(vectors, pairs, strict=True):
                colour, words = drawings.colour_word(text), text.split()
                texts = [" ".join(c if w == colour else w for w in words) for c in COLOURS]
                scores = study.encode(texts) @ vector
                right = scores[list(COLOURS).index(colour)]
                first.append(bool(right == scores.max()))
                pairwise.append((scores < right).float().sum() / (len(COLOURS) - 1))
            cells = [wilson(sum(first), len(pairs)), bootstrap(torch.stack(pairwise))]
            lines.append(f"| {title}: {row} | {len(pairs)} | {' | '.join(cells)} |")
    return [*lines, ""]


def calibration_table(study: Study) -> list[str]:
    """ECE of the untouched half; "together" pools the pictures, each among its own set's labels."""
    templates = {"labels as they are": None, '"photo"': "photo", "the three prompts": head.PROMPTS}
    lines = [f"| untouched half | pictures | {' | '.join(templates)} |", "|---|---|---|---|---|"]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {how: [] for how in templates}
    for name in ("gcompris", "tuxpaint"):
        labels = sorted({p.label for p in study.pictures[name]})
        mine = torch.tensor([photographs.is_reported(p.label) for p in study.pictures[name]])
        right = torch.tensor([labels.index(p.label) for p in study.pictures[name]])[mine]
        for how, template in templates.items():
            classifier = study.enc.classifier(labels, template, out="torch")
            best = study.enc.probabilities(study._shipped(name)[mine], classifier).max(1)
            found[how].append((best.values, best.indices == right))
    for title, part in (("GCompris", [0]), ("Tux Paint", [1]), ("together", [0, 1])):
        pooled = [
            [torch.cat([each[i][k] for i in part]) for k in (0, 1)] for each in found.values()
        ]
        cells = " | ".join(f"{calibration_error(*pair):.3f}" for pair in pooled)
        lines.append(f"| {title} | {len(pooled[0][0])} | {cells} |")
    fitted = float(study.enc.model.logit_scale.exp())
    return [*lines, "", f"Scale {fitted:.2f}, fitted with the three prompts.", ""]


def report(unpacked: Path) -> None:
    """Measure, print, and write the figures into the model card."""
    torch.set_num_threads(2)
    study = Study(unpacked)
    lines = [f"Fingerprint `{study.enc.fingerprint[:16]}`, fp32, {_versions()}.", ""]
    lines += main_tables(study)
    lines += ["### General nouns as search queries", "", *noun_table(study)]
    lines += ["### Colours", "", *colour_table(study, unpacked)]
    lines += ["### Calibration (ECE, 15 bins)", "", *calibration_table(study)]
    text = "\n".join(lines)
    print(text)
    card = CARD.read_text("utf-8")
    before, after = card.split(START)[0], card.split(END)[1]
    CARD.write_text(f"{before}{START}\n{text.strip()}\n{END}{after}", "utf-8")


def _versions() -> str:
    from importlib.metadata import version

    names = ("torch", "pillow", "numpy")
    return json.dumps({n: version(n) for n in names}).strip("{}").replace('"', "")
