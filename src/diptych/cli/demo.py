"""`diptych demo`: what the model sees in the packaged photos, or in yours, on one page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import (
    DEFAULT_MODEL,
    emit,
    failed,
    finish,
    json_option,
    load_model,
    model_options,
    one_text,
    progress,
    text_list,
)
from diptych.cli.main import printable

if TYPE_CHECKING:
    from rich.table import Table

    from diptych.engine.demo import Report

SHOWN = 20  # photos of one's own in the terminal; the page has more


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="diptych-demo.html",
    show_default=True,
    help="The page to write. One that is there already is replaced.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Your own photos instead.")
@click.option("--query", multiple=True, help="A sentence to find photos by. Repeatable.")
@click.option("--labels", help='With --folder, labels for each photo: "a,b", or @file.')
@click.option("--label", multiple=True, help="One label, which may hold commas. Repeatable.")
@click.option("--open", "open_page", is_flag=True, help="Show the page in the browser.")
@json_option
@model_options
def demo(
    out: Path,
    folder: Path | None,
    query: tuple[str, ...],
    labels: str | None,
    label: tuple[str, ...],
    open_page: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Find and name the photos of the package, and write one page that shows how well.

    The photos come with the truth about them, so each miss is shown as such. With --folder the
    same is done with your own photos, and judged by you.

    \b
      diptych demo
      diptych demo --folder ~/Pictures --query "a dog" --query "snow" --labels "cat,dog,car"
    """
    asked = [one_text(text, what="query") for text in query]
    named = labels is not None or bool(label)
    if named and folder is None:
        raise click.UsageError("--labels and --label go with --folder: the samples bring their own")
    if folder is not None and not (asked or named):
        raise click.UsageError(
            f'say what to look for in {printable(str(folder))}: --query "a dog", or '
            '--labels "a cat,a dog"'
        )
    names = text_list(labels, label, what="label") if named else []
    from diptych.engine import demo as engine
    from diptych.engine import page

    if folder is None:
        photos, queries = engine.samples()
        names = list(dict.fromkeys(photo.labels[0] for photo in photos))
    else:
        photos, queries = engine.photos_of(folder), []
    queries += [engine.Query(text=text) for text in asked]
    if not photos:
        finish(0, 0)
    encoder = load_model(**model)
    with progress("looking", len(photos), printing=False) as advance:
        report = engine.run(encoder, photos, queries, names, judged=folder is None, advance=advance)
    for path, error in report.errors.items():
        failed(printable(path), error, as_json=as_json)
    if not report.photos:
        finish(0, len(report.errors))
    title = "What Diptych sees" if folder is None else f"What Diptych sees in {folder}"
    commands = _next(model["model"])
    page.write(out, engine.demo_page(report, title=title, commands=commands))
    _records(report, out) if as_json else _tables(report, out, commands)
    if open_page:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
    finish(len(report.photos), len(report.errors))


def _next(model: str) -> list[str]:
    """What to type next, with the same model."""
    chosen = "" if model == DEFAULT_MODEL else f" --model {shlex.quote(model)}"
    return [
        f'diptych search "a dog" ~/Pictures{chosen}',
        f'diptych classify ~/Pictures --labels "a cat,a dog,a person"{chosen}',
        f'diptych demo --folder ~/Pictures --query "a dog" --open{chosen}',
    ]


def _records(report: Report, out: Path) -> None:
    for answer in report.answers:
        hits = [
            {"path": printable(path), "score": score, "rank": rank}
            for rank, (path, score) in enumerate(answer.hits, 1)
        ]
        known = {} if answer.query.relevant is None else {"right_at": answer.right_at}
        emit({"query": answer.query.text, "hits": hits, **known})
    for photo in report.photos if report.candidates else ():
        rows = [{"label": x, "score": score} for x, score in report.labels[photo.path]]
        known = {"right": report.label_is_right(photo)} if report.judged else {}
        emit({"path": printable(photo.path), "labels": rows, **known})
    totals = [
        {"number": number, "of": what, "note": note} for number, what, note in report.totals()
    ]
    facts = {"model": report.model, "fingerprint": report.fingerprint, "totals": totals}
    emit({"page": printable(str(out)), **facts})


def _tables(report: Report, out: Path, commands: list[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if report.answers:
        console.print(_found(report), "")
    if table := _named(report):
        console.print(table, "")
    for number, what, note in report.totals():
        console.print(f"[bold]{number:>9}[/bold]  {what} [dim]({note})[/dim]")
    console.print(f"\nModel: {report.model}, fingerprint {report.fingerprint}", markup=False)
    console.print(f"Page:  {printable(str(out))}", markup=False, soft_wrap=True)
    console.print("\nNext, with your own photos:")
    for command in commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _found(report: Report) -> Table:
    """Each sentence with the photo that it found."""
    from rich.table import Table
    from rich.text import Text

    from diptych.engine.demo import verdict

    names = {photo.path: Text(printable(photo.name)) for photo in report.photos}
    colours = {"right": "green", "wrong": "red"}
    table = Table("sentence", "nearest photo", "cosine", "", box=None, pad_edge=False)
    for answer in report.answers:
        (path, score), (kind, words) = answer.hits[0], verdict(answer)
        style = colours.get(kind, "")
        table.add_row(Text(answer.query.text), names[path], f"{score:.3f}", Text(words, style))
    return table


def _named(report: Report) -> Table | None:
    """The photos whose label is wrong; of one's own, the first of all."""
    from rich.table import Table
    from rich.text import Text

    heading, last, photos = "photo", "", report.photos[:SHOWN]
    if report.judged:
        heading, last = "wrongly named photo", "right is"
        photos = [photo for photo in report.photos if not report.label_is_right(photo)]
    if not (photos and report.candidates):
        return None
    table = Table(heading, "label", "", last, box=None, pad_edge=False)
    for photo in photos:
        label, score = report.labels[photo.path][0]
        truth = Text(", ".join(photo.labels), "green")
        table.add_row(Text(printable(photo.name)), Text(label), f"{score:.0%}", truth)
    if not report.judged and len(report.photos) > SHOWN:
        table.add_row(f"and {len(report.photos) - SHOWN} more")
    return table
