"""Altair charts: points with intervals as lines or rows, whole distributions, and stacked bars."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import altair as alt
import msgspec
from msgspec import Struct

from loadtest.analysis.distribution import Curve
from loadtest.analysis.intervals import Interval
from loadtest.report import wording
from loadtest.report.axes import Axis
from loadtest.report.wording import MUTED
from loadtest.results.row import Row
from loadtest.results.tabular import Mark
from medserve.models import Checkpoint

PAPER = "#ffffff"
"""Fill of hollow points; the page's style replaces it by its own background."""
FADED = 0.35
"""Opacity of faded points."""
Kind = Literal["native", "ONNX", "null runtime", "faster or slower", "equivalent or undecided"]


class Look(NamedTuple):
    """The look of points of a kind, of their line, and of their entry in the key."""

    shape: str
    dashes: list[int]
    mark: Mark


KINDS: dict[Kind, Look] = {
    "native": Look("circle", [1, 0], Mark(MUTED)),
    "ONNX": Look("diamond", [5, 3], Mark(MUTED, "diamond")),
    "null runtime": Look("square", [2, 3], Mark(wording.NULL, "square")),
    "faster or slower": Look("circle", [1, 0], Mark(MUTED)),
    "equivalent or undecided": Look("circle", [1, 0], Mark(MUTED, "ring")),
}


class Point(Struct, frozen=True, kw_only=True):
    """One point with its intervals: `value` and, of points in a plane, `x`. `series` is its row or its line.

    `tail` is its p99. `ringed` draws a ring around it, `faded` makes it pale; `text` is written beside it.
    """

    series: str
    framework: str
    colour: str
    kind: Kind
    value: Interval
    label: str
    x: Interval = Interval()
    tail: float | None = None
    ringed: bool = False
    faded: bool = False
    text: str = ""


class Part(Struct, frozen=True):
    """A part of a stacked bar; `position` is its order in the bar."""

    name: str
    bar: str
    position: int
    colour: str
    value: float
    label: str


class Drawn(Struct, frozen=True, kw_only=True):
    """A chart of one panel, a text that describes it, and the meaning of its marks.

    `height` in pixels; null follows from its number of rows. `cut`: an interval reaches beyond an axis.
    """

    chart: alt.LayerChart | alt.FacetChart
    title: str
    description: str
    key: Mapping[str, Mark]
    height: int | None = None
    cut: bool = False


def point(of: Row | Checkpoint, series: str, label: str, value: Interval, **other: Any) -> Point:
    """A point in the colour of its framework; `other` are further fields of it."""
    kind = kind_of(of) if isinstance(of, Row) else "native"
    name, colour = wording.framework(of.framework), wording.colour(of.framework)
    fields = {"series": series, "framework": name, "colour": colour, "kind": kind, "label": label, "value": value}
    return Point(**{**fields, **other})


def kind_of(row: Row) -> Kind:
    """How a row's points and lines are drawn."""
    return "null runtime" if row.framework is None else "ONNX" if row.format == "onnx" else "native"


def lines(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    title: str,
    description: str = "",
    outline: Sequence[Point] = (),
    *,
    stepped: bool = True,
) -> Drawn:
    """Values against x, such as image sizes, a line per series.

    `outline` are points that a line per series joins, stepped or straight.
    """
    across, up = alt.X("x.value:Q", **x.settings), alt.Y("value.value:Q", **y.settings)
    base = _base(points).encode(x=across, y=up)
    bars = base.mark_rule(aria=False, strokeWidth=1.5)
    dash = alt.StrokeDash("kind:N", scale=_by_kind(points, "dashes"))
    layers = [
        base.mark_line(aria=False, strokeWidth=1.75).encode(strokeDash=dash, detail="series:N"),
        bars.encode(x=alt.X("x.low:Q", **x.settings), x2="x.high:Q"),
        bars.encode(y=alt.Y("value.low:Q", **y.settings), y2="value.high:Q"),
        _dots(base, points),
    ]
    if any(point.ringed for point in points):
        rings = base.mark_point(aria=False, shape="circle", size=260, strokeWidth=1.75, filled=False)
        layers.append(rings.transform_filter("datum.ringed"))
    if any(point.text for point in points):
        written = base.mark_text(aria=False, dx=7, dy=-8, align="left", fontSize=12)
        layers.append(written.encode(text="text:N", color=alt.value(MUTED), opacity=alt.value(1)))
    if outline:
        interpolate: Literal["step-after", "linear"] = "step-after" if stepped else "linear"
        steps = _base(outline).mark_line(aria=False, interpolate=interpolate, strokeWidth=1.5)
        layers.insert(0, steps.encode(x=across, y=up, color=alt.value(MUTED), detail="series:N"))
    return _of_points(points, (x, y), layers, title, description, height=330)


def rows(
    points: Sequence[Point],
    x: Axis,
    title: str,
    *,
    line: float | None = None,
    band: tuple[float, float] | None = None,
) -> Drawn:
    """Values with intervals on one axis, a row per series; `line` and `band` mark values to compare with."""
    names = list(dict.fromkeys(point.series for point in points))
    y = alt.Y("series:N", sort=names, title=None, axis=alt.Axis(grid=True, ticks=False, domain=False))
    base = _base(points).encode(y=y, x=alt.X("value.value:Q", **x.settings))
    layers = [
        base.mark_tick(aria=False, thickness=2, size=13).encode(x=alt.X("tail:Q", **x.settings)),
        base.mark_rule(aria=False, strokeWidth=1.5).encode(x=alt.X("value.low:Q", **x.settings), x2="value.high:Q"),
        _dots(base, points),
    ]
    if line is not None:
        rule = alt.Chart(alt.InlineData(values=[{"at": line}])).mark_rule(aria=False, color=MUTED, strokeDash=[3, 3])
        layers.insert(0, rule.encode(x=alt.X("at:Q", **x.settings)))
    if band is not None:
        ends = alt.Chart(alt.InlineData(values=[{"from": band[0], "to": band[1]}]))
        shade = ends.mark_rect(aria=False, color=MUTED, opacity=0.12)
        layers.insert(0, shade.encode(x=alt.X("from:Q", **x.settings), x2="to:Q"))
    return _of_points(points, (x,), layers, title)


def strokes(curves: Sequence[tuple[Row, Curve]], x: Axis, y: Axis, title: str, description: str) -> Drawn:
    """Distributions as thin lines, none joined to others of its colour."""
    # As text, because each of ten thousand objects would be validated by a schema. Clipped or transparent lines would
    # each need a layer of the whole sheet when it is drawn as PNG.
    values = [
        f"{number},{across:.5g},{up:.5g},{wording.colour(row.framework)},{kind_of(row)}"
        for number, (row, curve) in enumerate(curves)
        for across, up in zip(curve.milliseconds, curve.shares, strict=True)
    ]
    data = alt.InlineData(values="\n".join(["line,x,y,colour,kind", *values]), format=alt.CsvDataFormat(type="csv"))
    chart = (
        alt.Chart(data)
        .mark_line(aria=False, strokeWidth=0.9)
        .encode(
            x=alt.X("x:Q", **x.settings),
            y=alt.Y("y:Q", **y.settings),
            color=alt.Color("colour:N", scale=None),
            strokeDash=alt.StrokeDash("kind:N", scale=alt.Scale(domain=["native", "ONNX"], range=[[1, 0], [4, 2]])),
            detail="line:N",
        )
    )
    key = {wording.framework(row.framework): Mark(wording.colour(row.framework)) for row, _ in curves}
    key |= {kind_of(row): KINDS[kind_of(row)].mark for row, _ in curves}
    return Drawn(chart=alt.layer(chart), title=title, description=description, key=key, height=300)


def stacks(parts: Sequence[Part], unit: str, title: str, description: str) -> Drawn:
    """Stacked bars from zero, a row per bar."""
    names = list(dict.fromkeys(part.bar for part in parts))
    chart = (
        alt.Chart(alt.InlineData(values=[msgspec.to_builtins(part) for part in parts]))
        .mark_bar(size=15, stroke=PAPER, strokeWidth=0.5)
        .encode(
            x=alt.X("value:Q", title=unit, stack="zero", axis=alt.Axis(tickCount=5, format="~r")),
            y=alt.Y("bar:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False)),
            fill=alt.Fill("colour:N", scale=None),
            order="position:Q",
            description="label:N",
        )
    )
    key = {part.name: Mark(part.colour, "square") for part in parts}
    return Drawn(chart=alt.layer(chart), title=title, description=description, key=key)


def _of_points(
    points: Sequence[Point],
    axes: Sequence[Axis],
    layers: Sequence[alt.Chart],
    title: str,
    description: str = "",
    height: int | None = None,
) -> Drawn:
    """Layers over points; without a description, the lowest and the highest point stand for all."""
    least, most = (end(points, key=lambda point: point.value.known) for end in (min, max))
    return Drawn(
        chart=alt.layer(*layers),
        title=title,
        description=description or f"lowest {least.label}; highest {most.label}",
        key={point.framework: Mark(point.colour) for point in points if point.kind != "null runtime"}
        | {point.kind: KINDS[point.kind].mark for point in points},
        height=height,
        cut=any(axis.cuts for axis in axes),
    )


def _base(points: Sequence[Point]) -> alt.Chart:
    """The points with their colour. Vega leaves out the mark of an interval that is null."""
    values = []
    for point in points:
        fill = PAPER if KINDS[point.kind].mark.shape in ("ring", "diamond") else point.colour
        values.append(msgspec.to_builtins(point) | {"fill": fill, "opacity": FADED if point.faded else 1.0})
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
    kinds = list(dict.fromkeys(point.kind for point in points))
    return alt.Scale(domain=kinds, range=[getattr(KINDS[kind], part) for kind in kinds])
