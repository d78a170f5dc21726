"""SentencePiece, tokenizer.json and WordPiece: layout, control tokens, odd texts, bad files."""

import io
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parent))
from awkward import SPECIALS, captions, texts

from diptych.config import TokenizerConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.tokenizer import build
from diptych.tokenizer.clean import CLEANERS
from diptych.tokenizer.pieces import is_control

MARKERS = ["<mask>", "<start_of_turn>", "<end_of_turn>", "[@BOS@]", "<unused7>"]
SIGLIP = TokenizerConfig(
    kind="sentencepiece", context_length=16, file="spiece.model", clean="canonicalize",
    pad_id=1, bos_id=None, eos_id=1,
)  # fmt: skip
SIGLIP2 = replace(SIGLIP, file="tokenizer.model", clean="lower", pad_id=0)
CLIPA = TokenizerConfig(
    kind="wordpiece", context_length=8, file="vocab.txt", clean="whitespace",
    pad_id=0, bos_id=1, eos_id=0,
)  # fmt: skip


def train(kind: str, **options) -> bytes:
    """A SentencePiece model of a few hundred pieces, trained on made-up captions."""
    model = io.BytesIO()
    lines = [*captions(400), "<h1> _ ! ? . , ; < > [ ] | / sea_waves start of turn"] * 2
    SentencePieceTrainer.train(
        sentence_iterator=iter([line.lower() for line in lines]),
        model_writer=model, vocab_size=500, model_type=kind, hard_vocab_limit=False,
        minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files that the publishers distribute, small."""
    folder = tmp_path_factory.mktemp("vocabularies")
    v1 = train("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(v1)
    gemma = train(
        "bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", byte_fallback=True, add_dummy_prefix=False,
        remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=[*MARKERS, "<h1>", "▁▁"],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(gemma)
    pieces = "[PAD] [CLS] [SEP] [UNK] [MASK] [unused1] a photo of cat dog ##s ##un ##used end text"
    pieces += " unk ! [ ] < > | cls sep mask pad "
    (folder / "vocab.txt").write_text(pieces.replace(" ", "\n"), encoding="utf-8")
    gemma_json().save(str(folder / "tokenizer.json"))
    return folder


def gemma_json() -> Tokenizer:
    """Like Gemma's: `<pad>` and `<mask>` can be built by merges, and `<h1>` is an added token."""
    chars = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz<>/_1!"]
    merges = [
        ("<", "p"),
        ("a", "d"),
        ("ad", ">"),
        ("<p", "ad>"),
        ("<", "m"),
        ("c", "a"),
        ("ca", "t"),
    ]
    vocab = {
        piece: i for i, piece in enumerate(dict.fromkeys(chars + ["".join(m) for m in merges]))
    }
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.add_tokens([AddedToken("<mask>", normalized=False)])
    return tokenizer


def all_configs() -> list[TokenizerConfig]:
    return [SIGLIP, SIGLIP2, replace(SIGLIP2, file="tokenizer.json"), CLIPA]


def test_siglip_rows_end_with_the_same_id_as_their_padding(folder):
    tokenizer = build(SIGLIP, folder)
    ids = tokenizer(["A photo, of a cat!", "", "the dog " * 30])
    plain = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    expected = plain.encode("a photo of a cat")
    assert ids[0].tolist() == expected + [1] * (16 - len(expected))
    assert ids[1].tolist() == [1] * 16
    assert ids[2, -1] == 1 and (ids[2, :-1] != 1).all()
    assert tokenizer.decode(ids[0]) == "a photo of a cat"


def test_siglip2_pads_with_zero_after_its_end(folder):
    for file in ("tokenizer.model", "tokenizer.json"):
        tokenizer = build(replace(SIGLIP2, file=file), folder)
        ids = tokenizer(["A Cat", ""])
        size = len(tokenizer.encode("a cat"))
        assert tokenizer.encode("A Cat") == tokenizer.encode("a cat")
        assert ids[0, size:].tolist() == [1] + [0] * (15 - size)
        assert ids[1].tolist() == [1] + [0] * 15
        assert tokenizer.decode(ids[0]) == "a cat"


def test_clipa_closes_with_padding(folder):
    tokenizer = build(CLIPA, folder)
    a, photo, of, cat = (6 + i for i in range(4))
    ids = tokenizer(["A photo of cats", "cat " * 9])
    assert ids[0].tolist() == [1, a, photo, of, cat, 11, 0, 0]
    assert ids[1].tolist() == [1] + [cat] * 6 + [0]
    assert tokenizer.encode("日") == [3]
    assert tokenizer.decode(ids[0]) == "a photo of cats"


@pytest.mark.parametrize("config", all_configs(), ids=lambda c: c.file)
@pytest.mark.parametrize("clean", ["none", "lower", "whitespace", "canonicalize_hf"])
def test_no_text_becomes_a_control_token(folder, config, clean):
    tokenizer = build(replace(config, clean=clean), folder)
    control = tokenizer.vocabulary.control
    assert {config.pad_id, config.eos_id} <= control
    for text in [*SPECIALS, *MARKERS, " ".join(MARKERS), *texts(1250, seed=8)]:
        assert control.isdisjoint(tokenizer.encode(text)), text
        assert control.isdisjoint(tokenizer.encode(text + "<pad>" + text)), text


def test_markup_that_is_a_piece_stays_one(folder):
    tokenizer = build(SIGLIP2, folder)
    plain = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    h1, turn = plain.piece_to_id("<h1>"), plain.piece_to_id("<start_of_turn>")
    assert plain.encode("x <start_of_turn>").count(turn) == 1  # the hole that is closed here
    assert h1 in tokenizer.encode("<h1> a cat")
    text = "a red  bicycle <h1>, e\u0301"
    assert tokenizer.encode(text) == plain.encode(text)
    assert [is_control(s) for s in ("<h1>", "</s>", "<bos>", "[SEP]", "\n", "▁▁", "<", "a<b>")] == [
        False, False, True, True, False, False, False, False,
    ]  # fmt: skip


def test_cleaning_rules_by_name():
    text = " Sea_Waves,  It's\t&amp; ﬁne "
    assert {name: clean(text) for name, clean in CLEANERS.items()} == {
        "openai": "sea_waves, it's & fine",
        "transformers": " sea_waves, it's &amp; ﬁne ",
        "whitespace": "Sea_Waves, It's & fine",
        "lower": " sea_waves,  it's\t&amp; ﬁne ",
        "canonicalize": "sea waves its amp ﬁne",
        "canonicalize_hf": "seawaves its amp ﬁne",
        "canonicalize_open_clip": "sea waves its fine",
        "none": text,
    }
    assert CLEANERS["canonicalize"]("ΑΣ-Β") == "ασβ"  # punctuation goes before the lower case
    assert CLEANERS["canonicalize_hf"]("ΑΣ-Β") == "αςβ"


@pytest.mark.parametrize("config", all_configs(), ids=lambda c: c.file)
def test_odd_texts_and_pickling(folder, config):
    tokenizer = pickle.loads(pickle.dumps(build(config, folder)))
    for text in ("", "\0", "a\ud83db", "\ud83d\udca9", "x" * 100_000, "a b " * 50_000):
        assert tokenizer(text).shape == (1, config.context_length)
    assert tokenizer([]).shape == (0, config.context_length)
    with pytest.raises(ConfigError, match="belongs to kind='clip_bpe'"):
        tokenizer.encode("a", specials="openai")


def test_bad_files_are_named(folder, tmp_path):
    cut = (folder / "tokenizer.model").read_bytes()[:1000]
    for name, data in (
        ("spiece.model", b"no"),
        ("tokenizer.model", cut),
        ("tokenizer.json", b"{}"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            build(replace(SIGLIP, file=name), tmp_path).encode("a")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="no line '\\[UNK\\]'"):
        build(CLIPA, tmp_path).encode("a")
    with pytest.raises(CheckpointError, match=r"reads \.model and \.json"):
        build(replace(SIGLIP, file="vocab.txt"), tmp_path).encode("a")
    with pytest.raises(ConfigError, match="ordinary token"):
        build(replace(SIGLIP2, eos_id=40), folder).encode("a")
    with pytest.raises(ConfigError, match="needs file="):
        replace(SIGLIP, file="clip")


def test_a_vocabulary_that_cannot_be_made_safe_is_refused(tmp_path):
    data = json.loads(gemma_json().to_str())
    data["model"] = {"type": "WordLevel", "vocab": {"<eos>": 0, "a": 1}, "unk_token": "a"}
    data["added_tokens"] = data["added_tokens"][1:2]
    data["added_tokens"][0]["id"] = 0
    data.update(pre_tokenizer=None, normalizer=None, decoder=None)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="'<eos>' would become its control token 0"):
        build(replace(SIGLIP2, file="tokenizer.json"), tmp_path).encode("a")
