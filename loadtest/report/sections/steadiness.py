"""Whether measurements were left alone and settled: windows that something disturbed, medians that kept moving."""

from loadtest.report import wording
from loadtest.report.comparison import by_deployment
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table
from loadtest.report.wording import Labels
from loadtest.results.table import Row


def table(facts: Facts) -> Table | None:
    """One line a deployment and size: its windows and how its cells settled; null where nothing was measured."""
    labels = Labels(facts.rows)
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column("watched", "", "Windows"), Column("disturbed", "", "Windows")]
    columns += [Column(head, "", "Steady state of its cells") for head in ("reached", "not reached", "too few to tell")]
    lines = []
    for group in by_deployment(facts.rows):
        if not (rows := [row for row in group.values() if row["status"] == "done"]):
            continue
        one = rows[0]
        kind = ", ".join([labels.kind(one), *facts.datasets(one["dataset"])])
        cells = [Cell(wording.framework(one["framework"]), kind, mark=wording.mark(one))]
        cells.append(Cell(str(one["size"]), value=one["size"]))
        cells += [_count(sum(row["windows"] for row in rows)), _count(sum(row["disturbed"] for row in rows), bad=True)]
        states = [row["steady"] for row in rows]
        cells += [_count(states.count(True)), _count(states.count(False), bad=True), _count(states.count(None))]
        lines.append(Line(tuple(cells), _remarks(facts, rows)))
    caption = (
        "A window is about a second of a measurement over HTTP; it is disturbed when other work, the hypervisor or a "
        "throttle took the measured cores. A cell has a steady state when the last stretch of one median, within 5 %, "
        "covers half of its requests in every launch."
    )
    return Table("Windows and steady state", tuple(columns), tuple(lines), caption) if lines else None


def cautions(facts: Facts) -> list[str]:
    """What a reader must know: rows that are not valid, that were disturbed, or that did not settle."""
    rows = [row for row in facts.rows if row["status"] == "done"]
    invalid = sum(not row["valid"] for row in rows)
    windows, disturbed = (sum(row[key] for row in rows) for key in ("windows", "disturbed"))
    moving = sum(row["steady"] is False for row in rows)
    said = []
    if invalid:
        said.append(f"{invalid} of {wording.several(len(rows), 'measured row')} are not valid; the tables say why.")
    if disturbed:
        said.append(f"{disturbed:,} of {wording.several(windows, 'window')} of measuring were disturbed.")
    if moving:
        said.append(f"{moving} of {wording.several(len(rows), 'measured row')} did not reach a steady state.")
    return said


def _count(value: int, *, bad: bool = False) -> Cell:
    return Cell(f"{value:,}", value=value, tone="warn" if bad and value else "")


def _remarks(facts: Facts, rows: list[Row]) -> tuple[str, ...]:
    """Each reason once, with the ways of measuring that it stands for."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for part in (row["reason"] or "").split("; "):
            if "windows disturbed" in part or part.startswith("no steady state"):
                found.setdefault(part, []).append(wording.profile(facts.profiles[row["profile"]]))
    return tuple(f"{'; '.join(where)}: {reason}" for reason, where in found.items())
