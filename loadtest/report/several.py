"""Several runs of one study beside each other: the ratios within each, where verdicts agree, how far runs differ.

Runs on different machines are never ranked together. Two runs on machines of one kind differ when they do so beyond the
spread between runs, which takes `compare.RUNS` of them to be known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from loadtest.analysis.compare import Judged
from loadtest.analysis.intervals import Interval
from loadtest.report import drawing, page, tables, wording
from loadtest.report.axes import Axis
from loadtest.report.document import Figure, Page, say
from loadtest.report.drawing import Point
from loadtest.report.facts import Facts
from loadtest.report.figures import figure
from loadtest.report.sections import environment
from loadtest.report.sections.formats import DECIDED, KIND
from loadtest.report.tables import Field, field, text
from loadtest.results import pairs
from loadtest.results.bundle import machine_kind
from loadtest.results.pairs import KINDS, MACHINE, Pair
from loadtest.results.tabular import Cell, Table, Tone
from medserve import store
from medserve.errors import BadInput
from medserve.numbers import ABSENT, interval, percent, times

Agreement = Literal["agree", "flip", "undecided", "in one run only"]
TONES: dict[Agreement, Tone] = {"agree": "good", "flip": "bad", "undecided": "muted", "in one run only": "muted"}


class Across(Struct, frozen=True):
    """A pair of deployments in each run that has it, by the run's name."""

    pairs: dict[str, Pair]

    @property
    def one(self) -> Pair:
        """The pair in the first run that has it."""
        return next(iter(self.pairs.values()))

    @property
    def agreement(self) -> Agreement:
        """Whether the runs agree on the second deployment: `flip` where it is faster in one and slower in another."""
        verdicts = {pair.judged.verdict for pair in self.pairs.values()}
        if set(DECIDED) <= verdicts:
            return "flip"
        if len(self.pairs) < 2:
            return "in one run only"
        return "agree" if len(verdicts) == 1 and verdicts <= {*DECIDED, "equivalent"} else "undecided"


def write(found: Mapping[str, Facts], out: Path) -> list[Path]:
    """Write the page of several runs, by their names, and what lies beside it; the page is the first of the files.

    Raises BadInput when they are of different studies.
    """
    written = page.render(compose(found), out)
    with store.new_files(written):
        pass
    return list(written)


def compose(found: Mapping[str, Facts]) -> Page:
    """The page as data. Raises BadInput when the runs are of different studies."""
    names, studies = list(found), [facts.study for facts in found.values()]
    for name, study in zip(names, studies, strict=True):
        if study.name != studies[0].name:
            raise BadInput(f"{name} is a run of the study {study.name}, and {names[0]} of {studies[0].name}")
    across = pairs_across(found)
    kinds = by_machine(found)
    counts = [sum(one.agreement == word for one in across) for word in ("agree", "flip")]
    answer = say(
        "**{agree} of {all} pairs** have the same verdict in all runs that have them, and **{flip}** the opposite in "
        "two of these.",
        agree=str(counts[0]), all=str(sum(len(one.pairs) > 1 for one in across)), flip=str(counts[1]),
    )  # fmt: skip
    sections = [page.section("verdicts", _verdicts(found, across))]
    sections += [page.section("spread", *(_spread(kind, same) for kind, same in kinds.items() if len(same) > 1))]
    sections += [page.section("runs", _runs(found))]
    return Page(
        title=f"{studies[0].title}: {wording.several(len(found), 'run')}",
        study=studies[0].name,
        facts=tuple(kinds),
        unofficial=any(facts.unofficial for facts in found.values()),
        answer=(answer,),
        picture=_picture(found),
        podium=None,
        cautions=(),
        sections=tuple(section for section in sections if section.blocks),
    )


def pairs_across(found: Mapping[str, Facts]) -> list[Across]:
    """Each pair of deployments with its verdict in every run."""
    known: dict[tuple[str, str], dict[str, Pair]] = {}
    for kind in KINDS:
        for name, facts in found.items():
            for pair in facts.comparisons.pairs(kind):
                if pair.judged.ratio.value is not None:
                    known.setdefault((pair.first.cell, pair.second.cell), {})[name] = pair
    return [Across(of_run) for of_run in known.values()]


def by_machine(found: Mapping[str, Facts]) -> dict[str, dict[str, Facts]]:
    """The runs by the kind of their machine, those together that can be compared: of the same shard of the study."""
    kinds: dict[tuple[str, ...], dict[str, Facts]] = {}
    for name, facts in found.items():
        machine = (str(_machine(facts).get(field)) for field in MACHINE)
        kinds.setdefault((*machine, facts.study.shard), {})[name] = facts
    titles = [_kind(next(iter(same.values()))) for same in kinds.values()]
    repeated = [title if titles.count(title) == 1 else f"{title} ({place})" for place, title in enumerate(titles, 1)]
    return dict(zip(repeated, kinds.values(), strict=True))


def _kind(facts: Facts) -> str:
    return machine_kind(_machine(facts))


def _machine(facts: Facts) -> dict[str, Any]:
    return facts.results[0].machine if facts.results else {}


def _verdicts(found: Mapping[str, Facts], across: Sequence[Across]) -> Table | None:
    def ratio(name: str) -> Field[Across]:
        def value(one: Across) -> Cell | None:
            pair = one.pairs.get(name)
            if pair is None:
                return None
            return _judged(pair.judged)

        return field(name, value)

    facts = next(iter(found.values()))
    fields: list[Field[Across]] = [
        text("first", lambda one: tables.deployment(facts, one.one.first)),
        text("second", lambda one: tables.deployment(facts, one.one.second)),
        field("size", lambda one: one.one.first.size, "px"),
        text("measured", lambda one: one.one.first.profile),
        text("verdicts", lambda one: Cell(one.agreement, tone=TONES[one.agreement])),
        *map(ratio, found),
    ]
    order = list(TONES)[1::-1] + list(TONES)[2:]
    return tables.table("Second over first", fields, sorted(across, key=lambda one: order.index(one.agreement)))


def _spread(kind: str, same: Mapping[str, Facts]) -> Table | None:
    """The medians of runs on machines of one kind, and the last of them against those before."""
    *before, last = (facts.measured for facts in same.values())
    changed = pairs.changes(before, last, 0.5)
    medians = {name: {row.cell: row for row in facts.rows} for name, facts in same.items()}
    rows = next(iter(same.values()))

    shown = {row.cell: row for row in rows.rows if row.cell in changed}
    fields: list[Field[str]] = [
        text("deployment", lambda cell: tables.deployment(rows, shown[cell])),
        field("size", lambda cell: shown[cell].size, "px"),
        text("measured", lambda cell: shown[cell].profile),
        *(
            field(name, lambda cell, name=name: medians[name][cell].p50.value, "ms")  # type: ignore[misc]
            for name in same
        ),
        field("between runs", lambda cell: percent(pairs.deviation([*before, last], cell)), "SD"),
        text("last over those before", lambda cell: _judged(changed[cell])),
    ]
    return tables.table(kind, fields, list(shown))


def _judged(judged: Judged) -> Cell:
    """A ratio with its interval and verdict."""
    ratio = judged.ratio
    if judged.verdict == "between-run variance unknown":
        beside = f"{judged.verdict}: {judged.more} more to tell"
    else:
        beside = f"{interval(ratio.low, ratio.high)} {judged.verdict}"
    value = ABSENT if ratio.value is None else times(ratio.value)
    return Cell(value, beside, ratio.value, tone="strong" if judged.verdict in DECIDED else "muted")


def _runs(found: Mapping[str, Facts]) -> Table | None:
    fields: list[Field[str]] = [
        text("run", lambda name: name),
        text("machine", lambda name: _kind(found[name])),
        text("measured", lambda name: environment.when(found[name])),
        text("data", lambda name: "unofficial" if found[name].unofficial else "official"),
        field("rows", lambda name: len(found[name].rows)),
        field("valid", lambda name: sum(row.valid for row in found[name].rows)),
    ]
    return tables.table("", fields, list(found))


def _picture(found: Mapping[str, Facts]) -> Figure | None:
    """ONNX over native under the first way of measuring, a panel per run."""
    points: dict[str, list[Point]] = {}
    for name, facts in found.items():
        measured = [pair for pair in facts.comparisons.pairs(KIND) if pair.judged.ratio.value is not None]
        profile = next((pair.first.profile for pair in measured), None)
        points[name] = [_point(pair) for pair in measured if pair.first.profile == profile]
    shown = {name: panel for name, panel in points.items() if panel}
    ratios = [point.value for panel in shown.values() for point in panel]
    x = Axis(title="ONNX / native (log)", over=[*ratios, Interval(value=0.8), Interval(value=1.25)])
    panels = [drawing.rows(panel, x, f"{name}, {_kind(found[name])}", line=1.0) for name, panel in shown.items()]
    return figure("ratios", "Native against ONNX in each run", panels)


def _point(pair: Pair) -> Point:
    row, ratio = pair.first, pair.judged.ratio
    name = f"{row.size} px {wording.framework(row.framework)}"
    kind = "faster or slower" if pair.judged.verdict in DECIDED else "equivalent or undecided"
    label = f"{name}: ONNX at {times(ratio.known)} {interval(ratio.low, ratio.high)} of native, {pair.judged.verdict}"
    return drawing.point(row, name, label, ratio, kind=kind)
