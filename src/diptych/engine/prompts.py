"""Labels to prompts: the template sets a caller can name."""

from collections.abc import Sequence

from diptych.errors import ConfigError, nearest

__all__ = ["TEMPLATE_SETS", "fill", "templates_of"]

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    # the seven of openai/CLIP's Prompt_Engineering_for_ImageNet.ipynb, in its order
    "openai-7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


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
                f"no prompt set {templates!r}. {nearest(templates, TEMPLATE_SETS)} "
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
