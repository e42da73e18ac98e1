"""The results of a run as rows: one a deployment and way of measuring, with a reason wherever a number is missing."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from msgspec import Struct

from loadtest.analysis import intervals
from loadtest.results import flags, launches
from loadtest.results.flags import Row
from loadtest.results.launches import Counted
from medserve import store
from medserve.errors import BadInput
from medserve.jobs import Failure
from medserve.result import Result, SelfTest
from medserve.spec import Artifact, Cell, Checkpoint, LoadProfile
from medserve.study import Deployed, Study, plan

__all__ = ["PERCENTILES", "Row", "Run", "read", "rows"]

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Kind = TypeVar("Kind")


class Launched(Struct, frozen=True):
    """A cell and what its launches came to: `counted` by launch, why others failed, how many are missing.

    `machine` is what the first of them says about where it was taken.
    """

    deployed: Deployed
    cell: Cell
    counted: dict[int, Counted]
    artifact: Artifact | None
    machine: dict[str, Any]
    reasons: list[str]
    missing: int


class Run(Struct, frozen=True):
    """A run's folder, its records reduced to what everything that is published is made of."""

    folder: Path
    study: Study
    tested: SelfTest | None
    cells: list[Launched]

    def centres(self) -> dict[str, dict[int, float]]:
        """Milliseconds of each launch of each cell: the median, but the mean where the trap is to print that."""
        means = {
            one.cell.name: {index: counted.mean_ns / 1e6 for index, counted in one.counted.items()}
            for one in self.cells
            if one.cell.profile.trap == "compile-inside"
        }
        return self.percentiles(0.5) | means

    def percentiles(self, p: float) -> dict[str, dict[int, float]]:
        """Milliseconds at the share `p` of each launch of each cell, infinite where too many requests failed.

        Launches with too few samples for `p` are left out.
        """
        least = intervals.least_samples(p)
        return {
            one.cell.name: {
                index: counted.intended.values[p] / 1e6
                for index, counted in one.counted.items()
                if counted.intended.count >= least
            }
            for one in self.cells
        }


def read(folder: Path, ledgers: Callable[[LoadProfile], bool] = lambda _: False) -> Run:
    """The records of a run, in the order of its study, each read once; `ledgers` are made of which profiles.

    Raises BadInput when the folder holds no run.
    """
    if not (folder / "study.json").is_file():
        raise BadInput(f"{folder}: no run (it has no study.json); give the folder that `medserve run` made")
    study = store.read_json(folder / "study.json", Study)
    tested = _manifest(folder / "selftest" / "selftest.json", SelfTest)
    deployed = plan(study).deployed
    cells = [_launched(folder, study, one, cell, ledgers(cell.profile)) for one in deployed for cell in one.cells]
    return Run(folder, study, tested, cells)


def rows(run: Run) -> list[Row]:
    """The rows of a run, in the order of its study."""
    found = [_row(run, one) for one in run.cells]
    cells = [one.cell for one in run.cells]
    flags.spread_caching(found, {cell.name: cell.deployment.name for cell in cells})
    ladders: dict[tuple[str, int], list[tuple[int, Row]]] = {}
    for cell, row in zip(cells, found, strict=True):
        if cell.profile.mode == "closed-loop" and not cell.profile.gap_seconds:
            key = (cell.deployment.name, cell.profile.batch)
            ladders.setdefault(key, []).append((cell.profile.users, row))
    for ladder in ladders.values():
        flags.quote_up_to_the_knee(ladder)
    return found


def _row(run: Run, one: Launched) -> Row:
    study, folder, tested = run.study, run.folder, run.tested
    deployed, cell, artifact, missing = one.deployed, one.cell, one.artifact, one.missing
    counted, reasons = list(one.counted.values()), list(one.reasons)
    profile, training = cell.profile, deployed.export.training
    if artifact is None:
        artifact = _manifest(folder / "artifacts" / deployed.export.name / "artifact.json", Artifact)
    checkpoint = artifact.checkpoint if artifact else None
    if checkpoint is None:
        checkpoint = _manifest(folder / "checkpoints" / training.name / "checkpoint.json", Checkpoint)
    if not counted and (failure := _failure(folder, deployed)):
        reasons, missing = [failure], 0
    status = "done" if counted else "failed" if reasons else "missing"
    if missing:
        reasons.append("not measured yet" if status == "missing" else f"{missing} of {study.launches} launches missing")
    null = deployed.deployment.runtime == "null"
    if null and status == "done":
        reasons.append("the null runtime computes no scores")
    total = sum(one.seconds for one in counted)
    latencies = _latencies(counted, reasons)
    certificate = None if null or artifact is None else artifact.certificate_of(cell.deployment.runtime)
    lossy = certificate is not None and certificate.kind == "lossy"
    test = None if null or checkpoint is None else checkpoint.test
    watched, disturbed, disturbance = flags.disturbed(counted)
    steady, unsteady = flags.steady(counted)
    cached, caching = flags.cached(counted)
    bimodal, populations = flags.bimodal(counted)
    drifting, drift = flags.drifting(counted)
    refused = _refused(profile, training.size, counted, tested, null) + ([caching] if caching else [])
    untested = flags.UNTESTED if tested is None and profile.mode != "in-process" and counted else None
    reasons += [reason for reason in (*refused, unsteady, populations, drift, disturbance, untested) if reason]
    return {
        "study": study.name,
        "cell": cell.name,
        "dataset": training.dataset,
        "size": training.size,
        "architecture": training.architecture,
        "framework": None if null else deployed.export.framework,
        "trained_in": None if null else training.framework,
        "format": None if null else deployed.export.format,
        "runtime": cell.deployment.runtime,
        "precision": None if null else deployed.export.precision,
        "device": cell.deployment.device,
        "threads": cell.deployment.threads,
        "batch_images": cell.deployment.batch_images,
        "batch": profile.batch,
        "mode": profile.mode,
        "profile": profile.name,
        "trap": profile.trap,
        "rate_asked": profile.rate,
        "rate_delivered": sum(one.count - one.failed for one in counted) / total if total and profile.rate else None,
        "status": status,
        "reason": "; ".join(reasons) or None,
        "n": sum(one.count for one in counted),
        "failed": sum(one.failed for one in counted),
        "wrong": sum(one.wrong for one in counted),
        "launches": len(counted),
        **latencies,
        "throughput": sum(one.images for one in counted) / total if total else None,
        "accuracy": test and (certificate.accuracy if certificate and lossy else test.accuracy),
        "balanced_accuracy": test and (None if lossy else test.balanced_accuracy),
        "auc": test and (certificate.auc if certificate and lossy else test.auc),
        "variant": training.variant,
        "seed": training.recipe.seed,
        "parity_max_abs": certificate and certificate.max_abs,
        "decisions_changed": certificate and certificate.decisions_changed,
        "source_artifact": deployed.export.name,
        "unofficial": checkpoint and checkpoint.unofficial,
        "valid": status == "done" and (null or bool(certificate and certificate.valid)) and not refused,
        **_costs(counted),
        "windows": watched,
        "disturbed": disturbed,
        "steady": steady,
        "bimodal": bimodal,
        "drifting": drifting,
        "cached": cached,
        "knee": None,
    }


def _latencies(counted: list[Counted], reasons: list[str]) -> Row:
    """The percentiles of a row, by every ruler; why the headline has none is added to `reasons`."""
    row: Row = {}
    for name, p in PERCENTILES.items():
        found = intervals.combine([one.intended for one in counted], p)
        row |= {f"{name}_ms": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        if counted and found.reason and found.reason not in reasons:
            reasons.append(found.reason)
    sent = [one.sent for one in counted if one.sent]
    closed = [one.closed for one in counted if one.closed]
    lag = [one.lag for one in counted if one.lag]
    for ruler, of in (("sent", sent), ("closed", closed)):
        row |= {f"{name}_{ruler}_ms": intervals.combine(of, PERCENTILES[name]).value for name in ("p50", "p99")}
    micro = {name: intervals.combine(lag, PERCENTILES[name]).value for name in ("p50", "p99")}
    return row | {f"lag_{name}_us": None if value is None else value * 1000 for name, value in micro.items()}


def _costs(counted: list[Counted]) -> Row:
    """What the servers of a row's launches took, medians; null in process, and where the system does not tell."""
    servers = [(one.process["server"], one.requests) for one in counted if one.process.get("server")]
    cpu = [1000 * server["cpu_seconds"] / requests for server, requests in servers if "cpu_seconds" in server]
    row: Row = {"cpu_ms": median(cpu) if cpu else None}
    for name in ("peak_memory_bytes", "import_seconds", "load_seconds", "ready_seconds", "first_answer_seconds"):
        values = [server[name] for server, _ in servers if server.get(name) is not None]
        row[name] = median(values) if values else None
    return row


def _refused(profile: LoadProfile, size: int, counted: list[Counted], tested: SelfTest | None, null: bool) -> list[str]:
    """Why a row that was measured is not valid, whatever its certificate says."""
    if not counted:
        return []
    found = [flags.failed_test(tested), flags.late(counted)]
    if not null and profile.mode != "in-process":
        found.append(flags.above_roofline(profile, size, counted, tested))
    return [reason for reason in found if reason]


def _launched(run: Path, study: Study, deployed: Deployed, cell: Cell, parts: bool) -> Launched:
    counted: dict[int, Counted] = {}
    reasons: dict[str, list[str]] = {}
    artifact: Artifact | None = None
    machine: dict[str, Any] = {}
    missing = 0
    for index in range(study.launches):
        folder = run / "results" / cell.name / str(index)
        if not (folder / "result.json").is_file():
            missing += 1
            continue
        try:
            result = store.read_json(folder / "result.json", Result)
            artifact = result.artifact or artifact
            machine = machine or result.machine
            if result.status == "failed":
                raise BadInput(result.reason or "no reason was given")
            counted[index] = launches.count(folder, result, parts=parts)
        except BadInput as error:
            reasons.setdefault(str(error), []).append(str(index))
    told = list(reasons)
    if counted or len(reasons) > 1:
        told = [f"launch {', '.join(indices)} failed: {reason}" for reason, indices in reasons.items()]
    return Launched(deployed, cell, counted, artifact, machine, told, missing)


def _failure(run: Path, deployed: Deployed) -> str | None:
    training = deployed.export.training
    jobs = (("data", f"{training.dataset}-{training.size}"), ("train", training.name), ("export", deployed.export.name))
    for stage, name in jobs:
        if failure := _manifest(run / "failures" / f"{stage}-{name}.json", Failure):
            return f"{stage} of {name} failed: {failure.reason}"
    return None


def _manifest(path: Path, kind: type[Kind]) -> Kind | None:
    return store.read_json(path, kind) if path.is_file() else None
