"""`diptych index --from-...`: vectors that other tools, or our own bulk jobs, have made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import emit, progress
from diptych.cli.main import printable

if TYPE_CHECKING:
    from diptych.engine import Encoder
    from diptych.search.store import Store
    from diptych.search.writer import Writer

# another tool's index is a row here, and its reader a row in `take_in`
KINDS = {
    "from_shards": "the folder that `diptych embed SHARDS --out FOLDER` has made.",
    "from_clip_retrieval": "the --output_folder of `clip-retrieval inference`.",
    "from_rclip": "rclip's db.sqlite3; with --model ViT-B-32-256/datacomp_s34b_b86k.",
}


def import_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each of `KINDS`."""
    for kind, what in reversed(KINDS.items()):
        name, path = f"--{kind.replace('_', '-')}", click.Path(path_type=Path, exists=True)
        command = click.option(name, type=path, help=f"Only take in the vectors of {what}")(command)
    return command


def take_in(
    store: Store,
    writer: Writer,
    encoder: Encoder,
    options: dict[str, Any],
    *,
    kind: str,
    source: Path,
    as_json: bool,
) -> None:
    """Import what is usable, and say what is not."""
    from diptych.search import importing
    from diptych.search.adopt import adopt
    from diptych.search.indexing import model_of
    from diptych.search.rows import refresh

    skipped: Counter[str] = Counter()

    def batches(count: Counter[str]) -> importing.Batches:
        if kind == "from_shards":
            return importing.read_bulk(source, fingerprint=encoder.fingerprint, skipped=count)
        read = {
            "from_clip_retrieval": importing.read_clip_retrieval,
            "from_rclip": importing.read_rclip,
        }[kind]
        return importing.usable(read(source, skipped=count), skipped=count)

    if kind != "from_shards":  # nothing in the files says which model they are of
        check = importing.check_model(encoder, batches(Counter()), source=str(source))
        if not as_json:
            click.echo(
                f"{check.num_files} files encoded again: cosine {check.median:.4f} in the median, "
                f"{check.lowest:.4f} at least",
                err=True,
            )
    with writer.transaction():
        model = model_of(writer, encoder, options)
    with progress("importing", None, printing=False) as advance:
        added = adopt(store, writer, model, batches(skipped), skipped=skipped, done=advance)
    with writer.transaction():
        writer.mark_whole(model)
    refresh(store, model)
    if as_json:
        emit({"collection": printable(str(store.folder)), "added": added, "skipped": skipped})
        return
    click.echo(f"{added:,} vectors imported")
    for reason, number in sorted(skipped.items()):
        click.echo(f"{number:,} left out: {reason}", err=True)
    if skipped and kind != "from_shards":
        click.echo("To index what was left out: diptych index FOLDER", err=True)
