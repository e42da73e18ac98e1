"""Under load: at shares of the capacity, by three definitions of latency, by users, with pauses, and by rates."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from loadtest.analysis.intervals import Interval
from loadtest.analysis.scaling import saturation_point
from loadtest.report import drawing, tables, wording
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Drawn, Point
from loadtest.report.facts import NETWORK, Facts, Group, by_deployment, grouped
from loadtest.report.figures import figure
from loadtest.report.tables import Field, Value, field, text
from loadtest.results import capacity, objective
from loadtest.results.row import PERCENTILES, Row
from loadtest.results.tabular import Cell, Table
from medserve.numbers import number
from medserve.spec import LoadProfile
from medserve.study import Objective


def definitions(facts: Facts) -> Table | None:
    """Open loops: rates asked and delivered, and each percentile by three definitions; null without an open loop."""
    fields: list[Field[Row]] = [
        *tables.deployment_fields(facts, lambda row: row),
        text("schedule", lambda row: wording.schedule(facts.profiles[row.profile])),
        field("asked", lambda row: row.rate_asked, "per second", "Rate"),
        field("delivered", lambda row: row.rate_delivered, "per second", "Rate"),
        field("from intended start", lambda row: _strong(row.p50.value), "ms", "p50"),
        field("service time", lambda row: row.p50_service_ms, "ms", "p50"),
        field("uncorrected", lambda row: row.p50_uncorrected_ms, "ms", "p50"),
        field("omitted", lambda row: tables.less(row.p50.value, row.p50_uncorrected_ms), "ms", "p50"),
        field("from intended start", lambda row: _strong(row.p99.value), "ms", "p99"),
        field("service time", lambda row: row.p99_service_ms, "ms", "p99"),
        field("uncorrected", lambda row: row.p99_uncorrected_ms, "ms", "p99"),
        field("omitted", lambda row: tables.less(row.p99.value, row.p99_uncorrected_ms), "ms", "p99"),
        field("p50", lambda row: row.lag_p50_us, "us", "Send lag"),
        field("p99", lambda row: row.lag_p99_us, "us", "Send lag"),
    ]
    rows = [row for row in facts.rows if row.mode == "open-loop" and row.status == "done"]
    return tables.table("Definitions of latency", fields, rows)


def _strong(value: float | None) -> Cell:
    return msgspec.structs.replace(tables.cell(value), tone="strong")


INACCURATE = "too inaccurate"


class Held(Struct, frozen=True):
    """The highest rate (requests per second) at which a deployment holds the study's objective; `row` is one of it.

    `words` say how the rate is known where it lies beyond the loads that were measured, or why there is none.
    """

    row: Row
    rate: Interval
    words: str


def capacities(facts: Facts) -> list[Held]:
    """The deployments that were measured at shares of their capacity, the highest rate first."""
    if facts.study.objective is None:
        return []
    name, limit = objective.percentile(facts.study.objective)
    least = facts.study.objective.accuracy or 0.0
    summaries = {cell.cell.name: cell.summaries for cell in facts.measured.cells}
    found = []
    for group in grouped(_by_share(facts), "deployment").values():
        if (group[0].accuracy or 0.0) < least:
            found.append(Held(group[0], Interval(), INACCURATE))
            continue
        rates = [
            {index: launch.result.cell.profile.rate or 0.0 for index, launch in summaries[row.cell].items()}
            for row in group
        ]
        reached = [
            {
                # What waits in a queue that grows has no latency of its own.
                index: float("inf") if row.overloaded else launch.intended.values[PERCENTILES[name]] / 1e6
                for index, launch in summaries[row.cell].items()
            }
            for row in group
        ]
        rate, words = capacity.rate_within(zip(rates, reached, strict=True), limit)
        found.append(Held(group[0], rate, words))
    return sorted(found, key=lambda one: -(one.rate.value or one.rate.low or one.rate.high or 0.0))


def _by_share(facts: Facts) -> list[Row]:
    """The valid rows of single images with Poisson arrivals at a share of the capacity."""
    profiles = facts.profiles
    rows = (row for row in facts.rows if row.load is not None and row.valid and row.framework and row.batch == 1)
    return [row for row in rows if profiles[row.profile].arrivals == "poisson"]


def held_up_to(facts: Facts) -> Table | None:
    """Each deployment's capacity, and the highest rate at which it holds the objective; null without loads."""
    by_deployment = {one.row.deployment: one for one in capacities(facts)}
    rows = [row for row in facts.rows if row.deployment in by_deployment and row.profile == _capacity_of(facts, row)]
    asked = objective.in_words(facts.study.objective) if facts.study.objective else ""

    def rate(row: Row) -> Cell:
        found = by_deployment[row.deployment]
        if not found.words:
            return tables.cell(found.rate)
        end = found.rate.low if found.words == "at least" else found.rate.high
        return Cell(found.words if end is None else f"{found.words} {number(end)}", "", end)

    fields: list[Field[Row]] = [
        *tables.deployment_fields(facts, lambda row: row),
        field("capacity", lambda row: row.throughput and row.throughput / row.batch, "per second"),
        field("holds it up to", rate, "per second"),
    ]
    return tables.table("Capacity for the objective", fields, rows, f"{asked}.")


def _capacity_of(facts: Facts, row: Row) -> str | None:
    profiles = [facts.profiles[other.profile] for other in facts.rows if other.deployment == row.deployment]
    return next((profile.capacity for profile in profiles if profile.capacity), None)


def loads(facts: Facts) -> Table | None:
    """Each deployment at shares of its capacity: measured utilisation, what is completed and latency; null without."""
    deadlines = {row.deadline_ms for row in facts.rows if row.load is not None and row.deadline_ms}
    fields: list[Field[Row]] = [
        *tables.deployment_fields(facts, lambda row: row),
        text("load", lambda row: wording.schedule(facts.profiles[row.profile])),
        field("asked", lambda row: row.rate_asked, "per second", "Rate"),
        field("completed", lambda row: row.rate_delivered, "per second", "Rate"),
        field("utilisation", lambda row: row.utilisation and row.utilisation * 100, "%"),
        field("p50", lambda row: row.p50, "ms"),
        field("p99", lambda row: row.p99, "ms"),
    ]
    if deadlines:
        title = f"within {wording.listed([f'{deadline:g} ms' for deadline in sorted(deadlines)])}"
        fields.insert(-3, field(title, lambda row: row.goodput, "per second", "Rate"))
    fields.append(text("", lambda row: Cell("depends on duration" if row.overloaded else "", tone="warn")))
    return tables.table("Loads", fields, [row for row in facts.rows if row.load is not None and row.status == "done"])


def utilisation(facts: Facts) -> Figure | None:
    """p50 and p99 against the measured utilisation, and the goodput against the offered load; null without loads."""
    panels = []
    for group in grouped(_by_share(facts), *NETWORK).values():
        for name in ("p50", "p99"):
            points = [
                _point(facts, row, words, row.percentile(name), row.utilisation * 100, ringed=False)
                for row in group
                if row.utilisation and row.percentile(name).value
                for words in [f"{row.utilisation:.0%} utilised: {name} {wording.estimate(row, name)}"]
            ]
            title = f"{name}, {facts.place(group[0])}"
            x = Axis(title="measured utilisation, %", over=[point.x for point in points], scale="percent")
            y = Axis(title=f"{name}, ms (log)", over=[point.value for point in points])
            panels += [drawing.lines(points, x, y, title)] if len(points) > 1 else []
        points = [
            _point(facts, row, words, Interval(value=row.goodput), row.rate_asked, ringed=False)
            for row in group
            if row.rate_asked and row.goodput
            for words in [f"{number(row.goodput)} of {number(row.rate_asked)} requests/s within {row.deadline_ms:g} ms"]
        ]
        title = f"Goodput, {facts.place(group[0])}"
        x = Axis(title="offered, requests/s", over=[point.x for point in points], scale="linear")
        y = Axis(title="in time, requests/s", over=[point.value for point in points], scale="linear")
        panels += [drawing.lines(points, x, y, title)] if len(points) > 1 else []
    return figure("utilisation", "Latency against utilisation", panels, paired=True)


def ladder(facts: Facts) -> Table | None:
    """Images per second by users, with the median up to the saturation point; null without several numbers of users."""
    profiles = _ladder_profiles(facts)
    fields = {known.name: field(wording.several(known.users, "user"), _throughput, "images/s") for known in profiles}
    rows = [row for row in facts.rows if row.throughput and len(profiles) > 1]
    return _by_profile(facts, "Closed loops by users", fields, rows)


def batches(facts: Facts) -> Table | None:
    """Images per second in process by batch, the most of each deployment marked; null for fewer than three batches."""
    known = {
        known.batch: known for known in facts.profiles.values() if known.mode == "in-process" and not known.mistake
    }
    profiles = [known[batch] for batch in sorted(known)]
    wanted = facts.study.objective
    rows = [row for row in facts.rows if row.profile in {profile.name for profile in profiles} and row.usable]
    best: set[str] = set()
    for group in by_deployment(rows):
        held = [row for row in group.values() if row.throughput and (wanted is None or _is_within(row, wanted))]
        best |= {max(held, key=lambda row: row.throughput or 0.0).cell} if held else set()

    def throughput(row: Row) -> Value:
        if row.throughput is None:
            return None
        latency = f"{number(row.p50.value)} ms" if row.p50.value else ""
        return Cell(number(row.throughput), latency, row.throughput, tone="strong" if row.cell in best else "")

    fields = {
        profile.name: field(wording.several(profile.batch, "image"), throughput, "images/s") for profile in profiles
    }
    among = "" if wanted is None else ", among the batches with {} < {:g} ms".format(*objective.percentile(wanted))
    note = f"Marked: the most of each deployment{among}."
    return _by_profile(facts, "Batches in process", fields, rows if len(profiles) > 2 else (), note)


def _is_within(row: Row, wanted: Objective) -> bool:
    """Whether the upper end of the interval of the objective's percentile lies below its limit."""
    name, limit = objective.percentile(wanted)
    high = row.percentile(name).high
    return high is not None and high < limit


def _by_profile(
    facts: Facts, title: str, fields: dict[str, Field[Row]], rows: Sequence[Row], note: str = ""
) -> Table | None:
    """A line per deployment that has one of these rows, with a field per profile."""
    columns: list[Field[Group]] = tables.deployment_fields(facts, tables.first)
    for profile, known in fields.items():
        columns += tables.of_profile(profile, [known])
    return tables.table(title, columns, by_deployment(row for row in rows if row.profile in fields), note)


def _throughput(row: Row) -> Value:
    if row.throughput is None:
        return None
    latency = "" if row.p50.value is None else f"{number(row.p50.value)} ms"
    return Cell(number(row.throughput), latency, row.throughput, tone="strong" if row.saturation else "")


def pauses(facts: Facts) -> Table | None:
    """The median of one user by its pause between requests; null if no user of the study pauses."""
    closed = [known for known in facts.profiles.values() if known.mode == "closed-loop" and not known.mistake]
    pausing = sorted((known for known in closed if known.gap_seconds), key=lambda known: known.gap_seconds)
    profiles = [*(facts.profiles[name] for name in facts.single("closed-loop")), *pausing]
    group = "Pause between requests"
    fields = {known.name: field(wording.pause(known.gap_seconds), tables.median, "ms", group) for known in profiles}
    return _by_profile(facts, "Occasional requests", fields, facts.rows if pausing else ())


def rates(facts: Facts) -> Figure | None:
    """p50 and p99 against the delivered rate; null if no kind of arrivals was measured at several rates."""
    rows = [row for row in facts.rows if row.mode == "open-loop" and row.rate_delivered and row.p50.value]
    rows = [row for row in rows if row.load is None]
    by_kind: dict[str, list[Row]] = {}
    for row in (row for row in rows if row.usable and row.batch == 1):
        by_kind.setdefault(facts.profiles[row.profile].arrivals, []).append(row)
    panels = []
    for kind, found in by_kind.items():
        for group in grouped(found, *NETWORK).values():
            if len({row.rate_asked for row in group}) < 2:
                continue
            saturated = _saturation_cells(group)
            for name in ("p50", "p99"):
                points = []
                for row in (row for row in group if row.percentile(name).value):
                    words = f"{number(row.rate_delivered)} requests/s: {name} {wording.estimate(row, name)}"
                    ringed = row.cell in saturated
                    points.append(_point(facts, row, words, row.percentile(name), row.rate_delivered, ringed=ringed))
                title = f"{name}, {kind} arrivals, {facts.place(group[0])}"
                panels += _panel(points, "delivered, requests/s (log)", f"{name}, ms (log)", title)
    return figure("rates", "Latency against rate", panels, paired=True)


def users(facts: Facts) -> Figure | None:
    """Latency and throughput of closed loops by users; null without several numbers of users."""
    counts = {profile.name: profile.users for profile in _ladder_profiles(facts)}
    # The null runtime would be a point decades away.
    rows = [row for row in facts.rows if row.profile in counts and row.saturation is not None and row.framework]
    panels: list[Drawn] = []
    for group in grouped((row for row in rows if row.throughput), *NETWORK).values() if len(counts) > 1 else ():
        latencies, throughputs = [], []
        for row in group:
            words, ringed = wording.several(counts[row.profile], "user"), bool(row.saturation)
            if row.p50.value:
                said = f"{words}: median {wording.estimate(row)}"
                latencies.append(_point(facts, row, said, row.p50, row.throughput, ringed=ringed))
            said, reached = f"{words}: {number(row.throughput)} images/s", Interval(value=row.throughput)
            throughputs.append(_point(facts, row, said, reached, counts[row.profile], ringed=ringed))
        place, ticks = facts.place(group[0]), tuple(sorted(counts.values()))
        panels += _panel(latencies, "reached, images/s (log)", "median, ms (log)", f"Latency, {place}")
        panels += _panel(throughputs, "users (log)", "images/s (log)", f"Throughput, {place}", ticks)
    return figure("ladder", "Closed loops by users", panels, paired=True)


def _ladder_profiles(facts: Facts) -> list[LoadProfile]:
    """The profiles of back-to-back users with single images, by users."""
    found = [
        profile
        for profile in facts.profiles.values()
        if profile.mode == "closed-loop" and not profile.gap_seconds and profile.batch == 1 and not profile.mistake
    ]
    return sorted(found, key=lambda profile: profile.users)


def _saturation_cells(rows: Sequence[Row]) -> set[str]:
    """The cell at each deployment's saturation point, of those whose highest rate lies beyond it."""
    found = set()
    for ordered in grouped(sorted(rows, key=lambda row: row.rate_asked or 0.0), "deployment").values():
        point = saturation_point((index, row.rate_delivered, row.median) for index, row in enumerate(ordered))
        if point is not None and point < len(ordered) - 1:
            found.add(ordered[point].cell)
    return found


def _point(facts: Facts, row: Row, words: str, value: Interval, x: float | None, *, ringed: bool) -> Point:
    name = facts.labels.full(row)
    label = f"{name}, {words}" + " (saturation point)" * ringed
    return drawing.point(row, name, label, value, x=Interval(value=x), ringed=ringed)


def _panel(points: Sequence[Point], across: str, up: str, title: str, ticks: tuple[float, ...] = ()) -> list[Drawn]:
    """A panel of these points, if there are any."""
    x = Axis(title=across, over=[point.x for point in points], ticks=ticks, grid=False)
    y = Axis(title=up, over=[point.value for point in points])
    return [drawing.lines(points, x, y, title)] if points else []
