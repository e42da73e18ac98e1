"""The charts: latency by resolution, native against ONNX, what HTTP adds. Which points, in which panels."""

from collections.abc import Sequence
from math import exp

import msgspec

from loadtest.analysis.table import Row
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.comparison import by_deployment, grouped
from loadtest.report.drawing import Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure, Mark
from loadtest.report.wording import Labels, estimate, interval, number

APART = 0.022
"""Relative shift of neighbouring series across, so that intervals do not hide one another."""
CUT = " Intervals that leave the frame are cut at its edge."


def figures(facts: Facts) -> tuple[Figure, ...]:
    """Every figure that the rows can carry; none without data."""
    by_size: list[list[Row]] = []
    at_one_size: list[list[Row]] = []
    rows = [row for row in facts.rows if row["profile"] in _shown(facts) and _drawable(row)]
    for group in grouped(rows, "dataset", "architecture", "profile").values():
        (by_size if len({row["size"] for row in group}) > 1 else at_one_size).append(group)
    drawn = [_latency(facts, by_size), _latency_at_one_size(facts, at_one_size), _ratios(facts), _overheads(facts)]
    return tuple(figure for figure in drawn if figure)


def _shown(facts: Facts) -> set[str]:
    return {profile.name for profile in comparison.side_by_side(facts.profiles.values())}


def _drawable(row: Row) -> bool:
    # The null runtime is a point decades below all others; what it costs is a figure of its own.
    return row["batch"] == 1 and comparison.usable(row)


def _latency(facts: Facts, groups: list[list[Row]]) -> Figure | None:
    if not groups:
        return None
    labels = Labels(facts.rows)
    points = [[_point(labels, row) for row in group] for group in groups]
    spreads = [point.spread for panel in points for point in panel]
    domain = scales.logarithmic(spreads)
    order = list(dict.fromkeys(point.series for panel in points for point in panel))
    sizes = sorted({row["size"] for group in groups for row in group})
    panels = []
    for group, panel in zip(groups, points, strict=True):
        shifts = [APART * (order.index(point.series) - (len(order) - 1) / 2) for point in panel]
        moved = [
            msgspec.structs.replace(point, x=row["size"] * exp(shift))
            for row, point, shift in zip(group, panel, shifts, strict=True)
        ]
        panels.append(drawing.lines(moved, domain, sizes, _title(facts, group[0]), _ends(panel)))
    caption = (
        "Median latency of one image by resolution; both axes are logarithmic and the same in all panels. Bars: 95 % "
        "intervals over launches. Points are set slightly apart sideways so that the bars can be read."
    )
    caption += CUT * scales.cut(spreads, domain)
    key = wording.key(row for group in groups for row in group)
    return sheet.draw("latency", "Latency by resolution", caption, panels, key)


def _latency_at_one_size(facts: Facts, groups: list[list[Row]]) -> Figure | None:
    if not groups:
        return None
    labels = Labels(facts.rows)
    points = [[_point(labels, row, row["p99_ms"]) for row in group] for group in groups]
    spreads = [point.spread for panel in points for point in panel]
    tails = [(point.tail, None, None) for panel in points for point in panel if point.tail is not None]
    domain = scales.logarithmic([*spreads, *tails])
    panels = []
    for group, panel in zip(groups, points, strict=True):
        title = f"{_title(facts, group[0])}, {group[0]['size']} px"
        panels.append(drawing.rows(panel, domain, "ms (log)", title, _ends(panel), log=True))
    sizes = wording.listed([f"{size} px" for size in dict.fromkeys(group[0]["size"] for group in groups)])
    caption = (
        "Latency of one image; the axis is logarithmic and the same in all panels. Point: median, with its 95 % "
        "interval over launches. Upright stroke: p99."
    )
    caption += CUT * scales.cut(spreads, domain)
    key = wording.key(row for group in groups for row in group)
    return sheet.draw("latency-one-size", f"Latency at {sizes}", caption, panels, key)


def _ratios(facts: Facts) -> Figure | None:
    labels = Labels(facts.rows)
    found: dict[str, list[Point]] = {}
    frameworks = {}
    for pair in comparison.pairs(facts.rows, facts.medians):
        row, ratio = pair.native, pair.ratio
        if ratio is None or row["profile"] not in _shown(facts):
            continue
        words = [f"{row['size']} px", wording.framework(row["framework"]), *labels.varying(row)]
        words += facts.datasets(row["dataset"])
        apart = pair.verdict in ("faster", "slower")
        label = f"{' '.join(words)}: ONNX at {wording.times(ratio.value)} {interval(ratio.low, ratio.high)} of native"
        point = Point(
            series=" ".join(words),
            framework=wording.framework(row["framework"]),
            colour=wording.colour(row["framework"]),
            kind="decided" if apart else "not decided",
            value=ratio.value,
            low=ratio.low,
            high=ratio.high,
            label=f"{label}, {pair.verdict}",
        )
        found.setdefault(row["profile"], []).append(point)
        frameworks[wording.framework(row["framework"])] = Mark(wording.colour(row["framework"]))
    if not found:
        return None
    spreads = [point.spread for points in found.values() for point in points]
    # The line at 1 is in the picture, with some room on both sides.
    domain = scales.logarithmic([*spreads, (0.8, None, None), (1.25, None, None)])
    panels = [
        drawing.rows(
            points,
            domain,
            "ONNX / native (log)",
            wording.profile(facts.profiles[profile]),
            _ends(points, wording.TIMES),
            log=True,
            line=1.0,
        )
        for profile, points in found.items()
    ]
    caption = (
        "Median of ONNX over that of the native format, launches paired block by block, by framework and size: left of "
        "1, ONNX is faster. Filled: faster or slower, with 95 % confidence for all pairs of a panel together; rings: "
        "equivalent within 5 %, or undecided."
    )
    caption += CUT * scales.cut(spreads, domain)
    key = frameworks | {"faster or slower": Mark(wording.MUTED), "neither for certain": Mark(wording.MUTED, "ring")}
    return sheet.draw("native-onnx", "Native against ONNX", caption, panels, tuple(key.items()))


def _overheads(facts: Facts) -> Figure | None:
    ways = comparison.both_ways(facts.profiles.values())
    if ways is None:
        return None
    labels = Labels(facts.rows)
    found: dict[tuple[str, str, int], list[Point]] = {}
    rows = []
    for group in by_deployment(facts.rows):
        added = comparison.overhead(group, *ways)
        if added is None:
            continue
        row = group[ways[1]]
        rows.append(row)
        words = f"{labels.full(row)}, {row['size']} px: HTTP adds {number(added.value)} ms"
        point = msgspec.structs.replace(
            _point(labels, row),
            value=added.value,
            low=added.low,
            high=added.high,
            label=f"{words} {interval(added.low, added.high)}",
        )
        found.setdefault((row["dataset"], row["architecture"], row["size"]), []).append(point)
    if not rows:
        return None
    panels, beyond = [], False
    for (data, architecture, size), points in found.items():
        spreads = [point.spread for point in points]
        domain = scales.linear(spreads)
        beyond |= scales.cut(spreads, domain)
        place = [*facts.datasets(data), *facts.architectures(architecture)]
        floor = next((point.value for point in points if point.kind == "null"), None)
        title = ", ".join([*place, f"{size} px"])
        panels.append(drawing.rows(points, domain, "ms", title, _ends(points), log=False, line=floor))
    caption = (
        "Median of the closed loop less the median in process, one image a request, with its 95 % interval; each panel "
        "has its own axis. Broken line: the null runtime, which computes nothing: the floor of wrapper and client."
    )
    caption += CUT * beyond
    return sheet.draw("http-overhead", "What HTTP adds", caption, panels, wording.key(rows))


def _point(labels: Labels, row: Row, tail: float | None = None) -> Point:
    null = row["framework"] is None
    label = f"{labels.full(row)}, {row['size']} px: median {estimate(row)}"
    return Point(
        series=labels.full(row),
        framework="null" if null else wording.framework(row["framework"]),
        colour=wording.colour(row["framework"]),
        kind="null" if null else "ONNX" if row["format"] == "onnx" else "native",
        value=row["p50_ms"],
        low=row["p50_low"],
        high=row["p50_high"],
        label=label + (f", p99 {number(tail)} ms" if tail is not None else ""),
        tail=tail,
    )


def _title(facts: Facts, row: Row) -> str:
    words = [wording.profile(facts.profiles[row["profile"]]), *facts.datasets(row["dataset"])]
    return ", ".join([*words, *facts.architectures(row["architecture"])])


def _ends(points: Sequence[Point], unit: str = " ms") -> str:
    """What a picture shows, for one who cannot see it."""
    ordered = sorted(points, key=lambda point: point.value)
    who = [f"{number(point.value)}{unit} ({point.label.partition(':')[0]})" for point in (ordered[0], ordered[-1])]
    return f"lowest {who[0]}, highest {who[1]}"
