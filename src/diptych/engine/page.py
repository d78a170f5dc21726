"""Pages of pictures as one HTML file: thumbnails inside, no script, light and dark.

Everything that comes from file names, labels or captions goes through `text`.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Preprocess, open_image
from diptych.preprocess.pixels import orientation, turned_size
from diptych.zoo.atomic import atomic_write

__all__ = [
    "bars",
    "document",
    "figure",
    "link",
    "picture",
    "search_page",
    "table",
    "text",
    "thumbnail",
    "write",
]


def text(value: object) -> str:
    """Escaped for HTML, in quotes too; bytes of a file name that are not UTF-8 become \\udc..."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())


def link(label: str, target: str) -> str:
    """A link if the target is a web address, else the label alone."""
    if not target.startswith(("https://", "http://")):
        return text(label)
    return f'<a href="{text(target)}" rel="noreferrer">{text(label)}</a>'


def thumbnail(image: Any, *, side: int) -> PILImage.Image:
    """The upright picture in RGB, with a long side of at most `side` pixels.

    Args:
        image: what `Encoder.encode_image` takes: a path, bytes, a Pillow image, uint8 [H W C].

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, np.ndarray):
        image = PILImage.fromarray(image)
    elif not isinstance(image, PILImage.Image):
        image = open_image(image)
    width, height = turned_size(image, orientation(image))
    ratio = min(1.0, side / max(width, height))
    width, height = max(1, round(width * ratio)), max(1, round(height * ratio))
    return Preprocess(PreprocessConfig(size=(height, width), resize="squash")).resize(image)


def picture(image: Any, *, alt: str, side: int) -> str:
    """An <img> with the `thumbnail` inside it, as JPEG. Raises ImageError."""
    small = thumbnail(image, side=side)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=78, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{text(alt)}" width="{small.width}" height="{small.height}" '
        f'src="data:image/jpeg;base64,{data}">'
    )


def bars(row: Iterable[tuple[str, float]], *, right: Sequence[str] | None = None) -> str:
    """Labels with their probabilities as bars. Colours fit light and dark surroundings.

    Args:
        right: the labels that are true, which get a tick; None where nothing is known.
    """
    return "".join(
        '<div style="position:relative;margin:2px 0;padding:1px 6px;display:flex;gap:.6em">'
        f'<span style="position:absolute;inset:0 auto 0 0;width:{100 * score:.1f}%;'
        'border-radius:3px;background:var(--bar,rgba(90,150,220,.35))"></span>'
        f'<span style="position:relative;flex:1">{text(label)}'
        f"{TICK if right and label in right else ''}</span>"
        f'<span style="position:relative">{score:.1%}</span></div>'
        for label, score in row
    )


TICK = ' <b class="right" title="this is right">✓</b>'


def figure(image: str, caption: str, *, kind: str = "") -> str:
    """A picture with HTML beneath it; `kind` is a class of the style sheet."""
    return f'<figure class="{kind}">{image}<figcaption>{caption}</figcaption></figure>'


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide; cells of `lines` are HTML already."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    rows = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in line)}</tr>" for line in lines)
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{made}</div>'


def document(title: str, body: str) -> str:
    """A whole page around the HTML `body`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write(path: Path, page: str) -> None:
    """Write a page whole or not at all. Raises CheckpointError when the system refuses."""
    atomic_write(path, lambda part: part.write_text(page, encoding="utf-8"))


def search_page(
    query: str, hits: Iterable[tuple[Any, str, float, str]], *, model: str, example: Any = None
) -> str:
    """The page of one search.

    Args:
        query: the words, or the name of the image that was asked with.
        hits: (image, its name, cosine, what else is to be said of it), best first.
        model: how the model is called.
        example: the image that was asked with.
    """
    shown = []
    for rank, (image, name, score, note) in enumerate(hits, 1):
        path = Path(name)
        caption = f"<b>{rank}.</b> {text(path.name)}<br><small>cosine {score:.4f}</small>"
        if note:
            caption += f"<br><small>{text(note)}</small>"
        if str(path.parent) != ".":
            caption += f"<br><small>in {text(path.parent)}</small>"
        shown.append(figure(picture(image, alt=name, side=320), caption))
    title = f"“{query}”" if example is None else f"Like {Path(query).name}"
    asked = "" if example is None else figure(picture(example, alt=query, side=200), "")
    return document(
        title,
        f"<header><h1>{text(title)}</h1>{asked}"
        f'<p class="quiet">The nearest pictures, found by {text(model)}.</p></header>\n'
        f'<section class="sheet">{"".join(shown)}</section>',
    )


def duplicates_page(groups: Iterable[Sequence[tuple[str, str]]]) -> str:
    """The page of pictures that are there more than once.

    groups: (path, what is said of it), the one to keep first. A file that cannot be read any more
        is named without its picture.
    """
    shown = []
    for group in groups:
        figures = []
        for i, (path, told) in enumerate(group):
            caption = f"{text(Path(path).name)}<br><small>{text(told)}</small>"
            caption += f"<br><small>in {text(Path(path).parent)}</small>"
            try:
                image = picture(path, alt=path, side=320)
            except ImageError as error:
                image = f"<p>{text(error)}</p>"
            figures.append(figure(image, caption, kind="" if i else "hit"))
        shown.append(f'<section class="sheet">{"".join(figures)}</section>')
    return document(
        "Pictures that are there more than once",
        f"<header><h1>Pictures that are there more than once</h1>"
        f'<p class="quiet">{len(shown)} groups; the first of each is the one to keep.</p></header>'
        + "\n".join(shown),
    )


STYLE = """
:root { color-scheme: light dark; --page: #faf8f4; --card: #ffffff; --ink: #1e1c1a;
  --quiet: #5d5850; --line: #e2ddd4; --right: #17663a; --wrong: #a3271c; --link: #1f5a96;
  --bar: #c7dcf2; --first: #e3f2e8; --miss: #fbe6e3; }
@media (prefers-color-scheme: dark) { :root { --page: #161513; --card: #211f1d; --ink: #ece8e1;
  --quiet: #b3aca1; --line: #3a3732; --right: #7fd6a0; --wrong: #ff9f92; --link: #8fc1f5;
  --bar: #2d4c6e; --first: #1d3527; --miss: #45211d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 48px 0 4px; }
h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; max-width: 70ch; }
a { color: var(--link); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
small { font-size: .82rem; }
.quiet, small { color: var(--quiet); }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
.totals { display: grid; gap: 12px; margin: 24px 0 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.totals li, .query, .sheet figure { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.totals li { padding: 14px 16px; }
.totals b { display: block; font-size: 1.7rem; line-height: 1.25; letter-spacing: -.02em; }
.totals small { display: block; }
.queries { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(500px, 1fr)); }
.query { padding: 14px 16px 16px; min-width: 0; }
.query header { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline;
  justify-content: space-between; margin-bottom: 10px; }
.verdict { font-size: .85rem; font-weight: 600; padding: 1px 9px; border-radius: 99px; }
.verdict.right { background: var(--first); }
.verdict.wrong { background: var(--miss); }
.verdict.known { color: var(--quiet); }
figure { margin: 0; min-width: 0; }
figure img { display: block; max-width: 100%; }
figcaption { overflow-wrap: anywhere; }
.hits { display: grid; gap: 8px; grid-template-columns: repeat(5, 1fr); }
.hits img { width: 100%; height: auto; aspect-ratio: 4 / 3; object-fit: cover; border-radius: 6px; }
.hits figcaption { font-size: .78rem; text-align: center; color: var(--quiet);
  font-variant-numeric: tabular-nums; }
.hits .hit img { outline: 3px solid var(--right); outline-offset: -3px; }
.sheet { display: grid; gap: 14px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.sheet figure { overflow: hidden; }
.sheet img { width: 100%; height: auto; aspect-ratio: 4 / 3; object-fit: cover;
  object-position: 50% 20%; }
.sheet figcaption { padding: 10px 12px 12px; font-size: .92rem; }
.sheet .labels { font-size: .88rem; margin: 8px 0; font-variant-numeric: tabular-nums; }
.sheet .hit { border-color: var(--right); }
.sheet .miss { border-color: var(--wrong); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 16px; font-size: .93rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
th { font-size: .82rem; color: var(--quiet); font-weight: 600; }
details { margin-top: 12px; }
section + details { margin-top: 40px; }
li { overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; overflow-x: auto; }
@media (max-width: 560px) { main { padding: 20px 14px 48px; } h1 { font-size: 1.6rem; }
  .queries { grid-template-columns: 1fr; } .hits { gap: 5px; } .query { padding: 12px; }
  .hits figcaption { font-size: .7rem; } }
"""
