"""CLIP as a whole system: two towers that meet in one embedding space.

    import diptych
    enc = diptych.load("ViT-B-32/openai")
    enc.classify("photo.jpg", ["a cat", "a dog"])

Nothing heavy is imported until one of these names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych import compat, eval, judge, search, zoo
    from diptych.engine import Batch, Encoder, build, load
    from diptych.zoo import list_models

__all__ = [
    "Batch",
    "Encoder",
    "build",
    "compat",
    "eval",
    "judge",
    "list_models",
    "load",
    "search",
    "zoo",
]

_ROOMS = ("compat", "eval", "judge", "search", "zoo")
_WHERE = {
    "Batch": "diptych.engine",
    "Encoder": "diptych.engine",
    "build": "diptych.engine",
    "list_models": "diptych.zoo",
    "load": "diptych.engine",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("diptych")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"diptych.{name}")
    raise AttributeError(f"module 'diptych' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
