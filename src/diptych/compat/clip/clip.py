"""`clip.clip` of openai/CLIP: its functions, and the names that scripts reach for inside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych import zoo
from diptych.compat.clip.model import CLIP, build_model
from diptych.compat.clip.simple_tokenizer import SimpleTokenizer
from diptych.compat.tokens import rows
from diptych.compat.weights import fill, lay_out
from diptych.errors import ConfigError, ModelNotFoundError, TextTooLongError
from diptych.preprocess import Preprocess

__all__ = ["TooLongError", "available_models", "build_model", "load", "tokenize"]

_ROWS = {  # OpenAI's name: our row
    "RN50": "RN50/openai",
    "RN101": "RN101/openai",
    "RN50x4": "RN50x4/openai",
    "RN50x16": "RN50x16/openai",
    "RN50x64": "RN50x64/openai",
    "ViT-B/32": "ViT-B-32/openai",
    "ViT-B/16": "ViT-B-16/openai",
    "ViT-L/14": "ViT-L-14/openai",
    "ViT-L/14@336px": "ViT-L-14-336/openai",
}
_tokenizer = SimpleTokenizer()  # reads its vocabulary when first used


class TooLongError(TextTooLongError, RuntimeError):
    """A text longer than the context; a RuntimeError, as openai/CLIP raises."""


def available_models() -> list[str]:
    """OpenAI's nine names."""
    return list(_ROWS)


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[CLIP, Preprocess]:
    """(model in evaluation mode and float32, preprocess: image -> float32 [3 H W]).

    Args:
        name: one of `available_models()`, a name of `diptych.list_models()`, or the path of any
            checkpoint that Diptych reads.
        device: None is "cuda" if there is one, else "cpu".
        download_root: where to look for weights (and put them) before the usual caches.

    Raises:
        ConfigError: `jit=True`.
        ModelNotFoundError, CheckpointError: as `diptych.load`.
    """
    if jit:
        raise ConfigError(
            "jit=True would run the code inside the archive, which a stranger may have written; "
            "Diptych reads its tensors alone. Leave jit out: the numbers are the same."
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted: str | Path = _ROWS.get(str(name), name)
    if wanted not in zoo.list_models() and Path(wanted).exists():
        wanted = Path(wanted)
    checkpoint = zoo.open_model(wanted, cache_dir=download_root)
    zoo.check_finite(checkpoint)
    towers = lay_out(checkpoint.config, batch_first=False)
    model = fill(CLIP(checkpoint.config, towers), checkpoint.state_dict, towers)
    return model.to(device).eval(), Preprocess(checkpoint.preprocess, "original")


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> Tensor:
    """int32 [n context_length]: start of text, ids, end of text, zeros.

    Args:
        truncate: cut what is too long, keeping the end of text; else it is an error.

    Raises:
        TooLongError: a RuntimeError with OpenAI's wording.
        TextError: something that is not a text.
    """
    texts = [texts] if isinstance(texts, str) else texts
    tokens = rows(_tokenizer.tokenizer, texts, context_length)
    if not truncate and tokens.cut.any():
        first = texts[int(tokens.cut.nonzero()[0])]
        raise TooLongError(f"Input {first} is too long for context length {context_length}")
    return tokens.ids.int()


def _models() -> dict[str, str]:
    """OpenAI's name: the address of its file."""
    sources = {name: zoo.get(row).sources for name, row in _ROWS.items()}
    return {
        name: next(source.url for source in found if isinstance(source, zoo.Url))
        for name, found in sources.items()
    }


def _download(url: str, root: str | Path | None = None) -> str:
    """The path of one of OpenAI's nine files; fetched if it is not on this machine."""
    for name, address in _models().items():
        if url == address:
            return str(zoo.fetch(_ROWS[name], cache=root))
    raise ModelNotFoundError(f"{url}: is none of OpenAI's files. For a file, clip.load(path).")


_LAZY = {"_MODELS": _models}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return _LAZY[name]()
    raise AttributeError(f"module 'diptych.compat.clip.clip' has no attribute {name!r}")
