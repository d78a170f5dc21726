"""Vocabularies beside weights: which file a folder holds, of what kind, and what we write.

The CLIP vocabulary is in the package; any other is a file that must travel with the weights.
"""

import gzip
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from diptych.config import TokenizerConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.tokenizer.bpe import byte_letters

__all__ = ["SIGLIP_PADDING", "find_vocabulary", "hf_clip_files", "wordpiece"]

Kind = Literal["clip_bpe", "sentencepiece", "wordpiece"]

# Padding by vocabulary, where no file says it: c4_en and mc4 (SigLIP) pad with the end of text,
# Gemma's (SigLIP 2) has a token of its own.
SIGLIP_PADDING = {32_000: 1, 250_000: 1, 256_000: 0}

_FILES: tuple[tuple[str, Kind], ...] = (
    ("spiece.model", "sentencepiece"),
    ("tokenizer.model", "sentencepiece"),
    ("vocab.txt", "wordpiece"),
)
_MODELS: dict[str, Kind] = {"WordPiece": "wordpiece", "Unigram": "sentencepiece"}


def find_vocabulary(folder: Path | None) -> tuple[str | None, Kind | None, list[str]]:
    """(file name, kind, notes) of the vocabulary in a folder; (None, None, a note) if none is."""
    for name, kind in _FILES:
        if folder is not None and (folder / name).is_file():
            return name, kind, []
    if folder is not None and (folder / "tokenizer.json").is_file():
        return "tokenizer.json", _kind_of(folder / "tokenizer.json"), []
    return None, None, ["no tokenizer file: put the publisher's beside the weights to encode text"]


def _kind_of(path: Path) -> Kind:
    """CLIP's and Gemma's files both hold a BPE; CLIP's marks the end of a word."""
    try:
        model = json.loads(path.read_text("utf-8"))["model"]
        kind, suffix = model["type"], model.get("end_of_word_suffix")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is no tokenizer of the tokenizers package ({error})."
        ) from None
    if kind == "BPE":
        return "clip_bpe" if suffix == "</w>" else "sentencepiece"
    if kind not in _MODELS:
        raise ConfigError(f"{path}: tokenizers of the kind {kind!r} cannot be read.")
    return _MODELS[kind]


def wordpiece(context_length: int, file: str, *, strip_sep: bool) -> TokenizerConfig:
    """BERT's uncased WordPiece; CLIPA replaces `[SEP]` (102) by the padding (0)."""
    return TokenizerConfig(
        kind="wordpiece",
        context_length=context_length,
        file=file,
        clean="whitespace",
        pad_id=0,
        bos_id=101,
        eos_id=0 if strip_sep else 102,
    )


@cache
def merges() -> list[str]:
    """CLIP's 48,894 merges, "a b" each, in order."""
    packed = resources.files("diptych").joinpath("assets/clip_bpe.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    return lines[: 49_152 - 256 - 2]


@cache
def clip_vocabulary() -> dict[str, int]:
    """CLIP's tokens as text, with their ids, the way `vocab.json` spells them."""
    letters = list(byte_letters().values())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(merge.split()) for merge in merges()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def hf_clip_files(tokenizer: TokenizerConfig) -> dict[str, str]:
    """The files that `transformers.CLIPTokenizer` reads, made from the embedded vocabulary."""
    vocabulary = clip_vocabulary()
    spelled = {i: token for token, i in vocabulary.items()}
    special: dict[str, Any] = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": spelled[tokenizer.pad_id],
    }
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges()) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
