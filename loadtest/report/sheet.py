"""From charts to figures: SVG panels for the page, and one SVG and one PNG file of the whole.

The page holds SVG and no Vega: some ten kilobytes per panel instead of a megabyte of script. SVG prints, works without
script, and takes the page's colours. The page shows the label of a point under the pointer.
"""

import re
from collections.abc import Sequence
from math import ceil
from typing import Any
from xml.sax.saxutils import quoteattr

import altair as alt
import vl_convert
from msgspec import Struct

from loadtest.report import templating
from loadtest.report.drawing import Drawn
from loadtest.report.model import Figure, Panel
from loadtest.report.wording import MUTED
from loadtest.results.tabular import Mark

WIDTH = 400
"""Pixels of a panel in the page; a phone shows it a little smaller."""
GAP = 28
"""Pixels between the panels of a file."""
INK, GRID, AXIS = "#1f2328", "#e4e7eb", "#9aa3ad"
THEME: dict[str, Any] = {
    "font": "sans-serif",
    "background": "transparent",
    "legend": {"disable": True},
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID, "domainColor": AXIS, "tickColor": AXIS,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 10, "labelLimit": 240,
    },
    "title": {"color": INK, "fontSize": 13, "fontWeight": 600, "anchor": "start", "offset": 12},
}  # fmt: skip

Key = tuple[tuple[str, Mark], ...]


def draw(name: str, title: str, caption: str, panels: Sequence[Drawn], key: Key, *, paired: bool = False) -> Figure:
    """A figure of these panels; `paired` puts two side by side."""
    pictures = [_picture(panel) for panel in panels]
    columns = min(len(pictures), 2 if paired or len(pictures) == 4 else 3)
    whole = _sheet(pictures, key, columns)
    return Figure(
        name, title, caption, tuple(map(_panel, pictures)), key, whole, vl_convert.svg_to_png(whole, scale=2), paired
    )


class _Picture(Struct, frozen=True):
    """The inside of an SVG, a text that describes it, and its size in pixels."""

    body: str
    description: str
    width: int
    height: int


def _picture(drawn: Drawn) -> _Picture:
    height = alt.Step(24) if drawn.height is None else drawn.height
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart = drawn.chart.properties(width=WIDTH, height=height, title=drawn.title, autosize=fit).configure(**THEME)
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', svg)
    assert size is not None
    body = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return _Picture(body, f"{drawn.title}: {drawn.description}", ceil(float(size[1])), ceil(float(size[2])))


def _panel(picture: _Picture) -> Panel:
    box = f'viewBox="0 0 {picture.width} {picture.height}"'
    return Panel(
        f'<svg {box} role="img" aria-label={quoteattr(picture.description)}>{picture.body}</svg>', picture.description
    )


def _sheet(pictures: Sequence[_Picture], key: Key, columns: int) -> str:
    """All panels on one white sheet with the key below, as a file of its own."""
    placed, signs, top, left = [], [], GAP, GAP
    for first in range(0, len(pictures), columns):
        row = pictures[first : first + columns]
        placed += [(GAP + place * (WIDTH + GAP), top, picture) for place, picture in enumerate(row)]
        top += max(picture.height for picture in row) + GAP
    for text, mark in key:
        signs.append((left + 6, text, mark))
        # The width of a text is estimated from its length, because the font is unknown.
        left += 44 + 7 * len(text)
    size = {"width": max(GAP + columns * (WIDTH + GAP), left + GAP), "height": top + GAP}
    return templating.render("figure.svg.jinja", placed=placed, key=signs, gap=GAP, muted=MUTED, **size)
