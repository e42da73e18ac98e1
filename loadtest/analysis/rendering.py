"""Rows as text: JSON, CSV, Markdown, and the short table at the end of a run."""

import csv
import io
from typing import Any

import msgspec
from rich.table import Table

from loadtest.analysis.table import Row
from medserve.errors import unknown

SHORT = (
    ("in-process", "p50_ms"),
    ("closed-loop", "p50_ms"),
    ("closed-loop", "p99_ms"),
    ("open-loop", "p50_ms"),
    ("open-loop", "p99_ms"),
)

MODES = {"in-process": "in process", "closed-loop": "closed loop", "open-loop": "open loop"}


def render(rows: list[Row], form: str) -> str:
    """The rows as `json`, `csv` or `markdown`. JSON and CSV hold everything, Markdown what fits on a page."""
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(rows), indent=1).decode()
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    if form == "markdown":
        return _markdown(rows)
    raise unknown("format", form, ("json", "csv", "markdown", "table"))


def _markdown(rows: list[Row]) -> str:
    head = ["deployment", "mode", "batch", "requests/s asked", "p50 ms", "p90 ms", "p99 ms", "images/s"]
    head += ["failed", "n", "launches", "accuracy", "status"]
    lines = [head, ["---"] * 2 + ["---:"] * 10 + ["---"]]
    for row in rows:
        values = [_deployment(row), MODES[row["mode"]], str(row["batch"]), _number(row["rate_asked"])]
        values += [_interval(row, name) for name in ("p50", "p90", "p99")]
        values += [_number(row["throughput"]), str(row["failed"]), str(row["n"]), str(row["launches"])]
        status = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        values += [_percent(row["accuracy"]), status.replace("|", "\\|")]
        lines.append(values)
    return "\n".join("| " + " | ".join(values) + " |" for values in lines)


def short(rows: list[Row]) -> tuple[list[Table], list[str]]:
    """For a terminal: a table for each data set, size and network with one line a deployment, and what went wrong.

    Of several profiles of one mode the first is shown.
    """
    groups: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        title = f"{row['dataset']}, {row['size']} px, {row['architecture']}" + (
            ", unofficial" * bool(row["unofficial"])
        )
        groups.setdefault(title, {}).setdefault(_deployment(row), {}).setdefault(row["mode"], row)
    several = len({row["seed"] for row in rows}) > 1
    tables = []
    for title, deployments in groups.items():
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        table.add_column("\nframework")
        table.add_column("\nruntime")
        for head in ("in process\np50 ms", "closed\np50", "loop\np99", "open\np50", "loop\np99", "\naccuracy"):
            table.add_column(head, justify="right", no_wrap=True)
        for modes in deployments.values():
            one = next(iter(modes.values()))
            framework = (one["framework"] or "-") + (f" seed {one['seed']}" if several else "")
            numbers = [_cell(modes, *wanted) for wanted in SHORT]
            table.add_row(framework, one["runtime"], *numbers, _percent(one["accuracy"]))
        tables.append(table)
    return tables, _notes(rows)


def _notes(rows: list[Row]) -> list[str]:
    """One line a reason, with the cells that share it."""
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] != "done":
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(row)
    lines = []
    for reason, cells in reasons.items():
        names = list(dict.fromkeys(_deployment(row) for row in cells))
        what = cells[0]["cell"] if len(cells) == 1 else f"{names[0]} ({len(cells)} cells)"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{what}{more}: {reason}")
    return lines


def _cell(modes: dict[str, Row], mode: str, key: str) -> str:
    if mode not in modes:
        return ""
    return _number(modes[mode][key]) if modes[mode]["status"] == "done" else modes[mode]["status"]


def _deployment(row: Row) -> str:
    return str(row["cell"]).removesuffix(f".{row['profile']}")


def _interval(row: Row, name: str) -> str:
    value = _number(row[f"{name}_ms"])
    if row[f"{name}_low"] is None:
        return value
    return f"{value} [{_number(row[f'{name}_low'])}, {_number(row[f'{name}_high'])}]"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.2f} %"
