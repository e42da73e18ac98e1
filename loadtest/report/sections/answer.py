"""The answer in a few sentences, as far as the intervals support it, and the cautions on its use."""

from collections.abc import Sequence

from loadtest.analysis.compare import Judged
from loadtest.report import comparison, wording
from loadtest.report.comparison import Fastest, grouped
from loadtest.report.facts import Facts
from loadtest.report.model import Piece, Sentence
from loadtest.report.sections import environment, measurement
from loadtest.report.wording import Labels, listed, several
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Column, Line, Table, interval_cell
from medserve.numbers import interval, number, times

WHERE = {"closed-loop": "Over HTTP (closed loop)", "open-loop": "Over HTTP (open loop)", "in-process": "In process"}
BUSY = 1.25
"""Load per usable core above which other work was waiting."""
MODEL = ("dataset", "architecture", "size")
"""Deployments compete when they agree in these."""


def sentences(facts: Facts) -> tuple[Sentence, ...]:
    """The fastest deployment, native against ONNX, and the floor."""
    profile = _headline(facts)
    if profile is None or not (found := _winners(facts, profile)):
        return ((Piece("No deployment has been measured yet."),),)
    lead = Piece(f"{WHERE[facts.profiles[profile].mode]}, ")
    first = (lead, *(_single(facts, found[0]) if len(found) == 1 else _several(facts, found)), Piece("."))
    found_sentences = (first, _native_or_onnx(facts, profile), _floor(facts, profile, found))
    return tuple(sentence for sentence in found_sentences if sentence)


def podium(facts: Facts) -> Table | None:
    """The fastest of each size; null with a single size, where one sentence suffices."""
    profile = _headline(facts)
    found = _winners(facts, profile) if profile else []
    if profile is None or len(found) < 2:
        return None
    labels = Labels(facts.rows)
    columns = (
        Column("", numeric=False),
        Column("lowest median", numeric=False),
        Column("p50", "ms"),
        Column("not separated from", numeric=False),
    )
    lines = []
    for winner in found:
        row = winner.row
        lines.append(
            Line(
                (
                    Cell(_places(facts, [row]), value=row.size),
                    Cell(wording.framework(row.framework), labels.kind(row), mark=wording.mark(row)),
                    interval_cell(row.p50),
                    Cell(_rivals(labels, winner), tone="" if winner.rivals else "good"),
                )
            )
        )
    return Table("", columns, tuple(lines))


def cautions(facts: Facts) -> tuple[str, ...]:
    """What invalidates or limits the numbers."""
    found = []
    if failed_selftest := measurement.selftest_caution(facts):
        found.append(failed_selftest)
    if facts.unofficial:
        found.append(
            "Unofficial: the images are not the official files, so no score may be compared with published ones."
        )
    if failed := [row for row in facts.rows if row.status != "done"]:
        found.append(
            f"{len(failed)} of {several(len(facts.rows), 'row')} could not be measured; the tables give the reasons."
        )
    found += measurement.cautions(facts)
    if facts.unequal:
        found.append("Sizes were trained for different numbers of epochs: their accuracies are not to be compared.")
    if facts.study.launches < 2:
        found.append("One launch per deployment: there are no intervals, so nothing can be told apart.")
    if (busy := environment.busiest(facts)) and busy[0] > BUSY * busy[1]:
        found.append(
            f"The machine was busy: its load was up to {busy[0]:.1f} on {several(busy[1], 'core')} when launches began."
        )
    if environment.shared_cores(facts):
        found.append("Server and load generator shared cores: latency over HTTP includes the generator's own work.")
    return tuple(found)


def _headline(facts: Facts) -> str | None:
    """The profile of the answer: single images in a closed loop, else in an open loop, else in process."""
    modes = ("closed-loop", "open-loop", "in-process")
    found = (comparison.single_image(facts.profiles.values(), mode) for mode in modes)
    return next(filter(None, found), None)


def _winners(facts: Facts, profile: str) -> list[Fastest]:
    rows = [row for row in facts.rows if row.profile == profile]
    return [
        found for group in grouped(rows, *MODEL).values() if (found := comparison.fastest(group, facts.comparisons))
    ]


def _single(facts: Facts, found: Fastest) -> list[Piece]:
    labels, row = Labels(facts.rows), found.row
    name, value = Piece(labels.full(row), "strong"), [Piece(wording.milliseconds(row.p50.value), "strong")]
    if bounds := interval(row.p50.low, row.p50.high):
        value += [Piece(f" {bounds}", "muted")]
    place = _places(facts, [row])
    if found.compared == 1:
        return [name, Piece(f" was measured alone at {place}: a median of "), *value]
    if found.rivals:
        rivals = Piece(f", and is not separated from {_rivals(labels, found)}")
        return [name, Piece(f" has the lowest median at {place}, "), *value, rivals]
    return [name, Piece(f" is fastest at {place}: a median of "), *value]


def _several(facts: Facts, found: Sequence[Fastest]) -> list[Piece]:
    """The sizes with a clear winner, grouped by winner, then those without."""
    labels = Labels(facts.rows)
    clear: dict[str, list[Row]] = {}
    for winner in found:
        if not winner.rivals:
            clear.setdefault(labels.full(winner.row), []).append(winner.row)
    pieces: list[Piece] = []
    for name, rows in clear.items():
        values = listed([number(row.p50.value) for row in rows])
        pieces += [Piece("; " if pieces else ""), Piece(name, "strong")]
        pieces += [
            Piece(f" is fastest at {_places(facts, rows)}, with a median of "),
            Piece(f"{values}{wording.MS}", "strong"),
        ]
    if undecided := [winner.row for winner in found if winner.rivals]:
        lead = "; " if pieces else ""
        pieces += [Piece(f"{lead}at {_places(facts, undecided)} "), Piece("no single deployment is fastest", "strong")]
        pieces += [Piece(": the lowest medians cannot be told apart")]
    return pieces


def _places(facts: Facts, rows: Sequence[Row]) -> str:
    """The sizes of rows: 28, 64 and 128 px; with data set and architecture if there are several."""
    words = []
    for (dataset, architecture), group in grouped(rows, "dataset", "architecture").items():
        before = [*facts.datasets(str(dataset)), *facts.architectures(str(architecture))]
        words.append(", ".join([*before, f"{listed([str(row.size) for row in group])} px"]))
    return "; ".join(words)


def _rivals(labels: Labels, found: Fastest) -> str:
    if not found.rivals:
        return "none"
    if len(found.rivals) == found.compared - 1 > 2:
        return "any other"
    names = [labels.full(row) for row in found.rivals]
    return listed(names if len(names) < 4 else [*names[:2], f"{len(names) - 2} others"])


def _native_or_onnx(facts: Facts, profile: str) -> Sentence:
    judged = [
        pair.judged
        for pair in facts.comparisons.pairs("native against ONNX")
        if pair.first.profile == profile and pair.judged.ratio.value is not None
    ]
    if not judged:
        return ()
    verdicts: dict[str, list[Judged]] = {"faster": [], "slower": [], "equivalent": [], "undecided": []}
    for pair in judged:
        verdicts[pair.verdict].append(pair)
    pieces = [Piece("Against the native format, ONNX is ")]
    of = f" of {several(len(judged), 'pair')} of framework and size"
    for verdict, pairs in verdicts.items():
        if not pairs:
            continue
        pieces += [Piece(", ")] * (len(pieces) > 1)
        pieces.append(Piece(verdict if len(judged) == 1 else f"{verdict} in {len(pairs)}{of}", "strong"))
        of = ""
        if verdict in ("faster", "slower"):
            pieces.append(Piece(f" ({_range(pairs)} the native median)"))
    return (*pieces, Piece("."))


def _range(pairs: Sequence[Judged]) -> str:
    values = sorted(pair.ratio.value for pair in pairs if pair.ratio.value is not None)
    if len(pairs) == 1:
        return f"{times(values[0])} {interval(pairs[0].ratio.low, pairs[0].ratio.high)}".rstrip()
    return " to ".join(dict.fromkeys(times(value) for value in (values[0], values[-1])))


def _floor(facts: Facts, profile: str, winners: Sequence[Fastest]) -> Sentence:
    if facts.profiles[profile].mode == "in-process":
        return ()
    floors = {
        tuple(getattr(row, key) for key in MODEL): row.p50.value
        for row in facts.rows
        if row.framework is None and row.profile == profile and row.p50.value
    }
    if not floors:
        return ()
    ends = dict.fromkeys(number(value) for value in (min(floors.values()), max(floors.values())))
    pieces = [
        Piece("The wrapper around a runtime that computes nothing takes "),
        Piece(f"{' to '.join(ends)}{wording.MS}", "strong"),
    ]
    keys = [(tuple(getattr(found.row, key) for key in MODEL), found.row.median) for found in winners]
    if shares := [floors[key] / value for key, value in keys if key in floors]:
        percents = dict.fromkeys(f"{share * 100:.0f}" for share in (min(shares), max(shares)))
        pieces.append(Piece(f", {' to '.join(percents)} % of the lowest median"))
    return (*pieces, Piece("."))
