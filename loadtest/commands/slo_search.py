"""The search for an objective, against a server by its URL: every trial is a run of Locust."""

import sys
from math import prod, sqrt

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loadtest.analysis import slo_search
from loadtest.analysis.slo_search import Judged, Objective, Trial
from loadtest.commands.load import Runs, say
from loadtest.generator import payload
from loadtest.generator.payload import Load
from loadtest.measure.server_process import Server
from loadtest.results import faults, latency
from medserve import machine
from medserve.empty import empty_artifact
from medserve.errors import BadInput, CannotRun
from medserve.progress import duration
from medserve.spec import Deployment, LoadProfile
from medserve.tables import ROOFLINE

ROOFLINE_USERS = 8
ROOFLINE_SECONDS = 2.0


def seek(runs: Runs, wanted: Objective, start: float | None, max_rate: float | None, json: bool) -> None:
    """The highest rate that keeps the objective: a line a trial, and the answer in a sentence."""
    plan = runs.plan
    profile = plan.profile

    def measure(rate: float, seconds: float, seed: int) -> Trial:
        table = runs.run(msgspec.structs.replace(profile, rate=rate, seconds=seconds), seed)
        rows = latency.by_planned_start(latency.after_warmup(table))
        if broken := _why_pointless(rows, plan):
            raise CannotRun(runs.spoilt(f"at {rate:g} requests/s: {broken}"))
        return Trial(latency.from_intended_start(rows), latency.service_time(rows))

    if max_rate is None:
        reached = roofline(runs)
        ceiling, why = float(f"{ROOFLINE * reached:.3g}"), f"the load generator itself reaches {reached:,.0f}/s"
    else:
        ceiling, why = max_rate, f"{max_rate:g}/s is the highest rate asked for"
    begin = slo_search.START if start is None else start
    answer = slo_search.search(
        wanted, measure, _tell(wanted), start=begin, ceiling=ceiling, why_ceiling=why, seconds=profile.seconds,
        seed=plan.seed,
    )  # fmt: skip
    said = {"url": plan.url, "model": plan.model, "arrivals": profile.arrivals, **msgspec.to_builtins(answer)}
    say(said, [f"{answer}; 95 % confidence, {profile.arrivals.capitalize()} arrivals"], json)


def roofline(runs: Runs) -> float:
    """Requests a second that generator and null server reach together here, with images as large as these."""
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
    server = Server(empty_artifact(folder, side), deployment, cpus, folder)
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


def _why_pointless(rows: pa.Table, plan: Load) -> str | None:
    """Why no other rate would mend what went wrong in a trial; null where one may."""
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


def _tell(wanted: Objective) -> slo_search.Tell:
    def tell(judged: Judged, left: float) -> None:
        seen = judged.seen
        name = f"p{wanted.p * 100:g}"
        value = "not known, too many failed" if judged.percentile_ms is None else f"{judged.percentile_ms:.4g} ms"
        line = f"{judged.step:<8} {judged.rate:>7g}/s for {judged.seconds:g} s: {name} {value}, "
        line += f"{seen.share:.2%} above {wanted.limit_ms:g} ms ({seen.low:.2%} to {seen.high:.2%}): {seen.verdict}"
        print(line + (f"; about {duration(left)} left" if left else ""), file=sys.stderr, flush=True)

    return tell
