"""Altair charts of points: lines across a plane, and rows of values with intervals."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import altair as alt
import msgspec
from msgspec import Struct

from loadtest.report import scales, wording
from loadtest.report.scales import Domain, Spread
from loadtest.report.wording import MUTED
from loadtest.results.row import Row
from medserve.numbers import number

PAPER = "#ffffff"
"""Fill of hollow points; the page's style replaces it by its own background."""
FADED = 0.35
"""Opacity of faded points."""
Kind = Literal["native", "ONNX", "null", "decided", "not decided"]


class Look(NamedTuple):
    """The look of points of a kind, and of their line."""

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


class Axis(Struct, frozen=True, kw_only=True):
    """An axis with its ends; without `ticks`, it has round numbers."""

    title: str
    domain: Domain
    log: bool = True
    ticks: tuple[float, ...] = ()
    grid: bool = True
    form: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of Altair's X and Y."""
        ticks = list(self.ticks) or (scales.ticks(self.domain) if self.log else None)
        scale = alt.Scale(type="log" if self.log else "linear", domain=list(self.domain), nice=False)
        shown = {"tickCount": 5} if ticks is None else {"values": ticks}
        form = self.form or ("~g" if self.log else "~r")
        return {"title": self.title, "scale": scale, "axis": alt.Axis(format=form, grid=self.grid, **shown)}


class Point(Struct, frozen=True, kw_only=True):
    """One point with its interval. `series` is its row or line, `tail` its p99, `x` its horizontal position.

    `ringed` draws a ring around it, `faded` makes it pale; `text` is written beside it.
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
    x_low: float | None = None
    x_high: float | None = None
    ringed: bool = False
    faded: bool = False
    text: str = ""
    tail: float | None = None

    @property
    def spread(self) -> Spread:
        """The value with the ends of its interval."""
        return self.value, self.low, self.high


class Drawn(Struct, frozen=True):
    """A chart of one panel, and a text that describes it. `height` in pixels; null follows from its number of rows."""

    chart: alt.LayerChart | alt.FacetChart
    title: str
    description: str
    height: int | None = None


def point(
    row: Row,
    series: str,
    label: str,
    value: float,
    ends: tuple[float | None, float | None] = (None, None),
    **other: Any,
) -> Point:
    """A point of a row, in the colour of its framework and with the mark of its kind."""
    null = row.framework is None
    return Point(
        series=series,
        framework="null" if null else wording.framework(row.framework),
        colour=wording.colour(row.framework),
        kind="null" if null else "ONNX" if row.format == "onnx" else "native",
        value=value,
        low=ends[0],
        high=ends[1],
        label=label,
        **other,
    )


def median_point(row: Row, series: str, name: str, tail: float | None = None) -> Point:
    """The median of a row with its interval; `name` begins its label."""
    label = f"{name}: median {wording.estimate(row)}" + (f", p99 {number(tail)} ms" if tail is not None else "")
    return point(row, series, label, row.median, (row.p50.low, row.p50.high), tail=tail)


def extremes(points: Sequence[Point], unit: str = " ms") -> str:
    """The lowest and the highest value with their labels, for readers who cannot see the picture."""
    ordered = sorted(points, key=lambda point: point.value)
    ends = [f"{number(end.value)}{unit} ({end.label.partition(':')[0]})" for end in (ordered[0], ordered[-1])]
    return f"lowest {ends[0]}, highest {ends[1]}"


def lines(
    points: Sequence[Point], x: Axis, y: Axis, title: str, description: str, outline: Sequence[tuple[float, float]] = ()
) -> Drawn:
    """Values against x, such as image sizes, a line per series; `outline` has the corners of one stepped line."""
    dash = alt.StrokeDash("kind:N", scale=_by_kind(points, "dashes"))
    across, up = alt.X("x:Q", **x.settings), alt.Y("value:Q", **y.settings)
    base = _base(points, y.domain, x.domain).encode(x=across)
    joined = base.mark_line(aria=False, strokeWidth=1.75).encode(y=up, strokeDash=dash, detail="series:N")
    bars = base.mark_rule(aria=False, strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    layers = [joined, bars, _dots(base, points).encode(y=up)]
    if any(point.x_low is not None for point in points):
        wide = base.mark_rule(aria=False, strokeWidth=1.5)
        layers.insert(1, wide.encode(x=alt.X("x_low:Q", **x.settings), x2="x_high:Q", y=up))
    if any(point.ringed for point in points):
        rings = base.mark_point(aria=False, shape="circle", size=260, strokeWidth=1.75, filled=False)
        layers.append(rings.transform_filter("datum.ringed").encode(y=up))
    if any(point.text for point in points):
        written = base.mark_text(aria=False, dx=7, dy=-8, align="left", fontSize=12)
        layers.append(written.encode(y=up, text="text:N", color=alt.value(MUTED), opacity=alt.value(1)))
    if outline:
        corners = alt.Chart(alt.InlineData(values=[{"x": place, "value": value} for place, value in outline]))
        steps = corners.mark_line(aria=False, interpolate="step-after", strokeWidth=1.5, color=MUTED)
        layers.insert(0, steps.encode(x=across, y=up))
    return Drawn(alt.layer(*layers), title, description, height=330)


def rows(
    points: Sequence[Point],
    x: Axis,
    title: str,
    description: str,
    *,
    line: float | None = None,
    band: tuple[float, float] | None = None,
) -> Drawn:
    """Values with intervals on one axis, a row per series; `line` and `band` mark values to compare with."""
    names = list(dict.fromkeys(point.series for point in points))
    y = alt.Y("series:N", sort=names, title=None, axis=alt.Axis(grid=True, ticks=False, domain=False))
    base = _base(points, x.domain).encode(y=y)
    layers = [
        base.mark_rule(aria=False, strokeWidth=1.5).encode(x=alt.X("low:Q", title=x.title), x2="high:Q"),
        _dots(base, points).encode(x=alt.X("value:Q", **x.settings)),
    ]
    if any(point.tail is not None for point in points):
        strokes = base.mark_tick(aria=False, thickness=2, size=13).transform_filter("datum.tail != null")
        layers.insert(0, strokes.encode(x=alt.X("tail:Q", title=x.title)))
    if line is not None:
        rule = alt.Chart(alt.InlineData(values=[{"at": line}])).mark_rule(aria=False, color=MUTED, strokeDash=[3, 3])
        layers.insert(0, rule.encode(x=alt.X("at:Q", title=x.title)))
    if band is not None:
        ends = alt.Chart(alt.InlineData(values=[{"from": band[0], "to": band[1]}]))
        shade = ends.mark_rect(aria=False, color=MUTED, opacity=0.12)
        layers.insert(0, shade.encode(x=alt.X("from:Q", title=x.title), x2="to:Q"))
    return Drawn(alt.layer(*layers), title, description)


def _base(points: Sequence[Point], domain: Domain, across: Domain = (0.0, 0.0)) -> alt.Chart:
    """The points with their colour; a point without an interval has one of length zero."""
    values = []
    for point in points:
        ends = {
            "low": scales.within(point.value if point.low is None else point.low, domain),
            "high": scales.within(point.value if point.high is None else point.high, domain),
            "x_low": scales.within(point.x if point.x_low is None else point.x_low, across),
            "x_high": scales.within(point.x if point.x_high is None else point.x_high, across),
        }
        fill = point.colour if KINDS[point.kind].filled else PAPER
        values.append(msgspec.to_builtins(point) | ends | {"fill": fill, "opacity": FADED if point.faded else 1.0})
    chart = alt.Chart(alt.InlineData(values=values)).encode(color=alt.Color("colour:N", scale=None))
    return chart.encode(opacity=alt.Opacity("opacity:Q", scale=None)) if any(point.faded for point in points) else chart


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
