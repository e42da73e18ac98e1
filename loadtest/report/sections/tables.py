"""The other tables of measurements: native beside ONNX, and what HTTP adds."""

from loadtest.analysis.intervals import Interval
from loadtest.report import comparison, wording
from loadtest.report.comparison import by_deployment
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Mark, Table, Tone
from loadtest.report.wording import ABSENT, Labels, number
from loadtest.results.flags import deployment
from loadtest.results.table import Row


def ratios(facts: Facts) -> Table | None:
    """ONNX over native for each framework, size and way of measuring; null where the study has no such pair."""
    found = comparison.pairs(facts.rows, facts.medians)
    if not found:
        return None
    names = dict.fromkeys(pair.native["profile"] for pair in found)
    profiles = comparison.side_by_side([facts.profiles[name] for name in names])
    lines: dict[tuple[str, str], dict[str, comparison.Pair]] = {}
    for pair in found:
        key = (deployment(pair.native), deployment(pair.onnx))
        lines.setdefault(key, {})[pair.native["profile"]] = pair
    labels = Labels(facts.rows)
    columns = [Column("framework", numeric=False), *data_column(facts), Column("size", "px")]
    for profile in profiles:
        group = wording.profile(profile)
        columns += [Column("native", "ms", group), Column("ONNX", "ms", group), Column("ratio", "", group)]
    rows = []
    for pairs in lines.values():
        native = next(iter(pairs.values())).native
        beside = f"{labels.kind(native)} / ONNX"
        cells = [Cell(wording.framework(native["framework"]), beside, mark=Mark(wording.colour(native["framework"])))]
        cells += [Cell(name) for name in facts.datasets(native["dataset"])]
        cells.append(Cell(str(native["size"]), value=native["size"]))
        for profile in profiles:
            cells += _pair_cells(pairs.get(profile.name))
        rows.append(Line(tuple(cells)))
    caption = (
        "Medians, and their ratio ONNX / native over launches paired block by block: below 1, ONNX is faster. Bold: "
        "faster or slower, with 95 % confidence for all pairs under one way of measuring together. Grey: equivalent "
        "within 5 %, or undecided."
    )
    return Table("", tuple(columns), tuple(rows), caption)


def _pair_cells(pair: comparison.Pair | None) -> list[Cell]:
    if pair is None:
        return [Cell("")] * 3
    native, onnx = (Cell(number(row["p50_ms"]), value=row["p50_ms"]) for row in (pair.native, pair.onnx))
    if pair.ratio is None:
        return [native, onnx, Cell(ABSENT, tone="muted", hint="one of the two has no median")]
    tone: Tone = "strong" if pair.verdict in ("faster", "slower") else "muted"
    bounds = wording.interval(pair.ratio.low, pair.ratio.high)
    return [native, onnx, Cell(wording.times(pair.ratio.value), bounds, pair.ratio.value, pair.verdict, tone)]


def overheads(facts: Facts) -> Table | None:
    """What HTTP adds to one image, by deployment and size; null without both ways of measuring."""
    ways = comparison.both_ways(facts.profiles.values())
    if ways is None:
        return None
    labels, sizes = Labels(facts.rows), list(facts.study.sizes)
    lines: dict[tuple[str, str], dict[int, tuple[Row, Interval]]] = {}
    for group in by_deployment(facts.rows):
        if (found := comparison.overhead(group, *ways)) is not None:
            row = group[ways[0]]
            lines.setdefault((row["dataset"], labels.full(row)), {})[row["size"]] = (row, found)
    if not lines:
        return None
    columns = (Column("deployment", numeric=False), *(Column(f"{size} px", "ms") for size in sizes))
    rows = []
    for (dataset, _), by_size in lines.items():
        row = next(iter(by_size.values()))[0]
        kind = ", ".join([labels.kind(row), *facts.datasets(dataset)])
        cells = [Cell(wording.framework(row["framework"]), kind, mark=wording.mark(row))]
        cells += [_bounds(by_size[size][1]) if size in by_size else Cell(ABSENT, tone="muted") for size in sizes]
        rows.append(Line(tuple(cells)))
    caption = "Median of the closed loop less the median in process, one image a request."
    return Table("What HTTP adds", columns, tuple(rows), caption)


def _bounds(found: Interval) -> Cell:
    return Cell(number(found.value), wording.interval(found.low, found.high), found.value)


def data_column(facts: Facts) -> list[Column]:
    """The column of the data set, where the study has several."""
    return [Column("data", numeric=False)] * (len(facts.study.datasets) > 1)
