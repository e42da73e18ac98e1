"""`python -m loadtest`: measure a launch, print results, time an artifact, load-test a server."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from medserve import errors, machine, store
from medserve.errors import BadInput, CannotRun
from medserve.spec import Artifact, Deployment, Launch, LoadProfile
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
    from loadtest.launch import launch

    failed = launch(store.read_json(plan, Launch))
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise CannotRun(f"{failed[0]}{more}")


@app.command()
def results(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    format: Annotated[Literal["json", "csv", "markdown", "table"], typer.Option(help="What to print.")] = "table",
) -> None:
    """Print the results of a run, worked out from its raw samples.

    Example: medserve results runs/quick --format csv
    """
    from loadtest.analysis.rendering import render, short
    from loadtest.analysis.table import rows

    found = rows(run)
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
    """Write a run's report: a page that needs no network, the same as Markdown beside it, and figures/.

    Example: medserve report runs/quick
    """
    from loadtest.report.page import write

    print(write(run, out)[0].resolve())


@app.command("time")
def time_(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of an exported model.")],
    runtime: Annotated[str | None, typer.Option(help="Runtime.", show_default="the format's own")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
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

    from loadtest import inprocess, samples
    from loadtest.analysis.summary import stages, summarise

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
    poisson: Annotated[bool, typer.Option("--poisson", help="Random arrivals instead of even ones.")] = False,
    users: Annotated[int, typer.Option(min=1, help="Users back to back, where no rate is given.")] = 1,
    batch: Batch = 1,
    images: Annotated[
        Path | None, typer.Option(help="Images to send, .npy, uint8 (N, H, W, C).", show_default="random")
    ] = None,
    seconds: Seconds = 10.0,
    warmup: Warmup = 1.0,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Parquet file for the raw record of every request.")] = None,
    json: Json = False,
) -> None:
    """Load-test any server of the Open Inference Protocol v2, this program's or another.

    Exit code 1 when no request was answered. Example: medserve load --url http://127.0.0.1:8000 --rate 50
    """
    from loadtest import payload, samples
    from loadtest.analysis.summary import summarise
    from loadtest.client import generate

    url = url.rstrip("/")
    model, shape = payload.describe(url, model)
    if images is not None and (given := payload.open_images(images).shape[1:]) != shape:
        raise BadInput(f"{images}: images of {given}; {model} takes {shape}")
    profile = LoadProfile(
        name="by-hand",
        mode="closed-loop" if rate is None else "open-loop",
        batch=batch,
        users=users if rate is None else 1,
        rate=rate,
        arrivals="poisson" if poisson else "constant",
        seconds=seconds,
        warmup_seconds=warmup,
    )
    _, cpus = machine.divide_cpus(1)
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "samples.parquet" if out is None else out.resolve()
        plan = payload.Load(
            url=url,
            model=model,
            profile=profile,
            images=None if images is None else str(images.resolve()),
            shape=shape,
            out=str(record),
            seed=seed,
            cpus=cpus,
        )
        generate(plan, Path(scratch) / "locust.log")
        said = summarise(samples.read(record), 0.0 if rate is None else seconds)
    said |= {"url": url, "model": model, "mode": profile.mode, "batch": batch, "rate_asked": rate}
    how = f"{profile.users} back to back" if rate is None else f"{rate:g}/s by schedule"
    _say(f"{model} at {url}, {how}, batches of {batch}", said, json)
    if said["n"] == said["failed"]:
        raise CannotRun(f"all {said['n']} requests failed: {said['error']}")


def _say(title: str, said: dict[str, Any], json: bool) -> None:
    from loadtest.analysis.summary import in_words

    print(msgspec.json.encode(said).decode() if json else f"{title}\n{in_words(said)}")


if __name__ == "__main__":
    errors.main(app)
