"""Published claims beside what this run found, and which protocols would have turned the findings."""

from loadtest.analysis import scaling
from loadtest.analysis.scaling import Response
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table, Tone
from loadtest.report.wording import ABSENT, framework, interval, number, profile
from loadtest.results import claims
from loadtest.results.claims import Entry, Finding
from loadtest.results.protocols import Turn
from medserve.spec import LoadProfile
from medserve.study import Subject
from medserve.tables import TRAPS

TONES: dict[Finding, Tone] = {
    "holds": "good",
    "does not hold": "bad",
    "undecided": "warn",
    "not testable here": "muted",
}
TURNS: dict[Turn, Tone] = {
    "the same": "muted",
    "turns it around": "bad",
    "hides it": "warn",
    "makes one up": "bad",
}
UNITS = {
    "faster": "times",
    "accurate": "of the test split",
    "configuration": "of the test split",
    "more-accurate": "of the test split",
    "sublinear": "exponent",
    "trade-off": "of the test split",
}
NEEDED = {"sublinear": "below 1", "trade-off": "above 0"}
INTRO = (
    "What was published elsewhere, on other machines and often with networks that are not told. A claim holds when the "
    "95 % interval of what this run measured lies wholly on its side, and does not when it lies wholly on the other."
)
CLOSED = "a closed loop, which does not see what waits while it waits"


def tables(facts: Facts) -> tuple[Table, ...]:
    """The ledger under sound protocols, and what the unsound ones do to its rankings; none without claims."""
    entries = _entries(facts)
    if not entries:
        return ()
    ledger = Table(
        "",
        (
            Column("claim", numeric=False),
            Column("by", numeric=False),
            Column("protocol", numeric=False),
            Column("measured"),
            Column("claimed"),
            Column("here", numeric=False),
        ),
        tuple(_line(facts, entry) for entry in entries if entry.sound is None),
    )
    turned = tuple(_turn(facts, entry, entries) for entry in _once(entries))
    traps = Table(
        "What the protocol does to a ranking",
        (
            Column("how it is timed", numeric=False),
            Column("latency of", numeric=False),
            Column("soundly"),
            Column("this way"),
            Column("the ranking", numeric=False),
        ),
        turned,
        "Ratios of two latencies of one image, with 95 % intervals: soundly, and with one classic mistake on purpose.",
    )
    return (ledger, traps) if turned else (ledger,)


def _entries(facts: Facts) -> list[Entry]:
    images = max((checkpoint.test.images for checkpoint in facts.checkpoints.values()), default=1)

    def response(framework: str, form: str, profile: str) -> Response | None:
        keys = (framework, form, profile)
        rows = [row for row in facts.rows if (row["framework"], row["format"], row["profile"]) == keys]
        return scaling.response(facts.blocks(rows))

    accuracies: dict[tuple[str, int], list[float]] = {}
    for one in facts.checkpoints.values():
        accuracies.setdefault((one.framework, one.size), []).append(one.test.accuracy)
    rows = [*facts.rows, *facts.trapped]
    return claims.judge(facts.study.claims, rows, facts.medians.__getitem__, response, accuracies, images)


def _line(facts: Facts, entry: Entry) -> Line:
    claim = entry.claim
    unit = UNITS.get(claim.test, "")
    measured = Cell(ABSENT, tone="muted", hint=entry.reason or "")
    if entry.value is not None:
        measured = Cell(number(entry.value), f"{interval(entry.low, entry.high)} {unit}".strip(), entry.value)
    needed = NEEDED.get(claim.test, f"at least {claim.at_least:g}") if entry.value is not None else ABSENT
    told = profile(facts.profiles[entry.profile]) if entry.profile else "Test split" if entry.value else ABSENT
    cells = (
        Cell(claim.what),
        Cell(claim.who, claim.where),
        Cell(told),
        measured,
        Cell(needed),
        Cell(entry.finding, entry.reason or "", tone=TONES[entry.finding]),
    )
    return Line(cells)


def _once(entries: list[Entry]) -> list[Entry]:
    """The unsound entries, one a protocol and pair: several claims may speak of the same two."""
    found = {
        (entry.profile, entry.threads, entry.claim.first, entry.claim.second, entry.claim.size): entry
        for entry in entries
        if entry.sound is not None and entry.turn is not None
    }
    return list(found.values())


def _turn(facts: Facts, entry: Entry, entries: list[Entry]) -> Line:
    sound = next(one for one in entries if (one.claim, one.profile) == (entry.claim, entry.sound))
    assert entry.profile is not None
    assert entry.turn is not None
    pair = f"{_subject(entry.claim.second)} over {_subject(entry.claim.first)}"
    cells = (
        Cell(_mistake(facts.profiles[entry.profile])),
        Cell(pair, f"the {entry.claim.size} images"),
        _ratio(sound),
        _ratio(entry),
        Cell(entry.turn, tone=TURNS[entry.turn]),
    )
    return Line(cells)


def _mistake(one: LoadProfile) -> str:
    return TRAPS[one.trap] if one.trap else CLOSED


def _subject(subject: Subject) -> str:
    return framework(subject.framework) + ("" if subject.format == "native" else f" ({subject.format})")


def _ratio(entry: Entry) -> Cell:
    return Cell(number(entry.value), interval(entry.low, entry.high), entry.value)
