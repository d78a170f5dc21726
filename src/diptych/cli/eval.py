"""`diptych eval`: what a model is worth on data sets, and whether another is better."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from diptych.cli.common import (
    emit,
    json_option,
    load_model,
    model_options,
    progress,
    running_options,
)
from diptych.cli.main import on_a_line

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.group(name="eval")
def eval_() -> None:
    """Measure models on data sets; compare two; find what a training set knows already."""


@eval_.command()
@click.argument("model")
@click.option(
    "--sets", "names", required=True, help='Names, suites or patterns: "packaged,imagenet*".'
)
@click.option(
    "--data", type=_FOLDER, help="The folder that holds a folder for each set, by its name."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("report"),
    show_default=True,
    help="Where results and report.html go; gone on with if they are there.",
)
@click.option("--partial", is_flag=True, help="Classes may be without a picture.")
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser.")
@json_option
@running_options(mode="original")
def run(
    model: str,
    names: str,
    data: Path | None,
    out: Path,
    partial: bool,
    opens: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure MODEL on sets, each under a named protocol, every figure with an interval.

    A set that is whole in --out is not measured again, so a run that was broken off goes on with
    the same command. `diptych eval sets` lists what there is and where it comes from.

    \b
      diptych eval run mini --sets packaged --out report
      diptych eval run ViT-B-32/openai --sets food101,imagenet-shifts --data ~/datasets
    """
    from diptych.eval.report import write_report
    from diptych.eval.run import evaluate
    from diptych.eval.sets import find

    rows = find([name.strip() for name in names.split(",") if name.strip()])
    encoder = load_model(model, **how)

    def watch(what: str, total: int):
        return progress(what, total, printing=not as_json)

    done = missing = unused = 0
    for result in evaluate(encoder, rows, out, data=data, partial=partial, progress=watch):
        if "reason" in result:
            missing += 1
            if as_json:
                emit({"set": result["set"], "error": result["reason"]})
            else:
                click.echo(f"Error: {on_a_line(result['reason'])}", err=True)
            continue
        done, unused = done + 1, unused + len(result["unused"])
        _show(result, as_json=as_json)
    if not done:
        raise click.UsageError("no set could be measured; each reason stands above")
    page = write_report(out)
    if not as_json:
        click.echo(f"{done} sets measured, {missing} not. {page}")
    if opens:
        click.launch(str(page))
    sys.exit(1 if missing or unused else 0)


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    figure = result["figures"][result["headline"]]
    if as_json:
        told = {key: result[key] for key in ("set", "headline", "num_measured", "chance", "kept")}
        emit(told | figure | {"unused": len(result["unused"]), "published": result["published"]})
        return
    interval = "" if figure["low"] is None else f" [{figure['low']:.1%}, {figure['high']:.1%}]"
    chance = "" if result["chance"] is None else f", chance {result['chance']:.1%}"
    kept = ", measured before" if result["kept"] else ""
    click.echo(
        f"{result['set']:<22} {result['headline']:<18} {figure['value']:6.1%}{interval}"
        f"{chance}, {result['num_measured']:,} samples{kept}"
    )
    for verdict in result["published"]:
        click.echo(f"    {verdict['verdict']}")
    if result["unused"]:
        first = result["unused"][0]
        click.echo(
            f"    not used: {len(result['unused']):,}; the first: {on_a_line(first['key'])}: "
            f"{on_a_line(first['reason'])}"
        )
    for note in result["notes"]:
        click.echo(f"    {on_a_line(note)}")


@eval_.command()
@click.argument("first", type=_FOLDER)
@click.argument("second", type=_FOLDER)
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Is the model of SECOND better than that of FIRST? Folders of `diptych eval run`.

    Paired: what both get right or both get wrong does not count (McNemar's exact test; p of many
    sets corrected by Holm).
    """
    from diptych.eval.compare import compare as compared

    found = compared(first, second)
    if as_json:
        emit(found)
        return
    click.echo(f"{found['first']['name']} -> {found['second']['name']}")
    for line in found["sets"]:
        click.echo(
            f"{line['set']:<22} {line['first']:6.1%} -> {line['second']:6.1%}  "
            f"{100 * line['difference']:+.1f} [{100 * line['low']:+.1f}, {100 * line['high']:+.1f}]"
            f"  p {line['p']:.2g}, of all sets {line['p_holm']:.2g}  ({line['figure']}, "
            f"{line['num']:,} samples)"
        )
    click.echo(f"{'mean':<22} {100 * found['mean']:+.1f}")
    for line in found["not_compared"]:
        click.echo(f"not compared: {line['set']}: {line['reason']}")


@eval_.command(name="sets")
@click.argument("names", nargs=-1)
@json_option
def list_sets(names: tuple[str, ...], as_json: bool) -> None:
    """List the sets that are known: names, suites or patterns; all of them by default."""
    from diptych.eval.sets import SETS, find

    for row in find(list(names)) if names else SETS.values():
        if as_json:
            emit(
                {
                    "set": row.name,
                    "title": row.title,
                    "task": row.task,
                    "metric": row.metric,
                    "templates": row.templates,
                    "split": row.split,
                    "size": row.size,
                    "suites": row.suites,
                    "source": row.source,
                    "licence": row.licence,
                    "note": row.note,
                }
            )
            continue
        size = "" if row.size is None else f"{row.size:,}"
        click.echo(f"{row.name:<22} {row.task:<15} {row.metric:<18} {size:>8}  {row.title}")


@eval_.command()
@click.argument("train")
@click.argument("evaluation")
@click.option("--data", type=_FOLDER, help="Where the data of a set are, if EVALUATION is a name.")
@click.option(
    "--report", type=_FOLDER, help="A folder of `diptych eval run`: also the accuracy without them."
)
@json_option
@model_options
def overlap(
    train: str,
    evaluation: str,
    data: Path | None,
    report: Path | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Find pictures of EVALUATION that are in TRAIN, byte for byte or almost.

    Both are folders, lists or tar shards; EVALUATION may be a name of `diptych eval sets`.

    \b
      diptych eval overlap "shards/{000..127}.tar" gcompris --data build/eval --report report
    """
    from diptych.eval.known import known_pictures

    encoder = load_model(**model)
    with progress("comparing", None, printing=False) as advance:
        last = 0

        def more(done: int) -> None:
            nonlocal last
            advance(done - last)
            last = done

        found = known_pictures(encoder, train, evaluation, data=data, report=report, progress=more)
    if as_json:
        emit(found)
    else:
        _show_overlap(found)
    sys.exit(1 if found["unused"] else 0)


def _show_overlap(found: dict[str, Any]) -> None:
    for line in found["found"]:
        best = line["matches"][0]
        more = f" and {line['num'] - 1:,} more" if line["num"] > 1 else ""
        click.echo(
            f"{on_a_line(line['path'])} = {on_a_line(best['train'])} ({best['reason']}, cosine "
            f"{best['cosine']:.3f}, {best['bits']} bits){more}"
        )
    share = len(found["found"]) / found["num_evaluation"]
    click.echo(
        f"{len(found['found']):,} of {found['num_evaluation']:,} pictures ({share:.1%}) are among "
        f"the {found['num_train']:,} of training"
    )
    if accuracy := found["accuracy"]:
        click.echo(
            f"accuracy {accuracy['everything']:.1%}; without them {accuracy['clean']:.1%} "
            f"({accuracy['num_clean']:,} samples), on them {accuracy['overlap']:.1%}; "
            f"p {accuracy['p']:.2g}"
        )
    for line in found["unused"]:
        click.echo(f"Error: {on_a_line(line['path'])}: {on_a_line(line['reason'])}", err=True)
