"""Latency against resolution: the charts, fixed cost and cost per pixel, and where one deployment overtakes another."""

from itertools import combinations
from math import exp

import msgspec

from loadtest.analysis import scaling
from loadtest.analysis.scaling import Response
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.drawing import Axis, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table, interval_cell
from medserve.numbers import ABSENT, number

APART = 0.022
"""Relative sideways shift of neighbouring series, so that their intervals do not cover one another."""
INTRO = (
    "latency = fixed cost + cost per pixel x pixels, fitted to each block of launches by least relative squares. The "
    "exponent is that of latency over pixels between the smallest and the largest size (1: proportional to the pixels, "
    "0: constant)."
)


def latency(facts: Facts) -> Figure | None:
    """Medians by resolution; null if every group has one size only."""
    groups = [group for group in _groups(facts) if len({row.size for row in group}) > 1]
    if not groups:
        return None
    points = _median_points(facts, groups)
    spreads = [point.spread for panel in points for point in panel]
    domain = scales.logarithmic(spreads)
    order = list(dict.fromkeys(point.series for panel in points for point in panel))
    sizes = tuple(sorted({row.size for group in groups for row in group}))
    panels = []
    for group, panel in zip(groups, points, strict=True):
        shifts = [APART * (order.index(point.series) - (len(order) - 1) / 2) for point in panel]
        moved = [
            msgspec.structs.replace(point, x=row.size * exp(shift))
            for row, point, shift in zip(group, panel, shifts, strict=True)
        ]
        across = Axis(title="image side, px (log)", domain=(sizes[0] / 1.2, sizes[-1] * 1.2), ticks=sizes, grid=False)
        up = Axis(title="median, ms (log)", domain=domain)
        panels.append(drawing.lines(moved, across, up, _title(facts, group[0]), drawing.extremes(panel)))
    caption = (
        "Median latency of one image by resolution; both axes are logarithmic and the same in all panels. Bars: 95 % "
        "intervals over launches. Points are shifted slightly sideways so that the bars can be read."
    )
    caption += scales.CUT * scales.cut(spreads, domain)
    key = wording.key(row for group in groups for row in group)
    return sheet.draw("latency", "Latency by resolution", caption, panels, key)


def latency_at_one_size(facts: Facts) -> Figure | None:
    """Medians and p99 of what was measured at one size only."""
    groups = [group for group in _groups(facts) if len({row.size for row in group}) == 1]
    if not groups:
        return None
    points = _median_points(facts, groups, tails=True)
    spreads = [point.spread for panel in points for point in panel]
    tails = [(point.tail, None, None) for panel in points for point in panel if point.tail is not None]
    domain = scales.logarithmic([*spreads, *tails])
    panels = []
    for group, panel in zip(groups, points, strict=True):
        title = f"{_title(facts, group[0])}, {group[0].size} px"
        panels.append(drawing.rows(panel, Axis(title="ms (log)", domain=domain), title, drawing.extremes(panel)))
    sizes = wording.listed([f"{size} px" for size in dict.fromkeys(group[0].size for group in groups)])
    caption = (
        "Latency of one image; the axis is logarithmic and the same in all panels. Point: median, with its 95 % "
        "interval over launches."
    )
    caption += " Vertical stroke: p99." * bool(tails)
    caption += scales.CUT * scales.cut(spreads, domain)
    key = wording.key(row for group in groups for row in group)
    return sheet.draw("latency-one-size", f"Latency at {sizes}", caption, panels, key)


def responses(facts: Facts) -> list[Table]:
    """A table for each way of measuring single images, with a line per deployment; none with a single size."""
    modes = ("in-process", "closed-loop", "open-loop")
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in modes]
    return [found for name in names if name and (found := _responses(facts, name)) is not None]


def crossovers(facts: Facts) -> Table | None:
    """The sizes at which one deployment overtakes another over HTTP; null if none does."""
    profile = comparison.single_image(facts.profiles.values(), "closed-loop")
    if profile is None:
        return None
    labels, lines = Labels(facts.rows), []
    series = [rows for rows in _series(facts, profile) if rows[0].framework is not None]
    for a, b in combinations(series, 2):
        found = scaling.crossover(facts.blocks(a), facts.blocks(b))
        if found is None:
            continue
        smallest = min(row.size for row in a)
        ahead = [min(rows, key=lambda row: row.size).p50.value for rows in (a, b)]
        first, then = (a, b) if (ahead[0] or 0) <= (ahead[1] or 0) else (b, a)
        cells = [
            Cell(labels.full(first[0]), f"ahead at {smallest} px", mark=wording.mark(first[0])),
            Cell(labels.full(then[0]), mark=wording.mark(then[0])),
            interval_cell(found),
        ]
        lines.append(Line(tuple(cells)))
    columns = (Column("faster on small images", numeric=False), Column("faster on large images", numeric=False))
    caption = f"{wording.profile(facts.profiles[profile])}; interpolated between the sizes that were measured."
    return Table("Crossovers", (*columns, Column("from", "px")), tuple(lines), caption) if lines else None


def _responses(facts: Facts, profile: str) -> Table | None:
    labels, lines = Labels(facts.rows), []
    for rows in _series(facts, profile):
        found = scaling.response(facts.blocks(rows))
        if found is not None and rows[0].framework is not None:
            lines.append(_line(labels, rows[0], found))
    columns = (
        Column("deployment", numeric=False),
        Column("fixed cost", "ms"),
        Column("per pixel", "ns"),
        Column("exponent"),
        Column("largest residual", "%"),
    )
    return Table(wording.profile(facts.profiles[profile]), columns, tuple(lines)) if lines else None


def _line(labels: Labels, row: Row, found: Response) -> Line:
    cells = [Cell(wording.framework(row.framework), labels.kind(row), mark=wording.mark(row))]
    if found.linear:
        cells += [interval_cell(found.fixed_ms), interval_cell(found.pixel_ns)]
    else:
        cells += [Cell(ABSENT, hint="latency is not linear in the pixels", tone="muted")] * 2
    cells += [interval_cell(found.exponent), Cell(number(found.residual * 100), value=found.residual)]
    return Line(tuple(cells))


def _series(facts: Facts, profile: str) -> list[list[Row]]:
    """The rows of one deployment at all its sizes, for each deployment that has several."""
    keys = (
        "dataset",
        "architecture",
        "framework",
        "format",
        "runtime",
        "device",
        "threads",
        "batch_images",
        "variant",
        "seed",
    )
    rows = [row for row in facts.rows if row.profile == profile and row.status == "done"]
    return [group for group in comparison.grouped(rows, *keys).values() if len({row.size for row in group}) > 1]


def _groups(facts: Facts) -> list[list[Row]]:
    """The rows of single images by panel, without the null runtime, whose point would be decades below the others."""
    shown = {profile.name for profile in comparison.side_by_side(facts.profiles.values())}
    rows = [row for row in facts.rows if row.profile in shown and row.batch == 1 and row.usable]
    return list(comparison.grouped(rows, "dataset", "architecture", "profile").values())


def _median_points(facts: Facts, groups: list[list[Row]], *, tails: bool = False) -> list[list[Point]]:
    labels = Labels(facts.rows)
    return [
        [
            drawing.median_point(
                row, labels.full(row), f"{labels.full(row)}, {row.size} px", row.p99.value if tails else None
            )
            for row in group
        ]
        for group in groups
    ]


def _title(facts: Facts, row: Row) -> str:
    words = [wording.profile(facts.profiles[row.profile]), *facts.datasets(row.dataset)]
    return ", ".join([*words, *facts.architectures(row.architecture)])
