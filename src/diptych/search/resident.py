"""The resident: a process that keeps models and collections open and answers questions to them.

- It answers one question after the other, each as a process that was started for it would: in the
  folder of the one who asks, of the collection's current state. Whatever it cannot answer in just
  that way, an error above all, it declines, and the one who asks does it himself.
- At most `KEPT` models; the one that was asked longest ago goes.
- It leaves after an idle time, when it is told to, when its code changes on the disk, and when its
  socket is gone. Killed, it leaves a socket that refuses, which the next one replaces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.errors import ConfigError, DiptychError
from diptych.search import wire

if TYPE_CHECKING:
    from diptych.search.collection import Collection

__all__ = ["KEPT", "Resident", "serve"]

KEPT = 2
_TICK = 30.0  # seconds between looks at whether it is still wanted
_SLOW = 2.0  # seconds that one who asks may take to say what

log = logging.getLogger("diptych")

# What a question may run into that is no error of ours to show; the one who asks meets it himself.
_FAILURES = (
    ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class _Told(logging.Handler):
    """What a process without handlers would have written to stderr, by `logging` or `warnings`."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.warned = False

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def warn(self, *args: Any, **rest: Any) -> None:
        self.warned = True

    def add(self, other: _Told) -> None:
        """What `other` was told, but nothing twice."""
        self.lines += [line for line in other.lines if line not in self.lines]
        self.warned |= other.warned


@contextlib.contextmanager
def _listening() -> Generator[_Told]:
    told, shown = _Told(), warnings.showwarning
    logging.getLogger().addHandler(told)
    warnings.showwarning = told.warn
    try:
        yield told
    finally:
        warnings.showwarning = shown
        logging.getLogger().removeHandler(told)


class Resident:
    """Open collections with their models, and the answers to questions.

    Attributes:
        num_answered: questions that were answered, not declined.
    """

    def __init__(self):
        self.num_answered = 0
        self._open: OrderedDict[tuple[Any, ...], Collection] = OrderedDict()
        self._weights: dict[tuple[Any, ...], list[Any]] = {}
        self._said: dict[str, _Told] = {}  # by model: what was told when it was first loaded

    def names(self) -> list[str]:
        """The models that are kept, the one asked last at the end."""
        return [photos.model.name for photos in self._open.values()]

    def search(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of `Collection.search`, or {"declined": why}.

        Args:
            question: `collection`, `model` (or None), `loading` (options of `diptych.load`),
                `terms` ([words, weight] of each), `filters` (fields of `Filters`), `how` (options
                of `Collection.search`: `top`, `strictness`, `fold`, `exact`).

        Raises:
            KeyError, TypeError, ValueError: it is no such question, or the answer is an error.
        """
        from diptych.search.filters import Filters
        from diptych.search.query import Term

        terms = [Term(str(words), float(weight)) for words, weight in question["terms"]]
        fields: dict[str, Any] = dict(question["filters"])
        fields["types"] = tuple(fields["types"])
        fields["box"] = None if fields["box"] is None else tuple(fields["box"])
        filters = Filters(**fields)
        photos, key = self._collection(question)
        loaded = self._said[_name(photos)]
        with _listening() as told:
            answer = photos.search(terms, filters=filters, **question["how"])
        if told.lines or told.warned:  # of damaged files; a new process would say it again
            self._forget(key)
        if told.warned or loaded.warned:  # such a text names a line of code: it is not repeated
            return {"declined": "a warning"}
        self.num_answered += 1
        return {
            "hits": [dataclasses.asdict(hit) for hit in answer.hits], "best": answer.best,
            "threshold": answer.threshold, "num_searched": answer.num_searched,
            "model": photos.model.name, "said": loaded.lines + told.lines,
        }  # fmt: skip

    def _collection(self, question: dict[str, Any]) -> tuple[Collection, tuple[Any, ...]]:
        """The collection as it would be opened now: one that is kept, if it is still that."""
        from diptych.search.collection import Collection

        loading = question["loading"]
        fresh = Collection(question["collection"], model=question["model"], loading=loading)
        with contextlib.ExitStack() as failed:
            failed.callback(fresh.store.close)
            key = (*_state(fresh), *(loading[name] for name in sorted(loading)))
            kept = self._open.get(key)
            if kept is not None and self._weights[key] == _stamp(kept):
                self._open.move_to_end(key)
                return kept, key
            self._forget(key)
            while len(self._open) >= KEPT:  # before the next one is loaded: the memory is bounded
                self._forget(next(iter(self._open)))
            with _listening() as told:
                try:
                    stamp = _stamp(fresh)
                finally:  # some is said once in a process, so it is kept
                    self._said.setdefault(_name(fresh), told).add(told)
            self._open[key], self._weights[key] = fresh, stamp
            failed.pop_all()
        return fresh, key

    def _forget(self, key: tuple[Any, ...]) -> None:
        self._weights.pop(key, None)
        if (old := self._open.pop(key, None)) is not None:
            old.store.close()

    def close(self) -> None:
        """Let go of everything."""
        for key in list(self._open):
            self._forget(key)


def _name(photos: Collection) -> str:
    return str(photos.model.options.get("name"))


def _state(photos: Collection) -> tuple[Any, ...]:
    """What must be as it was for an open collection to be used again; its rows look themselves."""
    from diptych.search.rows import manifests

    store, model = photos.store, photos.model
    files = [_stat(file) for file in (store.path, *manifests(store, model))]
    files[0] = files[0][2:]  # the database is written all the time; it must be the same file
    return (
        str(store.folder), store.id, *files, model.id, model.fingerprint, model.name,
        model.precision, repr(sorted(model.options.items())),
    )  # fmt: skip


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def _stamp(photos: Collection) -> list[Any]:
    """The files that the model was read from, which it is if it was not yet."""
    source = Path(str(photos.encoder.card.get("source")))
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [(str(file), _stat(file)) for file in files]


def serve(folder: Path, *, idle: float, ready: Callable[[], object] = lambda: None) -> bool:
    """Answer until nobody has asked for `idle` seconds; False if another one runs in `folder`.

    Args:
        ready: called once questions are heard.

    Raises:
        ConfigError: the folder is open to others, or its path is too long for a socket.
    """
    import filelock

    wire.own_folder(folder, create=True)
    lock = filelock.FileLock(folder / "resident.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return False
    try:
        (folder / "resident.pid").write_text(f"{os.getpid()}\n", "utf-8")
        identity = wire.identity()  # of the code that is imported now
        import diptych.search.collection  # noqa: F401  torch, before anybody can ask

        with _bound(folder) as listener:
            ready()
            _answer_all(listener, wire.socket_path(folder), identity, idle)
    finally:
        lock.release()
    return True


@contextlib.contextmanager
def _bound(folder: Path) -> Generator[socket.socket]:
    """The listening socket; its file goes with it. The lock says that no other is in use."""
    path = wire.socket_path(folder)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(os.fspath(path))
            except OSError as error:
                raise ConfigError(
                    f"{path}: no socket can be made there ({error}). Set XDG_RUNTIME_DIR to a "
                    "short path of a local disk."
                ) from error
            finally:
                os.umask(mask)
            mine = path.stat().st_ino
            listener.listen(16)
            try:
                yield listener
            finally:
                if path.exists() and path.stat().st_ino == mine:
                    path.unlink()
    finally:
        os.umask(mask)


def _answer_all(listener: socket.socket, path: Path, identity: dict[str, Any], idle: float) -> None:
    resident, started, asked = Resident(), time.time(), time.monotonic()
    mine = path.stat().st_ino
    with _stopped_by_signals() as stopped, contextlib.closing(resident):
        while not stopped and (left := asked + idle - time.monotonic()) > 0:
            listener.settimeout(min(left, _TICK))
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                if not _is_at(path, mine) or wire.code_stamp() != identity["code"]:
                    return
                continue
            with peer:
                facts = {"process": os.getpid(), "started": started, "idle": idle}
                more = _answer(peer, resident, identity, facts)
            asked = time.monotonic()
            if not more:
                return


def _is_at(path: Path, inode: int) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_ino == inode
    return False


@contextlib.contextmanager
def _stopped_by_signals() -> Generator[list[int]]:
    """A list that is no longer empty after SIGTERM, SIGINT or SIGHUP."""
    stopped: list[int] = []

    class Stop(Exception):
        """Ends the wait for the next question."""

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        raise Stop

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield stopped
    except Stop:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(
    peer: socket.socket, resident: Resident, identity: dict[str, Any], facts: dict[str, Any]
) -> bool:
    """One request of one connection; False if it was the last."""
    try:
        if not wire.same_user(peer):
            return True
        request = wire.receive(peer, seconds=_SLOW)
        wire.send(peer, {"begun": True}, seconds=_SLOW)
        more, answer = _done(request, resident, identity, facts)
        wire.send(peer, answer, seconds=_SLOW)
    except wire.Refused as error:
        with contextlib.suppress(OSError):
            wire.send(peer, {"error": str(error)}, seconds=_SLOW)
        return True
    except OSError:
        return True  # it went, or took too long
    return more


def _done(
    request: dict[str, Any], resident: Resident, identity: dict[str, Any], facts: dict[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """(whether to go on, the answer)."""
    same = request.get("identity") == identity
    match request.get("do"):
        case "status":
            told = {"models": resident.names(), "answered": resident.num_answered, "same": same}
            return True, {**facts, **told}
        case "stop":
            return False, facts
        case "search" if same:
            return True, _search(request, resident)
        case "search":
            code = request.get("identity", {})
            superseded = isinstance(code, dict) and wire.code_stamp() != identity["code"]
            return not superseded, {"declined": "another version, or other settings"}
    return True, {"error": f"nothing is known of {str(request.get('do'))[:100]!r}"}


def _search(request: dict[str, Any], resident: Resident) -> dict[str, Any]:
    try:
        os.chdir(request["folder"])
        return resident.search(request["question"])
    except DiptychError as error:
        return {"declined": str(error)}
    except _FAILURES as error:
        log.info("declined: %r", error)
        return {"declined": repr(error)[:1000]}
    finally:
        os.chdir("/")
