"""Write a checkpoint in any of the four layouts, whole or not at all, so that peers can load it."""

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diptych.config import EfficientNetConfig, TokenizerConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.zoo import align, hugging_face, keymaps, native, open_clip_config, openai
from diptych.zoo.atomic import atomic_folder, atomic_write
from diptych.zoo.checkpoint import Checkpoint, Format, check_finite, check_shapes
from diptych.zoo.int8 import quantise
from diptych.zoo.keymaps import restore
from diptych.zoo.vocabulary import hf_clip_files

__all__ = ["save", "write"]


def write(
    checkpoint: Checkpoint, path: str | Path, *, format: Format, int8: Collection[str] = ()
) -> None:
    """Write `checkpoint` to `path`: a file for "diptych" and "openai", a folder for the others.

    Args:
        int8: names of the tensors to store in 8 bits a weight (format "diptych"; `zoo.int8`).

    Raises:
        ConfigError: the layout cannot state the config, the pixels or the tokens; names the field.
        CheckpointError: weights that are not finite or not of the config; or the system refused.
    """
    path = Path(path)
    if int8 and format != "diptych":
        raise ConfigError(f"format {format!r} has no 8-bit weights. Save with format='diptych'.")
    check_shapes(checkpoint.state_dict, checkpoint.config, source=checkpoint.source or str(path))
    check_finite(checkpoint)
    match format:
        case "diptych":
            _write_native(checkpoint, path, int8)
        case "openai":
            tensors = openai.state_dict_for(
                checkpoint.state_dict, checkpoint.config, checkpoint.preprocess
            )
            _embedded_only(checkpoint.tokenizer, "OpenAI's layout")
            atomic_write(path, lambda temporary: torch.save(tensors, temporary))
        case "open_clip":
            _write_open_clip(checkpoint, path)
        case "hf":
            _write_hf(checkpoint, path)
        case other:
            raise ConfigError(
                f"format must be 'diptych', 'openai', 'open_clip' or 'hf', got {other!r}"
            )


def save(encoder: Any, path: str | Path, *, format: Format = "diptych") -> None:
    """Write an `Encoder`: its fp32 weights and all that belongs to them.

    Raises: as `write`.
    """
    card = dict(encoder.card)
    write(
        Checkpoint(
            state_dict={k: v.detach().cpu() for k, v in encoder.model.state_dict().items()},
            config=encoder.config,
            preprocess=encoder.preprocess.config,
            tokenizer=encoder.tokenizer_config,
            folder=encoder.folder,
            licence=card.get("licence"),
            metadata=card,
        ),
        path,
        format=format,
    )


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous and no two in one storage, as safetensors asks."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        tensor = tensor.contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        start = tensor.untyped_storage().data_ptr()
        out[key] = tensor if whole and start not in seen else tensor.clone()
        seen.add(start)
    return out


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(_separate(tensors), path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:  # a full disk, which callers know as an OSError
        raise OSError(str(error)) from error
    _sort_header(path)


def _sort_header(path: Path) -> None:
    """Put the header's metadata in order: safetensors writes it in another one each time, and the
    same model should give the same bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the same header, in the same spelling"
        file.seek(8)
        file.write(text.ljust(size))


def _write_native(checkpoint: Checkpoint, path: Path, int8: Collection[str]) -> None:
    tensors = quantise(checkpoint.state_dict, int8)
    if (vocabulary := _vocabulary(checkpoint)) is not None:
        data = bytearray(vocabulary.read_bytes())
        tensors[native.VOCABULARY] = torch.frombuffer(data, dtype=torch.uint8)
        name = vocabulary.name
        checkpoint = replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, file=name))
    header = {native.KEY: native.encode(checkpoint)}
    atomic_write(path, lambda temporary: _save_tensors(tensors, temporary, header))


def _vocabulary(checkpoint: Checkpoint) -> Path | None:
    """The vocabulary's file, if it is not the embedded one."""
    name = checkpoint.tokenizer.file
    if name == "clip":
        return None
    path = None if checkpoint.folder is None else checkpoint.folder / name
    if path is None or not path.is_file():
        raise CheckpointError(
            f"the vocabulary {name!r} is not in {checkpoint.folder}: a model without it cannot "
            "encode text. Put the publisher's file there."
        )
    return path


def _embedded_only(tokenizer: TokenizerConfig, layout: str) -> None:
    default = TokenizerConfig(kind="clip_bpe", context_length=tokenizer.context_length)
    if tokenizer != default:
        raise ConfigError(f"{layout} cannot state {tokenizer}. Save with format='diptych'.")


def _write_open_clip(checkpoint: Checkpoint, path: Path) -> None:
    text = open_clip_config.dump(checkpoint.config, checkpoint.preprocess, checkpoint.tokenizer)
    tensors = restore(checkpoint.state_dict, open_clip_config.rules_for(checkpoint.config))
    with atomic_folder(path) as folder:
        _save_tensors(tensors, folder / "open_clip_model.safetensors", {})
        (folder / "open_clip_config.json").write_text(text, "utf-8")
        _finish_folder(checkpoint, folder)


def _write_hf(checkpoint: Checkpoint, path: Path) -> None:
    siglip = checkpoint.config.loss == "sigmoid"
    dtypes = {str(t.dtype) for t in checkpoint.state_dict.values() if t.is_floating_point()}
    dtype = dtypes.pop().removeprefix("torch.") if len(dtypes) == 1 else "float32"
    if isinstance(checkpoint.config.visual, EfficientNetConfig):
        config = align.write_config(checkpoint.config, dtype)
        pixels, rules = align.write_preprocess(checkpoint.preprocess), keymaps.HF_ALIGN
    else:
        config = hugging_face.write_config(checkpoint.config, dtype)
        pixels = hugging_face.write_preprocess(checkpoint.preprocess, siglip=siglip)
        rules = keymaps.HF_SIGLIP if siglip else keymaps.HF_CLIP
    tensors = restore(checkpoint.state_dict, rules)
    with atomic_folder(path) as folder:
        _save_tensors(tensors, folder / "model.safetensors", {})
        (folder / "config.json").write_text(hugging_face.dump(config), "utf-8")
        (folder / "preprocessor_config.json").write_text(hugging_face.dump(pixels), "utf-8")
        if checkpoint.tokenizer.kind == "clip_bpe":
            for name, text in hf_clip_files(checkpoint.tokenizer).items():
                (folder / name).write_text(text, "utf-8")
        _finish_folder(checkpoint, folder)


def _finish_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizer's files, then the sidecar, which holds the hash of each settings file."""
    if (vocabulary := _vocabulary(checkpoint)) is not None:
        shutil.copyfile(vocabulary, folder / vocabulary.name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
            if (vocabulary.parent / name).is_file() and not (folder / name).exists():
                shutil.copyfile(vocabulary.parent / name, folder / name)
    (folder / native.SIDECAR).write_text(native.sidecar(checkpoint, folder), "utf-8")
