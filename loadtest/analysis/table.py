"""The results of a run as rows: one a deployment and way of measuring, with a reason wherever a number is missing."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest import samples
from loadtest.analysis import intervals
from medserve import store
from medserve.errors import BadInput
from medserve.spec import Artifact, Cell, Checkpoint, Failure, Result, Study
from medserve.study import Deployed, plan

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Row = dict[str, Any]
Kind = TypeVar("Kind")


class _Counted(msgspec.Struct):
    """One launch, reduced to what rows need. `ordered` are ascending latencies in nanoseconds."""

    ordered: NDArray[np.float64]
    failed: int
    answered: int
    images: int
    seconds: float


def rows(run: Path) -> list[Row]:
    """The rows of a run's folder, in the order of its study. Raises BadInput when it is no run."""
    if not (run / "study.json").is_file():
        raise BadInput(f"{run}: no run (it has no study.json); give the folder that `medserve run` made")
    study = store.read_json(run / "study.json", Study)
    return [_row(run, study, deployed, cell) for deployed in plan(study).deployed for cell in deployed.cells]


def _row(run: Path, study: Study, deployed: Deployed, cell: Cell) -> Row:
    profile, training = cell.profile, deployed.export.training
    counted, artifact, reasons, missing = _launches(run, study, cell)
    if artifact is None:
        artifact = _manifest(run / "artifacts" / deployed.export.name / "artifact.json", Artifact)
    checkpoint = artifact.checkpoint if artifact else None
    if checkpoint is None:
        checkpoint = _manifest(run / "checkpoints" / training.name / "checkpoint.json", Checkpoint)
    if not counted and (failure := _failure(run, deployed)):
        reasons, missing = [failure], 0
    status = "done" if counted else "failed" if reasons else "missing"
    if missing:
        reasons.append("not measured yet" if status == "missing" else f"{missing} of {study.launches} launches missing")
    null = deployed.deployment.runtime == "null"
    if null and status == "done":
        reasons.append("the null runtime computes no scores")
    total = sum(one.seconds for one in counted)
    row: Row = {
        "study": study.name,
        "cell": cell.name,
        "dataset": training.dataset,
        "size": training.size,
        "architecture": training.architecture,
        "framework": None if null else training.framework,
        "format": None if null else deployed.export.format,
        "runtime": cell.deployment.runtime,
        "precision": None if null or artifact is None else artifact.precision,
        "device": cell.deployment.device,
        "threads": cell.deployment.threads,
        "batch": profile.batch,
        "mode": profile.mode,
        "profile": profile.name,
        "rate_asked": profile.rate,
        "rate_delivered": sum(one.answered for one in counted) / total if total and profile.rate else None,
        "status": status,
        "reason": None,
        "n": sum(len(one.ordered) for one in counted),
        "failed": sum(one.failed for one in counted),
        "launches": len(counted),
    }
    for name, p in PERCENTILES.items():
        found = intervals.estimate([one.ordered for one in counted], p)
        row |= {f"{name}_ms": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        if counted and found.reason and found.reason not in reasons:
            reasons.append(found.reason)
    certificate = None if null or artifact is None else artifact.certificate
    test = None if null or checkpoint is None else checkpoint.test
    row |= {
        "throughput": sum(one.images for one in counted) / total if total else None,
        "accuracy": test and test.accuracy,
        "balanced_accuracy": test and test.balanced_accuracy,
        "auc": test and test.auc,
        "seed": training.recipe.seed,
        "parity_max_abs": certificate and certificate.max_abs,
        "decisions_changed": certificate and certificate.decisions_changed,
        "source_artifact": deployed.export.name,
        "unofficial": checkpoint and checkpoint.unofficial,
        "valid": status == "done" and artifact is not None and artifact.certificate.valid,
    }
    return row | {"reason": "; ".join(reasons) or None}


def _launches(run: Path, study: Study, cell: Cell) -> tuple[list[_Counted], Artifact | None, list[str], int]:
    """What each launch counted, the artifact, why launches failed, and how many have no result yet."""
    counted: list[_Counted] = []
    reasons: dict[str, list[str]] = {}
    artifact: Artifact | None = None
    missing = 0
    for index in range(study.launches):
        folder = run / "results" / cell.name / str(index)
        if not (folder / "result.json").is_file():
            missing += 1
            continue
        try:
            result = store.read_json(folder / "result.json", Result)
            artifact = result.artifact or artifact
            if result.status == "failed":
                raise BadInput(result.reason or "no reason was given")
            counted.append(_count(folder, result))
        except BadInput as error:
            reasons.setdefault(str(error), []).append(str(index))
    if not counted and len(reasons) == 1:
        return counted, artifact, list(reasons), missing
    told = [f"launch {', '.join(indices)} failed: {reason}" for reason, indices in reasons.items()]
    return counted, artifact, told, missing


def _count(folder: Path, result: Result) -> _Counted:
    path = folder / "samples.parquet"
    if path.name not in result.files:
        raise BadInput(f"{folder / 'result.json'}: it names no {path.name}; measure the cell again")
    store.check_digests(folder, {path.name: result.files[path.name]})
    table = intervals.measured(samples.read(path, intervals.COLUMNS))
    good = samples.is_good(table)
    profile = result.cell.profile
    return _Counted(
        ordered=np.sort(intervals.latencies(table)),
        failed=int((~good).sum()),
        answered=int(good.sum()),
        images=pc.sum(table.filter(good)["batch"]).as_py() or 0,
        # A schedule's last gap belongs to it, though no request ends it.
        seconds=intervals.seconds(table, profile.seconds if profile.mode == "open-loop" else 0.0),
    )


def _failure(run: Path, deployed: Deployed) -> str | None:
    training = deployed.export.training
    jobs = (("data", f"{training.dataset}-{training.size}"), ("train", training.name), ("export", deployed.export.name))
    for stage, name in jobs:
        if failure := _manifest(run / "failures" / f"{stage}-{name}.json", Failure):
            return f"{stage} of {name} failed: {failure.reason}"
    return None


def _manifest(path: Path, kind: type[Kind]) -> Kind | None:
    return store.read_json(path, kind) if path.is_file() else None
