"""Implements `medserve time`, `tune`, `peaks`, `selftest` and `loadtest launch`: what needs no running server."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from loadtest.commands.shared import (
    Batch,
    Json,
    Options,
    Seconds,
    Seed,
    Warmup,
    and_more,
    print_figures,
    runtime_options,
)
from medserve import machine, store
from medserve.errors import BadInput, CannotRun
from medserve.jobs import Launch
from medserve.models import Artifact
from medserve.spec import Deployment, Device, LoadProfile
from medserve.tables import FORMATS, pick


def launch(
    plan: Annotated[Path, typer.Argument(metavar="LAUNCH.json", help="A launch as the study runner writes it.")],
) -> None:
    """Measure the cells of one launch and write their results.

    Exit code 1 when a cell failed: its result says why. Example: python -m loadtest launch launch.json
    """
    asked = store.read_json(plan, Launch)
    if any(cell.deployment.keeps_memory for cell in asked.cells):
        machine.keep_memory()
    from loadtest.measure.launch import launch

    if failed := launch(asked):
        raise CannotRun(and_more(failed))


def selftest(
    rate: Annotated[str, typer.Option(help="Requests per second, by Poisson schedule; several with commas.")] = "100",
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds for each distribution of delays.")] = 3.0,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, help="Repetitions at each rate: the worst counts; of one that fails, three and their median."
        ),
    ] = 1,
    size: Annotated[str, typer.Option(help="Sides of the images in pixels, with commas.")] = "28",
    out: Annotated[Path | None, typer.Option(help="Folder for selftest.json and the raw records.")] = None,
    json: Json = False,
) -> None:
    """Test the load generator on known answers: scripted delays, a stall, and the highest rate that it can send.

    Exit code 1 when a check fails. Example: medserve selftest --rate 50,200,500 --seconds 60 --repeats 5
    """
    from loadtest.selftest.run import as_text, run, why_failed

    sizes = [int(number) for number in _numbers("--size", size)]
    rates = _numbers("--rate", rate)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "selftest" if out is None else out.resolve()
        done = run(sizes, target, rates=rates, seconds=seconds, repeats=repeats)
    print_figures(msgspec.to_builtins(done), [as_text(done)], json)
    if reason := why_failed(done):
        raise CannotRun(reason)


def time(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of an exported model.")],
    runtime: Annotated[str | None, typer.Option(help="Runtime.", show_default="the format's own")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0: all usable cores.")] = 1,
    batch: Batch = 1,
    options: Options = "{}",
    seconds: Seconds = 3.0,
    warmup: Warmup = 0.5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time an artifact in process, without HTTP, on its golden images.

    Example: medserve time artifacts/cells --batch 32 --threads 2
    """
    # Libraries size their thread pools when they are imported, NumPy among them.
    os.environ.update(machine.thread_environment(threads))
    import numpy as np

    from loadtest import samples
    from loadtest.measure import inprocess
    from loadtest.results.record_summary import as_text, stages, summarise

    manifest = store.read_json(artifact / "artifact.json", Artifact)
    deployment = Deployment(
        artifact=artifact.name,
        runtime=runtime or pick(FORMATS, "format", manifest.format).runtime,
        threads=threads,
        batch_sizes=(batch,),
        options=runtime_options(options),
    )
    if deployment.keeps_memory:
        machine.keep_memory()
    server_cpus, _ = machine.divide_cpus(threads)
    machine.pin(server_cpus)
    opened, _ = inprocess.open_runtime(artifact, deployment)
    with np.load(artifact / "golden.npz") as golden:
        images, expected = golden["images"], golden["scores"]
    profile = LoadProfile(name="manual", mode="in-process", batch=batch, seconds=seconds, warmup_seconds=warmup)
    timed = inprocess.measure(
        opened, deployment, profile, images, None if deployment.runtime == "null" else expected, seed
    )
    figures = summarise(samples.as_table(timed.samples))
    figures |= {"deployment": deployment.name, "batch": batch, "stages_ms": stages(timed.stages)}
    print_figures(figures, [f"{deployment.name}, in process, batches of {batch}", as_text(figures)], json)


def tune(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of an exported model.")],
    runtime: Annotated[str | None, typer.Option(help="Runtime.", show_default="the format's own")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0: all usable cores.")] = 1,
    deployment: Annotated[
        str | None, typer.Option(metavar="JSON", help="A deployment as one JSON object, instead of the two above.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for what was found.")] = None,
    json: Json = False,
) -> None:
    """Find the fastest options of a runtime for an artifact on this machine, in process, in at most ten minutes.

    Example: medserve tune artifacts/cells --runtime onnx_runtime --out tuned.json
    """
    from loadtest.measure import tuning

    manifest = store.read_json(artifact / "artifact.json", Artifact)
    asked = Deployment(
        artifact=artifact.name, runtime=runtime or pick(FORMATS, "format", manifest.format).runtime, threads=threads
    )
    if deployment is not None:
        try:
            asked = msgspec.json.decode(deployment, type=Deployment)
        except msgspec.MsgspecError as error:
            raise BadInput(f"--deployment is not a deployment in JSON: {error}") from None
    declared = tuning.settings(asked.runtime, asked.device)
    if not declared:
        raise BadInput(f"{asked.runtime} has no options to choose from")
    with tempfile.TemporaryDirectory() as scratch:
        found = tuning.tune(artifact, asked, Path(scratch), lambda line: print(line, file=sys.stderr, flush=True))
    if out is not None:
        store.write_json(out, found)
    options = msgspec.json.encode(found.chosen).decode()
    lines = [f"{asked.name}: {found.ratio:.3g} times the latency of the defaults, after {found.seconds:.0f} s"]
    lines += [
        f"{setting.option}={setting.value}: {setting.why} ({setting.source})"
        for setting in declared
        if found.chosen.get(setting.option) == setting.value
    ]
    lines.append(
        f"medserve serve {artifact} --runtime {asked.runtime} --options '{options}'"
        if found.chosen
        else "no other option is faster than the defaults"
    )
    print_figures(msgspec.to_builtins(found), lines, json)


def peaks(
    threads: Annotated[int, typer.Option(min=0, help="Threads that compute; 0: all usable cores.")] = 1,
    device: Annotated[Device, typer.Option(help="What computes.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="File for what was found.")] = None,
    json: Json = False,
) -> None:
    """Measure what this machine computes and reads at most, in seconds: the limit of every latency follows from it.

    Example: medserve peaks --threads 2
    """
    # NumPy's BLAS sizes its thread pool when it is imported.
    os.environ.update(machine.thread_environment(threads))
    machine.pin(machine.divide_cpus(threads)[0])
    from loadtest.measure import gpu
    from loadtest.measure.peaks import peaks

    found = peaks(threads) if device == "cpu" else gpu.peaks()
    if out is not None:
        store.write_json(out, found)
    where = f"CPUs {', '.join(map(str, found.cpus))}" if device == "cpu" else "the GPU"
    lines = [f"{found.flops / 1e9:.3g} GFLOP/s in float32 on {where}"]
    lines += [f"{speed / 1e9:.3g} GFLOP/s in {precision}" for precision, speed in found.reduced.items()]
    lines += [f"{speed / 1e9:.3g} GB/s from {size / 2**20:g} MiB" for size, speed in found.bandwidth.items()]
    print_figures(msgspec.to_builtins(found, str_keys=True), lines, json)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise BadInput(f"{option} is {text!r}; expected numbers with commas, as in 50,200") from None
