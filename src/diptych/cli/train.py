"""`diptych train`: train or fine-tune a model on pairs of pictures and captions."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import emit, json_option
from diptych.cli.main import printable
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from diptych.train.config import TrainConfig


@click.command()
@click.argument("given", nargs=-1, metavar="[RECIPE.py[:FUNCTION]] [DATA]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the run: checkpoints, metrics, report, model. Default: runs/NAME.",
)
@click.option("--model", help="Without a recipe: the model to start from.  [default: mini]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as optim.lr=5e-4. Repeatable. --set help lists them.",
)
@click.option("--dry-run", is_flag=True, help="Show what would happen, and what it would cost.")
@click.option("--price", type=float, help="Dry run: of a device-hour, for the cost.")
@click.option("--watts", type=float, help="Dry run: of a device, for the energy.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda.")
@json_option
def train(
    given: tuple[str, ...],
    out: Path | None,
    model: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    price: float | None,
    watts: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Train or fine-tune a model on pictures and their captions.

    DATA is a list of pictures and captions (.csv, .tsv, .jsonl, .parquet), a folder of pictures
    with a .txt beside each or a captions.csv in it, or WebDataset shards (.tar, also a pattern in
    quotes). A RECIPE is a Python file with a function that returns the settings; without one,
    `mini` is fine-tuned with mild settings for 3 epochs.

    The same command goes on where it was stopped, killed or switched off. Exit code 143 or 130:
    it was asked to stop, and has saved its state.

    \b
      diptych train photos/captions.csv --out runs/mine
      diptych train recipes/finetune.py photos/captions.csv --set epochs=20 --dry-run
      torchrun --nproc-per-node 2 -m diptych.cli.main train recipes/emoji.py:gpu
    """
    if not given and "help" not in settings:
        raise click.UsageError("give a recipe, data, or both. Type: diptych train --help")
    recipe = given[0] if given and _is_recipe(given[0]) else None
    data = given[1:] if recipe else given
    if late := next(filter(_is_recipe, data), None):
        raise click.UsageError(f"a recipe stands first. Type: diptych train {late} DATA")
    if recipe and model:
        raise click.UsageError(f"{recipe} names its model. Type: --set model.start={model}")
    if "help" in settings:
        _list_settings(_made_by(recipe) if recipe else None, model)
        return
    config = _with(_made_by(recipe), data) if recipe else _mild(data, model)
    config = _changed(config, settings)
    out = out or Path("runs") / config.name
    if dry_run:
        from diptych.train.preview import preview

        plan, text = preview(config, device=device, price=price, watts=watts)
        if not _is_first():
            return
        emit(plan) if as_json else click.echo(text)
        return
    _train(config, out, device, as_json)


def _train(config: TrainConfig, out: Path, device: str, as_json: bool) -> None:
    import logging

    from diptych.train import Stopped
    from diptych.train import train as run
    from diptych.train.fast import keep_memory

    keep_memory()  # the process is ours

    if not sys.stderr.isatty() and _is_first():
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        summary = run(config, out, device=device)
    except Stopped as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.code)
    except DiptychError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        # Where another rank was lost, taking gloo down can wait for it without end.
        click.echo(f"Error: {printable(str(error))}", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    if not _is_first():
        return
    if as_json:
        emit(summary)
        return
    click.echo(f"{summary['model']}: {summary['steps']} steps, {summary['pairs']:,} pairs")
    counts = sum((Counter(summary["data"][k]) for k in ("drops", "flaws", "bad")), Counter())
    for reason, count in sorted(counts.items()):
        click.echo(f"  not used: {count} ({reason})")
    click.echo(f"  report: {out / 'report.html'}")
    click.echo(f"  to use it: diptych search WORDS PHOTOS --model {summary['model']}")


def _is_first() -> bool:
    """Whether this rank of a run talks to people."""
    return os.environ.get("RANK", "0") == "0"


def _is_recipe(text: str) -> bool:
    return text.partition(":")[0].endswith(".py")


def _made_by(recipe: str) -> TrainConfig:
    """What the function of "FILE.py:FUNCTION" returns; by default the one named like the file."""
    from diptych.train.config import TrainConfig

    file, _, wanted = recipe.partition(":")
    path = Path(file)
    if not path.is_file():
        raise click.UsageError(f"{file}: there is no such recipe.")
    wanted = wanted or path.stem
    try:
        names = _names_of(path)
        if wanted not in names or not callable(names[wanted]):
            known = [n for n, f in names.items() if _returns(f, TrainConfig, module=path.stem)]
            hint = f"Type: diptych train {file}:{known[0]}" if known else "Write one."
            raise click.UsageError(f"{file}: has no {wanted!r}. It has: {', '.join(known)}. {hint}")
        config = names[wanted]()
    except (click.UsageError, DiptychError):
        raise
    except Exception as error:  # of a stranger's file: say where in it
        raise click.UsageError(f"{_place(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, TrainConfig):
        kind = type(config).__name__
        raise click.UsageError(
            f"{file}: {wanted} returns a {kind}. Let it return a TrainConfig(...)."
        )
    return config


def _names_of(path: Path) -> dict[str, Any]:
    """Run the file, and what it then has."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    sys.path.insert(0, str(path.parent))  # a recipe imports its neighbours
    spec.loader.exec_module(module)
    return vars(module)


def _place(error: Exception, path: Path) -> str:
    """FILE:LINE of the last line of `path` that ran."""
    ran, here = traceback.extract_tb(error.__traceback__), str(path.absolute())
    lines = [error.lineno] if isinstance(error, SyntaxError) else []
    lines += [frame.lineno for frame in ran if frame.filename == here]
    return ":".join(map(str, [path, *lines[-1:]]))


def _returns(function: Any, kind: type, *, module: str) -> bool:
    """Whether it is a recipe of this file."""
    if not inspect.isfunction(function) or function.__module__ != module:
        return False
    if function.__name__.startswith("_"):
        return False
    fits = function.__annotations__.get("return") in (kind, kind.__name__)
    return fits and not inspect.signature(function).parameters


def _with(config: TrainConfig, data: tuple[str, ...]) -> TrainConfig:
    from diptych.data.sources import Source

    if not data:
        return config
    sources = tuple(Source(path=path) for path in data)
    return replace(config, data=replace(config.data, sources=sources))


def _mild(data: tuple[str, ...], model: str | None) -> TrainConfig:
    from diptych.train.mild import mild

    return mild(data, model=model)


def _changed(config: TrainConfig, settings: tuple[str, ...]) -> TrainConfig:
    from diptych.train.config import changed

    return changed(config, *settings)


def _list_settings(config: TrainConfig | None, model: str | None) -> None:
    from diptych.train.config import settings_of
    from diptych.train.mild import settings

    for key, value in settings_of(config or settings(model)):
        click.echo(f"{key}={value}")
    click.echo("What each is: python -m pydoc diptych.train.config", err=True)
