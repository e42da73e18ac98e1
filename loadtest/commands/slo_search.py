"""Implements `medserve load --objective`: every trial of the search is a run of Locust against the server."""

import sys
import time
from collections.abc import Sequence
from math import prod, sqrt
from statistics import fmean

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loadtest.analysis import slo_search, slo_trials
from loadtest.analysis.slo_search import LOWEST_RATE, START_RATE
from loadtest.analysis.slo_trials import JudgedTrial, Left, Objective, Trial
from loadtest.commands.load_runs import Runs
from loadtest.commands.shared import print_figures
from loadtest.generator import payload
from loadtest.generator.payload import Load
from loadtest.measure import locust_process
from loadtest.measure.monitor import Monitor
from loadtest.measure.server_process import serving
from loadtest.results import faults, latency
from medserve import machine
from medserve.errors import BadInput, CannotRun
from medserve.numbers import number
from medserve.progress import duration
from medserve.result import Window
from medserve.spec import Deployment
from medserve.tables import ROOFLINE

PROBE = {"mode": "closed-loop", "users": 8, "rate": None, "arrivals": "constant", "seconds": 1.0}
"""The load whose rate the search begins near."""
NEAR = 0.6


def search(
    runs: Runs, objective: Objective, start: float | None, max_rate: float | None, minutes: float, json: bool
) -> None:
    """Print the highest rate that meets the objective; on stderr, a line per trial."""
    plan, trials = runs.plan, _Trials(runs, objective)
    if max_rate is None:
        reached = roofline(runs)
        ceiling, why = float(f"{ROOFLINE * reached:.3g}"), f"the load generator itself reaches {reached:,.0f}/s"
    else:
        ceiling, why = max_rate, f"{max_rate:g}/s is the highest rate to try"
    found = slo_search.search(
        objective, trials.measure, trials.report, start=_first_rate(runs) if start is None else start, ceiling=ceiling,
        why_ceiling=why, seconds=plan.profile.seconds, seed=plan.seed, most_seconds=minutes * 60,
    )  # fmt: skip
    trials.print(found, str(found), json)


def check(runs: Runs, objective: Objective, rate: float, json: bool) -> None:
    """Print whether a rate meets the objective: yes, no or undecided. Raises CannotRun for the last two."""
    plan, trials = runs.plan, _Trials(runs, objective)
    seconds, most = plan.profile.seconds, slo_trials.longest(objective, rate, plan.profile.seconds)
    words = f"an answer after {seconds:g} s of load, at most {most:g} s; up to three times that if disturbed"
    print(words, file=sys.stderr, flush=True)
    found = slo_trials.check(
        objective, trials.measure, trials.report, rate, seconds=seconds, seed=plan.seed
    )  # fmt: skip
    verdict = found.exceedance.verdict
    answer = {"holds": "yes", "fails": "no"}.get(verdict, "undecided")
    trials.print(found, f"{answer}: {objective} {verdict} at {rate:g} requests/s", json)
    if answer != "yes":
        raise CannotRun(f"{objective} {'is undecided' if answer == 'undecided' else verdict} at {rate:g} requests/s")


class _Trials:
    """Trials of a server for an objective, each a run of Locust and a line on stderr."""

    def __init__(self, runs: Runs, objective: Objective) -> None:
        self._runs, self._objective = runs, objective
        self._overheads: list[float] = []

    def measure(self, rate: float, seconds: float, seed: int) -> Trial:
        plan, began = self._runs.plan, time.monotonic()
        monitor = Monitor(None, plan.cpus)
        table = self._runs.run(msgspec.structs.replace(plan.profile, rate=rate, seconds=seconds), seed, monitor.look)
        rows = latency.by_planned_start(latency.after_warmup(table))
        if problem := _permanent_problem(rows, plan):
            raise CannotRun(self._runs.mark_incomplete(f"at {rate:g} requests/s: {problem}"))
        self._overheads.append(time.monotonic() - began - seconds)
        return Trial(latency.from_intended_start(rows), latency.service_time(rows), _disturbance(monitor.close()))

    def report(self, judged: JudgedTrial, left: Left) -> None:
        found, name = judged.exceedance, f"p{self._objective.p * 100:g}"
        value = "unknown, too many failed" if judged.percentile_ms is None else f"{number(judged.percentile_ms)} ms"
        line = (
            f"{judged.step:<8} {judged.rate:>7g}/s for {judged.seconds:g} s: {name} {value}, {found.share:.2%} above "
        )
        line += f"{self._objective.limit_ms:g} ms ({found.low:.2%} to {found.high:.2%}): {found.verdict}"
        line += f"; repeated: {judged.repeated}" if judged.repeated else ""
        more = left.seconds + left.trials * fmean(self._overheads)
        print(line + (f"; about {duration(more)} left" if left.trials else ""), file=sys.stderr, flush=True)

    def print(self, found: msgspec.Struct, answer: str, json: bool) -> None:
        plan = self._runs.plan
        arrivals = plan.profile.arrivals
        figures = {"url": plan.url, "model": plan.model, "arrivals": arrivals, **msgspec.to_builtins(found)}
        confidence = f"{slo_trials.CONFIDENCE * 100:g} % confidence, {arrivals.capitalize()} arrivals"
        print_figures(figures, [f"{answer}; {confidence}"], json)


def _first_rate(runs: Runs) -> float:
    """A rate below what the server answers to eight back-to-back users; START_RATE where it answers nothing."""
    profile = msgspec.structs.replace(runs.plan.profile, **PROBE)
    rows = latency.after_warmup(runs.run(profile, runs.plan.seed))
    answered = int(latency.succeeded(rows).sum()) if len(rows) else 0
    if not answered:
        return START_RATE
    reached = answered / latency.duration_seconds(rows)
    first = max(LOWEST_RATE, float(f"{NEAR * reached:.3g}"))
    print(f"8 back-to-back users: {reached:,.0f}/s; first rate {first:g}/s", file=sys.stderr, flush=True)
    return first


def _disturbance(windows: Sequence[Window]) -> str | None:
    """The first disturbance, unless most windows have one: then a server that shares these cores is what disturbs."""
    reasons = [window.reason for window in windows if window.reason]
    return reasons[0] if 0 < len(reasons) < len(windows) / 2 else None


def roofline(runs: Runs) -> float:
    """Requests per second that generator and null server reach together here, with images of about this size."""
    plan = runs.plan
    assert plan.shape is not None
    side = max(8, round(sqrt(prod(plan.shape) / 3)))
    folder = runs.scratch / "null"
    deployment = Deployment(artifact="empty", runtime="null", batch_sizes=(plan.profile.batch,))
    with serving(deployment, machine.divide_cpus(1)[0], folder, size=side) as server:
        return locust_process.roofline(
            server, (side, side, 3), plan.cpus, folder / "samples.parquet", plan.profile.batch, runs.processes
        )


def _permanent_problem(rows: pa.Table, plan: Load) -> str | None:
    """What is wrong with a trial that no other rate would mend; null when another rate may."""
    good = latency.succeeded(rows)
    if good.all():
        return None
    if not good.any() or pc.any(rows["wrong"]).as_py():
        return faults.failures(rows)
    try:
        payload.describe(plan.url, plan.model)
    except (BadInput, CannotRun) as error:
        return f"{faults.failures(rows)}; now {error}"
    return None
