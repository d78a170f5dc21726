"""`diptych dedup`: pictures that are there twice, or almost, and which of them to keep."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import collection_option, emit, json_option, progress
from diptych.cli.main import on_a_line, printable

if TYPE_CHECKING:
    from diptych.search.duplicates import Group


@click.command()
@click.argument("folder", required=False)
@collection_option
@click.option("--exact", is_flag=True, help="Only files with the same bytes.")
@click.option("--cosine", type=click.FloatRange(0, 1, min_open=True),
              help="Near-duplicates have at least this cosine.")  # fmt: skip
@click.option("--bits", type=click.IntRange(0, 64),
              help="And perceptual hashes that differ in at most so many bits.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False),
              help="Also write a page that shows the groups.")  # fmt: skip
@click.option("--open", "opens", is_flag=True, help="Show that page in the browser.")
@click.option("--print0", is_flag=True, help="Only the spare files, each followed by NUL.")
@click.option("--model", help="Whose vectors to compare; by default those that answer a search.")
@json_option
def dedup(
    folder: str | None,
    collection: str,
    exact: bool,
    cosine: float | None,
    bits: int | None,
    html: Path | None,
    opens: bool,
    print0: bool,
    model: str | None,
    as_json: bool,
) -> None:
    """List pictures of the collection that are there twice, or almost; nothing is deleted.

    With FOLDER only those at or below it. The first of each group is the one to keep: the most
    pixels, then the largest file. The others are spare: "=" has the same bytes, "~" looks the same
    (cosine of the vectors, bits by which the perceptual hashes differ).

    \b
      diptych dedup
      diptych dedup ~/Pictures/2023 --html twice.html
      diptych dedup --exact --print0 | xargs -0 mv -t /somewhere/else
    """
    from diptych.engine.neighbours import DUPLICATE_COSINE, DUPLICATE_HAMMING
    from diptych.search.collection import Collection
    from diptych.search.duplicates import duplicates
    from diptych.search.filters import Filters

    if as_json and print0:
        raise click.UsageError("--json and --print0 exclude each other. Choose one.")
    with Collection(collection, model=model) as photos:
        if folder is not None:
            path = os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
            if not any(photos.store.files_below(path)):
                raise click.UsageError(
                    f"{printable(folder)}: is not in the collection. Type: diptych index --status"
                )
        total = photos.store.num_vectors(photos.model)
        with progress("comparing", total, printing=False) as advance:
            before = 0

            def done(now: int, _: int) -> None:
                nonlocal before
                advance(now - before)
                before = now

            groups = duplicates(
                photos.store,
                photos.model,
                filters=Filters(folder=folder),
                cosine=2.0 if exact else cosine or DUPLICATE_COSINE,
                bits=DUPLICATE_HAMMING if bits is None else bits,
                progress=done,
            )
    for group in groups:
        _show(group, as_json=as_json, print0=print0)
    if (html is not None or opens) and groups:
        _write(groups, html, opens=opens)
    elif html is not None:
        click.echo(f"{printable(str(html))}: not written, as there is nothing to show", err=True)
    if not (as_json or print0):
        spare = sum(len(group.spare) for group in groups)
        size = sum(group.spare_bytes for group in groups)
        click.echo(f"{len(groups):,} groups, {spare:,} spare files, {size / 1e6:,.1f} MB")


def _show(group: Group, *, as_json: bool, print0: bool) -> None:
    keep = group.keep
    if print0:
        sys.stdout.buffer.write(b"".join(os.fsencode(path) + b"\0" for path in group.spare))
        sys.stdout.buffer.flush()
        return
    if as_json:
        similar: list[dict[str, Any]] = [
            {"path": printable(path), "score": picture.cosine, "bits": picture.bits}
            for picture in group.others
            for path in picture.paths
        ]
        same = [printable(path) for path in keep.paths[1:]]
        emit({"path": printable(keep.paths[0]), "copies": same, "similar": similar})
        return
    click.echo(f"{on_a_line(keep.paths[0])}  ({keep.width}x{keep.height}, {keep.size:,} bytes)")
    for path in keep.paths[1:]:
        click.echo(f"  =  {on_a_line(path)}")
    for picture in group.others:
        told = f"{picture.width}x{picture.height}, {picture.size:,} bytes"
        for path in picture.paths:
            click.echo(
                f"  ~  {on_a_line(path)}  ({told}, cosine {picture.cosine:.3f}, "
                f"{picture.bits} bits)"
            )


def _write(groups: list[Group], html: Path | None, *, opens: bool) -> None:
    from diptych.cli.found import open_page, temporary_page
    from diptych.engine import page

    path = html or temporary_page()
    page.write(path, page.duplicates_page([_rows(group) for group in groups]))
    click.echo(f"{printable(str(path))}: {len(groups)} groups", err=True)
    if opens:
        open_page(path)


def _rows(group: Group) -> list[tuple[str, str]]:
    """(path, what is said below the picture), the one to keep first."""
    keep = group.keep
    rows = [(keep.paths[0], f"keep: {keep.width}x{keep.height}, {keep.size:,} bytes")]
    rows += [(path, "the same bytes") for path in keep.paths[1:]]
    for picture in group.others:
        told = f"{picture.width}x{picture.height}, {picture.size:,} bytes, "
        told += f"cosine {picture.cosine:.3f}, {picture.bits} bits"
        rows += [(path, told) for path in picture.paths]
    return [(printable(path), told) for path, told in rows]
