"""The shortcuts of the cleaning: what they leave out changes nothing, against ftfy itself."""

import random
import sys
from pathlib import Path

import ftfy
import pytest
from ftfy import badness, fixes
from ftfy.bad_codecs.sloppy import CODECS
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from awkward import PARTS, captions, texts

from diptych.config import TokenizerConfig
from diptych.tokenizer import build, clean
from diptych.tokenizer.bpe import BATCH, END, MARK, _words

CLIP = build(TokenizerConfig(kind="clip_bpe", context_length=77))
EVERY = [chr(code) for code in range(0x110000)]
MOJIBAKE = "".join(badness.MOJIBAKE_CATEGORIES.values())
MOJIBAKE = [c for c in EVERY if clean.re.match(f"[{MOJIBAKE}]", c)]


def test_every_character_is_as_in_ftfy():
    alone = [f"x {char}y" for char in EVERY[:0x3000]]
    rest = ["a".join(EVERY[start : start + 40]) for start in range(0x3000, 0x30000, 40)]
    rest += ["a".join(EVERY[start : start + 400]) for start in range(0x30000, 0x110000, 400)]
    wrong = [text for text in alone + rest if clean.fix_text(text) != ftfy.fix_text(text)]
    assert not wrong


def test_the_table_of_letters_is_ftfys_three_steps():
    every = made = "".join(EVERY)
    for step in (fixes.fix_latin_ligatures, fixes.fix_character_width, fixes.uncurl_quotes):
        made = step(made)
    assert every.translate(clean._letters()) == made
    others = clean._LETTERS.sub("", every)
    assert others.translate(clean._letters()) == others
    assert not any(clean._CONTROL.search(made) for made in clean._letters().values())


def test_only_control_characters_need_the_other_steps():
    kept = clean._CONTROL.sub("", "".join(EVERY))
    assert clean._fix_controls(kept) == kept.translate(clean._letters())


def test_without_a_suspect_ftfy_sees_no_mojibake():
    assert len(MOJIBAKE) > 400
    assert all(clean._SUSPECT.search(char * 2) for char in MOJIBAKE)
    around = ["", "a", "Z", "7", " ", ".", "  b", "你", "😀"]
    for char in MOJIBAKE:
        for left in around:
            for right in around:
                text = left + char + right
                assert clean._SUSPECT.search(text) or not badness.is_bad(text)
    rng = random.Random(0)
    odd = [*MOJIBAKE, "你", "é", "\xa0", "™", "😀"]
    for _ in range(20_000):
        text = "".join(rng.choice(odd) + rng.choice("aZ7 .,?!\t") for _ in range(6))
        assert clean._SUSPECT.search(text) or not badness.is_bad(text)


def test_mojibake_is_as_in_ftfy():
    rng = random.Random(1)
    encodings = ["latin-1", *CODECS, "iso-8859-2", "macroman", "cp437"]
    made = []
    for _ in range(1500):
        text = "".join(rng.choices([*PARTS, "élan ", "“so” ", "naïve ", "— ", "ñ", " à la "], k=3))
        for _ in range(rng.randint(1, 2)):
            raw = text.encode("utf-8", "replace")
            text = raw.decode(rng.choice(encodings), "replace")
        made.append(text.replace("\xa0", " ") if rng.random() < 0.2 else text)
    made += ["".join(rng.choices([*MOJIBAKE, "a", " "], k=rng.randint(2, 6))) for _ in range(3000)]
    wrong = [text for text in made if clean.fix_text(text) != ftfy.fix_text(text)]
    assert not wrong


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(PARTS + MOJIBAKE))).map("".join))
@example("＆lt;b> ＆amp;")
@example("＜b> &amp;")
@example("&#10;&amp;\r\n&lt; &gt;")
def test_any_text_is_as_in_ftfy(text):
    assert clean.fix_text(text) == ftfy.fix_text(text)


def test_lower_case_is_lower_case_for_good():
    """Cleaned texts pass through `lower` again where they are joined with plain ones."""
    assert all(char.lower().lower() == char.lower() for char in EVERY)


@pytest.mark.parametrize("size", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH])
def test_a_batch_is_each_text_alone(size):
    rng = random.Random(size)
    many = ["", " ", "a  b ", END, f"a {END} b", "A\tB", "&amp;", "x" * 5000]
    many += [*texts(300, seed=size), *captions(300, seed=size)]
    many = rng.choices(many, k=size)
    rows = CLIP.vocabulary.rows(many)
    assert len(rows) == size
    for text, row in zip(many, rows, strict=True):
        cleaned = clean.CLEANERS["openai"](text)
        words = _words(None).pattern.findall(cleaned)
        assert row == b"".join(map(_words(None).merge, words))


def test_a_line_end_is_no_mark_of_a_batch():
    for rule in ("none", "lower", "openai", "whitespace"):
        other = build(TokenizerConfig(kind="clip_bpe", context_length=77, clean=rule))
        assert other.encode(f"a {END} b{END}c {END}") == other.encode("a b c")
        assert other.vocabulary.rows([f" {END} ", "a"]) == [b"", *other.vocabulary.rows(["a"])]
    ids = b"".join(_words(None)._row(chr(c)) for c in range(33, 0x500))
    assert MARK not in ids
