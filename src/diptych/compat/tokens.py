"""Texts to ids in the peers' manner: cut without a word, and the vocabulary as a dict.

One difference, in both look-alikes: a text that spells a control token ("<|endoftext|>") is encoded
as those letters. The peers let it end the caption, which hides the rest from the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from diptych.config import TokenizerConfig
from diptych.tokenizer import TextTokenizer
from diptych.tokenizer.base import Tokens
from diptych.tokenizer.bpe import ClipBPE, byte_letters

__all__ = ["SimpleTokenizer", "rows"]


class SimpleTokenizer:
    """openai/CLIP's `SimpleTokenizer`: `encode`, `decode`, `encoder` (token -> id) and `decoder`.

    bpe_path: another file of merges; by default the one in this package.
    """

    SPECIALS: tuple[str, str] = ("<|startoftext|>", "<|endoftext|>")

    def __init__(self, bpe_path: str | Path | None = None):
        config = TokenizerConfig(kind="clip_bpe", context_length=77)
        self.tokenizer = TextTokenizer(config, None if bpe_path is None else Path(bpe_path))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={len(self.encoder)})"

    @cached_property
    def encoder(self) -> dict[str, int]:
        vocabulary = self.tokenizer.vocabulary
        assert isinstance(vocabulary, ClipBPE)
        words, letters = vocabulary.words, byte_letters()
        names = []
        for spelling, length in zip(words.spelling, words.lengths, strict=True):
            end = "</w>" if len(spelling) > length else ""
            names.append("".join(letters[b] for b in spelling[:length]) + end)
        return {name: i for i, name in enumerate((*names, *self.SPECIALS))}

    @cached_property
    def decoder(self) -> dict[int, str]:
        return {i: name for name, i in self.encoder.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without start and end; never a control id."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids, a space after each word; control tokens are spelled out."""
        letter = {name: b for b, name in byte_letters().items()}
        joined = "".join(self.decoder[int(token)] for token in tokens)
        return bytes(letter[x] for x in joined).decode(errors="replace").replace("</w>", " ")


def rows(tokenizer: TextTokenizer, texts: str | Sequence[str], context_length: int) -> Tokens:
    """The batch at another context length, cut without a word; `Tokens.cut` says where.

    Raises:
        TextError: something that is not a text.
    """
    config = replace(tokenizer.config, context_length=context_length)
    return TextTokenizer(config, tokenizer.path).tokenize(texts, truncate="silent")
