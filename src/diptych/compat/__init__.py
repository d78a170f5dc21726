"""Look-alikes of openai/CLIP and open_clip: people's scripts run unchanged but for the import.

    from diptych.compat import clip
    from diptych.compat import open_clip

- The peers' semantics: features are not normalised, module trees and state dicts have their names.
- Arithmetic is float32 everywhere, on a GPU too; `clip.model.convert_weights(model)` makes it fp16.
- Where a peer computes something wrong in silence, we do what is right and say so there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.compat import clip, open_clip

__all__ = ["clip", "open_clip"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"diptych.compat.{name}")
    raise AttributeError(f"module 'diptych.compat' has no attribute {name!r}")
