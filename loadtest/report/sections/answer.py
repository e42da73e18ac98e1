"""The answer in a few sentences, as far as the intervals support it, and the cautions on its use."""

from collections.abc import Callable, Collection, Iterable, Sequence

from msgspec import Struct

from loadtest.analysis.compare import Ratio
from loadtest.report import tables, wording
from loadtest.report.document import Sentence, say
from loadtest.report.facts import NETWORK, Facts, grouped, network
from loadtest.report.sections import choose, environment, load, measurement
from loadtest.report.tables import Field, field, text
from loadtest.report.wording import listed, several
from loadtest.results import objective
from loadtest.results.objective import Held
from loadtest.results.pairs import Comparisons
from loadtest.results.row import Row
from loadtest.results.tabular import Cell, Table
from medserve.numbers import interval, number, times
from medserve.progress import duration

WHERE = {"closed-loop": "Over HTTP (closed loop)", "open-loop": "Over HTTP (open loop)", "in-process": "In process"}
SHOWN = 3
"""Cautions on a terminal."""
BUSY = 1.25
"""Load per usable core above which other work was waiting."""


class Fastest(Struct, frozen=True):
    """The lowest median of a group, and the rows that are not slower with 95 % confidence."""

    row: Row
    rivals: tuple[Row, ...]
    compared: int


def fastest(rows: Iterable[Row], comparisons: Comparisons) -> Fastest | None:
    """The lowest median of float32 rows; a lossy model is ranked only where there is none. Null without rows."""
    usable = [row for row in rows if row.usable]
    ranked = sorted([row for row in usable if row.precision == "float32"] or usable, key=lambda row: row.median)
    if not ranked:
        return None
    first, *others = ranked
    rivals = tuple(row for row in others if comparisons.judge(first, row).verdict != "slower")
    return Fastest(first, rivals, len(ranked))


def sentences(facts: Facts) -> tuple[Sentence, ...]:
    """Who holds the study's objective, the fastest deployment, native against ONNX, and the floor."""
    found = _winners(facts)
    if not found:
        return (say("No deployment has been measured yet."),)
    profile = found[0].row.profile
    exact = found[0].row.precision == "float32" and len(facts.study.precisions) > 1
    of = ", of the float32 models" if exact else ""
    lead = say("{way}{of}, ", way=WHERE[facts.profiles[profile].mode], of=of)
    first = (*lead, *(_single(facts, found[0]) if len(found) == 1 else _several(facts, found)), *say("."))
    found_sentences = (_objective(facts), first, _native_or_onnx(facts, profile), _floor(facts, profile, found))
    return tuple(sentence for sentence in found_sentences if sentence)


def in_short(facts: Facts, run: str) -> list[str]:
    """The answer on a terminal: the first sentences, whether it can be trusted, and what would settle it.

    `run` is the run's folder in the command that goes on.
    """
    said = ["".join(piece.text for piece in sentence) for sentence in sentences(facts)[:2]]
    doubts = cautions(facts)
    measured = [row for row in facts.rows if row.status == "done"]
    trust = (
        f"Trust: {' '.join(doubts[:SHOWN])}" + f" ({len(doubts) - SHOWN} more in the report)" * (len(doubts) > SHOWN)
        if doubts
        else (f"Trust: no caution; all {len(measured)} measured rows are valid." if measured else "")
    )
    return [*said, *filter(None, (trust, settling(facts, run)))]


def settling(facts: Facts, run: str) -> str:
    """How many more launches would decide what is undecided in the answer, and about how long they take."""
    if facts.study.objective is not None and facts.study.objective.rate is not None:
        wanted = [one.more for one in choose.held(facts) if one.standing == "undecided" and one.more]
    else:
        judged = [facts.comparisons.judge(found.row, row) for found in _winners(facts) for row in found.rivals]
        wanted = [one.more for one in judged if one.more]
    if not wanted:
        return ""
    # The first of them to be decided: few users make a hundred launches for the last one.
    more = min(wanted)
    first, pending = several(more, "more launch", "more launches"), several(len(wanted), "undecided comparison")
    return (
        f"To settle: about {first} ({duration(more * environment.block_seconds(facts))}) for the first of {pending}: "
        f"medserve run {run} --more-launches {more}"
    )


def _objective(facts: Facts) -> Sentence:
    if facts.study.objective is None:
        return ()
    if facts.study.objective.rate is None:
        return _capacity(facts)
    by: dict[str, list[Held]] = {}
    for one in choose.held(facts):
        by.setdefault(one.standing, []).append(one)
    asked = objective.in_words(facts.study.objective)
    name, _ = objective.percentile(facts.study.objective)
    passing, count = by.get("passes", []), sum(map(len, by.values()))
    if passing:
        first = passing[0]
        latency = f"{number(first.latency.value)}{wording.MS} {interval(first.latency.low, first.latency.high)}"
        form = "{asked}: **{first}** passes with the lowest median, at a " + name + " of **{latency}**"
        form += "; so do {others}" if len(passing) > 2 else "; so does {others}" if len(passing) > 1 else ""
        parts = say(form, asked=asked, first=facts.named(first.row), latency=latency, others=_named(facts, passing[1:]))
    else:
        parts = say("{asked}: **no deployment is shown to pass**", asked=asked)
    for standing, words in (("undecided", "might pass: "), ("not measured", "not measured: ")):
        if found := by.get(standing):
            parts += say("; " + words + "{names}", names=_named(facts, found))
    failing = len(by.get("fails", []))
    return (*parts, *say(f"; {failing} of {count} fail." if failing else "."))


def _capacity(facts: Facts) -> Sentence:
    """Which deployments hold the objective at the highest rate."""
    assert facts.study.objective is not None
    asked = objective.in_words(facts.study.objective)
    known = [one for one in load.capacities(facts) if one.rate.value is not None]
    if not known:
        return say("{asked}: **no deployment has a rate at which it is just held**.", asked=asked)
    first, *others = known
    rate = f"{number(first.rate.value)} requests/s {interval(first.rate.low, first.rate.high)}"
    parts = say("{asked}: **{name}** holds it up to **{rate}**", asked=asked, name=facts.named(first.row), rate=rate)
    if others:
        last = f"{facts.named(others[-1].row)} up to {number(others[-1].rate.value)}"
        parts += say(", the last of {count}, {last}", count=str(len(known)), last=last)
    return (*parts, *say("."))


def _named(facts: Facts, found: Sequence[Held]) -> str:
    # A comma within a name would look like the end of it.
    names = [facts.named(one.row).replace(",", "") for one in found]
    return listed(names if len(names) < 5 else [*names[:3], f"{len(names) - 3} others"])


def podium(facts: Facts) -> Table | None:
    """The fastest of each size; null with a single size, where one sentence suffices."""
    fields: list[Field[Fastest]] = [
        text("", lambda found: Cell(_places(facts, [found.row]), value=found.row.size)),
        text("lowest median", lambda found: tables.deployment(facts, found.row)),
        field("p50", lambda found: found.row.p50, "ms"),
        text("not separated from", lambda found: Cell(_rivals(facts, found), tone="" if found.rivals else "good")),
    ]
    found = _winners(facts)
    return tables.table("", fields, found if len(found) > 1 else ())


def cautions(facts: Facts) -> tuple[str, ...]:
    """What invalidates or limits the numbers."""
    found = []
    if missing := [row for row in facts.rows if row.status == "missing"]:
        found.append(f"A partial run: {len(missing)} of {several(len(facts.rows), 'row')} are not measured yet.")
    if failed_selftest := measurement.selftest_caution(facts):
        found.append(failed_selftest)
    if facts.unofficial:
        found.append(
            "Unofficial: the images are not the official files, so no score may be compared with published ones."
        )
    if failed := [row for row in facts.rows if row.status == "failed"]:
        found.append(
            f"{len(failed)} of {several(len(facts.rows), 'row')} could not be measured; the tables give the reasons."
        )
    found += measurement.cautions(facts)
    if facts.unequal:
        found.append("Sizes were trained for different numbers of epochs: their accuracies are not to be compared.")
    if facts.changes:
        found.append(
            "The study was changed during its run: where launches of a block lie far apart, drift does not cancel."
        )
    if facts.study.launches < 2:
        found.append("One launch per deployment: there are no intervals, so nothing can be told apart.")
    if (busy := environment.busiest(facts)) and busy[0] > BUSY * busy[1]:
        found.append(
            f"The machine was busy: its load was up to {busy[0]:.1f} on {several(busy[1], 'core')} when launches began."
        )
    if environment.shared_cores(facts):
        found.append("Server and load generator shared cores: latency over HTTP includes the generator's own work.")
    return tuple(found)


def _winners(facts: Facts) -> list[Fastest]:
    """The fastest of each network and size with single images: in a closed loop, else an open loop, else in process."""
    profiles = facts.single("closed-loop", "open-loop", "in-process")[:1]
    groups = grouped((row for row in facts.rows if row.profile in profiles), *NETWORK).values()
    return [found for group in groups if (found := fastest(group, facts.comparisons))]


def _single(facts: Facts, found: Fastest) -> Sentence:
    row = found.row
    median = f"**{wording.milliseconds(row.p50.value)}**"
    if bounds := interval(row.p50.low, row.p50.high):
        median += f"~ {bounds}~"
    form = "**{name}** is fastest at {place}: a median of " + median
    if found.compared == 1:
        form = "**{name}** was measured alone at {place}: a median of " + median
    elif found.rivals:
        form = "**{name}** has the lowest median at {place}, " + median + ", and is not separated from {rivals}"
    return say(form, name=facts.labels.full(row), place=_places(facts, [row]), rivals=_rivals(facts, found))


def _several(facts: Facts, found: Sequence[Fastest]) -> Sentence:
    """The sizes with a clear winner, grouped by winner, then those without."""
    clear: dict[str, list[Row]] = {}
    for winner in found:
        if not winner.rivals:
            clear.setdefault(facts.labels.full(winner.row), []).append(winner.row)
    parts = []
    for name, rows in clear.items():
        values = listed([number(row.p50.value) for row in rows]) + wording.MS
        form = "**{name}** is fastest at {places}, with a median of **{values}**"
        parts.append(say(form, name=name, places=_places(facts, rows), values=values))
    if undecided := [winner.row for winner in found if winner.rivals]:
        form = "at {places} **no single deployment is fastest**: the lowest medians cannot be told apart"
        parts.append(say(form, places=_places(facts, undecided)))
    return tuple(piece for place, part in enumerate(parts) for piece in (*say("; ") * bool(place), *part))


def _places(facts: Facts, rows: Sequence[Row]) -> str:
    """The sizes of rows: 28, 64 and 128 px; with data set and architecture if there are several."""
    words = []
    for group in grouped(rows, "dataset", "architecture").values():
        sizes = f"{listed([str(row.size) for row in group])} px"
        words.append(", ".join(filter(None, (facts.place(group[0], size=False), sizes))))
    return "; ".join(words)


def _rivals(facts: Facts, found: Fastest) -> str:
    if not found.rivals:
        return "none"
    if len(found.rivals) == found.compared - 1 > 2:
        return "any other"
    names = [facts.labels.full(row).replace(",", "") for row in found.rivals]
    return listed(names if len(names) < 4 else [*names[:2], f"{len(names) - 2} others"])


def _native_or_onnx(facts: Facts, profile: str) -> Sentence:
    verdicts: dict[str, list[Ratio]] = {"faster": [], "slower": [], "equivalent": [], "undecided": []}
    for pair in facts.comparisons.pairs("native against ONNX"):
        if pair.first.profile == profile and pair.judged.ratio.value is not None:
            verdicts[pair.judged.verdict].append(pair.judged.ratio)
    count = sum(map(len, verdicts.values()))
    parts: list[str] = []
    for verdict, ratios in verdicts.items():
        if ratios:
            of = "" if parts else f" of {several(count, 'pair')} of framework and size"
            words = f"**{verdict}**" if count == 1 else f"**{verdict} in {len(ratios)}{of}**"
            parts.append(words + f" ({_range(ratios)} the native median)" * (verdict in ("faster", "slower")))
    return say(f"Against the native format, ONNX is {', '.join(parts)}.") if parts else ()


def _range(ratios: Sequence[Ratio]) -> str:
    if len(ratios) == 1:
        return f"{times(ratios[0].known)} {interval(ratios[0].low, ratios[0].high)}".rstrip()
    return _ends([ratio.known for ratio in ratios], times)


def _floor(facts: Facts, profile: str, winners: Sequence[Fastest]) -> Sentence:
    rows = [row for row in facts.rows if row.framework is None and row.profile == profile and row.p50.value]
    if not rows or facts.profiles[profile].mode == "in-process":
        return ()
    floors = {network(row): row.median for row in rows}
    form = f"The wrapper around a runtime that computes nothing takes **{_ends(floors.values(), number)}{wording.MS}**"
    known = [found.row for found in winners if network(found.row) in floors]
    if shares := [floors[network(row)] / row.median * 100 for row in known]:
        form += f", {_ends(shares, '{:.0f}'.format)} % of the lowest median"
    return say(f"{form}.")


def _ends(values: Collection[float], write: Callable[[float], str]) -> str:
    """The lowest and the highest value; one if they are written alike."""
    return " to ".join(dict.fromkeys(map(write, (min(values), max(values)))))
