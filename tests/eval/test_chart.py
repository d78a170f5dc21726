"""Curves: what is drawn lies where the number says, spikes stay, gaps are gaps."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import DataError
from diptych.eval.chart import Curve, Dots, chart, is_wide, number, scatter, ticks


def svg(figure: str) -> ET.Element:
    """The figure is well-formed, so the SVG in it is too."""
    found = ET.fromstring(figure).find("svg")
    assert found is not None
    return found


def lines(figure: str) -> list[list[tuple[float, float]]]:
    """The points of each curve that is drawn as a line."""
    paths = [p for p in svg(figure).iter("path") if p.get("stroke-width")]
    return [
        [(float(a), float(b)) for a, b in (pair.split() for pair in p.get("d")[1:].split("L"))]
        for p in paths
    ]


def test_points_lie_where_they_should():
    figure = chart([Curve(name="y", x=[0, 5, 10], y=[0.0, 1.0, 4.0])], title="T", zero=True)
    ((a, b, c),) = lines(figure)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert (a[1] - c[1]) == pytest.approx(4 * (a[1] - b[1]), abs=0.5)
    assert a[1] > b[1] > c[1]  # up is less in SVG


def test_a_logarithmic_axis_where_it_is_wide():
    wide = chart([Curve(name="y", x=[0, 1, 2], y=[1.0, 10.0, 100.0])], title="T", scale="auto")
    ((a, b, c),) = lines(wide)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)
    assert "logarithmic" in wide
    narrow = chart([Curve(name="y", x=[0, 1], y=[1.0, 10.0])], title="T", scale="auto")
    assert "logarithmic" not in narrow
    assert not is_wide([0.0, 100.0])
    below = chart([Curve(name="y", x=[0, 1], y=[-1.0, 10.0])], title="T", scale="log")
    assert "logarithmic" not in below


def test_a_spike_among_many_is_seen():
    ys = [1.0] * 20_000
    ys[12_345] = 50.0
    figure = chart([Curve(name="y", x=list(range(20_000)), y=ys)], title="T")
    assert len(figure) < 40_000
    (band,) = [p for p in svg(figure).iter("path") if p.get("opacity")]
    heights = [float(y) for y in re.findall(r" (-?[\d.]+)", band.get("d"))]
    assert min(heights) < 40  # of 230: the top of the picture
    assert sum(y < 40 for y in heights) == 1


def test_gaps():
    ys = [1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0, None]
    figure = chart([Curve(name="y", x=list(range(8)), y=ys)], title="T")
    assert [len(line) for line in lines(figure)] == [2, 2]
    assert len(list(svg(figure).iter("circle"))) == 1
    assert "not finite: 2" in figure


def test_nothing_to_draw():
    assert chart([], title="T") == ""
    assert chart([Curve(name="y", x=[1, 2], y=[math.nan, None])], title="T") == ""


def test_one_point_and_a_level():
    figure = chart([Curve(name="y", x=[7], y=[3.0])], title="T", level=("ln 64", math.log(64)))
    assert "ln 64" in figure
    assert len(list(svg(figure).iter("circle"))) == 1


def test_names_are_escaped():
    figure = chart([Curve(name="<b>&", x=[0, 1], y=[1.0, 2.0])], title='"<script>', unit="&")
    assert "<script>" not in figure
    svg(figure)


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_few_and_inside(low, width):
    high = low + width
    if not high > low or width < 1e-9 * abs(low):
        return
    found = ticks(low, high)
    assert len(found) <= 7
    room = 1e-6 * width + 1e-9 * abs(low)
    assert all(low - room <= v <= high + room for v in found)
    assert found == sorted(found)


@given(st.floats(1e-9, 1e9), st.floats(1.5, 1e9))
def test_logarithmic_ticks(low, factor):
    found = ticks(low, low * factor, log=True)
    assert len(found) <= 7
    assert all(low * 0.99 <= v <= low * factor * 1.01 for v in found)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=300))
def test_any_numbers_make_a_picture(ys):
    svg(chart([Curve(name="y", x=list(range(len(ys))), y=ys)], title="T", scale="auto"))


def test_short_numbers():
    shown = [number(v) for v in (0, 1.0, 0.5, 1234, 20000, 1.2e6, 3e9, 1.25e-4, -5e-7)]
    assert shown == ["0", "1", "0.5", "1234", "20k", "1.2M", "3G", "1.25e-4", "-5e-7"]


def test_scatter_shows_points_line_and_names():
    html = scatter(
        [
            Dots(name="others <b>", points=[(1.0, 2.0, "one & two"), (3.0, 4.0, "three")]),
            Dots(name="this", points=[(2.0, 5.0, "this")], large=True),
        ],
        title="t",
        x_name="x",
        y_name="y",
        line=[(-100.0, 0.0), (1.0, 2.0), (3.0, 4.0)],
        line_name="the line",
    )
    assert html.count("<circle") == 3
    assert "one &amp; two: 1, 2" in html
    assert "others &lt;b&gt;" in html
    assert html.count("stroke-dasharray") == 1
    assert scatter([Dots(name="n", points=[])], title="t", x_name="x", y_name="y") == ""
    with pytest.raises(DataError, match="not finite"):
        scatter([Dots(name="n", points=[(math.nan, 0.0, "")])], title="t", x_name="x", y_name="y")
