"""Effective robustness: how far a model is above what its ImageNet accuracy would let one expect.

rho = acc_shift - beta(acc_ImageNet); beta is a line, fitted by least squares between the logits of
both accuracies over models that were trained on ImageNet alone (Taori et al., arXiv 2007.00644,
section 2.1 and appendix). Such models lie on the line, so their rho is near 0.

- The 39 models of the line are data, `assets/robustness.json`: figures of timm's results tables,
  from 58 to 77 % and from 82 to 84 % on ImageNet. Outside that the line is carried on.
- ImageNet-A was chosen to fool a ResNet-50 (its figure is 0 by construction, and is left out), so
  weaker models are near 0 too and the line fits badly: 4 points of spread, against 0.3 on V2. A rho
  is told with that spread; less than two of them is nothing.
- The accuracy on ImageNet is that over all 1,000 classes. For R and A the source also has it over
  their 200 classes alone: `same_classes=True` fits to that, and wants it of the model too.
- No table of supervised models for ObjectNet and ImageNet-O was found: there is no line for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from diptych.engine.page import text
from diptych.errors import ConfigError, DataError, nearest
from diptych.eval.chart import Dots, scatter

__all__ = ["SHIFTS", "Line", "effective_robustness", "line_of", "robustness_section"]

# title and the column of the accuracy on the same classes
SHIFTS: Mapping[str, tuple[str, str]] = {
    "imagenet-v2": ("ImageNet-V2", "imagenet"),
    "imagenet-sketch": ("ImageNet-Sketch", "imagenet"),
    "imagenet-r": ("ImageNet-R", "imagenet as r"),
    "imagenet-a": ("ImageNet-A", "imagenet as a"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """logit(y) = slope * logit(x) + intercept, and the models that it was fitted to.

    Attributes:
        spread: root mean square of (y - line) over them, in [0, 1].
        points: (model, accuracy on ImageNet, accuracy on the shift), in (0, 1).
    """

    shift: str
    slope: float
    intercept: float
    spread: float
    points: tuple[tuple[str, float, float], ...]

    def at(self, accuracy: float) -> float:
        """What a model trained on ImageNet alone would reach on the shift."""
        return _share(self.slope * _logit(accuracy) + self.intercept)


def line_of(shift: str, *, same_classes: bool = False) -> Line:
    """The line of a shift.

    Raises:
        ConfigError: there is no line for this set.
    """
    if shift not in SHIFTS:
        raise ConfigError(
            f"no supervised models are known for {shift!r}. {nearest(shift, SHIFTS)} Lines are "
            f"there for {', '.join(SHIFTS)}."
        )
    return _fit(shift, SHIFTS[shift][1] if same_classes else "imagenet")


def effective_robustness(
    imagenet: float, shifted: float, shift: str, *, same_classes: bool = False
) -> float:
    """rho in [-1, 1]: above 0 the model is more robust than its ImageNet accuracy foretells.

    Args:
        imagenet: accuracy on ImageNet's validation set, in (0, 1).
        shifted: accuracy on the shift, in [0, 1].
        shift: "imagenet-v2", "imagenet-sketch", "imagenet-r" or "imagenet-a".
        same_classes: `imagenet` is over the 200 classes of R or A alone.

    Raises:
        ConfigError: no line for this set. DataError: an accuracy outside its range.
    """
    if not 0 < imagenet < 1 or not 0 <= shifted <= 1:
        raise DataError(
            f"effective robustness: accuracies are shares, ImageNet's above 0 and below 1; got "
            f"{imagenet!r} and {shifted!r}. Divide percentages by 100."
        )
    return shifted - line_of(shift, same_classes=same_classes).at(imagenet)


def robustness_section(values: Mapping[str, float]) -> str:
    """A part of the report: a picture for each shift that was measured beside ImageNet, or "".

    Args:
        values: top-1 in [0, 1] by name of the set.
    """
    imagenet = values.get("imagenet")
    shifts = [shift for shift in SHIFTS if shift in values]
    if imagenet is None or not 0 < imagenet < 1 or not shifts:
        return ""
    figures, rows = [], []
    for shift in shifts:
        line, value = line_of(shift), values[shift]
        rho, spread = value - line.at(imagenet), 100 * line.spread
        figures.append(_picture(line, imagenet, value))
        rows.append(
            f"<tr><td>{text(SHIFTS[shift][0])}</td><td>{value:.1%}</td>"
            f"<td>{line.at(imagenet):.1%}</td><td><b>{100 * rho:+.1f}</b></td>"
            f"<td>{spread:.1f}</td></tr>"
        )
    return (
        "<h2>Effective robustness</h2><p>Points above what supervised models of the same ImageNet "
        f"accuracy ({imagenet:.1%}, all 1,000 classes) reach; {len(_read())} such models of "
        "timm's tables, fitted between logits (arXiv 2007.00644). Less than two spreads is "
        "nothing.</p><table><thead><tr><th>shift</th><th>accuracy</th><th>expected</th>"
        f"<th>effective robustness</th><th>spread</th></tr></thead><tbody>{''.join(rows)}</tbody>"
        f'</table><div class="side">{"".join(figures)}</div>'
    )


def _picture(line: Line, imagenet: float, shifted: float) -> str:
    lowest = min(imagenet, *(x for _, x, _ in line.points))
    highest = max(imagenet, *(x for _, x, _ in line.points))
    steps = [lowest + (highest - lowest) * i / 80 for i in range(81)]
    return scatter(
        [
            Dots(
                name="trained on ImageNet alone",
                points=[(100 * x, 100 * y, name) for name, x, y in line.points],
            ),
            Dots(
                name="this model",
                points=[(100 * imagenet, 100 * shifted, "this model")],
                large=True,
            ),
        ],
        title=f"{SHIFTS[line.shift][0]} against ImageNet",
        x_name="top-1 on ImageNet in %",
        y_name=f"top-1 on {SHIFTS[line.shift][0]} in %",
        line=[(100 * x, 100 * line.at(x)) for x in steps],
        line_name="what ImageNet accuracy foretells",
    )


@cache
def _fit(shift: str, column: str) -> Line:
    points = tuple(
        (row["model"], row[column] / 100, row[shift] / 100) for row in _read() if row[shift] > 0
    )
    xs, ys = [_logit(x) for _, x, _ in points], [_logit(y) for _, _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    slope /= sum((x - mean_x) ** 2 for x in xs)
    intercept = mean_y - slope * mean_x
    errors = [y - _share(slope * _logit(x) + intercept) for _, x, y in points]
    spread = math.sqrt(sum(e * e for e in errors) / len(errors))
    return Line(shift=shift, slope=slope, intercept=intercept, spread=spread, points=points)


@cache
def _read() -> list[dict[str, Any]]:
    file = resources.files("diptych").joinpath("assets/robustness.json")
    return json.loads(file.read_text("utf-8"))["points"]


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _share(logit: float) -> float:
    small = math.exp(-abs(logit))  # never overflows
    return (1 if logit > 0 else small) / (1 + small)
