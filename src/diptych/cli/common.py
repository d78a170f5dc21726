"""What verbs share: the options of a model, inputs from arguments and stdin, progress, JSON."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.main import on_a_line, printable

if TYPE_CHECKING:
    from diptych.engine import Encoder
    from diptych.preprocess.pipeline import Mode

DEFAULT_MODEL = "mini"


offline_option = click.option(
    "--offline",
    is_flag=True,
    callback=lambda _context, _option, value: value or None,  # None: the environment decides
    help="Fetch nothing: use what is here.",
)


def model_options(command: Callable) -> Callable:
    """--model and the `running_options`."""
    option = click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        help="A name of `diptych models list`, a file or folder, or hf:org/name.",
    )
    return option(running_options()(command))


def running_options(*, mode: Mode = "right") -> Callable[[Callable], Callable]:
    """--config, --device, --precision, --mode, --pixels, --offline: how a model is run."""
    options = [
        click.option(
            "--config",
            help="For a file of bare weights: the name of the model it belongs to.",
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
            default="auto",
            show_default=True,
            help="auto: bf16 where the CPU multiplies it faster and the towers bear it.",
        ),
        click.option(
            "--mode",
            type=click.Choice(["right", "original"]),
            default=mode,
            show_default=True,
            help="right: EXIF, 16 bits and alpha are honoured. original: the publisher's bits.",
        ),
        click.option(
            "--pixels",
            type=click.Choice(["exact", "near", "fast"]),
            default="exact",
            show_default=True,
            help="Levels of 255 off Pillow's, at most: exact 0, near 2, fast (large JPEGs) 6.",
        ),
        offline_option,
    ]

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


collection_option = click.option(
    "--collection",
    default="default",
    show_default=True,
    help="A name, or the path of a folder: where the index is kept.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def load_model(model: str, **options: Any) -> Encoder:
    """The encoder that the options of `model_options` ask for."""
    from diptych.engine import load

    return load(model, **options)


def inputs(paths: Iterable[str]) -> Iterator[str | bytes]:
    """Arguments to images: files, the images of folders, and for "-" what stands on stdin.

    Stdin holds either one image, or paths, one a line (or separated by NUL).
    """
    from diptych.engine.stream import sources

    for path in paths:
        if path == "-":
            yield from _stdin()
        elif Path(path).is_dir():
            yield from (str(image) for _, image in sources(path))
        else:
            yield path


def _stdin() -> Iterator[str | bytes]:
    stream = io.BufferedReader(sys.stdin.buffer)  # type: ignore[arg-type]  # it can peek
    head = stream.peek(16)[:16]
    magic = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    if head.startswith(magic) or head[4:8] == b"ftyp":
        yield stream.read()
        return
    separator = b"\0" if b"\0" in stream.peek() else b"\n"
    rest = b""
    while block := stream.read1(1 << 16):
        *whole, rest = (rest + block).split(separator)
        yield from (os.fsdecode(line.rstrip(b"\r")) for line in whole if line.strip())
    if rest.strip():
        yield os.fsdecode(rest.rstrip(b"\r"))


def text_list(joined: str | None, single: tuple[str, ...], *, what: str) -> list[str]:
    """`--labels "a,b"`, `--labels @file` (a line each) and repeated `--label`, in that order.

    Raises:
        click.UsageError: nothing given, or bytes that are not UTF-8.
    """
    found: list[str] = []
    if joined is not None and joined.startswith("@"):
        try:
            lines = Path(joined[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise click.UsageError(f"{joined[1:]}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{joined[1:]}: is not UTF-8 ({error})") from error
        found += lines
    elif joined is not None:
        found += joined.split(",")
    found = [text.strip() for text in (*found, *single) if text.strip()]
    if not found:
        raise click.UsageError(
            f'no {what}s. Give --{what}s "a cat,a dog", --{what}s @file or --{what} "a cat".'
        )
    return [one_text(text, what=what) for text in found]


def one_text(text: str, *, what: str) -> str:
    """A text from the command line without the spaces around it.

    Raises:
        click.UsageError: nothing else was there, or bytes that are not UTF-8.
    """
    if not text.strip():
        raise click.UsageError(f"the {what} is empty. Give some words.")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise click.UsageError(f"{what} {printable(text)!r} is not UTF-8")
    return text.strip()


def key_text(key: str | int) -> str:
    """What an image is called: its path, or "-" if it came on stdin."""
    return printable(key) if isinstance(key, str) else "-"


def emit(record: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    click.echo(json.dumps(record))


def failed(path: str, error: Exception, *, as_json: bool) -> None:
    """Report one input that failed: on stdout as JSON, or on stderr."""
    if as_json:
        emit({"path": path, "error": str(error)})
    else:
        click.echo(f"Error: {on_a_line(str(error))}", err=True)


def finish(done: int, errors: int) -> None:
    """Leave with the exit code of DESIGN: 0 all done, 1 some failed, 2 nothing done."""
    if errors:
        sys.exit(1 if done else 2)
    if not done:
        raise click.UsageError("no images found in what was given")


@contextmanager
def progress(what: str, total: int | None, *, printing: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal and there is more than one thing to do.

    Not where results are `printing` on the same terminal: they would tear the bar, and they are
    progress enough.
    """
    if total == 1 or not sys.stderr.isatty() or (printing and sys.stdout.isatty()):
        yield lambda n: None
        return
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    class Rate(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (
        rich_progress.TextColumn(what),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        Rate(),
        rich_progress.TimeRemainingColumn(),
    )
    how = {"transient": True, "redirect_stdout": False}  # what is printed belongs into the pipe
    with rich_progress.Progress(*columns, console=Console(stderr=True), **how) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)
