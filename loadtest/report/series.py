"""Altair charts of whole series: thin lines of many points, and stacked bars."""

from collections.abc import Sequence
from typing import Literal

import altair as alt
from msgspec import Struct

from loadtest.report.drawing import PAPER, Axis, Drawn


class Stroke(Struct, frozen=True):
    """A thin line, broken for ONNX."""

    colour: str
    kind: Literal["native", "ONNX"]
    xs: Sequence[float]
    ys: Sequence[float]


class Part(Struct, frozen=True):
    """A part of a stacked bar; `position` is its order in the bar."""

    name: str
    bar: str
    position: int
    colour: str
    value: float
    label: str


def strokes(lines: Sequence[Stroke], x: Axis, y: Axis, title: str, description: str) -> Drawn:
    """Every line separately, not joined to others of its colour."""
    # As text, because each of ten thousand objects would be validated by a schema. Clipped or transparent lines would
    # each need a layer of the whole sheet when it is drawn as PNG.
    rows = [
        f"{number},{across:.5g},{up:.5g},{line.colour},{line.kind}"
        for number, line in enumerate(lines)
        for across, up in zip(line.xs, line.ys, strict=True)
    ]
    values = alt.InlineData(values="\n".join(["line,x,y,colour,kind", *rows]), format=alt.CsvDataFormat(type="csv"))
    dash = alt.StrokeDash("kind:N", scale=alt.Scale(domain=["native", "ONNX"], range=[[1, 0], [4, 2]]))
    chart = (
        alt.Chart(values)
        .mark_line(aria=False, strokeWidth=0.9)
        .encode(
            x=alt.X("x:Q", **x.settings),
            y=alt.Y("y:Q", **y.settings),
            color=alt.Color("colour:N", scale=None),
            strokeDash=dash,
            detail="line:N",
        )
    )
    return Drawn(alt.layer(chart), title, description, height=300)


def stacks(parts: Sequence[Part], unit: str, title: str, description: str) -> Drawn:
    """Stacked bars from zero, a row per bar."""
    values = [
        {"bar": part.bar, "position": part.position, "colour": part.colour, "value": part.value, "label": part.label}
        for part in parts
    ]
    names = list(dict.fromkeys(part.bar for part in parts))
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar(size=15, stroke=PAPER, strokeWidth=0.5)
        .encode(
            x=alt.X("value:Q", title=unit, stack="zero", axis=alt.Axis(tickCount=5, format="~r")),
            y=alt.Y("bar:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False)),
            fill=alt.Fill("colour:N", scale=None),
            order="position:Q",
            description="label:N",
        )
    )
    return Drawn(alt.layer(chart), title, description)
