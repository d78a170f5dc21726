"""`load` and `build`: from a name, a file or a config to an `Encoder`.

- A name of the registry comes first; a path starts with "/", "." or "~", is a `Path`, or ends in a
  known suffix; "hf:org/name@revision" is a repository of Hugging Face.
- What is not on this machine is fetched, verified and kept in our cache; see `zoo.fetch`.
- Weights stay memory-mapped where the file is fp32; other precisions become fp32 once.
"""

from pathlib import Path

import torch

from diptych import towers, zoo
from diptych.config import (
    CLIPConfig,
    EfficientNetConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.engine.encoder import Encoder
from diptych.engine.runners import Engine
from diptych.errors import ConfigError
from diptych.preprocess import Preprocess
from diptych.preprocess.pipeline import Mode, Pixels

__all__ = ["build", "encoder_of", "load"]

CLIP_VOCAB_SIZE = 49408


def load(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    mode: Mode = "right",
    pixels: Pixels = "exact",
    engine: Engine = "torch",
    cache_dir: str | Path | None = None,
    config: CLIPConfig | str | None = None,
    offline: bool | None = None,
) -> Encoder:
    """A model with everything that belongs to it.

    Args:
        name: a name of `diptych.list_models()`, a checkpoint file or folder of any publisher, or
            "hf:org/name@revision".
        device: "auto", or what torch understands.
        precision: "fp32", "bf16", "fp16", "int8", or "auto": bf16 where the CPU multiplies it
            faster than fp32 and both towers bear it (transformers), fp32 elsewhere.
        mode: "right" honours EXIF, 16 bits and alpha; "original" gives the publisher's pixels.
        pixels: "exact" gives Pillow's bits; "near" and "fast" how far off, `Preprocess` says.
        engine: "torch", or "onnxruntime": fp32 on the CPU by ONNX Runtime, from graphs that are
            exported once into the cache. Extra `export`.
        cache_dir: where weights are kept, in place of $DIPTYCH_CACHE.
        config: for a file of bare weights: a `CLIPConfig`, or the name of the registry's model
            that it belongs to (which brings preprocessing and tokenizer).
        offline: True opens no socket; None: as $DIPTYCH_OFFLINE and $HF_HUB_OFFLINE say.

    Raises:
        ModelNotFoundError: no such model, or its weights are not here and must not be fetched.
        DownloadError: they cannot be fetched; says from where, and why.
        CheckpointError: a file that is not what it claims to be; UnsafeFileError if it holds code.
    """
    checkpoint = zoo.open_model(name, cache_dir=cache_dir, config=config, offline=offline)
    return encoder_of(
        checkpoint,
        name=str(name),
        device=device,
        precision=precision,
        mode=mode,
        pixels=pixels,
        engine=engine,
    )


def encoder_of(
    checkpoint: zoo.Checkpoint,
    *,
    name: str,
    device: str | torch.device = "auto",
    precision: str = "auto",
    mode: Mode = "right",
    pixels: Pixels = "exact",
    engine: Engine = "torch",
) -> Encoder:
    """The encoder of a checkpoint that has been read.

    Raises:
        CheckpointError: a weight that is not a number.
    """
    fingerprint = zoo.identify(checkpoint, mode)
    model = towers.outline(checkpoint.config)
    weights = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in checkpoint.state_dict.items()
    }
    model.load_state_dict(weights, assign=True)
    return Encoder(
        model,
        config=checkpoint.config,
        preprocess=Preprocess(checkpoint.preprocess, mode, pixels=pixels),
        tokenizer=checkpoint.tokenizer,
        folder=checkpoint.folder,
        device=device,
        precision=precision,
        engine=engine,
        card=checkpoint.card(name),
        fingerprint=fingerprint,
    )


def build(
    config_or_name: CLIPConfig | str,
    seed: int = 0,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    mode: Mode = "right",
    preprocess: PreprocessConfig | None = None,
    tokenizer: TokenizerConfig | None = None,
) -> Encoder:
    """An encoder with the original's random starting values: for training, tests and timing.

    Args:
        config_or_name: a config, or a model of the registry, whose preprocessing and tokenizer it
            takes.
        seed: of the starting values; torch's own generator is left as it was.
        preprocess, tokenizer: for a config; by default its family's.
    """
    if isinstance(config_or_name, str):
        row = zoo.get(config_or_name)
        config, name = row.config, f"{row.name} (random weights)"
        preprocess, tokenizer = preprocess or row.preprocess, tokenizer or row.tokenizer
    elif isinstance(config_or_name, CLIPConfig):
        config, name = config_or_name, "random weights"
        preprocess = preprocess or _default_preprocess(config)
        tokenizer = tokenizer or _default_tokenizer(config)
    else:
        kind = type(config_or_name).__name__
        raise ConfigError(f"build takes a CLIPConfig or a model's name, got a {kind}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = towers.build(config)
    return Encoder(
        model,
        config=config,
        preprocess=Preprocess(preprocess, mode),
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        card={"name": name, "seed": seed},
    )


def _default_preprocess(config: CLIPConfig) -> PreprocessConfig:
    if isinstance(config.visual, ViTConfig | ResNetConfig | EfficientNetConfig):
        return PreprocessConfig(size=config.visual.image_size)
    raise ConfigError(f"give preprocess=: nothing is known of {type(config.visual).__name__}")


def _default_tokenizer(config: CLIPConfig) -> TokenizerConfig:
    text = config.text
    if isinstance(text, TextConfig) and text.vocab_size == CLIP_VOCAB_SIZE:
        return TokenizerConfig(kind="clip_bpe", context_length=text.context_length)
    raise ConfigError("give tokenizer=: only CLIP's vocabulary of 49,408 is in the package")
