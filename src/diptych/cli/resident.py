"""`diptych resident`: a process that keeps models warm, and how other verbs ask it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

import click

from diptych.cli.common import json_option
from diptych.errors import ConfigError
from diptych.search import wire

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_STARTING = 120.0  # seconds in which torch is imported, on a slow disk too
_LEAVING = 30.0  # seconds in which a question is answered that was being worked on


class _Duration(click.ParamType):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(value))
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no time. Give 90s, 15m or 2h.", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@click.group()
def resident() -> None:
    """Keep models warm in a process of your own: `diptych search` then waits for no PyTorch.

    It runs on this machine for you alone, and leaves when nobody has asked for a while. Where it
    cannot answer just as the command would, the command answers itself. DIPTYCH_RESIDENT=0 never
    asks it; DIPTYCH_RESIDENT=1 starts it with the first question.

    \b
      diptych resident start --idle 2h
      diptych search "a dog on the beach"
      diptych resident status
      diptych resident stop
    """
    if sys.platform == "win32":
        raise ConfigError("diptych resident: not available on Windows. Leave it out.")


@resident.command()
@click.option(
    "--idle", type=_Duration(), default="15m", show_default=True, help="Leave after that long."
)
@click.option("--here", is_flag=True, help="Stay in the foreground, as a service manager wants.")
def start(idle: float, here: bool) -> None:
    """Start it; returns when it can be asked."""
    if here:
        from diptych.search.resident import serve

        if not serve(wire.run_folder(), idle=idle):  # two were started at once
            click.echo("it runs already. Type: diptych resident status", err=True)
        return
    if (found := _status()) is not None:
        if not found["same"]:
            raise ConfigError(
                f"process {found['process']} is the resident of another version, or has other "
                "settings. Type: diptych resident stop"
            )
        click.echo(f"process {found['process']} runs already")
        return
    process = _spawn(idle)
    end = time.monotonic() + _STARTING
    while (found := _status()) is None:
        if process.poll():
            raise ConfigError(f"it did not start: {_last_words()}")
        if time.monotonic() > end:
            process.kill()
            raise ConfigError(f"it did not start within {_STARTING:.0f} s. Try again.")
        time.sleep(0.05)
    process.returncode = 0  # it goes on: this one does not wait for it
    click.echo(f"process {found['process']} answers, until nobody asks for {_time(idle)}")


@resident.command()
def stop() -> None:
    """End it; what it is working on is finished first."""
    found = _status(do="stop")
    if found is None:
        click.echo("it does not run")
        return
    end = time.monotonic() + _LEAVING
    while wire.socket_path(wire.run_folder()).exists():
        if time.monotonic() > end:
            raise ConfigError(f"it does not leave. Type: kill {found['process']}")
        time.sleep(0.02)
    click.echo(f"process {found['process']} has left")


@resident.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether it runs, and what it holds. Exit code 1 if it does not."""
    found = _status()
    if as_json:
        click.echo(json.dumps({"running": found is not None, **(found or {})}))
    elif found is None:
        click.echo("it does not run. Type: diptych resident start")
    else:
        models = ", ".join(found["models"]) or "no model yet"
        other = "" if found["same"] else " It is of another version, or has other settings."
        click.echo(
            f"process {found['process']} has answered {found['answered']:,} questions in "
            f"{_time(time.time() - found['started'])} with {models}.{other}"
        )
    if found is None:
        sys.exit(1)


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _status(do: str = "status") -> dict[str, Any] | None:
    """The answer, None where nobody is there.

    Raises:
        Refused: the folder is open to others, or somebody else has answered.
        ConfigError: somebody is there, and is silent.
    """
    if not wire.socket_path(wire.run_folder()).exists():
        return None
    try:
        return wire.ask({"do": do}, prompt=_LEAVING)
    except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
        return None
    except TimeoutError as error:
        raise ConfigError(
            f"it does not answer. End it: its process id is in {wire.run_folder()}/resident.pid"
        ) from error


def _spawn(idle: float) -> Any:
    """The process, which keeps nothing of this one but the settings."""
    import subprocess

    folder = wire.run_folder()
    wire.own_folder(folder, create=True)
    said = os.open(folder / "resident.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "diptych.cli.main"),
                *("resident", "start", "--here", "--idle", f"{idle}s"),
            ],
            env={**os.environ, **wire.settings()}, cwd="/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
    finally:
        os.close(said)


def _last_words() -> str:
    try:
        said = (wire.run_folder() / "resident.log").read_text("utf-8", "replace").split("\n")
    except OSError as error:
        return str(error)
    return next((line for line in reversed(said) if line.strip()), "it said nothing")


def found_by_resident(question: dict[str, Any]) -> Any:
    """The resident's `Answer` to `search.resident.Resident.search`, with `model`; None if the
    command has to look for itself. What loading the model has to say goes to stderr."""
    wish = os.environ.get("DIPTYCH_RESIDENT", "")
    if wish == "0" or sys.platform == "win32":
        return None
    try:
        found = wire.ask({"do": "search", "question": question})
        if "hits" not in found:
            return None
        answer = SimpleNamespace(**found)
        answer.hits = [SimpleNamespace(**hit) for hit in answer.hits]
        said = [str(line) for line in answer.said]
    except (ConnectionRefusedError, FileNotFoundError):
        if wish == "1":
            _start_quietly()
        return None
    except (wire.Refused, OSError, TypeError, AttributeError):
        if wish == "1" and not wire.run_folder().exists():
            _start_quietly()
        return None
    for line in said:
        click.echo(line, err=True)
    return answer


def _start_quietly() -> None:
    with contextlib.suppress(OSError, ConfigError):  # the command answers without it
        _spawn(15 * 60.0).returncode = 0  # as above
