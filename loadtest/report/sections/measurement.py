"""Whether measurements can be trusted: the self-test of the load generator, disturbed windows, steady states."""

from loadtest.analysis.intervals import Interval
from loadtest.report import tables
from loadtest.report.facts import Facts, Group, by_deployment
from loadtest.report.tables import Field, field, text
from loadtest.report.wording import several
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Table
from medserve.numbers import ABSENT
from medserve.result import Check

VERDICTS = {
    True: Cell("holds", tone="good"),
    False: Cell("does not hold", tone="bad"),
    None: Cell("shown", tone="muted"),
}
UNSTEADY = "no steady state"
"""How the reason of a row begins that has none."""


def checks(facts: Facts) -> Table | None:
    """One line per check; null if the run has no self-test."""
    fields: list[Field[Check]] = [
        text("check", lambda check: check.name),
        field("measured", lambda check: Interval(value=check.measured, low=check.low, high=check.high)),
        field("truth", lambda check: check.truth),
        field("may differ by", lambda check: check.limit),
        text("unit", lambda check: check.unit or ABSENT),
        text("verdict", lambda check: VERDICTS[check.ok]),
    ]
    known = facts.selftest.checks if facts.selftest else ()
    return tables.table("Load-generator self-test", fields, known)


def roofline(facts: Facts) -> Table | None:
    """One line per size; null if the run has no self-test."""
    if facts.selftest is None:
        return None
    limit = facts.selftest.roofline_limit
    fields: list[Field[tuple[int, float]]] = [
        field("size", lambda item: item[0], "px"),
        field("reached", lambda item: round(item[1]), "requests/s"),
        field("highest rate allowed", lambda item: round(limit * item[1]), "requests/s"),
    ]
    caption = (
        "What the load generator and the null server reach together. "
        f"A cell that needs more than {limit * 100:.0f} % of it is not valid."
    )
    return tables.table("The generator's roofline", fields, sorted(facts.selftest.roofline.items()), caption)


def steadiness(facts: Facts) -> Table | None:
    """One line per deployment and size: its windows and steady states; null if nothing was measured."""
    steady = "Steady state of its cells"
    fields: list[Field[Group]] = [
        *tables.deployment_fields(facts, tables.first),
        field("monitored", lambda group: sum(row.windows for row in group.values()), "", "Windows"),
        field("disturbed", lambda group: _warning(sum(row.disturbed for row in group.values())), "", "Windows"),
        field("reached", lambda group: sum(row.steady is True for row in group.values()), "", steady),
        field("not reached", lambda group: _warning(sum(row.steady is False for row in group.values())), "", steady),
        field("too few to tell", lambda group: sum(row.steady is None for row in group.values()), "", steady),
    ]

    def remarks(group: Group) -> tuple[str, ...]:
        parts = [(part, row) for row in group.values() for part in (row.reason or "").split("; ")]
        found = [(part, row) for part, row in parts if "windows disturbed" in part or part.startswith(UNSTEADY)]
        return tables.remarks(facts, found)

    return tables.table(
        "Windows and steady state",
        fields,
        by_deployment(_measured(facts)),
        remarks=remarks,
    )


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
    rows = _measured(facts)
    measured = several(len(rows), "measured row")
    windows, disturbed = sum(row.windows for row in rows), sum(row.disturbed for row in rows)
    invalid, unsteady = sum(not row.valid for row in rows), sum(row.steady is False for row in rows)
    found = {
        f"{invalid} of {measured} are not valid; the tables say why.": invalid,
        f"{disturbed:,} of {several(windows, 'window')} of measuring were disturbed.": disturbed,
        f"{unsteady} of {measured} did not reach a steady state.": unsteady,
    }
    return [caution for caution, count in found.items() if count]


def _measured(facts: Facts) -> list[Row]:
    return [row for row in facts.rows if row.status == "done"]


def _warning(count: int) -> Cell:
    return Cell(f"{count:,}", value=count, tone="warn" if count else "")
