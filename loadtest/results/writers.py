"""Rows as JSON, CSV and Parquet with all keys, and as tables of what fits on a page or a terminal."""

from collections import Counter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.results.row import OURS, Row, of_labels, published
from loadtest.results.tabular import (
    Cell,
    Column,
    Line,
    Table,
    as_latex,
    as_markdown,
    csv_lines,
    interval_cell,
    number_cell,
)
from medserve.errors import printable, unknown
from medserve.numbers import interval, number, percent
from medserve.tables import title

INVALID, DOUBTFUL = "!", "~"
"""Marks behind a number: its row is not valid; its row was disturbed or has no steady state."""
DEPLOYMENT = (Column("framework", numeric=False), Column("runtime", numeric=False))
COLUMNS = (
    *DEPLOYMENT,
    Column("p50", "ms", "in process"),
    *(Column(name, "ms", "closed loop") for name in ("p50", "p99")),
    Column("accuracy", "%"),
)
SCHEDULED = (
    *DEPLOYMENT,
    *(Column(name, "", "per second") for name in ("asked", "delivered")),
    *(Column(name, "ms", "open loop") for name in ("p50", "p99")),
    Column("p99", "ms", "uncorrected"),
)
"""Latency from the intended start, and beside it the uncorrected p99."""
ABREAST = 4
"""Profiles beside one another on a terminal."""


def render(rows: list[Row], form: str) -> str:
    """The rows as `json`, `csv`, `markdown` or `latex`: the first two with all keys, the others as fits on a page."""
    if form == "markdown":
        return "\n\n".join(as_markdown(_page(rows)))
    if form == "latex":
        return as_latex(_page(rows)).rstrip("\n")
    return render_plain([published(row) for row in rows], form)


def parquet(rows: list[Row]) -> bytes:
    """The rows as a Parquet file, with all keys."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([published(row) for row in rows]), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def render_plain(rows: list[dict[str, Any]], form: str) -> str:
    """Rows with the same keys as `json`, `csv` or `markdown`, with all of them."""
    heads = list(rows[0]) if rows else []
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(rows), indent=1).decode()
    if form == "csv":
        return csv_lines([heads, *([row[head] for head in heads] for row in rows)]).rstrip("\n")
    if form == "markdown":
        columns = tuple(Column(name, numeric=False) for name in heads)
        lines = tuple(Line(tuple(map(_any_cell, row.values()))) for row in rows)
        return "\n\n".join(as_markdown(Table("", columns, lines)))
    raise unknown("format", form, ("json", "csv", "markdown", "latex", "parquet", "table"))


def _any_cell(value: Any) -> Cell:
    return number_cell(value) if value is None or isinstance(value, float) else Cell(str(value))


def _page(rows: list[Row]) -> Table:
    """What fits on a page: one line per row."""
    columns = [Column("deployment", numeric=False), Column("measured", numeric=False), Column("batch")]
    columns += [Column("asked", "requests/s"), Column("delivered", "requests/s")]
    columns += [Column(name, "ms") for name in ("p50", "p90", "p99", "uncorrected p99")] + [Column("images/s")]
    columns += [Column(name) for name in ("failed", "wrong", "n", "launches")]
    columns += [Column("accuracy", "%"), Column("status", numeric=False)]
    lines = []
    for row in rows:
        cells = [Cell(row.deployment), Cell(row.profile), Cell(str(row.batch))]
        cells += [number_cell(row.rate_asked), number_cell(row.rate_delivered)]
        cells += [interval_cell(found) for found in (row.p50, row.p90, row.p99)]
        cells += [number_cell(row.p99_uncorrected_ms), number_cell(row.throughput)]
        cells += [Cell(str(count)) for count in (row.failed, row.wrong, row.n, row.launches)]
        lines.append(Line((*cells, _accuracy_cell(row), Cell(_status(row)))))
    return Table("", tuple(columns), tuple(lines), notes=tuple(_notes([row for row in rows if row.reason])))


def _accuracy_cell(row: Row) -> Cell:
    return Cell(percent(row.accuracy), of_labels(row.task))


def _status(row: Row) -> str:
    if row.status != "done":
        return str(row.status)
    words = [] if row.valid else ["invalid"]
    words += ["disturbed"] if row.disturbed else []
    words += ["not steady"] if row.steady is False else []
    words += ["saturation point"] if row.saturation else []
    return ", ".join(words) or "done"


def short(rows: list[Row], asked: str | None = None, run: str = "RUN") -> tuple[list[Table], list[str]]:
    """For a terminal: tables for each data set, size and network with a line per deployment, and what went wrong.

    The profile that is `asked` for, else the first of each mode with single images, stands in tables of its own;
    medians of the others follow; none is shown with a timing mistake. What went wrong are at most six lines, see
    `reasons` for all; `run` is the run's folder in commands.
    """
    groups: dict[str, dict[str, dict[str, Row]]] = {}
    others: dict[str, dict[str, dict[str, Row]]] = {}
    order = {row.deployment: place for place, row in reversed(list(enumerate(rows)))}
    sound = [row for row in rows if row.mistake is None]
    for row in sorted(sound, key=lambda row: (order[row.deployment], row.profile != asked, row.batch > 1)):
        title = f"{row.dataset}, {row.size} px, {row.architecture}" + ", unofficial" * bool(row.unofficial)
        if groups.setdefault(title, {}).setdefault(row.deployment, {}).setdefault(row.mode, row) is not row:
            others.setdefault(title, {}).setdefault(row.deployment, {})[row.profile] = row
    several = len({row.seed for row in rows}) > 1
    tables = []
    for title, deployments in groups.items():
        lines, scheduled = [], []
        for modes in deployments.values():
            row, closed, opened = next(iter(modes.values())), modes.get("closed-loop"), modes.get("open-loop")
            named = deployment_cells(row, several)
            cells = [
                marked_cell(modes.get("in-process"), "p50"),
                marked_cell(closed, "p50"),
                marked_cell(closed, "p99"),
            ]
            lines.append(Line((*named, *cells, _accuracy_cell(row))))
            if opened:
                cells = [number_cell(opened.rate_asked), number_cell(opened.rate_delivered)]
                cells += [
                    marked_cell(opened, "p50"),
                    marked_cell(opened, "p99"),
                    number_cell(opened.p99_uncorrected_ms),
                ]
                scheduled.append(Line((*named, *cells)))
        tables.append(Table(title, COLUMNS, tuple(lines)))
        if scheduled:
            profiles = dict.fromkeys(
                modes["open-loop"].profile for modes in deployments.values() if "open-loop" in modes
            )
            tables.append(Table(f"{title}: by arrival schedule, {' and '.join(profiles)}", SCHEDULED, tuple(scheduled)))
        tables += _others(title, others.get(title, {}), several)
    return tables, _summary(rows, run)


def _others(title: str, deployments: dict[str, dict[str, Row]], several: bool) -> list[Table]:
    """Medians of further profiles, ABREAST of them in a table."""
    profiles = list(dict.fromkeys(name for found in deployments.values() for name in found))
    tables = []
    for names in (profiles[at : at + ABREAST] for at in range(0, len(profiles), ABREAST)):
        lines = []
        for found in deployments.values():
            medians = [marked_cell(found.get(name), "p50") for name in names]
            lines.append(Line((*deployment_cells(next(iter(found.values())), several), *medians)))
        columns = (*DEPLOYMENT, *(Column(name, "ms", "p50") for name in names))
        tables.append(Table(f"{title}: other ways of measuring", columns, tuple(lines)))
    return tables


def reasons(rows: list[Row]) -> list[str]:
    """One line for each reason for which a row is not measured, not valid, or doubtful."""
    return _notes([row for row in rows if _mark(row) and (row.mistake is None or row.status != "done")])


def deployment_cells(row: Row, several: bool) -> tuple[Cell, Cell]:
    """Framework and runtime of a row, the framework with its seed where there are several."""
    reduced = f", {row.precision}" if row.precision not in (None, "float32") else ""
    served = f", {row.dispatch}" if row.dispatch != "inline" else ""
    served += f", batches of {row.batch_images}" if row.batch_images > 1 else ""
    served += f", {row.instances} instances" if row.instances > 1 else ""
    served += f", {row.threads or 'all'} threads" if row.threads != 1 else ""
    served += f", {row.settings}" if row.settings != "default" else ""
    served += f", {row.variant}" if row.variant else ""
    served += f", {row.server}" if row.server != OURS else ""
    served += f", copy {row.copy}" if row.copy else ""
    seed = f" seed {row.seed}" if several else ""
    return Cell(title(row.framework or "-") + seed), Cell(title(row.runtime) + reduced + served)


def _summary(rows: list[Row], run: str) -> list[str]:
    """At most seven lines: what rows and marks mean, and how many rows have each, with the most frequent reason."""
    null = ["null: a runtime that computes nothing, for what wrapper and load generator take"]
    lines = null if any(row.framework is None for row in rows) else []
    if not any(map(_mark, rows)):
        return lines
    measured = [row for row in rows if row.status == "done"]
    kinds = {
        "not measured": [row for row in rows if row.status != "done"],
        "not valid": [row for row in measured if not row.valid],
        "without a steady state": [row for row in measured if row.valid and row.steady is False],
        "disturbed": [row for row in measured if row.valid and row.disturbed],
    }
    lines.append(
        f"{INVALID} not valid   {DOUBTFUL} disturbed by something else on the machine, or without a steady state"
    )
    for kind, found in kinds.items():
        words = Counter(_clause(row, "steady" if "steady" in kind else kind) for row in found)
        if found:
            others = len(words) - 1
            more = f"; {others} other reason{'s' * (others > 1)}" if others else ""
            example = ", as when " if others else ": "
            lines.append(
                printable(f"{len(found)} of {len(rows)} rows {kind}{example}{words.most_common(1)[0][0]}{more}")
            )
    return [*lines, f"Every reason: medserve results {run} --reasons, and the report."]


def _clause(row: Row, word: str) -> str:
    """The part of a row's reason that speaks of something, else the first."""
    clauses = (row.reason or "no valid certificate").split("; ")
    found = next((clause for clause in clauses if word in clause), clauses[0])
    return found.removeprefix("no steady state: ")


def _notes(rows: list[Row]) -> list[str]:
    """One line per reason, with the cells that share it."""
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        state = row.status if row.status != "done" else _status(row)
        reasons.setdefault(f"{state}: {row.reason or 'no valid certificate'}", []).append(row)
    lines = []
    for reason, cells in reasons.items():
        names = list(dict.fromkeys(row.deployment for row in cells))
        what = cells[0].cell if len(cells) == 1 else f"{names[0]} ({len(cells)} cells)"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(printable(f"{what}{more}: {reason}"))
    return lines


def _mark(row: Row) -> str:
    if not row.valid:
        return INVALID
    return DOUBTFUL if row.disturbed or row.steady is False else ""


def marked_cell(row: Row | None, percentile: str, with_interval: bool = False) -> Cell:
    """A percentile of a row with its mark; empty without a row."""
    if row is None:
        return Cell("")
    if row.status != "done":
        return Cell(row.status)
    found = row.percentile(percentile)
    ends = interval(found.low, found.high) if with_interval else ""
    return Cell(" ".join(filter(None, (number(found.value), ends, _mark(row)))), value=found.value)
