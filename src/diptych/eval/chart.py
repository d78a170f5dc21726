"""Curves as inline SVG: no script, in the colours of the page, light and dark.

- A curve of more points than the picture has columns is drawn as the mean of each column, with the
  range from least to most behind it: a spike is never lost.
- Values that are not finite leave a gap and are counted beneath.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diptych.engine.page import text
from diptych.errors import DataError

__all__ = ["Curve", "Dots", "chart", "is_wide", "number", "scatter", "ticks"]

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 26, 14, 34
COLUMNS = 240  # of the means
# Okabe and Ito's palette, which people with colour blindness tell apart; dark and light enough for
# both surroundings.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: y over x, both of one length; y may hold None or NaN, where the line breaks."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Points of one kind: (x, y, what it is); `large` for the few that the picture is about."""

    name: str
    points: Sequence[tuple[float, float, str]]
    large: bool = False


def chart(
    curves: Sequence[Curve],
    *,
    title: str,
    unit: str = "",
    scale: Literal["linear", "log", "auto"] = "linear",
    level: tuple[str, float] | None = None,
    zero: bool = False,
    x_name: str = "step",
) -> str:
    """A figure with its legend; "" if there is nothing finite to draw.

    Args:
        scale: of y. auto: log where all values are above 0 and the largest is 20 times the least.
        level: the name and the height of a dashed line.
        zero: the axis starts at 0 (linear only).
    """
    drawn = [(curve, points) for curve in curves if (points := _points(curve))]
    if not drawn:
        return ""
    ys = [y for _, p in drawn for _, y in p] + ([level[1]] if level else [])
    log = scale == "log" or (scale == "auto" and is_wide(ys))
    axis_y = _Axis.over(ys, log=log and min(ys) > 0, zero=zero)
    xs = [x for _, p in drawn for x, _ in p]
    axis_x = _Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, False)
    parts = [_grid(axis_x, axis_y, x_name)]
    if level:
        parts.append(_level(axis_y, *level))
    for i, (curve, _) in enumerate(drawn):
        parts.append(_line(curve, axis_x, axis_y, COLOURS[i % len(COLOURS)]))
    lost = sum(y is not None and not math.isfinite(y) for c in curves for y in c.y)
    notes = ["logarithmic"] if axis_y.log else []
    notes += [f"not finite: {lost:,}"] if lost else []
    return _figure(f"{title}{f' ({unit})' if unit else ''}", parts, _legend(drawn), notes)


def scatter(
    dots: Sequence[Dots],
    *,
    title: str,
    x_name: str,
    y_name: str,
    line: Sequence[tuple[float, float]] = (),
    line_name: str = "",
) -> str:
    """A figure of points and a line through them; "" if there is no point.

    Each point says what it is when the pointer rests on it.

    Args:
        line: its corners, from left to right; beyond the points it is not drawn.

    Raises:
        DataError: a number that is not finite.
    """
    everything = [(x, y) for group in dots for x, y, _ in group.points]
    if not all(math.isfinite(v) for point in (*everything, *line) for v in point):
        raise DataError(f"{title}: a point is not finite")
    if not everything:
        return ""
    axis_x = _Axis.over([x for x, _ in everything], log=False, zero=False)
    axis_y = _Axis.over([y for _, y in everything], log=False, zero=False)
    parts = [_grid(axis_x, axis_y, x_name)]
    inside = [
        (x, y) for x, y in line if axis_x.low <= x <= axis_x.high and axis_y.low <= y <= axis_y.high
    ]
    if len(inside) > 1:
        path = "L".join(f"{_at_x(axis_x, x):.1f} {_at_y(axis_y, y):.1f}" for x, y in inside)
        dash = 'stroke="var(--quiet)" stroke-dasharray="5 4"'
        parts.append(
            f'<path d="M{path}" fill="none" {dash}><title>{text(line_name)}</title></path>'
        )
    legend = []
    for i, group in enumerate(dots):
        colour, size = COLOURS[i % len(COLOURS)], 5.5 if group.large else 3
        for x, y, what in group.points:
            where = f'cx="{_at_x(axis_x, x):.1f}" cy="{_at_y(axis_y, y):.1f}"'
            parts.append(
                f'<circle {where} r="{size}" fill="{colour}" opacity=".8">'
                f"<title>{text(what)}: {number(x)}, {number(y)}</title></circle>"
            )
        legend.append(_key(colour, group.name, ""))
    notes = [f"upwards: {y_name}"] + ([f"dashed: {line_name}"] if line_name else [])
    return _figure(title, parts, "".join(legend), notes)


def _figure(title: str, parts: Sequence[str], legend: str, notes: Sequence[str]) -> str:
    name = text(title)
    return (
        '<figure style="padding:12px;background:var(--card);border:1px solid var(--line);'
        f'border-radius:10px"><h3>{name}</h3>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}" '
        'style="width:100%;height:auto;display:block" font-size="12" fill="var(--quiet)">'
        f"{''.join(parts)}</svg><figcaption>{legend}"
        f'<span class="quiet">{text(", ".join(notes))}</span></figcaption>'
        "</figure>"
    )


def is_wide(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 20


def ticks(low: float, high: float, *, log: bool = False, most: int = 6) -> list[float]:
    """Round numbers in [low, high], at most about `most` of them."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for marks in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**e for e in range(first, last + 1) for m in marks]
            found = [v for v in found if low * 0.999 <= v <= high * 1.001]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    stop = math.floor(high / step + 1e-9)
    return [i * step for i in range(start, stop + 1)]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    @staticmethod
    def over(values: Sequence[float], *, log: bool, zero: bool) -> _Axis:
        low, high = min(values), max(values)
        if log:
            return _Axis(low / 1.1, high * 1.1, True)
        if zero:
            low = min(low, 0.0)
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return _Axis(low if zero and low == 0 else low - room, high + room, False)

    def part(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        return ticks(self.low, self.high, log=self.log)


def _points(curve: Curve) -> list[tuple[float, float]]:
    pairs = zip(curve.x, curve.y, strict=True)
    return [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]


def _at_x(axis: _Axis, x: float) -> float:
    return LEFT + axis.part(x) * (WIDTH - LEFT - RIGHT)


def _at_y(axis: _Axis, y: float) -> float:
    return HEIGHT - BOTTOM - axis.part(y) * (HEIGHT - TOP - BOTTOM)


def _labels(values: Sequence[float]) -> list[str]:
    """Short, but no two alike."""
    found = [number(value) for value in values]
    for digits in range(5, 15):
        if len(set(found)) == len(found):
            break
        found = [f"{value:.{digits}g}" for value in values]
    return found


def number(value: float) -> str:
    """Short: 1,200,000 is 1.2M, 0.00012 is 1.2e-4."""
    size = abs(value)
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return f"{value / unit:.4g}{letter}"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _grid(axis_x: _Axis, axis_y: _Axis, x_name: str) -> str:
    parts = []
    values = axis_y.ticks()
    for value, label in zip(values, _labels(values), strict=True):
        y = _at_y(axis_y, value)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    shown = [v for v in ticks(axis_x.low, axis_x.high, most=5) if v == int(v)]
    for value in shown:
        x = _at_x(axis_x, value)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{number(value) if value >= 1e6 else f'{value:,.0f}'}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{text(x_name)}</text>')
    return "".join(parts)


def _level(axis: _Axis, name: str, height: float) -> str:
    y = _at_y(axis, height)
    return (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--quiet)" stroke-dasharray="5 4"/>'
        f'<text x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{text(name)}</text>'
    )


def _columns(curve: Curve, axis: _Axis) -> list[list[tuple[float, list[float]]]]:
    """Runs of (x, the values of that column) without a gap."""
    many = len(curve.x) > COLUMNS
    runs: list[list[tuple[float, list[float]]]] = [[]]
    last = None
    for x, y in zip(curve.x, curve.y, strict=True):
        if y is None:  # a record that does not have the number
            continue
        if not math.isfinite(y):
            runs.append([])
            last = None
            continue
        column = int(axis.part(x) * (COLUMNS - 1)) if many else x
        if column != last:
            runs[-1].append((x, []))
            last = column
        runs[-1][-1][1].append(y)
    return [run for run in runs if run]


def _line(curve: Curve, axis_x: _Axis, axis_y: _Axis, colour: str) -> str:
    def path(points: list[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{_at_x(axis_x, x):.1f} {_at_y(axis_y, y):.1f}" for x, y in points)

    parts = []
    for run in _columns(curve, axis_x):
        if any(len(values) > 1 for _, values in run):
            high = [(x, max(values)) for x, values in run]
            low = [(x, min(values)) for x, values in reversed(run)]
            how = f'fill="{colour}" stroke="none" opacity=".22"'
            parts.append(f'<path d="{path(high + low)}Z" {how}/>')
        means = [(x, sum(values) / len(values)) for x, values in run]
        if len(run) == 1:
            x, y = means[0]
            where = f'cx="{_at_x(axis_x, x):.1f}" cy="{_at_y(axis_y, y):.1f}"'
            parts.append(f'<circle {where} r="3" fill="{colour}"/>')
        else:
            how = f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"'
            parts.append(f'<path d="{path(means)}" {how}/>')
    return "".join(parts)


def _legend(drawn: Sequence[tuple[Curve, list[tuple[float, float]]]]) -> str:
    return "".join(
        _key(COLOURS[i % len(COLOURS)], curve.name, number(points[-1][1]))
        for i, (curve, points) in enumerate(drawn)
    )


def _key(colour: str, name: str, value: str) -> str:
    return (
        f'<span style="white-space:nowrap;margin-right:1.2em"><b style="color:{colour}">'
        f"&#9632;</b> {text(name)}{f' <b>{value}</b>' if value else ''}</span> "
    )
