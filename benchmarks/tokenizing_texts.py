"""Captions for `tokenizing.py`, by a Zipf law from a large vocabulary; some are not ASCII.

The same list on every machine. Words are the whole words of CLIP's vocabulary in the order of
their ids, which is that of their frequency, and compounds of them that no vocabulary holds.
"""

import gzip
from importlib import resources

import numpy as np

__all__ = ["captions"]

# One of these in every twentieth caption.
FOREIGN = [
    "café",
    "jalapeño",
    "naïve",
    "Straße",
    "São Paulo",
    "Ångström",
    "cafe\u0301",  # not composed
    "“quoted”",
    "it’s",
    "dogs’",
    "– and then –",
    "and more…",
    "25 °C",
    "£20",
    "½ cup",
    "😀",
    "❤️",
    "👨\u200d👩\u200d👧",
    "你好世界",
    "東京タワー",
    "서울",
    "Москва",
    "Αθήνα",
    "नमस्ते",
    "مرحبا",
    "ＦＵＬＬ",
    "ﬁne",
    "a\xa0b",
    "cafÃ©",  # mojibake
    "donâ€™t",
    "â€œquotedâ€\x9d",
    "fish &amp; chips",
    "&quot;quoted&quot;",
    "caf&eacute; &ndash; bar",
    "&#39;s",
]


def words() -> list[str]:
    """The 32,849 whole words of ASCII letters in CLIP's vocabulary, the most frequent first."""
    data = (resources.files("diptych") / "assets" / "clip_bpe.txt.gz").read_bytes()
    lines = gzip.decompress(data).decode().split("\n")[1:48895]
    whole = (line.replace(" ", "")[:-4] for line in lines if line.endswith("</w>"))
    return [word for word in whole if word.isascii() and word.isalpha()]


def captions(count: int, *, foreign: float = 0.05, seed: int = 0) -> list[str]:
    """`count` captions of twelve words, all different; a share of `foreign` is not plain ASCII."""
    rng = np.random.default_rng(seed)
    known = words()
    share = 1 / (np.arange(len(known)) + 3.0)
    steps = np.cumsum(share / share.sum())
    drawn = np.searchsorted(steps, rng.random((count, 14)))
    forms, lengths = rng.random((count, 12)), rng.integers(8, 17, count)
    chosen = np.where(rng.random(count) < foreign, rng.integers(len(FOREIGN), size=count), -1)
    made = []
    for row, form, length, extra in zip(drawn, forms, lengths, chosen, strict=True):
        picked = [known[min(i, len(known) - 1)] for i in row]
        text = [_shaped(picked[i], picked[i - 1], form[i]) for i in range(min(int(length), 12))]
        text += picked[12 : max(12, int(length))]
        if extra >= 0:
            text.insert(int(length) // 2, FOREIGN[extra])
        whole = " ".join(text)
        made.append(f"{whole[0].upper()}{whole[1:]}.")
    return made


def _shaped(word: str, other: str, form: float) -> str:
    """`word`, or with a small chance a compound, a number, a possessive, one with a comma."""
    if form > 0.12:
        return word
    if form < 0.03:
        return f"{word},"
    if form < 0.04:
        return f"{word}-{other}"
    if form < 0.045:
        return f"{word}{other}"
    if form < 0.055:
        return str(int(form * 1e7) % 2030)
    return f"{word}'s" if form < 0.065 else word.capitalize()
