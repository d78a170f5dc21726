"""open_clip's tokenizers: texts to int64 [n context_length], cut in silence, the end kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from diptych.compat import tokens
from diptych.compat.tokens import rows
from diptych.tokenizer import TextTokenizer

__all__ = ["FileTokenizer", "SimpleTokenizer", "decode", "tokenize"]


class SimpleTokenizer(tokens.SimpleTokenizer):
    """CLIP's byte pairs. One more level of inheritance than elsewhere: it is the peer's class."""

    SPECIALS: tuple[str, str] = ("<start_of_text>", "<end_of_text>")

    def __init__(self, bpe_path: str | Path | None = None, *, context_length: int = 77):
        super().__init__(bpe_path)
        self.context_length = context_length
        self.sot_token_id, self.eot_token_id = 49406, 49407
        self.all_special_ids = [self.sot_token_id, self.eot_token_id]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """int64 [n context_length]."""
        return rows(self.tokenizer, texts, context_length or self.context_length).ids


class FileTokenizer:
    """SigLIP's and CLIPA's, of the vocabulary beside the weights; in place of `HFTokenizer`."""

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        self.context_length = tokenizer.context_length

    def __repr__(self) -> str:
        return f"FileTokenizer({self.tokenizer!r})"

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """int64 [n context_length]."""
        return rows(self.tokenizer, texts, context_length or self.context_length).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)


@cache
def _default() -> SimpleTokenizer:
    return SimpleTokenizer()


def tokenize(texts: str | Sequence[str], context_length: int = 77) -> Tensor:
    """int64 [n context_length] of CLIP's tokenizer."""
    return _default()(texts, context_length)


def decode(output_ids: Tensor) -> str:
    """The text of a row of ids, control tokens spelled out."""
    return _default().decode(output_ids.tolist())
