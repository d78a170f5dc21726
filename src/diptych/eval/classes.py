"""Class lists: what the classes of the known data sets are called, in the order of their labels.

- They are data: `assets/classes.json`, made by `recipes/prompts.py`, read when first asked for.
- A list without a protocol in its name is OpenAI's (`data/prompts.md` of openai/CLIP; ImageNet's
  1,000 cleaned names). "clip-benchmark-eurosat" is that library's, where its names or its order
  are others: a label means another class there.
- FER2013 has several names for a class. CLEVR's counts stand in the order 10, 3, 4, ... 9.
- ImageNet-A, -R, -O and ObjectNet have fewer classes than ImageNet: `rows` says which of the 1,000
  each stands for, and `restrict` narrows the scores of a classifier of all 1,000 to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from diptych.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["CLASS_LISTS", "ClassList", "class_list", "restrict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassList:
    """The classes of a data set; the place in `names` is the label.

    Attributes:
        name: as it is typed: "food101", "clip-benchmark-eurosat".
        names: of each class one or more; the first is how it is called.
        source: who published them, and where. licence: of that text.
        sha256: of the classes joined by line feeds, the names of a class by tabs, in UTF-8.
        ids: what the publisher's folders are called: WordNet ids, ObjectNet's words; or ().
        rows: the classes of ImageNet (0 to 999) that each stands for; or ().
    """

    name: str
    names: tuple[tuple[str, ...], ...]
    source: str
    licence: str
    sha256: str
    ids: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()


@cache
def _read() -> dict[str, ClassList]:
    rows = json.loads(resources.files("diptych").joinpath("assets/classes.json").read_text("utf-8"))
    return {row["name"]: _list_of(row) for row in rows}


def _list_of(row: dict) -> ClassList:
    return ClassList(
        name=row["name"],
        names=tuple((n,) if isinstance(n, str) else tuple(n) for n in row["names"]),
        source=row["source"],
        licence=row["licence"],
        sha256=row["sha256"],
        ids=tuple(row.get("ids", ())),
        rows=tuple(tuple(r) for r in row.get("rows", ())),
    )


class _Lists(Mapping[str, ClassList]):
    """The asset by name; importing this module reads nothing."""

    def __getitem__(self, name: str) -> ClassList:
        return _read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read())

    def __len__(self) -> int:
        return len(_read())


CLASS_LISTS: Mapping[str, ClassList] = _Lists()


def class_list(name: str) -> ClassList:
    """A list by its name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in CLASS_LISTS:
        raise ConfigError(
            f"no class list {name!r}. {nearest(name, CLASS_LISTS)} All of them: "
            "python -c 'from diptych.eval.classes import *; print(*CLASS_LISTS)'"
        )
    return CLASS_LISTS[name]


def restrict(scores: Float[Tensor, "n c"], rows: Sequence[Sequence[int]]) -> Float[Tensor, "n k"]:
    """Scores of a classifier of all classes, narrowed to some: the best of each class's rows.

    For models that have no text tower or whose ImageNet classifier is there already. It is the
    rule of ImageNet-A, -R and -O (Hendrycks et al., arXiv 1907.07174, 2006.16241), where a class is
    one row, and of ObjectNet (Barbu et al., NeurIPS 2019), where it is up to four.

    Args:
        rows: `class_list("imagenet-a").rows`.

    Raises:
        DataError: no rows, or a row that the scores do not have.
    """
    if not rows or not all(rows):
        raise DataError("restrict: each class needs at least one row. Give class_list(NAME).rows")
    highest, least = max(map(max, rows)), min(map(min, rows))
    if least < 0 or highest >= scores.shape[1]:
        raise DataError(
            f"restrict: the classes are rows {least} to {highest}, the scores have "
            f"{scores.shape[1]:,} columns: give the scores of all ImageNet classes"
        )
    widest = max(map(len, rows))
    # a short class names its first row again, which changes no maximum
    index = scores.new_tensor([[*r, *[r[0]] * (widest - len(r))] for r in rows]).long()
    return scores[:, index].amax(-1)
