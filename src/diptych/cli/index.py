"""`diptych index`: folders into a collection that can be searched, and kept up to date."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from diptych.cli.common import (
    collection_option,
    emit,
    failed,
    json_option,
    load_model,
    model_options,
    progress,
)
from diptych.cli.imports import KINDS, import_options, take_in
from diptych.cli.main import printable

if TYPE_CHECKING:
    from diptych.engine import Encoder
    from diptych.search.indexing import Outcome
    from diptych.search.records import Model, Root
    from diptych.search.store import Store


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@collection_option
@click.option("--exclude", multiple=True, help="Leave out: a pattern as *.png. Repeatable.")
@click.option("--hidden", is_flag=True, help="Also files and folders that begin with a dot.")
@click.option("--retry-failed", is_flag=True, help="Also what failed before and did not change.")
@click.option(
    "--large",
    is_flag=True,
    help="Also pictures of up to 250 megapixels, which may take 2 GB of memory each; what "
    "failed is tried again.",
)
@click.option("--nice", is_flag=True, help="Leave the processor to other programs.")
@click.option("--watch", type=click.FloatRange(min=1), metavar="SECONDS",
              help="Go on: look again so often, until it is stopped.")  # fmt: skip
@click.option("--remove-empty", is_flag=True, help="A folder without files now is emptied here.")
@click.option("--status", is_flag=True, help="Only show what is in the collection.")
@click.option("--errors", is_flag=True, help="Only list the files that failed, and why.")
@click.option("--forget", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="Take a folder out of the collection. Repeatable.")  # fmt: skip
@click.option("--forget-model", metavar="NAME", help="Remove the vectors of another model.")
@click.option("--approximate", type=click.FloatRange(0.5, 1), metavar="RECALL",
              help="Also build an approximate index that finds so much of the best 10 (0.95). "
              "For a million pictures and more; needs the extra `search`.")  # fmt: skip
@import_options
@json_option
@model_options
@click.pass_context
def index(
    ctx: click.Context,
    folders: tuple[Path, ...],
    collection: str,
    as_json: bool,
    status: bool,
    errors: bool,
    forget: tuple[Path, ...],
    forget_model: str | None,
    **rest: Any,
) -> None:
    """Index the pictures below FOLDERS, or bring an indexed collection up to date.

    What is known already is not read again: files by their size and date, contents by their whole
    hash, so copies and moved files keep their vectors. Stop it at any time and start it again: it
    goes on where it was. Pictures are only read; the collection lies in your data folder.

    \b
      diptych index ~/Pictures
      diptych index                               # everything that was indexed, again
      diptych index ~/Pictures --exclude "*.gif" --watch 60 --nice
      diptych index --model ViT-B-16-SigLIP2/webli    # the old model answers until this is whole
    """
    from diptych.search.store import Store

    if status or errors:
        with Store(collection) as store:
            (_show_errors if errors else _show_status)(store, as_json=as_json)
        return
    foreign: dict[str, Path | None] = {kind: rest.pop(kind) for kind in KINDS}
    given = {kind: source for kind, source in foreign.items() if source is not None}
    if (forget or forget_model) and (folders or given):
        raise click.UsageError("--forget takes no FOLDERS beside it. Index with a second command.")
    with Store(collection, create=bool(folders or given)) as store:
        if forget or forget_model:
            _forget(store, forget, forget_model, as_json=as_json)
            return
        wished = frozenset(
            name
            for name in ("model", "mode", "config", "pixels")
            if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        )
        try:
            if given:
                _import(store, given, folders, wished=wished, as_json=as_json, **rest)
                return
            _index(store, folders, wished=wished, as_json=as_json, **rest)
        except KeyboardInterrupt:
            click.echo("Stopped. What was indexed is kept: the same command goes on.", err=True)
            sys.exit(130)


def _index(
    store: Store,
    folders: Sequence[Path],
    *,
    wished: frozenset[str],
    as_json: bool,
    exclude: tuple[str, ...],
    hidden: bool,
    retry_failed: bool,
    large: bool,
    nice: bool,
    watch: float | None,
    remove_empty: bool,
    approximate: float | None,
    **model: Any,
) -> None:
    from diptych.errors import CheckpointError
    from diptych.preprocess.open import LARGE
    from diptych.search.indexing import update
    from diptych.search.rows import refresh

    roots = _roots(store, folders, exclude, hidden)
    if nice:
        _yield_processor()
    with store.writer() as writer:
        encoder, options = _encoder(store, wished=wished, model=model)
        if large:
            encoder.preprocess.limits = LARGE
        first = True
        while True:
            with _telling(as_json) as callbacks:
                outcome = update(
                    store, writer, encoder, roots, options=options,
                    retry_failed=(retry_failed or large) and first,
                    remove_empty=remove_empty and first,
                    **callbacks,
                )  # fmt: skip
            try:
                refresh(store, outcome.model)
            except CheckpointError as error:  # it is for speed alone
                click.echo(f"Note: {printable(str(error))} A search works without it.", err=True)
            if first or outcome.num_changes:
                _summary(store, outcome, as_json=as_json)
            if watch is None:
                break
            first = False
            time.sleep(watch)
        if approximate is not None:
            _approximate(store, encoder, approximate, as_json=as_json)
    if outcome.failed or outcome.found.unreadable or outcome.found.empty:
        sys.exit(1 if outcome.added + outcome.known + store.counts()["contents"] else 2)
    if not outcome.found.num_files:
        raise click.UsageError("no pictures found in what was given")


def _import(
    store: Store,
    given: dict[str, Path],
    folders: Sequence[Path],
    *,
    wished: frozenset[str],
    as_json: bool,
    **rest: Any,
) -> None:
    if folders:
        raise click.UsageError("--from-... takes no FOLDERS. Index them with a second command.")
    names = ("model", "config", "device", "precision", "mode", "pixels", "offline")
    with store.writer() as writer:
        encoder, options = _encoder(store, wished=wished, model={n: rest[n] for n in names})
        for kind, source in given.items():
            take_in(store, writer, encoder, options, kind=kind, source=source, as_json=as_json)


def _roots(
    store: Store, folders: Sequence[Path], exclude: tuple[str, ...], hidden: bool
) -> list[Root]:
    from diptych.search.records import Root

    if not folders:
        if exclude or hidden:
            raise click.UsageError("--exclude and --hidden belong to a folder. Name it.")
        if not (roots := store.roots()):
            raise click.UsageError("no folder was indexed yet. Type: diptych index FOLDER")
        return roots
    for folder in folders:
        path = _absolute(folder)
        if not (os.path.isdir(path) or os.path.isfile(path)):  # noqa: PTH112, PTH113
            raise click.UsageError(f"{printable(str(folder))}: no such folder. Check the path.")
    before = {root.path: root for root in store.roots()}
    roots = [before.get(path, Root(path=path)) for path in dict.fromkeys(map(_absolute, folders))]
    if exclude:  # of a shell's completion the name of a folder ends with a slash
        exclude = tuple(pattern.rstrip(os.sep) or pattern for pattern in exclude)
        roots = [replace(root, exclude=exclude) for root in roots]
    return [replace(root, hidden=True) for root in roots] if hidden else roots


def _absolute(path: Path) -> str:
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111  of "~x" Path raises


def _encoder(
    store: Store, *, wished: frozenset[str], model: dict[str, Any]
) -> tuple[Encoder, dict[str, Any]]:
    """The model asked for; without a wish the one that answers already."""
    from diptych.search.collection import name_to_keep

    known = store.models()
    if "model" not in wished and known and known[0].options:
        for name in sorted(wished):
            raise click.UsageError(f"--{name} belongs to --model. Name the model as well.")
        kept = known[0].options
        model |= {"model": kept["name"], "config": kept.get("config"), "mode": kept["mode"]}
        model["pixels"] = kept.get("pixels", "exact")
    encoder = load_model(**model)
    kept = {key: model[key] for key in ("config", "mode", "pixels")}
    return encoder, {"name": name_to_keep(model["model"]), **kept}


@contextmanager
def _telling(as_json: bool) -> Iterator[dict[str, Any]]:
    """The callbacks of one run: a bar for people, a line a file for programs."""
    with contextlib.ExitStack() as stack:
        advance: Any = None

        def started(found: Any) -> None:
            nonlocal advance
            bar = progress("indexing", found.num_todo, printing=False)
            advance = stack.enter_context(bar)

        def done(files: list[Any]) -> None:
            for file in files:
                if file.error is not None:
                    failed(printable(file.path), Exception(file.error), as_json=as_json)
                elif as_json:
                    emit({"path": printable(file.path), "state": file.state})
            advance(len(files))

        yield {"started": started, "done": done}


def _summary(store: Store, outcome: Outcome, *, as_json: bool) -> None:
    found = outcome.found
    for path, why in found.unreadable.items():
        error = Exception(f"{path}: cannot be read: {why}. Nothing of it was taken out.")
        failed(printable(path), error, as_json=as_json)
    for root in found.empty:
        why = (
            f"{root}: has no pictures any more, so nothing of it was removed: is the drive there? "
            "If it is meant, type: diptych index --remove-empty"
        )
        failed(printable(root), Exception(why), as_json=as_json)
    if as_json:
        emit(
            {
                "collection": printable(str(store.folder)), "files": found.num_files,
                "added": outcome.added, "known": outcome.known, "failed": outcome.failed,
                "removed": outcome.removed, "missing": outcome.missing,
                "left_out": found.left_out, "seconds": round(outcome.seconds, 3),
            }
        )  # fmt: skip
        return
    for suffix, number in sorted(found.left_out.items()):
        click.echo(
            f"{number:,} {suffix} files were left out. Type: pip install 'diptych[photos]'",
            err=True,
        )
    rate = f", {outcome.added / outcome.seconds:.1f} a second" if outcome.added else ""
    click.echo(
        f"{found.num_files:,} files: {outcome.added:,} encoded, {outcome.known:,} known by their "
        f"content, {outcome.failed:,} failed, {outcome.removed:,} gone "
        f"({outcome.seconds:.1f} s{rate})"
    )
    if outcome.failed and store.counts()["failed"]:
        click.echo("To see what failed again: diptych index --errors", err=True)
    if outcome.missing and len(store.models()) > 1:
        click.echo(
            f"{outcome.missing:,} pictures have no vector of {outcome.model.name} yet, so "
            f"{store.models()[0].name} still answers. Type: diptych index --model "
            f"{outcome.model.name}",
            err=True,
        )


def _show_errors(store: Store, *, as_json: bool) -> None:
    for path, why in store.failures():
        told = printable(f"{path}: {why}")
        if as_json:
            emit({"path": printable(path), "error": told})
        else:
            click.echo(told)


def _show_status(store: Store, *, as_json: bool) -> None:
    counts, models = store.counts(), store.models()
    rows = [
        {
            "model": model.name, "fingerprint": model.fingerprint[:16],
            "vectors": store.num_vectors(model), "missing": store.num_missing(model),
            "answers": i == 0,
        }
        for i, model in enumerate(models)
    ]  # fmt: skip
    if as_json:
        roots = [printable(root.path) for root in store.roots()]
        emit({"collection": str(store.folder), "folders": roots, **counts, "models": rows})
        return
    click.echo(f"{store.folder}")
    for root in store.roots():
        without = f" (without {', '.join(root.exclude)})" if root.exclude else ""
        click.echo(f"  {printable(root.path)}{without}")
    click.echo(
        f"  {counts['files']:,} files, {counts['contents']:,} contents, {counts['failed']:,} failed"
    )
    for row in rows:
        note = "answers" if row["answers"] else "beside it"
        missing = f", {row['missing']:,} missing" if row["missing"] else ""
        click.echo(f"  {row['model']} ({note}): {row['vectors']:,} vectors{missing}")


def _forget(
    store: Store, folders: Sequence[Path], model_name: str | None, *, as_json: bool
) -> None:
    from diptych.search.rows import derived_folder

    forgotten = None
    with store.writer() as writer, writer.transaction():
        removed = 0
        for folder in folders:
            path = _absolute(folder)
            files = list(store.files_below(path))
            if not files and path not in [root.path for root in store.roots()]:
                raise click.UsageError(
                    f"{printable(path)}: is not in the collection. Type: diptych index --status"
                )
            removed += writer.remove_files(files)
            writer.remove_root(path)
        purged = writer.purge()
        if model_name is not None:
            forgotten = _named(store, model_name)
            writer.remove_model(forgotten)
    if forgotten is not None:
        shutil.rmtree(derived_folder(store, forgotten), ignore_errors=True)
    if as_json:
        emit({"removed": removed, "purged": purged})
    else:
        click.echo(f"{removed:,} files and {purged:,} contents were taken out.")


def _named(store: Store, name: str) -> Model:
    """The one model with this name or fingerprint."""
    models = store.models()
    found = [m for m in models if m.is_called(name)] or [m for m in models if m.name == name]
    if not found:
        raise click.UsageError(f"no model {name!r} here. Type: diptych index --status")
    if len(found) > 1:
        prints = ", ".join(model.fingerprint[:16] for model in found)
        raise click.UsageError(f"{name} is the name of {len(found)} models. Give one of: {prints}")
    return found[0]


def _yield_processor() -> None:
    if sys.platform == "win32":
        raise click.UsageError("--nice is not available on Windows. Leave it out.")
    os.nice(19)


def _approximate(store: Store, encoder: Encoder, recall: float, *, as_json: bool) -> None:
    from diptych.search.rows import build_approximate

    facts = build_approximate(store, encoder, recall=recall)
    if as_json:
        emit(facts)
    else:
        click.echo(
            f"Approximate index of {facts['num_vectors']:,} vectors: looks at "
            f"{facts['num_probed']} of {facts['num_lists']} lists and finds "
            f"{facts['recall_text']:.1%} of the ten best for words, "
            f"{facts['recall_image']:.1%} for pictures (aim {recall:.0%})"
        )
