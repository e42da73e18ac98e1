"""`python -m loadtest.benchmark`: how good the load generator is, against targets and against referees.

Blocks of what is compared alternate, so that what the machine does meanwhile meets both alike. Servers have one core,
the generator and the referees, one at a time, another. The parts:

schedule   lag of the sendings, and dispersion of the arrivals, of Poisson schedules against the null server
generator  requests a second of one Locust process on 8 connections to a server that does nothing, and cost of recording
wrk        closed loop: what the same model takes longer than the null server by wrk, and by this generator
referee    open loop: a delay server by an independent client that never sleeps, and by this generator
analysis   seconds and memory to reduce a record of ten million requests
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from loadtest.benchmark import referees, rooflines
from loadtest.benchmark.bench import Bench, Line
from medserve import errors
from medserve.errors import CannotRun
from medserve.spec import Window
from medserve.tables import pick

PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "schedule": rooflines.schedule,
    "generator": rooflines.generator,
    "wrk": referees.closed_loop,
    "referee": referees.open_loop,
    "analysis": rooflines.analysis,
}

VERDICTS = {True: "yes", False: "NO", None: ""}


def disturbed(part: str, windows: Sequence[Window]) -> Line:
    """How often the system came between: figures of a disturbed run are not the generator's."""
    reasons = [window.reason for window in windows if window.reason]
    note = f"of {len(windows)}" + (f", as when {reasons[0]}" if reasons else "")
    return Line(part=part, name="disturbed windows", value=len(reasons), note=note)


def render(line: Line) -> str:
    """A line of the table."""
    if line.value is None:
        return f"{line.part:<10} {line.name:<42} {'-':>9}     {line.note}"
    value = f"{line.value:,.0f}" if abs(line.value) >= 1e4 else f"{line.value:.4g}"
    bounds = [f"{sign} {bound:,g}" for sign, bound in ((">=", line.low), ("<=", line.high)) if bound is not None]
    target = f"{', '.join(bounds):<18} {VERDICTS[line.ok]:<4}"
    return f"{line.part:<10} {line.name:<42} {value:>9} {line.unit:<3} {target} {line.note}".rstrip()


def benchmark(
    artifact: Annotated[
        Path | None,
        typer.Argument(metavar="[ARTIFACT]", help="Exported model for the part wrk.", show_default="a delay of 1 ms"),
    ] = None,
    only: Annotated[str, typer.Option(help=f"Parts, with commas, of: {', '.join(PARTS)}.")] = ",".join(PARTS),
    scale: Annotated[float, typer.Option(min=0.01, help="Factor on all durations and sizes.")] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the load generator against its targets and its referees. Takes about five minutes.

    Example: python -m loadtest.benchmark artifacts/cells --only wrk,referee
    """
    chosen = {name: pick(PARTS, "part", name) for name in only.split(",")}
    lines: list[Line] = []

    def say(line: Line) -> None:
        lines.append(line)
        print(render(line), file=sys.stderr if json else sys.stdout, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), scale, artifact)
        for name, measure in chosen.items():
            bench.windows.clear()
            try:
                for line in measure(bench):
                    say(line)
            except CannotRun as error:
                say(Line(part=name, name="not measured", note=str(error)))
            if bench.windows:
                say(disturbed(name, bench.windows))
    if json:
        told = [msgspec.structs.asdict(line) | {"ok": line.ok} for line in lines]
        print(msgspec.json.format(msgspec.json.encode(told), indent=1).decode())


if __name__ == "__main__":
    errors.main(lambda: typer.run(benchmark))
