"""open_clip's names of models and tags, and the registry rows that they mean.

A row is "architecture/tag". "ViT-L/14" is "ViT-L-14"; "-quickgelu" at the end of an architecture
states the activation, which is a row's own here: both spellings mean one row.
"""

from __future__ import annotations

from typing import Any

from diptych.config import CLIPConfig, TextConfig
from diptych.errors import ModelNotFoundError, nearest
from diptych.zoo import Row
from diptych.zoo.architectures import with_act
from diptych.zoo.open_clip_config import model_cfg
from diptych.zoo.registry import rows

__all__ = [
    "architecture",
    "config_of",
    "find_row",
    "get_model_config",
    "list_models",
    "list_openai_models",
    "list_pretrained",
    "list_pretrained_models_by_tag",
    "list_pretrained_tags_by_model",
    "rows_of",
]

QUICK = "-quickgelu"


def architecture(model_name: str) -> tuple[str, bool]:
    """(the architecture in the registry, whether the name asks for QuickGELU)."""
    plain = model_name.replace("/", "-").removesuffix(QUICK)
    return plain, plain != model_name.replace("/", "-")


def _tag(tag: str) -> str:
    return tag.lower().replace("-", "_")


def list_pretrained(as_str: bool = False) -> list[Any]:
    """(model, tag) of each row, or "model:tag"; those with QuickGELU again as "model-quickgelu"."""
    split = [(*name.split("/", 1), row) for name, row in rows().items() if "/" in name]
    pairs = [(model, tag) for model, tag, _ in split]
    pairs += [(model + QUICK, tag) for model, tag, row in split if _is_quick(row.config)]
    return [f"{model}:{tag}" for model, tag in pairs] if as_str else pairs


def list_models() -> list[str]:
    """The architectures."""
    return sorted({model for model, _ in list_pretrained()})


def list_pretrained_models_by_tag(tag: str) -> list[str]:
    """The architectures that have weights of this tag."""
    return [model for model, other in list_pretrained() if _tag(other) == _tag(tag)]


def list_pretrained_tags_by_model(model: str) -> list[str]:
    """The tags of an architecture; none if it is unknown."""
    return [tag for other, tag in list_pretrained() if other == model]


def list_openai_models() -> list[str]:
    """The architectures of OpenAI's own weights."""
    return list_pretrained_models_by_tag("openai")


def rows_of(model_name: str) -> list[Row]:
    """The rows of an architecture.

    Raises:
        ModelNotFoundError: no such architecture.
    """
    plain, _ = architecture(model_name)
    found = [row for name, row in rows().items() if name.split("/")[0] == plain]
    if not found:
        raise ModelNotFoundError(
            f"no architecture is named {model_name!r} here; some families of open_clip are not "
            f"carried yet. {nearest(plain, list_models())} All of them: open_clip.list_models()"
        )
    return found


def find_row(model_name: str, tag: str) -> Row | None:
    """The row of an architecture and a tag."""
    wanted = _tag(tag)
    return next((r for r in rows_of(model_name) if _tag(r.name.partition("/")[2]) == wanted), None)


def config_of(model_name: str, *, quick_gelu: bool = False) -> CLIPConfig:
    """The architecture alone, with GELU, or QuickGELU if asked for or in the name.

    SigLIP's and CLIPA's activation is not changed.
    """
    _, quick = architecture(model_name)
    act = "quick_gelu" if quick or quick_gelu else "gelu"
    return with_act(rows_of(model_name)[0].config, act)


def _is_quick(config: CLIPConfig) -> bool:
    return isinstance(config.text, TextConfig) and config.text.act == "quick_gelu"


def get_model_config(model_name: str) -> dict[str, Any] | None:
    """The architecture in open_clip's own terms; None for a name that is not known.

    Raises:
        ConfigError: open_clip has no word for it.
    """
    plain, _ = architecture(model_name)
    if plain not in list_models():
        return None
    return model_cfg(config_of(model_name), rows_of(model_name)[0].tokenizer)
