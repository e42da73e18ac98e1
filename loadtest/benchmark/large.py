"""`python -m loadtest.benchmark.large FOLDER`: a run of 200 cells in five launches, as the program writes it.

Its latencies are random, its manifests and digests are valid. A process of its own, so that its memory does not count
for the reader of the run.
"""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from loadtest import samples
from medserve import errors, machine, store
from medserve.empty import empty_artifact
from medserve.result import Result
from medserve.spec import Artifact, Cell, Epoch, Scores
from medserve.study import Deployed, Export, Measure, Study, plan

SAMPLES = 10_000_000
SIZES = (28, 32, 40, 48, 64, 96, 112, 128, 160, 224)
PROFILES = ("in-process-1", "in-process-32", "closed-1", "open-50")
FACTOR = {"torchscript": 1.0, "saved_model": 1.4, "onnx_runtime": 0.7, "null": 0.05}
"""Latency by runtime, over that of the first."""
RATE = 50


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


def make(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the run to be made.")],
    rows: Annotated[int, typer.Option(min=1000, help="Samples of all cells together.")] = SAMPLES,
) -> None:
    """Make the run."""
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
    columns: dict[str, Any] = {
        "status": np.full(count, 200),
        "image": np.arange(count) % 1024,
        "batch": np.full(count, profile.batch),
        "warmup": np.zeros(count, np.bool_),
        "wrong": np.zeros(count, np.bool_),
    }
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
    done = sent + way + infer + back
    return columns | {
        "sent_ns": sent,
        "first_byte_ns": done - 5_000,
        "done_ns": done,
        "server_received_ns": sent + way,
        "server_sent_ns": done - back,
        "queue_ns": np.full(count, 2_000),
        "decode_ns": np.full(count, 3_000),
        "infer_ns": np.maximum(infer - 10_000, 0),
        "encode_ns": np.full(count, 2_000),
        "connection": np.zeros(count, np.int64),
    }


def _process(cell: Cell, count: int) -> dict[str, Any]:
    facts = {"runtime": {"threads": 1, "float32_exact": True}, "affinity": [0], "peak_memory_bytes": 2**28}
    if cell.profile.mode == "in-process":
        return {"timer": facts}
    start = {"import_seconds": 1.2, "load_seconds": 0.4, "ready_seconds": 1.7, "first_answer_seconds": 1.8}
    return {"server": {**facts, **start, "os_threads": 2, "cpu_seconds": count * 6e-4}, "client": {"affinity": [1]}}


if __name__ == "__main__":
    errors.main(lambda: typer.run(make))
