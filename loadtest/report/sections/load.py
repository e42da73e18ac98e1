"""Under load: latency by three definitions, closed loops by users with their saturation point, pauses, and rates."""

from collections.abc import Sequence

import msgspec

from loadtest.analysis.intervals import Interval
from loadtest.analysis.scaling import saturation_point
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.cells import deployment_cells, median_cell
from loadtest.report.comparison import by_deployment, grouped
from loadtest.report.drawing import Axis, Drawn, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table, number_cell
from medserve.numbers import ABSENT, number
from medserve.spec import LoadProfile

DEFINITIONS = ("from intended start", "service time", "uncorrected", "omitted")


def definitions(facts: Facts) -> Table | None:
    """Open loops: rates asked and delivered, and each percentile by three definitions; null without an open loop."""
    rows = [row for row in facts.rows if row.mode == "open-loop" and row.status == "done"]
    if not rows:
        return None
    columns = [Column("deployment", numeric=False), Column("size", "px"), Column("schedule", numeric=False)]
    columns += [Column("asked", "per second", "Rate"), Column("delivered", "per second", "Rate")]
    for name in ("p50", "p99"):
        columns += [Column(head, "ms", name) for head in DEFINITIONS]
    columns += [Column("p50", "us", "Send lag"), Column("p99", "us", "Send lag")]
    labels = Labels(facts.rows)
    lines = []
    for row in rows:
        cells = deployment_cells(facts, labels, row)
        cells.append(Cell(wording.schedule(facts.profiles[row.profile])))
        cells += [number_cell(row.rate_asked), number_cell(row.rate_delivered)]
        for headline, service, uncorrected in (
            (row.p50.value, row.p50_service_ms, row.p50_uncorrected_ms),
            (row.p99.value, row.p99_service_ms, row.p99_uncorrected_ms),
        ):
            omitted = None if headline is None or uncorrected is None else headline - uncorrected
            cells.append(msgspec.structs.replace(number_cell(headline), tone="strong"))
            cells += map(number_cell, (service, uncorrected, omitted))
        cells += [number_cell(row.lag_p50_us), number_cell(row.lag_p99_us)]
        lines.append(Line(tuple(cells)))
    caption = (
        "Three definitions of latency on the same run. The headline counts from the intended start. The service time "
        "counts from sending, and leaves out waiting in the client. Uncorrected: what a back-to-back client would have "
        "measured, which leaves out every request that it delays (coordinated omission). Omitted: the headline less "
        "the uncorrected figure."
    )
    return Table("Definitions of latency", tuple(columns), tuple(lines), caption)


def ladder(facts: Facts) -> Table | None:
    """Images per second by users, with the median up to the saturation point; null without several numbers of users."""
    profiles = _ladder_profiles(facts)
    if len(profiles) < 2:
        return None
    labels = Labels(facts.rows)
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column(wording.several(profile.users, "user"), "images/s") for profile in profiles]
    lines = []
    for group in by_deployment(facts.rows):
        found = [group.get(profile.name) for profile in profiles]
        if known := [row for row in found if row and row.throughput]:
            lines.append(Line((*deployment_cells(facts, labels, known[0]), *map(_throughput_cell, found))))
    caption = (
        "Answered images per second, and the median latency. Bold: the saturation point, where throughput over latency "
        "is highest (Kleinrock 1979). Beyond it requests wait for other requests, and no latency is given."
    )
    return Table("Closed loops by users", tuple(columns), tuple(lines), caption) if lines else None


def pauses(facts: Facts) -> Table | None:
    """The median of one user by its pause between requests; null if no user of the study pauses."""
    pausing = [
        profile
        for profile in facts.profiles.values()
        if profile.mode == "closed-loop" and profile.gap_seconds and not profile.trap
    ]
    if not pausing:
        return None
    busy = comparison.single_image(facts.profiles.values(), "closed-loop")
    profiles = [facts.profiles[busy]] if busy else []
    profiles += sorted(pausing, key=lambda profile: profile.gap_seconds)
    labels = Labels(facts.rows)
    columns = [Column("deployment", numeric=False), Column("size", "px")]
    columns += [Column(wording.pause(profile.gap_seconds), "ms", "Pause between requests") for profile in profiles]
    lines = []
    for group in by_deployment(facts.rows):
        if known := [group[profile.name] for profile in profiles if profile.name in group]:
            medians = (median_cell(group.get(profile.name)) for profile in profiles)
            lines.append(Line((*deployment_cells(facts, labels, known[0]), *medians)))
    caption = (
        "Median latency of one user with its interval. After a pause the server's caches are cold, and its cores and "
        "threads sleep; with back-to-back requests they do not."
    )
    return Table("Occasional requests", tuple(columns), tuple(lines), caption)


def rates(facts: Facts) -> Figure | None:
    """p50 and p99 against the delivered rate; null if no kind of arrivals was measured at several rates."""
    rows = [row for row in facts.rows if row.mode == "open-loop" and row.rate_delivered and row.p50.value]
    rows = [row for row in rows if row.usable and row.batch == 1]
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(facts.profiles[row.profile].arrivals, []).append(row)
    panels, shown, cut = [], [], False
    for kind, found in by_kind.items():
        for group in grouped(found, "dataset", "architecture", "size").values():
            if len({row.rate_asked for row in group}) < 2:
                continue
            shown += group
            saturated = _saturation_cells(group)
            for name in ("p50", "p99"):
                known = [row for row in group if row.percentile(name).value]
                points = [_rate_point(facts, row, name, ringed=row.cell in saturated) for row in known]
                if points:
                    title = f"{name}, {kind} arrivals, {_place(facts, group[0])}"
                    panels.append(_panel(points, "delivered, requests/s (log)", f"{name}, ms (log)", title))
                    spreads = [point.spread for point in points]
                    cut |= scales.cut(spreads, scales.logarithmic(spreads))
    caption = (
        "Latency from the intended start against the delivered rate; bars: 95 % intervals over launches. Ring: the "
        "saturation point, where rate over median latency is highest, if it lies below the highest rate."
    )
    if not panels:
        return None
    caption += scales.CUT * cut
    return sheet.draw("rates", "Latency against rate", caption, panels, wording.key(shown), paired=True)


def users(facts: Facts) -> Figure | None:
    """Latency and throughput of closed loops by users; null without several numbers of users."""
    counts = {profile.name: profile.users for profile in _ladder_profiles(facts)}
    rows = [row for row in facts.rows if row.profile in counts and row.saturation is not None]
    # The null runtime would be a point decades away.
    rows = [row for row in rows if row.throughput and row.framework is not None]
    if len(counts) < 2 or not rows:
        return None
    panels = []
    for group in grouped(rows, "dataset", "architecture", "size").values():
        place, ticks = _place(facts, group[0]), tuple(sorted(counts.values()))
        points = [_user_point(facts, row, counts[row.profile], latency=True) for row in group if row.p50.value]
        if points:
            panels.append(_panel(points, "reached, images/s (log)", "median, ms (log)", f"Latency, {place}"))
        points = [_user_point(facts, row, counts[row.profile], latency=False) for row in group]
        panels.append(_panel(points, "users (log)", "images/s (log)", f"Throughput, {place}", ticks))
    caption = (
        "Closed loops of several back-to-back users. Ring: the saturation point of each deployment. Beyond it no "
        "latency is given, so its line ends there; the line of throughput continues."
    )
    return sheet.draw("ladder", "Closed loops by users", caption, panels, wording.key(rows), paired=True)


def _ladder_profiles(facts: Facts) -> list[LoadProfile]:
    """The profiles of back-to-back users with single images, by users."""
    found = [
        profile
        for profile in facts.profiles.values()
        if profile.mode == "closed-loop" and not profile.gap_seconds and profile.batch == 1 and not profile.trap
    ]
    return sorted(found, key=lambda profile: profile.users)


def _throughput_cell(row: Row | None) -> Cell:
    if row is None or row.throughput is None:
        return Cell(ABSENT, tone="muted")
    latency = "" if row.p50.value is None else f"{number(row.p50.value)} ms"
    return Cell(number(row.throughput), latency, row.throughput, tone="strong" if row.saturation else "")


def _saturation_cells(rows: Sequence[Row]) -> set[str]:
    """The cell at each deployment's saturation point, of those whose highest rate lies beyond it."""
    by_name: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.rate_asked or 0.0):
        by_name.setdefault(row.deployment, []).append(row)
    found = set()
    for ordered in by_name.values():
        point = saturation_point((index, row.rate_delivered, row.median) for index, row in enumerate(ordered))
        if point is not None and point < len(ordered) - 1:
            found.add(ordered[point].cell)
    return found


def _panel(points: Sequence[Point], across: str, up: str, title: str, ticks: tuple[float, ...] = ()) -> Drawn:
    ends = scales.logarithmic([(point.x, None, None) for point in points])
    x = Axis(title=across, domain=(ends[0] / 1.05, ends[1] * 1.05), ticks=ticks, grid=False)
    y = Axis(title=up, domain=scales.logarithmic([point.spread for point in points]))
    least, most = min(point.value for point in points), max(point.value for point in points)
    return drawing.lines(points, x, y, title, f"{number(least)} to {number(most)}")


def _rate_point(facts: Facts, row: Row, name: str, *, ringed: bool) -> Point:
    words = f"{number(row.rate_delivered)} requests/s: {name} {wording.estimate(row, name)}"
    return _point(facts, row, words, row.percentile(name), row.rate_delivered, ringed=ringed)


def _user_point(facts: Facts, row: Row, count: int, *, latency: bool) -> Point:
    figure = f"median {wording.estimate(row)}" if latency else f"{number(row.throughput)} images/s"
    words, ringed = f"{wording.several(count, 'user')}: {figure}", bool(row.saturation)
    if latency:
        return _point(facts, row, words, row.p50, row.throughput, ringed=ringed)
    return _point(facts, row, words, Interval(value=row.throughput), float(count), ringed=ringed)


def _point(facts: Facts, row: Row, words: str, found: Interval, x: float | None, *, ringed: bool) -> Point:
    assert found.value is not None
    assert x is not None
    name = Labels(facts.rows).full(row)
    label = f"{name}, {words}" + (" (saturation point)" if ringed else "")
    return drawing.point(row, name, label, found.value, (found.low, found.high), x=x, ringed=ringed)


def _place(facts: Facts, row: Row) -> str:
    where = [*facts.datasets(row.dataset), *facts.architectures(row.architecture)]
    return ", ".join([*where, f"{row.size} px"])
