"""Published figures of known weights, and what a measured one is to be said to be beside them.

- The figures are data: `assets/published.json`, and the ImageNet figure of each row of the zoo.
  None of them was measured by this project.
- Anchor on what was measured again (open_clip's tables), not on the paper: its splits are others
  (SUN397 19,850 of 108,754 pictures, RESISC45 25,200 against 6,300). A figure of another number of
  samples is told, not compared.
- "Reproduces" is within 0.1 points of a set of 5,000 samples or more, within 0.3 of a smaller one,
  and half of the last digit that was printed. The same pictures are the same samples, so the
  sampling interval is no excuse for a difference; it is told for copies that may differ.
- KITTI, CLEVR and PCam are near chance for every CLIP: weak anchors, and marked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

from diptych import zoo
from diptych.errors import DataError
from diptych.eval.binomial import wilson

if TYPE_CHECKING:
    from diptych.eval.sets.row import DataSet

__all__ = ["Published", "compare_with_published", "published", "reproduces", "verdicts"]

_LARGE, _TOLERANCE, _SMALL_TOLERANCE = 5000, 0.1, 0.3
_OF_IMAGENET = "imagenet1k_zero_shot"  # the key of the zoo's rows


class _HasValue(Protocol):
    @property
    def value(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One figure that somebody published.

    Attributes:
        set: a name of `eval.sets`. metric: a key of the task's figures.
        value: in percent, as printed.
        digits: how many digits were printed behind the point.
        name: who says it, in few words. source: where it stands.
        protocol: whose splits, prompts and names.
        size: of how many samples; None where that is not known.
        weak: near chance, so an agreement says little.
        note: what is known of it besides.
    """

    set: str
    metric: str
    value: float
    digits: int
    name: str
    source: str
    protocol: str
    size: int | None = None
    weak: bool = False
    note: str = ""


def published(model_name: str, set_name: str) -> tuple[Published, ...]:
    """What is known of a model on a set: re-measured figures first; () if nothing is.

    Args:
        model_name: as `diptych models list` has it: "ViT-B-32/openai".
        set_name: as `diptych eval sets` has it: "imagenet".
    """
    found = list(_read().get((model_name, set_name), ()))
    if set_name == "imagenet":
        found += [p for p in _of_zoo(model_name) if all(p.value != q.value for q in found)]
    return tuple(found)


def reproduces(value: float, n: int, one: Published) -> bool | None:
    """Whether a measured share is the published figure; None where they cannot be compared.

    Args:
        value: in [0, 1]. n: of how many samples.

    Raises:
        DataError: a value that is no share, or no samples.
    """
    if not 0 <= value <= 1 or n < 1:
        raise DataError(
            f"{one.set}: a share in [0, 1] of at least one sample is compared with a published "
            f"figure, got {value!r} of {n}. Divide percentages by 100."
        )
    if one.size is not None and abs(n - one.size) > one.size / 1000:
        return None
    allowed = _tolerance(n) + 0.5 * 10**-one.digits
    return abs(100 * value - one.value) <= allowed + 1e-9


def compare_with_published(value: float, n: int, published: Published) -> str:
    """A sentence: "reproduces 63.32 (open_clip's csv, +-0.1)", "differs by -1.30 from ...".

    Args, Raises: as for `reproduces`.
    """
    same, printed = reproduces(value, n, published), f"{published.value:.{published.digits}f}"
    if same is None:
        return (
            f"not compared with {printed} ({published.name}): that is of {published.size:,} "
            f"samples, this of {n:,}"
        )
    tolerance = f"+-{_tolerance(n)}"
    if same:
        told = f"reproduces {printed} ({published.name}, {tolerance})"
    else:
        low, high = wilson(value, n)
        told = (
            f"differs by {100 * value - published.value:+.2f} from {printed} ({published.name}), "
            f"outside {tolerance}; the sampling interval of {n:,} samples is {100 * low:.2f} to "
            f"{100 * high:.2f}"
        )
    if published.weak:
        told += "; a weak anchor, near chance"
    return told + (f"; {published.note}" if published.note else "")


def verdicts(
    model_name: str, row: DataSet, figures: Mapping[str, _HasValue], n: int
) -> list[dict[str, Any]]:
    """For each published figure of the model on the set that was measured too, what to say.

    Returns:
        JSON-ready: metric, published (percent), source, protocol, reproduces (False too where the
        two cannot be compared, which the sentence says), verdict: the sentence.
    """
    return [
        {
            "metric": one.metric,
            "published": one.value,
            "source": one.source,
            "protocol": one.protocol,
            "reproduces": bool(reproduces(figures[one.metric].value, n, one)),
            "verdict": compare_with_published(figures[one.metric].value, n, one),
        }
        for one in published(model_name, row.name)
        if one.metric in figures
    ]


def _tolerance(n: int) -> float:
    return _TOLERANCE if n >= _LARGE else _SMALL_TOLERANCE


def _of_zoo(model_name: str) -> list[Published]:
    if model_name not in zoo.list_models():
        return []
    row = zoo.get(model_name)
    if _OF_IMAGENET not in row.metrics:
        return []
    source = row.metrics_source or "the registry, which does not say whose it is"
    return [
        Published(
            set="imagenet",
            metric="top1",
            value=row.metrics[_OF_IMAGENET],
            digits=2,
            name=source,
            source=source,
            protocol="as its source has it",
            size=50_000,
        )
    ]


@cache
def _read() -> dict[tuple[str, str], list[Published]]:
    file = resources.files("diptych").joinpath("assets/published.json")
    data = json.loads(file.read_text("utf-8"))
    found: dict[tuple[str, str], list[Published]] = {}
    for row in data["figures"]:
        source = data["sources"][row["source"]]
        for model, value in row["values"].items():
            one = Published(
                set=row["set"],
                metric=row["metric"],
                value=value,
                digits=source["digits"],
                name=source["name"],
                source=source["source"],
                protocol=source["protocol"],
                size=row["size"],
                weak=row.get("weak", False),
                note=row.get("note", ""),
            )
            found.setdefault((model, row["set"]), []).append(one)
    return found
