"""The ruler's own test: what it measured where the truth was known, and what the generator can send at all."""

from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table
from loadtest.report.wording import ABSENT, number, several
from medserve.tables import ROOFLINE

VERDICTS = {
    True: Cell("holds", tone="good"),
    False: Cell("does not hold", tone="bad"),
    None: Cell("shown", tone="muted"),
}


def checks(facts: Facts) -> Table | None:
    """One line a check; nothing where the run has no self-test."""
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
        "Truth is the delay that each request really received, as the server reports it. Latency is measured from the "
        "intended time, less the null server's p50. What is shown is not judged."
    )
    return Table("Known answers", columns, tuple(lines), caption)


def roofline(facts: Facts) -> Table | None:
    """One line a size; nothing where the run has no self-test."""
    if facts.selftest is None:
        return None
    lines = [
        Line(
            (Cell(str(size), value=size), Cell(f"{rate:,.0f}", value=rate), Cell(f"{ROOFLINE * rate:,.0f}", value=rate))
        )
        for size, rate in sorted(facts.selftest.roofline.items())
    ]
    columns = (Column("size", "px"), Column("reached", "requests/s"), Column("highest rate admitted", "requests/s"))
    caption = (
        "What the load generator and the null server reach together. "
        f"A cell that needs more than {ROOFLINE * 100:.0f} % of it is refused."
    )
    return Table("The generator's roofline", columns, tuple(lines), caption)


def caution(facts: Facts) -> str | None:
    """What a reader must know of a ruler that failed."""
    if facts.selftest is None or not (failed := facts.selftest.failed):
        return None
    return (
        f"The ruler failed its self-test ({several(len(failed), 'check')}, first {failed[0].name}): "
        "no latency of this run is to be quoted."
    )
