"""A run folder built from known latencies, with the project's own nouns and writers."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest import samples
from medserve import store
from medserve.certificate import compare
from medserve.matrix import plan
from medserve.models import Artifact, Certificate, Checkpoint, Epoch, Recipe, Scores
from medserve.result import Result, Window
from medserve.scores import score
from medserve.spec import Cell
from medserve.study import Deployed, Export, Measure, Study, Training
from medserve.tables import DATASETS, FORMATS

MS = 1_000_000
FRAMEWORKS = ("pytorch", "keras_tf", "flax_nnx")
Latency = Callable[[Deployed, Cell, int], float]
"""Median milliseconds of a cell in one launch."""
Columns = dict[str, Any]
Change = Callable[[Cell, Columns], Columns]


def study(**other: Any) -> Study:
    settings: dict[str, Any] = {
        "name": "made",
        "title": "A made run",
        "datasets": ("synthetic",),
        "sizes": (28, 64),
        "architectures": ("cnn",),
        "frameworks": ("pytorch", "keras_tf", "flax_nnx"),
        "formats": ("native", "onnx"),
        "measure": (Measure(profiles=("in-process-1", "in-process-32", "closed-1", "open-50")),),
        "recipe": Recipe(epochs=2),
    }
    return Study(**{**settings, **other})


def build(
    run: Path,
    made: Study,
    latency: Latency,
    *,
    count: int = 400,
    failing: dict[str, str] | None = None,
    change: Change = lambda cell, columns: columns,
    windows: tuple[Window, ...] = (),
    accuracy: Callable[[Training], float] = lambda training: 0.97 + FRAMEWORKS.index(training.framework) / 1000,
) -> Path:
    """A run's folder as the program leaves it. `failing` maps deployments to the reason why their cells failed.

    `change` may turn the columns of a cell's record into others; `windows` are those of every cell over HTTP;
    `accuracy` is what a training came to.
    """
    store.write_json(run / "study.json", made)
    matrix = plan(made)
    checkpoints = {
        training.name: checkpoint_of(training, made.unofficial, accuracy(training)) for training in matrix.trainings
    }
    artifacts = {export.name: artifact_of(export, checkpoints[export.training.name]) for export in matrix.exports}
    for name, checkpoint in checkpoints.items():
        store.write_json(run / "checkpoints" / name / "checkpoint.json", checkpoint)
    for name, artifact in artifacts.items():
        store.write_json(run / "artifacts" / name / "artifact.json", artifact)
    began = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
    for index in range(made.launches):
        for deployed in matrix.deployed:
            for cell in deployed.cells:
                reason = (failing or {}).get(deployed.deployment.name)
                folder = run / "results" / cell.name / str(index)
                folder.mkdir(parents=True)
                if reason is None:
                    columns = change(cell, record(cell, latency(deployed, cell, index), count))
                    samples.write(folder / "samples.parquet", columns)
                began += timedelta(seconds=3)
                result = Result(
                    study=made.name,
                    cell=cell,
                    launch=index,
                    status="done" if reason is None else "failed",
                    reason=reason,
                    artifact=artifacts[deployed.export.name],
                    started=began.isoformat(),
                    seconds=3.0,
                    machine=MACHINE,
                    process=process_of(cell),
                    windows=() if cell.profile.mode == "in-process" else windows,
                    files=store.digests(folder, without="result.json"),
                )
                store.write_json(folder / "result.json", result)
    return run


PARTS = {"path": 0.1, "queue": 0.02, "decode": 0.03, "infer": 0.6, "encode": 0.05, "return": 0.1, "reading": 0.05}
"""Shares of a request from its sending; what is left is unexplained."""
LAG = 0.02
"""Share of an open loop's median by which requests leave late."""


def record(cell: Cell, median: float, count: int) -> Columns:
    """Samples whose median is `median` ms: an odd ladder around it, so that p90 and p99 are known multiples.

    The ladder is climbed in a random order: a record that only grows has no steady state.
    """
    took = (np.linspace(0.5, 1.5, 2 * (count // 2) + 1) * median * MS).astype(np.int64)
    took = np.random.default_rng(0).permutation(took)
    begun = np.arange(len(took), dtype=np.int64) * int(3 * median * MS)
    columns = {
        "sent_ns": begun,
        "done_ns": begun + took,
        "status": np.full(len(took), 200),
        "batch": np.full(len(took), cell.profile.batch),
        "warmup": np.zeros(len(took), np.bool_),
        "wrong": np.zeros(len(took), np.bool_),
    }
    if cell.profile.mode == "in-process":
        return columns
    if cell.profile.mode == "open-loop":
        columns |= {"intended_ns": begun, "sent_ns": begun + int(LAG * median * MS)}
    part = {name: (share * (columns["done_ns"] - columns["sent_ns"])).astype(np.int64) for name, share in PARTS.items()}
    return columns | {
        "server_received_ns": columns["sent_ns"] + part["path"],
        "server_sent_ns": columns["done_ns"] - part["return"] - part["reading"],
        "first_byte_ns": columns["done_ns"] - part["reading"],
        **{f"{stage}_ns": part[stage] for stage in ("queue", "decode", "infer", "encode")},
    }


def checkpoint_of(training: Training, unofficial: bool, accuracy: float) -> Checkpoint:
    place = FRAMEWORKS.index(training.framework)
    return Checkpoint(
        name=training.name,
        dataset=training.dataset,
        size=training.size,
        classes=tuple("abcdefgh"),
        task=DATASETS[training.dataset].task,
        architecture=training.architecture,
        framework=training.framework,
        recipe=training.recipe,
        parameters=288_488,
        data_digest="dc42b5f18f9392488d758d124d9a4228fe9c6b96e52d23678dde98252eb53100",
        unofficial=unofficial,
        licence=DATASETS[training.dataset].licence,
        history=tuple(
            Epoch(epoch=epoch, loss=1 / epoch, val_accuracy=0.8 + epoch / 100, seconds=9.0, images_per_second=450.0)
            for epoch in range(1, training.recipe.epochs + 1)
        ),
        test=Scores(accuracy=accuracy, balanced_accuracy=0.965, auc=0.998, images=1024),
        train_seconds=95.0 + place,
        images_per_second=450.0 - 90 * place,
        compile_seconds=0.8 + 6 * place,
        versions={"python": "3.11.7"},
        files={},
    )


def artifact_of(export: Export, checkpoint: Checkpoint) -> Artifact:
    certificate = Certificate(
        runtime=FORMATS[export.format].runtime,
        images=1024,
        max_abs=6.6e-7,
        max_log_abs=3e-6,
        decisions_changed=0,
        near_ties=1,
        accuracy=checkpoint.test.accuracy,
        limit_abs=1e-4,
        tie_margin=2e-4,
        kind="float32",
        valid=True,
        reason=None,
        versions={},
    )
    opset = 18 if export.format == "onnx" else None
    return Artifact(
        name=export.name,
        format=export.format,
        opset=opset,
        checkpoint=checkpoint,
        certificate=certificate,
        versions={},
        files={},
    )


MACHINE = {
    "system": "Linux 6.1",
    "cpu": "A processor",
    "architecture": "x86_64",
    "cores_online": 2,
    "cores_usable": 2,
    "smt_siblings": [[0], [1]],
    "governor": None,
    "virtual": True,
    "memory_bytes": 8 * 2**30,
    "load_average": [0.5, 0.5, 0.5],
    "gpus": [],
    "versions": {"python": "3.11.7", "onnxruntime-gpu": "1.31.1"},
}


def process_of(cell: Cell) -> dict[str, object]:
    runtime = {"runtime": {"threads": 1, "float32_exact": True}, "affinity": [0], "peak_memory_bytes": 2**28}
    if cell.profile.mode == "in-process":
        return {"timer": runtime}
    return {
        "server": {**runtime, "os_threads": 2, "cpu_seconds": 0.9, "minor_faults": 802, "context_switches": 1203},
        "client": {"affinity": [1]},
    }


def prove(run: Path, noise: float = 1e-6) -> None:
    """Give each checkpoint of a run labels and scores, and each artifact scores of its own with their certificate.

    With several labels per image every eighth probability is one half, and so a near tie.
    """
    generator = np.random.default_rng(0)
    truth: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    for path in sorted(run.glob("checkpoints/*/checkpoint.json")):
        home, labels = path.parent, np.arange(200) % 8
        scores = generator.dirichlet(np.ones(8), 200).astype(np.float32)
        if store.read_json(path, Checkpoint).task == "multi-label":
            labels, scores = generator.integers(0, 2, (200, 8)), generator.random((200, 8), np.float32)
            scores[:, 3] = 0.5
        truth[home.name] = labels, scores
        np.save(home / "test_labels.npy", labels)
        np.save(home / "test_scores.npy", scores)
        files = store.digests(home, without=path.name)
        restate(run, home.name, test=score(*truth[home.name]), files=files)
    for path in sorted(run.glob("artifacts/*/artifact.json")):
        artifact = store.read_json(path, Artifact)
        labels, reference = truth[artifact.checkpoint.name]
        scores = (reference + generator.uniform(0, noise, reference.shape)).astype(np.float32)
        np.save(path.parent / "scores.npy", scores)
        task, runtime = artifact.checkpoint.task, artifact.certificate.runtime
        certificate = compare(scores, reference, labels, task=task, runtime=runtime, versions={})
        files = store.digests(path.parent, without=path.name)
        proven = msgspec.structs.replace(artifact, certificate=certificate, files=files)
        store.write_json(path, proven)
        for measured in run.glob("results/*/*/result.json"):
            result = store.read_json(measured, Result)
            if result.artifact is not None and result.artifact.name == proven.name:
                store.write_json(measured, msgspec.structs.replace(result, artifact=proven))


def restate(run: Path, name: str, **fields: object) -> None:
    """Change a checkpoint wherever a manifest carries it."""
    kinds = {"checkpoint.json": Checkpoint, "artifact.json": Artifact, "result.json": Result}
    for path in run.rglob("*.json"):
        if (kind := kinds.get(path.name)) is None:
            continue
        value = store.read_json(path, kind)
        artifact = value.artifact if isinstance(value, Result) else value
        whole = artifact if isinstance(artifact, Checkpoint) else artifact.checkpoint
        if whole.name != name:
            continue
        changed = msgspec.structs.replace(whole, **fields)
        if not isinstance(artifact, Checkpoint):
            changed = msgspec.structs.replace(artifact, checkpoint=changed)
        store.write_json(path, msgspec.structs.replace(value, artifact=changed) if value is not artifact else changed)
