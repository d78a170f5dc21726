"""By which convention a caption is scored, and what the figure is then called: `judge.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diptych.errors import ConfigError

__all__ = ["Convention", "Long", "Rule"]

Convention = Literal["clipscore", "torchmetrics"]
Long = Literal["cut", "windows"]

DEFINED_FOR = "ViT-B-32/openai"
PREFIX = "A photo depicts "


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How a pair is scored.

    Attributes:
        convention, long: see `judge.score`.
        clip_references: whether the largest cosine to a reference is clipped at 0 (the paper), or
            not (its code).
    """

    convention: Convention = "clipscore"
    long: Long = "cut"
    clip_references: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("convention", self.convention, ("clipscore", "torchmetrics")),
            ("long", self.long, ("cut", "windows")),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    @property
    def prefix(self) -> str:
        match self.convention:
            case "clipscore":
                return PREFIX
            case "torchmetrics":
                return ""

    def of_cosine(self, cosine: float) -> float:
        """The score of one pair."""
        match self.convention:
            case "clipscore":
                return 2.5 * max(cosine, 0.0)
            case "torchmetrics":
                return 100 * cosine

    def title(self, model: str) -> str:
        """What the figure is called."""
        match self.convention:
            case "clipscore":
                name = "CLIPScore" if model == DEFINED_FOR else f"CLIP score of {model}"
            case "torchmetrics":
                name = f"CLIP score of {model} as torchmetrics has it"
        return f"{name}, long captions in windows" if self.long == "windows" else name
