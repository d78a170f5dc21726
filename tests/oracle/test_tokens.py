"""Token ids against OpenAI's rules, open_clip, transformers and sentencepiece: none may differ."""

import gzip
import html
import random
import sys
import unicodedata
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import ftfy
import numpy as np
import pytest
import regex

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from awkward import PARTS, SPECIALS, captions, texts
from report import record
from test_pieces import CLIPA, SIGLIP, SIGLIP2, train
from tokenizing_texts import captions as drawn

from diptych import zoo
from diptych.config import TokenizerConfig
from diptych.tokenizer import build
from diptych.tokenizer.clean import CLEANERS
from diptych.zoo.vocabulary import hf_clip_files

OPENAI, SECTION = "rules of openai/CLIP", "Tokens"
CLIP = build(TokenizerConfig(kind="clip_bpe", context_length=77))


@cache
def strings() -> list[str]:
    """24,000 texts: captions, awkward ones, random Unicode, long words."""
    rng = random.Random(0)
    found = captions(4000, seed=10) + list(texts(18_000, seed=11)) + PARTS + SPECIALS
    for size in (41, 50, 90, 200, 500):  # longer than the simple loop takes
        found += ["".join(rng.choices("aeinorst你é", k=size)) for _ in range(100)]
    every = [chr(c) for c in range(0x20000)]
    for start in range(0, len(every), 100):  # every character of the first two planes
        found.append("a".join(every[start : start + 100]))
    return found


class Original:
    """openai/CLIP `simple_tokenizer.py`, rule by rule, without its cache."""

    def __init__(self, path: Path):
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
        printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
        codes = {b: chr(b) for b in printing}
        for b in range(256):
            codes.setdefault(b, chr(256 + len(codes) - len(printing)))
        self.bytes = codes
        vocabulary = [*codes.values(), *(c + "</w>" for c in codes.values())]
        vocabulary += ["".join(merge) for merge in merges]
        vocabulary += ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        self.ranks = {merge: i for i, merge in enumerate(merges)}
        self.plain = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self.special = r"<\|startoftext\|>|<\|endoftext\|>|" + self.plain

    def word(self, token: str) -> list[str]:
        if token in ("<|startoftext|>", "<|endoftext|>"):
            return [token]
        parts = [self.bytes[b] for b in token.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = set(pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, float("inf")))
            if best not in self.ranks:
                break
            merged: list[str] = []
            i = 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return parts

    def encode(self, text: str, *, specials: bool) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        pattern = self.special if specials else self.plain
        words = regex.findall(pattern, text, regex.IGNORECASE)
        return [self.ids[part] for word in words for part in self.word(word)]


@cache
def original() -> Original:
    import open_clip

    return Original(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz")


def differing(ours, theirs, cases: list[str]) -> list[str]:
    return [text for text in cases if list(ours(text)) != list(theirs(text))]


def keep(what: str, wrong: list[str], peer: str) -> None:
    record(SECTION, what, float(len(wrong)), 0.0, peer)
    assert not wrong, f"{len(wrong)} differ; the first is {wrong[0]!r}"


@pytest.mark.parametrize("specials", [False, True], ids=["safe", "specials"])
def test_clip_is_the_original(specials):
    wrong = differing(
        lambda text: CLIP.encode(text, specials="openai" if specials else None),
        lambda text: original().encode(text, specials=specials),
        strings(),
    )
    how = "control tokens honoured" if specials else "control tokens as text"
    keep(f"CLIP, {how}: strings that differ, of {len(strings())}", wrong, OPENAI)


def test_clip_batch_is_the_originals():
    cases = strings()[:4000] + [" ".join(strings()[i : i + 30]) for i in range(0, 20_000, 200)]
    expected = np.zeros((len(cases), 77), np.int64)
    for row, text in zip(expected, cases, strict=True):
        ids = [49406, *original().encode(text, specials=False), 49407]
        if len(ids) > 77:  # clip.tokenize(truncate=True)
            ids = [*ids[:76], 49407]
        row[: len(ids)] = ids
    wrong = (CLIP(cases).numpy() != expected).any(1)
    keep(
        f"CLIP, batches of 77: rows that differ, of {len(cases)}",
        [text for text, bad in zip(cases, wrong, strict=True) if bad],
        OPENAI,
    )


def test_clip_is_open_clips():
    from open_clip.tokenizer import SimpleTokenizer

    peer = SimpleTokenizer()
    wrong = differing(lambda t: CLIP.encode(t, specials="open_clip"), peer.encode, strings())
    keep(f"CLIP: strings that differ, of {len(strings())}", wrong, "open_clip SimpleTokenizer")
    ids = [CLIP.encode(text) for text in strings()[:6000]]
    wrong = [repr(row) for row in ids if CLIP.decode(row, raw=True) != peer.decode(row)]
    keep("CLIP, decoding: strings that differ, of 6000", wrong, "open_clip SimpleTokenizer")


def test_the_benchmarks_captions_are_open_clips():
    """The captions on which speed is measured; every fourth of these is not plain ASCII."""
    from open_clip.tokenizer import SimpleTokenizer

    many = drawn(20_000, foreign=0.25, seed=1)
    differ = (CLIP(many) != SimpleTokenizer()(many)).any(1).tolist()
    wrong = [text for text, bad in zip(many, differ, strict=True) if bad]
    assert sum(not text.isascii() or "&" in text for text in many) > 4500
    what = (
        "CLIP, rows of 77 of the captions of benchmarks/tokenizing.py: rows that differ, of 20000"
    )
    keep(what, wrong, "open_clip SimpleTokenizer")


def test_clip_is_transformers(tmp_path):
    """The files that we write, read by its tokenizer. Left out: what it takes for control tokens,
    and characters newer than this Python's Unicode.
    """
    from transformers import CLIPTokenizer

    config = TokenizerConfig(kind="clip_bpe", context_length=77, clean="transformers", pad_id=49407)
    for name, text in hf_clip_files(config).items():
        (tmp_path / name).write_text(text, "utf-8")
    peer, ours = CLIPTokenizer.from_pretrained(tmp_path), build(config)
    cases = [t for t in no_control() if "<|" not in t and "|>" not in t]
    cases = [t for t in cases if all(unicodedata.category(c) != "Cn" for c in t)]
    wrong = differing(ours.encode, lambda t: peer(t, add_special_tokens=False)["input_ids"], cases)
    assert len(cases) > 16_000
    what = "CLIP in a Hugging Face folder"
    keep(f"{what}: strings that differ, of over 16000", wrong, "transformers")
    rows = cases[:2000]
    padded = peer(rows, padding="max_length", truncation=True, max_length=77)["input_ids"]
    differ = (ours(rows).numpy() != np.array(padded)).any(1)
    wrong = [text for text, bad in zip(rows, differ, strict=True) if bad]
    keep(f"{what}, rows of 77 that differ, of {len(rows)}", wrong, "transformers")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("canonicalize_open_clip", "canonicalize"), ("openai", "lower"), ("whitespace", "whitespace")],
)
def test_cleaning_is_open_clips(ours, theirs):
    from open_clip.tokenizer import get_clean_fn

    wrong = differing(CLEANERS[ours], get_clean_fn(theirs), strings())
    keep(f"Cleaning, {ours}: strings that differ, of {len(strings())}", wrong, "open_clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vocabularies")
    v1 = train("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(v1)
    return folder


@cache
def no_control() -> list[str]:
    """The same without what the peers take for control tokens, and what their types refuse."""
    spelled = regex.compile(r"</?s>|<(un|pad|eo|bo|mask)|<start_of_turn>|\[[A-Z]|▁", regex.I)
    return [regex.sub("[\ud800-\udfff]", "", spelled.sub("x", text)) for text in strings()]


def test_siglip_is_transformers(folder):
    from transformers import SiglipTokenizer

    peer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    ours = build(replace(SIGLIP, clean="canonicalize_hf"), folder)
    cases = no_control()
    expected = peer(cases, padding="max_length", truncation=True, max_length=16)["input_ids"]
    wrong = (ours(cases).numpy() != np.array(expected)).any(1)
    keep(
        f"SigLIP, rows of 16: rows that differ, of {len(cases)}",
        [text for text, bad in zip(cases, wrong, strict=True) if bad],
        "transformers SiglipTokenizer",
    )


def test_siglip2_is_transformers(folder):
    from transformers import Siglip2Tokenizer

    rng = random.Random(1)
    letters = "▁abcdefghijklmnopqrstuvwxyz.,!?'"
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters]
    pieces += [f"<0x{b:02X}>" for b in range(256)]
    merges = []
    while len(merges) < 300:
        pair = (rng.choice(pieces[5:37] + pieces[293:]), rng.choice(pieces[5:37] + pieces[293:]))
        if "".join(pair) not in pieces:
            merges.append(pair)
            pieces.append("".join(pair))
    vocab = {piece: i for i, piece in enumerate(pieces)}
    peer = Siglip2Tokenizer(vocab=vocab, merges=merges, add_bos_token=False, add_eos_token=True)
    peer.padding_side = "right"
    peer.save_pretrained(folder)
    ours = build(replace(SIGLIP2, file="tokenizer.json"), folder)
    # The library lowers a final sigma like any other; the training code (ICU) and Python do not.
    cases = [t for t in no_control() if "Σ" not in t]
    expected = peer(cases, padding="max_length", truncation=True, max_length=16)["input_ids"]
    wrong = (ours(cases).numpy() != np.array(expected)).any(1)
    keep(
        f"SigLIP 2 (tokenizer.json), rows of 16: rows that differ, of {len(cases)}",
        [text for text, bad in zip(cases, wrong, strict=True) if bad],
        "transformers Siglip2Tokenizer",
    )


def test_gemma_model_is_sentencepiece(folder):
    from sentencepiece import SentencePieceProcessor

    model = train(
        "bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True, add_dummy_prefix=False,
        remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["<start_of_turn>", "<h1>", "▁▁"],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model)
    peer = SentencePieceProcessor(model_proto=model)
    ours = build(SIGLIP2, folder)
    cases = no_control()
    wrong = differing(ours.encode, lambda text: peer.encode(text.lower()), cases)
    keep(
        f"SigLIP 2 (tokenizer.model): strings that differ, of {len(cases)}", wrong, "sentencepiece"
    )


def test_clipa_is_open_clips(folder):
    from collections import Counter

    from open_clip.tokenizer import HFTokenizer
    from transformers import BertTokenizer

    cases = no_control()
    counts = Counter(char for text in cases for char in text.lower() if char.isprintable())
    words = Counter(word for text in cases for word in regex.findall(r"[a-z]+", text))
    common = [char for char, _ in counts.most_common(400) if not char.isspace()]
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *common]
    pieces += [f"##{char}" for char in common[:300]]
    pieces += [word for word, _ in words.most_common(300) if len(word) > 1]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    peer = HFTokenizer(str(folder / "bert"), context_length=8, strip_sep_token=True)
    wrong = (build(CLIPA, folder)(cases).numpy() != peer(cases).numpy()).any(1)
    keep(
        f"CLIPA, rows of 8: rows that differ, of {len(cases)}",
        [text for text, bad in zip(cases, wrong, strict=True) if bad],
        "open_clip HFTokenizer",
    )


def test_metaclip2_is_open_clips(folder):
    """XLM-V's layout (<s>, text, </s>, <pad>) with a vocabulary trained here."""
    from open_clip.tokenizer import HFTokenizer
    from sentencepiece import SentencePieceProcessor
    from transformers import XLMRobertaTokenizer

    model = SentencePieceProcessor(model_proto=train("unigram", unk_id=0, bos_id=1, eos_id=2))
    learnt = [(model.id_to_piece(i), model.get_score(i)) for i in range(3, len(model))]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *learnt]
    XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)]).save_pretrained(folder / "xlm")
    row = zoo.get("ViT-H-14-worldwide/metaclip2_worldwide")
    ours = build(replace(row.tokenizer, context_length=16), folder / "xlm")
    peer = HFTokenizer(str(folder / "xlm"), context_length=16)
    cases = no_control()
    wrong = (ours(cases).numpy() != peer(cases).numpy()).any(1)
    keep(
        f"MetaCLIP 2, rows of 16: rows that differ, of {len(cases)}",
        [text for text, bad in zip(cases, wrong, strict=True) if bad],
        "open_clip HFTokenizer",
    )
