"""Accuracy against latency: which deployments are on the front, and which are worse than another for certain."""

from msgspec import Struct

from loadtest.analysis import intervals, pareto
from loadtest.analysis.intervals import Interval
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.drawing import Axis, Drawn, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Figure, Line, Table
from loadtest.report.wording import Labels, interval, number
from loadtest.results.flags import deployment
from loadtest.results.table import Row

UNEQUAL = (
    " Sizes were trained for different numbers of epochs: this chooses among these networks, not among resolutions."
)


class Plane(Struct, frozen=True):
    """The deployments of one data set under one way of measuring, by name; what beats those that are beaten."""

    dataset: str
    profile: str
    rows: dict[str, Row]
    points: dict[str, pareto.Point]
    front: set[str]
    dominated: dict[str, str]


def accuracy(facts: Facts, row: Row) -> Interval:
    """The accuracy of a row's network on the test split with its interval (Wilson 1927), as shares."""
    return intervals.wilson(row["accuracy"], facts.artifacts[row["source_artifact"]].checkpoint.test.images)


def eligible(facts: Facts, dataset: str, profile: str) -> list[Row]:
    """What may be chosen: certified float32 rows with a median."""
    rows = [row for row in facts.rows if (row["dataset"], row["profile"]) == (dataset, profile)]
    return [row for row in rows if comparison.usable(row) and row["precision"] == "float32"]


def table(facts: Facts) -> Table | None:
    """One line a deployment and size with its standing in each way of measuring; null where nothing competes."""
    planes = _planes(facts)
    if not planes:
        return None
    labels = Labels(facts.rows)
    profiles = list(dict.fromkeys(plane.profile for plane in planes))
    columns = [Column("deployment", numeric=False), Column("size", "px"), Column("accuracy", "%")]
    columns += [Column(wording.profile(facts.profiles[name]), numeric=False) for name in profiles]
    known = {name: row for plane in planes for name, row in plane.rows.items()}
    lines = []
    for name, row in known.items():
        kind, share = ", ".join([labels.kind(row), *facts.datasets(row["dataset"])]), accuracy(facts, row)
        bounds = f"[{_percent(share.low)}, {_percent(share.high)}]"
        cells = [Cell(wording.framework(row["framework"]), kind, mark=wording.mark(row))]
        cells += [Cell(str(row["size"]), value=row["size"]), Cell(_percent(share.value), bounds, share.value)]
        here = {plane.profile: plane for plane in planes if name in plane.rows}
        cells += [_standing(labels, here[one], name) if one in here else Cell("") for one in profiles]
        lines.append(Line(tuple(cells)))
    caption = (
        "On the front: nothing else has both a lower median and as high an accuracy. Dominated: slower than another "
        "and no more accurate, both for certain (95 % intervals apart). Undecided: behind the front, not for certain."
    )
    return Table("Accuracy against latency", tuple(columns), tuple(lines), caption + UNEQUAL * facts.unequal)


def figure(facts: Facts) -> Figure | None:
    """Each plane as a panel; null where nothing competes."""
    planes = _planes(facts)
    if not planes:
        return None
    rows = [row for plane in planes for row in plane.rows.values()]
    shares = [(bounds.value, bounds.low, bounds.high) for bounds in (accuracy(facts, row) for row in rows)]
    domain = scales.percent(shares)
    caption = (
        "Test accuracy against median latency of one image, with 95 % intervals (Wilson; over launches). The line "
        "joins the front. Pale: dominated for certain. Numbers: image side in pixels of the best of each."
    )
    latencies = [[one.latency for one in plane.points.values()] for plane in planes]
    spreads = [[(one.value, one.low, one.high) for one in found] for found in latencies]
    caption += scales.CUT * any(scales.cut(found, scales.logarithmic(found)) for found in spreads)
    panels = [_panel(facts, plane, Axis(title="accuracy, %", domain=domain, log=False)) for plane in planes]
    return sheet.draw("front", "Accuracy against latency", caption + UNEQUAL * facts.unequal, panels, wording.key(rows))


def _planes(facts: Facts) -> list[Plane]:
    profiles = [one.name for one in comparison.side_by_side(facts.profiles.values()) if one.batch == 1]
    found = []
    for dataset in facts.study.datasets:
        for profile in profiles:
            rows = {deployment(row): row for row in eligible(facts, dataset, profile)}
            if len(rows) < 2:
                continue
            points = {name: _measured(facts, name, row) for name, row in rows.items()}
            both = (pareto.front(points.values()), pareto.dominated(list(points.values())))
            found.append(Plane(dataset, profile, rows, points, *both))
    return found


def _measured(facts: Facts, name: str, row: Row) -> pareto.Point:
    model = facts.artifacts[row["source_artifact"]].checkpoint.name
    latency = Interval(value=row["p50_ms"], low=row["p50_low"], high=row["p50_high"])
    return pareto.Point(name=name, model=model, latency=latency, accuracy=accuracy(facts, row))


def _standing(labels: Labels, plane: Plane, name: str) -> Cell:
    if name in plane.front:
        return Cell("on the front", tone="good")
    if by := plane.dominated.get(name):
        return Cell("dominated", f"by {_named(labels, plane.rows[by])}", tone="muted")
    return Cell("undecided")


def _panel(facts: Facts, plane: Plane, y: Axis) -> Drawn:
    labels = Labels(facts.rows)
    told = _told(plane)
    points = [_point(labels, plane, name, str(row["size"]) if name in told else "") for name, row in plane.rows.items()]
    x = Axis(title="median, ms (log)", domain=scales.logarithmic([(one.x, one.x_low, one.x_high) for one in points]))
    title = ", ".join([wording.profile(facts.profiles[plane.profile]), *facts.datasets(plane.dataset)])
    ordered = sorted((plane.points[name] for name in plane.front), key=lambda one: one.latency.value)
    outline = [(one.latency.value, one.accuracy.value * 100) for one in ordered]
    says = f"on the front are {wording.listed([_named(labels, plane.rows[one.name]) for one in ordered])}"
    return drawing.lines(points, x, y, title, says, outline)


def _told(plane: Plane) -> set[str]:
    """The points whose size is written beside them: the best of each, where there are several sizes."""
    best: dict[int, str] = {}
    for point in sorted(plane.points.values(), key=lambda one: (-one.accuracy.value, one.latency.value)):
        best.setdefault(plane.rows[point.name]["size"], point.name)
    return set(best.values()) if len(best) > 1 else set()


def _point(labels: Labels, plane: Plane, name: str, text: str) -> Point:
    row, point = plane.rows[name], plane.points[name]
    share, latency = point.accuracy, point.latency
    low, high = (None if end is None else end * 100 for end in (share.low, share.high))
    said = f"{_percent(share.value)} % at a median of {number(latency.value)} ms {interval(latency.low, latency.high)}"
    return Point(
        series=name,
        framework=wording.framework(row["framework"]),
        colour=wording.colour(row["framework"]),
        kind="ONNX" if row["format"] == "onnx" else "native",
        value=share.value * 100,
        low=low,
        high=high,
        label=f"{_named(labels, row)}: {said}",
        x=latency.value,
        x_low=latency.low,
        x_high=latency.high,
        faded=name in plane.dominated,
        text=text,
    )


def _named(labels: Labels, row: Row) -> str:
    return f"{labels.full(row)}, {row['size']} px"


def _percent(share: float | None) -> str:
    return wording.ABSENT if share is None else f"{share * 100:.2f}"
