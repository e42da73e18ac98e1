"""Latency over resolution: fixed cost and cost a pixel of each deployment, and where one overtakes another."""

from itertools import combinations

from loadtest.analysis import scaling
from loadtest.analysis.intervals import Interval
from loadtest.analysis.scaling import Response
from loadtest.report import comparison, wording
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table
from loadtest.report.wording import ABSENT, Labels, interval, number
from loadtest.results.table import Row

INTRO = (
    "latency = fixed cost + cost a pixel x pixels, fitted to each block of launches by least relative squares. The "
    "exponent is that of latency over pixels between the smallest and the largest size (1: proportional to the pixels, "
    "0: constant)."
)


def responses(facts: Facts) -> list[Table]:
    """A table for each way of measuring single images, with one line a deployment; none where there is one size."""
    modes = ("in-process", "closed-loop", "open-loop")
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in modes]
    return [found for name in names if name and (found := _responses(facts, name)) is not None]


def crossovers(facts: Facts) -> Table | None:
    """The sizes at which one deployment overtakes another over HTTP; null where none does."""
    profile = comparison.single_image(facts.profiles.values(), "closed-loop")
    if profile is None:
        return None
    labels, lines = Labels(facts.rows), []
    series = [rows for rows in _series(facts, profile) if rows[0]["framework"] is not None]
    for one, other in combinations(series, 2):
        found = scaling.crossover(facts.blocks(one), facts.blocks(other))
        if found is None:
            continue
        smallest = min(row["size"] for row in one)
        ahead = [min(rows, key=lambda row: row["size"])["p50_ms"] for rows in (one, other)]
        first, then = (one, other) if (ahead[0] or 0) <= (ahead[1] or 0) else (other, one)
        cells = [
            Cell(labels.full(first[0]), f"ahead at {smallest} px", mark=wording.mark(first[0])),
            Cell(labels.full(then[0]), mark=wording.mark(then[0])),
            Cell(number(found.value), interval(found.low, found.high), found.value),
        ]
        lines.append(Line(tuple(cells)))
    columns = (Column("faster on small images", numeric=False), Column("faster on large images", numeric=False))
    caption = f"{wording.profile(facts.profiles[profile])}; interpolated between the sizes that were measured."
    return Table("Crossovers", (*columns, Column("from", "px")), tuple(lines), caption) if lines else None


def _responses(facts: Facts, profile: str) -> Table | None:
    labels, lines = Labels(facts.rows), []
    for rows in _series(facts, profile):
        found = scaling.response(facts.blocks(rows))
        if found is not None and rows[0]["framework"] is not None:
            lines.append(_line(labels, rows[0], found))
    columns = (
        Column("deployment", numeric=False),
        Column("fixed cost", "ms"),
        Column("a pixel", "ns"),
        Column("exponent"),
        Column("farthest from the line", "%"),
    )
    return Table(wording.profile(facts.profiles[profile]), columns, tuple(lines)) if lines else None


def _line(labels: Labels, row: Row, found: Response) -> Line:
    cells = [Cell(wording.framework(row["framework"]), labels.kind(row), mark=wording.mark(row))]
    if found.linear:
        cells += [_bounded(found.fixed_ms), _bounded(found.pixel_ns)]
    else:
        cells += [Cell(ABSENT, hint="latency does not lie on a line", tone="muted")] * 2
    cells += [_bounded(found.exponent), Cell(number(found.residual * 100), value=found.residual)]
    return Line(tuple(cells))


def _bounded(found: Interval) -> Cell:
    return Cell(number(found.value), interval(found.low, found.high), found.value)


def _series(facts: Facts, profile: str) -> list[list[Row]]:
    """The rows of one deployment at all its sizes, for each deployment that has several."""
    keys = (
        "dataset",
        "architecture",
        "framework",
        "format",
        "runtime",
        "device",
        "threads",
        "batch_images",
        "variant",
        "seed",
    )
    rows = [row for row in facts.rows if row["profile"] == profile and row["status"] == "done"]
    return [group for group in comparison.grouped(rows, *keys).values() if len({row["size"] for row in group}) > 1]
