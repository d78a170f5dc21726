"""What a vector depends on, as one SHA-256, and a memory of it so that big files are hashed once.

- Tensors enter as fp32 under our names, so a model has one fingerprint in every format and dtype
  that holds it exactly.
- Pixels and tokens enter as their configs do. `crop` counts where there is a crop and `rgb` and
  `fill` where the mode looks at them: a Hugging Face folder, whose processor crops at the floor,
  differs from OpenAI's archive of the same weights, because on odd margins its pixels do.
- The vocabulary enters by the SHA-256 of its file, not its name, where `folder` is given.
- A field at its default does not enter, so that new fields leave old fingerprints alone.
- `config` adds what tensors do not tell: activation, epsilon, heads, pooling.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.errors import CheckpointError
from diptych.zoo.atomic import atomic_write
from diptych.zoo.cache import cache_folder
from diptych.zoo.checkpoint import Checkpoint, check_finite
from diptych.zoo.settings import essence, read_json

__all__ = ["fingerprint", "identify", "sha256_of", "verify"]

Mode = Literal["right", "original"]


def fingerprint(
    state_dict: Mapping[str, Tensor],
    preprocess: PreprocessConfig,
    tokenizer: TokenizerConfig,
    mode: Mode,
    *,
    config: CLIPConfig | None = None,
    folder: Path | None = None,
) -> str:
    """SHA-256 (hex) over sorted (key, dtype, shape, bytes), pixels, tokens and mode."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach()
        if tensor.is_floating_point():
            tensor = tensor.to("cpu", torch.float32)
        tensor = tensor.cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(_canonical(preprocess, tokenizer, mode, config, folder))
    return digest.hexdigest()


def _canonical(
    preprocess: PreprocessConfig,
    tokenizer: TokenizerConfig,
    mode: Mode,
    config: CLIPConfig | None,
    folder: Path | None,
) -> bytes:
    pixels, tokens = essence(preprocess), essence(tokenizer)
    if preprocess.resize != "shortest":
        pixels.pop("crop", None)
    if preprocess.resize != "longest":
        pixels.pop("pad", None)
    pixels.pop("fill" if mode == "original" else "rgb", None)
    if folder is not None and (folder / tokenizer.file).is_file():
        tokens["file"] = sha256_of(folder / tokenizer.file)
    data: dict[str, Any] = {"preprocess": pixels, "tokenizer": tokens, "mode": mode}
    if config is not None:
        data["config"] = essence(config)
    return json.dumps(data, sort_keys=True).encode()


def identify(checkpoint: Checkpoint, mode: Mode) -> str:
    """The fingerprint of a checkpoint, from memory if its files are unchanged.

    The first time the weights are also checked for NaN and infinity; a remembered file has passed.

    Raises:
        CheckpointError: a weight that is not a number.
    """
    extra = _canonical(
        checkpoint.preprocess, checkpoint.tokenizer, mode, checkpoint.config, checkpoint.folder
    )

    def compute() -> str:
        check_finite(checkpoint)
        return fingerprint(
            checkpoint.state_dict,
            checkpoint.preprocess,
            checkpoint.tokenizer,
            mode,
            config=checkpoint.config,
            folder=checkpoint.folder,
        )

    return _remembered(Path(checkpoint.source), b"fingerprint" + extra, compute)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, *sha256: str) -> None:
    """Whether a file is the published one; remembered, so a file is read once for it.

    Args:
        sha256: what it may have: all 64 digits, or the first of them, at least 8.

    Raises:
        CheckpointError: another file; states both hashes.
    """
    found = _remembered(path, b"sha256", lambda: sha256_of(path))
    assert all(len(known) >= 8 for known in sha256)
    if not found.startswith(tuple(known.lower() for known in sha256)):
        raise CheckpointError(
            f"{path}: its SHA-256 is {found}, the published file has {' or '.join(sha256)}. "
            "Remove it to have it fetched again."
        )


def _remembered(path: Path, what: bytes, compute: Any) -> str:
    """`compute()`, or what it was for the same (path, size, mtime, inode) and `what`.

    A cache that cannot be written costs time, never the result.
    """
    key = hashlib.sha256(json.dumps(_stamp(path)).encode() + what).hexdigest()
    memo = cache_folder() / "fingerprints" / f"{key}.json"
    try:
        if memo.is_file():
            found = read_json(memo)
            if isinstance(found, dict) and isinstance(found.get("value"), str):
                return found["value"]
    except (OSError, CheckpointError):
        pass  # an unreadable memo is no memo
    value = compute()
    text = json.dumps({"path": str(path), "value": value}) + "\n"
    with contextlib.suppress(CheckpointError):
        atomic_write(memo, lambda temporary: temporary.write_text(text, "utf-8"))
    return value


def _stamp(path: Path) -> list[tuple[str, int, int, int]]:
    """(path, size, mtime, inode) of a file, or of each file in a folder."""
    path = path.resolve()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files]
    return [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats]
