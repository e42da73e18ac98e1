"""`python -m loadtest`: measure a launch, print results, time an artifact, load-test a server."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from medserve import errors, machine, store
from medserve.errors import BadInput, CannotRun
from medserve.jobs import Launch
from medserve.spec import Arrivals, Artifact, Deployment, LoadProfile
from medserve.tables import FORMATS, pick

app = typer.Typer(
    help="Measure latency: over HTTP with Locust, or in process.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Seconds of measuring, after the warm-up.")]
Warmup = Annotated[float, typer.Option(min=0.0, help="Seconds of warm-up, kept in the record and marked.")]
Batch = Annotated[int, typer.Option(min=1, help="Images a request.")]
Seed = Annotated[int, typer.Option(help="Order of the images, and arrivals.")]


@app.command("launch")
def launch_(
    plan: Annotated[Path, typer.Argument(metavar="LAUNCH.json", help="A launch as the study runner writes it.")],
) -> None:
    """Measure the cells of one launch and write their results.

    Exit code 1 when a cell failed: its result says why. Example: python -m loadtest launch launch.json
    """
    from loadtest.measure.launch import launch

    failed = launch(store.read_json(plan, Launch))
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise CannotRun(f"{failed[0]}{more}")


@app.command()
def results(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or one record, .parquet.")],
    format: Annotated[
        Literal["json", "csv", "markdown", "latex", "parquet", "table"], typer.Option(help="What to print or write.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write instead; a must for parquet.")] = None,
) -> None:
    """Print the results of a run, or of one record, worked out from its raw samples.

    Example: medserve results runs/quick --format csv
    """
    if (format == "parquet" and out is None) or (format == "table" and out is not None):
        raise BadInput("--format parquet wants an --out FILE, and --out another --format than table")
    if run.is_file():
        from loadtest.commands.load import one_record

        one_record(run, format)
        return
    from loadtest.results.table import read, rows
    from loadtest.results.writers import parquet, render, short

    found = rows(read(run))
    if out is not None:
        store.write_bytes(out, parquet(found) if format == "parquet" else render(found, format).encode() + b"\n")
        return
    if format != "table":
        print(render(found, format))
        return
    from rich.console import Console

    tables, notes = short(found)
    console = Console()
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(note, style="red", markup=False, highlight=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page, .html.", show_default="RUN/report.html")] = None,
) -> None:
    """Write a run's report: a page that needs no network, the same as Markdown, figures/ and tables/.

    Example: medserve report runs/quick
    """
    from loadtest.report.page import write

    print(write(run, out)[0].resolve())


@app.command()
def compare(
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
    from loadtest.commands import compare
    from loadtest.results.launches import SHARES

    share = percentile / 100
    if share not in SHARES:
        raise BadInput(f"--percentile is {percentile:g}; expected {', '.join(f'{one * 100:g}' for one in SHARES)}")
    if new is None:
        compare.within(run, share, margin / 100, format)
    else:
        compare.between(run, new, share, margin / 100, format)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    json: Json = False,
) -> None:
    """Derive every published number of a run again, from its raw samples and their digests.

    Exit code 1 when a number or a file differs. Example: medserve verify runs/quick
    """
    from loadtest.results.verify import verify

    done = verify(run)
    print(
        msgspec.json.encode(done).decode()
        if json
        else f"{run}: {done.numbers:,} values derived again from {done.files:,} files, {len(done.differences)} differ"
    )
    if done.underivable and not json:
        print(f"not derived again: the test scores of {', '.join(done.underivable)}: no labels are kept beside them")
    if done.differences:
        more = f" (and {len(done.differences) - 1} more)" if len(done.differences) > 1 else ""
        raise CannotRun(f"{done.differences[0]}{more}")


@app.command()
def selftest(
    rate: Annotated[str, typer.Option(help="Requests a second, by Poisson schedule; several with commas.")] = "100",
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of each distribution of delays.")] = 3.0,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions at each rate; the worst one is judged.")] = 1,
    size: Annotated[str, typer.Option(help="Sides of the images in pixels, with commas.")] = "28",
    out: Annotated[Path | None, typer.Option(help="Folder for selftest.json and the raw records.")] = None,
    json: Json = False,
) -> None:
    """Try the ruler on known answers: scripted delays, a stall, and what the generator can send at all.

    Exit code 1 when a check fails. Example: medserve selftest --rate 50,200,500 --seconds 60 --repeats 5
    """
    from loadtest.selftest.run import in_words, run, why_failed

    sizes = [int(number) for number in _numbers("--size", size)]
    rates = _numbers("--rate", rate)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "selftest" if out is None else out.resolve()
        done = run(sizes, target, rates=rates, seconds=seconds, repeats=repeats)
    print(msgspec.json.encode(done).decode() if json else in_words(done))
    if reason := why_failed(done):
        raise CannotRun(reason)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise BadInput(f"{option} is {text!r}; expected numbers with commas, as in 50,200") from None


@app.command("time")
def time_(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of an exported model.")],
    runtime: Annotated[str | None, typer.Option(help="Runtime.", show_default="the format's own")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0: all usable cores.")] = 1,
    batch: Batch = 1,
    seconds: Seconds = 3.0,
    warmup: Warmup = 0.5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time an artifact in process, without HTTP, on its golden images.

    Example: medserve time artifacts/cells --batch 32 --threads 2
    """
    # Frameworks size their thread pools when they are imported, which opening a runtime does.
    os.environ.update(machine.thread_environment(threads))
    import numpy as np

    from loadtest import samples
    from loadtest.measure import inprocess
    from loadtest.results.summary import stages, summarise

    manifest = store.read_json(artifact / "artifact.json", Artifact)
    deployment = Deployment(
        artifact=artifact.name,
        runtime=runtime or pick(FORMATS, "format", manifest.format).runtime,
        threads=threads,
        batch_sizes=(batch,),
    )
    server_cpus, _ = machine.divide_cpus(threads)
    machine.pin(server_cpus)
    opened, _ = inprocess.open_runtime(artifact, deployment)
    with np.load(artifact / "golden.npz") as golden:
        images, expected = golden["images"], golden["scores"]
    profile = LoadProfile(name="by-hand", mode="in-process", batch=batch, seconds=seconds, warmup_seconds=warmup)
    timed = inprocess.measure(
        opened, deployment, profile, images, None if deployment.runtime == "null" else expected, seed
    )
    said = summarise(samples.as_table(timed.samples))
    said |= {"deployment": deployment.name, "batch": batch, "stages_ms": stages(timed.stages)}
    _say(f"{deployment.name}, in process, batches of {batch}", said, json)


@app.command()
def load(
    url: Annotated[str, typer.Option(help="Address of a server of the Open Inference Protocol v2.")],
    model: Annotated[str | None, typer.Option(help="Model.", show_default="the server's only one")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second by arrival schedule, answered or not.")
    ] = None,
    arrivals: Annotated[
        Arrivals | None, typer.Option(help="Kind of schedule.", show_default="constant; poisson for an objective")
    ] = None,
    burst: Annotated[int, typer.Option(min=1, help="Requests that arrive together, for --arrivals bursts.")] = 8,
    trace: Annotated[Path | None, typer.Option(help="Arrivals, one in seconds a line, for --arrivals trace.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Users back to back, where no rate is given.")] = 1,
    gap: Annotated[float, typer.Option(min=0.0, help="Seconds that a user rests after an answer.")] = 0.0,
    ladder: Annotated[
        str | None, typer.Option(help="Users of several runs, such as 1,2,4,8: where is the knee?")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="Such as p99<50ms: find the highest rate that holds it, from --rate on.")
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(min=1.0, help="Highest rate to try.", show_default="70 % of the generator's own")
    ] = None,
    batch: Batch = 1,
    images: Annotated[
        Path | None, typer.Option(help="Images to send, .npy, uint8 (N, H, W, C).", show_default="random")
    ] = None,
    expect: Annotated[
        Path | None, typer.Option(help="Scores of the images, .npy, float32 (N, classes): others count as failures.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Afterwards, send images twice: does the server cache?")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes of Locust that share the load.")] = 1,
    seconds: Seconds = 10.0,
    warmup: Warmup = 1.0,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds without an answer after which a request has failed.")
    ] = 30.0,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Parquet file for the raw record of every request.")] = None,
    json: Json = False,
) -> None:
    """Load-test any server of the Open Inference Protocol v2, this program's or another.

    Exit code 1 when requests failed or were answered wrongly, when the generator was late, and when the server had no
    steady state. Example: medserve load --url http://127.0.0.1:8000 --objective "p99<50ms"
    """
    from loadtest.analysis.slo_search import parse
    from loadtest.commands import load, load_options, slo_search

    wanted = None if objective is None else parse(objective)
    rungs = None if ladder is None else load_options.parse_ladder(ladder)
    profile = load_options.profile(
        rate=rate, arrivals=arrivals, burst=burst, trace=trace, users=users, gap=gap, batch=batch, seconds=seconds,
        warmup=warmup, ladder=rungs is not None, objective=wanted is not None, audit=audit,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        runs = load.Runs(
            load_options.plan(
                url, model, profile, images=images, expect=expect, patience=patience, seed=seed, out=out,
                audit=Path(scratch) / "audit.parquet" if audit else None,
            ),
            processes, Path(scratch), numbered=wanted is not None or rungs is not None,
        )  # fmt: skip
        if wanted is not None:
            slo_search.seek(runs, wanted, rate, max_rate, json)
        elif rungs is not None:
            load.ladder(runs, rungs, json)
        else:
            load.single(runs, json)


def _say(title: str, said: dict[str, Any], json: bool) -> None:
    from loadtest.results.summary import in_words

    print(msgspec.json.encode(said).decode() if json else f"{title}\n{in_words(said)}")


if __name__ == "__main__":
    errors.main(app)
