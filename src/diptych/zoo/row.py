"""What a row of the registry is made of: a checkpoint, and where its files come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.zoo.keymaps import Rule
from diptych.zoo.open_clip import WEIGHT_FILES

__all__ = ["Asset", "Hub", "Row", "Url"]


@dataclass(frozen=True, kw_only=True)
class Url:
    """One file at an address."""

    url: str


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A Hugging Face repository.

    weights: names of the weight file; the first that is there is read. The row says the rest, so
        a cache that another library filled with the weights alone will do.
    beside: what text needs besides (the vocabulary), in the same folder.
    """

    repo: str
    weights: tuple[str, ...] = WEIGHT_FILES
    beside: tuple[str, ...] = ()
    revision: str = "main"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file inside this package."""

    file: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published checkpoint.

    name: "architecture/tag".
    sha256: of the weight file, where the publisher states it.
    rules: a key table; None where the layout is recognised by its content.
    licence: an SPDX name, or the publisher's own words.
    non_commercial: the licence forbids commercial use.
    metrics: published figures in percent; metrics_source says whose.
    notes: traps, one sentence each.
    """

    name: str
    config: CLIPConfig
    preprocess: PreprocessConfig
    tokenizer: TokenizerConfig
    source: Asset | Hub | Url
    sha256: str | None = None
    rules: tuple[Rule, ...] | None = None
    licence: str = "MIT"
    non_commercial: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_source: str | None = None
    notes: tuple[str, ...] = ()
