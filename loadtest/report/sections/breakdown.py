"""Where the time goes: the latency breakdown of each deployment, its cross-check, and what HTTP adds."""

from loadtest.analysis.breakdown import TOTAL, UNATTRIBUTED, CrossCheck, Term, cross_check
from loadtest.analysis.intervals import Interval
from loadtest.report import drawing, wording
from loadtest.report import tables as fields_of
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Part, Point
from loadtest.report.facts import NETWORK, Facts, Group, by_deployment, grouped, network
from loadtest.report.figures import figure as compose
from loadtest.report.tables import Field, Value, field
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Table
from medserve.numbers import MINUS, interval, number

PARTS = {
    "client queue": ("Client", "#E69F00"),
    "request path": ("Network", "#56B4E9"),
    "network": ("Network", "#56B4E9"),
    "queue": ("Server", "#CC79A7"),
    "decode": ("Server", "#D55E00"),
    "infer": ("Server", "#009E73"),
    "encode": ("Server", "#F0E442"),
    "return path": ("Network", "#0072B2"),
    "reading": ("Client", wording.MUTED),
    "sending to answer": ("Client", "#56B4E9"),
    UNATTRIBUTED: ("All", "#b6bec8"),
}
"""The parts in the order of time, each with the heading above it and its colour.

Okabe & Ito (2008): neighbours can be distinguished with any kind of colour vision.
"""
Item = tuple[Row, dict[str, Term], CrossCheck | None]
"""The row of a deployment with its terms by name."""


def tables(facts: Facts) -> list[Table]:
    """A table for each way of measuring over HTTP that has breakdowns, with a line per deployment and size."""
    found = [_table(facts, name) for name in facts.single("open-loop", "closed-loop")]
    return [table for table in found if table is not None]


def figure(facts: Facts) -> Figure | None:
    """Stacked bars, one panel per size and way of measuring; null without breakdowns."""
    names = facts.single("closed-loop", "open-loop")
    rows = [row for row in facts.rows if row.profile in names and facts.breakdowns.get(row.cell)]
    panels = []
    for group in grouped(rows, *NETWORK, "profile").values():
        parts = [part for row in group for part in _parts(facts.labels.full(row), facts.breakdowns[row.cell])]
        infer = "; ".join(dict.fromkeys(part.label for part in parts if part.name == "infer"))
        said = infer or "no server reported its stages"
        panels.append(drawing.stacks(parts, "ms", facts.title(group[0]), said))
    return compose("breakdown", "Latency breakdown", panels, order=PARTS)


def overheads(facts: Facts) -> Table | None:
    """What HTTP adds to one image, by deployment and size; null without both ways of measuring."""
    lines: dict[tuple[str, str], dict[int, tuple[Row, Interval]]] = {}
    for row, added in _added(facts):
        lines.setdefault((row.dataset, facts.labels.full(row)), {})[row.size] = (row, added)
    fields: list[Field[dict[int, tuple[Row, Interval]]]] = [
        fields_of.deployment_field(facts, lambda sizes: next(iter(sizes.values()))[0])
    ]
    fields += [_size_field(size) for size in facts.sizes]
    return fields_of.table("What HTTP adds", fields, lines.values())


def _size_field(size: int) -> Field[dict[int, tuple[Row, Interval]]]:
    return field(f"{size} px", lambda sizes: sizes[size][1] if size in sizes else None, "ms")


def overhead_figure(facts: Facts) -> Figure | None:
    """What HTTP adds, a panel per size; null without both ways of measuring."""
    places: dict[str, list[Point]] = {}
    for row, added in _added(facts):
        label = f"{facts.named(row)}: HTTP adds {number(added.value)} ms {interval(added.low, added.high)}"
        point = drawing.point(row, facts.labels.full(row), label, added)
        places.setdefault(facts.place(row), []).append(point)
    panels = []
    for place, points in places.items():
        x = Axis(title="ms", over=[point.value for point in points], scale="linear")
        floor = next((point.value.known for point in points if point.kind == "null runtime"), None)
        panels.append(drawing.rows(points, x, place, line=floor))
    return compose("http-overhead", "What HTTP adds", panels)


def _added(facts: Facts) -> list[tuple[Row, Interval]]:
    """The closed loop of each deployment, with the milliseconds that HTTP adds to its median in process."""
    found = []
    for group in by_deployment(facts.rows):
        rows = [group[name] for name in facts.single("in-process", "closed-loop") if name in group]
        if len(rows) == 2 and all(row.valid and row.p50.value is not None for row in rows):
            inside, outside = (row.p50 for row in rows)
            low, high = fields_of.less(outside.low, inside.high), fields_of.less(outside.high, inside.low)
            found.append((rows[1], Interval(value=outside.known - inside.known, low=low, high=high)))
    return found


def _parts(bar: str, terms: tuple[Term, ...]) -> list[Part]:
    (total,) = (term.p50_ms for term in terms if term.name == TOTAL)
    found = []
    for position, (name, (_, colour)) in enumerate(PARTS.items()):
        # A part may be below zero, by the clocks' resolution; its length is zero then.
        for share in (max(term.share, 0.0) for term in terms if term.name == name):
            label = f"{bar}, {name}: {number(share * total)} ms, {share * 100:.1f} %"
            found.append(Part(name, bar, position, colour, share * total, label))
    return found


def _table(facts: Facts, profile: str) -> Table | None:
    groups = [group for group in by_deployment(facts.rows) if profile in group]
    names = dict.fromkeys(term.name for group in groups for term in facts.breakdowns.get(group[profile].cell, ()))
    floors = {network(row): row.p50.value for row in facts.rows if row.profile == profile and row.framework is None}
    items = []
    for group in groups:
        if terms := facts.breakdowns.get(group[profile].cell):
            check = _cross_check(facts, group, profile, floors.get(network(group[profile])))
            items.append((group[profile], {term.name: term for term in terms}, check))
    # The total and what is unattributed come first: they show how complete the parts are.
    ends = [name for name in (TOTAL, UNATTRIBUTED) if name in names]
    fields: list[Field[Item]] = fields_of.deployment_fields(facts, lambda item: item[0])
    fields += map(_term_field, ends)
    if any(check for _, _, check in items):
        checks: list[Field[CrossCheck]] = [
            field("in process + null", lambda check: check.expected_ms, "ms", "Cross-check"),
            field("difference", _difference, "ms", "Cross-check"),
        ]
        fields += fields_of.of(lambda item: item[2], checks)
    fields += [_term_field(name) for name in names if name not in ends]
    return fields_of.table(wording.profile(facts.profiles[profile]), fields, items)


def _cross_check(facts: Facts, group: Group, profile: str, floor: float | None) -> CrossCheck | None:
    row, inside = group[profile], [group[name] for name in facts.single("in-process") if name in group]
    if row.framework is None or row.p50.value is None or not inside or inside[0].p50.value is None or not floor:
        return None
    return cross_check(row.p50.value, inside[0].p50.value, floor)


def _term_field(name: str) -> Field[Item]:
    return field(name, lambda item: _term(item[1].get(name)), "ms", "All" if name == TOTAL else PARTS[name][0])


def _term(term: Term | None) -> Value:
    if term is None:
        return None
    share = f"{term.share * 100:.1f} %" if term.name != TOTAL else ""
    tail = "" if term.p99_ms is None else f"p99 {number(term.p99_ms)}"
    return Cell(number(term.p50_ms), ", ".join(filter(None, (tail, share))), term.p50_ms)


def _difference(check: CrossCheck) -> Cell:
    relative = f"{check.relative * 100:+.1f} %".replace("-", MINUS)
    return Cell(number(check.difference_ms), relative, check.difference_ms)
