"""`diptych anomaly`: which pictures show something damaged, and where on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import (
    emit,
    failed,
    finish,
    inputs,
    json_option,
    key_text,
    load_model,
    model_options,
    progress,
)
from diptych.cli.main import on_a_line, printable

if TYPE_CHECKING:
    from diptych.engine import Encoder
    from diptych.judge.anomaly import Detector, Found


@click.command()
@click.argument("photos", nargs=-1)
@click.option(
    "--object", "name", help='What is looked at, as "metal nut": words for its state are compared.'
)
@click.option(
    "--normal",
    multiple=True,
    help="A sound picture, or a folder of them; one is enough, four are better. Repeatable.",
)
@click.option(
    "--scales",
    default="1/2,1/3",
    show_default=True,
    help="Sides of the windows that are looked at, as shares of the short side.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Write a page with the most suspect first and heat where it is.",
)
@click.option(
    "--top", type=click.IntRange(1), default=200, show_default=True, help="Pictures on the page."
)
@click.option(
    "--evaluate",
    type=click.Path(path_type=Path),
    help="Instead of PHOTOS: measure on a folder in MVTec AD's layout.",
)
@click.option(
    "--shots",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="With --evaluate: so many pictures of train/good are known as sound.",
)
@json_option
@model_options
def anomaly(
    photos: tuple[str, ...],
    name: str | None,
    normal: tuple[str, ...],
    scales: str,
    html: Path | None,
    top: int,
    evaluate: Path | None,
    shots: int,
    as_json: bool,
    **model: Any,
) -> None:
    """Say how suspect each picture is, and where: by a name, by sound pictures, or by both.

    PHOTOS are files, folders (all images below them), or - for stdin. The score says which picture
    is more suspect than which; it is no probability, and from which score on a piece is rejected is
    for you to set, on pieces you know. With the built-in model leave --object out: it does not
    understand words for damage.

    \b
      diptych anomaly line/today --normal line/sound --html today.html
      diptych anomaly line/today --object "metal nut" --model ViT-B-16/openai
      diptych anomaly --evaluate mvtec_ad/metal_nut --shots 4
    """
    if (evaluate is not None) == bool(photos):
        raise click.UsageError("give PHOTOS, or --evaluate FOLDER: one of the two")
    sides = _scales(scales)
    if evaluate is not None:
        if normal or html is not None:
            raise click.UsageError("--normal and --html go with PHOTOS, not with --evaluate")
        _evaluate(load_model(**model), evaluate, name, sides, shots, as_json=as_json)
        return
    if name is None and not normal:
        raise click.UsageError(
            'nothing says what a sound one is. Give --normal FOLDER, or --object "metal nut".'
        )
    from diptych.judge.anomaly import Detector

    encoder = load_model(**model)
    detector = Detector(encoder, object=name, scales=sides)
    if normal:
        _learn(detector, normal)
    _judge(detector, photos, html, top, as_json=as_json)


def _scales(text: str) -> tuple[float, ...]:
    found = []
    for part in text.split(","):
        above, _, below = part.partition("/")
        try:
            found.append(float(above) / float(below or 1))
        except (ValueError, ZeroDivisionError) as error:
            raise click.UsageError(
                f"--scales must be numbers as 1/2,1/3, got {printable(part)!r}"
            ) from error
    return tuple(found)


def _learn(detector: Detector, normal: tuple[str, ...]) -> None:
    """Sound pictures must all be readable: who learns from fewer than were given finds more."""
    sound = list(inputs(normal))
    if not sound:
        raise click.UsageError(f"--normal {printable(normal[0])}: no images found in it")
    with progress("sound ones", len(sound), printing=False) as advance:

        def each() -> Iterator[Any]:
            for image in sound:
                yield image
                advance(1)

        detector.fit(each())


def _judge(
    detector: Detector, photos: tuple[str, ...], html: Path | None, top: int, *, as_json: bool
) -> None:
    from diptych.errors import ConfigError, ImageError

    total = sum(1 for _ in inputs(photos)) if "-" not in photos else None
    kept: list[tuple[str, Any, Found]] = []
    done = errors = 0
    with progress("judging", total, printing=True) as advance:
        for image in inputs(photos):
            key = key_text(image) if isinstance(image, str) else "-"
            try:
                found = detector.judge(image)
            except (ImageError, ConfigError) as error:  # the latter: too many windows
                failed(key, error, as_json=as_json)
                errors += 1
            else:
                _tell(key, found, as_json=as_json)
                done += 1
                if html is not None:
                    kept.append((key, image, found))
                    if len(kept) >= 2 * top:  # a line's worth of pictures stays small
                        kept = sorted(kept, key=lambda one: -one[2].score)[:top]
            advance(1)
    if html is not None and done:
        kept = sorted(kept, key=lambda one: -one[2].score)[:top]
        _write(html, kept, done)
    finish(done, errors)


def _tell(path: str, found: Found, *, as_json: bool) -> None:
    left, upper, right, lower = found.box
    if as_json:
        box = {"box": list(found.box), "size": list(found.size)}
        emit({"path": path, "score": found.score, "words": found.words, **box})
        return
    click.echo(
        f"{found.score:.4f}  {on_a_line(path)}  {right - left}x{lower - upper}+{left}+{upper}"
    )


def _write(html: Path, kept: list[tuple[str, Any, Found]], num_judged: int) -> None:
    """The page: each picture, and beside it the same with heat; one scale of heat for all."""
    from diptych.engine import page
    from diptych.errors import ImageError
    from diptych.judge.anomaly import overlay

    # most places are sound: heat begins where four fifths of a usual picture lie below
    usual = sorted(float(found.map.quantile(0.8)) for _, _, found in kept)
    low, high = usual[len(usual) // 2], max(float(found.map.max()) for _, _, found in kept)
    figures = []
    for rank, (key, image, found) in enumerate(kept, 1):
        caption = f"<b>{rank}.</b> {page.text(Path(key).name)}<br>"
        caption += f"<small>score {found.score:.4f}"
        caption += "" if found.words is None else f", by words {found.words:.3f}"
        caption += f"<br>in {page.text(Path(key).parent)}</small>"
        try:
            shown = page.picture(image, alt=key, side=320)
            heat = page.picture(
                overlay(image, found.map, low=low, high=high), alt=f"{key}, where", side=320
            )
        except ImageError as error:  # it went since it was judged
            figures.append(page.figure(f"<p>{page.text(error)}</p>", caption))
            continue
        figures.append(page.figure(f'<div class="pair">{shown}{heat}</div>', caption))
    title = "The most suspect first"
    told = f"{len(kept)} of {num_judged} pictures. Beside each the same picture with heat: "
    told += "nothing where it is as usual, yellow to red where it is not."
    body = f"<header><h1>{title}</h1><p class='quiet'>{told}</p></header>\n<style>{_STYLE}</style>"
    page.write(
        html, page.document(title, f'{body}<section class="sheet">{"".join(figures)}</section>')
    )
    click.echo(f"{printable(str(html))}: {len(kept)} pictures", err=True)


_STYLE = """
.sheet { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.sheet .pair img { aspect-ratio: auto; object-fit: contain; height: 100%; background: #0002; }
@media (max-width: 420px) { .sheet { grid-template-columns: 1fr; } }
"""


def _evaluate(
    encoder: Encoder,
    folder: Path,
    name: str | None,
    scales: tuple[float, ...],
    shots: int,
    *,
    as_json: bool,
) -> None:
    from diptych.judge.anomaly import Detector
    from diptych.judge.inspection import categories, figures, read_mvtec

    found = [read_mvtec(each) for each in categories(folder)]  # all are looked at before the work
    if not shots and name is None:
        raise click.UsageError("--shots 0 leaves only words: give --object NAME")
    for each in found:
        if shots > len(each.train):
            raise click.UsageError(
                f"--shots {shots}: {each.name} has {len(each.train)} pictures in train/good"
            )
        detector = Detector(encoder, object=name, scales=scales)
        if shots:
            detector.fit(each.train[:shots])
        judged = []
        with progress(each.name, len(each.test), printing=False) as advance:
            for piece in each.test:
                judged.append(detector.judge(piece.path))
                advance(1)
        scores, maps = [one.score for one in judged], [one.map for one in judged]
        image, image_ends, pixel, pixel_ends = figures(scores, maps, each.test)
        if as_json:
            emit({
                "category": each.name, "shots": shots, "num_test": len(each.test),
                "image_auroc": image, "image_interval": [image_ends.low, image_ends.high],
                "pixel_auroc": pixel, "pixel_interval": [pixel_ends.low, pixel_ends.high],
            })  # fmt: skip
            continue
        told = " ".join(
            f"{what} AUROC {100 * value:.1f} [{100 * ends.low:.0f}, {100 * ends.high:.0f}]"
            for what, value, ends in (("image", image, image_ends), ("pixel", pixel, pixel_ends))
        )
        click.echo(
            f"{on_a_line(each.name)}: {told} ({len(each.test)} pictures, {shots} sound ones)"
        )
