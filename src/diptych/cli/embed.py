"""`diptych embed`: the vectors of images or texts, in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import (
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

if TYPE_CHECKING:
    import numpy as np


@click.command()
@click.argument("images", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write: .npz, .npy or .parquet.",
)
@click.option("--texts", help='Embed texts instead: "a,b", or @file with one a line.')
@click.option("--text", multiple=True, help="One text, which may hold commas. Repeatable.")
@json_option
@model_options
def embed(
    images: tuple[str, ...],
    out: Path,
    texts: str | None,
    text: tuple[str, ...],
    as_json: bool,
    **model: Any,
) -> None:
    """Write the unit vectors of images, or of texts, to a file.

    IMAGES are files, folders (all images below them), or - for stdin. An image that fails is
    reported and has no row. An image's key is its path, a text's key the text.

    \b
      diptych embed ~/Pictures --out pictures.npz
      diptych embed --texts @captions.txt --out captions.parquet
    """
    from diptych.engine.vectors import check_format, write_vectors

    wants_texts = texts is not None or bool(text)
    if wants_texts == bool(images):
        raise click.UsageError("give images, or --texts / --text: one of the two")
    check_format(out)
    words = text_list(texts, text, what="text") if wants_texts else []
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
