"""What every tokenizer does alike: checks, counts, cuts, pads; loading on first use; pickling.

- `TextTokenizer` is the one class; a `Vocabulary` (bpe.py, pieces.py) turns text into ids.
- Ids travel as native int32 in `bytes`, so that a batch is laid out by NumPy and not by Python.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diptych.config import TokenizerConfig
from diptych.errors import CheckpointError, ConfigError, TextError, TextTooLongError
from diptych.tokenizer.bpe import ClipBPE, Specials
from diptych.tokenizer.clean import BLOCK

__all__ = ["TextTokenizer", "Tokenizer", "Tokens", "Truncate", "Vocabulary"]

Truncate = Literal["report", "error", "silent"]

logger = logging.getLogger("diptych")
_loading = threading.Lock()


class Tokens(NamedTuple):
    """One batch of texts.

    ids: int64 [n, context_length]. lengths: int64 [n], ids of each text with its control ids and
    without padding, before the cut; above 4,096 characters of text the count may end once it has
    passed `context_length`, and is then "at least".
    """

    ids: Tensor
    lengths: Tensor

    @property
    def cut(self) -> Tensor:
        """bool [n]: the rows that do not hold their whole text."""
        return self.lengths > self.ids.shape[1]


@runtime_checkable
class Tokenizer(Protocol):
    """Text -> ids. Whatever has these members will do; thread-safe and picklable."""

    @property
    def config(self) -> TokenizerConfig: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def count(self, text: str) -> int: ...
    def tokenize(self, texts: str | Sequence[str], *, truncate: Truncate = "report") -> Tokens: ...
    def __call__(self, texts: str | Sequence[str], *, truncate: Truncate = "report") -> Tensor: ...


class Vocabulary(Protocol):
    """What `TextTokenizer` needs from a vocabulary. `control`: ids that no text may produce."""

    size: int
    control: frozenset[int]

    def rows(
        self, texts: Sequence[str], *, limit: int | None = None, specials: Specials | None = None
    ) -> list[bytes]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class TextTokenizer:
    """A `Tokenizer` by its config. The vocabulary is read when it is first needed."""

    def __init__(self, config: TokenizerConfig, path: Path | None = None):
        self.config = config
        self.path = path  # of the vocabulary; None: the one in the package

    def __repr__(self) -> str:
        return f"TextTokenizer({self.config!r})"

    def __reduce__(self) -> Any:
        return type(self), (self.config, self.path)

    @property
    def vocabulary(self) -> Vocabulary:
        return _load(self.config, self.path)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def encode(self, text: str, *, specials: Specials | None = None) -> list[int]:
        """All ids of `text`, without control ids, uncut.

        specials: honour this peer's spelling of the control tokens in `text` (clip_bpe only). It
        lets whoever wrote the text end it early: for reproducing that peer, never for user text.

        Raises:
            TextError: `text` is not a str, or cannot be read in bounded time.
        """
        rows = self._rows(_checked(text, "text"), specials=specials)
        return np.frombuffer(rows[0], np.int32).tolist()

    def decode(self, ids: Iterable[int], *, raw: bool = False) -> str:
        """The text of `ids`, as far as ids keep it (case and spaces are gone).

        Starts after `bos_id` and ends at `eos_id`, so a row of a batch gives its text back;
        `raw` decodes every id, padding and control tokens included.

        Raises:
            TextError: an id outside the vocabulary.
        """
        ids = [int(id_) for id_ in ids]
        if wrong := [id_ for id_ in ids if not 0 <= id_ < self.vocab_size]:
            raise TextError(f"id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        if raw:
            return self.vocabulary.decode(ids)
        if ids and ids[0] == self.config.bos_id:
            ids = ids[1:]
        if self.config.eos_id in ids:
            ids = ids[: ids.index(self.config.eos_id)]
        control = self.vocabulary.control
        return self.vocabulary.decode([id_ for id_ in ids if id_ not in control]).strip()

    def count(self, text: str) -> int:
        """How many ids `text` takes, its control ids included; above `context_length` it is cut."""
        return len(self._rows(_checked(text, "text"))[0]) // 4 + self._num_control

    def tokenize(
        self,
        texts: str | Sequence[str],
        *,
        truncate: Truncate = "report",
        specials: Specials | None = None,
    ) -> Tokens:
        """Ids of a batch, with the length of each text.

        truncate: "report" cuts long texts, keeps `eos_id` as the last id, and logs one warning;
        "error" refuses; "silent" cuts and leaves it to who reads `Tokens.cut`. specials: see
        `encode`.

        Raises:
            TextError: something that is not a str; names its index and type.
            TextTooLongError: the first text that does not fit, under truncate="error".
        """
        if truncate not in get_args(Truncate):
            raise ConfigError(f"truncate must be one of {get_args(Truncate)}, got {truncate!r}")
        texts = _checked(texts, "texts")
        config = self.config
        room = config.context_length - self._num_control
        rows = self._rows(texts, limit=room, specials=specials)
        tokens = _layout(rows, config, room)
        if truncate != "silent" and tokens.cut.any():
            _report(texts, tokens, truncate)
        return tokens

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        truncate: Truncate = "report",
        specials: Specials | None = None,
    ) -> Tensor:
        """`tokenize(...).ids`: int64 [n, context_length]; [0, context_length] for an empty list."""
        return self.tokenize(texts, truncate=truncate, specials=specials).ids

    @property
    def _num_control(self) -> int:
        return (self.config.bos_id is not None) + (self.config.eos_id is not None)

    def _rows(
        self, texts: Sequence[str], *, limit: int | None = None, specials: Specials | None = None
    ) -> list[bytes]:
        if specials is not None and self.config.kind != "clip_bpe":
            raise ConfigError(
                f"specials={specials!r} belongs to kind='clip_bpe', not {self.config.kind!r}"
            )
        return self.vocabulary.rows(texts, limit=limit, specials=specials)


def _checked(texts: Any, what: str) -> list[str]:
    """`texts` as a list of str, or a TextError that names the first that is none."""
    if isinstance(texts, str):
        return [texts]
    kind = type(texts).__name__
    if what == "text":
        raise TextError(f"text must be a str, got {kind}")
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise TextError(f"texts must be a str or a list of str, got {kind}")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TextError(
                f"texts[{index}] must be a str, got {type(text).__name__}: {text!r:.60}. "
                "An empty text is ''."
            )
    return texts


def _layout(rows: list[bytes], config: TokenizerConfig, room: int) -> Tokens:
    """Rows of ids -> a padded batch, each row cut to `room` and closed with the control ids."""
    n, width = len(rows), config.context_length
    sizes = np.fromiter(map(len, rows), np.int64, n) // 4
    keep = np.minimum(sizes, room)
    if (sizes > room).any():
        rows = [row[: 4 * room] for row in rows]
    start = int(config.bos_id is not None)
    column = np.arange(width)
    ids = np.full((n, width), config.pad_id, np.int64)
    inside = (column >= start) & (column < start + keep[:, None])  # n width
    ids[inside] = np.frombuffer(b"".join(rows), np.int32)
    if config.bos_id is not None:
        ids[:, 0] = config.bos_id
    if config.eos_id is not None:
        ids[np.arange(n), start + keep] = config.eos_id
    control = start + (config.eos_id is not None)
    return Tokens(torch.from_numpy(ids), torch.from_numpy(sizes + control))


def _report(texts: list[str], tokens: Tokens, truncate: Truncate) -> None:
    cut = tokens.cut.nonzero().flatten().tolist()
    first, width = cut[0], tokens.ids.shape[1]
    at_least = "at least " if len(texts[first]) > BLOCK else ""
    length = f"{at_least}{int(tokens.lengths[first])} tokens"
    if truncate == "error":
        raise TextTooLongError(
            f"texts[{first}] has {length} with its control ids, and the context holds {width} "
            f"({len(cut)} of {len(texts)} texts are too long). Shorten it, or pass "
            "truncate='report' to cut it."
        )
    logger.warning(
        "%d of %d texts were cut to %d tokens; the first is texts[%d] with %s",
        len(cut),
        len(texts),
        width,
        first,
        length,
    )


def _load(config: TokenizerConfig, path: Path | None) -> Vocabulary:
    """The vocabulary for a config, read once in a process."""
    with _loading:  # else two threads read the same file
        return _read(replace(config, context_length=77), path)


@lru_cache(maxsize=8)
def _read(config: TokenizerConfig, path: Path | None) -> Vocabulary:
    match config.kind:
        case "clip_bpe":
            vocabulary: Vocabulary = ClipBPE(path, config.clean)
        case "sentencepiece" | "wordpiece":
            from diptych.tokenizer.pieces import read

            assert path is not None
            vocabulary = read(path, config)
    ids = {"pad_id": config.pad_id, "bos_id": config.bos_id, "eos_id": config.eos_id}
    for name, id_ in ids.items():
        if id_ is not None and not 0 <= id_ < vocabulary.size:
            raise ConfigError(
                f"{name}={id_} is outside the vocabulary of {vocabulary.size} in {path or 'clip'}"
            )
        if id_ is not None and name != "pad_id" and id_ not in vocabulary.control:
            raise ConfigError(
                f"{name}={id_} is an ordinary token in {path or 'clip'}; its control ids are "
                f"{', '.join(map(str, sorted(vocabulary.control)[:8]))}"
            )
    return vocabulary


def locate(config: TokenizerConfig, folder: Path | None) -> Path | None:
    """Where the vocabulary of `config` lies; None for the one in the package."""
    if config.file == "clip":
        return None
    if folder is None:
        raise ConfigError(
            f"the vocabulary {config.file!r} lies beside the weights: pass folder=, its directory"
        )
    path = Path(folder) / config.file
    if not path.is_file():
        known = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "merges.txt")
        found = [name for name in known if (Path(folder) / name).is_file()]
        fix = (
            f"The folder holds {', '.join(found)}: set file={found[0]!r} in the TokenizerConfig."
            if found
            else "Download it from where the weights came from."
        )
        raise CheckpointError(f"{path}: no such vocabulary file. {fix}")
    return path
