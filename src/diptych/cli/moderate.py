"""`diptych moderate`: what a policy of sentences says of pictures, and its thresholds."""

from __future__ import annotations

from collections.abc import Callable
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
from diptych.cli.main import on_a_line

if TYPE_CHECKING:
    from diptych.judge.moderate import Answer, LabelReport

mask_option = click.option(
    "--mask-text", is_flag=True, help="Judge without the words that are printed on a picture."
)


def _share(name: str, default: float, told: str) -> Callable:
    kind = click.FloatRange(0.5, 1, max_open=True)
    return click.option(name, type=kind, default=default, show_default=True, help=told)


@click.group()
def moderate() -> None:
    """Judge pictures by a policy of sentences; set its thresholds on examples."""


@moderate.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True)
@mask_option
@json_option
@model_options
def check(
    policy: Path, images: tuple[str, ...], mask_text: bool, as_json: bool, **model: Any
) -> None:
    """Say which labels of a policy hold for each image: yes, no, or unsure.

    POLICY is a YAML file. IMAGES are files, folders (all images below them), or - for stdin. With
    --mask-text a picture that holds printed text is judged with and without it; where the two
    differ, both are shown and the verdict is unsure.

    \b
      diptych moderate check policy.yaml ~/Pictures --json
    """
    from diptych.judge.images import Item, encode_items
    from diptych.judge.masked import with_and_without_text
    from diptych.judge.moderate import check_policy, joined, policy_scores, sentences, verdicts
    from diptych.judge.policy import read_policy

    rules = read_policy(policy)
    encoder = load_model(**model)
    check_policy(rules, encoder, mask_text=mask_text)
    if rules.fitted is None and not all(label.has_thresholds for label in rules.labels):
        click.echo(
            "Warning: labels without thresholds: 'yes' is a guess above 0. Set them on your own "
            "examples: diptych moderate fit",
            err=True,
        )
    found = sentences(encoder, rules)
    views = with_and_without_text if mask_text else None
    items = (
        Item(key=key_text(path if isinstance(path, str) else 0), image=path)
        for path in inputs(images)
    )
    total = None if "-" in images else sum(1 for _ in inputs(images))
    done = errors = 0
    with progress("moderating", total, printing=True) as advance:
        for one in encode_items(encoder, items, views=views):
            advance(1)
            if one.error is not None:
                failed(one.item.key, one.error, as_json=as_json)
                errors += 1
                continue
            done += 1
            answers = verdicts(rules, policy_scores(found, one.vectors))
            _show(one.item.key, joined(answers), answers, as_json=as_json)
    finish(done, errors)


def _show(path: str, final: list[Answer], views: list[list[Answer]], *, as_json: bool) -> None:
    """One picture; `views` is its verdicts with, and if it has any without, printed text."""
    if as_json:
        rows = []
        for i, a in enumerate(final):
            row: dict[str, Any] = {"label": a.label, "verdict": a.verdict, "score": a.score}
            if len(views) > 1:
                row |= {"with_text": views[0][i].verdict, "without_text": views[1][i].verdict}
            rows.append(row)
        emit({"path": path, "labels": rows, "printed_text": len(views) > 1})
        return
    click.echo(on_a_line(path))
    for i, answer in enumerate(final):
        note = ""
        if len(views) > 1:
            said = views[0][i].verdict, views[1][i].verdict
            note = "" if said[0] == said[1] else f"  ({said[0]} with its text, {said[1]} without)"
        name = on_a_line(answer.label)
        click.echo(f"  {answer.verdict:6}  {answer.score:+8.2f}  {name}{note}")


@moderate.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    required=True,
    help="A list of pictures with their labels (CSV, TSV, JSON lines, Parquet).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the policy with its thresholds is written.",
)
@_share("--target-precision", 0.9, 'Of "yes", at least.')
@_share("--target-recall", 0.9, 'At most 1 - recall of the true ones are "no".')
@_share("--confidence", 0.95, "With which each of the two is kept.")
@click.option("--seed", default=0, show_default=True, help="Of the halves.")
@mask_option
@json_option
@model_options
def fit(
    policy: Path,
    examples: Path,
    out: Path,
    target_precision: float,
    target_recall: float,
    confidence: float,
    seed: int,
    mask_text: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Set the thresholds of a policy on labelled examples, and measure them.

    One half of the examples sets the thresholds, the other tells what they are worth. A label for
    which nothing can be promised gets no threshold, and is never answered with yes.

    \b
      diptych moderate fit policy.yaml --examples labelled.csv --out fitted.yaml
    """
    import torch

    from diptych.judge.images import encode_items
    from diptych.judge.labelled import read_labelled
    from diptych.judge.masked import with_and_without_text
    from diptych.judge.moderate import fit as fit_policy
    from diptych.judge.moderate import policy_scores, sentences
    from diptych.judge.policy import read_policy, write_policy

    rules = read_policy(policy)
    items = list(read_labelled(examples, [label.name for label in rules.labels]))
    encoder = load_model(**model)
    found = sentences(encoder, rules)
    views = with_and_without_text if mask_text else None
    scores, truth, errors = [], [], 0
    with progress("encoding", len(items), printing=False) as advance:
        for one in encode_items(encoder, items, views=views):
            advance(1)
            if one.error is not None:
                failed(one.item.key, one.error, as_json=as_json)
                errors += 1
                continue
            scores.append(policy_scores(found, one.vectors)[-1])
            truth.append(one.item.truth)
    if not scores:
        finish(0, errors)
    fitted = fit_policy(
        rules,
        encoder,
        torch.stack(scores),
        torch.tensor(truth, dtype=torch.float64),
        precision=target_precision,
        recall=target_recall,
        confidence=confidence,
        mask_text=mask_text,
        seed=seed,
    )
    write_policy(fitted.policy, out)
    for label, report in zip(fitted.policy.labels, fitted.reports, strict=True):
        _report(report, label.accept, label.reject, as_json=as_json)
    finish(len(scores), errors)


def _report(
    report: LabelReport, accept: float | None, reject: float | None, *, as_json: bool
) -> None:
    shares = {
        "precision": (report.precision, report.precision_interval),
        "recall": (report.recall, report.recall_interval),
        "found": (report.found, report.found_interval),
    }
    if as_json:
        record: dict[str, Any] = {"label": report.label, "accept": accept, "reject": reject}
        record |= {"num": report.num, "positives": report.positives}
        record |= {"yes": report.yes, "unsure": report.unsure, "no": report.no}
        for name, (value, interval) in shares.items():
            record[name] = value
            record[f"{name}_interval"] = None if interval is None else list(interval[:2])
        emit(record)
        return
    bands = [
        "never yes (no precision could be shown)" if accept is None else f"yes from {accept:+.2f}",
        "never no (too few true ones)" if reject is None else f"no below {reject:+.2f}",
    ]
    click.echo(f"{on_a_line(report.label)}: {', '.join(bands)}")
    counts = f"{report.yes} yes, {report.unsure} unsure, {report.no} no"
    click.echo(f"  held out: {report.num} pictures, {report.positives} have it: {counts}")
    meaning = {
        "precision": "of yes are right",
        "recall": "of those that have it are not no",
        "found": "of those that have it are yes",
    }
    for name, (value, interval) in shares.items():
        if value is not None and interval is not None:
            low, high = interval.low, interval.high
            click.echo(f"  {value:7.1%} ({low:.1%} to {high:.1%}) {meaning[name]}")
