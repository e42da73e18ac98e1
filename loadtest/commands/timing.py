"""Implements `medserve time`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from loadtest.commands.shared import Batch, Json, Seconds, Seed, Warmup, print_figures
from medserve import machine, store
from medserve.spec import Artifact, Deployment, LoadProfile
from medserve.tables import FORMATS, pick


def command(
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
    )
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
