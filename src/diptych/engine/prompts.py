"""Labels to prompts: the template sets a caller can name, with where they come from.

- The sets are data: `assets/prompts.json`, made by `recipes/prompts.py`, read when first asked for.
- A name says whose protocol and which data set: "openai-food101", "clip-benchmark-eurosat",
  "coop-dtd"; "openai-80" and "openai-7" are ImageNet's; "pets", "satellite", "texture", "action",
  "food" and "medical" are for pictures of one kind.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from diptych.errors import ConfigError, nearest

__all__ = ["PROMPT_SETS", "TEMPLATE_SETS", "PromptSet", "fill", "templates_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Templates in the publisher's order.

    Attributes:
        name: as it is typed.
        templates: each with "{}" where the label goes.
        source: who published them, and where. licence: of that text.
        sha256: of the templates joined by line feeds, in UTF-8.
    """

    name: str
    templates: tuple[str, ...]
    source: str
    licence: str
    sha256: str


@cache
def _read() -> dict[str, PromptSet]:
    rows = json.loads(resources.files("diptych").joinpath("assets/prompts.json").read_text("utf-8"))
    return {row["name"]: PromptSet(**row | {"templates": tuple(row["templates"])}) for row in rows}


class _Sets(Mapping[str, PromptSet]):
    """The asset by name; importing this module reads nothing."""

    def __getitem__(self, name: str) -> PromptSet:
        return _read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read())

    def __len__(self) -> int:
        return len(_read())


class _Templates(Mapping[str, tuple[str, ...]]):
    """The templates alone."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return _read()[name].templates

    def __iter__(self) -> Iterator[str]:
        return iter(_read())

    def __len__(self) -> int:
        return len(_read())


PROMPT_SETS: Mapping[str, PromptSet] = _Sets()
TEMPLATE_SETS: Mapping[str, tuple[str, ...]] = _Templates()


def templates_of(templates: str | Sequence[str] | None) -> tuple[str, ...]:
    """The templates behind None (labels as given), a set's name, or a list of templates.

    Raises:
        ConfigError: an unknown set, an empty list, or a template without "{}".
    """
    if templates is None:
        return ("{}",)
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            raise ConfigError(
                f"no prompt set {templates!r}. {nearest(templates, TEMPLATE_SETS)} All of them: "
                "python -c 'from diptych.engine.prompts import *; print(*TEMPLATE_SETS)'. "
                "A template of your own goes in a list: templates=['a sketch of a {}.']"
            )
        return TEMPLATE_SETS[templates]
    if not templates:
        raise ConfigError("templates is an empty list. Give None for the labels as they are.")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(f"template {template!r} has no '{{}}' where the label goes")
    return tuple(templates)


def fill(template: str, label: str) -> str:
    """The template with each "{}" replaced; braces in a label stay as they are."""
    return template.replace("{}", label)
