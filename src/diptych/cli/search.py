"""`diptych search`: the photos that fit words, or look like another photo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
    one_text,
    progress,
)
from diptych.cli.main import printable


@click.command()
@click.argument("query")
@click.argument("images", nargs=-1, required=True)
@click.option("--image", "by_image", is_flag=True, help="QUERY is an image: find what is like it.")
@click.option("--top", default=10, show_default=True, help="Images shown.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a page with the pictures found.",
)
@json_option
@model_options
def search(
    query: str,
    images: tuple[str, ...],
    by_image: bool,
    top: int,
    html: Path | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Find the images that fit QUERY best: words, or with --image another image.

    IMAGES are files, folders (all images below them), or - for stdin. Every image is looked at, so
    the answer is exact, and nothing is kept afterwards. The score is the cosine, -1 to 1.

    \b
      diptych search "a dog on the beach" ~/Pictures
      diptych search --image dog.jpg ~/Pictures --top 20 --html found.html
    """
    from diptych.engine.topk import TopK

    if top < 1:
        raise click.UsageError(f"--top must be at least 1, got {top}")
    if not by_image:
        query = one_text(query, what="query")
        if os.path.isfile(query):  # noqa: PTH113  Path's raises for a query too long for a name
            click.echo(f"Note: {query!r} is taken as words. For its picture: --image", err=True)
    encoder = load_model(**model)
    vector = encoder.encode_image(query) if by_image else encoder.encode_text(query)
    best, keys, num_errors = TopK(vector, top), [], 0
    total = None if "-" in images else sum(1 for _ in inputs(images))
    with progress("searching", total, printing=False) as advance:
        for batch in encoder.stream(inputs(images)):
            for key, error in batch.errors.items():
                failed(key_text(key), error, as_json=as_json)
            best.add(batch.vectors)
            keys += batch.keys
            num_errors += len(batch.errors)
            advance(len(batch.keys) + len(batch.errors))
    pairs = zip(best.indices[0].tolist(), best.scores[0].tolist(), strict=True)
    hits = [(keys[i], score) for i, score in pairs]
    for rank, (key, score) in enumerate(hits, 1):
        _show(key_text(key), score, rank, as_json=as_json)
    if html is not None and hits:
        _write(html, query, hits, model=str(encoder.card.get("name")), by_image=by_image)
        if not as_json:
            click.echo(f"{html}: {len(hits)} pictures", err=True)
    finish(len(keys), num_errors)


def _show(path: str, score: float, rank: int, *, as_json: bool) -> None:
    if as_json:
        emit({"path": path, "score": score, "rank": rank})
    else:
        click.echo(f"{rank:4}  {score:7.4f}  {path}")


def _write(
    html: Path, query: str, hits: list[tuple[Any, float]], *, model: str, by_image: bool
) -> None:
    from diptych.engine import page

    shown = [(key, printable(key), score) for key, score in hits if isinstance(key, str)]
    example = query if by_image else None
    page.write(html, page.search_page(query, shown, model=model, example=example))
