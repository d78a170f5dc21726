"""What a row of the registry is made of: a checkpoint, and where its files come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.zoo.keymaps import Rule
from diptych.zoo.open_clip import WEIGHT_FILES

__all__ = ["Asset", "Golden", "Hub", "Row", "Source", "Url"]


@dataclass(frozen=True, kw_only=True)
class Url:
    """One file at an address.

    sha256: of the file, where the publisher states it; also its first digits, at least 8 of them,
        as the names of open_clip's releases have them.
    """

    url: str
    sha256: str | None = None

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A Hugging Face repository.

    weights: names of the weight file; the first that is there is read. The row says the rest, so
        a cache that another library filled with the weights alone will do.
    beside: what text needs besides (the vocabulary), in the same folder on this machine.
    beside_repo: the repository that has `beside`, if it is another one.
    revision: a branch, a tag, or a commit of 40 hex digits, which pins it.
    sha256: of the first of `weights`, where it is known.
    """

    repo: str
    weights: tuple[str, ...] = WEIGHT_FILES
    beside: tuple[str, ...] = ()
    beside_repo: str | None = None
    revision: str = "main"
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file inside this package."""

    file: str
    sha256: str | None = None


Source = Asset | Hub | Url


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What the publisher printed for an input that anybody can get: how a download is judged.

    image: where the picture lies. sha256: of that file, where it is known.
    texts: the captions. probabilities: of each, as `Encoder.probabilities` has them: the softmax
        over all, or the sigmoid of each alone.
    tolerance: largest difference of a probability that still counts as the same.
    source: who published it, and where.
    """

    image: Url
    texts: tuple[str, ...]
    probabilities: tuple[float, ...]
    tolerance: float = 2e-3
    source: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published checkpoint.

    name: "architecture/tag".
    sources: where its files lie, the preferred one first; the others are for when a host fails.
    rules: a key table; None where the layout is recognised by its content.
    licence: an SPDX name, or the publisher's own words.
    non_commercial: the licence forbids or restricts commercial use.
    metrics: published figures in percent; metrics_source says whose.
    goldens: outputs that the publisher printed.
    notes: traps, one sentence each.
    """

    name: str
    config: CLIPConfig
    preprocess: PreprocessConfig
    tokenizer: TokenizerConfig
    sources: tuple[Source, ...]
    rules: tuple[Rule, ...] | None = None
    licence: str = "MIT"
    non_commercial: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_source: str | None = None
    goldens: tuple[Golden, ...] = ()
    notes: tuple[str, ...] = ()
