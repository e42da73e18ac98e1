"""Latency against rate, and where the knee is: open loops by what they delivered, closed loops by what they reached."""

from collections.abc import Sequence

from loadtest.analysis.saturation import Rung, knee
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.comparison import grouped
from loadtest.report.drawing import Axis, Drawn, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.sections import load
from loadtest.report.wording import Labels, number
from loadtest.results.flags import deployment
from loadtest.results.table import Row


def schedules(facts: Facts) -> Figure | None:
    """p50 and p99 against the delivered rate; null where no kind of arrivals was measured at several rates."""
    rows = [row for row in facts.rows if row["mode"] == "open-loop" and row["rate_delivered"] and row["p50_ms"]]
    rows = [row for row in rows if comparison.usable(row) and row["batch"] == 1]
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(facts.profiles[row["profile"]].arrivals, []).append(row)
    panels, shown, cut = [], [], False
    for kind, found in by_kind.items():
        for group in grouped(found, "dataset", "architecture", "size").values():
            if len({row["rate_asked"] for row in group}) < 2:
                continue
            shown += group
            knees = _knees(group)
            for name in ("p50", "p99"):
                known = [row for row in group if row[f"{name}_ms"]]
                points = [_against_rate(facts, row, name, ringed=row["cell"] in knees) for row in known]
                if points:
                    title = f"{name}, {kind} arrivals, {_place(facts, group[0])}"
                    panels.append(_panel(points, "delivered, requests/s (log)", f"{name}, ms (log)", title))
                    spreads = [point.spread for point in points]
                    cut |= scales.cut(spreads, scales.logarithmic(spreads))
    caption = (
        "Latency from the intended time against the rate that was delivered; bars: 95 % intervals over launches. Ring: "
        "the knee, where rate over median latency is highest, if it lies below the highest rate."
    )
    if not panels:
        return None
    caption += scales.CUT * cut
    return sheet.draw("rates", "Latency against rate", caption, panels, wording.key(shown), paired=True)


def users(facts: Facts) -> Figure | None:
    """Latency against the rate that closed loops of several users reach; null where the study has no such ladder."""
    rungs = {one.name: one.users for one in load.rungs_of(facts)}
    rows = [row for row in facts.rows if row["profile"] in rungs and row["knee"] is not None and row["throughput"]]
    # The null runtime would be a point decades away.
    rows = [row for row in rows if row["framework"] is not None]
    if len(rungs) < 2 or not rows:
        return None
    panels = []
    for group in grouped(rows, "dataset", "architecture", "size").values():
        place, counts = _place(facts, group[0]), tuple(sorted(rungs.values()))
        points = [_rung(facts, row, rungs[row["profile"]], latency=True) for row in group if row["p50_ms"]]
        if points:
            panels.append(_panel(points, "reached, images/s (log)", "median, ms (log)", f"Latency, {place}"))
        points = [_rung(facts, row, rungs[row["profile"]], latency=False) for row in group]
        panels.append(_panel(points, "users (log)", "images/s (log)", f"Throughput, {place}", counts))
    caption = (
        "Closed loops of several users, back to back. Ring: the knee of each deployment. Above it latency is not "
        "quoted, so its line ends there; throughput goes on."
    )
    return sheet.draw("ladder", "The ladder of users", caption, panels, wording.key(rows), paired=True)


def _knees(rows: Sequence[Row]) -> set[str]:
    """The cell at each deployment's knee, of those whose highest rate lies beyond it."""
    ladders: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["rate_asked"])):
        ladders.setdefault(deployment(row), []).append(row)
    found = set()
    for ladder in ladders.values():
        rungs = [
            Rung(users=place, throughput=row["rate_delivered"], p50_ms=row["p50_ms"])
            for place, row in enumerate(ladder)
        ]
        if (best := knee(rungs)) < len(ladder) - 1:
            found.add(ladder[best]["cell"])
    return found


def _panel(points: Sequence[Point], across: str, up: str, title: str, places: tuple[float, ...] = ()) -> Drawn:
    ends = scales.logarithmic([(point.x, None, None) for point in points])
    x = Axis(title=across, domain=(ends[0] / 1.05, ends[1] * 1.05), ticks=places, grid=False)
    y = Axis(title=up, domain=scales.logarithmic([point.spread for point in points]))
    least, most = min(point.value for point in points), max(point.value for point in points)
    return drawing.lines(points, x, y, title, f"{number(least)} to {number(most)}")


def _against_rate(facts: Facts, row: Row, name: str, *, ringed: bool) -> Point:
    said = f"{number(row['rate_delivered'])} requests/s: {name} {wording.estimate(row, name)}"
    bounds = (row[f"{name}_low"], row[f"{name}_high"])
    return _point(facts, row, row[f"{name}_ms"], bounds, row["rate_delivered"], said, ringed=ringed)


def _rung(facts: Facts, row: Row, count: int, *, latency: bool) -> Point:
    said = f"median {wording.estimate(row)}" if latency else f"{number(row['throughput'])} images/s"
    words, knee_ = f"{wording.several(count, 'user')}: {said}", bool(row["knee"])
    if latency:
        return _point(
            facts, row, row["p50_ms"], (row["p50_low"], row["p50_high"]), row["throughput"], words, ringed=knee_
        )
    return _point(facts, row, row["throughput"], (None, None), float(count), words, ringed=knee_)


def _point(
    facts: Facts, row: Row, value: float, ends: tuple[float | None, float | None], x: float, said: str, *, ringed: bool
) -> Point:
    name = Labels(facts.rows).full(row)
    return Point(
        series=name,
        framework=wording.framework(row["framework"]),
        colour=wording.colour(row["framework"]),
        kind="ONNX" if row["format"] == "onnx" else "native",
        value=value,
        low=ends[0],
        high=ends[1],
        label=f"{name}, {said}" + (" (the knee)" if ringed else ""),
        x=x,
        ringed=ringed,
    )


def _place(facts: Facts, row: Row) -> str:
    where = [*facts.datasets(row["dataset"]), *facts.architectures(row["architecture"])]
    return ", ".join([*where, f"{row['size']} px"])
