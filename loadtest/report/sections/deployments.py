"""The tables of deployments: one per data set and size, a line per deployment, with every reason."""

from collections.abc import Iterable, Sequence

from loadtest.report import comparison, wording
from loadtest.report.comparison import Group, by_deployment, grouped
from loadtest.report.facts import Facts
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table, Tone
from medserve.numbers import ABSENT, interval, number, percent
from medserve.spec import LoadProfile


def tables(facts: Facts) -> list[Table]:
    """One table per data set and size, with every deployment of the study, measured or not."""
    labels = Labels(facts.rows)
    found = []
    for (dataset, size), rows in grouped(facts.rows, "dataset", "size").items():
        names = dict.fromkeys(row.profile for row in rows)
        profiles = comparison.side_by_side([facts.profiles[name] for name in names])
        columns = [Column("deployment", numeric=False)]
        columns += [column for profile in profiles for column in _profile_columns(profile)]
        columns += [Column("accuracy", "%"), Column("parity error", "max |Δp|"), Column("status", numeric=False)]
        groups = by_deployment(rows)
        lines = tuple(_deployment_line(facts, labels, profiles, group) for group in groups)
        title = ", ".join([*facts.datasets(str(dataset)), f"{size} px"])
        found.append(Table(title, tuple(columns), lines, notes=_notes(facts, labels, groups)))
    return found


def _profile_columns(profile: LoadProfile) -> list[Column]:
    group = wording.profile(profile)
    return [
        Column("images/s", "", group) if name == "throughput" else Column(name, "ms", group) for name in _shown(profile)
    ]


def _shown(profile: LoadProfile) -> tuple[str, ...]:
    if profile.mode == "in-process":
        return ("p50", "p90", "p99") if profile.batch == 1 else ("p50", "throughput")
    # An open loop delivers the rate that is asked for; its throughput is no result.
    return ("p50", "p90", "p99", "throughput") if profile.mode == "closed-loop" else ("p50", "p99")


def _deployment_line(facts: Facts, labels: Labels, profiles: Sequence[LoadProfile], group: Group) -> Line:
    row = next(iter(group.values()))
    cells = [Cell(wording.framework(row.framework), labels.kind(row), hint=row.deployment, mark=wording.mark(row))]
    for profile in profiles:
        cells += [_measured(group.get(profile.name), name, profile) for name in _shown(profile)]
    parity = row.parity_max_abs
    cells.append(Cell(percent(row.accuracy), value=row.accuracy))
    cells.append(Cell(number(parity), value=parity))
    status, tone = _status(facts, list(group.values()))
    cells.append(Cell(status, tone=tone))
    return Line(tuple(cells), _remarks(facts, group) if tone != "good" else ())


def _measured(row: Row | None, name: str, profile: LoadProfile) -> Cell:
    if row is None:
        return Cell("")
    if name == "throughput":
        return Cell(number(row.throughput), value=row.throughput)
    value, bounds = row.percentile(name).value, interval(row.percentile(name).low, row.percentile(name).high)
    if value is None:
        return Cell(ABSENT, hint=row.reason or "", tone="muted")
    if profile.mode == "in-process" and (name != "p50" or row.framework is None):
        # The tail in process is context; its interval is in the tooltip and in `medserve results`.
        return Cell(number(value), value=value, hint=bounds)
    return Cell(number(value), bounds, value)


def _status(facts: Facts, rows: list[Row]) -> tuple[str, Tone]:
    states = {row.status for row in rows}
    if states == {"failed"}:
        return "failed", "bad"
    if states == {"missing"}:
        return "not measured", "warn"
    if states != {"done"}:
        return "in part", "bad" if "failed" in states else "warn"
    if invalid := sum(not row.valid for row in rows):
        artifact = facts.artifacts.get(rows[0].source_artifact)
        proof = artifact.certificate_of(rows[0].runtime) if artifact else None
        if rows[0].framework and not (proof and proof.valid):
            return "not certified", "bad"
        return ("not valid" if invalid == len(rows) else f"{invalid} of {len(rows)} not valid"), "bad"
    if (fewest := min(row.launches for row in rows)) < facts.study.launches:
        return f"{fewest} of {facts.study.launches} launches", "warn"
    if failed := sum(row.failed for row in rows):
        return wording.several(failed, "failed request"), "warn"
    return "done", "good"


def _remarks(facts: Facts, group: Group) -> tuple[str, ...]:
    """Each reason once, with the ways of measuring to which it applies."""
    reasons: dict[str, list[str]] = {}
    for row in group.values():
        words = [f"{row.failed:,} of {row.n:,} requests failed"] if row.failed else []
        incomplete = row.status != "done" or row.launches < facts.study.launches or not row.valid
        words += [row.reason] if incomplete and row.reason else []
        if words:
            reasons.setdefault("; ".join(words), []).append(wording.profile(facts.profiles[row.profile]))
    if len(reasons) == 1 and len(next(iter(reasons.values()))) == len(group):
        return tuple(reasons)
    return tuple(f"{'; '.join(where)}: {reason}" for reason, where in reasons.items())


def _notes(facts: Facts, labels: Labels, groups: Iterable[Group]) -> tuple[str, ...]:
    """Why numbers are missing although nothing failed: each reason once, with the deployments to which it applies."""
    reasons: dict[str, list[str]] = {}
    for group in groups:
        found: dict[str, list[Row]] = {}
        for row in group.values():
            if row.valid and row.reason and row.launches == facts.study.launches:
                found.setdefault(row.reason, []).append(row)
        for reason, rows in found.items():
            where = [wording.profile(facts.profiles[row.profile]) for row in rows]
            everywhere = len(rows) == len(group)
            words = labels.full(rows[0]) + ("" if everywhere else f" ({'; '.join(where)})")
            reasons.setdefault(reason, []).append(words)
    return tuple(f"{', '.join(where)}: {reason}" for reason, where in reasons.items())
