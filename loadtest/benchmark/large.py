"""`python -m loadtest.benchmark.large run|record|reduce FOLDER`: large results, and the cost of reducing a record.

`run` makes 200 cells in five launches, as the program writes them, `record` a single launch. Latencies are random,
manifests and digests are valid. Each is a process of its own, so that its peak memory is that of its own work.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import typer
from numpy.typing import NDArray

from loadtest import samples
from medserve import errors, machine, store
from medserve.empty import empty_artifact
from medserve.matrix import plan
from medserve.models import Artifact, Epoch, Scores
from medserve.result import Result
from medserve.spec import Cell, Deployment, LoadProfile
from medserve.study import Deployed, Export, Measure, Study

SAMPLES = 10_000_000
SIZES = (28, 32, 40, 48, 64, 96, 112, 128, 160, 224)
PROFILES = ("in-process-1", "in-process-32", "closed-1", "open-50")
FACTOR = {"torchscript": 1.0, "saved_model": 1.4, "onnx_runtime": 0.7, "null": 0.05}
"""Latency by runtime, over that of the first."""
RATE = 50
BLOCK = 1 << 20
GAP = 100_000
"""Nanoseconds between two arrivals of the large record: 10,000 per second."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER")]


def study(count: int) -> Study:
    """Two frameworks, native and ONNX, and the null server: five deployments, ten sizes, four profiles, 200 cells."""
    return Study(
        name="large",
        title="A large run of drawn latencies",
        datasets=("synthetic",),
        sizes=SIZES,
        architectures=("cnn",),
        frameworks=("pytorch", "keras_tf"),
        formats=("native", "onnx"),
        measure=(Measure(profiles=PROFILES, seconds=count / RATE, warmup_seconds=0.0),),
        launches=5,
    )


@app.command()
def run(folder: Folder, rows: Annotated[int, typer.Option(min=1000)] = SAMPLES) -> None:
    """Make the run; `rows` are the samples of all cells together."""
    cells = len(SIZES) * len(PROFILES) * 5
    count = max(1, rows // (cells * 5))
    made = study(count)
    matrix = plan(made)
    assert sum(len(deployed.cells) for deployed in matrix.deployed) == cells
    store.write_json(folder / "study.json", made)
    with tempfile.TemporaryDirectory() as scratch:
        empty = store.read_artifact(empty_artifact(Path(scratch), SIZES[0]))
    artifacts = {export.name: _artifact(empty, export) for export in matrix.exports}
    for name, artifact in artifacts.items():
        store.write_json(folder / "artifacts" / name / "artifact.json", artifact)
        store.write_json(folder / "checkpoints" / artifact.checkpoint.name / "checkpoint.json", artifact.checkpoint)
    generator, host = np.random.default_rng(0), machine.fingerprint()
    started = datetime(2026, 1, 1, tzinfo=UTC)
    for index in range(made.launches):
        for deployed in matrix.deployed:
            for cell in deployed.cells:
                started += timedelta(seconds=cell.profile.seconds)
                target = folder / "results" / cell.name / str(index)
                target.mkdir(parents=True)
                samples.write(target / "samples.parquet", _record(generator, deployed, cell, count))
                result = Result(
                    study=made.name,
                    cell=cell,
                    launch=index,
                    status="done",
                    artifact=artifacts[deployed.export.name],
                    started=started.isoformat(),
                    seconds=cell.profile.seconds,
                    machine=host,
                    process=_process(cell, count),
                    files=store.digests(target, without="result.json"),
                )
                store.write_json(target / "result.json", result)


@app.command()
def record(folder: Folder, rows: Annotated[int, typer.Option(min=1)] = SAMPLES) -> None:
    """Make a record of an open loop, and the result that names it."""
    samples.write_tables(folder / "samples.parquet", _tables(rows))
    profile = LoadProfile(
        name="large", mode="open-loop", arrivals="poisson", rate=1e9 / GAP, seconds=rows * GAP / 1e9, warmup_seconds=0.0
    )
    result = Result(
        study="large",
        cell=Cell(deployment=Deployment(artifact="empty", runtime="null"), profile=profile),
        launch=0,
        status="done",
        started="",
        files=store.digests(folder, without="result.json"),
    )
    store.write_json(folder / "result.json", result)


@app.command()
def reduce(folder: Folder) -> None:
    """Summarise the launch of the record, as a report does. Prints seconds, peak memory and requests."""
    from loadtest.results import launch_summary

    result = store.read_json(folder / "result.json", Result)
    began = time.perf_counter()
    summary = launch_summary.summarise(folder, result)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(msgspec.json.encode({"seconds": seconds, "peak_bytes": peak, "requests": summary.count}).decode())


def _artifact(empty: Artifact, export: Export) -> Artifact:
    training, replace = export.training, msgspec.structs.replace
    epochs = range(training.recipe.epochs)
    checkpoint = replace(
        empty.checkpoint,
        name=training.name,
        size=training.size,
        framework=training.framework,
        recipe=training.recipe,
        history=tuple(
            Epoch(
                epoch=one + 1, loss=2 / (one + 2), val_accuracy=1 - 1 / (one + 3), seconds=9.0, images_per_second=450.0
            )
            for one in epochs
        ),
        test=Scores(accuracy=0.99 - 1 / training.size, balanced_accuracy=0.95, auc=0.99, images=1024),
        train_seconds=9.0 * len(epochs),
        images_per_second=450.0,
    )
    return replace(empty, name=export.name, format=export.format, checkpoint=checkpoint, model_bytes=1_200_000)


def _record(generator: np.random.Generator, deployed: Deployed, cell: Cell, count: int) -> dict[str, Any]:
    """Columns of one launch: lognormal around a level of its own, which grows with the number of pixels."""
    profile = cell.profile
    level = 500_000 * (deployed.export.training.size / 28) ** 1.5 * FACTOR[deployed.deployment.runtime]
    level *= profile.batch**0.8 * np.exp(generator.normal(0.0, 0.02))
    infer = (level * generator.lognormal(0.0, 0.15, count)).astype(np.int64)
    columns = _common(np.arange(count), profile.batch)
    if profile.mode == "in-process":
        ends = 10**15 + np.cumsum(infer)
        return columns | {"sent_ns": ends - infer, "done_ns": ends}
    way, back = generator.integers(20_000, 60_000, (2, count))
    if profile.mode == "open-loop":
        intended = 10**15 + np.arange(count) * (1_000_000_000 // RATE)
        sent = intended + generator.integers(5_000, 50_000, count)
        columns["intended_ns"] = intended
    else:
        took = way + infer + back
        sent = 10**15 + np.cumsum(took) - took
    return columns | _over_http(sent, way, infer, back) | {"connection": np.zeros(count, np.int64)}


def _common(number: NDArray[np.int64], batch: int) -> dict[str, Any]:
    """The columns of successful requests that are the same however they were measured."""
    count = len(number)
    return {
        "status": np.full(count, 200),
        "image": number % 1024,
        "batch": np.full(count, batch),
        "warmup": np.zeros(count, np.bool_),
        "wrong": np.zeros(count, np.bool_),
    }


def _over_http(
    sent: NDArray[np.int64], way: NDArray[np.int64], inside: NDArray[np.int64], back: NDArray[np.int64]
) -> dict[str, Any]:
    """The stamps of requests, from the time of sending and the nanoseconds to, inside and from the server."""
    count, done = len(sent), sent + way + inside + back
    return {
        "sent_ns": sent,
        "first_byte_ns": done - 5_000,
        "done_ns": done,
        "server_received_ns": sent + way,
        "server_sent_ns": done - back,
        "queue_ns": np.full(count, 2_000),
        "decode_ns": np.full(count, 3_000),
        "infer_ns": np.maximum(inside - 10_000, 0),
        "encode_ns": np.full(count, 2_000),
    }


def _tables(rows: int) -> Iterator[pa.Table]:
    generator = np.random.default_rng(0)
    start = 10**15
    for at in range(0, rows, BLOCK):
        count = min(BLOCK, rows - at)
        intended = start + np.cumsum(generator.exponential(GAP, count).astype(np.int64))
        start = int(intended[-1])
        sent = intended + generator.exponential(20_000, count).astype(np.int64)
        infer = generator.lognormal(np.log(500_000), 0.3, count).astype(np.int64)
        way, back = generator.integers(20_000, 60_000, (2, count))
        yield samples.as_table(
            _common(np.arange(at, at + count), 1)
            | _over_http(sent, way, infer, back)
            | {"intended_ns": intended, "connection": np.arange(count) % 16}
        )


def _process(cell: Cell, count: int) -> dict[str, Any]:
    facts = {"runtime": {"threads": 1, "float32_exact": True}, "affinity": [0], "peak_memory_bytes": 2**28}
    if cell.profile.mode == "in-process":
        return {"timer": facts}
    start = {"import_seconds": 1.2, "load_seconds": 0.4, "ready_seconds": 1.7, "first_answer_seconds": 1.8}
    return {"server": {**facts, **start, "os_threads": 2, "cpu_seconds": count * 6e-4}, "client": {"affinity": [1]}}


if __name__ == "__main__":
    errors.main(app)
