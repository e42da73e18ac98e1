"""Inside the model: the least time that the machine allows, and the layers that take the time, by the profilers."""

from typing import NamedTuple

from loadtest.analysis.intervals import Interval
from loadtest.analysis.limit import Limit
from loadtest.report import drawing, wording
from loadtest.report import tables as fields_of
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Drawn, Part
from loadtest.report.facts import NETWORK, Facts, grouped
from loadtest.report.figures import figure as compose
from loadtest.report.tables import Field, field, text
from loadtest.results.layers import LAYERS, NO_OPERATOR, parts
from loadtest.results.pairs import Kind
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Table
from medserve.numbers import number, times
from medserve.result import Explained

PARTS = dict(
    zip(
        (*LAYERS, NO_OPERATOR),
        ("#0072B2", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#F0E442", wording.MUTED, "#b6bec8"),
        strict=True,
    )
)
"""The colour of each kind of layer: Okabe & Ito (2008), told apart with any kind of colour vision."""
GAP = 2.0
"""A native format that takes more times as long as its own ONNX is explained."""
NAMED = 3
"""Operators that are named of one deployment."""
LEAST = 0.05
"""Share of the difference below which a kind of layer is not named."""
PAIR: Kind = "native against ONNX"


class Gap(NamedTuple):
    """A native row that takes `ratio` times as long as its own ONNX, and what is explained of both."""

    native: Row
    onnx: Row
    ratio: float
    inside: Explained | None
    beside: Explained | None


def roofline(facts: Facts) -> Figure | None:
    """Operations per second against operations per byte, a panel per network and number of threads."""
    panels = [_roofline(facts, group) for group in grouped(_limited(facts), *NETWORK, "threads").values()]
    return compose("roofline", "Distance from the machine's limit", panels)


def _limited(facts: Facts) -> list[Row]:
    """The rows that were timed in process, and whose least time is known."""
    return [row for row in facts.rows if row.mode == "in-process" and row.cell in facts.limits and row.p50.value]


def _roofline(facts: Facts, rows: list[Row]) -> Drawn:
    points, outline = [], []
    limits = {facts.limits[row.cell].intensity: facts.limits[row.cell] for row in rows}
    ends = min(limits) / 2, max(limits) * 2
    for row in rows:
        limit = facts.limits[row.cell]
        low, value, high = (
            None if ms is None else _speed(limit, ms) for ms in (row.p50.high, row.p50.value, row.p50.low)
        )
        label = f"{facts.labels.full(row)}, {wording.several(row.batch, 'image')} a call: {number(value)} GFLOP/s, "
        label += f"{times(row.median / limit.ms)} the least time"
        known = Interval(value=value, low=low, high=high)
        x = Interval(value=limit.intensity)
        points.append(drawing.point(row, facts.labels.full(row), label, known, x=x))
    for limit in limits.values():
        ridge = limit.flops / limit.bandwidth
        name = f"{number(limit.bandwidth / 1e9)} GB/s"
        for intensity in sorted((ends[0], ends[1], min(max(ridge, ends[0]), ends[1]))):
            roof = Interval(value=min(limit.flops, intensity * limit.bandwidth) / 1e9)
            outline.append(drawing.point(rows[0], name, name, roof, x=Interval(value=intensity)))
    return drawing.lines(
        points,
        Axis(title="operations per byte (log)", ends=ends),
        Axis(title="GFLOP/s (log)", over=[point.value for point in (*points, *outline)]),
        ", ".join(filter(None, (facts.place(rows[0]), _threads(facts, rows[0])))),
        outline=outline,
        stepped=False,
    )


def _speed(limit: Limit, ms: float) -> float:
    """GFLOP/s of a prediction that takes so long."""
    return limit.operations / ms / 1e6


def _threads(facts: Facts, row: Row) -> str:
    return wording.several(row.threads, "thread") if len(facts.study.threads) > 1 else ""


def multiples(facts: Facts) -> Table | None:
    """Each row that was timed in process as a multiple of the least time that the machine allows."""
    fields: list[Field[Row]] = [
        *fields_of.deployment_fields(facts, lambda row: row),
        field("batch", lambda row: row.batch, "images"),
        field("p50", lambda row: row.p50, "ms"),
        field("limit", lambda row: facts.limits[row.cell].ms, "ms"),
        field("multiple", lambda row: row.median / facts.limits[row.cell].ms, "of the limit"),
        text("limited by", lambda row: "memory" if facts.limits[row.cell].by_memory else "arithmetic"),
    ]
    rows = _limited(facts)
    below = any(row.median < facts.limits[row.cell].ms for row in rows)
    return fields_of.table("Multiples of the limit", fields, rows, wording.TABLES["Below the limit"] if below else "")


def figure(facts: Facts) -> Figure | None:
    """The profiled time by kind of layer, a panel per network, size and batch; null where nothing was explained."""
    panels = []
    for group in grouped(_explained(facts), *NETWORK, "batch").values():
        drawn = []
        for row in group:
            bar = facts.labels.full(row)
            for position, (name, ms) in enumerate(parts(_of(facts, row)).items()):
                label = f"{bar}, {name}: {number(ms)} ms"
                drawn.append(Part(name, bar, position, PARTS[name], ms, label))
        title = f"{facts.place(group[0])}, {wording.several(group[0].batch, 'image')}"
        panels.append(drawing.stacks(drawn, "ms", title, "; ".join(part.label for part in drawn if part.position == 0)))
    return compose("layers", "Layers by time", panels, order=PARTS)


def _of(facts: Facts, row: Row) -> Explained:
    return facts.explained[row.deployment, row.batch]


def _explained(facts: Facts, *, with_reasons: bool = False) -> list[Row]:
    """A row of each deployment and batch that was explained."""
    known = (row for row in facts.rows if row.mode == "in-process" and (row.deployment, row.batch) in facts.explained)
    first = {(row.deployment, row.batch): row for row in known}
    return [row for row in first.values() if with_reasons or _of(facts, row).operators]


def table(facts: Facts) -> Table | None:
    """What the profiler of each deployment's runtime attributes, by kind of layer; null where nothing was explained."""

    def profiled(row: Row) -> Explained | None:
        return _of(facts, row) if _of(facts, row).operators else None

    of_profiler: list[Field[Explained]] = [
        field("with", lambda one: one.profiled_ms, "ms", "Profiler"),
        field("attributed", lambda one: fields_of.share(one.attributed), "%", "Profiler"),
        *(field(name, lambda one, name=name: parts(one)[name], "ms", "Layers") for name in LAYERS),  # type: ignore[misc]
        text("slowest operators", _slowest),
    ]
    fields: list[Field[Row]] = [
        *fields_of.deployment_fields(facts, lambda row: row),
        field("batch", lambda row: row.batch, "images"),
        field("without", lambda row: _of(facts, row).plain_ms, "ms", "Profiler"),
        *fields_of.of(profiled, of_profiler),
    ]
    return fields_of.table(
        "Layers by time",
        fields,
        _explained(facts, with_reasons=True),
        remarks=lambda row: tuple(filter(None, (_of(facts, row).reason,))),
    )


def _slowest(explained: Explained) -> Cell:
    """The operators that take the most time; how often each is called stands in the hint."""
    named = [f"{operator.name}: {number(operator.ms)} ms" for operator in explained.operators[:NAMED]]
    return Cell("; ".join(named))


def gaps(facts: Facts) -> Table | None:
    """Every native row that takes more than GAP times as long as its own ONNX, and the layers that make it."""
    found = []
    for pair in facts.comparisons.pairs(PAIR):
        ratio = pair.judged.ratio.value
        if ratio is not None and pair.first.mode == "in-process" and 1 / ratio > GAP:
            inside, beside = (facts.explained.get((row.deployment, row.batch)) for row in (pair.first, pair.second))
            found.append(Gap(pair.first, pair.second, 1 / ratio, inside, beside))
    fields: list[Field[Gap]] = fields_of.deployment_fields(facts, lambda gap: gap.native)
    fields += [
        field("batch", lambda gap: gap.native.batch, "images"),
        field("native / ONNX", lambda gap: gap.ratio),
        field("more", lambda gap: gap.native.median - gap.onnx.median, "ms"),
        text("of it in", _made_by),
        text("slowest operators", lambda gap: _slowest(gap.inside) if gap.inside else Cell("not profiled", "explain")),
    ]
    return fields_of.table("Native formats that take more than twice as long as their ONNX", fields, found)


def _made_by(gap: Gap) -> str:
    """The kinds of layers that take longer than in ONNX, by how much."""
    if gap.inside is None or gap.beside is None or not (gap.inside.operators and gap.beside.operators):
        return (gap.inside and gap.inside.reason) or "not profiled"
    native, onnx = parts(gap.inside), parts(gap.beside)
    more = sorted(((native[name] - onnx[name], name) for name in native), reverse=True)
    least = LEAST * (gap.inside.profiled_ms - gap.beside.profiled_ms)
    return "; ".join(f"{name} {number(ms)} ms" for ms, name in more[:NAMED] if ms > max(least, 0.0))
