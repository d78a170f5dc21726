"""`clip` as openai/CLIP has it: load, tokenize, available_models.

    from diptych.compat import clip
    model, preprocess = clip.load("ViT-B/32")

What differs, on purpose: float32 on every device; pixels and activation are those that belong to
the weights, whatever file is loaded; `jit=True` is refused; a text cannot spell a control token.
"""

from typing import Any

from diptych.compat.clip import clip, model, simple_tokenizer
from diptych.compat.clip.clip import available_models, load, tokenize
from diptych.compat.clip.model import build_model

__all__ = [
    "available_models",
    "build_model",
    "clip",
    "load",
    "model",
    "simple_tokenizer",
    "tokenize",
]


_PRIVATE = ("_MODELS", "_download")  # which scripts use all the same


def __getattr__(name: str) -> Any:
    if name in _PRIVATE:
        return getattr(clip, name)
    raise AttributeError(f"module 'diptych.compat.clip' has no attribute {name!r}")
