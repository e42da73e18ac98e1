"""Published claims beside what this run found, and what timing mistakes do to the rankings."""

from loadtest.analysis import scaling
from loadtest.analysis.scaling import Response
from loadtest.report.facts import Facts
from loadtest.report.wording import framework, profile
from loadtest.results import claims
from loadtest.results.claims import Effect, Finding, JudgedClaim
from loadtest.results.tabular import Cell, Column, Line, Table, Tone, interval_cell
from medserve.numbers import ABSENT, interval, number
from medserve.spec import LoadProfile
from medserve.study import Subject
from medserve.tables import TIMING_MISTAKES

TONES: dict[Finding, Tone] = {
    "holds": "good",
    "does not hold": "bad",
    "undecided": "warn",
    "not testable here": "muted",
}
EFFECTS: dict[Effect, Tone] = {
    "the same": "muted",
    "reversed": "bad",
    "masked": "warn",
    "spurious": "bad",
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
    "What was published elsewhere, on other machines and often with networks that are not named. A claim holds when "
    "the 95 % interval of what this run measured lies wholly on its side, and does not when it lies wholly on the "
    "other. Of two latencies their paired comparison decides; one that is equivalent within 5 % is not faster."
)
CLOSED = "a closed loop, which omits the requests that it delays"


def tables(facts: Facts) -> tuple[Table, ...]:
    """The claims under sound protocols, and the rankings under timing mistakes; empty without claims."""
    judged = _judged(facts)
    if not judged:
        return ()
    found = Table(
        "",
        (
            Column("claim", numeric=False),
            Column("by", numeric=False),
            Column("protocol", numeric=False),
            Column("measured"),
            Column("claimed"),
            Column("here", numeric=False),
        ),
        tuple(_line(facts, claim) for claim in judged if claim.sound is None),
    )
    lines = tuple(_mistake_line(facts, claim, judged) for claim in _once_per_pair(judged))
    mistakes = Table(
        "What a timing mistake does to a ranking",
        (
            Column("how it is timed", numeric=False),
            Column("latency of", numeric=False),
            Column("correctly"),
            Column("this way"),
            Column("the ranking is", numeric=False),
        ),
        lines,
        "Ratios of two latencies of one image, with 95 % intervals: timed correctly, and with one common mistake made "
        "on purpose. Masked: neither is faster any more with 95 % confidence; spurious: one is, only with the mistake.",
    )
    return (found, mistakes) if lines else (found,)


def _judged(facts: Facts) -> list[JudgedClaim]:
    images = max((checkpoint.test.images for checkpoint in facts.checkpoints.values()), default=1)

    def response(framework: str, form: str, profile: str) -> Response | None:
        keys = (framework, form, profile)
        rows = [row for row in facts.rows if (row.framework, row.format, row.profile) == keys]
        return scaling.response(facts.blocks(rows))

    accuracies: dict[tuple[str, int], list[float]] = {}
    for checkpoint in facts.checkpoints.values():
        accuracies.setdefault((checkpoint.framework, checkpoint.size), []).append(checkpoint.test.accuracy)
    rows = [*facts.rows, *facts.mistaken]
    return claims.judge(facts.study.claims, rows, facts.comparisons, response, accuracies, images)


def _line(facts: Facts, judged: JudgedClaim) -> Line:
    claim = judged.claim
    measured = Cell(ABSENT, tone="muted", hint=judged.reason or "")
    found = judged.measured
    if found.value is not None:
        words = f"{interval(found.low, found.high)} {UNITS.get(claim.test, '')}".strip()
        measured = Cell(number(found.value), words, found.value)
    needed = NEEDED.get(claim.test, f"at least {claim.at_least:g}") if found.value is not None else ABSENT
    protocol = profile(facts.profiles[judged.profile]) if judged.profile else "Test split" if found.value else ABSENT
    cells = (
        Cell(claim.what),
        Cell(claim.who, claim.where),
        Cell(protocol),
        measured,
        Cell(needed),
        Cell(judged.finding, judged.reason or "", tone=TONES[judged.finding]),
    )
    return Line(cells)


def _once_per_pair(judged: list[JudgedClaim]) -> list[JudgedClaim]:
    """The claims under a timing mistake, one per protocol and pair: several claims may be about the same two."""
    found = {
        (claim.profile, claim.threads, claim.claim.first, claim.claim.second, claim.claim.size): claim
        for claim in judged
        if claim.sound is not None and claim.effect is not None
    }
    return list(found.values())


def _mistake_line(facts: Facts, mistaken: JudgedClaim, judged: list[JudgedClaim]) -> Line:
    sound = next(known for known in judged if (known.claim, known.profile) == (mistaken.claim, mistaken.sound))
    assert mistaken.profile is not None
    assert mistaken.effect is not None
    pair = f"{_subject(mistaken.claim.second)} over {_subject(mistaken.claim.first)}"
    cells = (
        Cell(_mistake(facts.profiles[mistaken.profile])),
        Cell(pair, f"the {mistaken.claim.size} images"),
        interval_cell(sound.measured),
        interval_cell(mistaken.measured),
        Cell(mistaken.effect, tone=EFFECTS[mistaken.effect]),
    )
    return Line(cells)


def _mistake(load: LoadProfile) -> str:
    return TIMING_MISTAKES[load.trap] if load.trap else CLOSED


def _subject(subject: Subject) -> str:
    return framework(subject.framework) + ("" if subject.format == "native" else f" ({subject.format})")
