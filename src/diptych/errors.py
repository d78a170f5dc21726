"""The exception tree: every error a user can cause, with a stable code and the fix in its text.

    DiptychError (ValueError)
    |-- ConfigError           a config, an option or a combination of them that cannot be
    |-- ModelNotFoundError    no such model, tag or file
    |   `-- DownloadError     a file that could not be fetched, and why
    |-- CheckpointError       a file that is not the checkpoint it claims to be
    |   `-- UnsafeFileError   a file that would have to run code to be read
    |-- CollectionError       a collection that is not there, cannot be read or cannot be written
    |   |-- CollectionBusyError   another process writes to it
    |   `-- IndexFileError    a derived file of it that is damaged or belongs to an older state
    |-- DataError             data that cannot be trained on or measured with, and what is wrong
    |-- ImageError            one image that cannot be read, or would cost too much to read
    |-- ShardError            a shard that is not there or cannot be read at all
    |-- TextError             one text that cannot be tokenised
    |   `-- TextTooLongError  more tokens than the context holds, under `truncate="error"`
    |-- TrainError            a run that cannot go on, and how it does
    `-- MissingExtraError     an optional package is needed

A message says what, where, what was found, and what to type.
"""

from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "CollectionBusyError",
    "CollectionError",
    "ConfigError",
    "DataError",
    "DiptychError",
    "DownloadError",
    "ImageError",
    "IndexFileError",
    "MissingExtraError",
    "ModelNotFoundError",
    "ShardError",
    "TextError",
    "TextTooLongError",
    "TrainError",
    "UnsafeFileError",
    "nearest",
]


class DiptychError(ValueError):
    """Base of all errors for users. `code` is stable: programs may compare it."""

    code = "error"


class ConfigError(DiptychError):
    code = "config"


class ModelNotFoundError(DiptychError):
    code = "model_not_found"


class DownloadError(ModelNotFoundError):
    code = "download"


class CheckpointError(DiptychError):
    code = "checkpoint"


class UnsafeFileError(CheckpointError):
    code = "unsafe_file"


class CollectionError(DiptychError):
    code = "collection"


class CollectionBusyError(CollectionError):
    code = "collection_busy"


class IndexFileError(CollectionError):
    code = "index_file"


class DataError(DiptychError):
    code = "data"


class ImageError(DiptychError):
    code = "image"


class ShardError(DiptychError):
    code = "shard"


class TextError(DiptychError):
    code = "text"


class TextTooLongError(TextError):
    code = "text_too_long"


class TrainError(DiptychError):
    code = "train"


class MissingExtraError(DiptychError):
    """An optional package is missing; the text ends with the command that installs it."""

    code = "missing_extra"

    def __init__(self, package: str, *, extra: str, needed_for: str):
        self._made_of = (package, extra, needed_for)
        super().__init__(
            f"{needed_for} needs the package {package!r}. Type: pip install 'diptych[{extra}]'"
        )

    def __reduce__(self) -> tuple:
        return _missing_extra, self._made_of


def _missing_extra(package: str, extra: str, needed_for: str) -> MissingExtraError:
    """For pickle, which calls with positions: a worker's error reaches the one who started it."""
    return MissingExtraError(package, extra=extra, needed_for=needed_for)


def nearest(name: str, names: Iterable[str], *, n: int = 3) -> str:
    """The `n` names most like `name`, as a phrase for an error: "Nearest: a, b, c.", or ""."""
    import difflib  # 10 ms that only an error pays

    found = difflib.get_close_matches(name, list(names), n=n, cutoff=0.0)
    return f"Nearest: {', '.join(found)}." if found else ""
