"""Implements `medserve compare`: verdicts on the pairs of a run, or on the cells of two runs, as tables."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from loadtest.analysis.compare import Verdict
from loadtest.commands.shared import and_more
from loadtest.results import pairs, regression, table
from loadtest.results.launch_summary import SHARES
from loadtest.results.pairs import Compared
from loadtest.results.regression import Changed
from loadtest.results.table import Run
from loadtest.results.tabular import Cell, Column, Line, Table, Tone, as_terminal
from loadtest.results.writers import render_nouns
from medserve.errors import BadInput, CannotRun
from medserve.numbers import interval, number

TONES: dict[Verdict, Tone] = {"faster": "good", "slower": "bad", "undecided": "muted", "not comparable": "muted"}


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run; the old one of two.")],
    new: Annotated[Path | None, typer.Argument(metavar="[NEW]", help="The new one of two.")] = None,
    percentile: Annotated[float, typer.Option(min=1.0, max=99.9, help="Which percentile: 50, 90 or 99.")] = 50.0,
    margin: Annotated[float, typer.Option(min=0.1, help="Per cent within which two are equivalent.")] = 5.0,
    format: Annotated[Literal["json", "csv", "markdown", "table"], typer.Option(help="What to print.")] = "table",
) -> None:
    """Compare with a rule: native with ONNX, framework with framework, one ONNX export with another; or two runs.

    Verdicts are faster, slower, equivalent within the margin, or undecided; with 95 % confidence none of those on one
    kind of pair under one profile is wrong. Exit code 1 when NEW is slower somewhere.

    Example: medserve compare runs/quick
    """
    share = percentile / 100
    if share not in SHARES:
        raise BadInput(f"--percentile is {percentile:g}; expected {', '.join(f'{known * 100:g}' for known in SHARES)}")
    if new is None:
        within_run(run, share, margin / 100, format)
    else:
        between_runs(run, new, share, margin / 100, format)


def within_run(folder: Path, percentile: float, margin: float, form: str) -> None:
    """Print the pairs of one run."""
    run = table.read(folder)
    rows = table.rows(run)
    found = pairs.compare(rows, run.percentiles(percentile).__getitem__, percentile, margin)
    if form != "table":
        print(render_nouns(found, form))
        return
    console = Console()
    # The names of deployments are too long for two columns.
    short = {row.deployment: f"{row.framework} {row.runtime}" for row in rows}
    for kind, profile in dict.fromkeys((pair.kind, pair.profile) for pair in found):
        same = [pair for pair in found if (pair.kind, pair.profile) == (kind, profile)]
        title = f"{kind}, {profile}: p{percentile * 100:g} of the second over the first"
        console.print(as_terminal(_table(title, same, short)))
    for line in _operators(run, [pair for pair in found if pair.kind == "ONNX against ONNX"]):
        console.print(line, style="dim", markup=False, highlight=False)


def between_runs(old: Path, new: Path, percentile: float, margin: float, form: str) -> None:
    """Print what changed between two runs. Raises CannotRun when a cell became slower."""
    before, after = table.read(old), table.read(new)
    found = regression.changes(before, after, percentile, margin)
    if form != "table":
        print(render_nouns(found, form))
    else:
        console = Console()
        console.print(as_terminal(_table(f"{new} over {old}: p{percentile * 100:g}", found, {})))
        for name, (was, now) in regression.versions(before, after).items():
            console.print(f"{name}: {was or 'absent'} -> {now or 'absent'}", style="dim", markup=False, highlight=False)
    if slower := [pair.cell for pair in found if pair.verdict == "slower"]:
        raise CannotRun(f"slower than in {old}: {and_more(slower)}")


def _table(title: str, found: list[Compared] | list[Changed], short: dict[str, str]) -> Table:
    names = ("px", "first", "second") if isinstance(found[0], Compared) else ("cell",)
    columns = [Column(name, numeric=name == "px") for name in names]
    columns += [Column("ratio", "95 %"), Column("verdict", numeric=False)]
    lines = []
    for item in found:
        words = (str(item.size), short[item.first], short[item.second]) if isinstance(item, Compared) else (item.cell,)
        verdict: str = item.verdict
        if item.more is not None:
            verdict += f", ~{item.more} more to tell"
        elif item.value is None and item.reason:
            verdict += f": {item.reason}"
        ratio = Cell(number(item.value), interval(item.low, item.high))
        lines.append(Line((*map(Cell, words), ratio, Cell(verdict, tone=TONES.get(item.verdict, "")))))
    return Table(title, tuple(columns), tuple(lines))


def _operators(run: Run, found: list[Compared]) -> list[str]:
    """The nodes of each graph that is compared: different exports may explain different speeds."""
    counts: dict[str, dict[str, Any]] = {
        cell.deployed.deployment.name: cell.artifact.operators for cell in run.cells if cell.artifact
    }
    names = dict.fromkeys(name for pair in found for name in (pair.first, pair.second))
    return [
        f"{name}: {sum(counts[name].values())} nodes: "
        + ", ".join(f"{count} {kind}" for kind, count in counts[name].items())
        for name in names
        if counts.get(name)
    ]
