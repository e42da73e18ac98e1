"""Every deployment: one table per data set and size with every reason, and the distributions of its launches."""

from collections.abc import Iterable

from loadtest.analysis.intervals import Interval
from loadtest.report import drawing, wording
from loadtest.report import tables as fields_of
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Drawn
from loadtest.report.facts import NETWORK, Facts, Group, by_deployment, grouped
from loadtest.report.figures import figure
from loadtest.report.tables import Field, Value, field, text
from loadtest.results.row import Row, of_labels
from loadtest.results.tabular import Cell, Table
from medserve.numbers import interval, number
from medserve.spec import LoadProfile

SHARES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001, 0.00001)
"""Ticks of a distribution."""


def tables(facts: Facts) -> list[Table]:
    """One table per data set and size, with every deployment of the study, measured or not."""
    found = []
    for (dataset, size), rows in grouped(facts.rows, "dataset", "size").items():
        names = {row.profile for row in rows}
        fields: list[Field[Group]] = [text("deployment", lambda group: _deployment(facts, group))]
        for profile in facts.main.values():
            fields += _profile_fields(profile) if profile.name in names else []
        fields += [
            field("accuracy", _accuracy, "%"),
            field("parity error", lambda group: fields_of.first(group).parity_max_abs, "max |Δp|"),
            text("status", lambda group: _status(facts, list(group.values()))),
        ]
        title, groups = ", ".join([*facts.shown_dataset(str(dataset)), f"{size} px"]), by_deployment(rows)
        notes = _notes(facts, groups)
        found.append(fields_of.table(title, fields, groups, remarks=lambda group: _remarks(facts, group), notes=notes))
    return [table for table in found if table is not None]


def _accuracy(group: Group) -> Cell:
    row = fields_of.first(group)
    return fields_of.share(row.accuracy, of_labels(row.task))


def _deployment(facts: Facts, group: Group) -> Cell:
    row = fields_of.first(group)
    return fields_of.deployment(facts, row, hint=row.deployment)


def _profile_fields(profile: LoadProfile) -> list[Field[Group]]:
    if profile.mode == "in-process":
        percentiles = ["p50", "p90", "p99"] if profile.batch == 1 else ["p50"]
    else:
        percentiles = ["p50", "p90", "p99"] if profile.mode == "closed-loop" else ["p50", "p99"]
    group = wording.profile(profile)
    fields = [_percentile_field(name, group) for name in percentiles]
    # An open loop delivers the rate that is asked for; its throughput is no result.
    if profile.mode == "closed-loop" or profile.batch > 1:
        fields.append(field("images/s", lambda row: row.throughput, "", group))
    return fields_of.of_profile(profile.name, fields)


def _percentile_field(name: str, group: str) -> Field[Row]:
    def value(row: Row) -> Value:
        found = row.percentile(name)
        if found.value is None:
            return fields_of.absent(row.reason)
        if row.mode == "in-process" and (name != "p50" or row.framework is None):
            # The tail in process is context; its interval is in the tooltip and in `medserve results`.
            return Cell(number(found.value), value=found.value, hint=interval(found.low, found.high))
        return found

    return field(name, value, "ms", group)


def _status(facts: Facts, rows: list[Row]) -> Cell:
    states = {row.status for row in rows}
    if states == {"failed"}:
        return Cell("failed", tone="bad")
    if states == {"missing"}:
        return Cell("not measured", tone="warn")
    if states != {"done"}:
        return Cell("in part", tone="bad" if "failed" in states else "warn")
    if invalid := sum(not row.valid for row in rows):
        artifact = facts.artifacts.get(rows[0].source_artifact)
        proof = artifact.certificate_of(rows[0].runtime) if artifact else None
        if rows[0].framework and not (proof and proof.valid):
            return Cell("not certified", tone="bad")
        return Cell("not valid" if invalid == len(rows) else f"{invalid} of {len(rows)} not valid", tone="bad")
    if (fewest := min(row.launches for row in rows)) < facts.study.launches:
        return Cell(f"{fewest} of {facts.study.launches} launches", tone="warn")
    if failed := sum(row.failed for row in rows):
        return Cell(wording.several(failed, "failed request"), tone="warn")
    if doubtful := sum(bool(row.disturbed) or row.steady is False for row in rows):
        return Cell(f"{doubtful} of {len(rows)} disturbed or not steady", tone="warn")
    return Cell("done", tone="good")


def _remarks(facts: Facts, group: Group) -> tuple[str, ...]:
    """Each reason once, with the ways of measuring to which it applies."""
    reasons = []
    for row in group.values():
        words = [f"{row.failed:,} of {row.n:,} requests failed"] if row.failed else []
        incomplete = row.status != "done" or row.launches < facts.study.launches or not row.valid
        words += [row.reason] if incomplete and row.reason else []
        reasons += [("; ".join(words), row)] if words else []
    return fields_of.remarks(facts, reasons, len(group))


def _notes(facts: Facts, groups: Iterable[Group]) -> tuple[str, ...]:
    """Why numbers are missing although nothing failed: each reason once, with the deployments to which it applies."""
    reasons: dict[str, list[str]] = {}
    for group in groups:
        found: dict[str, list[Row]] = {}
        for row in group.values():
            if row.valid and row.reason and row.launches == facts.study.launches:
                found.setdefault(row.reason, []).append(row)
        for reason, rows in found.items():
            where = [facts.profile(row) for row in rows]
            everywhere = len(rows) == len(group)
            words = facts.labels.full(rows[0]) + ("" if everywhere else f" ({'; '.join(where)})")
            reasons.setdefault(reason, []).append(words)
    return tuple(f"{', '.join(where)}: {reason}" for reason, where in reasons.items())


def distributions(facts: Facts) -> Figure | None:
    """One panel per size and way of measuring single images; null without samples."""
    names = facts.single("in-process", "closed-loop", "open-loop")
    rows = [row for row in facts.rows if row.profile in names and row.usable]
    panels = []
    for group in grouped(rows, *NETWORK).values():
        # One axis for all ways of measuring at this size.
        curves = [curve for row in group for curve in facts.curves[row.cell] if curve.shares]
        ends = [Interval(value=end) for curve in curves for end in (curve.milliseconds[0], curve.milliseconds[-1])]
        x = Axis(title="ms (log)", over=ends)
        panels += [drawn for found in grouped(group, "profile").values() if (drawn := _distribution(facts, found, x))]
    return figure("distributions", "Distributions", panels)


def _distribution(facts: Facts, rows: list[Row], x: Axis) -> Drawn | None:
    """A line per launch: an average would show the distribution of none of them."""
    found = [(row, curve) for row in rows for curve in facts.curves[row.cell] if curve.shares]
    if not found:
        return None
    least = min(curve.shares[-1] for _, curve in found)
    ticks = tuple(share for share in SHARES if share >= least)
    y = Axis(title="took at least so long (log)", ends=(least / 1.2, 1.0), ticks=ticks, form="~%")
    slowest = max(curve.milliseconds[-1] for _, curve in found)
    names = wording.listed(list(dict.fromkeys(facts.labels.full(row) for row, _ in found)))
    said = f"{len(found)} launches of {names}, the slowest answer after {number(slowest)} ms"
    return drawing.strokes(found, x, y, facts.title(rows[0]), said)
