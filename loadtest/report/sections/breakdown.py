"""Where the time goes: the latency breakdown of each deployment, its cross-check, and what HTTP adds."""

from loadtest.analysis.breakdown import TOTAL, UNATTRIBUTED, CrossCheck, Term, cross_check
from loadtest.analysis.intervals import Interval
from loadtest.report import comparison, drawing, scales, series, sheet, wording
from loadtest.report.cells import deployment_cell, deployment_cells
from loadtest.report.comparison import Group, by_deployment
from loadtest.report.drawing import Axis, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.series import Part
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Mark, Table, interval_cell
from medserve.numbers import ABSENT, MINUS, interval, number

GROUPS = {
    "request path": "Network",
    "network": "Network",
    "return path": "Network",
    "reading": "Client",
    "client queue": "Client",
    "sending to answer": "Client",
}
"""Headings above the parts; the others are the server's."""
INTRO = (
    "Medians of each part of a request; beside them its p99, and its share of the mean. Unattributed is what no stamp "
    "explains. Medians of parts need not add up to that of the total. Cross-check: the median in process plus that of "
    "the null server in the same way of measuring; the difference is the measured median less that sum."
)
COLOURS = {
    "client queue": "#E69F00",
    "request path": "#56B4E9",
    "network": "#56B4E9",
    "queue": "#CC79A7",
    "decode": "#D55E00",
    "infer": "#009E73",
    "encode": "#F0E442",
    "return path": "#0072B2",
    "reading": wording.MUTED,
    "sending to answer": "#56B4E9",
    UNATTRIBUTED: "#b6bec8",
}
"""Okabe & Ito (2008), in the order of time: neighbours can be distinguished with any kind of colour vision."""
MODEL = ("dataset", "architecture", "size", "profile")


def tables(facts: Facts) -> list[Table]:
    """A table for each way of measuring over HTTP that has breakdowns, with a line per deployment and size."""
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in ("open-loop", "closed-loop")]
    return [found for name in names if name and (found := _table(facts, name)) is not None]


def figure(facts: Facts) -> Figure | None:
    """Stacked bars, one panel per size and way of measuring; null without breakdowns."""
    labels = Labels(facts.rows)
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in ("closed-loop", "open-loop")]
    rows = [row for row in facts.rows if row.profile in names and facts.breakdowns.get(row.cell)]
    panels = []
    shown: dict[str, Mark] = {}
    for group in comparison.grouped(rows, "dataset", "architecture", "size", "profile").values():
        first = group[0]
        where = [wording.profile(facts.profiles[first.profile]), *facts.datasets(first.dataset)]
        title = ", ".join([*where, *facts.architectures(first.architecture), f"{first.size} px"])
        parts = [part for row in group for part in _parts(labels.full(row), facts.breakdowns[row.cell])]
        shown |= {part.name: Mark(COLOURS[part.name], "square") for part in parts}
        infer = "; ".join(dict.fromkeys(part.label for part in parts if part.name == "infer"))
        panels.append(series.stacks(parts, "ms", title, infer or "no server reported its stages"))
    caption = (
        "The latency of one request by its parts, in the order of time. A bar is as long as the median of the total, "
        "and divided by the shares of the mean. Pale grey at its end: unattributed."
    )
    key = tuple((name, shown[name]) for name in COLOURS if name in shown)
    return sheet.draw("breakdown", "Latency breakdown", caption, panels, key) if panels else None


def overheads(facts: Facts) -> Table | None:
    """What HTTP adds to one image, by deployment and size; null without both ways of measuring."""
    ways = comparison.both_ways(facts.profiles.values())
    if ways is None:
        return None
    labels, sizes = Labels(facts.rows), list(facts.study.sizes)
    lines: dict[tuple[str, str], dict[int, tuple[Row, Interval]]] = {}
    for group in by_deployment(facts.rows):
        if (added := comparison.overhead(group, *ways)) is not None:
            row = group[ways[0]]
            lines.setdefault((row.dataset, labels.full(row)), {})[row.size] = (row, added)
    if not lines:
        return None
    columns = (Column("deployment", numeric=False), *(Column(f"{size} px", "ms") for size in sizes))
    rows = []
    for by_size in lines.values():
        cells = [deployment_cell(facts, labels, next(iter(by_size.values()))[0])]
        cells += [interval_cell(by_size[size][1]) if size in by_size else Cell(ABSENT, tone="muted") for size in sizes]
        rows.append(Line(tuple(cells)))
    caption = "Median of the closed loop less the median in process, one image per request."
    return Table("What HTTP adds", columns, tuple(rows), caption)


def overhead_figure(facts: Facts) -> Figure | None:
    """What HTTP adds, a panel per size; null without both ways of measuring."""
    ways = comparison.both_ways(facts.profiles.values())
    if ways is None:
        return None
    labels = Labels(facts.rows)
    found: dict[tuple[str, str, int], list[Point]] = {}
    rows = []
    for group in by_deployment(facts.rows):
        added = comparison.overhead(group, *ways)
        if added is None:
            continue
        row, name = group[ways[1]], labels.full(group[ways[1]])
        rows.append(row)
        label = f"{name}, {row.size} px: HTTP adds {number(added.value)} ms {interval(added.low, added.high)}"
        point = drawing.point(row, name, label, added.known, (added.low, added.high))
        found.setdefault((row.dataset, row.architecture, row.size), []).append(point)
    if not rows:
        return None
    panels, beyond = [], False
    for (dataset, architecture, size), points in found.items():
        spreads = [point.spread for point in points]
        domain = scales.linear(spreads)
        beyond |= scales.cut(spreads, domain)
        place = [*facts.datasets(dataset), *facts.architectures(architecture)]
        floor = next((point.value for point in points if point.kind == "null"), None)
        title = ", ".join([*place, f"{size} px"])
        across = Axis(title="ms", domain=domain, log=False)
        panels.append(drawing.rows(points, across, title, drawing.extremes(points), line=floor))
    caption = (
        "Median of the closed loop less the median in process, one image per request, with its 95 % interval; each "
        "panel has its own axis. Broken line: the null runtime, which computes nothing: the floor of wrapper and "
        "client."
    )
    caption += scales.CUT * beyond
    return sheet.draw("http-overhead", "What HTTP adds", caption, panels, wording.key(rows))


def _parts(bar: str, terms: tuple[Term, ...]) -> list[Part]:
    (total,) = (term.p50_ms for term in terms if term.name == TOTAL)
    found = []
    for position, name in enumerate(COLOURS):
        # A part may be below zero, by the clocks' resolution; its length is zero then.
        for share in (max(term.share, 0.0) for term in terms if term.name == name):
            label = f"{bar}, {name}: {number(share * total)} ms, {share * 100:.1f} %"
            found.append(Part(name, bar, position, COLOURS[name], share * total, label))
    return found


def _table(facts: Facts, profile: str) -> Table | None:
    labels = Labels(facts.rows)
    groups = [group for group in by_deployment(facts.rows) if profile in group]
    breakdowns = {group[profile].cell: facts.breakdowns.get(group[profile].cell, ()) for group in groups}
    names = dict.fromkeys(term.name for terms in breakdowns.values() for term in terms)
    # The total and what is unattributed come first: they show how complete the parts are.
    ends = [name for name in (TOTAL, UNATTRIBUTED) if name in names]
    parts = [name for name in names if name not in ends]
    if not names:
        return None
    in_process = comparison.single_image(facts.profiles.values(), "in-process")
    floors = {
        tuple(getattr(row, key) for key in MODEL): row.p50.value
        for row in (group[profile] for group in groups)
        if row.framework is None
    }
    checks = {group[profile].cell: _cross_check(group, profile, in_process, floors) for group in groups}
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column(name, "ms", "All") for name in ends]
    if any(checks.values()):
        columns += [Column("in process + null", "ms", "Cross-check"), Column("difference", "ms", "Cross-check")]
    columns += [Column(name, "ms", GROUPS.get(name, "Server")) for name in parts]
    lines = []
    for group in groups:
        row = group[profile]
        found = {term.name: term for term in breakdowns[row.cell]}
        if not found:
            continue
        cells = deployment_cells(facts, labels, row)
        cells += [_term_cell(found.get(name)) for name in ends]
        cells += _check_cells(checks[row.cell]) if any(checks.values()) else []
        cells += [_term_cell(found.get(name)) for name in parts]
        lines.append(Line(tuple(cells)))
    return Table(wording.profile(facts.profiles[profile]), tuple(columns), tuple(lines))


def _cross_check(
    group: Group, profile: str, in_process: str | None, floors: dict[tuple[object, ...], float | None]
) -> CrossCheck | None:
    row = group[profile]
    floor = floors.get(tuple(getattr(row, key) for key in MODEL))
    if row.framework is None or in_process not in group or not floor:
        return None
    alone = group[in_process]
    if row.p50.value is None or alone.p50.value is None:
        return None
    return cross_check(row.p50.value, alone.p50.value, floor)


def _term_cell(term: Term | None) -> Cell:
    if term is None:
        return Cell(ABSENT, tone="muted")
    share = f"{term.share * 100:.1f} %" if term.name != TOTAL else ""
    tail = "" if term.p99_ms is None else f"p99 {number(term.p99_ms)}"
    return Cell(number(term.p50_ms), ", ".join(filter(None, (tail, share))), term.p50_ms)


def _check_cells(check: CrossCheck | None) -> list[Cell]:
    if check is None:
        return [Cell(ABSENT, tone="muted")] * 2
    relative = f"{check.relative * 100:+.1f} %".replace("-", MINUS)
    return [
        Cell(number(check.expected_ms), value=check.expected_ms),
        Cell(number(check.difference_ms), relative, check.difference_ms),
    ]
