"""`diptych classify`: which labels fit each image."""

from __future__ import annotations

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
    progress,
    text_list,
)


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--labels", help='Labels: "a,b", or @file with one a line.')
@click.option("--label", multiple=True, help="One label, which may hold commas. Repeatable.")
@click.option(
    "--templates",
    help='Put each label into a sentence: "photo", another prompt set, or "a drawing of a {}".',
)
@click.option("--top", default=5, show_default=True, help="Labels shown for each image.")
@json_option
@model_options
def classify(
    images: tuple[str, ...],
    labels: str | None,
    label: tuple[str, ...],
    templates: str | None,
    top: int,
    as_json: bool,
    **model: Any,
) -> None:
    """Say which labels fit each image, with probabilities.

    IMAGES are files, folders (all images below them), or - for stdin: one image, or paths, one a
    line.

    \b
      diptych classify photo.jpg --labels "a cat,a dog,a car"
      diptych classify ~/Pictures --labels @labels.txt --templates photo --json
    """
    names = text_list(labels, label, what="label")
    if top < 1:
        raise click.UsageError(f"--top must be at least 1, got {top}")
    encoder = load_model(**model)
    template = [templates] if templates and "{}" in templates else templates
    classifier = encoder.classifier(names, template, out="torch")
    known = [i for i in images if i != "-"]
    total = sum(1 for _ in inputs(known)) if len(known) == len(images) else None
    done = errors = 0
    with progress("classifying", total, printing=True) as advance:
        for batch in encoder.stream(inputs(images), out="torch"):
            for key, error in batch.errors.items():
                failed(key_text(key), error, as_json=as_json)
            scores = encoder.probabilities(batch.vectors, classifier)
            best = scores.topk(min(top, len(names)), dim=-1)
            for key, values, indices in zip(batch.keys, *(x.tolist() for x in best), strict=True):
                pairs = [(names[i], value) for i, value in zip(indices, values, strict=True)]
                _show(key_text(key), pairs, as_json=as_json)
            done, errors = done + len(batch.keys), errors + len(batch.errors)
            advance(len(batch.keys) + len(batch.errors))
    finish(done, errors)


def _show(path: str, pairs: list[tuple[str, float]], *, as_json: bool) -> None:
    if as_json:
        emit({"path": path, "labels": [{"label": x, "score": score} for x, score in pairs]})
        return
    click.echo(path)
    width = max(len(label) for label, _ in pairs)
    for label, score in pairs:
        click.echo(f"  {score:7.2%}  {label:<{width}}  {'█' * round(30 * score)}".rstrip())
