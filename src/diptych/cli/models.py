"""`diptych models`: list, show, check and convert checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import emit, json_option

if TYPE_CHECKING:
    from diptych.zoo import Format


@click.group()
def models() -> None:
    """List, show, check and convert models."""


@models.command("list")
@click.argument("pattern", default="*")
@json_option
def list_(pattern: str, as_json: bool) -> None:
    """List the models whose name fits PATTERN, such as "ViT-B*" or "*/openai".

    A star stands before those whose weights are on this machine.
    """
    from diptych import zoo

    names = zoo.list_models(pattern)
    if not names:
        raise click.UsageError(f"no model fits {pattern!r}. Type: diptych models list")
    rows = [(zoo.get(name), zoo.find(zoo.get(name)) is not None) for name in names]
    width = max(len(name) for name in names)
    for row, here in rows:
        if as_json:
            emit(zoo.describe(row) | {"here": here})
        else:
            score = row.metrics.get("imagenet1k_zero_shot")
            accuracy = "" if score is None else f"{score:6.2f} %"
            free = "non-commercial" if row.non_commercial else ""
            click.echo(
                f"{'*' if here else ' '} {row.name:<{width}}  {accuracy:>8}  {free}".rstrip()
            )


@models.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what is known of a model: architecture, size, pixels, tokens, source, licence."""
    from diptych import zoo

    row = zoo.get(name)
    facts = zoo.describe(row) | {"here": str(zoo.find(row) or "no")}
    if as_json:
        emit(facts)
    else:
        _print(facts)


@models.command()
@click.argument("model")
@click.option("--config", help="For a file of bare weights: the name of the model it belongs to.")
@json_option
def check(model: str, config: str | None, as_json: bool) -> None:
    """Check a checkpoint: keys, shapes, NaN, hash, and the fast path against the fp32 reference.

    MODEL is a name of `diptych models list`, a file or a folder.
    """
    from diptych.engine.check import check_model

    facts = check_model(model, config=config)
    if as_json:
        emit(facts)
    else:
        _print(facts)


@models.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["diptych", "openai", "open_clip", "hf"]),
    default="diptych",
    show_default=True,
    help="Whose layout to write.",
)
@click.option("--config", help="For a file of bare weights: the name of the model it belongs to.")
def convert(model: str, out: Path, format_: Format, config: str | None) -> None:
    """Write MODEL (a name, file or folder) to OUT in another publisher's layout.

    \b
    diptych and openai are one file; open_clip and hf are a folder. The weights are copied bit for
    bit; what a layout cannot state is refused.
    """
    from diptych import zoo

    zoo.write(zoo.open_model(model, config=config), out, format=format_)
    click.echo(f"{out}: written in the layout of {format_}", err=True)


def _print(facts: dict[str, Any]) -> None:
    """A line a fact; what is not known is left out."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        texts = isinstance(value, list) and value and isinstance(value[0], str)
        for i, line in enumerate(value if texts else [value]):
            if line not in (None, [], {}):
                click.echo(f"{'' if i else name:<{width}}  {_text(line)}")


def _text(value: Any) -> str:
    match value:
        case {"type": kind, **fields}:
            return f"{kind}({_text(fields)})"
        case dict():
            return ", ".join(f"{key}={_text(inner)}" for key, inner in value.items())
        case list():
            return " x ".join(map(str, value))
        case bool():
            return "yes" if value else "no"
        case int() if value > 9999:
            return f"{value:,}"
    return str(value)
