"""What to choose: who holds the study's objective, the best for others, accuracy against latency and its front."""

from collections.abc import Mapping
from itertools import pairwise
from math import inf, isinf
from typing import get_args

from msgspec import Struct

from loadtest.analysis import intervals, pareto
from loadtest.analysis.intervals import Interval
from loadtest.analysis.pareto import Candidate, Choice
from loadtest.report import drawing, tables, wording
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Point
from loadtest.report.facts import Facts
from loadtest.report.figures import figure as compose
from loadtest.report.tables import Field, field, text
from loadtest.results import objective
from loadtest.results.objective import Held
from loadtest.results.row import Row, of_labels
from loadtest.results.tabular import Cell, Table, Tone
from medserve.numbers import interval, number, percent
from medserve.spec import LoadProfile

PERCENTILES = ("p99", "p90", "p50")
"""The percentile of an objective: the first of these that every sample is large enough for."""
UNEQUAL = "Sizes were trained for different numbers of epochs: this chooses among networks, not resolutions."


class Plane(Struct, frozen=True):
    """The deployments of one data set under one way of measuring, by name; `dominated` names what dominates each."""

    dataset: str
    profile: str
    rows: dict[str, Row]
    points: dict[str, pareto.Point]
    front: set[str]
    dominated: dict[str, str]


class Advice(Struct, frozen=True):
    """A choice among the rows of one way of measuring, which are named by their cells."""

    profile: LoadProfile
    rows: dict[str, Row]
    choice: Choice

    @property
    def best(self) -> Row:
        """The row that is chosen."""
        assert self.choice.best is not None
        return self.rows[self.choice.best]


def held(facts: Facts) -> list[Held]:
    """How every deployment stands against the study's objective, those that hold it first, then by median."""
    if facts.study.objective is None or facts.study.objective.rate is None:
        return []

    def launches(name: str, cell: str) -> Mapping[int, float]:
        return facts.percentiles[name].get(cell, {})

    found = objective.judge(facts.study.objective, facts.rows, launches, lambda row: _images(facts, row))
    order = list(get_args(objective.Standing))
    return sorted(found, key=lambda one: (order.index(one.standing), one.row.p50.value or inf))


def study_objective(facts: Facts) -> Table | None:
    """How each deployment stands against the study's objective; null where the study has none."""
    if facts.study.objective is None or facts.study.objective.rate is None:
        return None
    name, _ = objective.percentile(facts.study.objective)
    tones: dict[objective.Standing, Tone] = {"passes": "good", "fails": "bad", "undecided": "warn"}
    fields: list[Field[Held]] = [
        tables.deployment_field(facts, lambda one: one.row),
        field("size", lambda one: one.row.size, "px"),
        field(name, lambda one: one.latency, "ms"),
        field("accuracy", lambda one: tables.share(one.accuracy, of_labels(one.row.task)), "%"),
        text("holds it", lambda one: Cell(one.standing, tone=tones.get(one.standing, "muted"))),
        text("because", lambda one: Cell(_because(one), tone="muted")),
    ]
    return tables.table("The study's objective", fields, held(facts), f"{objective.in_words(facts.study.objective)}.")


def _because(one: Held) -> str:
    more = f"about {wording.several(one.more, 'launch', 'launches')} more decide" if one.more else ""
    return "; ".join(filter(None, (one.reason, more)))


def objectives(facts: Facts) -> Table | None:
    """One line per objective; null where no deployment has an interval that could lie below a limit."""
    advice = []
    for dataset in facts.datasets:
        for profile in facts.profiles.values():
            if profile.mode == "in-process" or profile.batch > 1 or profile.mistake:
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
            advice += [
                Advice(profile, rows, choice)
                for before, choice in pairwise([None, *choices])
                if choice and choice.best and (before is None or before.best != choice.best)
            ]
    fields: list[Field[Advice]] = [
        text("objective", lambda known: _objective(facts, known)),
        text("choose", lambda known: tables.deployment(facts, known.best)),
        field("size", lambda known: known.best.size, "px"),
        field("accuracy", lambda known: _share(facts, known.best), "%"),
        field("that percentile", lambda known: known.best.percentile(known.choice.percentile), "ms"),
        field("median", lambda known: known.best.p50, "ms"),
        text("not separated from", lambda known: _listed(facts, known, known.choice.alike)),
        text("might hold it", lambda known: _listed(facts, known, known.choice.maybe)),
    ]
    return tables.table("The best for an objective", fields, advice, UNEQUAL * facts.unequal, notes=_left_out(facts))


def _left_out(facts: Facts) -> tuple[str, ...]:
    """What no choice is made among, and why."""
    unusable: dict[str, list[str]] = {}
    for row in facts.rows:
        if row.framework is not None and not row.usable:
            names = unusable.setdefault(row.reason or "no valid certificate", [])
            names += [facts.named(row)] * (facts.named(row) not in names)
    rows = [f"{wording.listed(names)}: {reason}" for reason, names in unusable.items()]
    return tuple(f"Left out: {words}" for words in (*facts.plan.left_out, *rows))


def _objective(facts: Facts, advice: Advice) -> Cell:
    limit = advice.choice.limit
    # On one line, however narrow the column.
    objective = f"{advice.choice.percentile} < {limit:g} ms".replace(" ", "\N{NO-BREAK SPACE}")
    where = ", ".join([wording.under(advice.profile), *facts.shown_dataset(advice.best.dataset)])
    return Cell(objective, where, limit)


def _listed(facts: Facts, advice: Advice, cells: tuple[str, ...]) -> Cell:
    names = [facts.named(advice.rows[cell]) for cell in cells]
    shown = names if len(names) < 3 else [*names[:2], f"{len(names) - 2} more"]
    return Cell("; ".join(shown) or "none", tone="" if shown else "muted")


def fronts(facts: Facts) -> Table | None:
    """One line per deployment and size with its standing in each way of measuring; null where nothing competes."""
    planes = planes_of(facts)
    rows = {name: row for plane in planes for name, row in plane.rows.items()}
    fields: list[Field[str]] = [
        *tables.deployment_fields(facts, rows.__getitem__),
        field("accuracy", lambda name: _share(facts, rows[name]), "%"),
    ]
    for profile in dict.fromkeys(plane.profile for plane in planes):
        here = {name: plane for plane in planes if plane.profile == profile for name in plane.rows}
        fields.append(_standings(facts, profile, here))
    return tables.table("Accuracy against latency", fields, rows, UNEQUAL * facts.unequal)


def _standings(facts: Facts, profile: str, planes: dict[str, Plane]) -> Field[str]:
    """How each deployment stands under one way of measuring; blank where it does not compete."""

    def standing(name: str) -> Cell:
        if (plane := planes.get(name)) is None:
            return Cell("")
        if name in plane.front:
            return Cell("on the front", tone="good")
        if by := plane.dominated.get(name):
            return Cell("dominated", f"by {facts.named(plane.rows[by])}", tone="muted")
        return Cell("undecided")

    return text(wording.profile(facts.profiles[profile]), standing)


def figure(facts: Facts) -> Figure | None:
    """Each plane as a panel; null where nothing competes."""
    planes = planes_of(facts)
    accuracies: dict[str, list[Interval]] = {}
    for plane in planes:
        accuracies.setdefault(_of(plane), []).extend(_percent(point.accuracy) for point in plane.points.values())
    # Accuracies of images and of labels have an axis each.
    axes = {of: Axis(title=f"accuracy{of}, %", over=over, scale="percent") for of, over in accuracies.items()}
    panels = []
    for plane in planes:
        labelled = _labelled(plane)
        points = {name: _point(facts, plane, name, name in labelled) for name in plane.rows}
        front = sorted((points[name] for name in plane.front), key=lambda point: (point.x.known, point.series))
        said = f"on the front are {wording.listed([facts.named(plane.rows[point.series]) for point in front])}"
        x = Axis(title="median, ms (log)", over=[point.x for point in points.values()])
        where = [wording.profile(facts.profiles[plane.profile]), *facts.shown_dataset(plane.dataset)]
        panels.append(drawing.lines(list(points.values()), x, axes[_of(plane)], ", ".join(where), said, front))
    return compose("front", "Accuracy against latency", panels, UNEQUAL * facts.unequal)


def _of(plane: Plane) -> str:
    """What the accuracies of a plane are of, behind the word; empty for images."""
    return f" {known}" if (known := of_labels(next(iter(plane.rows.values())).task)) else ""


def _labelled(plane: Plane) -> set[str]:
    """The points with their size written beside them: the best of each size, if there are several sizes."""
    best: dict[int, str] = {}
    for point in sorted(plane.points.values(), key=lambda known: (-known.accuracy.known, known.latency.known)):
        best.setdefault(plane.rows[point.name].size, point.name)
    return set(best.values()) if len(best) > 1 else set()


def _point(facts: Facts, plane: Plane, name: str, labelled: bool) -> Point:
    row, point = plane.rows[name], plane.points[name]
    latency = f"{number(point.latency.known)} ms {interval(point.latency.low, point.latency.high)}"
    label = f"{facts.named(row)}: {percent(point.accuracy.value)} % at a median of {latency}"
    text = str(row.size) if labelled else ""
    faded = name in plane.dominated
    return drawing.point(row, name, label, _percent(point.accuracy), x=point.latency, faded=faded, text=text)


def _percent(share: Interval) -> Interval:
    low, high = (None if end is None else end * 100 for end in (share.low, share.high))
    return Interval(value=share.known * 100, low=low, high=high)


def accuracy(facts: Facts, row: Row) -> Interval:
    """The accuracy of a row's network on the test split with its interval (Wilson 1927), as shares.

    With several labels per image the interval is too wide rather than too narrow: their number counts as one image.
    """
    assert row.accuracy is not None
    return intervals.wilson(row.accuracy, _images(facts, row))


def _share(facts: Facts, row: Row) -> Cell:
    return tables.share(accuracy(facts, row), of_labels(row.task))


def _images(facts: Facts, row: Row) -> int:
    return facts.artifacts[row.source_artifact].checkpoint.test.images


def eligible(facts: Facts, dataset: str, profile: str) -> list[Row]:
    """The rows that may be chosen: certified, with a median and an accuracy, in reduced precision their own."""
    rows = (row for row in facts.rows if (row.dataset, row.profile) == (dataset, profile) and row.usable)
    return [row for row in rows if row.accuracy is not None]


def _candidate(facts: Facts, row: Row) -> Candidate:
    bounds, floors = {}, {}
    for name in PERCENTILES:
        if (high := row.percentile(name).high) is not None:
            bounds[name], floors[name] = high, row.percentile(name).low or 0.0
        elif any(map(isinf, facts.percentiles[name][row.cell].values())):
            bounds[name] = inf
    return Candidate(name=row.cell, median=row.median, accuracy=accuracy(facts, row), bounds=bounds, floors=floors)


def planes_of(facts: Facts) -> list[Plane]:
    """The planes of the study on which two deployments or more compete."""
    profiles = [name for name, known in facts.main.items() if known.batch == 1]
    found = []
    for dataset in facts.datasets:
        for profile in profiles:
            rows = {row.deployment: row for row in eligible(facts, dataset, profile)}
            if len(rows) < 2:
                continue
            points = {
                name: pareto.Point(name=name, latency=row.p50, accuracy=accuracy(facts, row))
                for name, row in rows.items()
            }
            dominated = pareto.dominated(list(points.values()), _slower(facts, rows))
            found.append(Plane(dataset, profile, rows, points, pareto.front(points.values()), dominated))
    return found


def _slower(facts: Facts, rows: dict[str, Row]) -> pareto.Slower:
    return lambda first, second: facts.comparisons.judge(rows[first], rows[second]).verdict == "slower"
