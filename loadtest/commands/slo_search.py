"""Implements `medserve load --objective`: every trial of the search is a run of Locust against the server."""

import sys
from math import prod, sqrt

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loadtest.analysis import slo_search
from loadtest.analysis.slo_search import START_RATE, JudgedTrial, Objective, Trial
from loadtest.commands.load_runs import Runs
from loadtest.commands.shared import print_figures
from loadtest.generator import payload
from loadtest.generator.payload import Load
from loadtest.measure.server_process import ServerProcess
from loadtest.results import faults, latency
from medserve import machine
from medserve.empty import empty_artifact
from medserve.errors import BadInput, CannotRun
from medserve.numbers import number
from medserve.progress import duration
from medserve.spec import Deployment, LoadProfile
from medserve.tables import ROOFLINE

ROOFLINE_USERS = 8
ROOFLINE_SECONDS = 2.0


def search(runs: Runs, objective: Objective, start: float | None, max_rate: float | None, json: bool) -> None:
    """Print the highest rate that meets the objective; on stderr, a line per trial."""
    plan = runs.plan
    profile = plan.profile

    def measure(rate: float, seconds: float, seed: int) -> Trial:
        table = runs.run(msgspec.structs.replace(profile, rate=rate, seconds=seconds), seed)
        rows = latency.by_planned_start(latency.after_warmup(table))
        if problem := _permanent_problem(rows, plan):
            raise CannotRun(runs.mark_incomplete(f"at {rate:g} requests/s: {problem}"))
        return Trial(latency.from_intended_start(rows), latency.service_time(rows))

    def report(judged: JudgedTrial, seconds_left: float) -> None:
        found, name = judged.exceedance, f"p{objective.p * 100:g}"
        value = "unknown, too many failed" if judged.percentile_ms is None else f"{number(judged.percentile_ms)} ms"
        line = (
            f"{judged.step:<8} {judged.rate:>7g}/s for {judged.seconds:g} s: {name} {value}, {found.share:.2%} above "
        )
        line += f"{objective.limit_ms:g} ms ({found.low:.2%} to {found.high:.2%}): {found.verdict}"
        left = f"; about {duration(seconds_left)} left" if seconds_left else ""
        print(line + left, file=sys.stderr, flush=True)

    if max_rate is None:
        reached = roofline(runs)
        ceiling, why = float(f"{ROOFLINE * reached:.3g}"), f"the load generator itself reaches {reached:,.0f}/s"
    else:
        ceiling, why = max_rate, f"{max_rate:g}/s is the highest rate to try"
    found = slo_search.search(
        objective, measure, report, start=START_RATE if start is None else start, ceiling=ceiling, why_ceiling=why,
        seconds=profile.seconds, seed=plan.seed,
    )  # fmt: skip
    figures = {"url": plan.url, "model": plan.model, "arrivals": profile.arrivals, **msgspec.to_builtins(found)}
    print_figures(figures, [f"{found}; 95 % confidence, {profile.arrivals.capitalize()} arrivals"], json)


def roofline(runs: Runs) -> float:
    """Requests per second that generator and null server reach together here, with images of about this size."""
    plan = runs.plan
    assert plan.shape is not None
    side = max(8, round(sqrt(prod(plan.shape) / 3)))
    folder = runs.scratch / "null"
    folder.mkdir()
    cpus, _ = machine.divide_cpus(1)
    deployment = Deployment(artifact="empty", runtime="null", batch_sizes=(plan.profile.batch,))
    profile = LoadProfile(
        name="roofline", mode="closed-loop", batch=plan.profile.batch, users=ROOFLINE_USERS,
        seconds=ROOFLINE_SECONDS, warmup_seconds=0.5,
    )  # fmt: skip
    server = ServerProcess(empty_artifact(folder, side), deployment, cpus, folder)
    try:
        server.wait_ready()
        null = Load(
            url=server.url, model=server.model, profile=profile, shape=(side, side, 3), cpus=plan.cpus,
        )  # fmt: skip
        table = Runs(null, runs.processes, folder, numbered=False).run(profile, plan.seed)
    finally:
        server.stop()
    rows = latency.after_warmup(table)
    return int(latency.succeeded(rows).sum()) / max(latency.duration_seconds(rows), 1e-9)


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
