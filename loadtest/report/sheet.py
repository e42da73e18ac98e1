"""From charts to figures: SVG panels for the page, and one SVG and one PNG file of the whole.

The page holds SVG and no Vega: some ten kilobytes a panel in place of a megabyte of script, it prints, it is there
without script, and the page's own colours reach into it. A point's label is what the page shows when it is pointed at.
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
from loadtest.report.model import Figure, Mark, Panel
from loadtest.report.wording import MUTED

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


def draw(name: str, title: str, caption: str, drawn: Sequence[Drawn], key: Key, *, paired: bool = False) -> Figure:
    """A figure of these panels; of `paired` ones two stand side by side."""
    pictures = [_picture(one) for one in drawn]
    panels = tuple(map(_panel, pictures))
    columns = min(len(pictures), 2 if paired or len(pictures) == 4 else 3)
    whole = _sheet(pictures, key, columns)
    return Figure(name, title, caption, panels, key, whole, vl_convert.svg_to_png(whole, scale=2), paired)


class _Picture(Struct, frozen=True):
    """What is inside an SVG, what it says to who cannot see it, and its pixels."""

    body: str
    says: str
    width: int
    height: int


def _picture(one: Drawn) -> _Picture:
    height = alt.Step(24) if one.height is None else one.height
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart = one.chart.properties(width=WIDTH, height=height, title=one.title, autosize=fit).configure(**THEME)
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', svg)
    assert size is not None
    body = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return _Picture(body, f"{one.title}: {one.says}", ceil(float(size[1])), ceil(float(size[2])))


def _panel(picture: _Picture) -> Panel:
    box = f'viewBox="0 0 {picture.width} {picture.height}"'
    return Panel(f'<svg {box} role="img" aria-label={quoteattr(picture.says)}>{picture.body}</svg>', picture.says)


def _sheet(pictures: Sequence[_Picture], key: Key, columns: int) -> str:
    """All panels on one white sheet, the key below: a file that stands alone."""
    placed, signs, top, left = [], [], GAP, GAP
    for first in range(0, len(pictures), columns):
        row = pictures[first : first + columns]
        placed += [(GAP + place * (WIDTH + GAP), top, picture) for place, picture in enumerate(row)]
        top += max(picture.height for picture in row) + GAP
    for text, mark in key:
        signs.append((left + 6, text, mark))
        # The width of a text is guessed from its length: the file may be drawn with any font.
        left += 44 + 7 * len(text)
    size = {"width": max(GAP + columns * (WIDTH + GAP), left + GAP), "height": top + GAP}
    return templating.render("figure.svg.jinja", placed=placed, key=signs, gap=GAP, muted=MUTED, **size)
