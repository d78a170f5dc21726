"""Diagrams of an evaluation as inline SVG: intervals, reliability, and what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.engine.page import text

__all__ = ["confusion_picture", "interval_bar", "reliability_diagram"]

_SIDE, _EDGE = 260, 40
_RIGHT, _WRONG = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by people with colour blindness


def interval_bar(
    value: float, low: float | None, high: float | None, *, chance: float | None = None
) -> str:
    """A value in [0, 1] as a dot, its interval as a line, chance as a dashed mark."""
    width = 160

    def at(x: float) -> float:
        return 6 + (width - 12) * min(max(x, 0.0), 1.0)

    parts = [f'<path d="M6 9H{width - 6}" stroke="var(--line)"/>']
    if chance is not None:
        dash = 'stroke="var(--quiet)" stroke-dasharray="2 2"'
        parts.append(f'<path d="M{at(chance):.1f} 2V16" {dash}><title>chance</title></path>')
    if low is not None and high is not None:
        parts.append(
            f'<path d="M{at(low):.1f} 9H{at(high):.1f}" stroke="{_RIGHT}" stroke-width="4" '
            'opacity=".45"/>'
        )
    parts.append(f'<circle cx="{at(value):.1f}" cy="9" r="4" fill="{_RIGHT}"/>')
    return (
        f'<svg viewBox="0 0 {width} 18" width="{width}" height="18" role="img" '
        f'aria-label="{value:.1%}">{"".join(parts)}</svg>'
    )


def reliability_diagram(bins: Sequence[Sequence[float]], *, title: str) -> str:
    """Accuracy over confidence, a bar a bin as dark as it is full; the diagonal is what is wanted.

    Args:
        bins: (low, high, n, confidence, accuracy) each, as `calibration.reliability` gives them.
    """
    total = sum(b[2] for b in bins) or 1
    side = _SIDE - 2 * _EDGE
    parts = [
        f'<rect x="{_EDGE}" y="{_EDGE}" width="{side}" height="{side}" fill="none" '
        'stroke="var(--line)"/>'
    ]
    for low, high, n, confidence, accuracy in bins:
        if not n:
            continue
        x, width = _EDGE + low * side, max((high - low) * side - 1, 1.0)
        height, dark = accuracy * side, 0.25 + 0.75 * min(1.0, 4 * n / total)
        told = f"confidence {confidence:.2f}, accuracy {accuracy:.2f}, {int(n):,} samples"
        fill = f'fill="{_RIGHT}" opacity="{dark:.2f}"'
        parts.append(
            f'<rect x="{x:.1f}" y="{_EDGE + side - height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" {fill}><title>{told}</title></rect>'
        )
    end = _EDGE + side
    parts.append(
        f'<path d="M{_EDGE} {end}L{end} {_EDGE}" stroke="{_WRONG}" stroke-dasharray="5 4"/>'
    )
    for value in (0, 0.5, 1):
        at = _EDGE + value * side
        parts.append(f'<text x="{at}" y="{end + 14}" text-anchor="middle">{value:g}</text>')
        parts.append(
            f'<text x="{_EDGE - 5}" y="{end - value * side + 4}" text-anchor="end">{value:g}</text>'
        )
    parts.append(f'<text x="{_SIDE / 2}" y="{_SIDE - 6}" text-anchor="middle">confidence</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-_SIDE / 2}" y="12" '
        'text-anchor="middle">accuracy</text>'
    )
    return _figure(title, f"0 0 {_SIDE} {_SIDE}", parts, width=_SIDE)


def confusion_picture(matrix: Sequence[Sequence[int]], names: Sequence[str], *, title: str) -> str:
    """Rows are what is there, columns what it is taken for; each row as shares of its pictures."""
    num = len(matrix)
    cell = max(7, min(22, 520 // num))
    left = 6 + int(6.2 * max(len(name[:24]) for name in names))
    parts: list[str] = []
    for i, row in enumerate(matrix):
        total = sum(row)
        size = min(11, cell)
        parts.append(
            f'<text x="{left - 5}" y="{i * cell + cell * 0.78:.1f}" text-anchor="end" '
            f'font-size="{size}">{text(names[i][:24])}</text>'
        )
        for j, count in enumerate(row):
            if count:
                told = f"{names[i]}, taken for {names[j]}: {count} of {total}"
                colour = _RIGHT if i == j else _WRONG
                how = f'fill="{colour}" opacity="{0.12 + 0.88 * count / total:.2f}"'
                parts.append(
                    f'<rect x="{left + j * cell}" y="{i * cell}" width="{cell - 1}" '
                    f'height="{cell - 1}" {how}><title>{text(told)}</title></rect>'
                )
    parts.append(
        f'<rect x="{left - 1}" y="-1" width="{num * cell + 1}" height="{num * cell + 1}" '
        'fill="none" stroke="var(--line)"/>'
    )
    width = left + num * cell + 2
    return _figure(title, f"0 -2 {width} {num * cell + 4}", parts, width=width)


def _figure(title: str, box: str, parts: Sequence[Any], *, width: int) -> str:
    return (
        f'<figure class="diagram"><h3>{text(title)}</h3><svg viewBox="{box}" role="img" '
        f'aria-label="{text(title)}" style="width:100%;max-width:{width}px;height:auto" '
        f'font-size="11" fill="var(--quiet)">{"".join(parts)}</svg></figure>'
    )
