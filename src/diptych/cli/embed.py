"""`diptych embed`: the vectors of images or texts in a file, or of shards in a folder."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
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
    text_list,
)
from diptych.cli.main import printable

if TYPE_CHECKING:
    import numpy as np

    from diptych.engine.bulk import Told


@click.command()
@click.argument("images", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write: .npz, .npy or .parquet. For shards: a folder.",
)
@click.option("--texts", help='Embed texts instead: "a,b", or @file with one a line.')
@click.option("--text", multiple=True, help="One text, which may hold commas. Repeatable.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Shards: processes on this machine. Default: one a GPU.",
)
@click.option(
    "--lease",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="Shards: seconds until a silent worker counts as dead. The same for all workers.",
)
@click.option("--retry-failed", is_flag=True, help="Shards: try again what failed before.")
@click.option(
    "--launcher",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Shards: where --workers run.",
)
@json_option
@model_options
def embed(
    images: tuple[str, ...],
    out: Path,
    texts: str | None,
    text: tuple[str, ...],
    as_json: bool,
    workers: int | None,
    lease: float,
    retry_failed: bool,
    launcher: str,
    **model: Any,
) -> None:
    """Write the unit vectors of images, or of texts, to a file.

    IMAGES are files, folders (all images below them), or - for stdin. An image that fails is
    reported and has no row. An image's key is its path, a text's key the text.

    IMAGES can also be shards: WebDataset .tar files, a folder of them, a pattern in quotes, or
    lists of paths (.txt, .csv, .tsv, .parquet). Then --out is a folder, with one folder a shard.
    The same command may run in any number of processes, on any machines that share the folders;
    each takes shards that nobody works on. What is finished is not done again.

    \b
      diptych embed ~/Pictures --out pictures.npz
      diptych embed --texts @captions.txt --out captions.parquet
      diptych embed "data/*.tar" --out vectors --workers 2
    """
    wants_texts = texts is not None or bool(text)
    if wants_texts == bool(images):
        raise click.UsageError("give images, or --texts / --text: one of the two")
    if images and _are_shards(images, out):
        job = {"lease": lease, "retry_failed": retry_failed}
        _embed_shards(images, out, workers, launcher, as_json, job | model)
        return
    if workers is not None or retry_failed or launcher != "local":
        raise click.UsageError("--workers, --retry-failed and --launcher are for shards (.tar)")
    if out.is_dir():
        raise click.UsageError(f"--out {out}: is a folder. Give a file: .npz, .npy or .parquet")
    words = text_list(texts, text, what="text") if wants_texts else []
    _embed_file(images, words, out, as_json, model)


def _embed_file(
    images: tuple[str, ...], words: list[str], out: Path, as_json: bool, model: dict[str, Any]
) -> None:
    """Images or texts to one file."""
    from diptych.engine.vectors import check_format, write_vectors

    check_format(out)
    encoder = load_model(**model)
    meta = {"fingerprint": encoder.fingerprint, "precision": encoder.precision, **encoder.card}
    num_errors = 0

    def image_rows() -> Iterator[tuple[list[str], np.ndarray]]:
        nonlocal num_errors
        total = None if "-" in images else sum(1 for _ in inputs(images))
        with progress("embedding", total, printing=False) as advance:
            for batch in encoder.stream(inputs(images)):
                for key, error in batch.errors.items():
                    failed(key_text(key), error, as_json=as_json)
                num_errors += len(batch.errors)
                yield [key_text(key) for key in batch.keys], batch.vectors
                advance(len(batch.keys) + len(batch.errors))

    def text_rows() -> Iterator[tuple[list[str], np.ndarray]]:
        with progress("embedding", len(words), printing=False) as advance:
            for start in range(0, len(words), 1024):
                some = words[start : start + 1024]
                yield some, encoder.encode_text(some)
                advance(len(some))

    rows = text_rows() if words else image_rows()
    done = write_vectors(out, rows, embed_dim=encoder.config.embed_dim, meta=meta)
    if not as_json:
        click.echo(f"{out}: {done} vectors of {encoder.config.embed_dim}", err=True)
    finish(done, num_errors)


def _are_shards(images: tuple[str, ...], out: Path) -> bool:
    """Whether these are shards, by their names: the output decides, where it has an ending."""
    import glob

    from diptych.data import is_shard

    def are(path: str) -> bool:
        if Path(path).is_dir():
            return any(Path(path).glob("*.tar"))
        return is_shard(path) or (not Path(path).exists() and glob.has_magic(path))

    shards = [path for path in images if path != "-" and are(path)]
    if out.suffix not in (".npz", ".npy", ".parquet"):
        return len(shards) == len(images)
    only = [path for path in shards if not Path(path).is_dir()]
    if only:
        raise click.UsageError(f"{only[0]} is a shard: --out must be a folder, not {out}")
    return False


def _embed_shards(
    images: tuple[str, ...],
    out: Path,
    workers: int | None,
    launcher: str,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """Shards to a folder, here or in workers of our own."""
    from diptych.engine.bulk import Task, default_workers, expand, run_here, run_local, run_ray

    task = Task(inputs=images, out=str(out), **options)
    shards = expand(images)
    workers = workers or default_workers(task)
    tally = Counter[str]()
    with _bars(len(shards)) as (shard_done, advance), _leaving_on_sigterm():

        def told(one: Told) -> None:
            tally.update(_tell(one, as_json))
            shard_done(1)

        died: list[str] = []
        if launcher == "ray":
            died = run_ray(task, workers=workers, told=told)
        elif workers > 1:
            died = run_local(task, workers=workers, told=told, advance=advance)
        else:
            run_here(task, told=told, advance=advance)
    for text in died:
        click.echo(f"Error: {text}", err=True)
    missing = len(shards) - tally["shards"] - tally["failed"]
    if missing:
        click.echo(f"Error: {missing} shards are not done. Type the same again.", err=True)
    if not as_json:
        click.echo(
            f"{out}: {tally['rows']} vectors of {tally['shards']} shards, "
            f"{tally['bad']} samples without one",
            err=True,
        )
    finish(tally["rows"], tally["bad"] + tally["failed"] + missing)


def _tell(one: Told, as_json: bool) -> dict[str, int]:
    """Report one shard; what it adds to the counts."""
    path = printable(str(one.path))
    manifest = one.manifest
    if manifest is None:
        if as_json:
            emit({"path": path, "error": one.error})
        else:
            click.echo(f"Error: {printable(one.error or '')}", err=True)
        return {"failed": 1}
    bad = manifest.errors + sum(manifest.drops.values()) + sum(manifest.flaws.values())
    if as_json:
        record: dict[str, Any] = {"path": path, "out": printable(str(one.folder))}
        record |= {"state": one.state, "rows": manifest.rows, "errors": manifest.errors}
        record |= {"drops": manifest.drops, "flaws": manifest.flaws, "seconds": manifest.seconds}
        emit(record)
    elif bad and one.state == "done":
        where = printable(str(one.folder / "errors.jsonl"))
        click.echo(f"{path}: {bad} samples without a vector or damages, see {where}", err=True)
    return {"shards": 1, "rows": manifest.rows, "bad": bad}


@contextlib.contextmanager
def _bars(num_shards: int) -> Iterator[tuple[Any, Any]]:
    """A bar over the shards, and a count of images beside it."""
    if not sys.stderr.isatty():
        yield (lambda n: None), (lambda n: None)
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("shards"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[images]:,} images"),
        rich_progress.TimeElapsedColumn(),
    )
    how = {"transient": True, "redirect_stdout": False}  # what is printed belongs into the pipe
    with rich_progress.Progress(*columns, console=Console(stderr=True), **how) as bar:
        task = bar.add_task("shards", total=num_shards, images=0)
        count = 0

        def advance(n: int) -> None:
            nonlocal count
            count += n
            bar.update(task, images=count)

        yield (lambda n: bar.advance(task, n)), advance


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """A scheduler that asks us to go gets the lease back first, so nobody waits for it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
