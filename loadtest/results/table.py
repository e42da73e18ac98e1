"""The results of a run as rows: one per deployment and way of measuring, with a reason wherever a number is missing."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from msgspec import Struct

from loadtest.analysis import intervals
from loadtest.analysis.intervals import Interval
from loadtest.analysis.limit import Limit, limit
from loadtest.results import capacity, flags, latency, launch_summary
from loadtest.results.launch_summary import LaunchSummary
from loadtest.results.objective import deadline_ms
from loadtest.results.row import OURS, PERCENTILES, Row, Status
from medserve import store
from medserve.errors import BadInput
from medserve.jobs import Failure
from medserve.machine import MANY_FAULTS, USED
from medserve.matrix import plan
from medserve.models import Artifact, Checkpoint
from medserve.numbers import number
from medserve.result import Peaks, Result, SelfTest
from medserve.spec import Cell, LoadProfile
from medserve.study import Deployed, Study

Kind = TypeVar("Kind")
SERVER_FACTS = ("peak_memory_bytes", "import_seconds", "load_seconds", "ready_seconds", "first_answer_seconds")
"""What servers report of themselves; a row has the medians over launches."""


class MeasuredCell(Struct, frozen=True):
    """A cell and its launches: `summaries` by launch, why others failed, how many are missing.

    `machine` is what the first of them says of where it was measured.
    """

    deployed: Deployed
    cell: Cell
    summaries: dict[int, LaunchSummary]
    artifact: Artifact | None
    machine: dict[str, Any]
    reasons: list[str]
    missing: int


class Run(Struct, frozen=True):
    """A run's folder, its records reduced to what all published numbers are made of; `peaks` by `Deployed.peaks`."""

    folder: Path
    study: Study
    selftest: SelfTest | None
    cells: list[MeasuredCell]
    peaks: dict[str, Peaks]

    def central_latencies(self) -> dict[str, dict[int, float]]:
        """Milliseconds of each launch of each cell: the median, or the mean when the timing mistake is to print it."""
        means = {
            cell.cell.name: {index: summary.mean_ns / 1e6 for index, summary in cell.summaries.items()}
            for cell in self.cells
            if cell.cell.profile.mistake == "compile-inside"
        }
        return self.percentiles(0.5) | means

    def percentiles(self, p: float) -> dict[str, dict[int, float]]:
        """Milliseconds at the share `p` of each launch of each cell, infinite where too many requests failed.

        Launches with too few samples for `p` are left out.
        """
        least = intervals.least_samples(p)
        return {
            cell.cell.name: {
                index: summary.intended.values[p] / 1e6
                for index, summary in cell.summaries.items()
                if summary.intended.count >= least
            }
            for cell in self.cells
        }


def read(folder: Path, with_breakdown: Callable[[LoadProfile], bool] = lambda _: False) -> Run:
    """The records of a run, in the order of its study, each read once; with the breakdown of the profiles asked for.

    Raises BadInput when the folder holds no run, or one of an older version than this program reads.
    """
    check_run(folder)
    study = store.read_json(folder / "study.json", Study)
    selftest = _manifest(folder / "selftest" / "selftest.json", SelfTest)
    cells = [
        _measured(folder, study, deployed, cell, with_breakdown(cell.profile))
        for deployed in plan(study).deployed
        for cell in deployed.cells
    ]
    peaks = [store.read_json(path, Peaks) for path in sorted((folder / "peaks").glob("*.json"))]
    by_name = {str(known.threads) if known.device == "cpu" else known.device: known for known in peaks}
    return Run(folder, study, selftest, cells, by_name)


def check_run(run: Path) -> None:
    """Raise BadInput when a folder holds no run, or a record of an older version than this program reads."""
    check_version(run)
    if not (run / "study.json").is_file():
        raise BadInput(f"{run}: no run (it has no study.json); give the folder that `medserve run` made")


def check_version(run: Path) -> None:
    """Raise BadInput when a record of a run is of an older version than this program reads."""
    for path in (run / "selftest" / "selftest.json", *sorted(run.glob("results/*/[0-9]*/result.json"))):
        stated = store.version(path)
        if stated is not None and stated < Result.oldest:
            raise BadInput(
                f"{run}: a run of version {stated} (by {path.relative_to(run)}), this program reads {Result.oldest} "
                "and later; read it with the medserve that wrote it, or `medserve run` the study into another folder"
            )


def rows(run: Run) -> list[Row]:
    """The rows of a run, in the order of its study."""
    known = {cell.cell.name: cell for cell in run.cells}
    found = flags.spread_caching([_row(run, cell, _capacity(cell, known)) for cell in run.cells])
    ladders: dict[tuple[str, int], list[tuple[int, Row]]] = {}
    for cell, row in zip(run.cells, found, strict=True):
        profile = cell.cell.profile
        if profile.mode == "closed-loop" and not profile.gap_seconds:
            ladders.setdefault((row.deployment, row.batch), []).append((profile.users, row))
    changed = {row.cell: row for ladder in ladders.values() for row in flags.suppress_beyond_saturation(ladder)}
    return [changed.get(row.cell, row) for row in found]


def _capacity(measured: MeasuredCell, known: Mapping[str, MeasuredCell]) -> MeasuredCell | None:
    """The cell that tells what the load of another one is a share of; null for a cell without a load."""
    return known.get(f"{measured.cell.deployment.name}.{measured.cell.profile.capacity}")


def _row(run: Run, measured: MeasuredCell, full: MeasuredCell | None) -> Row:
    study, folder, selftest = run.study, run.folder, run.selftest
    deployed, cell, artifact, missing = measured.deployed, measured.cell, measured.artifact, measured.missing
    launches, reasons = list(measured.summaries.values()), list(measured.reasons)
    profile, training = cell.profile, deployed.export.training
    if artifact is None:
        artifact = _manifest(folder / "artifacts" / deployed.export.name / "artifact.json", Artifact)
    checkpoint = artifact.checkpoint if artifact else None
    if checkpoint is None:
        checkpoint = _manifest(folder / "checkpoints" / training.name / "checkpoint.json", Checkpoint)
    if not launches and (failure := _failure(folder, deployed)):
        reasons, missing = [failure], 0
    status: Status = "done" if launches else "failed" if reasons else "missing"
    if missing:
        reasons.append("not measured yet" if status == "missing" else f"{missing} of {study.launches} launches missing")
    null = not deployed.computes
    if null and status == "done":
        reasons.append("the null runtime computes no scores")
    least = limit_of(run, deployed, profile, checkpoint)
    total = sum(launch.seconds for launch in launches)
    deadline = deadline_ms(study) if profile.mode == "open-loop" and launches else None
    intended = [launch.intended for launch in launches]
    percentiles = {name: intervals.combine(intended, p) for name, p in PERCENTILES.items()}
    if launches:
        reasons += dict.fromkeys(found.reason for found in percentiles.values() if found.reason)
    used = [(server, launch.requests) for launch in launches if (server := launch.result.process.get("server"))]
    facts = {name: [server[name] for server, _ in used if server.get(name) is not None] for name in SERVER_FACTS}
    by_name: dict[str, Any] = {**percentiles, **_beside(launches)}
    by_name |= {name: median(values) if values else None for name, values in facts.items()}
    shares = {name: _per_request(launches, name) for name in USED}
    if (faults := shares["minor_faults"]) is not None and faults > MANY_FAULTS:
        reasons.append(f"{number(faults)} minor page faults per request")
    used_shares = capacity.utilisations(measured.summaries, full.summaries) if full else []
    utilisation = median(used_shares) if used_shares else None
    overload = capacity.overload(launches, utilisation) if profile.mode == "open-loop" and launches else None
    if overload is not None:
        reasons.append(overload)
        by_name |= dict.fromkeys(PERCENTILES, Interval(reason=overload))
    rates = [rate for launch in launches if (rate := launch.result.cell.profile.rate) is not None]
    certificate = None if null or artifact is None else artifact.certificate_of(cell.deployment.runtime)
    lossy = certificate if certificate and certificate.kind == "lossy" else None
    test = None if null or checkpoint is None else checkpoint.test
    windows, disturbed, disturbance = flags.disturbed(launches)
    steady, unsteady = flags.steady(launches)
    cached, caching = flags.cached(launches)
    bimodal, populations = flags.bimodal(launches)
    drifting, drift = flags.drifting(launches)
    over_http = profile.mode != "in-process" and bool(launches)
    near = flags.above_roofline(profile, training.size, launches, selftest) if over_http and not null else None
    failed_test = flags.failed_selftest(launches, selftest)
    # Of a queue that grows the client's share is not told.
    late = None if overload else flags.late(launches)
    certified = status == "done" and (null or bool(certificate and certificate.valid))
    invalid = list(filter(None, (failed_test, late, near, caching)))
    untested = flags.NO_SELFTEST if over_http and selftest is None else None
    reasons += filter(None, (*invalid, unsteady, populations, drift, disturbance, untested))
    answered = sum(launch.count - launch.failed for launch in launches)
    images = sum(launch.images for launch in launches)
    return Row(
        study=study.name,
        cell=cell.name,
        dataset=training.dataset,
        size=training.size,
        architecture=training.architecture,
        framework=None if null else deployed.export.framework,
        trained_in=None if null else training.framework,
        format=None if null else deployed.export.format,
        runtime=cell.deployment.runtime,
        server=cell.deployment.server.name if cell.deployment.server else OURS,
        copy=cell.deployment.copy,
        precision=None if null else deployed.export.precision,
        device=cell.deployment.device,
        settings=cell.deployment.settings,
        threads=cell.deployment.threads,
        dispatch=cell.deployment.dispatch,
        batch_images=cell.deployment.batch_images,
        instances=cell.deployment.instances,
        batch=profile.batch,
        mode=profile.mode,
        profile=profile.name,
        mistake=profile.mistake,
        load=profile.load,
        rate_asked=profile.rate if profile.load is None else median(rates) if rates else None,
        rate_delivered=answered / total if total and profile.mode == "open-loop" and not profile.trace else None,
        status=status,
        reason="; ".join(reasons) or None,
        n=sum(launch.count for launch in launches),
        failed=sum(launch.failed for launch in launches),
        wrong=sum(launch.wrong for launch in launches),
        launches=len(launches),
        **by_name,
        # Without a model and without HTTP there is nothing whose throughput could be meant.
        throughput=images / total if total and not (null and profile.mode == "in-process") else None,
        utilisation=utilisation,
        deadline_ms=deadline,
        goodput=sum(launch.in_time for launch in launches) / total if total and deadline is not None else None,
        overloaded=overload is not None if profile.mode == "open-loop" and launches else None,
        task=checkpoint.task if test and checkpoint else None,
        accuracy=lossy.accuracy if lossy else test.accuracy if test else None,
        balanced_accuracy=test.balanced_accuracy if test and not lossy else None,
        auc=lossy.auc if lossy else test.auc if test else None,
        variant=training.variant,
        seed=training.recipe.seed,
        parity_max_abs=certificate.max_abs if certificate else None,
        decisions_changed=certificate.decisions_changed if certificate else None,
        source_artifact=deployed.export.name,
        limit_ms=least.ms if least else None,
        unofficial=checkpoint.unofficial if checkpoint else None,
        valid=certified and not invalid,
        late=certified and invalid == [late],
        cpu_ms=None if shares["cpu_seconds"] is None else 1000 * shares["cpu_seconds"],
        faults=faults,
        switches=shares["context_switches"],
        windows=windows,
        disturbed=disturbed,
        steady=steady,
        bimodal=bimodal,
        drifting=drifting,
        cached=cached,
    )


def limit_of(run: Run, deployed: Deployed, profile: LoadProfile, checkpoint: Checkpoint | None) -> Limit | None:
    """The least time of one request on the run's machine, in float32 or TF32; null where it is not known."""
    peaks, precision = run.peaks.get(deployed.peaks), deployed.export.precision
    if peaks is None or checkpoint is None or checkpoint.computation is None or not deployed.computes:
        return None
    flops = {"float32": peaks.flops, "tf32": peaks.reduced.get("tf32")}.get(precision)
    return None if flops is None else limit(checkpoint.computation, profile.batch, flops, peaks.bandwidth)


def _per_request(launches: Iterable[LaunchSummary], name: str) -> float | None:
    """One of `medserve.machine.USED` per request, or per call in process: the median over launches."""
    found = []
    for launch in launches:
        process = launch.result.process
        timer = process.get("timer", {})
        facts, requests = (timer, timer["calls"]) if "calls" in timer else (process.get("server", {}), launch.requests)
        # Older records count the context switches of one thread, from its start.
        if name in facts and (name != "context_switches" or "minor_faults" in facts):
            found.append(facts[name] / requests)
    return median(found) if found else None


def _beside(launches: Iterable[LaunchSummary]) -> dict[str, float | None]:
    """The percentiles by latency.DEFINITIONS, by their names in a row, over the launches that have them."""
    found: dict[str, float | None] = {}
    for definition in latency.DEFINITIONS:
        known = [launch.beside[definition] for launch in launches if launch.beside]
        for name, p in (("p50", 0.5), ("p99", 0.99)):
            value = intervals.combine(known, p).value
            key, scale = latency.percentile_name(name, definition)
            found[key] = None if value is None else value * scale
    return found


def _measured(run: Path, study: Study, deployed: Deployed, cell: Cell, with_breakdown: bool) -> MeasuredCell:
    summaries: dict[int, LaunchSummary] = {}
    failed: dict[str, list[str]] = {}
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
            summaries[index] = launch_summary.summarise(
                folder, result, with_breakdown=with_breakdown, deadline_ms=deadline_ms(study)
            )
        except BadInput as error:
            failed.setdefault(str(error), []).append(str(index))
    reasons = list(failed)
    if summaries or len(failed) > 1:
        reasons = [f"launch {', '.join(indices)} failed: {reason}" for reason, indices in failed.items()]
    return MeasuredCell(deployed, cell, summaries, artifact, machine, reasons, missing)


def _failure(run: Path, deployed: Deployed) -> str | None:
    training = deployed.export.training
    jobs = [("data", f"{training.dataset}-{training.size}"), ("train", training.name), ("export", deployed.export.name)]
    jobs.append(("tune", deployed.deployment.name))
    for stage, name in jobs:
        if failure := _manifest(run / "failures" / f"{stage}-{name}.json", Failure):
            return f"{stage} of {name} failed: {failure.reason}"
    return None


def _manifest(path: Path, kind: type[Kind]) -> Kind | None:
    return store.read_json(path, kind) if path.is_file() else None
