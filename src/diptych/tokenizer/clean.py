"""What happens to a text before it is cut into tokens: each publisher's rules, by name.

- The rules are those of the original code, and the result is the same string (tests/oracle).
- ASCII text without control characters and "&" is left alone by ftfy and by `html.unescape`, so
  both are skipped for it (`is_plain`); they cost twenty times the rest.
- Other text goes through ftfy's own steps here, and each is left out where nothing in the text is
  of its concern: mojibake takes two neighbours beyond ASCII, or one of a few characters
  (`_SUSPECT`); ligatures, wide forms and curly quotes are a table. That is six times faster.
- Every rule costs time linear in the text. ftfy alone does not: nested character references
  ("&amp;amp;amp;...") and long runs of combining marks make it quadratic, and so the marks of a
  long text are put in order first, and the nesting is bounded.
"""

import html
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby

import regex

from diptych.errors import TextError

__all__ = ["BLOCK", "CLEANERS", "blocks", "fix_text", "is_plain", "no_surrogates"]

BLOCK = 4096  # characters; a longer text is read in blocks of about this many
SEGMENT = 1_000_000  # characters; ftfy's `max_decode_length`
NESTING = 5_000_000  # characters x rounds that a long text may cost; any nesting in a short one
_PLAIN = re.compile(r"[\t\n\f\r -%'-~]*")
_SPACE = regex.compile(r"\s+")  # of `regex`, as in the original; `re` knows other white space
_MARKS = regex.compile(r"\p{M}{32,}")
# What ftfy removes or joins: control characters, line ends, surrogates, marks of byte order.
_CONTROL = re.compile(
    "[\0-\x08\x0b\x0d-\x1f\x7f-\x9f\u2028\u2029\u206a-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc]"
)
# Without this, `ftfy.is_bad` is False: its characters lie in these ranges, and it wants two of them
# side by side, or one of those that stand here first.
_SUSPECT = re.compile("[\x80-\x9fÂÃŒœ]|[\x80-\u052f\u2000-\u2fff\uf8ff\ufb00-\ufb06\ufffd]{2}")
_LETTERS = re.compile("[ĲĳŉǄ-ǌǱ-ǳʼ‘-‟\u3000ﬀ-ﬆ\uff01-\uffef]")  # all that `_letters` can hold
_LONG_NUMBER = re.compile(r"&#([0-9]{4000,})")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_plain(text: str) -> bool:
    """Whether ftfy and `html.unescape` leave `text` as it is, up to the kind of white space."""
    if not text.isascii() or "&" in text:
        return False
    return text.isprintable() or _PLAIN.fullmatch(text) is not None


def no_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone ones replaced by U+FFFD, as ftfy does."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def fix_text(text: str, *, unescape_html: str | bool = "auto") -> str:
    """`ftfy.fix_text(text)`, in time linear in the text.

    Raises:
        TextError: character references nested so deep that each layer costs another pass.
    """
    out = []
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        end = min(end, start + SEGMENT)
        segment = text[start:end]
        if "<" in segment:  # ftfy: this is HTML, so entities are meant; holds for what follows
            unescape_html = False
        if not is_plain(segment) or "\r" in segment:
            segment = _fix_segment(segment, unescape_html=bool(unescape_html))
        out.append(segment)
        start = end
    return "".join(out)


def _fix_segment(text: str, *, unescape_html: bool) -> str:
    """`ftfy.fix_and_explain`, step by step: rounds until nothing changes, but so many at most."""
    from ftfy import fix_encoding, fixes

    rounds = max(8, NESTING // len(text))
    for _ in range(rounds):
        before = text
        if unescape_html and "&" in text:
            text = fixes.unescape_html(text)
        if not text.isascii() and _SUSPECT.search(text):
            text = fix_encoding(text)
        if _CONTROL.search(text):
            text = _fix_controls(text)
        elif _LETTERS.search(text):
            text = text.translate(_letters())
        if len(text) > BLOCK:
            text = _MARKS.sub(_in_order, text)
        text = unicodedata.normalize("NFC", text)
        if text == before:
            return text
    raise TextError(
        f"a text of {len(text)} characters holds character references nested more than {rounds} "
        "deep; unescape it before it comes here"
    )


def _fix_controls(text: str) -> str:
    """The steps of ftfy between encodings and NFC, in its order."""
    from ftfy import fixes

    text = fixes.fix_c1_controls(text).translate(_letters())
    text = fixes.fix_surrogates(fixes.fix_line_breaks(text))
    return fixes.remove_control_chars(fixes.remove_terminal_escapes(text))


@cache
def _letters() -> dict[int, str]:
    """Character -> what ftfy's steps for ligatures, wide forms and curly quotes make of it."""
    from ftfy import fixes
    from ftfy.chardata import LIGATURES, WIDTH_MAP

    quotes = [0x2BC, *range(0x2018, 0x2020)]
    steps = (fixes.fix_latin_ligatures, fixes.fix_character_width, fixes.uncurl_quotes)
    made = {}
    for code in (*LIGATURES, *WIDTH_MAP, *quotes):
        text = chr(code)
        for step in steps:
            text = step(text)
        made[code] = text
    return made


def _in_order(run: regex.Match[str]) -> str:
    """Combining marks in canonical order, which NFC alone finds in quadratic time (UAX 15)."""
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in run.group())
    groups = groupby(marks, lambda mark: unicodedata.combining(mark) > 0)
    return "".join(
        "".join(sorted(group, key=unicodedata.combining) if nonstarter else group)
        for nonstarter, group in groups
    )


def _unescape(text: str) -> str:
    """`html.unescape`, for numbers of any length: Python refuses to read those of 4,300 digits."""
    if len(text) > 4000 and "&#" in text:
        text = _LONG_NUMBER.sub(_short_number, text)
    return html.unescape(text)


def _short_number(match: re.Match[str]) -> str:
    digits = match.group(1).lstrip("0") or "0"
    return f"&#{digits if len(digits) < 8 else 9_999_999}"  # 9,999,999: beyond Unicode, U+FFFD


def _basic(text: str, *, unescape_html: str | bool = "auto") -> str:
    """ftfy, two rounds of HTML entities, strip: `basic_clean` of openai/CLIP."""
    if is_plain(text):
        return text.strip()
    return _unescape(_unescape(fix_text(text, unescape_html=unescape_html))).strip()


def _openai(text: str, *, unescape_html: str | bool = "auto") -> str:
    """The cleaning of openai/CLIP `simple_tokenizer.py`."""
    text = _basic(text, unescape_html=unescape_html)
    if "  " in text or not text.isprintable():  # else all white space is single spaces
        text = _SPACE.sub(" ", text).strip()
    return text.lower()


def _transformers(text: str) -> str:
    """The normalizer of transformers' CLIP tokenizer: NFC, white space, lower case by character."""
    text = unicodedata.normalize("NFC", _MARKS.sub(_in_order, no_surrogates(text)))
    text = _SPACE.sub(" ", text).replace("Σ", "σ").lower()
    return text.replace("'ſ", "' ſ")  # its split is not blind to case, and ſ is an s


def _whitespace(text: str) -> str:
    """open_clip `_clean_whitespace`."""
    return " ".join(_basic(text).split())


def _lower(text: str) -> str:
    return no_surrogates(text).lower()


def _canonicalize(text: str) -> str:
    """big_vision `prompt_engineering.canonicalize_text`."""
    text = no_surrogates(text).replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


def _canonicalize_hf(text: str) -> str:
    """transformers `SiglipTokenizer.canonicalize_text`: lower case first, "_" is punctuation."""
    return " ".join(no_surrogates(text).lower().translate(_NO_PUNCTUATION).split())


def _canonicalize_open_clip(text: str) -> str:
    """open_clip `_clean_canonicalize`."""
    return _canonicalize(_basic(text))


CLEANERS: dict[str, Callable[[str], str]] = {
    "openai": _openai,
    "transformers": _transformers,
    "whitespace": _whitespace,
    "lower": _lower,
    "canonicalize": _canonicalize,
    "canonicalize_hf": _canonicalize_hf,
    "canonicalize_open_clip": _canonicalize_open_clip,
    "none": no_surrogates,
}


def blocks(text: str, clean: str) -> Iterator[str]:
    """The cleaned text in pieces whose tokens, one after the other, are the tokens of the whole.

    Only "openai" is cut: all its rules work inside a line, or inside a word where the text is
    plain, except that a "<" switches ftfy's entities off from its line onwards.
    """
    if clean != "openai" or len(text) <= BLOCK:
        yield CLEANERS[clean](text)
        return
    separator = " " if is_plain(text) else "\n"
    unescape_html: str | bool = "auto"
    start = 0
    while start < len(text):
        end = text.find(separator, start + BLOCK) + 1 or len(text)
        block = text[start:end]
        yield _openai(block, unescape_html=unescape_html)
        if "<" in block:
            unescape_html = False
        start = end
