"""SentencePiece, Hugging Face `tokenizer.json` and WordPiece vocabularies, by their own libraries.

- SigLIP: `spiece.model` (32,000 pieces of C4; 250,000 multilingual). SigLIP 2: Gemma's
  `tokenizer.model`, or the `tokenizer.json` of its Hugging Face repositories. CLIPA: BERT's
  `vocab.txt`. A file is recognised by its ending.
- A control token spelled out in a text stays text. SentencePiece never reads its control pieces
  from a text, but it does read "user-defined" ones, and Gemma's `<start_of_turn>` is such a one:
  those are turned into control pieces. In a `tokenizer.json` they are taken out of the list of
  added tokens, and merges or pieces that would build them are removed; then each is tried.
- A character that the vocabulary lacks is still `<unk>` or `[UNK]`, as in the original.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.config import TokenizerConfig
from diptych.errors import CheckpointError
from diptych.tokenizer.bpe import Specials
from diptych.tokenizer.clean import CLEANERS

__all__ = ["JsonVocabulary", "SentencePieceVocabulary", "is_control", "read"]

# Gemma's user-defined pieces that are markup and not control: an HTML text keeps its ids.
_ELEMENTS = (
    "a b blockquote body br caption code div em h1 h2 h3 h4 h5 h6 head hr html i img li ol p pre s "
    "span strong sub sup table tbody td tfoot th thead tr u ul"
)
_MARKUP = frozenset(f"<{slash}{name}>" for name in _ELEMENTS.split() for slash in ("", "/"))
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_USER_DEFINED, _CONTROL = 4, 3  # ModelProto.SentencePiece.Type


def is_control(piece: str) -> bool:
    """Whether a user-defined piece is spelled like control: `<bos>` and `[MASK]`, not `<h1>`."""
    return _MARKER.fullmatch(piece) is not None and piece not in _MARKUP


def read(path: Path, config: TokenizerConfig) -> "SentencePieceVocabulary | JsonVocabulary":
    """The vocabulary in a file.

    Raises:
        CheckpointError: not a vocabulary of the kind that the config and its name say.
    """
    match config.kind, path.suffix:
        case "sentencepiece", ".model":
            return SentencePieceVocabulary(path, config)
        case "sentencepiece" | "wordpiece", ".json":
            return JsonVocabulary(_json_tokenizer(path), path, config)
        case "wordpiece", ".txt":
            return JsonVocabulary(_wordpiece(path), path, config)
    raise CheckpointError(
        f"{path}: kind={config.kind!r} reads .model and .json (sentencepiece) or .txt and .json "
        "(wordpiece)"
    )


class SentencePieceVocabulary:
    """A vocabulary (see `base.Vocabulary`) from a SentencePiece model file."""

    def __init__(self, path: Path, config: TokenizerConfig):
        from sentencepiece import SentencePieceProcessor

        try:
            model = _without_markers(path.read_bytes())
            self.processor = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{path}: not a SentencePiece model ({error}). Download it again."
            ) from error
        self.clean = CLEANERS[config.clean]
        self.size: int = self.processor.get_piece_size()
        self.control = frozenset(filter(self.processor.is_control, range(self.size)))

    def rows(
        self, texts: Sequence[str], *, limit: int | None = None, specials: Specials | None = None
    ) -> list[bytes]:
        encode = self.processor.encode
        return [array("i", encode(self.clean(text))).tobytes() for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids))


class JsonVocabulary:
    """A vocabulary (see `base.Vocabulary`) in the `tokenizers` library."""

    def __init__(self, tokenizer: Any, path: Path, config: TokenizerConfig):
        self.tokenizer, marked = tokenizer
        self.clean = CLEANERS[config.clean]
        self.size: int = self.tokenizer.get_vocab_size()
        self.control = frozenset(marked)

    def rows(
        self, texts: Sequence[str], *, limit: int | None = None, specials: Specials | None = None
    ) -> list[bytes]:
        encode = self.tokenizer.encode  # one by one: `encode_batch` would start threads of its own
        return [
            array("i", encode(self.clean(text), add_special_tokens=False).ids).tobytes()
            for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def _wordpiece(path: Path) -> tuple[Any, set[int]]:
    """BERT's uncased WordPiece (arXiv 1810.04805) from its list of pieces, one a line."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = path.read_text(encoding="utf-8").splitlines()
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    if "[UNK]" not in ids:
        raise CheckpointError(f"{path}: no line '[UNK]'; this is not a WordPiece vocabulary")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    control = {id_ for piece, id_ in ids.items() if is_control(piece) and piece != "[UNK]"}
    return tokenizer, control


def _json_tokenizer(path: Path) -> tuple[Any, set[int]]:
    """A `tokenizer.json` without its control tokens, and their ids."""
    from tokenizers import Tokenizer

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        model, added = data["model"], data["added_tokens"]
        marked = {t["content"]: t["id"] for t in added if t["special"] or is_control(t["content"])}
        data["added_tokens"] = [t for t in added if t["content"] not in marked]
        data.update(post_processor=None, truncation=None, padding=None)
        unknown = model.get("unk_token")
        if model["type"] == "BPE":
            model["merges"] = [m for m in model["merges"] if _merged(m) not in marked]
        if model["type"] == "Unigram":
            names = {i for i in marked.values() if i != model.get("unk_id")}
            # a piece with a space matches no text, whose spaces are "▁" by then
            model["vocab"] = [
                [f" {p} " if i in names else p, s] for i, (p, s) in enumerate(model["vocab"])
            ]
            unknown = (
                model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
            )
        tokenizer = Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer.json ({error!r:.200})") from error
    for token in data["added_tokens"]:
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            raise CheckpointError(f"{path}: added token {token['content']!r} moved to another id")
    control = {piece: id_ for piece, id_ in marked.items() if piece != unknown}
    for piece, id_ in control.items():
        spelled = (piece, f"a {piece} b")
        if any(id_ in tokenizer.encode(x, add_special_tokens=False).ids for x in spelled):
            raise CheckpointError(
                f"{path}: a text that spells {piece!r} would become its control token {id_}"
            )
    return tokenizer, set(control.values())


def _merged(merge: str | list[str]) -> str:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left + right


def _without_markers(model: bytes) -> bytes:
    """A SentencePiece model whose user-defined control symbols cannot be read from a text.

    Works on the protobuf itself (sentencepiece_model.proto): field 1 is a piece, in it 1 is the
    spelling and 3 the type. Only the one byte of the type changes.
    """
    out = bytearray(model)
    for start, end in _fields(model, 0, len(model), number=1):
        piece = next(_fields(model, start, end, number=1), (start, start))
        kind = next(_fields(model, start, end, number=3), None)
        if kind is None or model[kind[0]] != _USER_DEFINED:
            continue
        if is_control(model[slice(*piece)].decode("utf-8", "replace")):
            out[kind[0]] = _CONTROL
    return bytes(out)


def _fields(data: bytes, start: int, end: int, *, number: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the value of each field of this number in a protobuf message."""
    while start < end:
        tag, start = _varint(data, start)
        match tag & 7:
            case 0:
                stop = _varint(data, start)[1]
            case 1:
                stop = start + 8
            case 2:
                size, start = _varint(data, start)
                stop = start + size
            case 5:
                stop = start + 4
            case wire:
                raise ValueError(f"wire type {wire} at byte {start}")
        if stop > end:
            raise ValueError(f"a field ends at byte {stop}, the message at {end}")
        if tag >> 3 == number:
            yield start, stop
        start = stop


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
