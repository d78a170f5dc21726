"""Our own file: one safetensors file with everything in it; and the sidecar of foreign folders.

- The header's metadata holds one JSON text: config, pixels, tokens, licence, card, data manifest
  hash, versions. Any safetensors reader can look at it.
- A vocabulary that is not CLIP's travels as a uint8 tensor, `tokenizer.file`: one file is enough,
  it is covered by the file's hash, and nothing is base64. It is unpacked into the cache, in a
  folder named by its SHA-256, because SentencePiece and tokenizers read files.
- In a folder of another publisher's layout, `diptych.json` holds the same JSON and the SHA-256 of
  the settings beside it. It says what they cannot (crop rule, licence) and is ignored, with a note,
  as soon as one of them was edited.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig, from_dict, to_dict
from diptych.errors import CheckpointError
from diptych.towers import families
from diptych.zoo.atomic import atomic_write
from diptych.zoo.cache import RECORD, cache_folder
from diptych.zoo.checkpoint import Checkpoint
from diptych.zoo.settings import read_json

__all__ = ["KEY", "SIDECAR", "VOCABULARY", "Facts", "decode", "encode", "unpack", "with_sidecar"]

KEY = "diptych"
VOCABULARY = "tokenizer.file"
SIDECAR = "diptych.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Facts:
    config: CLIPConfig
    preprocess: PreprocessConfig
    tokenizer: TokenizerConfig
    licence: str | None
    metadata: dict[str, Any]


def encode(checkpoint: Checkpoint, **more: Any) -> str:
    """The JSON text that `decode` reads."""
    data = {
        "format_version": FORMAT_VERSION,
        "diptych_version": version("diptych"),
        "config": to_dict(checkpoint.config),
        "preprocess": to_dict(checkpoint.preprocess),
        "tokenizer": to_dict(checkpoint.tokenizer),
        "licence": checkpoint.licence,
        "metadata": checkpoint.metadata,
        **more,
    }
    return json.dumps(data, indent=1, sort_keys=True)


def decode(text: str, source: str) -> Facts:
    """The facts in a header or sidecar.

    Raises:
        CheckpointError: malformed, or of a later version of the format.
        ConfigError: a config class that no installed package registers.
    """
    families()  # registers the config classes of other packages
    try:
        data = json.loads(text)
        found = data["format_version"]
        if found != FORMAT_VERSION:
            raise CheckpointError(
                f"{source}: format version {found}, this Diptych reads {FORMAT_VERSION}. "
                "Type: pip install --upgrade diptych"
            )
        return Facts(
            config=from_dict(data["config"]),
            preprocess=from_dict(data["preprocess"]),
            tokenizer=from_dict(data["tokenizer"]),
            licence=data["licence"],
            metadata=data["metadata"],
        )
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{source}: its Diptych header is malformed ({error!r}).") from None


def unpack(vocabulary: Tensor, tokenizer: TokenizerConfig) -> Path:
    """Put a file's vocabulary into the cache; the same bytes give the same folder."""
    if vocabulary.dtype != torch.uint8 or vocabulary.ndim != 1:
        raise CheckpointError(f"the tensor {VOCABULARY!r} must be a row of bytes.")
    if Path(tokenizer.file).name != tokenizer.file:
        raise CheckpointError(f"the tokenizer's file {tokenizer.file!r} must be a plain name.")
    data = vocabulary.numpy().tobytes()
    path = cache_folder() / "tokenizers" / hashlib.sha256(data).hexdigest() / tokenizer.file
    if not path.is_file() or path.stat().st_size != len(data):
        atomic_write(path, lambda temporary: temporary.write_bytes(data))
    return path.parent


def sidecar(checkpoint: Checkpoint, folder: Path) -> str:
    """The text of `diptych.json` for the settings that lie in `folder`."""
    return encode(checkpoint, files=_hashes(folder))


def _hashes(folder: Path) -> dict[str, str]:
    names = sorted(p.name for p in folder.glob("*.json") if p.name not in (SIDECAR, RECORD))
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def with_sidecar(found: Checkpoint, folder: Path) -> Checkpoint:
    """`found` with what the sidecar knows better, if nobody edited the settings beside it."""
    path = folder / SIDECAR
    if not path.is_file():
        return found
    facts = decode(path.read_text("utf-8"), str(path))
    files = read_json(path).get("files")
    if files != _hashes(folder):
        note = f"{SIDECAR} is ignored: other settings in this folder were changed after it"
        return replace(found, notes=(*found.notes, note))
    return replace(
        found,
        config=facts.config,
        preprocess=facts.preprocess,
        tokenizer=facts.tokenizer,
        licence=facts.licence,
        metadata=facts.metadata,
        notes=(),
    )
