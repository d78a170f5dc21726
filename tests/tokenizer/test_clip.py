"""CLIP's byte-pair encoding: the published ids, control tokens, caches, limits."""

import gzip
import hashlib
import pickle
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from awkward import PARTS, SPECIALS, captions, texts

from diptych.config import TokenizerConfig, from_dict, to_dict
from diptych.errors import CheckpointError, ConfigError, TextError, TextTooLongError
from diptych.tokenizer import Tokenizer, build, clean
from diptych.tokenizer.bpe import Words, _words

CONFIG = TokenizerConfig(kind="clip_bpe", context_length=77)
CLIP = build(CONFIG)
SOT, EOT = 49406, 49407

# Ids of openai/CLIP's own tokenizer, without the control ids.
IDS = {
    "a photo of a cat": "320 1125 539 320 2368",
    "it's a dog's life!!!": "585 568 320 1929 568 970 995",
    "123 45": "272 273 274 275 276",
    "!": "256",
    "!!": "748",
    "a!b": "320 256 321",
    "&lt;b&gt; bold &amp;amp; café": "283 321 285 8911 261 15304",
    "Ã©tÃ© mojibake": "3459 39694 617 3252 11878",
    "ﬁne ﬂag": "3797 4859",
    "ＦＵＬＬ width": "1476 23571",
    "I’m": "328 880",
    "don’t “quote”": "847 713 257 4020 257",
    "你好 世界": "47466 254 29290 377 19759 244 163 243 490",
    "İstanbul": "328 16384 11231",
    "ẞ": "127 509",
    "emoji 😀 👨\u200d👩": "16327 7334 25023 964 358",
    "x\u200by": "343 9844 344",
    "x\u180ey": "343 157 254 492 344",
    "x\x1cy": "11443",
    "tab\tnew\nline": "14724 686 1148",
    "a <end_of_text> b": "320 283 806 318 539 318 4160 285 321",
    "<start_of_text>x": "283 1572 318 539 318 4160 285 343",
    "a <|endoftext|> b": "320 27 347 40786 4160 91 285 321",  # as open_clip; openai/CLIP: 49407
    "": "",
}


@pytest.mark.parametrize("text", IDS)
def test_published_ids(text):
    assert CLIP.encode(text) == [int(i) for i in IDS[text].split()]


def test_vocabulary_is_the_published_one():
    data = (resources.files("diptych") / "assets" / "clip_bpe.txt.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(data)).hexdigest() == (
        "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    )
    assert CLIP.vocab_size == 49408
    assert CLIP.vocabulary.control == {SOT, EOT}
    words = _words(None)
    assert all(new > max(parts) for new, parts in enumerate(words.parts) if new >= 512)
    assert len(set(words.parts[512:])) == len(words.pairs) == 48894


def test_peers_spellings_of_control_tokens_only_on_request():
    assert CLIP.encode("a <|endoftext|> b", specials="openai") == [320, EOT, 321]
    assert CLIP.encode("a <|EndOfText|>!<|startoftext|>", specials="openai")[:2] == [320, EOT]
    assert CLIP.encode("a <end_of_text> b", specials="open_clip") == [320, EOT, 321]
    assert CLIP.encode("<start_of_text>x", specials="open_clip") == [SOT, 343]
    assert CLIP.encode("a <|endoftext|> b", specials="open_clip") == CLIP.encode(
        "a <|endoftext|> b"
    )


def test_no_text_becomes_a_control_token():
    for text in [*SPECIALS, *texts(5000, seed=1)]:
        assert max(CLIP.encode(text), default=0) < SOT, text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(SPECIALS + PARTS))).map("".join))
@example("<|<|endoftext|>endoftext|>")
def test_any_text_has_ids_below_control(text):
    ids = CLIP(text)[0].tolist()
    end = ids.index(EOT)
    assert ids[0] == SOT
    assert all(0 <= i < SOT for i in ids[1:end])
    assert set(ids[end + 1 :]) <= {0}


def test_batch_layout_and_round_trip():
    ids = CLIP(["a photo of a cat", ""])
    assert ids.dtype == torch.int64 and ids.shape == (2, 77)
    assert ids[0, :7].tolist() == [SOT, 320, 1125, 539, 320, 2368, EOT]
    assert ids[0, 7:].sum() == 0
    assert ids[1, :3].tolist() == [SOT, EOT, 0]
    assert CLIP([]).shape == (0, 77)
    assert CLIP.decode(ids[0]) == "a photo of a cat"
    assert CLIP.decode([SOT, 320, EOT], raw=True) == "<|startoftext|>a <|endoftext|>"
    assert CLIP.decode(CLIP("!")[0]) == "!"
    assert isinstance(CLIP, Tokenizer)


def test_truncation_keeps_the_end_and_reports(caplog):
    long = "cat " * 75
    tokens = CLIP.tokenize(["a dog", long, long + "cat", "cat " * 200])
    assert tokens.cut.tolist() == [False, False, True, True]
    assert tokens.lengths.tolist() == [4, 77, 78, 202]
    assert (tokens.ids[1:, -1] == EOT).all()
    (entry,) = caplog.records
    assert entry.name == "diptych"
    assert "2 of 4 texts were cut to 77" in entry.message and "texts[2] with 78" in entry.message
    with pytest.raises(TextTooLongError, match=r"texts\[2\] has 78 tokens .* holds 77"):
        CLIP(["a dog", long, long + "cat"], truncate="error")
    assert CLIP.count(long + "cat") == 78
    short = build(TokenizerConfig(kind="clip_bpe", context_length=4))
    assert short("a photo of a cat").tolist() == [[SOT, 320, 1125, EOT]]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (None, "got NoneType"),
        (b"cat", "got bytes"),
        (7, "got int"),
        (["cat", None], r"texts\[1\] must be a str, got NoneType"),
        (["a", "b", float("nan")], r"texts\[2\] must be a str, got float"),
        ([b"a"], r"texts\[0\] must be a str, got bytes"),
    ],
)
def test_what_is_no_text_is_named(texts, said):
    with pytest.raises(TextError, match=said):
        CLIP(texts)


def test_encode_and_decode_refuse_what_they_cannot_read():
    with pytest.raises(TextError, match="must be a str, got list"):
        CLIP.encode(["a"])  # pyrefly: ignore
    with pytest.raises(TextError, match="id 49408 is outside"):
        CLIP.decode([49408])
    with pytest.raises(ConfigError, match="truncate"):
        CLIP("a", truncate="yes")  # pyrefly: ignore


def test_nul_and_surrogates():
    assert CLIP.encode("a\0cat") == CLIP.encode("acat")
    assert CLIP.encode("\ud83d\udca9") == CLIP.encode("💩")
    assert CLIP.encode("a \ud83d b") == CLIP.encode("a \ufffd b")
    for clean_ in ("lower", "canonicalize", "canonicalize_hf", "none"):
        other = build(TokenizerConfig(kind="clip_bpe", context_length=77, clean=clean_))
        assert other.encode("x\ud83dy\0") == other.encode("x\ufffdy\0")


@pytest.mark.parametrize(
    "alphabet", ["ab", "abcdefghijklmnopqrstuvwxyz", "a", "aé你", "!?.", "eathn"]
)
def test_long_merge_is_the_short_merge(alphabet):
    rng = random.Random(0)
    words = _words(None)
    for size in (*range(1, 60), 300, 1000):
        text = "".join(rng.choices(alphabet, k=size))
        ids = list(text.encode().translate(words.to_id))
        ids[-1] += 256
        short = words.merge_short(ids)
        assert words.merge_window(list(ids)) == short
        assert words.merge_long(list(ids)) == short


def test_windows_give_the_ids_of_the_whole(monkeypatch):
    rng = random.Random(1)
    words = _words(None)
    for window, overlap in ((2048, 16), (24, 2), (12, 1), (16, 0)):
        monkeypatch.setattr("diptych.tokenizer.bpe.WINDOW", window)
        monkeypatch.setattr("diptych.tokenizer.bpe.OVERLAP", overlap)
        for alphabet in ("ab", "eathnosri", "a", "ha", "é你a"):
            ids = list("".join(rng.choices(alphabet, k=5000)).encode().translate(words.to_id))
            ids[-1] += 256
            assert words.merge_long(list(ids)) == words.merge_window(list(ids))


def test_the_head_of_a_long_word_is_exact():
    rng = random.Random(2)
    words = _words(None)
    assert words.longest < 64
    for alphabet in ("ab", "eathnosri", "a", "ha", "é你a", "!-"):
        for limit in (2, 13, 75):
            word = "".join(rng.choices(alphabet, k=20_000))
            assert words.merge(word).startswith(head := words.head(word, limit))
            assert len(head) == 4 * (limit + 1)
    ids = CLIP(word := "a1b!" * 10_000)[0].tolist()
    assert ids == [SOT, *CLIP.encode(word)[:75], EOT]


def test_cache_changes_nothing_and_is_bounded(monkeypatch):
    monkeypatch.setattr(Words, "LIMIT", 50)
    source = _words(None)
    words = Words([])
    words.pairs, words.parts = source.pairs, source.parts
    for text in texts(600, seed=2):
        for chunk in clean.CLEANERS["openai"](text).split(" "):
            again = b"".join(map(source.merge, source.pattern.findall(chunk)))
            assert words[chunk] == words[chunk] == again
        assert len(words) <= 50 and len(words._old) <= 50
    assert words["x" * 25] and "x" * 25 not in words
    assert words["你" * 24] and "你" * 24 not in words
    assert all(len(c) <= Words.CHARS and len(row) <= 4 * Words.IDS for c, row in words.items())


def test_blocks_of_a_long_text_are_the_whole_text():
    rng = random.Random(3)
    parts = list(texts(400, seed=4)) + ["plain words here"] * 100
    for separator in (" ", "\n", "", "\r\n"):
        for _ in range(4):
            rng.shuffle(parts)
            long = separator.join(parts)
            whole = clean._SPACE.sub(" ", clean._unescape(clean._unescape(ftfy.fix_text(long))))
            ids = b"".join(map(_words(None).__getitem__, whole.strip().lower().split(" ")))
            assert CLIP._rows([long])[0] == ids
    long = "a photo of a cat \n" * 2000
    assert CLIP.encode(long) == CLIP.encode("a photo of a cat") * 2000


def test_own_steps_are_ftfys():
    for text in texts(1500, seed=5):
        line = text.replace("\n", " ")
        unescape = "<" not in line
        assert clean._fix_segment(line, unescape_html=unescape) == ftfy.fix_text(line) or not line
    marks = "e" + "\u0301\u0327\u0344\u0f73" * 200 + "\u20dd" + "\u0327\u0301" * 50
    assert clean._fix_segment(marks, unescape_html=True) == ftfy.fix_text(marks)


def test_plain_texts_need_no_cleaning():
    alphabet = [chr(c) for c in range(128)]
    rng = random.Random(6)
    for char in alphabet:
        text = f"Ab {char}c{char} d"
        if clean.is_plain(text):
            assert clean._SPACE.sub(" ", ftfy.fix_text(text)) == clean._SPACE.sub(" ", text)
    plain = [c for c in alphabet if clean.is_plain(c)]
    assert len(plain) == 95 - 1 + 4
    for _ in range(500):
        text = "".join(rng.choices(plain, k=40))
        original = clean._unescape(clean._unescape(ftfy.fix_text(text))).split()
        assert original == text.split()


@pytest.mark.parametrize(
    "text",
    ["x" * 1_000_000, "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))],
    ids=["one letter", "letters"],
)
def test_a_megabyte_of_letters(text):
    start = time.process_time()
    assert CLIP(text)[0, -1] == EOT
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat " * 600_000,
        "é\n" * 100_000,
        "\u0300\u0316" * 100_000,
        "&#768;&#790;" * 20_000,
        "a1" * 100_000,
        "&#" + "9" * 100_000 + ";",
        "你好" * 50_000,
    ],
    ids=["10 MB of words", "lines", "marks", "marks as entities", "a1", "digits", "Chinese"],
)
def test_awkward_long_texts_take_bounded_time(text):
    start = time.process_time()
    assert CLIP(text).shape == (1, 77)
    assert time.process_time() - start < 4


def test_endless_nesting_is_refused():
    nested = "&" + "amp;" * 50_000
    with pytest.raises(TextError, match="nested more than"):
        CLIP(nested)
    assert CLIP.encode("&" + "amp;" * 20) == CLIP.encode("&")
    assert CLIP.encode("&#" + "0" * 5000 + "65; b") == CLIP.encode("a b")


def test_threads_share_a_tokenizer(monkeypatch):
    monkeypatch.setattr(Words, "LIMIT", 40)
    many = list(texts(300, seed=7)) + captions(300)
    expected = CLIP(many)
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(CLIP, [many] * 8):
            assert torch.equal(ids, expected)


def test_pickle_holds_no_vocabulary():
    data = pickle.dumps(CLIP)
    assert len(data) < 1000
    assert pickle.loads(data).encode("a cat") == CLIP.encode("a cat")
    assert from_dict(to_dict(CONFIG)) == CONFIG


def test_a_merges_file_beside_the_weights(tmp_path):
    data = (resources.files("diptych") / "assets" / "clip_bpe.txt.gz").read_bytes()
    header = b"#version: 0.2\n"
    (tmp_path / "merges.txt").write_bytes(header + gzip.decompress(data))
    config = TokenizerConfig(kind="clip_bpe", context_length=77, file="merges.txt")
    assert build(config, tmp_path).encode("it's a cat") == CLIP.encode("it's a cat")
    (tmp_path / "bad.txt").write_bytes(b"\xff not merges")
    with pytest.raises(CheckpointError, match=r"bad\.txt: not a file of byte-pair merges"):
        build(replace(config, file="bad.txt"), tmp_path).encode("a")


def test_a_missing_file_is_named(tmp_path):
    config = TokenizerConfig(kind="clip_bpe", context_length=77, file="merges.txt")
    with pytest.raises(ConfigError, match="pass folder="):
        build(config)
    with pytest.raises(CheckpointError, match=r"merges\.txt: no such vocabulary"):
        build(config, tmp_path)
    (tmp_path / "vocab.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds vocab\.txt: set file='vocab\.txt'"):
        build(config, tmp_path)
    with pytest.raises(ConfigError, match="ordinary token"):
        build(TokenizerConfig(kind="clip_bpe", context_length=77, eos_id=1)).encode("a")
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        build(TokenizerConfig(kind="clip_bpe", context_length=77, pad_id=99999)).encode("a")
    with pytest.raises(ConfigError, match="no room"):
        TokenizerConfig(kind="clip_bpe", context_length=2)
