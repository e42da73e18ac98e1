"""Published claims beside what this run found, under each protocol that it measured."""

from loadtest.analysis import claims, surface
from loadtest.analysis.claims import Entry, Finding
from loadtest.analysis.surface import Response
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table, Tone
from loadtest.report.wording import ABSENT, interval, number

TONES: dict[Finding, Tone] = {
    "holds": "good",
    "does not hold": "bad",
    "undecided": "warn",
    "not testable here": "muted",
}
UNITS = {
    "faster": "times",
    "accurate": "of the test split",
    "more-accurate": "of the test split",
    "sublinear": "exponent",
}
NEEDED = {"sublinear": "below 1"}
INTRO = (
    "What was published elsewhere, on other machines and often with networks that are not told. A claim holds when the "
    "95 % interval of what this run measured lies wholly on its side, and does not when it lies wholly on the other."
)


def ledger(facts: Facts) -> Table | None:
    """One line a claim and protocol; null where the study names no claim."""
    columns = (
        Column("claim", numeric=False),
        Column("by", numeric=False),
        Column("protocol", numeric=False),
        Column("measured"),
        Column("claimed"),
        Column("here", numeric=False),
    )
    lines = [_line(entry) for entry in _entries(facts)]
    return Table("", columns, tuple(lines)) if lines else None


def _entries(facts: Facts) -> list[Entry]:
    images = max((checkpoint.test.images for checkpoint in facts.checkpoints.values()), default=1)

    def response(framework: str, form: str, profile: str) -> Response | None:
        keys = (framework, form, profile)
        rows = [row for row in facts.rows if (row["framework"], row["format"], row["profile"]) == keys]
        return surface.response(facts.blocks(rows))

    return claims.judge(facts.study.claims, facts.rows, facts.medians.__getitem__, response, images)


def _line(entry: Entry) -> Line:
    claim = entry.claim
    unit = UNITS.get(claim.test, "")
    measured = Cell(ABSENT, tone="muted", hint=entry.reason or "")
    if entry.value is not None:
        measured = Cell(number(entry.value), f"{interval(entry.low, entry.high)} {unit}".strip(), entry.value)
    needed = NEEDED.get(claim.test, f"at least {claim.at_least:g}") if entry.value is not None else ABSENT
    cells = (
        Cell(claim.what),
        Cell(claim.who, claim.where),
        Cell(entry.protocol or ABSENT),
        measured,
        Cell(needed),
        Cell(entry.finding, entry.reason or "", tone=TONES[entry.finding]),
    )
    return Line(cells)
