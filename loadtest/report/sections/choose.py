"""What to choose: the best deployment for an objective, and accuracy against latency with its Pareto front."""

from itertools import pairwise
from math import inf, isinf

from msgspec import Struct

from loadtest.analysis import intervals, pareto
from loadtest.analysis.intervals import Interval
from loadtest.analysis.pareto import Candidate, Choice
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.cells import deployment_cell
from loadtest.report.drawing import Axis, Drawn, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table, interval_cell
from medserve.numbers import interval, number, percent
from medserve.spec import LoadProfile

PERCENTILES = ("p99", "p90", "p50")
"""The percentile of an objective: the first of these that every sample is large enough for."""
UNEQUAL = (
    " Sizes were trained for different numbers of epochs: this chooses among these networks, not among resolutions."
)


class Plane(Struct, frozen=True):
    """The deployments of one data set under one way of measuring, by name; `dominated` names what dominates each."""

    dataset: str
    profile: str
    rows: dict[str, Row]
    points: dict[str, pareto.Point]
    front: set[str]
    dominated: dict[str, str]


def objectives(facts: Facts) -> Table | None:
    """One line per objective; null where no deployment has an interval that could lie below a limit."""
    labels, lines = Labels(facts.rows), []
    for dataset in facts.study.datasets:
        for profile in facts.profiles.values():
            if profile.mode == "in-process" or profile.batch > 1 or profile.trap:
                continue
            rows = {row.cell: row for row in eligible(facts, dataset, profile.name)}
            candidates = [known for row in rows.values() if "p50" in (known := _candidate(facts, row)).bounds]
            percentile = pareto.supported_percentile(candidates, PERCENTILES) if candidates else None
            if percentile is None:
                continue
            slower = _slower(facts, rows)
            bounds = [candidate.bounds[percentile] for candidate in candidates]
            choices = [pareto.best(candidates, percentile, limit, slower) for limit in pareto.limits(bounds)]
            # A wider limit that changes nothing would only repeat the line above it.
            lines += [
                _objective_line(facts, labels, profile, rows, choice)
                for before, choice in pairwise([None, *choices])
                if choice and choice.best and (before is None or before.best != choice.best)
            ]
    columns = (
        Column("objective", numeric=False),
        Column("choose", numeric=False),
        Column("size", "px"),
        Column("accuracy", "%"),
        Column("that percentile", "ms"),
        Column("median", "ms"),
        Column("not separated from", numeric=False),
    )
    caption = (
        "The most accurate deployment for which the upper end of the 95 % interval lies below the limit; of those "
        "whose accuracy interval (Wilson) overlaps with its, the fastest. Not separated from: others of those that are "
        "not slower with 95 % confidence. The percentile is the highest that every "
        "sample of that way of measuring is large enough for: p99 needs 368 requests in each launch, p90 36. A wider "
        "limit that changes nothing is left out."
    )
    caption += UNEQUAL * facts.unequal
    return Table("The best for an objective", columns, tuple(lines), caption) if lines else None


def fronts(facts: Facts) -> Table | None:
    """One line per deployment and size with its standing in each way of measuring; null where nothing competes."""
    planes = planes_of(facts)
    if not planes:
        return None
    labels = Labels(facts.rows)
    profiles = list(dict.fromkeys(plane.profile for plane in planes))
    columns = [Column("deployment", numeric=False), Column("size", "px"), Column("accuracy", "%")]
    columns += [Column(wording.profile(facts.profiles[name]), numeric=False) for name in profiles]
    known = {name: row for plane in planes for name, row in plane.rows.items()}
    lines = []
    for name, row in known.items():
        share = accuracy(facts, row)
        bounds = f"[{percent(share.low)}, {percent(share.high)}]"
        cells = [deployment_cell(facts, labels, row), Cell(str(row.size), value=row.size)]
        cells.append(Cell(percent(share.value), bounds, share.value))
        here = {plane.profile: plane for plane in planes if name in plane.rows}
        cells += [_standing(labels, here[profile], name) if profile in here else Cell("") for profile in profiles]
        lines.append(Line(tuple(cells)))
    caption = (
        "On the front: no other has both a lower median and as high an accuracy. Dominated: slower than another with "
        "95 % confidence, launches paired block by block, and not more accurate. Undecided: behind the front, but not "
        "slower with 95 % confidence."
    )
    return Table("Accuracy against latency", tuple(columns), tuple(lines), caption + UNEQUAL * facts.unequal)


def figure(facts: Facts) -> Figure | None:
    """Each plane as a panel; null where nothing competes."""
    planes = planes_of(facts)
    if not planes:
        return None
    rows = [row for plane in planes for row in plane.rows.values()]
    shares = [(bounds.known, bounds.low, bounds.high) for bounds in (accuracy(facts, row) for row in rows)]
    domain = scales.percent(shares)
    caption = (
        "Test accuracy against median latency of one image, with 95 % intervals (Wilson; over launches). The line "
        "joins the front. Pale: dominated with 95 % confidence. Numbers: image side in pixels of the best of each."
    )
    latencies = [[point.latency for point in plane.points.values()] for plane in planes]
    spreads = [[(latency.known, latency.low, latency.high) for latency in found] for found in latencies]
    caption += scales.CUT * any(scales.cut(found, scales.logarithmic(found)) for found in spreads)
    panels = [_panel(facts, plane, Axis(title="accuracy, %", domain=domain, log=False)) for plane in planes]
    return sheet.draw("front", "Accuracy against latency", caption + UNEQUAL * facts.unequal, panels, wording.key(rows))


def accuracy(facts: Facts, row: Row) -> Interval:
    """The accuracy of a row's network on the test split with its interval (Wilson 1927), as shares."""
    assert row.accuracy is not None
    return intervals.wilson(row.accuracy, facts.artifacts[row.source_artifact].checkpoint.test.images)


def eligible(facts: Facts, dataset: str, profile: str) -> list[Row]:
    """The rows that may be chosen: certified, float32 and with a median."""
    rows = [row for row in facts.rows if (row.dataset, row.profile) == (dataset, profile)]
    return [row for row in rows if row.usable and row.precision == "float32"]


def _candidate(facts: Facts, row: Row) -> Candidate:
    bounds = {}
    for name in PERCENTILES:
        if (high := row.percentile(name).high) is not None:
            bounds[name] = high
        elif any(map(isinf, facts.percentiles[name][row.cell].values())):
            bounds[name] = inf
    return Candidate(name=row.cell, median=row.median, accuracy=accuracy(facts, row), bounds=bounds)


def _objective_line(facts: Facts, labels: Labels, profile: LoadProfile, rows: dict[str, Row], choice: Choice) -> Line:
    assert choice.best is not None
    row, name = rows[choice.best], choice.percentile
    # On one line, however narrow the column.
    objective = f"{name} < {choice.limit:g} ms".replace(" ", "\N{NO-BREAK SPACE}")
    where = ", ".join([wording.under(profile), *facts.datasets(row.dataset)])
    share = accuracy(facts, row)
    others = [f"{labels.full(rows[cell])}, {rows[cell].size} px" for cell in choice.alike]
    shown = others if len(others) < 3 else [*others[:2], f"{len(others) - 2} more"]
    bounds = "" if share.low is None else f"[{percent(share.low)}, {percent(share.high)}]"
    return Line(
        (
            Cell(objective, where, choice.limit),
            Cell(wording.framework(row.framework), labels.kind(row), mark=wording.mark(row)),
            Cell(str(row.size), value=row.size),
            Cell(percent(share.value), bounds, share.value),
            interval_cell(row.percentile(name)),
            interval_cell(row.p50),
            Cell("; ".join(shown) or "none", tone="" if shown else "muted"),
        )
    )


def planes_of(facts: Facts) -> list[Plane]:
    """The planes of the study on which two deployments or more compete."""
    profiles = [known.name for known in comparison.side_by_side(facts.profiles.values()) if known.batch == 1]
    found = []
    for dataset in facts.study.datasets:
        for profile in profiles:
            rows = {row.deployment: row for row in eligible(facts, dataset, profile)}
            if len(rows) < 2:
                continue
            points = {name: _plane_point(facts, name, row) for name, row in rows.items()}
            dominated = pareto.dominated(list(points.values()), _slower(facts, rows))
            found.append(Plane(dataset, profile, rows, points, pareto.front(points.values()), dominated))
    return found


def _slower(facts: Facts, rows: dict[str, Row]) -> pareto.Slower:
    return lambda first, second: facts.comparisons.judge(rows[first], rows[second]).verdict == "slower"


def _plane_point(facts: Facts, name: str, row: Row) -> pareto.Point:
    latency = Interval(value=row.median, low=row.p50.low, high=row.p50.high)
    return pareto.Point(name=name, latency=latency, accuracy=accuracy(facts, row))


def _standing(labels: Labels, plane: Plane, name: str) -> Cell:
    if name in plane.front:
        return Cell("on the front", tone="good")
    if by := plane.dominated.get(name):
        return Cell("dominated", f"by {_named(labels, plane.rows[by])}", tone="muted")
    return Cell("undecided")


def _panel(facts: Facts, plane: Plane, y: Axis) -> Drawn:
    labels = Labels(facts.rows)
    labelled = _labelled(plane)
    points = [
        _point(labels, plane, name, str(row.size) if name in labelled else "") for name, row in plane.rows.items()
    ]
    x = Axis(title="median, ms (log)", domain=scales.logarithmic([(at.x, at.x_low, at.x_high) for at in points]))
    title = ", ".join([wording.profile(facts.profiles[plane.profile]), *facts.datasets(plane.dataset)])
    ordered = sorted((plane.points[name] for name in plane.front), key=lambda point: point.latency.known)
    outline = [(point.latency.known, point.accuracy.known * 100) for point in ordered]
    names = wording.listed([_named(labels, plane.rows[point.name]) for point in ordered])
    return drawing.lines(points, x, y, title, f"on the front are {names}", outline)


def _labelled(plane: Plane) -> set[str]:
    """The points with their size written beside them: the best of each size, if there are several sizes."""
    best: dict[int, str] = {}
    for point in sorted(plane.points.values(), key=lambda known: (-known.accuracy.known, known.latency.known)):
        best.setdefault(plane.rows[point.name].size, point.name)
    return set(best.values()) if len(best) > 1 else set()


def _point(labels: Labels, plane: Plane, name: str, text: str) -> Point:
    row, point = plane.rows[name], plane.points[name]
    share, latency = point.accuracy, point.latency
    ends = (None if share.low is None else share.low * 100, None if share.high is None else share.high * 100)
    words = f"{percent(share.value)} % at a median of {number(latency.known)} ms {interval(latency.low, latency.high)}"
    return drawing.point(
        row, name, f"{_named(labels, row)}: {words}", share.known * 100, ends,
        x=latency.known, x_low=latency.low, x_high=latency.high, faded=name in plane.dominated, text=text,
    )  # fmt: skip


def _named(labels: Labels, row: Row) -> str:
    return f"{labels.full(row)}, {row.size} px"
