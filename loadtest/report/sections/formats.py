"""Native beside ONNX: the table of ratios, and the forest plot."""

from loadtest.analysis.compare import MARGIN
from loadtest.report import comparison, drawing, scales, sheet, wording
from loadtest.report.cells import data_column
from loadtest.report.drawing import Axis, Point
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.wording import Labels
from loadtest.results.pairs import Pair
from loadtest.results.tabular import Cell, Column, Line, Mark, Table, Tone
from medserve.numbers import ABSENT, TIMES, interval, number, times


def table(facts: Facts) -> Table | None:
    """ONNX over native for each framework, size and way of measuring; null if the study has no such pair."""
    found = facts.comparisons.pairs("native against ONNX")
    if not found:
        return None
    names = dict.fromkeys(pair.first.profile for pair in found)
    profiles = comparison.side_by_side([facts.profiles[name] for name in names])
    lines: dict[tuple[str, str], dict[str, Pair]] = {}
    for pair in found:
        key = (pair.first.deployment, pair.second.deployment)
        lines.setdefault(key, {})[pair.first.profile] = pair
    labels = Labels(facts.rows)
    columns = [Column("framework", numeric=False), *data_column(facts), Column("size", "px")]
    for profile in profiles:
        group = wording.profile(profile)
        columns += [Column("native", "ms", group), Column("ONNX", "ms", group), Column("ratio", "", group)]
    rows = []
    for pairs in lines.values():
        native = next(iter(pairs.values())).first
        beside = f"{labels.kind(native)} / ONNX"
        cells = [Cell(wording.framework(native.framework), beside, mark=Mark(wording.colour(native.framework)))]
        cells += [Cell(name) for name in facts.datasets(native.dataset)]
        cells.append(Cell(str(native.size), value=native.size))
        for profile in profiles:
            cells += _pair_cells(pairs.get(profile.name))
        rows.append(Line(tuple(cells)))
    caption = (
        "Medians, and their ratio ONNX / native over launches paired block by block: below 1, ONNX is faster. Bold: "
        "faster or slower, with 95 % confidence for all pairs under one way of measuring together. Grey: equivalent "
        "within 5 %, or undecided."
    )
    return Table("", tuple(columns), tuple(rows), caption)


def figure(facts: Facts) -> Figure | None:
    """ONNX over native as a forest plot, a panel per way of measuring; null without a pair."""
    labels = Labels(facts.rows)
    shown = {profile.name for profile in comparison.side_by_side(facts.profiles.values())}
    points: dict[str, list[Point]] = {}
    frameworks = {}
    for pair in facts.comparisons.pairs("native against ONNX"):
        if pair.judged.ratio.value is not None and pair.first.profile in shown:
            points.setdefault(pair.first.profile, []).append(_point(facts, labels, pair))
            name = pair.first.framework
            frameworks[wording.framework(name)] = Mark(wording.colour(name))
    if not points:
        return None
    spreads = [point.spread for panel in points.values() for point in panel]
    # The line at 1 is in the picture, with some room on both sides.
    domain = scales.logarithmic([*spreads, (0.8, None, None), (1.25, None, None)])
    panels = [
        drawing.rows(
            panel,
            Axis(title="ONNX / native (log)", domain=domain),
            wording.profile(facts.profiles[profile]),
            drawing.extremes(panel, TIMES),
            line=1.0,
            band=(1 / (1 + MARGIN), 1 + MARGIN),
        )
        for profile, panel in points.items()
    ]
    caption = (
        "Median of ONNX over that of the native format, launches paired block by block, by framework and size: left of "
        "1, ONNX is faster. Filled: faster or slower, with 95 % confidence for all pairs of a panel together; rings: "
        "equivalent, or undecided. Grey band: within 5 %, which counts as equivalent."
    )
    caption += scales.CUT * scales.cut(spreads, domain)
    key = frameworks | {"faster or slower": Mark(wording.MUTED), "equivalent or undecided": Mark(wording.MUTED, "ring")}
    return sheet.draw("native-onnx", "Native against ONNX", caption, panels, tuple(key.items()))


def _pair_cells(pair: Pair | None) -> list[Cell]:
    if pair is None:
        return [Cell("")] * 3
    native, onnx = (Cell(number(row.p50.value), value=row.p50.value) for row in (pair.first, pair.second))
    ratio = pair.judged.ratio
    if ratio.value is None:
        return [native, onnx, Cell(ABSENT, tone="muted", hint=ratio.reason or "")]
    tone: Tone = "strong" if pair.judged.verdict in ("faster", "slower") else "muted"
    bounds = interval(ratio.low, ratio.high)
    return [native, onnx, Cell(times(ratio.value), bounds, ratio.value, pair.judged.verdict, tone)]


def _point(facts: Facts, labels: Labels, pair: Pair) -> Point:
    row, ratio = pair.first, pair.judged.ratio
    assert ratio.value is not None
    words = [f"{row.size} px", wording.framework(row.framework), *labels.varying(row)]
    name = " ".join([*words, *facts.datasets(row.dataset)])
    measured = f"{times(ratio.value)} {interval(ratio.low, ratio.high)}"
    label = f"{name}: ONNX at {measured} of native, {pair.judged.verdict}"
    return Point(
        series=name,
        framework=wording.framework(row.framework),
        colour=wording.colour(row.framework),
        kind="decided" if pair.judged.verdict in ("faster", "slower") else "not decided",
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        label=label,
    )
