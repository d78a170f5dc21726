"""A text that is longer than a model's context, as windows that fit it: sentences, else words."""

from __future__ import annotations

import re

from diptych.tokenizer import Tokenizer

__all__ = ["text_windows"]

# after the end of a sentence, or at the end of a line
_BREAK = re.compile(r"(?<=[.!?;:…。！？])\s+|\s*\n+\s*")


def text_windows(tokenizer: Tokenizer, text: str, *, prefix: str = "") -> list[tuple[str, float]]:
    """(prefix + window, number of its tokens) of as few windows as whole sentences allow.

    A text that fits is one window. Sentences are put together while they fit; one that does not
    fit alone is divided between words. A single word that is longer than the context stays whole:
    the tokenizer cuts it, and says so.
    """
    if tokenizer.count(prefix + text) <= tokenizer.context_length:
        return [(prefix + text, float(_weight(tokenizer, text)))]
    found: list[str] = []
    for sentence in _packed(tokenizer, _BREAK.split(text), prefix):
        if tokenizer.count(prefix + sentence) <= tokenizer.context_length:
            found.append(sentence)
        else:
            found += _packed(tokenizer, sentence.split(), prefix)
    found = found or [text]  # nothing but spaces
    return [(prefix + window, float(_weight(tokenizer, window))) for window in found]


def _packed(tokenizer: Tokenizer, parts: list[str], prefix: str) -> list[str]:
    """Neighbours joined while they fit."""
    found: list[str] = []
    for part in parts:
        if not part.strip():
            continue
        joined = f"{found[-1]} {part}" if found else part
        if found and tokenizer.count(prefix + joined) <= tokenizer.context_length:
            found[-1] = joined
        else:
            found.append(part)
    return found


def _weight(tokenizer: Tokenizer, text: str) -> int:
    """Tokens without control ids; an empty text weighs 1, so that weights never sum to 0."""
    return max(tokenizer.count(text) - tokenizer.count(""), 1)
