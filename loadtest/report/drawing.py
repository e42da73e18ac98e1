"""Altair charts from points: lines by image size, and rows of values with intervals."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import altair as alt
import msgspec
from msgspec import Struct

from loadtest.report import scales
from loadtest.report.scales import Domain, Spread
from loadtest.report.wording import MUTED

PAPER = "#ffffff"
"""Fill of hollow points; the page's style replaces it by its own background."""
Kind = Literal["native", "ONNX", "null", "decided", "not decided"]


class Look(NamedTuple):
    """How points of a kind look, and their line."""

    shape: str
    filled: bool
    dashes: list[int]


KINDS: dict[Kind, Look] = {
    "native": Look("circle", True, [1, 0]),
    "ONNX": Look("diamond", False, [5, 3]),
    "null": Look("square", True, [2, 3]),
    "decided": Look("circle", True, [1, 0]),
    "not decided": Look("circle", False, [1, 0]),
}


class Point(Struct, frozen=True, kw_only=True):
    """One point with its interval. `series` is its row or line, `x` its place across, `tail` its p99.

    What is `ringed` stands out.
    """

    series: str
    framework: str
    colour: str
    kind: Kind
    value: float
    low: float | None
    high: float | None
    label: str
    x: float = 0.0
    ringed: bool = False
    tail: float | None = None

    @property
    def spread(self) -> Spread:
        """The value with the ends of its interval."""
        return self.value, self.low, self.high


class Drawn(Struct, frozen=True):
    """A chart of one panel, and what it shows in words. `height` in pixels; null is by its number of rows."""

    chart: alt.LayerChart | alt.FacetChart
    title: str
    says: str
    height: int | None = None


def lines(
    points: Sequence[Point],
    domain: Domain,
    places: Sequence[int],
    title: str,
    says: str,
    axes: tuple[str, str] = ("image side, px (log)", "median, ms (log)"),
) -> Drawn:
    """Values against places such as image sizes, both logarithmic, a line a series."""
    y = alt.Y(
        "value:Q",
        title=axes[1],
        scale=alt.Scale(type="log", domain=list(domain), nice=False),
        axis=alt.Axis(values=scales.ticks(domain), format="~g"),
    )
    x = alt.X(
        "x:Q",
        title=axes[0],
        scale=alt.Scale(type="log", domain=[places[0] / 1.2, places[-1] * 1.2], nice=False),
        axis=alt.Axis(values=list(places), format="d", grid=False),
    )
    dash = alt.StrokeDash("kind:N", scale=_by_kind(points, "dashes"))
    base = _base(points, domain).encode(x=x)
    joined = base.mark_line(aria=False, strokeWidth=1.75).encode(y=y, strokeDash=dash, detail="series:N")
    bars = base.mark_rule(aria=False, strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    layers = [joined, bars, _dots(base, points).encode(y=y)]
    if any(point.ringed for point in points):
        rings = base.mark_point(aria=False, shape="circle", size=260, strokeWidth=1.75, filled=False)
        layers.append(rings.transform_filter("datum.ringed").encode(y=y))
    return Drawn(alt.layer(*layers), title, says, height=330)


def rows(
    points: Sequence[Point], domain: Domain, unit: str, title: str, says: str, *, log: bool, line: float | None = None
) -> Drawn:
    """Values with intervals, a row a series, on one axis; `line` is where a rule stands for comparison."""
    scale = alt.Scale(type="log" if log else "linear", domain=list(domain), nice=False)
    ticks = alt.Axis(values=scales.ticks(domain), format="~g") if log else alt.Axis(tickCount=5, format="~g")
    x = alt.X("value:Q", title=unit, scale=scale, axis=ticks)
    names = list(dict.fromkeys(point.series for point in points))
    y = alt.Y("series:N", sort=names, title=None, axis=alt.Axis(grid=True, ticks=False, domain=False))
    base = _base(points, domain).encode(y=y)
    layers = [
        base.mark_rule(aria=False, strokeWidth=1.5).encode(x=alt.X("low:Q", title=unit), x2="high:Q"),
        _dots(base, points).encode(x=x),
    ]
    if any(point.tail is not None for point in points):
        strokes = base.mark_tick(aria=False, thickness=2, size=13).transform_filter("datum.tail != null")
        layers.insert(0, strokes.encode(x=alt.X("tail:Q", title=unit)))
    if line is not None:
        rule = alt.Chart(alt.InlineData(values=[{"at": line}])).mark_rule(aria=False, color=MUTED, strokeDash=[3, 3])
        layers.insert(0, rule.encode(x=alt.X("at:Q", title=unit)))
    return Drawn(alt.layer(*layers), title, says)


def _base(points: Sequence[Point], domain: Domain) -> alt.Chart:
    """The points with their colour; those without an interval have one of no length."""
    values = []
    for point in points:
        ends = {
            "low": scales.within(point.value if point.low is None else point.low, domain),
            "high": scales.within(point.value if point.high is None else point.high, domain),
        }
        fill = point.colour if KINDS[point.kind].filled else PAPER
        values.append(msgspec.to_builtins(point) | ends | {"fill": fill})
    return alt.Chart(alt.InlineData(values=values)).encode(color=alt.Color("colour:N", scale=None))


def _dots(base: alt.Chart, points: Sequence[Point]) -> alt.Chart:
    dots: alt.Chart = base.mark_point(size=62, strokeWidth=1.75, opacity=1).encode(
        shape=alt.Shape("kind:N", scale=_by_kind(points, "shape")),
        fill=alt.Fill("fill:N", scale=None),
        description="label:N",
    )
    return dots


def _by_kind(points: Sequence[Point], part: Literal["shape", "dashes"]) -> alt.Scale:
    shown = [kind for kind in KINDS if any(point.kind == kind for point in points)]
    return alt.Scale(domain=shown, range=[getattr(KINDS[kind], part) for kind in shown])
