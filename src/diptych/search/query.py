"""What is asked for: words and pictures, added and taken away, as one unit vector.

    parse(["2:a dog", "+", "at night", "-", "beach.jpg"])   # the syntax of rclip

- The vector is the weighted sum of the unit vectors of the terms, at unit length again, so a score
  is a cosine whatever was asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from diptych.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

__all__ = ["Term", "parse", "vector"]

_WEIGHT = re.compile(r"(\d+(?:\.\d+)?|\.\d+):")


_HEAVIEST = 1e6  # beside it a term of weight 1 is less than the rounding of float16


class Term(NamedTuple):
    """Words, or a picture, and how much they count; below 0 they are taken away."""

    content: Any  # text, or what `Encoder.encode_image` takes
    weight: float = 1.0
    is_image: bool = False


def parse(
    words: Sequence[str], *, is_image: Callable[[str], bool] = os.path.isfile
) -> tuple[list[Term], list[str]]:
    """(terms, the words behind them) of a command line: a term, then any number of "+ term" and
    "- term". A number and a colon before a term are its weight: "2:cat".

    A "-" at the very end is no sign of a term: it belongs to the rest.

    Args:
        is_image: whether a term names a picture; by default, if it is the path of a file.

    Raises:
        ConfigError: a term is missing or empty, or a weight is 0 or above 1,000,000.
    """
    if not words:
        raise ConfigError('nothing to look for. Type: diptych search "a dog on the beach"')
    if words[0] in ("+", "-"):
        raise ConfigError(
            f"a query begins with words or a picture, not with {words[0]!r}. Type: diptych search "
            "cat - dog"
        )
    terms, rest = [_term(words[0], 1.0, is_image)], list(words[1:])
    while len(rest) > 1 and rest[0] in ("+", "-"):
        terms.append(_term(rest[1], 1.0 if rest[0] == "+" else -1.0, is_image))
        rest = rest[2:]
    if rest and rest[0] == "+":
        raise ConfigError("a term is missing behind the '+'. Type: diptych search cat + dog")
    return terms, rest


def _term(text: str, sign: float, is_image: Callable[[str], bool]) -> Term:
    weight = 1.0
    if not is_image(text) and (found := _WEIGHT.match(text)):
        weight, text = float(found[1]), text[found.end() :]
    if not text.strip():
        raise ConfigError("a term of the query is empty. Give some words, or a picture's path.")
    if weight == 0:
        raise ConfigError(f"{text!r} has the weight 0. Leave it out, or give a weight above 0.")
    if weight > _HEAVIEST:
        raise ConfigError(f"{text!r} has the weight {weight:g}. Give one of 1000000 at most.")
    return Term(text.strip(), sign * weight, is_image(text))


def vector(
    terms: Sequence[Term],
    *,
    encode_text: Callable[[str], Float[np.ndarray, " e"]],
    encode_image: Callable[[Any], Float[np.ndarray, " e"]],
) -> Float[np.ndarray, " e"]:
    """The unit vector, float32, that the terms make together.

    Args:
        encode_text, encode_image: from the content of a term to its unit vector.

    Raises:
        ConfigError: no terms, or they cancel each other out.
        ImageError, TextError: of a term.
    """
    import numpy as np  # a process that only parses a command line does without

    if not terms:
        raise ConfigError("nothing to look for. Give at least one term.")
    parts = [
        term.weight * (encode_image if term.is_image else encode_text)(term.content)
        for term in terms
    ]
    total = np.stack(parts).sum(0, dtype=np.float64)
    length = np.linalg.norm(total)
    if length < 1e-3 * sum(abs(term.weight) for term in terms):
        raise ConfigError("the terms of the query cancel each other out. Leave one of them out.")
    return (total / length).astype(np.float32)
