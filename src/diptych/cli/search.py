"""`diptych search`: the photos that fit words, or look like another photo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from diptych.cli.common import (
    collection_option,
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
from diptych.cli.found import check_output, output_options, show
from diptych.cli.main import printable
from diptych.cli.resident import found_by_resident

if TYPE_CHECKING:
    from diptych.search.query import Term


@click.command()
@click.argument("query", nargs=-1, required=True, metavar="QUERY [IMAGES]...")
@click.option("--image", "by_image", is_flag=True, help="QUERY is an image: find what is like it.")
@click.option(
    "--words", "by_words", is_flag=True, help="QUERY is words, even if a file is called so."
)
@output_options
@collection_option
@click.option("--all", "everything", is_flag=True, help="No cut-off: the best, however bad.")
@click.option("--strict", type=click.FloatRange(0, 1), help="The cut-off: 0 shows more, 1 less.")
@click.option("--no-fold", is_flag=True, help="Show near-duplicates one by one.")
@click.option("--exact", is_flag=True, help="Do not use the approximate index.")
@click.option("--after", metavar="DATE", help="Taken since then: 2024, 2024-05, 2024-05-01.")
@click.option("--before", metavar="DATE", help="Taken before then.")
@click.option("--in", "folder", metavar="FOLDER", help="At or below this folder.")
@click.option("--camera", help="A part of make and model.")
@click.option("--type", "types", multiple=True, help="jpeg, png, heif, video ... Repeatable.")
@click.option("--min-side", type=int, metavar="PIXELS", help="The shorter side, at least.")
@click.option("--min-bytes", type=int, help="Of the file.")
@click.option("--max-bytes", type=int, help="Of the file.")
@click.option("--box", metavar="S,W,N,E", help="Where it was taken, in degrees.")
@json_option
@model_options
@click.pass_context
def search(
    ctx: click.Context,
    query: tuple[str, ...],
    by_image: bool,
    by_words: bool,
    as_json: bool,
    html: Path | None,
    opens: bool,
    preview: str | None,
    print0: bool,
    top: int,
    **rest: Any,
) -> None:
    """Find the pictures that fit QUERY best: words, the path of a picture, or both.

    Without IMAGES the collection is asked that `diptych index` has made. With IMAGES (files,
    folders, or - for stdin) those are looked at now and nothing is kept. The score is the cosine,
    -1 to 1. Of a collection, what fits no better than anything would is not shown: the answer can
    be nothing. Without --model the one that has indexed answers.

    \b
      diptych search "a dog on the beach"
      diptych search cat + "at night" - person         # 2:cat counts twice
      diptych search dog.jpg + snow --after 2023 --in ~/Pictures/2023
      diptych search "a dog on the beach" ~/Pictures   # without a collection
    """
    from diptych.search.query import Term, parse

    check_output(as_json=as_json, print0=print0, preview=preview)
    if top < 1:
        raise click.UsageError(f"--top must be at least 1, got {top}")
    if by_image and by_words:
        raise click.UsageError("--image and --words exclude each other. Choose one.")
    one_text(query[0], what="query")
    terms, images = parse(query) if not by_words else parse(query, is_image=lambda text: False)
    if by_image:
        terms[0] = Term(query[0], 1.0, is_image=True)
    for term in terms:
        if term.is_image and not by_image:
            note = f"Note: {printable(term.content)!r} is taken as a picture. As words: --words"
            click.echo(note, err=True)
        elif not term.is_image:
            one_text(term.content, what="query")
    told = " ".join(query[: len(query) - len(images)])
    output = {
        "as_json": as_json, "print0": print0, "preview": preview, "html": html, "opens": opens,
        "example": terms[0].content if len(terms) == 1 and terms[0].is_image else None,
    }  # fmt: skip
    chosen = ctx.get_parameter_source("model") is not ParameterSource.DEFAULT
    if not images:
        _refuse_model_options(ctx)
    if images:
        _look(terms, tuple(images), told, top=top, output=output, **rest)
    else:
        _ask(terms, told, top=top, output=output, chosen=chosen, **rest)


def _refuse_model_options(ctx: click.Context) -> None:
    """A collection knows how its vectors were made; what would change nothing is refused."""
    for name in ("mode", "config", "pixels"):
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"--{name} belongs to IMAGES: a collection knows that of its models. Leave it out."
            )


_OF_COLLECTIONS = {
    "everything": "--all", "strict": "--strict", "no_fold": "--no-fold", "after": "--after",
    "before": "--before", "folder": "--in", "camera": "--camera", "types": "--type",
    "min_side": "--min-side", "min_bytes": "--min-bytes", "max_bytes": "--max-bytes",
    "box": "--box", "exact": "--exact",
}  # fmt: skip


def _ask(
    terms: list[Term],
    told: str,
    *,
    top: int,
    output: dict[str, Any],
    chosen: bool,
    collection: str,
    everything: bool,
    strict: float | None,
    no_fold: bool,
    exact: bool,
    model: str,
    config: str | None,
    mode: str,
    pixels: str,
    **rest: Any,
) -> None:
    """The collection's answer."""
    box = rest.pop("box")
    loading = {name: rest.pop(name) for name in ("device", "precision", "offline")}
    filters = {**rest, "box": _box(box) if box else None}
    how: dict[str, Any] = {"top": top, "fold": not no_fold, "exact": exact}
    if everything:
        how["strictness"] = None
    elif strict is not None or len(terms) > 1:  # of a mixture nobody has measured what is usual
        how["strictness"] = strict
    where = {"collection": collection, "model": model if chosen else None, "loading": loading}
    seen = output["html"] is not None or output["opens"] or output["preview"] is not None
    answer = None
    if not seen and not any(term.is_image for term in terms):
        words = [(term.content, term.weight) for term in terms]
        answer = found_by_resident({"terms": words, "filters": filters, "how": how, **where})
    if answer is not None:
        show(answer.hits, told, **output, model=answer.model)
    else:
        answer = _ask_here(terms, told, output=output, filters=filters, how=how, **where)
    if not answer.hits:
        filtered = any(value not in (None, ()) for value in filters.values())
        click.echo(_nothing(answer, everything=everything, filtered=filtered), err=True)


def _ask_here(
    terms: list[Term],
    told: str,
    *,
    output: dict[str, Any],
    filters: dict[str, Any],
    how: dict[str, Any],
    collection: str,
    **opening: Any,
) -> Any:
    """The answer, and what was found is shown."""
    from diptych.search.collection import Collection
    from diptych.search.filters import Filters

    chosen = Filters(**filters)
    with Collection(collection, **opening) as photos:
        answer = photos.search(terms, filters=chosen, **how)
        show(answer.hits, told, model=photos.model.name, **output)
    return answer


def _nothing(answer: Any, *, everything: bool, filtered: bool) -> str:
    if answer.best is None and not filtered:
        return "Nothing found: the collection is empty. Type: diptych index FOLDER"
    if answer.best is None:
        return "Nothing found: no picture passes the filters."
    assert not everything
    return (
        f"Nothing found among {answer.num_searched:,}. The nearest has a cosine of "
        f"{answer.best:.3f}; for these words {answer.threshold:.3f} would stand out. "
        "To see the nearest all the same: --all"
    )


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        south, west, north, east = (float(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError(f"--box {text!r}: give four numbers, as 47.3,5.9,55.1,15") from error
    return south, west, north, east


def _look(
    terms: list[Term],
    images: tuple[str, ...],
    told: str,
    *,
    top: int,
    output: dict[str, Any],
    collection: str,
    **rest: Any,
) -> None:
    """Every image that was named is looked at, and nothing is kept."""
    from diptych.engine.topk import TopK
    from diptych.search.fold import Hit
    from diptych.search.query import vector

    for name, option in _OF_COLLECTIONS.items():
        if rest.pop(name):
            raise click.UsageError(f"{option} belongs to collections. Leave the IMAGES away.")
    encoder = load_model(**rest)
    asked = vector(
        terms,
        encode_text=lambda text: encoder.encode_text(text)[0],
        encode_image=lambda image: encoder.encode_image(image)[0],
    )
    best, keys, num_errors = TopK(asked[None], top), [], 0
    total = None if "-" in images else sum(1 for _ in inputs(images))
    with progress("searching", total, printing=False) as advance:
        for batch in encoder.stream(inputs(images)):
            for key, error in batch.errors.items():
                failed(key_text(key), error, as_json=output["as_json"])
            best.add(batch.vectors)
            keys += batch.keys
            num_errors += len(batch.errors)
            advance(len(batch.keys) + len(batch.errors))
    pairs = zip(best.indices[0].tolist(), best.scores[0].tolist(), strict=True)
    hits = [
        Hit(path=keys[i] if isinstance(keys[i], str) else "-", score=score) for i, score in pairs
    ]
    show(hits, told, model=str(encoder.card.get("name")), **output)
    if not keys and not any(image == "-" or os.path.exists(image) for image in images):  # noqa: PTH110
        click.echo('Words that belong together stand in quotes: diptych search "a dog"', err=True)
    finish(len(keys), num_errors)
