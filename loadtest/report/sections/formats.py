"""Native beside ONNX: the table of ratios, and the forest plot; and the other pairs that differ in one thing."""

from loadtest.analysis.compare import MARGIN
from loadtest.analysis.intervals import Interval
from loadtest.report import drawing, tables, wording
from loadtest.report.axes import Axis
from loadtest.report.document import Figure
from loadtest.report.drawing import Point
from loadtest.report.facts import Facts
from loadtest.report.figures import figure as compose
from loadtest.report.tables import Field, Value, field, text
from loadtest.results.pairs import SHOWN, Kind, Pair
from loadtest.results.row import Row, of_labels
from loadtest.results.tabular import Cell, Table, Tone
from medserve.numbers import interval, times
from medserve.spec import LoadProfile

KIND: Kind = "native against ONNX"
DECIDED = ("faster", "slower")


def table(facts: Facts) -> Table | None:
    """ONNX over native for each framework, size and way of measuring; null if the study has no such pair."""
    pairs: dict[tuple[str, str], dict[str, Pair]] = {}
    for pair in facts.comparisons.pairs(KIND):
        key = (pair.first.deployment, pair.second.deployment)
        pairs.setdefault(key, {})[pair.first.profile] = pair
    shown = {name for group in pairs.values() for name in group}
    fields: list[Field[dict[str, Pair]]] = [
        text("framework", lambda group: _framework(facts, group)),
        text("data", lambda group: wording.dataset(_any(group).first.dataset), shown=len(facts.datasets) > 1),
        field("size", lambda group: _any(group).first.size, "px"),
    ]
    for profile in facts.main.values():
        fields += _profile_fields(profile) if profile.name in shown else []
    return tables.table("", fields, pairs.values(), wording.TABLES["Native beside ONNX"])


def others(facts: Facts) -> list[Table | None]:
    """A table of each further kind of pairs that the study has: the second over the first."""
    return [_of_kind(facts, kind) for kind in SHOWN if kind != KIND]


def _of_kind(facts: Facts, kind: Kind) -> Table | None:
    pairs: dict[tuple[object, ...], dict[str, Pair]] = {}
    for pair in facts.comparisons.pairs(kind):
        first, second = pair.first, pair.second
        if first.profile in facts.main and pair.judged.ratio.value is not None:
            key = (first.deployment, second.deployment, first.batch, second.batch)
            pairs.setdefault(key, {})[first.profile] = pair
    of_batches = kind == "batch against batch"
    fields: list[Field[dict[str, Pair]]] = [
        text("first", lambda group: tables.deployment(facts, _any(group).first)),
        text("second", lambda group: tables.deployment(facts, _any(group).second)),
        field("size", lambda group: _any(group).first.size, "px"),
        field("first", lambda group: _any(group).first.batch, "images", "Batches", shown=of_batches),
        field("second", lambda group: _any(group).second.batch, "images", "Batches", shown=of_batches),
    ]
    if kind == "reduced precision against float32":
        change: list[Field[Pair]] = [field("accuracy", lambda pair: _accuracy(pair.first), "%", "float32")]
        change.append(field("accuracy", lambda pair: _accuracy(pair.second), "%", "reduced"))
        fields += tables.of(_any, change)
    for profile in dict.fromkeys(name for group in pairs.values() for name in group):
        ratio = [field("ratio", _ratio, "", wording.profile(facts.profiles[profile]))]
        fields += tables.of(lambda group, name=profile: group.get(name), ratio)  # type: ignore[misc]
    title = kind[0].upper() + kind[1:] + ", per image" * of_batches
    return tables.table(title, fields, pairs.values(), wording.TABLES["Pairs"])


def figure(facts: Facts) -> Figure | None:
    """ONNX over native as a forest plot, a panel per way of measuring; null without a pair."""
    points: dict[str, list[Point]] = {}
    for pair in facts.comparisons.pairs(KIND):
        if pair.judged.ratio.value is not None and pair.first.profile in facts.main:
            points.setdefault(pair.first.profile, []).append(_point(facts, pair))
    # The line at 1 is in the picture, with some room on both sides.
    room = [Interval(value=0.8), Interval(value=1.25)]
    ratios = [point.value for panel in points.values() for point in panel]
    x = Axis(title="ONNX / native (log)", over=[*ratios, *room])
    band = (1 / (1 + MARGIN), 1 + MARGIN)
    panels = [
        drawing.rows(panel, x, wording.profile(facts.profiles[profile]), line=1.0, band=band)
        for profile, panel in points.items()
    ]
    return compose("native-onnx", "Native against ONNX", panels)


def _accuracy(row: Row) -> Cell:
    return tables.share(row.accuracy, of_labels(row.task))


def _any(group: dict[str, Pair]) -> Pair:
    return next(iter(group.values()))


def _framework(facts: Facts, group: dict[str, Pair]) -> Cell:
    native = _any(group).first
    return tables.framework(native.framework, f"{facts.labels.kind(native)} / ONNX")


def _profile_fields(profile: LoadProfile) -> list[Field[dict[str, Pair]]]:
    group = wording.profile(profile)
    fields: list[Field[Pair]] = [
        field("native", lambda pair: pair.first.p50.value, "ms", group),
        field("ONNX", lambda pair: pair.second.p50.value, "ms", group),
        field("ratio", _ratio, "", group),
    ]
    return tables.of(lambda pairs: pairs.get(profile.name), fields)


def _ratio(pair: Pair) -> Value:
    ratio = pair.judged.ratio
    if ratio.value is None:
        return ratio
    tone: Tone = "strong" if pair.judged.verdict in DECIDED else "muted"
    return Cell(times(ratio.value), interval(ratio.low, ratio.high), ratio.value, pair.judged.verdict, tone)


def _point(facts: Facts, pair: Pair) -> Point:
    row, ratio = pair.first, pair.judged.ratio
    words = [f"{row.size} px", wording.framework(row.framework), *facts.labels.varying(row)]
    name = " ".join([*words, *facts.shown_dataset(row.dataset)])
    measured = f"{times(ratio.known)} {interval(ratio.low, ratio.high)}"
    kind = "faster or slower" if pair.judged.verdict in DECIDED else "equivalent or undecided"
    label = f"{name}: ONNX at {measured} of native, {pair.judged.verdict}"
    return drawing.point(row, name, label, ratio, kind=kind)
