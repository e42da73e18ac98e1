"""What to choose: the best deployment for an objective, under each way of measuring over HTTP."""

from itertools import pairwise
from math import inf, isinf

from loadtest.analysis import pareto
from loadtest.analysis.pareto import Candidate, Choice
from loadtest.report import wording
from loadtest.report.facts import Facts
from loadtest.report.model import Cell, Column, Line, Table
from loadtest.report.sections import front
from loadtest.report.wording import Labels, interval, number
from loadtest.results.table import Row
from medserve.spec import LoadProfile

PERCENTILES = ("p99", "p90", "p50")
"""What an objective is about: the first of these that every sample carries."""


def table(facts: Facts) -> Table | None:
    """One line an objective; null where no deployment has an interval that could lie below a limit."""
    labels, lines = Labels(facts.rows), []
    for dataset in facts.study.datasets:
        for profile in facts.profiles.values():
            if profile.mode == "in-process" or profile.batch > 1 or profile.trap:
                continue
            rows = {row["cell"]: row for row in front.eligible(facts, dataset, profile.name)}
            candidates = [one for one in (_candidate(facts, row) for row in rows.values()) if "p50" in one.bounds]
            percentile = pareto.supported_percentile(candidates, PERCENTILES) if candidates else None
            if percentile is None:
                continue
            known = [one.bounds[percentile] for one in candidates]
            found = [pareto.best(candidates, percentile, limit) for limit in pareto.limits(known)]
            # A wider limit that changes nothing would only repeat the line above it.
            lines += [
                _line(facts, labels, profile, rows[one.best], rows, one)
                for before, one in pairwise([None, *found])
                if one and one.best and (before is None or before.best != one.best)
            ]
    columns = (
        Column("objective", numeric=False),
        Column("choose", numeric=False),
        Column("size", "px"),
        Column("accuracy", "%"),
        Column("that percentile", "ms"),
        Column("median", "ms"),
        Column("may be as accurate, but slower", numeric=False),
    )
    caption = (
        "The most accurate deployment for which the upper end of the 95 % interval lies below the limit; of those that "
        "are not less accurate for certain (Wilson), the fastest. The percentile is the highest that every sample of "
        "that way of measuring carries: p99 wants 368 requests in each launch, p90 36. A wider limit that changes "
        "nothing is left out."
    )
    caption += front.UNEQUAL * facts.unequal
    return Table("The best for an objective", columns, tuple(lines), caption) if lines else None


def _candidate(facts: Facts, row: Row) -> Candidate:
    bounds = {}
    for name in PERCENTILES:
        if row[f"{name}_high"] is not None:
            bounds[name] = row[f"{name}_high"]
        elif any(map(isinf, facts.percentiles[name][row["cell"]].values())):
            bounds[name] = inf
    return Candidate(name=row["cell"], median=row["p50_ms"], accuracy=front.accuracy(facts, row), bounds=bounds)


def _line(facts: Facts, labels: Labels, profile: LoadProfile, row: Row, rows: dict[str, Row], found: Choice) -> Line:
    # On one line, however narrow the column.
    objective = f"{found.percentile} < {found.limit:g} ms".replace(" ", "\N{NO-BREAK SPACE}")
    where = ", ".join([wording.under(profile), *facts.datasets(row["dataset"])])
    share, name = front.accuracy(facts, row), found.percentile
    others = [f"{labels.full(rows[one])}, {rows[one]['size']} px" for one in found.alike]
    shown = others if len(others) < 3 else [*others[:2], f"{len(others) - 2} more"]
    bounds = "" if share.low is None or share.high is None else f"[{share.low * 100:.2f}, {share.high * 100:.2f}]"
    return Line(
        (
            Cell(objective, where, found.limit),
            Cell(wording.framework(row["framework"]), labels.kind(row), mark=wording.mark(row)),
            Cell(str(row["size"]), value=row["size"]),
            Cell(f"{share.value * 100:.2f}", bounds, share.value),
            Cell(number(row[f"{name}_ms"]), interval(row[f"{name}_low"], row[f"{name}_high"]), row[f"{name}_ms"]),
            Cell(number(row["p50_ms"]), interval(row["p50_low"], row["p50_high"]), row["p50_ms"]),
            Cell("; ".join(shown) or "none", tone="" if shown else "muted"),
        )
    )
