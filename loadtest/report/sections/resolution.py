"""Latency against resolution: the charts, fixed cost and cost per pixel, and where one deployment overtakes another."""

from itertools import combinations
from math import exp
from typing import Any

from loadtest.analysis import scaling
from loadtest.analysis.intervals import Interval
from loadtest.analysis.scaling import Response
from loadtest.report import drawing, tables, wording
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Point
from loadtest.report.facts import Facts, grouped
from loadtest.report.figures import figure
from loadtest.report.tables import Field, field, text
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Table
from medserve.numbers import number

APART = 0.022
"""Relative sideways shift of neighbouring series, so that their intervals do not cover one another."""


def latency(facts: Facts) -> Figure | None:
    """Medians by resolution; null if every group has one size only."""
    groups = [group for group in _groups(facts) if len({row.size for row in group}) > 1]
    rows = [row for group in groups for row in group]
    order = list(dict.fromkeys(facts.labels.full(row) for row in rows))
    sizes = sorted({row.size for row in rows})
    up = Axis(title="median, ms (log)", over=[row.p50 for row in rows])
    panels = []
    for group in groups:
        points = []
        for row in group:
            shift = APART * (order.index(facts.labels.full(row)) - (len(order) - 1) / 2)
            points.append(_point(facts, row, x=Interval(value=row.size * exp(shift))))
        ends = sizes[0] / 1.2, sizes[-1] * 1.2
        across = Axis(title="image side, px (log)", ends=ends, ticks=tuple(sizes), grid=False)
        panels.append(drawing.lines(points, across, up, facts.title(group[0], size=False)))
    return figure("latency", "Latency by resolution", panels)


def latency_at_one_size(facts: Facts) -> Figure | None:
    """Medians and p99 of what was measured at one size only."""
    groups = [group for group in _groups(facts) if len({row.size for row in group}) == 1]
    rows = [row for group in groups for row in group]
    tails = [Interval(value=row.p99.value) for row in rows if row.p99.value is not None]
    across = Axis(title="ms (log)", over=[*(row.p50 for row in rows), *tails])
    panels = [
        drawing.rows([_point(facts, row, tail=row.p99.value) for row in group], across, facts.title(group[0]))
        for group in groups
    ]
    sizes = wording.listed([f"{size} px" for size in dict.fromkeys(row.size for row in rows)])
    return figure("latency-one-size", f"Latency at {sizes}", panels, "Vertical stroke: p99." * bool(tails))


def responses(facts: Facts) -> list[Table]:
    """A table for each way of measuring single images, with a line per deployment; none with a single size."""
    fields: list[Field[tuple[Row, Response]]] = [
        tables.deployment_field(facts, lambda found: found[0]),
        field("fixed cost", lambda found: _linear(found[1], found[1].fixed_ms), "ms"),
        field("per pixel", lambda found: _linear(found[1], found[1].pixel_ns), "ns"),
        field("exponent", lambda found: found[1].exponent),
        field("largest residual", lambda found: _residual(facts, found[1]), "%"),
    ]
    found = []
    for profile in facts.single("in-process", "closed-loop", "open-loop"):
        known = ((rows[0], scaling.response(facts.blocks(rows))) for rows in _series(facts, profile))
        items = [(row, response) for row, response in known if response is not None]
        found.append(tables.table(wording.profile(facts.profiles[profile]), fields, items))
    return [table for table in found if table is not None]


def crossovers(facts: Facts) -> Table | None:
    """The sizes at which one deployment overtakes another over HTTP; null if none does."""
    fields: list[Field[tuple[Row, Row, Interval]]] = [
        text("faster on small images", lambda found: _named(facts, found[0], f"ahead at {found[0].size} px")),
        text("faster on large images", lambda found: _named(facts, found[1])),
        field("from", lambda found: found[2], "px"),
    ]
    found = []
    for profile in facts.single("closed-loop"):
        smallest = [(min(rows, key=lambda row: row.size), rows) for rows in _series(facts, profile)]
        for pair in combinations(smallest, 2):
            crossing = scaling.crossover(*(facts.blocks(rows) for _, rows in pair))
            if crossing is not None:
                first, then = sorted((row for row, _ in pair), key=lambda row: row.p50.value or 0.0)
                found.append((first, then, crossing))
    where = [wording.profile(facts.profiles[profile]) for profile in facts.single("closed-loop")]
    caption = f"{'; '.join(where)}; interpolated between the sizes that were measured."
    return tables.table("Crossovers", fields, found, caption)


def _named(facts: Facts, row: Row, beside: str = "") -> Cell:
    return Cell(facts.labels.full(row), beside, mark=wording.mark(row))


def _linear(response: Response, found: Interval) -> tables.Value:
    return found if response.linear else tables.absent("latency is not linear in the pixels")


def _residual(facts: Facts, response: Response) -> Cell:
    if len(facts.sizes) < 3:
        return tables.absent("two sizes leave no residual")
    return Cell(number(response.residual * 100), value=response.residual)


def _series(facts: Facts, profile: str) -> list[list[Row]]:
    """The rows of one deployment at all its sizes, for each deployment that has several; without the null runtime."""
    names = "dataset architecture framework format runtime precision device settings threads dispatch batch_images"
    rows = [row for row in facts.rows if row.profile == profile and row.status == "done" and row.framework]
    groups = grouped(rows, *names.split(), "instances", "variant", "seed", "server", "copy")
    return [group for group in groups.values() if len({row.size for row in group}) > 1]


def _groups(facts: Facts) -> list[list[Row]]:
    """The rows of single images by panel, without the null runtime, whose point would be decades below the others."""
    rows = [row for row in facts.rows if row.profile in facts.main and row.batch == 1 and row.usable]
    return list(grouped(rows, "dataset", "architecture", "profile").values())


def _point(facts: Facts, row: Row, **other: Any) -> Point:
    """The median of a row, and its p99 if there is a `tail`."""
    label = f"{facts.named(row)}: median {wording.estimate(row)}"
    label += f", p99 {number(other['tail'])} ms" if other.get("tail") is not None else ""
    return drawing.point(row, facts.labels.full(row), label, row.p50, **other)
