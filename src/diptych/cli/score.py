"""`diptych score`: how well captions fit pictures, and how pictures look; agreement with people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
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
    one_text,
    progress,
)
from diptych.cli.main import on_a_line

if TYPE_CHECKING:
    from diptych.data import Report
    from diptych.engine import Encoder
    from diptych.eval.binomial import Interval
    from diptych.judge.correlation import Correlation
    from diptych.judge.pairs import Columns, Pair
    from diptych.judge.score import Scores

_NAMES = {
    "kendall_c": "Kendall tau-c",
    "kendall_b": "Kendall tau-b",
    "spearman": "Spearman",
    "pearson": "Pearson",
}


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--text", multiple=True, help="A caption for each of IMAGES. Repeatable.")
@click.option(
    "--convention",
    type=click.Choice(["clipscore", "torchmetrics"]),
    default="clipscore",
    show_default=True,
    help="clipscore: 2.5 max(cosine, 0), with its prefix. torchmetrics: 100 cosine.",
)
@click.option(
    "--long",
    type=click.Choice(["cut", "windows"]),
    default="cut",
    show_default=True,
    help="A caption longer than the context: cut, or judged in windows.",
)
@click.option(
    "--references",
    is_flag=False,
    flag_value="references",
    metavar="[COLUMN]",
    help="RefCLIPScore too, with the right captions in this column.",
)
@click.option(
    "--clip-references",
    is_flag=True,
    help="RefCLIPScore as in the paper: a negative likeness to all references is 0.",
)
@click.option(
    "--ratings",
    metavar="COLUMN",
    help="Agreement with the ratings of people in this column, or in several: a,b,c.",
)
@click.option("--image-key", metavar="COLUMN", help="Of the paths in a list.")
@click.option("--caption-key", metavar="COLUMN", help="Of the captions in a list.")
@click.option(
    "--aesthetics",
    metavar="HEAD",
    help="How IMAGES look: a head's name (laion-v2-l14 ...) or file.",
)
@click.option(
    "--any-model", is_flag=True, help="With --aesthetics: also a model that is not the head's."
)
@click.option(
    "--fit-head",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Fit a head to the --ratings of a list of pictures, and write it.",
)
@json_option
@model_options
def score(
    images: tuple[str, ...],
    text: tuple[str, ...],
    aesthetics: str | None,
    any_model: bool,
    fit_head: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say how well captions fit their images, or how images look.

    IMAGES are files or folders with --text or --aesthetics. Else it is one list of images with
    captions (CSV, TSV, JSON lines, Parquet; columns path and caption), a folder of pictures with
    a .txt each, or a tar shard.

    \b
      diptych score photo.jpg --text "a dog on the grass"
      diptych score pairs.csv --references --ratings rating
      diptych score ~/Pictures --aesthetics laion-v2-l14 --model ViT-L-14/openai
    """
    names = ("convention", "long", "references", "clip_references", "ratings")
    how = {name: options.pop(name) for name in (*names, "image_key", "caption_key")}
    if sum((bool(text), aesthetics is not None, fit_head is not None)) > 1:
        raise click.UsageError("give one of --text, --aesthetics and --fit-head")
    listed = (how["references"], how["ratings"], how["image_key"], how["caption_key"])
    if (text or aesthetics) and any(value is not None for value in listed):
        raise click.UsageError(
            "--references, --ratings, --image-key and --caption-key name columns of a list: give a "
            "list of pairs in place of --text and --aesthetics"
        )
    if aesthetics is not None:
        _aesthetics(images, aesthetics, any_model, as_json, options)
        return
    if text:
        captions = tuple(one_text(caption, what="text") for caption in text)
        _score(images, captions, how, as_json, options)
        return
    if len(images) != 1:
        raise click.UsageError("give one list or folder of pairs, or --text for these images")
    if fit_head is not None:
        _fit(images[0], fit_head, how, as_json, options)
        return
    _score(images, None, how, as_json, options)


# --- captions ---------------------------------------------------------------------------------


def _score(
    images: tuple[str, ...],
    captions: tuple[str, ...] | None,
    how: dict[str, Any],
    as_json: bool,
    options: dict[str, Any],
) -> None:
    from diptych.judge.score import Failed, Rule, Tally, score_pairs

    rule = Rule(
        convention=how["convention"], long=how["long"], clip_references=how["clip_references"]
    )
    pairs, report = _given(images, captions, how, as_json)
    with_references = how["references"] is not None
    encoder = load_model(**options)
    tally = Tally(encoder, rule, references=with_references)
    rated: list[tuple[float, float | None, float, int]] = []
    skipped = done = 0
    with progress("scoring", None, printing=True) as advance:
        for one in score_pairs(encoder, pairs, rule=rule, references=with_references):
            tally.add(one)
            if isinstance(one, Failed):
                failed(one.key, one.error, as_json=as_json)
                continue
            done += 1
            skipped += one.skipped
            rated += [(one.score, one.reference_score, r, one.group) for r in one.ratings]
            _show(one, as_json=as_json)
            advance(1)
    scores = tally.scores()
    dropped = sum(report.drops.values()) + sum(report.flaws.values()) if report else 0
    if done > 1 or captions is None:
        _summary(scores, report, as_json=as_json)
    unmeasured = 0
    if how["ratings"] is not None and done:
        unmeasured = _agreement(rated, skipped, with_references, as_json=as_json)
    if not done and not scores.errors and dropped:
        raise click.UsageError("no pair is left: see the lines above")
    finish(done, len(scores.errors) + dropped + unmeasured)


def _given(
    images: tuple[str, ...], captions: tuple[str, ...] | None, how: dict[str, Any], as_json: bool
) -> tuple[Iterator[Pair], Report | None]:
    """The pairs that were typed, or those of a list with the report of what it drops."""
    from diptych.judge.pairs import Pair, read_pairs

    if captions is not None:
        found = inputs(images)
        return (Pair(key=_name(x), image=x, captions=captions) for x in found), None
    report = _report(as_json)
    return read_pairs(images[0], columns=_columns(how), report=report), report


def _name(image: str | bytes) -> str:
    return key_text(image if isinstance(image, str) else 0)


def _report(as_json: bool) -> Report:
    from diptych.data import Report
    from diptych.errors import DataError

    def tell(drop: Any) -> None:
        detail = f" ({drop.detail})" if drop.detail else ""
        failed(drop.name, DataError(f"{drop.name}: {drop.reason}{detail}"), as_json=as_json)

    return Report(on_drop=tell)


def _columns(how: dict[str, Any]) -> Columns:
    from diptych.judge.pairs import Columns

    ratings = [name.strip() for name in (how["ratings"] or "").split(",")]
    return Columns(
        image=how["image_key"],
        caption=how["caption_key"],
        references=how["references"],
        ratings=tuple(name for name in ratings if name),
    )


def _show(one: Any, *, as_json: bool) -> None:
    if as_json:
        record = {"path": one.key, "caption": one.caption, "score": one.score}
        if one.reference_score is not None:
            record["reference_score"] = one.reference_score
        emit(record | {"cut": one.cut, "windows": one.num_windows})
        return
    more = "" if one.reference_score is None else f"  {one.reference_score:8.4f}"
    note = "  (cut)" if one.cut else ""
    click.echo(f"{one.score:8.4f}{more}  {on_a_line(one.key)}  {on_a_line(one.caption)}{note}")


def _summary(scores: Scores, report: Report | None, *, as_json: bool) -> None:
    """The figure of all pairs, with what it was made of and what is not in it."""
    drops = {} if report is None else {**report.drops, **report.flaws}
    if as_json:
        emit({"summary": _record(scores) | {"dropped": drops}})
        return
    if scores.score is None:
        return
    click.echo(f"{scores.name}: {_figure(scores.score, scores.interval)}")
    if scores.reference_score is not None:
        rule = "the paper's" if scores.rule.clip_references else "its code's"
        figure = _figure(scores.reference_score, scores.reference_interval)
        click.echo(f"Ref-{scores.name} (by {rule} rule): {figure}")
    parts = [f"{scores.num} captions"]
    if scores.prefix:
        parts.append(f'each after "{scores.prefix.strip()}"')
    parts += [f"{scores.num_cut} cut"] if scores.num_cut else []
    parts += [f"{scores.num_windowed} in windows"] if scores.num_windowed else []
    parts += [f"{len(scores.errors)} pictures failed"] if scores.errors else []
    parts += [f"{count} dropped: {reason}" for reason, count in drops.items()]
    click.echo(f"  {', '.join(parts)}")


def _record(scores: Scores) -> dict[str, Any]:
    def ends(interval: Interval | None) -> list[float] | None:
        return None if interval is None else [interval.low, interval.high]

    return {
        "name": scores.name,
        "model": scores.model,
        **asdict(scores.rule),
        "prefix": scores.prefix,
        "score": scores.score,
        "interval": ends(scores.interval),
        "reference_score": scores.reference_score,
        "reference_interval": ends(scores.reference_interval),
        "num": scores.num,
        "num_cut": scores.num_cut,
        "num_windowed": scores.num_windowed,
        "errors": len(scores.errors),
    }


def _figure(value: float, interval: Interval | None) -> str:
    around = "" if interval is None else f" ({interval.low:.4f} to {interval.high:.4f})"
    return f"{value:.4f}{around}"


def _agreement(
    rated: list[tuple[float, float | None, float, int]],
    skipped: int,
    with_references: bool,
    *,
    as_json: bool,
) -> int:
    """Show how scores agree with ratings; how many agreements could not be measured."""
    import torch

    from diptych.errors import DataError
    from diptych.judge.correlation import correlation

    values, references, ratings, groups = ([row[i] for row in rated] for i in range(4))
    sides = {"score": values} | ({"reference_score": references} if with_references else {})
    unmeasured = 0
    for name, some in sides.items():
        try:
            found = correlation(
                torch.tensor(some, dtype=torch.float64),
                torch.tensor(ratings, dtype=torch.float64),
                clusters=torch.tensor(groups),
            )
        except DataError as error:
            failed(f"agreement of {name}", error, as_json=as_json)
            unmeasured += 1
        else:
            _show_agreement(name, found, skipped, as_json=as_json)
    return unmeasured


def _show_agreement(name: str, found: Correlation, skipped: int, *, as_json: bool) -> None:
    values = {
        "kendall_c": found.kendall_c,
        "kendall_b": found.kendall_b,
        "spearman": found.spearman,
        "pearson": found.pearson,
    }
    if as_json:
        ends = {way: list(interval[:2]) for way, interval in found.intervals.items()}
        emit({"agreement": name, "num": found.num, "skipped": skipped, **values, "intervals": ends})
        return
    click.echo(f"agreement of {name} with {found.num} ratings ({skipped} were no numbers):")
    for way, title in _NAMES.items():
        click.echo(f"  {title:14} {_figure(values[way], found.intervals.get(way))}")


# --- aesthetics -------------------------------------------------------------------------------


def _aesthetics(
    images: tuple[str, ...], name: str, any_model: bool, as_json: bool, options: dict[str, Any]
) -> None:
    from diptych.judge.aesthetics import aesthetic_scores, check_head, open_head

    head = open_head(name, offline=options["offline"])
    encoder = load_model(**options)
    check_head(head, encoder, any_model=any_model)
    total = None if "-" in images else sum(1 for _ in inputs(images))
    done = errors = 0
    with progress("scoring", total, printing=True) as advance:
        for batch in encoder.stream(inputs(images), out="torch"):
            for key, error in batch.errors.items():
                failed(key_text(key), error, as_json=as_json)
            values = aesthetic_scores(head, batch.vectors).tolist()
            for key, value in zip(batch.keys, values, strict=True):
                if as_json:
                    emit({"path": key_text(key), "score": value})
                else:
                    click.echo(f"{value:7.3f}  {on_a_line(key_text(key))}")
            done, errors = done + len(batch.keys), errors + len(batch.errors)
            advance(len(batch.keys) + len(batch.errors))
    finish(done, errors)


def _fit(path: str, out: Path, how: dict[str, Any], as_json: bool, options: dict[str, Any]) -> None:
    from diptych.judge.aesthetics import fit_head, save_head
    from diptych.judge.pairs import read_rated

    columns = _columns(how)
    if len(columns.ratings) == 0:
        raise click.UsageError("--fit-head needs --ratings: the column of the ratings")
    report = _report(as_json)
    encoder = load_model(**options)
    vectors, ratings, errors = _rated_vectors(
        encoder, read_rated(path, columns=columns, report=report), as_json=as_json
    )
    if not ratings:
        finish(0, errors + sum(report.drops.values()))
    import torch

    fitted = fit_head(torch.stack(vectors), torch.tensor(ratings), encoder=encoder)
    save_head(fitted.head, out)
    if as_json:
        emit({"head": str(out), "ridge": fitted.ridge, "fitted_on": fitted.num})
    else:
        click.echo(f"{out}: a head for {encoder.card.get('name')}, fitted on {fitted.num} pictures")
    _show_agreement("the head on pictures that were held out", fitted.held_out, 0, as_json=as_json)
    finish(len(ratings), errors + sum(report.drops.values()))


def _rated_vectors(
    encoder: Encoder, pairs: Iterable[Pair], *, as_json: bool
) -> tuple[list[Any], list[float], int]:
    """The vector and the mean rating of each picture, and how many pictures failed."""
    from diptych.judge.images import encode_items

    vectors, ratings, errors = [], [], 0
    with progress("encoding", None, printing=False) as advance:
        for one in encode_items(encoder, pairs):
            advance(1)
            if one.error is not None:
                failed(one.item.key, one.error, as_json=as_json)
                errors += 1
                continue
            vectors.append(one.vectors[0])
            ratings.append(sum(one.item.ratings) / len(one.item.ratings))
    return vectors, ratings, errors
