"""`diptych curate`: make data sets."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from diptych.cli.common import emit, json_option, progress


@click.group()
def curate() -> None:
    """Build data sets of images with captions."""


@curate.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The folder to write shards into."
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Samples of a shard.",
)
@click.option("--max-bytes", type=click.IntRange(1), help="End a shard at so many bytes of images.")
@click.option(
    "--max-side", type=click.IntRange(16), help="Make pictures smaller whose long side is longer."
)
@json_option
def pack(
    inputs: tuple[str, ...],
    out: Path,
    shard_size: int,
    max_bytes: int | None,
    max_side: int | None,
    as_json: bool,
) -> None:
    """Write pairs of image and caption as WebDataset shards.

    INPUTS are folders of pictures with a .txt each or with a captions.csv, lists (CSV, TSV, JSON
    lines, Parquet), or tar shards; "{0000..0099}" and "*" are understood. Broken off, the same
    command goes on after the last whole shard.
    """
    from diptych import zoo
    from diptych.data.pack import pack as write
    from diptych.preprocess.shrink import shrink

    smaller = None if max_side is None else partial(shrink, side=max_side)
    with progress("Packing", None, printing=False) as advance:
        found = write(
            inputs,
            out,
            folder=zoo.cache_folder() / "pairs",
            shard_size=shard_size,
            max_bytes=max_bytes,
            shrink=smaller,
            shrunk="" if max_side is None else f"long side at most {max_side}, JPEG 95",
            progress=advance,
        )
    if as_json:
        emit({"out": str(out), **{name: found[name] for name in ("samples", "shards", "drops")}})
    else:
        click.echo(f"{found['samples']:,} pairs in {len(found['shards']):,} shards: {out}")
        for reason, number in sorted(found["drops"].items()):
            click.echo(f"  left out: {number:,}, {reason}")
    if found["drops"]:
        raise SystemExit(1)
