"""Texts to rows of ids in the peers' manner: their shapes, their cuts, the vocabulary as a dict.

One difference, in both look-alikes: a text that spells a control token ("<|endoftext|>") is encoded
as those letters. The peers let it end the caption, which hides the rest from the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diptych.config import TokenizerConfig
from diptych.tokenizer import TextTokenizer
from diptych.tokenizer.bpe import ClipBPE

__all__ = ["SimpleTokenizer", "encode_rows", "layout"]


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
    def byte_encoder(self) -> dict[int, str]:
        """Each byte as a printing character: itself where it prints, else from U+0100 on."""
        printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = [b for b in range(256) if b not in printing]
        return {b: chr(b) for b in printing} | {b: chr(256 + i) for i, b in enumerate(rest)}

    @cached_property
    def encoder(self) -> dict[str, int]:
        vocabulary = self.tokenizer.vocabulary
        assert isinstance(vocabulary, ClipBPE)
        words, letters = vocabulary.words, self.byte_encoder
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
        letter = {name: b for b, name in self.byte_encoder.items()}
        joined = "".join(self.decoder[int(token)] for token in tokens)
        return bytes(letter[x] for x in joined).decode(errors="replace").replace("</w>", " ")


def encode_rows(tokenizer: TextTokenizer, texts: str | Sequence[str]) -> list[list[int]]:
    """The ids of each text, with the control ids of the tokenizer's config.

    Raises:
        TextError: something that is not a text.
    """
    texts = [texts] if isinstance(texts, str) else texts
    config = tokenizer.config
    start = [] if config.bos_id is None else [config.bos_id]
    end = [] if config.eos_id is None else [config.eos_id]
    return [start + tokenizer.encode(text) + end for text in texts]


def layout(rows: list[list[int]], config: TokenizerConfig) -> Tensor:
    """int64 [n context_length]: padded; a row that is cut keeps its end of text."""
    context_length = config.context_length
    out = torch.full((len(rows), context_length), config.pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        if len(row) > context_length:
            end = row[-1:] if config.eos_id is not None else []
            row = row[: context_length - len(end)] + end
        out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out
