"""Altair charts of whole series: thin lines of many points, and bars that are stacked from parts."""

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
    """A stretch of a bar; `place` is its order in the bar."""

    name: str
    bar: str
    place: int
    colour: str
    value: float
    label: str


def strokes(found: Sequence[Stroke], x: Axis, y: Axis, title: str, says: str) -> Drawn:
    """Every line by itself, none joined to another of its colour."""
    # As text, for each of ten thousand objects would be held against a schema. Clipped or transparent lines would take
    # a layer of the whole sheet each when it is drawn as PNG.
    rows = [
        f"{number},{across:.5g},{up:.5g},{one.colour},{one.kind}"
        for number, one in enumerate(found)
        for across, up in zip(one.xs, one.ys, strict=True)
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
    return Drawn(alt.layer(chart), title, says, height=300)


def stacks(parts: Sequence[Part], unit: str, title: str, says: str) -> Drawn:
    """A bar of parts in their order, a row a bar, from zero."""
    values = [
        {"bar": one.bar, "place": one.place, "colour": one.colour, "value": one.value, "label": one.label}
        for one in parts
    ]
    names = list(dict.fromkeys(one.bar for one in parts))
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar(size=15, stroke=PAPER, strokeWidth=0.5)
        .encode(
            x=alt.X("value:Q", title=unit, stack="zero", axis=alt.Axis(tickCount=5, format="~r")),
            y=alt.Y("bar:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False)),
            fill=alt.Fill("colour:N", scale=None),
            order="place:Q",
            description="label:N",
        )
    )
    return Drawn(alt.layer(chart), title, says)
