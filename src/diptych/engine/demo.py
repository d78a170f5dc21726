"""`diptych demo`: photos found by sentences and named by labels, held against the truth.

- The packaged photos come with captions, labels and, for each sentence, the photos that are right.
  What the model gets wrong is counted and shown as what it gets right.
- The same runs on a folder of one's own, where nothing is known and so nothing is judged.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from diptych.engine import page
from diptych.engine.encoder import Encoder
from diptych.engine.prompts import templates_of
from diptych.engine.stream import sources
from diptych.engine.topk import TopK
from diptych.errors import ConfigError, ImageError

__all__ = ["Answer", "Photo", "Query", "Report", "demo_page", "photos_of", "run", "samples"]

TEMPLATES = "photo"
SHOWN = 5  # hits of a sentence, on the page and in JSON
SHEET = 60  # photos of one's own on the contact sheet
_CC = "https://creativecommons.org"
LICENCES = {  # those that ask for a link, and their kin
    "CC0-1.0": f"{_CC}/publicdomain/zero/1.0/",
    "CC-BY-2.0": f"{_CC}/licenses/by/2.0/",
    "CC-BY-3.0": f"{_CC}/licenses/by/3.0/",
    "CC-BY-4.0": f"{_CC}/licenses/by/4.0/",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A photo and what is known of it; nothing is known of one's own.

    labels: nouns that are true of it, the best first.
    """

    path: str
    caption: str = ""
    labels: tuple[str, ...] = ()
    author: str = ""
    licence: str = ""
    source: str = ""
    changes: str = ""

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A sentence; `relevant` are the paths that answer it, None where nobody has said."""

    text: str
    relevant: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """hits: (path, cosine), best first; right_at: rank of the first right photo, from 1."""

    query: Query
    hits: list[tuple[str, float]]
    right_at: int | None

    def is_right(self, path: str) -> bool:
        return self.query.relevant is not None and path in self.query.relevant


@dataclass(kw_only=True, slots=True)
class Report:
    """What came out. Photos that could not be read stand in `errors` and nowhere else."""

    model: str
    fingerprint: str
    licence: str
    runs: str
    judged: bool
    candidates: list[str]
    photos: list[Photo] = field(default_factory=list)
    labels: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    errors: dict[str, ImageError] = field(default_factory=dict)
    seconds: float = 0.0

    def label_is_right(self, photo: Photo) -> bool:
        return self.labels[photo.path][0][0] in photo.labels

    def totals(self) -> list[tuple[str, str, str]]:
        """(number, what it counts, what guessing would give), for the page and the terminal."""
        found = []
        asked = [answer for answer in self.answers if answer.query.relevant]
        for depth, place in ((1, "first"), (3, "among the first 3")):
            count = sum(
                answer.right_at is not None and answer.right_at <= depth for answer in asked
            )
            luck = sum(_luck(self, answer.query, depth) for answer in asked)
            what = f"sentences found a right photo {place}"
            if asked:
                found.append((f"{count} of {len(asked)}", what, f"guessing: {luck:.1f}"))
        if self.judged and self.candidates:
            right = sum(map(self.label_is_right, self.photos))
            luck = sum(len({*p.labels} & {*self.candidates}) for p in self.photos)
            found.append(
                (
                    f"{right} of {len(self.photos)}",
                    f"photos got a right label, out of {len(self.candidates)} labels",
                    f"guessing: {luck / len(self.candidates):.1f}",
                )
            )
        what = f"for {_count(len(self.photos), 'photo')}"
        if self.answers:
            what += f" and {_count(len(self.answers), 'sentence')}"
        return [*found, (f"{self.seconds:.1f} s", what, self.runs)]


def samples(folder: Path | None = None) -> tuple[list[Photo], list[Query]]:
    """The photos of the package and the sentences asked of them, with the truth about both."""
    packaged = Path(str(resources.files("diptych").joinpath("assets/samples")))
    folder = packaged if folder is None else folder
    rows = json.loads((folder / "samples.json").read_text("utf-8"))
    asked = json.loads((folder / "queries.json").read_text("utf-8"))
    photos = [
        Photo(
            path=str(folder / row["file"]),
            caption=row["caption"],
            labels=tuple(row["labels"]),
            author=row["author"],
            licence=row["licence"],
            source=row["source"],
            changes=row["changes"],
        )
        for row in rows
    ]
    queries = [
        Query(text=row["query"], relevant=frozenset(str(folder / name) for name in row["relevant"]))
        for row in asked
    ]
    return photos, queries


def photos_of(folder: Path) -> list[Photo]:
    """The photos below a folder of one's own. Raises ConfigError when it is no folder."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder. Give one that holds photos.")
    return [Photo(path=path) for path, _ in sources(folder)]


def run(
    encoder: Encoder,
    photos: Sequence[Photo],
    queries: Sequence[Query],
    labels: Sequence[str],
    *,
    judged: bool,
    advance: Callable[[int], None] = lambda n: None,
) -> Report:
    """Find and name the photos.

    Args:
        labels: candidates for every photo; none: nothing is classified.
        judged: whether the photos' own labels are known.
        advance: called with the number of photos done since the last call.
    """
    report = Report(
        model=str(encoder.card.get("name", "a model")),
        fingerprint=encoder.fingerprint[:12],
        licence=str(encoder.card.get("licence", "")),
        runs=f"on {encoder.device} in {encoder.precision}",
        judged=judged,
        candidates=list(labels),
    )
    start = time.perf_counter()
    known = any(query.relevant is not None for query in queries)
    best = TopK(encoder.encode_text([q.text for q in queries]), len(photos) if known else SHOWN)
    classifier = encoder.classifier(labels, TEMPLATES, out="torch") if labels else None
    by_path = {photo.path: photo for photo in photos}
    for batch in encoder.stream([photo.path for photo in photos], out="torch"):
        report.errors |= batch.errors
        report.photos += [by_path[key] for key in batch.keys]
        best.add(batch.vectors.cpu().numpy())
        if classifier is not None:
            rows = encoder.probabilities(batch.vectors, classifier).topk(min(3, len(labels)))
            for key, values, places in zip(batch.keys, *(x.tolist() for x in rows), strict=True):
                report.labels[key] = [(labels[i], v) for i, v in zip(places, values, strict=True)]
        advance(len(batch.keys) + len(batch.errors))
    for query, scores, places in zip(queries, best.scores, best.indices, strict=True):
        report.answers.append(_answer(query, [report.photos[i].path for i in places], scores))
    report.seconds = time.perf_counter() - start
    return report


def _answer(query: Query, paths: list[str], scores: Iterable[float]) -> Answer:
    relevant = query.relevant or frozenset()
    right_at = next((rank for rank, path in enumerate(paths, 1) if path in relevant), None)
    hits = [(path, float(score)) for path, score in zip(paths, scores, strict=True)]
    return Answer(query=query, hits=hits[:SHOWN], right_at=right_at)


def _luck(report: Report, query: Query, depth: int) -> float:
    """The chance that `depth` photos drawn blindly hold a right one."""
    n, right = len(report.photos), len(query.relevant or ())
    return 1 - math.comb(max(n - right, 0), depth) / max(math.comb(n, depth), 1)


# --- the page ---------------------------------------------------------------------------------


def verdict(answer: Answer) -> tuple[str, str]:
    """(class, words): how well a sentence was answered; ("", "") where the truth is not known."""
    if answer.query.relevant is None:
        return "", ""
    match answer.right_at:
        case None:
            return "wrong", "✗ MISS: not there"
        case 1:
            return "right", "✓ first"
        case 2 | 3 as rank:
            return "known", f"{_ordinal(rank)}"
        case rank:
            return "wrong", f"✗ MISS: {_ordinal(rank)}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _ordinal(n: int) -> str:
    ending = "th" if 10 < n % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def demo_page(report: Report, *, title: str, commands: Sequence[str]) -> str:
    """The whole page. `commands` are what to type next."""
    by_path = {photo.path: photo for photo in report.photos}
    parts = [_head(report, title)]
    if report.answers:
        blocks = "".join(_query(answer, by_path) for answer in report.answers)
        parts.append(
            '<section><h2>Found by words</h2><p class="quiet">Each sentence is compared with every '
            "photo; the nearest come first, with their cosine. The file names and captions are "
            f'never read.{_legend(report)}</p><div class="queries">{blocks}</div></section>'
        )
    parts += [_sheet(report), _errors(report), _reading(report), _credits(report)]
    lines = "\n".join(map(page.text, commands))
    parts.append(f"<section><h2>With your own photos</h2><pre><code>{lines}</code></pre></section>")
    return page.document(title, "\n".join(part for part in parts if part))


def _head(report: Report, title: str) -> str:
    licence = f"licence {page.text(report.licence)}, " if report.licence else ""
    totals = "".join(
        f"<li><b>{page.text(number)}</b>{page.text(what)}<small>{page.text(luck)}</small></li>"
        for number, what, luck in report.totals()
    )
    return (
        f"<header><h1>{page.text(title)}</h1>"
        f"<p>The model <b>{page.text(report.model)}</b> turns photos and words into points of one "
        "space, where what means the same lies close together. It ran on this machine; nothing "
        "was sent anywhere.</p>"
        f'<p class="quiet">Fingerprint <code>{report.fingerprint}</code>, '
        f"{licence}{page.text(report.runs)}.</p></header>"
        f'<ul class="totals">{totals}</ul>'
    )


def _legend(report: Report) -> str:
    if not any(answer.query.relevant for answer in report.answers):
        return ""
    return (
        " A green frame and ✓ mark a photo that answers the sentence; the corner says where the "
        "first of them came."
    )


def _query(answer: Answer, by_path: dict[str, Photo]) -> str:
    kind, words = verdict(answer)
    shown = []
    for path, score in answer.hits:
        photo, right = by_path[path], answer.is_right(path)
        tick = page.TICK if right else ""
        image = page.picture(path, alt=photo.caption or photo.name, side=150)
        shown.append(page.figure(image, f"{score:.3f}{tick}", kind="hit" if right else ""))
    badge = f'<span class="verdict {kind}">{words}</span>' if words else ""
    return (
        f'<article class="query"><header><h3>“{page.text(answer.query.text)}”</h3>{badge}</header>'
        f'<div class="hits">{"".join(shown)}</div></article>'
    )


def _sheet(report: Report) -> str:
    shown = report.photos if report.judged else report.photos[:SHEET]
    cards = "".join(_card(report, photo) for photo in shown)
    more = len(report.photos) - len(shown)
    rest = f'<p class="quiet">and {more:,} more</p>' if more else ""
    said = ""
    if report.candidates:
        said = (
            f"Each photo is compared with {len(report.candidates)} labels, put into the words "
            f"“{templates_of(TEMPLATES)[0].replace('{}.', '…')}”. The bars are probabilities over "
            "these labels."
        )
    return (
        f'<section><h2>The photos</h2><p class="quiet">{said}</p>'
        f'<div class="sheet">{cards}</div>{rest}</section>'
    )


def _card(report: Report, photo: Photo) -> str:
    image = page.picture(photo.path, alt=photo.caption or photo.name, side=320)
    lines, kind = [page.text(photo.caption or photo.name)], ""
    if row := report.labels.get(photo.path):
        right = photo.labels if report.judged else None
        lines.append(f'<div class="labels">{page.bars(row, right=right)}</div>')
        if report.judged and not report.label_is_right(photo):
            kind = "miss"
            truth = ", ".join(map(page.text, photo.labels))
            lines.append(f'<div class="wrong"><b>✗ MISS</b>, right is {truth}</div>')
    if photo.author:
        author = page.link(photo.author, _address(photo.source))
        lines.append(f"<small>{author} · {_licence(photo.licence)}</small>")
    return page.figure(image, "".join(lines), kind=kind)


def _address(source: str) -> str:
    """The web address in "package, file; address", where there is one."""
    return source.rpartition("; ")[2]


def _licence(name: str) -> str:
    return page.link(name, LICENCES.get(name, ""))


def _credits(report: Report) -> str:
    lines = "".join(
        f"<li>{page.text(photo.name)}: {page.text(photo.author)}, {_licence(photo.licence)}; "
        f"{page.text(photo.changes)}. <small>{page.text(photo.source)}</small></li>"
        for photo in report.photos
        if photo.author
    )
    if not lines:
        return ""
    return f"<details><summary>Where the photos come from</summary><ul>{lines}</ul></details>"


def _errors(report: Report) -> str:
    if not report.errors:
        return ""
    lines = "".join(f"<li>{page.text(error)}</li>" for error in report.errors.values())
    return f"<section><h2>Not read</h2><ul>{lines}</ul></section>"


def _reading(report: Report) -> str:
    if not report.judged:
        return ""
    return (
        "<details><summary>How to read this</summary><p>A sentence counts as answered when a photo "
        "that a person marked as right comes first, or among the first three. A label counts as "
        "right when it is one of the nouns that a person wrote down for the photo. Photos, "
        "sentences and the marks were chosen by us, so this shows what the model does; it does not "
        "measure it against others. “Guessing” is what drawing blindly would give on average."
        "</p></details>"
    )
