"""From charts to figures: SVG panels for the page, and one SVG and one PNG file of the whole.

The page holds SVG and no Vega: some ten kilobytes per panel instead of a megabyte of script. SVG prints, works without
script, and takes the page's colours. The page shows the label of a point under the pointer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any
from xml.sax.saxutils import quoteattr

import altair as alt
import vl_convert

from loadtest.report import document, wording
from loadtest.report.document import Figure, Panel
from loadtest.report.drawing import KINDS, Drawn
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
CUT = "Intervals that leave the frame are cut at its edge."


def figure(
    name: str,
    title: str,
    panels: Sequence[Drawn],
    beside: str = "",
    *,
    paired: bool = False,
    order: Iterable[str] = KINDS,
) -> Figure | None:
    """A figure of these panels, null without any. Its caption comes from prose.toml; the words `beside` follow it.

    `paired` puts two panels side by side; `order` is that of the key.
    """
    if not panels:
        return None
    key = _key(panels, list(order))
    pictures = tuple(map(_panel, panels))
    columns = min(len(pictures), 2 if paired or len(pictures) == 4 else 3)
    whole = _sheet(pictures, key, columns)
    png = vl_convert.svg_to_png(whole, scale=2)
    cut = CUT * any(panel.cut for panel in panels)
    caption = " ".join(filter(None, (wording.CAPTIONS[name], beside, cut)))
    return Figure(name, title, caption, pictures, tuple(key.items()), whole, png, paired)


def _key(panels: Sequence[Drawn], order: Sequence[str]) -> Mapping[str, Mark]:
    """The meaning of the marks of all panels, colours first. If all is native, nothing is said of it."""
    known = {name: mark for panel in panels for name, mark in panel.key.items()}
    if known.keys() & KINDS.keys() == {"native"}:
        del known["native"]
    return {name: known[name] for name in sorted(known, key=lambda name: name in order and order.index(name) + 1)}


def _panel(drawn: Drawn) -> Panel:
    height = alt.Step(24) if drawn.height is None else drawn.height
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart = drawn.chart.properties(width=WIDTH, height=height, title=drawn.title, autosize=fit).configure(**THEME)
    description = f"{drawn.title}: {drawn.description}"
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    return Panel(svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(description)}', 1), description)


def _height(panel: Panel) -> int:
    """The pixels of the SVG's first attribute `height`."""
    found = re.search(r'\bheight="([\d.]+)"', panel.svg)
    assert found is not None
    return ceil(float(found[1]))


def _sheet(panels: Sequence[Panel], key: Mapping[str, Mark], columns: int) -> str:
    """All panels on one white sheet with the key below, as a file of its own."""
    placed, signs, top, left = [], [], GAP, GAP
    for first in range(0, len(panels), columns):
        row = panels[first : first + columns]
        placed += [(GAP + place * (WIDTH + GAP), top, panel.svg) for place, panel in enumerate(row)]
        top += max(_height(panel) for panel in row) + GAP
    for text, mark in key.items():
        signs.append((left + 6, text, mark))
        # The width of a text is estimated from its length, because the font is unknown.
        left += 44 + 7 * len(text)
    size = {"width": max(GAP + columns * (WIDTH + GAP), left + GAP), "height": top + GAP}
    return document.render("figure.svg.jinja", placed=placed, key=signs, gap=GAP, muted=MUTED, **size)
