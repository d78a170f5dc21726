"""`diptych models`: list, show, download, check, convert and export models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import emit, failed, finish, json_option, offline_option
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from diptych.engine.graph import Format as Graph
    from diptych.engine.graph import Precision, Tower
    from diptych.zoo import Fetched, Format


@click.group()
def models() -> None:
    """List, show, download, check, convert and export models."""


@models.command("list")
@click.argument("pattern", default="*")
@json_option
def list_(pattern: str, as_json: bool) -> None:
    """List the models whose name fits PATTERN, such as "ViT-B*" or "*/openai".

    With each: millions of parameters, pixels a side, published ImageNet zero-shot accuracy. A star
    stands before those whose weights are on this machine.
    """
    from diptych import zoo

    names = zoo.list_models(pattern)
    if not names:
        raise click.UsageError(f"no model fits {pattern!r}. Type: diptych models list")
    width = max(len(name) for name in names)
    if not as_json:
        click.echo(f"  {'name':<{width}}  params, M  pixels   IN-1k")
    for row in map(zoo.get, names):
        here = zoo.find(row) is not None
        if as_json:
            emit(zoo.describe(row, work=False) | {"here": here})
            continue
        size = zoo.num_parameters(row.config)["parameters"] / 1e6
        score = row.metrics.get("imagenet1k_zero_shot")
        accuracy = "" if score is None else f"{score:.2f} %"
        free = "  non-commercial" if row.non_commercial else ""
        line = f"{row.name:<{width}}  {size:9.1f}  {row.preprocess.size[0]:6}  {accuracy:>7}{free}"
        click.echo(f"{'*' if here else ' '} {line}".rstrip())


@models.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what is known of a model: size, work, memory, pixels, tokens, sources, licence.

    Of a file or folder: its card, that is what it was made from, trained on, and when.
    """
    from diptych import zoo

    if Path(name).exists():
        checkpoint = zoo.open_model(Path(name))
        facts = checkpoint.card(name) | zoo.num_parameters(checkpoint.config)
        emit(facts) if as_json else _print(facts)
        return
    row = zoo.get(name)
    facts = zoo.describe(row) | {"here": str(zoo.find(row) or "no")}
    if as_json:
        emit(facts)
    else:
        _print(facts)


@models.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder to carry to a machine without a network; there: DIPTYCH_CACHE=FOLDER.",
    metavar="FOLDER",
)
@json_option
def download(names: tuple[str, ...], to: Path | None, as_json: bool) -> None:
    """Fetch models: names or patterns of `diptych models list`, such as "*/openai", or hf:org/name.

    Files that are here already, also in the caches of other libraries, are not fetched again;
    with --to, FOLDER alone counts.
    """
    from diptych import zoo

    wanted: list[str] = []
    for name in names:
        fits = zoo.list_models(name) if any(c in name for c in "*?[") else [name]
        if not fits:
            raise click.UsageError(f"no model fits {name!r}. Type: diptych models list")
        wanted += fits
    done = errors = 0
    for name in dict.fromkeys(wanted):
        try:
            fetched = zoo.fetch_files(name, cache=to, elsewhere=to is None)
        except DiptychError as error:
            failed(name, error, as_json=as_json)
            errors += 1
            continue
        _report(name, fetched, as_json=as_json)
        done += 1
    finish(done, errors)


def _report(name: str, fetched: Fetched, *, as_json: bool) -> None:
    from diptych import zoo

    for file in fetched.files:
        sha256 = file.sha256 if file.new and file.sha256 else zoo.sha256_of(file.path)
        if as_json:
            facts = {"model": name, "path": str(file.path), "size": file.size, "sha256": sha256}
            facts |= {"url": file.url, "commit": file.commit, "already_here": not file.new}
            emit(facts)
        else:
            here = "" if file.new else "  already here"
            click.echo(f"{file.path}  {file.size:,} bytes  {sha256}{here}")


@models.command()
@click.argument("model")
@click.option(
    "--model",
    "against",
    help="Of an exported folder: the model to hold it against, else what was stored in it.",
)
@click.option("--config", help="For a file of bare weights: the name of the model it belongs to.")
@offline_option
@json_option
def check(
    model: str, against: str | None, config: str | None, offline: bool | None, as_json: bool
) -> None:
    """Check a checkpoint: keys, shapes, NaN, hash, the fast path, and the published outputs.

    MODEL is a name of `diptych models list`, a file or a folder; what is not here is fetched. The
    fast path is held against the fp32 reference, and the outputs of models whose publisher printed
    some against those: REPRODUCES, or DIFFERS BY how much (exit code 1). Of a folder that `diptych
    models export` has written: the hashes of its files, and whether their vectors are still those
    of the model.
    """
    from diptych.engine.check import check_model

    facts = check_model(model, config=config, offline=offline, against=against)
    if as_json:
        emit(facts)
    else:
        _print({key: value for key, value in facts.items() if key != "differs"})
    if facts["differs"]:
        sys.exit(1)


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


@models.command("export")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    show_default=True,
    help="onnx: for ONNX Runtime and its like. torch: for torch.export.load.",
)
@click.option(
    "--tower", type=click.Choice(["image", "text"]), help="Write this one alone.", metavar="TOWER"
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16: ONNX weights are stored in half; the arithmetic stays fp32.",
)
@click.option(
    "--uint8", is_flag=True, help="Images go in as levels 0..255; the graph normalises them."
)
@click.option("--config", help="For a file of bare weights: the name of the model it belongs to.")
@offline_option
@json_option
def export_(
    model: str,
    out: Path,
    format_: Graph,
    tower: Tower | None,
    precision: Precision,
    uint8: bool,
    config: str | None,
    offline: bool | None,
    as_json: bool,
) -> None:
    """Write MODEL to the folder OUT as graphs that other programs run.

    \b
    image.onnx and text.onnx, or .pt2, with the normalisation to unit rows inside; the tokenizer's
    files; diptych.json, which says what goes in and comes out. Each graph is held against the model
    on sample photographs and captions: if it differs, nothing is written. Extra `export`.
    """
    from dataclasses import asdict

    from diptych.cli.common import load_model
    from diptych.engine.export import export

    encoder = load_model(model, config=config, device="cpu", precision="fp32", offline=offline)
    towers: tuple[Tower, ...] = ("image", "text") if tower is None else (tower,)
    done = export(encoder, out, format=format_, towers=towers, precision=precision, uint8=uint8)
    if as_json:
        parity = [asdict(measured) for measured in done.parity]
        emit({"path": str(out), "format": format_, "files": done.files, "parity": parity})
        return
    for measured in done.parity:
        click.echo(f"{measured.tower}, {measured.what}: {measured}")
    click.echo(f"{out}: written, and held against the model", err=True)


def _print(facts: dict[str, Any]) -> None:
    """A line a fact; what is not known is left out."""
    if facts.get("non_commercial"):
        text = "Warning: its licence forbids or restricts commercial use."
        click.secho(text, fg="yellow", err=True)
    facts = {
        key.removesuffix("_bytes").replace("_", " "): _readable(key, value)
        for key, value in facts.items()
    }
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        texts = isinstance(value, list) and value and isinstance(value[0], str)
        for i, line in enumerate(value if texts else [value]):
            if line not in (None, [], {}):
                click.echo(f"{'' if i else name:<{width}}  {_text(line)}")


def _readable(key: str, value: Any) -> Any:
    """Bytes as megabytes; a table of names as lines."""
    if key.endswith("_bytes"):
        return {what: f"{size / 1e6:,.0f} MB" for what, size in value.items()}
    if key == "sha256" and isinstance(value, dict):
        return [f"{digest}  {address}" for address, digest in value.items()]
    return value


def _text(value: Any) -> str:
    match value:
        case {"type": kind, **fields}:
            return f"{kind}({_text(fields)})"
        case dict():
            return ", ".join(f"{key}={_text(inner)}" for key, inner in value.items())
        case [int(), *_]:
            return " x ".join(map(str, value))
        case list():
            return ", ".join(map(str, value))
        case bool():
            return "yes" if value else "no"
        case int() if value > 9999:
            return f"{value:,}"
    return str(value)
