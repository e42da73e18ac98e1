"""Where the time goes: the ledger of each deployment in the closed and the open loop, and the same sum a second way."""

from loadtest.analysis.breakdown import TOTAL, UNATTRIBUTED, CrossCheck, Term, cross_check
from loadtest.report import comparison, series, sheet, wording
from loadtest.report.comparison import Group, by_deployment
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Figure, Line, Mark, Table
from loadtest.report.series import Part
from loadtest.report.wording import ABSENT, Labels, number
from loadtest.results.table import Row

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
    "Medians of each part of a request; beside them its p99, and its share of the mean. The rest is what no stamp "
    "explains. Medians of parts need not add up to that of the whole. A second way: the median in process plus that of "
    "the null server in the same way of measuring; the difference is what was measured less that."
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
"""Okabe & Ito (2008), in the order of time, so that neighbours are told apart with any kind of colour vision."""
MODEL = ("dataset", "architecture", "size", "profile")


def tables(facts: Facts) -> list[Table]:
    """A table for each way of measuring over HTTP that has ledgers, with one line a deployment and size."""
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in ("open-loop", "closed-loop")]
    return [found for name in names if name and (found := _table(facts, name)) is not None]


def figure(facts: Facts) -> Figure | None:
    """Stacked bars, one panel a size and way of measuring; null without ledgers."""
    labels = Labels(facts.rows)
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in ("closed-loop", "open-loop")]
    rows = [row for row in facts.rows if row["profile"] in names and facts.ledgers.get(row["cell"])]
    panels = []
    shown: dict[str, Mark] = {}
    for group in comparison.grouped(rows, "dataset", "architecture", "size", "profile").values():
        row = group[0]
        where = [wording.profile(facts.profiles[row["profile"]]), *facts.datasets(row["dataset"])]
        title = ", ".join([*where, *facts.architectures(row["architecture"]), f"{row['size']} px"])
        parts = [part for one in group for part in _parts(labels.full(one), facts.ledgers[one["cell"]])]
        shown |= {part.name: Mark(COLOURS[part.name], "square") for part in parts}
        says = "; ".join(dict.fromkeys(part.label for part in parts if part.name == "infer"))
        panels.append(series.stacks(parts, "ms", title, says or "no server said what it spent"))
    caption = (
        "Where the time of one request goes, in the order of time. A bar is as long as the median of the whole, and "
        "divided by the shares of the mean. Pale grey at its end: what no stamp explains."
    )
    key = tuple((name, shown[name]) for name in COLOURS if name in shown)
    return sheet.draw("ledger", "Where the time goes", caption, panels, key) if panels else None


def _parts(bar: str, ledger: tuple[Term, ...]) -> list[Part]:
    (whole,) = (term.p50_ms for term in ledger if term.name == TOTAL)
    found = []
    for place, name in enumerate(COLOURS):
        # A part may come out below nothing, by the clocks' resolution; it has no length.
        for share in (max(term.share, 0.0) for term in ledger if term.name == name):
            label = f"{bar}, {name}: {number(share * whole)} ms, {share * 100:.1f} %"
            found.append(Part(name, bar, place, COLOURS[name], share * whole, label))
    return found


def _table(facts: Facts, profile: str) -> Table | None:
    labels = Labels(facts.rows)
    groups = [group for group in by_deployment(facts.rows) if profile in group]
    ledgers = {group[profile]["cell"]: facts.ledgers.get(group[profile]["cell"], ()) for group in groups}
    names = dict.fromkeys(term.name for found in ledgers.values() for term in found)
    # The sum and what it leaves open come first: they say what the parts are worth.
    ends = [name for name in (TOTAL, UNATTRIBUTED) if name in names]
    parts = [name for name in names if name not in ends]
    if not names:
        return None
    inside = comparison.single_image(facts.profiles.values(), "in-process")
    floors = {
        tuple(group[profile][key] for key in MODEL): group[profile]["p50_ms"]
        for group in groups
        if group[profile]["framework"] is None
    }
    second = {group[profile]["cell"]: _second(group, profile, inside, floors) for group in groups}
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column(name, "ms", "All") for name in ends]
    if any(second.values()):
        columns += [Column("in process + null", "ms", "A second way"), Column("difference", "ms", "A second way")]
    columns += [Column(name, "ms", GROUPS.get(name, "Server")) for name in parts]
    lines = []
    for group in groups:
        row = group[profile]
        found = {term.name: term for term in ledgers[row["cell"]]}
        if not found:
            continue
        kind = ", ".join([labels.kind(row), *facts.datasets(row["dataset"])])
        cells = [Cell(wording.framework(row["framework"]), kind, mark=wording.mark(row))]
        cells.append(Cell(str(row["size"]), value=row["size"]))
        cells += [_term(found.get(name)) for name in ends]
        cells += _second_cells(second[row["cell"]]) if any(second.values()) else []
        cells += [_term(found.get(name)) for name in parts]
        lines.append(Line(tuple(cells)))
    return Table(wording.profile(facts.profiles[profile]), tuple(columns), tuple(lines))


def _term(term: Term | None) -> Cell:
    if term is None:
        return Cell(ABSENT, tone="muted")
    share = f"{term.share * 100:.1f} %" if term.name != TOTAL else ""
    tail = "" if term.p99_ms is None else f"p99 {number(term.p99_ms)}"
    return Cell(number(term.p50_ms), ", ".join(filter(None, (tail, share))), term.p50_ms)


def _second(
    group: Group, profile: str, inside: str | None, floors: dict[tuple[object, ...], float | None]
) -> CrossCheck | None:
    row = group[profile]
    floor = floors.get(tuple(row[key] for key in MODEL))
    if row["framework"] is None or inside not in group or not floor:
        return None
    return _sum(row, group[inside], floor)


def _sum(row: Row, inside: Row, floor: float) -> CrossCheck | None:
    if row["p50_ms"] is None or inside["p50_ms"] is None:
        return None
    return cross_check(row["p50_ms"], inside["p50_ms"], floor)


def _second_cells(found: CrossCheck | None) -> list[Cell]:
    if found is None:
        return [Cell(ABSENT, tone="muted")] * 2
    relative = f"{found.relative * 100:+.1f} %".replace("-", wording.MINUS)
    return [
        Cell(number(found.expected_ms), value=found.expected_ms),
        Cell(number(found.difference_ms), relative, found.difference_ms),
    ]
