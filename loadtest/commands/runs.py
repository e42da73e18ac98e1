"""Implements `medserve results`, `report`, `compare`, `verify` and `bundle`: what is derived from a run's records."""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console

from loadtest import samples
from loadtest.analysis.compare import Judged, Verdict
from loadtest.commands.shared import Json, and_more, print_figures
from loadtest.results import bundle as bundles
from loadtest.results import pairs, record_summary, table, writers
from loadtest.results.launch_summary import SHARES
from loadtest.results.row import Row, of_labels
from loadtest.results.tabular import Cell, Column, Line, Table, Tone, as_terminal, interval_cell
from loadtest.results.verify import seal
from loadtest.results.verify import verify as derive_again
from medserve import store
from medserve.errors import BadInput, CannotRun
from medserve.matrix import plan
from medserve.measures import objective_profile
from medserve.numbers import percent
from medserve.study import Study
from medserve.tables import title as title_of

WIDTH = 160
"""Characters of a line that no terminal shows."""

TONES: dict[Verdict, Tone] = {"faster": "good", "slower": "bad", "undecided": "muted", "not comparable": "muted"}


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folder of a run, or a bundle, .zip.")],
    out: Annotated[Path | None, typer.Option(help="The page, .html.", show_default="RUN/report.html")] = None,
) -> None:
    """Write a run's report: a page that needs no network, the same as Markdown, figures/ and tables/.

    The report of a bundle goes into the folder BUNDLE-report beside it. The one of several runs of a study, say on
    different machines, shows the ratios within each and where verdicts agree; it goes into the folder `comparison`.

    Example: medserve report runs/quick
    """
    from loadtest.report import facts, page, several

    run, beside = runs[0], runs[0].with_name(f"{runs[0].stem}-report") / "report.html"
    if len({path.resolve() for path in runs}) < len(runs):
        raise BadInput("a run is given twice; give each once")
    with ExitStack() as opened:
        folders = [opened.enter_context(bundles.opened(path)) for path in runs]
        if len(runs) > 1:
            names = [path.stem for path in runs]
            titles = [str(path) if names.count(path.stem) > 1 else path.stem for path in runs]
            found = {title: facts.read(folder) for title, folder in zip(titles, folders, strict=True)}
            written = several.write(found, out or Path("comparison") / "report.html")
        elif folders[0] == run:
            written = page.write(run, out)
        else:
            written = page.write_beside(folders[0], out or beside)
    print(written[0].resolve())


def results(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, a bundle, or one record, .parquet.")],
    format: Annotated[
        Literal["json", "csv", "markdown", "latex", "parquet", "table"], typer.Option(help="What to print or write.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write instead; required for parquet.")] = None,
    reasons: Annotated[bool, typer.Option(help="Print every reason for a mark.")] = False,
) -> None:
    """Print the results of a run, or of one record, derived from its raw samples.

    Example: medserve results runs/quick --format csv
    """
    if (format == "parquet" and out is None) or (format == "table" and out is not None):
        raise BadInput("--format parquet wants an --out FILE, and --out another --format than table")
    if run.is_file() and run.suffix == ".parquet":
        _print_record(run, format)
        return
    said: list[str] = []
    named = shlex.quote(str(run))
    with bundles.opened(run) as folder:
        if format == "table":
            from loadtest.report import facts
            from loadtest.report.sections import answer, choose

            known = facts.read(folder)
            rows, said = [*known.rows, *known.mistaken], answer.in_short(known, named)
            held = choose.study_objective(known)
        else:
            rows = table.rows(table.read(folder))
    if out is not None:
        content = writers.parquet(rows) if format == "parquet" else writers.render(rows, format).encode() + b"\n"
        store.write_bytes(out, content)
    elif format != "table":
        print(writers.render(rows, format))
    else:
        objective = known.study.objective
        asked = objective_profile(objective).name if objective else None
        tables, notes = writers.short(rows, asked, named)
        _print_tables([], said, style="")
        _print_tables(
            [*([held] if held else []), *tables],
            [*(writers.reasons(rows) if reasons else notes), *_left_out(known.study)],
        )


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folder or bundle of a run; of several, the last is judged.")
    ],
    by: Annotated[
        pairs.By | None, typer.Option(help="Only pairs that differ by this, of one run.", show_default="most")
    ] = None,
    percentile: Annotated[float, typer.Option(min=1.0, max=99.9, help="Which percentile: 50, 90 or 99.")] = 50.0,
    margin: Annotated[float, typer.Option(min=0.1, help="Per cent within which two are equivalent.")] = 5.0,
    format: Annotated[Literal["json", "csv", "markdown", "table"], typer.Option(help="What to print.")] = "table",
) -> None:
    """Compare the deployments of a run that differ in one thing, with a rule; or several runs.

    Verdicts are faster, slower, equivalent within the margin, or undecided; with 95 % confidence none of those on one
    kind of pair under one profile is wrong, and the interval beside each is widened to that. Of several runs of a
    study on one kind of machine the last is judged by those before it: it takes five of them to know how far runs
    differ by themselves. Exit code 1 when it is slower somewhere.

    Example: medserve compare runs/quick --by runtime
    """
    share = percentile / 100
    if share not in SHARES:
        raise BadInput(f"--percentile is {percentile:g}; expected {', '.join(f'{known * 100:g}' for known in SHARES)}")
    with ExitStack() as opened:
        found = [table.read(opened.enter_context(bundles.opened(path))) for path in runs]
        if len(found) == 1:
            _compare_within(found[0], share, margin / 100, format, pairs.SHOWN if by is None else pairs.BY[by])
        elif by is not None:
            raise BadInput("--by compares the deployments of one run; leave it out to compare runs")
        else:
            _compare_runs(runs, found, share, margin / 100, format)


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a bundle, .zip.")], json: Json = False
) -> None:
    """Derive every published number of a run again, from its raw samples and their digests.

    Exit code 1 when a number or a file differs. Example: medserve verify runs/quick
    """
    with bundles.opened(run) as folder:
        done = derive_again(folder, str(run))
        made = bundles.described(folder)
    lines = [
        f"{run}: {done.numbers:,} values derived again from {done.files:,} files, {len(done.differences)} differ",
        *([] if made is None else _identity(made, store.sha256(run))),
        *(f"not derived again: the test scores of {reason}" for reason in done.underivable),
    ]
    print_figures(msgspec.to_builtins(done), lines, json)
    if done.differences:
        raise CannotRun(and_more(done.differences))


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="RUN.zip")] = None,
    models: Annotated[bool, typer.Option("--models", help="With the exported models and the weights.")] = False,
    json: Json = False,
) -> None:
    """Write a run into one file, from which `results`, `report`, `compare` and `verify` derive every number again.

    It holds records, manifests, scores and published results; no images, and no models unless asked for. Its SHA-256
    is what a publication cites. A run without a report, as of a machine that cannot draw one, publishes its results
    now. Example: medserve bundle runs/quick
    """
    if (run / "results").is_dir() and not any((run / name).exists() for name in (bundles.SUMS, "report.html")):
        rows = sorted(table.rows(table.read(run)), key=lambda row: row.mistake is not None)
        store.write_bytes(run / bundles.PUBLISHED, writers.render(rows, "json").encode())
        seal(run)
    target = out or run.with_name(f"{run.resolve().name}{bundles.ENDING}")
    made, digest = bundles.write(run, target, models)
    size = target.stat().st_size
    lines = [
        f"{target}: {size / 1e6:.1f} MB, {len(made.files)} files",
        *_identity(made, digest),
    ]
    print_figures({**msgspec.to_builtins(made), "bytes": size, "sha256": digest}, lines, json)


def _identity(made: bundles.Bundle, digest: str) -> list[str]:
    data = ", ".join(f"{name} ({state})" for name, state in made.data.items())
    return [
        f"{made.title}: {data}; {made.machine}; {made.started[:10]}; medserve {made.version}",
        *([f"incomplete: {made.incomplete}"] if made.incomplete else []),
        f"SHA-256 {digest}",
    ]


def _print_record(path: Path, format: str) -> None:
    """Print the figures of one record, and why it is marked incomplete."""
    figures = record_summary.summarise(samples.read(path, record_summary.COLUMNS))
    figures["incomplete"] = samples.read_facts(path).get("incomplete")
    if format not in ("table", "json"):
        raise BadInput(f"one record has no --format {format}; expected table or json")
    lines = [str(path), record_summary.as_text(figures)]
    if figures["incomplete"]:
        lines.append(f"incomplete   {figures['incomplete']}")
    print_figures(figures, lines, format == "json")


def _print_tables(tables: Sequence[Table], notes: Sequence[str], style: str = "dim") -> None:
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    console = Console(width=WIDTH) if wide else Console()
    for found in tables:
        console.print(as_terminal(found))
    for note in notes:
        console.print(note, style=style, markup=False, highlight=False, soft_wrap=wide)


def _compare_within(run: table.Run, percentile: float, margin: float, form: str, kinds: Sequence[pairs.Kind]) -> None:
    """Print the pairs of one run."""
    rows = table.rows(run)
    found = pairs.compare(rows, run.percentiles(percentile).__getitem__, margin, kinds)
    if form != "table":
        print(writers.render_plain([pair.published(percentile) for pair in found], form))
        return
    tables = []
    for kind, profile in dict.fromkeys((pair.kind, pair.first.profile) for pair in found):
        same = [pair for pair in found if (pair.kind, pair.first.profile) == (kind, profile)]
        lines = [
            ((str(pair.first.size), _short(pair.first, kind), _short(pair.second, kind)), pair.judged) for pair in same
        ]
        each = " per image" if kind == "batch against batch" else ""
        title = f"{kind}, {profile}: p{percentile * 100:g}{each} of the second over the first"
        tables.append(_verdicts(title, ("px", "first", "second"), lines))
    graphs = [row.deployment for pair in found if pair.kind == "ONNX against ONNX" for row in (pair.first, pair.second)]
    # Different exports may explain different speeds.
    counts = {cell.deployed.deployment.name: cell.artifact.operators for cell in run.cells if cell.artifact}
    nodes = [
        f"{name}: {sum(of.values())} nodes: " + ", ".join(f"{count} {kind}" for kind, count in of.items())
        for name in dict.fromkeys(graphs)
        if (of := counts.get(name))
    ]
    models = [row for row in rows if row.framework]
    measured = sum(row.usable for row in models)
    nothing = f"No pair differs in this alone: {measured} of {len(models)} rows with a model are measured and valid."
    _print_tables(tables, [*nodes, *([] if tables else [nothing]), *_left_out(run.study)])


def _compare_runs(
    paths: Sequence[Path], runs: Sequence[table.Run], percentile: float, margin: float, form: str
) -> None:
    """Print how the last of several runs differs from those before. Raises CannotRun when a cell became slower."""
    *before, new = runs
    found = pairs.changes(before, new, percentile, margin)
    if form != "table":
        rows = [{"cell": cell, "percentile": percentile, **pairs.published(judged)} for cell, judged in found.items()]
        print(writers.render_plain(rows, form))
    else:
        others = str(paths[0]) if len(before) == 1 else f"{len(before)} runs"
        title = f"{paths[-1]} over {others}: p{percentile * 100:g}"
        shown = _verdicts(title, ("cell",), [((cell,), judged) for cell, judged in found.items()])
        versions = pairs.versions(before[-1], new).items()
        _print_tables([shown], [f"{name}: {was or 'absent'} -> {now or 'absent'}" for name, (was, now) in versions])
    if slower := [cell for cell, judged in found.items() if judged.verdict == "slower"]:
        raise CannotRun(f"slower than before: {and_more(slower)}")


def _left_out(study: Study) -> list[str]:
    return [f"left out: {words}" for words in plan(study).left_out]


def _short(row: Row, kind: pairs.Kind) -> str:
    """A deployment in a column of its own: framework, runtime, and what differs in pairs of this kind."""
    words: dict[pairs.Kind, str] = {
        "reduced precision against float32": f", {percent(row.accuracy)} % {of_labels(row.task)}".rstrip(),
        "batch against batch": f", batches of {row.batch}",
        "size against size": f", {row.size} px",
        "tuned against default": f", {row.settings}",
        "threads against threads": f", {row.threads} threads",
        "dispatch against dispatch": f", {row.dispatch}, up to {row.batch_images}, {row.instances} instances",
        "variant against variant": f", {row.variant}",
        "server against server": f", {row.server}",
        "copy against copy": f", copy {row.copy}" if row.copy else "",
    }
    reduced = f" {row.precision}" if row.precision != "float32" else ""
    return f"{title_of(row.framework or '')} {title_of(row.runtime)}{reduced}{words.get(kind, '')}"


def _verdicts(title: str, names: Sequence[str], found: Iterable[tuple[tuple[str, ...], Judged]]) -> Table:
    """Ratios with their verdicts, each behind the words that say of what."""
    columns = [Column(name, numeric=name == "px") for name in names]
    columns += [Column("ratio", "interval"), Column("verdict", numeric=False)]
    lines = []
    for words, judged in found:
        ratio, verdict = judged.ratio, str(judged.verdict)
        if judged.verdict == "between-run variance unknown":
            verdict += f": {judged.more} more to tell"
        elif judged.more is not None:
            verdict += f", ~{judged.more} more to tell"
        elif ratio.value is None and ratio.reason:
            # `results --reasons` has the rest.
            verdict += f": {ratio.reason.partition('; ')[0].partition(':')[0]}"
        lines.append(Line((*map(Cell, words), interval_cell(ratio), Cell(verdict, tone=TONES.get(judged.verdict, "")))))
    return Table(title, tuple(columns), tuple(lines))
