"""Rows as text: JSON, CSV, Markdown, LaTeX, Parquet, and the short table at the end of a run."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from loadtest.analysis.intervals import Estimate
from loadtest.results.row import Row, published
from medserve.errors import printable, unknown
from medserve.spec import Noun

COLUMNS = (("in-process", "p50"), ("closed-loop", "p50"), ("closed-loop", "p99"))
HEADS = [
    "deployment", "measured", "batch", "requests/s asked", "delivered", "p50 ms", "p90 ms", "p99 ms",
    "uncorrected p99 ms", "images/s", "failed", "wrong", "n", "launches", "accuracy", "status",
]  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""How a cell begins that a spreadsheet may run as a formula (OWASP, CSV injection)."""
INVALID, DOUBTFUL = "!", "~"
"""Marks behind a number: its row is not valid; its row was disturbed or has no steady state."""


def render(rows: list[Row], form: str) -> str:
    """The rows as `json`, `csv`, `markdown` or `latex`: the first two with all keys, the others as fits on a page."""
    written = {"markdown": _markdown, "latex": _latex}.get(form)
    return written(rows) if written else _whole([published(row) for row in rows], form)


def parquet(rows: list[Row]) -> bytes:
    """The rows as a Parquet file, with all keys."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([published(row) for row in rows]), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def render_nouns(nouns: Sequence[Noun], form: str) -> str:
    """Nouns of the same type as `json`, `csv` or `markdown`, with all their fields."""
    rows = [msgspec.to_builtins(noun) for noun in nouns]
    if form != "markdown":
        return _whole(rows, form)
    heads = list(rows[0]) if rows else []
    lines = [heads, ["---"] * len(heads), *([_word(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(values) + " |" for values in lines)


def _whole(rows: list[dict[str, Any]], form: str) -> str:
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(rows), indent=1).decode()
    if form == "csv":
        heads = list(rows[0]) if rows else []
        return as_csv([heads, *([row[head] for head in heads] for row in rows)]).rstrip("\n")
    raise unknown("format", form, ("json", "csv", "markdown", "latex", "parquet", "table"))


def as_csv(lines: Iterable[Iterable[Any]]) -> str:
    """Lines of cells as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(value) for value in line] for line in lines)
    return text.getvalue()


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # The csv module does not quote a carriage return, at which spreadsheets begin a new line.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _word(value: Any) -> str:
    return _number(value) if value is None or isinstance(value, float) else str(value).replace("|", "\\|")


def _page(rows: list[Row]) -> list[list[str]]:
    """What fits on a page, as text: one line per row, in the order of HEADS."""
    lines = []
    for row in rows:
        values = [row.deployment, row.profile, str(row.batch)]
        values += [_number(rate) for rate in (row.rate_asked, row.rate_delivered)]
        values += [_interval(found) for found in (row.p50, row.p90, row.p99)]
        values += [_number(row.p99_uncorrected_ms), _number(row.throughput)]
        values += [str(count) for count in (row.failed, row.wrong, row.n, row.launches)]
        lines.append([*values, _percent(row.accuracy), _status(row)])
    return lines


def _markdown(rows: list[Row]) -> str:
    lines = [HEADS, ["---"] * 2 + ["---:"] * (len(HEADS) - 3) + ["---"], *_page(rows)]
    table = "\n".join("| " + " | ".join(values) + " |" for values in lines)
    notes = [f"- {note.replace('|', chr(92) + '|')}" for note in _notes([row for row in rows if row.reason])]
    return "\n".join([table, "", *notes]) if notes else table


def _latex(rows: list[Row]) -> str:
    """A tabular of the booktabs package."""
    lines = [f"\\begin{{tabular}}{{ll{'r' * (len(HEADS) - 3)}l}}", "\\toprule"]
    for place, values in enumerate([HEADS, *_page(rows)]):
        lines += [" & ".join(map(_escaped, values)) + " \\\\"] + ["\\midrule"] * (place == 0)
    notes = [f"% {note}" for note in _notes([row for row in rows if row.reason])]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes])


def _escaped(word: str) -> str:
    return re.sub(r"([%&_#$])", r"\\\1", word)


def _status(row: Row) -> str:
    if row.status != "done":
        return str(row.status)
    words = [] if row.valid else ["invalid"]
    words += ["disturbed"] if row.disturbed else []
    words += ["not steady"] if row.steady is False else []
    words += ["saturation point"] if row.saturation else []
    return ", ".join(words) or "done"


def short(rows: list[Row]) -> tuple[list[Table], list[str]]:
    """For a terminal: tables for each data set, size and network with a line per deployment, and what went wrong.

    Of several profiles of a mode the first is shown, and none with a timing mistake.
    """
    groups: dict[str, dict[str, dict[str, Row]]] = {}
    for row in (row for row in rows if row.trap is None):
        title = f"{row.dataset}, {row.size} px, {row.architecture}" + (", unofficial" * bool(row.unofficial))
        groups.setdefault(title, {}).setdefault(row.deployment, {}).setdefault(row.mode, row)
    several = len({row.seed for row in rows}) > 1
    tables = []
    for title, deployments in groups.items():
        heads = ("in process\np50 ms", "closed loop\np50", "\np99", "\naccuracy")
        table = _table(title, heads)
        for modes in deployments.values():
            row = next(iter(modes.values()))
            numbers = [_cell(modes, *column) for column in COLUMNS]
            table.add_row(*_deployment_words(row, several), *numbers, _percent(row.accuracy))
        tables.append(table)
        if open_rows := [modes["open-loop"] for modes in deployments.values() if "open-loop" in modes]:
            tables.append(_open_loop(title, open_rows, several))
    return tables, _notes([row for row in rows if _mark(row) and (row.trap is None or row.status != "done")])


def _open_loop(title: str, rows: list[Row], several: bool) -> Table:
    """The open loop: latency from the intended start, and beside it the uncorrected p99."""
    heads = ("asked\nper second", "delivered\n", "open loop\np50 ms", "\np99", "uncorrected\np99")
    table = _table(f"{title}: by arrival schedule", heads)
    for row in rows:
        numbers = [_cell({"open-loop": row}, "open-loop", name) for name in ("p50", "p99")]
        rates = [_number(row.rate_asked), _number(row.rate_delivered)]
        table.add_row(*_deployment_words(row, several), *rates, *numbers, _number(row.p99_uncorrected_ms))
    return table


def _table(title: str, heads: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("\nframework")
    table.add_column("\nruntime")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _deployment_words(row: Row, several: bool) -> tuple[str, str]:
    reduced = f", {row.precision}" if row.precision not in (None, "float32") else ""
    batched = f", batches of {row.batch_images}" if row.batch_images > 1 else ""
    return (row.framework or "-") + (f" seed {row.seed}" if several else ""), row.runtime + reduced + batched


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


def _cell(modes: dict[str, Row], mode: str, percentile: str) -> str:
    if mode not in modes:
        return ""
    row = modes[mode]
    if row.status != "done":
        return row.status
    return f"{_number(row.percentile(percentile).value)} {_mark(row)}".rstrip()


def _interval(found: Estimate) -> str:
    value = _number(found.value)
    return value if found.low is None else f"{value} [{_number(found.low)}, {_number(found.high)}]"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.2f} %"
