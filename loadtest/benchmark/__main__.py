"""`python -m loadtest.benchmark`: measures the load generator, the statistics and the report against targets.

`coverage` tests the statistics on simulated series, `report` writes the report of a large run, `cold` starts servers,
`serving` compares the wrapper with other servers, `hostile` attacks it, `selftest` counts failed self-tests,
`pauses` looks for what HTTP adds.
`load` measures the generator: the blocks of a comparison alternate, so that disturbances affect both sides alike.
Servers have one core, the generator and the reference clients, one at a time, another one. The parts:

schedule   send lag of Poisson schedules against the null server
generator  requests per second of one Locust process on 8 connections to a canned server, and the cost of recording
wrk        closed loop: the same model less the null server, as wrk measures it and as this generator does
poller     open loop: a delay server, as an independent client that never sleeps measures it and as this generator does
waits      busy servers at 50 and 80 % of their capacity, against Lindley's recursion over their own service times
planted    differences of 20 and 50 us between busy servers
overload   what a server completes of 1.5 times its capacity, and refuses of 0.8 times
campaigns  how often a server is said to differ from itself, and from one that is 10 % slower
loadgen    MLPerf's LoadGen: in process, and under Poisson arrivals
blocking   what `medserve load` prints of servers that answer one request at a time, against Lindley's recursion
objective  twenty searches for p99 < 5 ms, against trials of a minute around their answers
check      forty verdicts on a rate, of servers that meet the objective or miss it by a known share
analysis   seconds and memory to reduce a record of ten million requests
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

import loadtest
from loadtest.benchmark import blocking, busy, loadgen, other_clients, rooflines, searches
from loadtest.benchmark.bench import FIGURES, Bench, Line
from loadtest.results.tabular import Cell, Column, Table, as_markdown
from loadtest.results.tabular import Line as TableLine
from medserve import errors, study_file
from medserve.errors import CannotRun
from medserve.tables import pick

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "schedule": rooflines.schedule,
    "generator": rooflines.generator,
    "wrk": other_clients.closed_loop,
    "poller": other_clients.open_loop,
    "waits": busy.waits,
    "planted": busy.planted,
    "overload": busy.overload,
    "campaigns": busy.campaigns,
    "loadgen": loadgen.measure,
    "blocking": blocking.measure,
    "objective": searches.measure,
    "check": searches.checks,
    "analysis": rooflines.analysis,
}

Row = TypeVar("Row")


@app.command()
def load(
    artifact: Annotated[
        Path | None,
        typer.Argument(metavar="[ARTIFACT]", help="Model for wrk and objective.", show_default="a delay of 1 ms"),
    ] = None,
    only: Annotated[str, typer.Option(help=f"Parts, with commas, of: {', '.join(PARTS)}.")] = ",".join(PARTS),
    scale: Annotated[float, typer.Option(min=0.01, help="Factor on all durations and sizes.")] = 1.0,
    json: Json = False,
) -> None:
    """Measure the load generator against its targets and other clients. Takes about three hours.

    Example: python -m loadtest.benchmark load artifacts/cells --only wrk,poller
    """
    chosen = {name: pick(PARTS, "part", name) for name in only.split(",")}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), scale, artifact)
        lines = (line for name, measure in chosen.items() for line in _measure(bench, name, measure))
        _show(lines, FIGURES, Line.cells, json)


def _measure(bench: Bench, part: str, measure: Callable[[Bench], Iterator[Line]]) -> Iterator[Line]:
    """The figures of a part, and how many windows were disturbed: their figures are not those of the generator."""
    bench.windows.clear()
    try:
        yield from measure(bench)
    except CannotRun as error:
        yield Line(part=part, name="not measured", note=str(error))
    if bench.windows:
        reasons = [window.reason for window in bench.windows if window.reason]
        note = f"of {len(bench.windows)}" + (f", as when {reasons[0]}" if reasons else "")
        yield Line(part=part, name="disturbed windows", value=len(reasons), note=note)


@app.command()
def coverage(
    trials: Annotated[int, typer.Option(min=20, help="Simulated series of each kind.")] = 1000,
    json: Json = False,
) -> None:
    """Test intervals, flags and verdicts on simulated series whose truth is known. Takes less than a minute.

    Exit code 1 when a target is missed. Example: python -m loadtest.benchmark coverage --json
    """
    from loadtest.benchmark.coverage import measure

    _judge(_show(measure(trials), FIGURES, Line.cells, json))


@app.command()
def report(
    scale: Annotated[float, typer.Option(min=0.0001, help="Factor on the ten million samples.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Folder for the run.", show_default="none is kept")] = None,
    json: Json = False,
) -> None:
    """Write the report of 200 cells and ten million samples: seconds, memory, size, first paint in Chromium.

    Exit code 1 when a target is missed. Example: python -m loadtest.benchmark report --scale 0.01
    """
    from loadtest.benchmark.publishing import measure

    with tempfile.TemporaryDirectory() as scratch:
        _judge(_show(measure(out or Path(scratch) / "large", scale), FIGURES, Line.cells, json))


@app.command()
def selftest(
    runs: Annotated[int, typer.Option(min=1, help="Self-tests of each generator; half a minute each.")] = 20,
    only: Annotated[str, typer.Option(help="Generators, with commas.", show_default="sound, and five wrong ones")] = "",
    json: Json = False,
) -> None:
    """Count how often the self-test fails: with the generator as it is, and with five that are wrong on purpose.

    Exit code 1 when a target is missed. Example: python -m loadtest.benchmark selftest --only sound --runs 50
    """
    from loadtest.benchmark.wrong_generators import FAULTS, measure

    names = [name for name in only.split(",") if name]
    for name in names:
        pick({"sound": None, **dict.fromkeys(FAULTS)}, "generator", name)
    _judge(_show(measure(runs, names), FIGURES, Line.cells, json))


@app.command()
def pauses(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of an exported model.")],
    json: Json = False,
) -> None:
    """Measure what HTTP adds to a runtime beyond the null runtime, and whether pauses or cold caches explain it.

    Example: python -m loadtest.benchmark pauses work/cells.onnx
    """
    from loadtest.benchmark.pauses import measure

    with tempfile.TemporaryDirectory() as scratch:
        _show(measure(Bench(Path(scratch), 1.0, None), artifact), FIGURES, Line.cells, json)


@app.command()
def cold(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders of exported models.")],
    repeats: Annotated[int, typer.Option(min=1, help="Starts of each kind; the medians are shown.")] = 5,
    json: Json = False,
) -> None:
    """Measure the time from a server's start to its first answer, and what a compile cache saves.

    Example: python -m loadtest.benchmark cold runs/quick/artifacts/*
    """
    from loadtest.benchmark.cold import COLUMNS, Start, measure

    _show(measure(artifacts, repeats), COLUMNS, Start.cells, json)


@app.command()
def serving(
    artifact: Annotated[
        Path | None,
        typer.Argument(metavar="[ARTIFACT]", help="Exported ONNX model.", show_default="one of 28 px is made"),
    ] = None,
    study: Annotated[str, typer.Option(help="Study that names the other servers.")] = "servers",
    only: Annotated[str, typer.Option(help="Of these, with commas; '' for none.")] = "all",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each server; the medians are shown.")] = 12,
    requests: Annotated[int, typer.Option(min=100, help="Requests per round.")] = 1000,
    json: Json = False,
) -> None:
    """Compare the wrapper with the servers of a study by a client that never sleeps; measure batching and JSON.

    Each is installed into an environment of its own, and suspended while others are measured.
    Exit code 1 when a target is missed. Example: python -m loadtest.benchmark serving --rounds 3
    """
    from loadtest.benchmark.serving import batching, comparison, decoding

    asked = study_file.read(study)
    names = comparison.installable(asked)
    chosen = names if only == "all" else [name for name in only.split(",") if name]
    for name in chosen:
        pick(dict.fromkeys(names), "server", name)

    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), 1.0, artifact)
        model = comparison.check_model(artifact or comparison.train_and_export(bench))
        rows = comparison.compare(bench, model, asked, chosen, rounds, requests)
        lines = [
            *comparison.targets(rows),
            *batching.gains(bench, model, rounds, requests),
            *decoding.decoders(10 * rounds),
        ]
    if json:
        _print_json({"servers": rows, "figures": _objects(lines)})
    else:
        _show(rows, comparison.COLUMNS, comparison.Row.cells, json)
        print()
        _show(lines, FIGURES, Line.cells, json)
    _judge(lines)


@app.command()
def hostile(
    only: Annotated[str, typer.Option(help="Attacks, with commas.", show_default="all")] = "",
    sources: Annotated[
        list[Path] | None,
        typer.Option("--source", help="Source tree of a server; repeat it to compare.", show_default="this one"),
    ] = None,
    json: Json = False,
) -> None:
    """Send up to 64 MB from one client to a fresh server per attack: memory, longest wait for health, end by SIGTERM.

    Everything stays on this machine. Example: python -m loadtest.benchmark hostile --source ../old --source .
    """
    from loadtest.benchmark.hostile import ATTACKS
    from loadtest.benchmark.resilience import COLUMNS, Resilience, measure

    names = only.split(",") if only else list(ATTACKS)
    for name in names:
        pick(ATTACKS, "attack", name)
    rows = measure(sources or [Path(loadtest.__file__).parents[1]], names)
    _show(rows, COLUMNS, Resilience.cells, json)


def _show(
    rows: Iterable[Row], columns: tuple[Column, ...], cells: Callable[[Row], Iterable[str]], json: bool
) -> list[Row]:
    """Print each row as it comes as a line of a Markdown table; with `json` on stderr, and all as JSON at the end."""
    output = sys.stderr if json else sys.stdout
    print(as_markdown(Table("", columns, ()))[0], file=output)
    found = []
    for row in rows:
        line = TableLine(tuple(map(Cell, cells(row))))
        print(as_markdown(Table("", columns, (line,)))[0].splitlines()[-1], file=output, flush=True)
        found.append(row)
    if json:
        _print_json(_objects(found))
    return found


def _judge(lines: Sequence[Line]) -> None:
    """Raise CannotRun when a figure misses its target."""
    if missed := [f"{line.part}, {line.name}" for line in lines if line.ok is False]:
        raise CannotRun(f"{len(missed)} of {len(lines)} figures miss their target: {missed[0]}")


def _objects(rows: Iterable[Any]) -> list[dict[str, object]]:
    return [msgspec.structs.asdict(row) | ({"ok": row.ok} if isinstance(row, Line) else {}) for row in rows]


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


if __name__ == "__main__":
    errors.main(app)
