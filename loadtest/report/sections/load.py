"""What the load itself says: three rulers of one open loop, the ladder of users and its knee, the price of idling."""

import msgspec

from loadtest.report import comparison, wording
from loadtest.report.comparison import by_deployment
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table
from loadtest.report.wording import ABSENT, Labels, number
from loadtest.results.table import Row
from medserve.spec import LoadProfile


def rulers(facts: Facts) -> Table | None:
    """Open loops: asked beside delivered, and each percentile by the three rulers; null without an open loop."""
    rows = [row for row in facts.rows if row["mode"] == "open-loop" and row["status"] == "done"]
    if not rows:
        return None
    columns = [Column("deployment", numeric=False), Column("size", "px"), Column("schedule", numeric=False)]
    columns += [Column("asked", "per second", "Rate"), Column("delivered", "per second", "Rate")]
    for name in ("p50", "p99"):
        columns += [Column(head, "ms", name) for head in ("from intended", "from sending", "as closed loop", "hidden")]
    columns += [Column("p50", "us", "Send lag"), Column("p99", "us", "Send lag")]
    labels = Labels(facts.rows)
    lines = []
    for row in rows:
        cells = _who(facts, labels, row)
        cells.append(Cell(wording.schedule(facts.profiles[row["profile"]])))
        cells += [_number(row["rate_asked"]), _number(row["rate_delivered"])]
        for name in ("p50", "p99"):
            values = [row[f"{name}_ms"], row[f"{name}_sent_ms"], row[f"{name}_closed_ms"]]
            hidden = None if values[0] is None or values[2] is None else values[0] - values[2]
            cells += [msgspec.structs.replace(_number(values[0]), tone="strong"), *map(_number, [*values[1:], hidden])]
        cells += [_number(row["lag_p50_us"]), _number(row["lag_p99_us"])]
        lines.append(Line(tuple(cells)))
    caption = (
        "The same run read three ways. The headline counts from the intended time; from the sending, what the schedule "
        "had to wait is left out; a closed loop would also have left out every request that was due while it waited. "
        "Hidden: the headline less what a closed loop would have printed."
    )
    return Table("Three rulers", tuple(columns), tuple(lines), caption)


def ladder(facts: Facts) -> Table | None:
    """Images a second by users, with the median beside it up to the knee; null where the study has no ladder."""
    rungs = rungs_of(facts)
    if len(rungs) < 2:
        return None
    labels = Labels(facts.rows)
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column(wording.several(one.users, "user"), "images/s") for one in rungs]
    lines = []
    for group in by_deployment(facts.rows):
        found = [group.get(one.name) for one in rungs]
        if known := [row for row in found if row and row["throughput"]]:
            lines.append(Line((*_who(facts, labels, known[0]), *map(_rung, found))))
    caption = (
        "Answered images a second, and the median latency. Bold: the knee, where throughput over latency is highest "
        "(Kleinrock 1979). Above it a request waits for other users' requests, and latency is not quoted."
    )
    return Table("The ladder of users", tuple(columns), tuple(lines), caption) if lines else None


def idle(facts: Facts) -> Table | None:
    """The median of one user by how long it rests between requests; null where the study lets nobody rest."""
    resting = [one for one in facts.profiles.values() if one.mode == "closed-loop" and one.gap_seconds and not one.trap]
    if not resting:
        return None
    busy = comparison.single_image(facts.profiles.values(), "closed-loop")
    profiles = [facts.profiles[busy]] if busy else []
    profiles += sorted(resting, key=lambda one: one.gap_seconds)
    labels = Labels(facts.rows)
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column(wording.rest(one.gap_seconds), "ms", "Rest between requests") for one in profiles]
    lines = []
    for group in by_deployment(facts.rows):
        if known := [group[one.name] for one in profiles if one.name in group]:
            lines.append(Line((*_who(facts, labels, known[0]), *(_median(group.get(one.name)) for one in profiles))))
    caption = (
        "Median latency of one user with its interval. A server that rests between requests pays for cold caches, "
        "sleeping cores and sleeping threads again; back to back it does not."
    )
    return Table("One request now and then", tuple(columns), tuple(lines), caption)


def rungs_of(facts: Facts) -> list[LoadProfile]:
    """The profiles of the ladder of users, by users."""
    found = [one for one in facts.profiles.values() if one.mode == "closed-loop" and not one.gap_seconds]
    return sorted((one for one in found if one.batch == 1 and not one.trap), key=lambda one: one.users)


def _who(facts: Facts, labels: Labels, row: Row) -> list[Cell]:
    kind = ", ".join([labels.kind(row), *facts.datasets(row["dataset"])])
    return [
        Cell(wording.framework(row["framework"]), kind, mark=wording.mark(row)),
        Cell(str(row["size"]), value=row["size"]),
    ]


def _rung(row: Row | None) -> Cell:
    if row is None or row["throughput"] is None:
        return Cell(ABSENT, tone="muted")
    latency = "" if row["p50_ms"] is None else f"{number(row['p50_ms'])} ms"
    return Cell(number(row["throughput"]), latency, row["throughput"], tone="strong" if row["knee"] else "")


def _median(row: Row | None) -> Cell:
    if row is None or row["p50_ms"] is None:
        return Cell(ABSENT, tone="muted", hint=(row and row["reason"]) or "")
    return Cell(number(row["p50_ms"]), wording.interval(row["p50_low"], row["p50_high"]), row["p50_ms"])


def _number(value: float | None) -> Cell:
    return Cell(number(value), value=value)
