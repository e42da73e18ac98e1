"""Implements `medserve results`: of a run, or of one record."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from loadtest import samples
from loadtest.commands.shared import print_figures
from loadtest.results import table, writers
from loadtest.results.record_summary import COLUMNS, as_text, summarise
from loadtest.results.tabular import as_terminal
from medserve import store
from medserve.errors import BadInput


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or one record, .parquet.")],
    format: Annotated[
        Literal["json", "csv", "markdown", "latex", "parquet", "table"], typer.Option(help="What to print or write.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write instead; required for parquet.")] = None,
) -> None:
    """Print the results of a run, or of one record, derived from its raw samples.

    Example: medserve results runs/quick --format csv
    """
    if (format == "parquet" and out is None) or (format == "table" and out is not None):
        raise BadInput("--format parquet wants an --out FILE, and --out another --format than table")
    if run.is_file():
        _print_record(run, format)
        return
    rows = table.rows(table.read(run))
    if out is not None:
        content = writers.parquet(rows) if format == "parquet" else writers.render(rows, format).encode() + b"\n"
        store.write_bytes(out, content)
    elif format != "table":
        print(writers.render(rows, format))
    else:
        tables, notes = writers.short(rows)
        console = Console()
        for part in tables:
            console.print(as_terminal(part))
        for note in notes:
            console.print(note, style="red", markup=False, highlight=False)


def _print_record(path: Path, format: str) -> None:
    """Print the figures of one record, and why it is marked incomplete."""
    figures = summarise(samples.read(path, COLUMNS)) | {"incomplete": samples.read_facts(path).get("incomplete")}
    if format not in ("table", "json"):
        raise BadInput(f"one record has no --format {format}; expected table or json")
    lines = [str(path), as_text(figures)]
    if figures["incomplete"]:
        lines.append(f"incomplete   {figures['incomplete']}")
    print_figures(figures, lines, format == "json")
