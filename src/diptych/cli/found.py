"""How hits are shown: lines, JSON, NUL-separated paths, a page, pictures in the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from diptych.cli.common import emit
from diptych.cli.main import on_a_line, printable

if TYPE_CHECKING:
    from diptych.cli.terminal import Protocol
    from diptych.search.fold import Hit

PROTOCOLS = ("auto", "kitty", "iterm", "sixel", "blocks")


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--top, --html, --open, --preview, --print0."""
    for option in reversed(
        [
            click.option("--top", default=10, show_default=True, help="Pictures shown, at most."),
            click.option(
                "--html",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Also write a page with the pictures found.",
            ),
            click.option("--open", "opens", is_flag=True, help="Show that page in the browser."),
            click.option(
                "--preview",
                type=click.Choice(PROTOCOLS),
                is_flag=False,
                flag_value="auto",
                help="Show the pictures in the terminal. auto: as well as it can.",
            ),
            click.option(
                "--print0", is_flag=True, help="Only paths, each followed by NUL: for xargs -0."
            ),
        ]
    ):
        command = option(command)
    return command


def check_output(*, as_json: bool, print0: bool, preview: str | None) -> None:
    """Refuse what would be mixed on stdout."""
    if as_json + print0 + (preview is not None) > 1:
        raise click.UsageError("--json, --print0 and --preview exclude each other. Choose one.")


def show(
    hits: Sequence[Hit],
    query: str,
    *,
    as_json: bool,
    print0: bool,
    preview: str | None,
    html: Path | None,
    opens: bool,
    model: str,
    example: Any = None,
) -> None:
    """All of it, in the order of the hits."""
    for rank, hit in enumerate(hits, 1):
        if as_json:
            emit(record(hit, rank))
        elif print0:
            sys.stdout.buffer.write(os.fsencode(hit.path) + b"\0")
            sys.stdout.buffer.flush()
        else:
            if preview is not None:
                _picture(hit, preview)
            click.echo(line(hit, rank))
    if html is not None and not hits:
        click.echo(f"{printable(str(html))}: not written, as there is nothing to show", err=True)
    if (html is not None or opens) and hits:
        page_path = html or temporary_page()
        num_shown = _write(page_path, query, hits, model=model, example=example)
        if not (as_json or print0):
            click.echo(f"{printable(str(page_path))}: {num_shown} pictures", err=True)
        if opens:
            open_page(page_path)


def open_page(path: Path) -> None:
    """Show a page in the browser, or say that there is none."""
    if click.launch(str(path)):
        click.echo(
            f"No browser could be started. Open it yourself: {printable(str(path))}", err=True
        )


def line(hit: Hit, rank: int) -> str:
    """One hit for people: what is folded into it stands behind its path."""
    told = on_a_line(hit.path)
    if hit.moment is not None:
        told += f" @ {clock(hit.moment)}"
    if more := folded(hit):
        told += f"  ({more})"
    return f"{rank:4}  {hit.score:7.4f}  {told}"


def folded(hit: Hit) -> str:
    """What stands behind a hit, as "+ 2 copies, 1 alike"; "" for nothing."""
    kinds = ((hit.copies, "copies"), (hit.similar, "alike"), (hit.moments, "moments"))
    more = ", ".join(f"{len(some)} {what}" for some, what in kinds if some)
    return f"+ {more}" if more else ""


def clock(seconds: float) -> str:
    """1:02:03.5, or 2:03.5."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    start = f"{hours:.0f}:{minutes:02.0f}" if hours else f"{minutes:.0f}"
    return f"{start}:{rest:04.1f}"


def record(hit: Hit, rank: int) -> dict[str, Any]:
    """One hit for programs; what is not known, or empty, is left out."""
    more = {
        "moment": hit.moment, "moments": hit.moments,
        "copies": [printable(path) for path in hit.copies],
        "similar": [printable(path) for path in hit.similar],
        "taken": hit.taken, "camera": hit.camera, "width": hit.width, "height": hit.height,
    }  # fmt: skip
    known = {name: value for name, value in more.items() if value not in (None, [])}
    return {"path": printable(hit.path), "score": hit.score, "rank": rank, **known}


def picture_of(hit: Hit) -> Any:
    """What a page or a terminal shows of a hit: the file, or the frame of a video."""
    if hit.moment is None:
        from diptych.data import read_sample, split_name

        return hit.path if split_name(hit.path) is None else read_sample(hit.path)
    from diptych.engine.video import frames
    from diptych.errors import ImageError

    for second, image in frames(hit.path, every=None):
        if second >= hit.moment:
            return image
    raise ImageError(f"{hit.path}: is shorter than it was. Type: diptych index")


def _picture(hit: Hit, preview: str) -> None:
    from diptych.cli.terminal import show as rendered
    from diptych.engine.page import thumbnail
    from diptych.errors import ImageError

    try:
        image = thumbnail(picture_of(hit), side=480)
    except ImageError as error:
        click.echo(f"Error: {printable(str(error))}", err=True)
        return
    picture = rendered(
        image,
        columns=min(shutil.get_terminal_size().columns, 60),
        rows=16,
        stream=sys.stdout,
        protocol=None if preview == "auto" else cast("Protocol", preview),
    )
    if picture:
        click.echo(picture, color=True)  # into a pipe as well, where it was asked for by name


def temporary_page() -> Path:
    """A page's path in a new folder of the system's temporary one."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="diptych-")) / "found.html"


def _write(html: Path, query: str, hits: Sequence[Hit], *, model: str, example: Any = None) -> int:
    """How many are on the page; a file that went since it was indexed is named and left out."""
    from diptych.engine import page
    from diptych.errors import ImageError

    shown = []
    for hit in hits:
        if hit.path == "-":
            continue
        try:
            small = page.thumbnail(picture_of(hit), side=320)
        except ImageError as error:
            click.echo(f"Error: {printable(str(error))}", err=True)
            continue
        shown.append((small, printable(hit.path), hit.score, folded(hit)))
    page.write(html, page.search_page(query, shown, model=model, example=example))
    return len(shown)
