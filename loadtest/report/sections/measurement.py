"""Whether measurements can be trusted: the self-test of the load generator, disturbed windows, steady states."""

from loadtest.report import wording
from loadtest.report.cells import deployment_cells, remarks_by_profile
from loadtest.report.comparison import by_deployment
from loadtest.report.facts import Facts
from loadtest.report.wording import Labels, several
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table
from medserve.numbers import ABSENT, number

VERDICTS = {
    True: Cell("holds", tone="good"),
    False: Cell("does not hold", tone="bad"),
    None: Cell("shown", tone="muted"),
}


def checks(facts: Facts) -> Table | None:
    """One line per check; null if the run has no self-test."""
    if facts.selftest is None:
        return None
    columns = (
        Column("check", numeric=False),
        Column("measured"),
        Column("truth"),
        Column("may differ by"),
        Column("unit", numeric=False),
        Column("verdict", numeric=False),
    )
    lines = []
    for check in facts.selftest.checks:
        values = (check.measured, check.truth, check.limit)
        numbers = [Cell(number(value), value=value) for value in values]
        lines.append(Line((Cell(check.name), *numbers, Cell(check.unit or ABSENT), VERDICTS[check.ok])))
    caption = (
        "Truth is the delay of each request, as the server reports it. Measured is the latency from the intended start "
        "less the null server's p50. Checks that are only shown are not judged."
    )
    return Table("Load-generator self-test", columns, tuple(lines), caption)


def roofline(facts: Facts) -> Table | None:
    """One line per size; null if the run has no self-test."""
    if facts.selftest is None:
        return None
    limit = facts.selftest.roofline_limit
    lines = [
        Line((Cell(str(size), value=size), Cell(f"{rate:,.0f}", value=rate), Cell(f"{limit * rate:,.0f}", value=rate)))
        for size, rate in sorted(facts.selftest.roofline.items())
    ]
    columns = (Column("size", "px"), Column("reached", "requests/s"), Column("highest rate allowed", "requests/s"))
    caption = (
        "What the load generator and the null server reach together. "
        f"A cell that needs more than {limit * 100:.0f} % of it is not valid."
    )
    return Table("The generator's roofline", columns, tuple(lines), caption)


def steadiness(facts: Facts) -> Table | None:
    """One line per deployment and size: its windows and steady states; null if nothing was measured."""
    labels = Labels(facts.rows)
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column("monitored", "", "Windows"), Column("disturbed", "", "Windows")]
    columns += [Column(head, "", "Steady state of its cells") for head in ("reached", "not reached", "too few to tell")]
    lines = []
    for group in by_deployment(facts.rows):
        if not (rows := [row for row in group.values() if row.status == "done"]):
            continue
        cells = deployment_cells(facts, labels, rows[0])
        cells += [_count(sum(row.windows for row in rows)), _count(sum(row.disturbed for row in rows), bad=True)]
        states = [row.steady for row in rows]
        cells += [_count(states.count(True)), _count(states.count(False), bad=True), _count(states.count(None))]
        lines.append(Line(tuple(cells), _remarks(facts, rows)))
    caption = (
        "A window is about a second of a measurement over HTTP; it is disturbed when other work, the hypervisor or "
        "throttling took the measured cores. A cell has a steady state when the last stretch of one median, within 5 "
        "%, covers half of its requests in every launch."
    )
    return Table("Windows and steady state", tuple(columns), tuple(lines), caption) if lines else None


def selftest_caution(facts: Facts) -> str | None:
    """The caution of a failed self-test."""
    if facts.selftest is None or not (failed := facts.selftest.failed):
        return None
    return (
        f"Load-generator self-test failed ({several(len(failed), 'check')}, first {failed[0].name}): "
        "quote no latency of this run."
    )


def cautions(facts: Facts) -> list[str]:
    """Cautions on rows that are not valid, that were disturbed, or that have no steady state."""
    rows = [row for row in facts.rows if row.status == "done"]
    invalid = sum(not row.valid for row in rows)
    windows, disturbed = sum(row.windows for row in rows), sum(row.disturbed for row in rows)
    unsteady = sum(row.steady is False for row in rows)
    found = []
    if invalid:
        found.append(f"{invalid} of {wording.several(len(rows), 'measured row')} are not valid; the tables say why.")
    if disturbed:
        found.append(f"{disturbed:,} of {wording.several(windows, 'window')} of measuring were disturbed.")
    if unsteady:
        found.append(f"{unsteady} of {wording.several(len(rows), 'measured row')} did not reach a steady state.")
    return found


def _count(value: int, *, bad: bool = False) -> Cell:
    return Cell(f"{value:,}", value=value, tone="warn" if bad and value else "")


def _remarks(facts: Facts, rows: list[Row]) -> tuple[str, ...]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        for part in (row.reason or "").split("; "):
            if "windows disturbed" in part or part.startswith("no steady state"):
                found.setdefault(part, []).append(row)
    return remarks_by_profile(facts, found)
