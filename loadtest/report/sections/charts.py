"""The charts: latency by resolution, native against ONNX, what HTTP adds. Which points, in which panels."""

from collections.abc import Sequence
from math import exp

import msgspec

from loadtest.analysis.compare import MARGIN
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.comparison import by_deployment, grouped
from loadtest.report.drawing import Axis, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure, Mark
from loadtest.report.wording import Labels, estimate, interval, number
from loadtest.results.table import Row

APART = 0.022
"""Relative shift of neighbouring series across, so that intervals do not hide one another."""


def latency(facts: Facts) -> Figure | None:
    """Median by resolution; null where every group has one size only."""
    return _by_size(facts, [group for group in _groups(facts) if len({row["size"] for row in group}) > 1])


def latency_at_one_size(facts: Facts) -> Figure | None:
    """Medians and tails of what was measured at one size only."""
    return _at_one_size(facts, [group for group in _groups(facts) if len({row["size"] for row in group}) == 1])


def _groups(facts: Facts) -> list[list[Row]]:
    rows = [row for row in facts.rows if row["profile"] in _shown(facts) and _drawable(row)]
    return list(grouped(rows, "dataset", "architecture", "profile").values())


def _shown(facts: Facts) -> set[str]:
    return {profile.name for profile in comparison.side_by_side(facts.profiles.values())}


def _drawable(row: Row) -> bool:
    # The null runtime is a point decades below all others; what it costs is a figure of its own.
    return row["batch"] == 1 and comparison.usable(row)


def _by_size(facts: Facts, groups: list[list[Row]]) -> Figure | None:
    if not groups:
        return None
    labels = Labels(facts.rows)
    points = [[_point(labels, row) for row in group] for group in groups]
    spreads = [point.spread for panel in points for point in panel]
    domain = scales.logarithmic(spreads)
    order = list(dict.fromkeys(point.series for panel in points for point in panel))
    sizes = tuple(sorted({row["size"] for group in groups for row in group}))
    panels = []
    for group, panel in zip(groups, points, strict=True):
        shifts = [APART * (order.index(point.series) - (len(order) - 1) / 2) for point in panel]
        moved = [
            msgspec.structs.replace(point, x=row["size"] * exp(shift))
            for row, point, shift in zip(group, panel, shifts, strict=True)
        ]
        across = Axis(title="image side, px (log)", domain=(sizes[0] / 1.2, sizes[-1] * 1.2), ticks=sizes, grid=False)
        up = Axis(title="median, ms (log)", domain=domain)
        panels.append(drawing.lines(moved, across, up, _title(facts, group[0]), _ends(panel)))
    caption = (
        "Median latency of one image by resolution; both axes are logarithmic and the same in all panels. Bars: 95 % "
        "intervals over launches. Points are set slightly apart sideways so that the bars can be read."
    )
    caption += scales.CUT * scales.cut(spreads, domain)
    key = wording.key(row for group in groups for row in group)
    return sheet.draw("latency", "Latency by resolution", caption, panels, key)


def _at_one_size(facts: Facts, groups: list[list[Row]]) -> Figure | None:
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
        panels.append(drawing.rows(panel, Axis(title="ms (log)", domain=domain), title, _ends(panel)))
    sizes = wording.listed([f"{size} px" for size in dict.fromkeys(group[0]["size"] for group in groups)])
    caption = (
        "Latency of one image; the axis is logarithmic and the same in all panels. Point: median, with its 95 % "
        "interval over launches."
    )
    caption += " Upright stroke: p99." * bool(tails)
    caption += scales.CUT * scales.cut(spreads, domain)
    key = wording.key(row for group in groups for row in group)
    return sheet.draw("latency-one-size", f"Latency at {sizes}", caption, panels, key)


def ratios(facts: Facts) -> Figure | None:
    """ONNX over native as a forest plot, a panel a way of measuring; null without a pair."""
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
            Axis(title="ONNX / native (log)", domain=domain),
            wording.profile(facts.profiles[profile]),
            _ends(points, wording.TIMES),
            line=1.0,
            band=(1 / (1 + MARGIN), 1 + MARGIN),
        )
        for profile, points in found.items()
    ]
    caption = (
        "Median of ONNX over that of the native format, launches paired block by block, by framework and size: left of "
        "1, ONNX is faster. Filled: faster or slower, with 95 % confidence for all pairs of a panel together; rings: "
        "equivalent, or undecided. Grey band: within 5 %, which is equivalent for whoever must choose."
    )
    caption += scales.CUT * scales.cut(spreads, domain)
    key = frameworks | {"faster or slower": Mark(wording.MUTED), "neither for certain": Mark(wording.MUTED, "ring")}
    return sheet.draw("native-onnx", "Native against ONNX", caption, panels, tuple(key.items()))


def overheads(facts: Facts) -> Figure | None:
    """What HTTP adds, a panel a size; null without both ways of measuring."""
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
        across = Axis(title="ms", domain=domain, log=False)
        panels.append(drawing.rows(points, across, title, _ends(points), line=floor))
    caption = (
        "Median of the closed loop less the median in process, one image a request, with its 95 % interval; each panel "
        "has its own axis. Broken line: the null runtime, which computes nothing: the floor of wrapper and client."
    )
    caption += scales.CUT * beyond
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
