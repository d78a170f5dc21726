"""Two models on the same samples: is the difference more than chance?

- Paired: both were asked the same questions, so only those count that one got right and the other
  wrong (McNemar's exact test); the interval of the difference is Newcombe's for pairs.
- Many sets are many tests: p-values are also given as Holm (1979) corrects them.
- Figures under different protocols or on different samples are not compared, and it is said why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.errors import DataError
from diptych.eval.run import read_report
from diptych.eval.uncertainty import mcnemar, paired_interval

__all__ = ["compare", "holm", "items_of"]

_FIGURE = {
    "classification": "top1",
    "multilabel": "the best label is true",
    "retrieval": "image to text R@1",
    "choice": "chosen right",
}


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Two folders of `diptych eval run`.

    Returns:
        {"first", "second": the models, "sets": [{"set", "figure", "num", "first", "second",
        "difference", "low", "high", "only_first", "only_second", "p", "p_holm"}], "mean": of the
        differences, "not_compared": [{"set", "reason"}]}.

    Raises:
        DataError: a folder without a report, or no set that both have.
    """
    a, b = read_report(first), read_report(second)
    of_a = {result["set"]: result for result in a["sets"]}
    of_b = {result["set"]: result for result in b["sets"]}
    compared, left_out = [], []
    for name in sorted(of_a | of_b):
        if name not in of_a or name not in of_b:
            lacking = first if name not in of_a else second
            left_out.append({"set": name, "reason": f"{lacking} does not have it"})
        elif reason := _differ(of_a[name]["protocol"], of_b[name]["protocol"]):
            left_out.append({"set": name, "reason": reason})
        else:
            items = [items_of(folder / "sets" / name) for folder in (first, second)]
            compared.append(_pair(of_a[name], items))
    if not compared:
        told = [f"{line['set']}: {line['reason']}" for line in left_out]
        more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
        raise DataError(
            f"{first} and {second} have no set that can be compared. "
            f"{'; '.join(told[:3]) or 'Both are empty'}{more}."
        )
    for line, p in zip(compared, holm([line["p"] for line in compared]), strict=True):
        line["p_holm"] = p
    return {
        "first": a["model"],
        "second": b["model"],
        "sets": compared,
        "mean": float(np.mean([line["difference"] for line in compared])),
        "not_compared": left_out,
    }


def _differ(a: dict[str, Any], b: dict[str, Any]) -> str:
    keys = [key for key in a if a[key] != b.get(key)]
    return f"the protocols differ in {', '.join(keys)}" if keys else ""


def items_of(folder: Path) -> dict[str, np.ndarray]:
    """ "key" and "right" of each sample, out of a set's folder. Raises DataError."""
    path = folder / "items.npz"
    try:
        with np.load(path, allow_pickle=False) as opened:
            return {key: opened[key] for key in ("key", "right")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Run the evaluation again.") from error


def _pair(result: dict[str, Any], items: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """A sample that one of the two could not read is in neither's figure here."""
    _, rows_a, rows_b = np.intersect1d(items[0]["key"], items[1]["key"], return_indices=True)
    a, b = (torch.tensor(x["right"][r]) for x, r in zip(items, (rows_a, rows_b), strict=True))
    low, high, _ = paired_interval(a, b)
    gain = b.double() - a.double()
    return {
        "set": result["set"],
        "figure": _FIGURE[result["protocol"]["task"]],
        "num": len(gain),
        "first": float(a.double().mean()),
        "second": float(b.double().mean()),
        "difference": float(gain.mean()),
        "low": low,
        "high": high,
        "only_first": int((a & ~b).sum()),
        "only_second": int((b & ~a).sum()),
        "p": mcnemar(a, b),
    }


def holm(values: list[float]) -> list[float]:
    """p-values, corrected: below alpha, with a chance of at most alpha that any of them errs."""
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected.tolist()
